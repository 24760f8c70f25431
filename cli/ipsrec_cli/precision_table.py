"""The table of precisions that an export tried, as `ipsrec export` and `ipsrec inspect` show it."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def precision_table(candidates: list[dict[str, Any]]) -> Table:
    """A row for each candidate, as the model file stores them; a star is at the one that was chosen."""
    figures = ("MB", "ms/user", "top-10", "top-100", "NDCG@10", "change", "passed")
    table = Table(
        "", "precision", *figures, box=None, title="precisions, lists as shares of float32's", title_justify="left"
    )
    for one in candidates:
        table.add_row(
            "*" if one["chosen"] else "",
            one["precision"] + (f", but {one['kept']}" if one["kept"] else ""),
            f"{one['bytes'] / 1e6:.2f}",
            f"{one['latency_ms']:.2f}",
            f"{one['overlap_at_10']:.4f}",
            f"{one['overlap_at_100']:.4f}",
            f"{one['ndcg_at_10']:.4f}",
            f"{one['ndcg_change']:+.3%}",
            "yes" if one["passed"] else "no",
        )
    return table
