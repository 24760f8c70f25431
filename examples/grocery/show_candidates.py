"""Show the first users' candidates in words: what they bought last, and what they are offered.

python examples/grocery/show_candidates.py --folder .demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table


def main() -> None:
    """Join candidates and histories with the products' descriptions, and print a few users."""
    parser = argparse.ArgumentParser(description="Show candidates with product descriptions.")
    parser.add_argument("--folder", type=Path, required=True, help="Where `make demo` works.")
    parser.add_argument("--users", type=int, default=3)
    parser.add_argument("--top-k", type=int, default=10)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    products = pl.read_parquet(folder / "products.parquet")
    candidates = pl.read_parquet(folder / "candidates.parquet").head(arguments.users)
    households = pl.read_parquet(folder / "households.parquet")
    console = Console(width=120)
    for user in candidates.iter_rows(named=True):
        history = households.filter(pl.col("user_id") == user["user_id"])["item_history"][0].to_list()
        console.print(f"\n[bold]household {user['user_id']}[/bold], {len(history)} purchases, {user['status']}")
        console.print("bought last: " + ", ".join(describe(history[-8:], products)["what"]))
        console.print(as_table(user["item_ids"][: arguments.top_k], user["scores"], products))


def describe(item_ids: list[int], products: pl.DataFrame) -> pl.DataFrame:
    """One row an item, in order: what it is, its category, brand and manufacturer."""
    items = pl.DataFrame({"item_id": item_ids}, schema={"item_id": pl.Int64})
    what = pl.concat_str(pl.col("description"), pl.col("size"), separator=" ").str.strip_chars()
    return items.join(products, on="item_id", how="left", maintain_order="left").with_columns(what.alias("what"))


def as_table(item_ids: list[int], scores: list[float], products: pl.DataFrame) -> Table:
    """Candidates as a table."""
    table = Table("rank", "product", "category", "brand", "manufacturer", "score")
    for rank, item in enumerate(describe(item_ids, products).iter_rows(named=True), start=1):
        table.add_row(
            str(rank),
            item["what"],
            item["category"],
            (item["brand"] or "").lower(),
            str(item["manufacturer_id"]),
            f"{scores[rank - 1]:.3f}",
        )
    return table


if __name__ == "__main__":
    main()
