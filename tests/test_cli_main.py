from __future__ import annotations

import subprocess
import sys

import pytest

from ipsrec_cli.main import COMMANDS, main

HEAVY = ("numpy", "pyarrow", "numba", "torch", "onnxruntime", "polars", "rich")


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_imports_nothing_heavy(command):
    program = (
        "import sys\n"
        "from ipsrec_cli.main import main\n"
        "try:\n"
        f"    main([*{command!r}, '--help'])\n"
        "finally:\n"
        f"    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ipsrec")
    assert done.stderr.strip() == "[]"


def test_help_lists_every_command_in_the_order_of_use(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert [printed.index(f"\n  {name} ") for name in COMMANDS] == sorted(
        printed.index(f"\n  {name} ") for name in COMMANDS
    )


@pytest.mark.parametrize("arguments", [["nonsense"], ["score"], ["inspect"], ["train", "--epochs", "many"]])
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "Usage:" in capsys.readouterr().err


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}
