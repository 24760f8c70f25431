"""Makes one virtual environment for each whole-job peer, with pinned versions.

    python benchmarks/peers/make_environments.py --folder .venv-peers

Each peer pins libraries of its own, so that they do not share one. torch is the project's own version in all of them: a
newer one would bring gigabytes of CUDA with it. An environment that is whole is left as it is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path

# What each environment is made of; `constraints.txt` beside this file pins what they have in common.
PEERS = {
    "rectools": ["rectools[torch]==0.19.0"],
    "recbole": ["recbole==1.2.1"],
    "replay": ["replay-rec[torch]==0.22.0", "openvino==2026.4.1", "onnx==1.23.2"],
}
CONSTRAINTS = Path(__file__).with_name("constraints.txt")


def main() -> None:
    """Make what is missing and print one JSON object: peer -> its Python."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".venv-peers"))
    parser.add_argument("--peers", default=",".join(PEERS), help="Which of them, with commas between.")
    arguments = parser.parse_args()
    pythons = {name: str(make_environment(arguments.folder / name, PEERS[name])) for name in arguments.peers.split(",")}
    print(json.dumps(pythons))


def make_environment(folder: Path, requirements: list[str]) -> Path:
    """Make an environment unless it is there with the same requirements; its Python.

    Raises:
        SystemExit: pip could not install the requirements; its own message is above.
    """
    python = folder / "bin" / "python"
    stamp, wanted = folder / "installed.txt", "\n".join([*requirements, CONSTRAINTS.read_text(encoding="utf-8")])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"{folder}: installing {', '.join(requirements)}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*command, "--constraint", str(CONSTRAINTS), *requirements], check=False).returncode:
        sys.exit(f"{folder}: pip could not install {', '.join(requirements)}; see its message above")
    stamp.write_text(wanted, encoding="utf-8")
    return python


if __name__ == "__main__":
    main()
