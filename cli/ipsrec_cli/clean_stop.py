"""What SIGTERM and SIGHUP do: stop like Ctrl-C, so that no temporary file stays behind."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

_STOPPED_BY = {signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}  # what Kubernetes, systemd and timeout send; ssh


@contextlib.contextmanager
def clean_stop(say: Callable[[str, int], None]) -> Iterator[None]:
    """While the block runs, leave through its cleanup with exit code 128 + signal, as a shell would report it.

    Args:
        say: is told, in a word and by the exit code, before the block is left.

    Where the caller asked for something else, such as nohup that ignores SIGHUP, that stays.
    """
    if threading.current_thread() is not threading.main_thread():  # only there can a handler be set
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        # A second signal, which `timeout` sends to be sure, must not break off the cleanup.
        for repeated in _STOPPED_BY:
            signal.signal(repeated, signal.SIG_IGN)
        say(_STOPPED_BY[signal.Signals(number)], 128 + number)
        sys.exit(128 + number)

    ours = [number for number in _STOPPED_BY if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
