from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import write_model_file
from training_data import make_dataset

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


def test_a_name_with_a_line_break_leaves_a_refusal_in_one_line(tmp_path, capsys, monkeypatch):
    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "two\nlines.parquet")

    monkeypatch.setattr("ipsrec_onnx.doctor.doctor", gone)
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("ipsrec: two lines.parquet: No such file or directory; is it")


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from ipsrec_cli.main import main; main()", *map(str, arguments)]
    return subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    stop = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < stop
        time.sleep(0.01)


STOPS = [(signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up"), (signal.SIGINT, 130, "interrupted")]


@pytest.fixture(scope="module")
def many_users(tmp_path_factory):
    """A model and so many users that scoring them takes a while."""
    folder = tmp_path_factory.mktemp("users")
    model = write_model_file(folder / "model.onnx", num_items=3_000, dim=64)
    ids = np.resize(model.catalog.item_ids.to_numpy(), 3_000_000)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(0, 3_000_001, 3), pa.int32()), pa.array(ids))
    pq.write_table(pa.table({"user_id": np.arange(1_000_000), "item_history": lists}), folder / "users.parquet")
    return folder


@pytest.mark.parametrize(("number", "code", "said"), STOPS)
def test_a_signal_in_mid_score_leaves_yesterdays_output_and_what_is_done(many_users, tmp_path, number, code, said):
    (tmp_path / "o.parquet").write_text("yesterday's")
    inputs = ("--model", many_users / "model.onnx", "--input", many_users / "users.parquet")
    process = start("score", *inputs, "--output", tmp_path / "o.parquet", "--overwrite", "--bad-rows", "divert")
    wait_for(lambda: any(tmp_path.glob(".*.job/parts/*.parquet")), process)
    process.send_signal(number)
    if number == signal.SIGTERM:
        process.send_signal(number)  # as `timeout` does
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert err.splitlines()[-1] == f"ipsrec: {said}"
    seen = {path.name: path.read_text() for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert seen == {"o.parquet": "yesterday's"}
    (job,) = tmp_path.glob(".*.job")
    assert any(job.glob("parts/*.parquet")) and not any(job.rglob("*.tmp"))


def test_training_that_was_terminated_goes_on(tmp_path, rng):
    dataset = make_dataset(tmp_path, rng)
    sizes = ("--max-len", 10, "--dim", 16, "--num-layers", 1, "--inner-dim", 32, "--batch-size", 8, "--threads", 1)
    command = ("train", "--dataset", dataset, "--output", tmp_path / "run", *sizes, "--patience", 500)
    process = start(*command, "--epochs", 500)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(metrics.is_file, process)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.suffix == ".tmp"]
    done = len(metrics.read_text().splitlines())
    process = start(*command, "--epochs", done + 1, "--resume")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"going on after epoch {done}" in err


def test_a_signal_that_the_caller_ignores_stays_ignored():
    program = (
        "import os, signal\n"
        "from ipsrec_cli.clean_stop import clean_stop\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with clean_stop(print):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print('still here')\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=_environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "still here\n"), done.stderr


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}
