"""The figures of a job's report again, slow and obvious: from its candidates, one by one."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from model_files import TinyModel


def naive_lists(files: list[Path]) -> list[list[tuple[Any, float]]]:
    """(item id, score) of each user with a candidate, best first, from files of either layout."""
    lists: list[list[tuple[Any, float]]] = []
    for file in files:
        for row in pq.read_table(file).to_pylist():
            if "rank" not in row:
                if row["item_ids"]:
                    lists.append(list(zip(row["item_ids"], row["scores"], strict=True)))
            else:
                if row["rank"] == 1:
                    lists.append([])
                lists[-1].append((row["item_id"], row["score"]))
    return lists


def naive_gini(shares: list[int]) -> float:
    """The mean difference of all pairs, over twice the mean."""
    n, mean = len(shares), sum(shares) / len(shares)
    return sum(abs(one - other) for one in shares for other in shares) / (2 * n * n * mean)


def naive_lorenz(shares: list[int]) -> tuple[list[float], list[float]]:
    """What the poorest 0, 1, 2, ... have together."""
    ranked = sorted(shares)
    return (
        [number / len(ranked) for number in range(len(ranked) + 1)],
        [sum(ranked[:number]) / sum(ranked) for number in range(len(ranked) + 1)],
    )


def naive_histogram(numbers: list[float], most_bins: int) -> tuple[float, dict[int, int]]:
    """Width of the bins, the least power of two that needs no more than most_bins, and bin -> count."""
    width = 2.0**-20
    while math.floor(max(numbers) / width) - math.floor(min(numbers) / width) + 1 > most_bins:
        width *= 2
    return width, Counter(math.floor(number / width) for number in numbers)


def naive_coverage(lists: list[list[tuple[Any, float]]], model: TinyModel) -> tuple[list[int], list[int]]:
    """Items and providers met in the first 0, 1, 2, ... lists."""
    provider = provider_of(model)
    items: set[Any] = set()
    found = [0], [0]
    for candidates in lists:
        items |= {item for item, _ in candidates}
        found[0].append(len(items))
        found[1].append(len({provider[item] for item in items} - {0}))
    return found


def provider_of(model: TinyModel) -> dict[Any, int]:
    """provider_index of each item id."""
    return dict(zip(model.catalog.item_ids.to_pylist(), model.catalog.item_provider[1:].tolist(), strict=True))


def naive_lengths(lengths: list[int]) -> dict[str, int]:
    """Users by range of lengths."""
    counts: dict[str, int] = {}
    for low, high in [(0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64)]:
        count = sum(low <= length <= high for length in lengths)
        if count:
            counts[str(low) if low == high else f"{low}-{high}"] = count
    return counts
