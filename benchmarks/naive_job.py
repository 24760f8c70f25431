"""The main job as a first script does it: pandas, dicts, Python loops, all scores at once, argpartition.

It gives the same lists as `ipsrec score` and is what bench_end_to_end.py compares with. NumPy and ONNX Runtime use all
threads, in batches of 256 users padded to max_len. Sessions and dicts are made before the clock starts.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd

from ipsrec_onnx.catalog import Catalog

BATCH = 256


class NaiveJob:
    """A script's state before its loop.

    Args:
        session: of a plain graph whose output is the scores of all items.
        catalog: items and providers by number.
        max_len: most recent items that the model sees.
    """

    def __init__(self, session: onnxruntime.InferenceSession, catalog: Catalog, *, max_len: int) -> None:
        self.session, self.max_len = session, max_len
        self.item_ids = catalog.item_ids.to_numpy(zero_copy_only=False)
        self.item_index = {item_id: index for index, item_id in enumerate(self.item_ids.tolist(), start=1)}
        providers = catalog.provider_ids.to_pylist()
        self.provider_index = {provider_id: index for index, provider_id in enumerate(providers, start=1)}
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def run(self, source: Path, output: Path, *, top_k: int) -> pd.DataFrame:
        """Read a Parquet file of users, rank items for each, write and give user_id, item_ids and scores."""
        started = time.perf_counter()
        users = pd.read_parquet(source)
        self.seconds["read"] += time.perf_counter() - started
        rows: list[tuple[Any, ...]] = []
        for first in range(0, len(users), BATCH):
            rows += self._rank(users.iloc[first : first + BATCH], top_k=top_k)
        started = time.perf_counter()
        frame = pd.DataFrame(rows, columns=["user_id", "item_ids", "scores"])
        frame.to_parquet(output)
        self.seconds["write"] += time.perf_counter() - started
        return frame

    def _rank(self, users: pd.DataFrame, *, top_k: int) -> list[tuple[Any, ...]]:
        """One batch: a row for each user."""
        started = time.perf_counter()
        item_history = np.zeros((len(users), self.max_len), np.int64)
        provider_history = np.zeros((len(users), self.max_len), np.int64)
        lengths = np.zeros(len(users), np.int64)
        seen = []
        columns = zip(users["item_history"], users["provider_history"], strict=True)
        for row, (items, providers) in enumerate(columns):
            history = [self.item_index.get(item, 0) for item in items.tolist()]
            newest = history[-self.max_len :]
            item_history[row, : len(newest)] = newest
            provider_history[row, : len(newest)] = [
                self.provider_index.get(provider, 0) for provider in providers[-self.max_len :].tolist()
            ]
            lengths[row] = len(newest)
            seen.append(history)
        packed = time.perf_counter()
        feed = {"item_history": item_history, "provider_history": provider_history, "lengths": lengths}
        scores = self.session.run(None, feed)[0]  # (B, num_items + 1)
        scored = time.perf_counter()
        scores[:, 0] = -np.inf
        for row, history in enumerate(seen):
            scores[row, history] = -np.inf
        best = np.argpartition(scores, -top_k, axis=1)[:, -top_k:]
        best_scores = np.take_along_axis(scores, best, 1)
        order = np.argsort(-best_scores, axis=1, kind="stable")
        best, best_scores = np.take_along_axis(best, order, 1), np.take_along_axis(best_scores, order, 1)
        ranked = list(zip(users["user_id"], self.item_ids[best - 1], best_scores, strict=True))
        self.seconds["pack"] += packed - started
        self.seconds["session.run"] += scored - packed
        self.seconds["select"] += time.perf_counter() - scored
        return ranked
