"""Runs Python as a user without rights, for root may read and write everything."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

NOBODY = 65534


def run_as_nobody(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that has the right to reach `folder`, and in it what its modes say."""
    for parent in folder.parents:
        if Path(tempfile.gettempdir()) in parent.parents:  # pytest keeps its folders to the user who runs it
            parent.chmod(parent.stat().st_mode | 0o111)
    # Modules are imported before the rights go: the checkout and the environment may lie where nobody else can look.
    drop = (
        "import os, ipsrec_cli.main, ipsrec_onnx.dataset, ipsrec_onnx.model_file, ipsrec_onnx.scoring\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", drop + program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
