"""Put the page, ONNX Runtime Web, an edge file and the products' names into one folder that any web server can serve.

    python examples/web/build.py --model .demo/ipsrec_c.onnx --edge .demo/edge.onnx \
        --products .demo/products.parquet --households .demo/households.parquet --output .demo/web

The products are those that the model knows, most popular first. Their names come from the table that
examples/grocery/interactions.py writes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.model_file import open_model_file

HERE = Path(__file__).resolve().parent
PAGE = ["index.html", "style.css", "page.js", "combobox.js", "comparison.js", "products.js", "recommender.js"]
RUNTIME = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"]
HOUSEHOLDS = 200
SHORTEST, LONGEST = 6, 10  # purchases of a household that the page shows
# Their descriptions are cuts and grades, which say little alone.
MEATS = ["beef", "chicken", "lamb", "pork", "seafood - fresh", "turkey", "veal"]
# The till's words, in those of a shopper.
WORDS = {
    "sft drnk": "soft drink",
    "btl carb incl": "bottle",
    "sngl srv btl carb": "single bottle",
    "fluid milk white only": "white milk",
    "chix:frd": "fried chicken",
    "prep fd:": "prepared food:",
    "sw gds:": "",
    "frzn": "frozen",
    "frz": "frozen",
    "iws single cheese": "wrapped cheese slices",
    "&": " & ",
}


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description="Build the page of examples/web.")
    parser.add_argument("--model", type=Path, required=True, help="The model file, for its catalog.")
    parser.add_argument("--edge", type=Path, required=True, help="The edge file that the page opens.")
    parser.add_argument("--products", type=Path, required=True)
    parser.add_argument("--households", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--node-modules", type=Path, default=HERE.parent / "node_modules")
    arguments = parser.parse_args()
    output: Path = arguments.output
    (output / "ort").mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copy(HERE / name, output)
    for name in RUNTIME:
        shutil.copy(arguments.node_modules / "onnxruntime-web" / "dist" / name, output / "ort")
    shutil.copy(arguments.edge, output / "model.onnx")
    catalog = open_model_file(arguments.model).catalog
    write_json(output / "catalog.json", read_products(catalog, pl.read_parquet(arguments.products)))
    write_json(output / "households.json", draw_households(catalog, pl.read_parquet(arguments.households)))
    print(f"{output}: {catalog.num_items:,} products, {(output / 'catalog.json').stat().st_size / 1e6:.1f} MB of names")


def read_products(catalog: Catalog, products: pl.DataFrame) -> dict[str, list[Any]]:
    """Say what the model's items are called and who offers them, as columns, most popular first."""
    category = pl.col("category")
    # A description ends after 30 letters, with what it says in brackets cut off.
    description = pl.col("description").str.replace(r"\s*\([^)]*$", "").str.replace_many(WORDS)
    description = description.str.replace_all(r"\s+", " ").str.strip_chars()
    name = (
        pl.when(category.is_in(MEATS)).then(pl.concat_str(category, pl.lit(", "), description)).otherwise(description)
    )
    label = (
        pl.when((pl.col("brand") == "Private").all().over("manufacturer_id"))
        .then(pl.lit(" (store brand)"))
        .otherwise(pl.lit(""))
    )
    order = np.argsort(-catalog.popularity[1:], kind="stable")
    ids = pl.DataFrame({"item_id": pl.Series(catalog.item_ids.take(pa.array(order)))})
    table = ids.join(products, on="item_id", how="left", maintain_order="left").select(
        pl.col("item_id").cast(pl.String).alias("id"),
        name.fill_null("product without a description").alias("name"),
        pl.concat_list(category, "size").list.drop_nulls().alias("detail"),
        pl.concat_str(pl.lit("manufacturer "), "manufacturer_id", label).fill_null("").alias("provider"),
    )
    providers = table["provider"].unique(maintain_order=True).to_list()
    places = {provider: place for place, provider in enumerate(providers)}
    return {
        "ids": table["id"].to_list(),
        "names": table["name"].to_list(),
        "details": [" · ".join(filter(None, detail)) for detail in table["detail"].to_list()],
        "providers": [places[provider] for provider in table["provider"].to_list()],
        "providerNames": providers,
    }


def draw_households(catalog: Catalog, households: pl.DataFrame) -> list[list[str]]:
    """Draw some households and give their last purchases, oldest first; what the model does not know is left out."""
    known = pl.Series(catalog.item_ids).implode()
    rng = np.random.default_rng(0)
    drawn = households.sample(min(HOUSEHOLDS, len(households)), seed=0)["item_history"]
    found = []
    for history in drawn:
        ids = history.filter(history.is_in(known)).cast(pl.String).to_list()
        if ids:
            found.append(ids[-rng.integers(SHORTEST, LONGEST + 1) :])
    return found


def write_json(path: Path, content: Any) -> None:
    """Write compact JSON."""
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


if __name__ == "__main__":
    main()
