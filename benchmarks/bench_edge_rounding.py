"""How much nearer do scores stay where an int8 item table is rounded for users, and not each element to the nearest?

    python benchmarks/bench_edge_rounding.py --model .demo/ipsrec_c.onnx --dataset .demo/dataset

Rounding goes by the vectors of one half of the validation users; what it does to scores and lists is told of the other
half. Both tables take the same bytes. Seen items are in the lists, history terms are not. Nothing is timed but the
rounding itself. In the JSON, for each way: score_error, the root of the mean square over users and items; moved, what
scores of a user's top 100 move against each other as a share of how far they lie apart; top_10 and top_100, the share
of float32's list that is kept.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rounds import print_json

from ipsrec_export.validation_users import ValidationUsers
from ipsrec_export.weight_storage import quantize, second_moment
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.model_file import open_model_file
from ipsrec_train.batches import load_histories

TOP_K = 100
USERS_AT_ONCE = 256

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
    users, items = validation.encode(model.session), model.item_embeddings
    met, held_out = users[::2], users[1::2]
    print(f"{len(items) - 1:,} items, {items.shape[1]} wide; {len(met):,} users met, {len(held_out):,} held out")
    started = time.perf_counter()
    tables = {"nearest": quantize(items, (1,)).as_float32()}
    nearest_s = time.perf_counter() - started
    tables["for users"] = quantize(items, (1,), met=second_moment(met)).as_float32()
    seconds = {"nearest": nearest_s, "for users": time.perf_counter() - started - nearest_s}
    figures: dict[str, Any] = {"benchmark": "edge_rounding", "items": len(items) - 1, "users": len(held_out)}
    for name, table in tables.items():
        figures[name] = {**compare(held_out, items, table), "seconds": seconds[name]}
        print(
            f"{name:>9}: score error {figures[name]['score_error']:.4f}, moved {figures[name]['moved']:.2%}, top-10 "
            f"{figures[name]['top_10']:.4f}, top-100 {figures[name]['top_100']:.4f}; {figures[name]['seconds']:.2f} s"
        )
    print_json(figures)


def compare(
    users: npt.NDArray[np.float32], items: npt.NDArray[np.float32], rounded: npt.NDArray[np.float32]
) -> dict[str, float]:
    """What rounding does to scores and lists; item 0 is padding."""
    errors, moved, kept = [], [], []
    for start in range(0, len(users), USERS_AT_ONCE):
        some = users[start : start + USERS_AT_ONCE].astype(np.float64)
        exact, found = (some @ table[1:].astype(np.float64).T for table in (items, rounded))
        lists, others = top(exact), top(found)
        scores, off = (np.take_along_axis(values, lists, 1) for values in (exact, found - exact))
        errors.append(np.square(found - exact).mean(1))
        moved.append(off.std(1) / np.maximum(scores.std(1), np.finfo(np.float64).tiny))
        kept.append([[overlap(lists, others, row, most) for most in (10, TOP_K)] for row in range(len(some))])
    first, last = np.concatenate(kept).mean(0)
    return {
        "score_error": float(np.sqrt(np.concatenate(errors).mean())),
        "moved": float(np.concatenate(moved).mean()),
        "top_10": float(first),
        "top_100": float(last),
    }


def top(scores: npt.NDArray[np.float64]) -> Lists:
    """The best items of each row, best first; of equal ones the first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :TOP_K]


def overlap(lists: Lists, others: Lists, row: int, most: int) -> float:
    """Share of the first items of a list that are among the first of another."""
    first = lists[row, :most]
    return len(np.intersect1d(first, others[row, :most])) / len(first)


if __name__ == "__main__":
    main()
