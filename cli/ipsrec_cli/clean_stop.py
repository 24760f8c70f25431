"""What SIGTERM and SIGHUP do: stop like Ctrl-C, so that no temporary file stays behind."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import click

_STOPPED_BY = {signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}  # what Kubernetes, systemd and timeout send; ssh


@contextlib.contextmanager
def clean_stop() -> Iterator[None]:
    """While the block runs, leave through its cleanup with exit code 128 + signal, as a shell would report it.

    Where the caller asked for something else, such as nohup that ignores SIGHUP, that stays.
    """
    if threading.current_thread() is not threading.main_thread():  # only there can a handler be set
        yield
        return
    ours = [number for number in _STOPPED_BY if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Raise SystemExit; a second signal, which `timeout` sends to be sure, must not break off the cleanup."""
    for repeated in _STOPPED_BY:
        signal.signal(repeated, signal.SIG_IGN)
    click.echo(f"ipsrec: {_STOPPED_BY[signal.Signals(number)]}", err=True)
    sys.exit(128 + number)
