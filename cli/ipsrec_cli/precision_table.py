"""The table of precisions that an export tried, as `ipsrec export` and `ipsrec inspect` show it."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text


def precision_table(candidates: list[dict[str, Any]]) -> Group:
    """A row for each candidate, as the model file stores them; a star is at the one that was chosen.

    +/- is the standard error of the change: what is smaller than two of it may be chance.
    """
    figures = ("MB", "ms/user", "top-10", "top-100", "NDCG@10", "change", "+/-", "passed")
    table = Table("", "precision", *figures, box=None, title="lists as shares of float32's", title_justify="left")
    kept: list[str] = []  # long, and for many candidates the same: a number stands for each
    for one in candidates:
        if one["kept"] and one["kept"] not in kept:
            kept.append(one["kept"])
        table.add_row(
            "*" if one["chosen"] else "",
            one["precision"] + (f" [{kept.index(one['kept']) + 1}]" if one["kept"] else ""),
            f"{one['bytes'] / 1e6:.2f}",
            f"{one['latency_ms']:.2f}",
            f"{one['overlap_at_10']:.4f}",
            f"{one['overlap_at_100']:.4f}",
            f"{one['ndcg_at_10']:.4f}",
            f"{one['ndcg_change']:+.3%}",
            "-" if one["ndcg_change_error"] is None else f"{one['ndcg_change_error']:.3%}",
            "yes" if one["passed"] else "no",
        )
    return Group(table, *(Text(f"[{number}] but for {groups}") for number, groups in enumerate(kept, start=1)))
