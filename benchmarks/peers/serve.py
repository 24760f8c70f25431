"""Lets bench_peers.py time a peer that runs in an environment of its own: one line in, the seconds of one job out.

The peer's script calls `serve` when its model is there. What the peer's libraries print goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def arguments_of_a_peer(description: str) -> argparse.Namespace:
    """Read what every peer is given: --data, --users, --threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True, help="The .npz file that bench_peers.py writes.")
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


def serve(works: dict[str, Callable[[], Any]], **said: Any) -> None:
    """Warm every way up, then time the one that each line of stdin names.

    Args:
        works: way -> the work of one job.
        said: what to tell bench_peers.py: users of a job, version, how the model differs; JSON values.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for work in works.values():
        work()
    print(json.dumps({"ways": list(works), **said}), file=answers)
    for line in sys.stdin:
        started = time.perf_counter()
        works[line.strip()]()
        print(time.perf_counter() - started, file=answers)


def padded(data: Any, users: int, max_len: int, *, left: bool, padding: int) -> tuple[Any, Any]:
    """Lay out the newest items of the first users.

    Args:
        data: values (N,) int64 item_index from 1, offsets (U + 1,) int64.
        users: how many.
        max_len: width.
        left: pad on the left.
        padding: what to pad with.

    Returns:
        items: (users, max_len) int64.
        lengths: (users,) int64.
    """
    values, offsets = data["values"], data["offsets"]
    items = np.full((users, max_len), padding, np.int64)
    lengths = np.minimum(np.diff(offsets[: users + 1]), max_len)
    for user, length in enumerate(lengths):
        newest = values[offsets[user + 1] - length : offsets[user + 1]]
        items[user, max_len - length if left else 0 :][:length] = newest
    return items, lengths
