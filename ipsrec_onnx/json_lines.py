"""Structured log lines: one JSON object a line on stderr."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any, Literal

Level = Literal["info", "error"]


def write_json_line(event: str, *, level: Level = "info", **fields: Any) -> None:
    """Write one event with its time (UTC), level and fields; what JSON has no word for becomes a string."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": time, "level": level, "event": event, **fields}, default=str)
    sys.stderr.write(line + "\n")
    sys.stderr.flush()  # who follows a log must not wait for a buffer to fill
