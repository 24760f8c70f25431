"""The one index that is no item."""

from __future__ import annotations

from typing import Final

PADDING: Final = 0
"""item_index 0: fills the end of a row, stands for an unknown id, and is never recommended."""
