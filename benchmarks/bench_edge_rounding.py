"""How much nearer do scores stay where an int8 item table is rounded for users, and not each element to the nearest?

    python benchmarks/bench_edge_rounding.py --model .demo/ipsrec_c.onnx --dataset .demo/dataset

Rounding goes by the vectors of every other validation user; what it does is told of the users between. Both tables take
the same bytes; all other weights stay float32. The table is the encoder's input, too: users are encoded anew with each.
Seen items are in the lists, history terms are not. Nothing is timed.

In the JSON, for each way, against float32: element_error of the table, user_error of the vectors and score_error, roots
of mean squares over all; top_10 and top_100, the share of a list that stays.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from limits import cpu_model
from onnx import numpy_helper
from rounds import print_json

from ipsrec_export.graph import ITEM_EMBEDDINGS
from ipsrec_export.validation_users import ValidationUsers
from ipsrec_export.weight_storage import quantize, second_moment
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.model_file import open_model_file
from ipsrec_onnx.session import open_session
from ipsrec_train.batches import load_histories

TOP_K = 100
USERS_AT_ONCE = 256
LEAST_USERS = 2

Vectors = npt.NDArray[np.float32]
Lists = npt.NDArray[np.int64]


def main() -> None:
    """Round both ways; print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a float32 file for `ipsrec score`")
    parser.add_argument("--dataset", type=Path, required=True, help="that it learned from")
    arguments = parser.parse_args()
    model = open_model_file(arguments.model)
    validation = ValidationUsers(
        load_histories(open_dataset(arguments.dataset), "valid"), model.catalog, max_len=model.max_len
    )
    if model.precision != "fp32" or len(validation.targets) < LEAST_USERS:
        sys.exit(f"bench_edge_rounding: {arguments.model} is {model.precision} with {len(validation.targets)} users")
    users, items = validation.encode(model.session), model.item_embeddings
    met, held_out = users[::2], users[1::2]
    print(f"{cpu_model()}, onnxruntime {onnxruntime.__version__}, numpy {np.__version__}")
    print(f"{len(items) - 1:,} items, {items.shape[1]} wide; {len(met):,} users met, {len(held_out):,} held out")
    figures: dict[str, Any] = {"benchmark": "edge_rounding", "items": len(items) - 1, "users": len(held_out)}
    for name, moment in (("nearest", None), ("for users", second_moment(met))):
        table = quantize(items, (1,), met=moment).as_float32()
        vectors = validation.encode(session_with(arguments.model, table))[1::2]
        figures[name] = found = compare((held_out, items), (vectors, table))
        print(f"{name:>9}: " + ", ".join(f"{key} {value:.5f}" for key, value in found.items()))
    print_json(figures)


def session_with(model: Path, table: Vectors) -> onnxruntime.InferenceSession:
    """The model's graph with another item table."""
    proto = onnx.load(model)
    (tensor,) = (one for one in proto.graph.initializer if one.name == ITEM_EMBEDDINGS)
    tensor.CopyFrom(numpy_helper.from_array(table, ITEM_EMBEDDINGS))
    del proto.metadata_props[:]
    return open_session(model, device="cpu", graph=proto.SerializeToString())


def compare(exact: tuple[Vectors, Vectors], rounded: tuple[Vectors, Vectors]) -> dict[str, float]:
    """What rounding does to users (U, D), items (num_items + 1, D), their scores and lists; item 0 is padding."""
    errors, kept = [], []
    for start in range(0, len(exact[0]), USERS_AT_ONCE):
        some = slice(start, start + USERS_AT_ONCE)
        scores, others = (
            users[some].astype(np.float64) @ items[1:].astype(np.float64).T for users, items in (exact, rounded)
        )
        errors.append(np.square(others - scores).mean(1))
        lists = [np.argsort(-found, axis=1, kind="stable")[:, :TOP_K] for found in (scores, others)]
        kept += [[overlap(*rows, most) for most in (10, TOP_K)] for rows in zip(*lists, strict=True)]
    first, last = np.mean(kept, axis=0)
    return {
        "element_error": root_mean_square(rounded[1] - exact[1]),
        "user_error": root_mean_square(rounded[0] - exact[0]),
        "score_error": float(np.sqrt(np.concatenate(errors).mean())),
        "top_10": float(first),
        "top_100": float(last),
    }


def root_mean_square(values: Vectors) -> float:
    """Of all elements."""
    return float(np.sqrt(np.square(values.astype(np.float64)).mean()))


def overlap(one: Lists, other: Lists, most: int) -> float:
    """Share of the first items of a list that are among the first of another."""
    return len(np.intersect1d(one[:most], other[:most])) / len(one[:most])


if __name__ == "__main__":
    main()
