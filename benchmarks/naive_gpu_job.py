"""The main job on a GPU as a first script does it: pandas, dicts, Python loops, a torch encoder, all scores, topk.

It gives the lists of `ipsrec score` for the same weights, up to float32 rounding, and is what gpu_job.py compares with:
float32 without TF32, batches of 256 users padded to max_len. The model and dicts are there before the clock starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ipsrec_onnx.catalog import Catalog
from ipsrec_train.model import Model

BATCH = 256


class NaiveGpuJob:
    """A script's state before its loop.

    Args:
        model: in evaluation mode, without history terms.
        catalog: items and providers by number.
        max_len: most recent items that the model sees.
        device: where the model goes.
    """

    def __init__(self, model: Model, catalog: Catalog, *, max_len: int, device: str) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        self.model, self.max_len, self.device = model.to(device), max_len, device
        with torch.inference_mode():
            self.item_embeddings = model.item_embeddings()
        self.item_ids = catalog.item_ids.to_numpy(zero_copy_only=False)
        self.item_index = {item_id: index for index, item_id in enumerate(self.item_ids.tolist(), start=1)}
        providers = catalog.provider_ids.to_pylist()
        self.provider_index = {provider_id: index for index, provider_id in enumerate(providers, start=1)}

    def run(self, source: Path, output: Path, *, top_k: int) -> pd.DataFrame:
        """Read a Parquet file of users, rank items for each, write and give user_id, item_ids and scores."""
        users = pd.read_parquet(source)
        rows = [
            row
            for first in range(0, len(users), BATCH)
            for row in self._rank(users.iloc[first : first + BATCH], top_k=top_k)
        ]
        frame = pd.DataFrame(rows, columns=["user_id", "item_ids", "scores"])
        frame.to_parquet(output)
        return frame

    @torch.inference_mode()
    def _rank(self, users: pd.DataFrame, *, top_k: int) -> Iterator[tuple[Any, ...]]:
        """One batch: a row for each user."""
        item_history = np.zeros((len(users), self.max_len), np.int64)
        provider_history = np.zeros((len(users), self.max_len), np.int64)
        lengths = np.zeros(len(users), np.int64)
        seen_rows, seen_items = [], []
        columns = zip(users["item_history"], users["provider_history"], strict=True)
        for row, (items, providers) in enumerate(columns):
            history = [self.item_index.get(item, 0) for item in items.tolist()]
            newest = history[-self.max_len :]
            item_history[row, : len(newest)] = newest
            provider_history[row, : len(newest)] = [
                self.provider_index.get(provider, 0) for provider in providers[-self.max_len :].tolist()
            ]
            lengths[row] = len(newest)
            seen_rows += [row] * len(history)
            seen_items += history
        inputs = [torch.from_numpy(array).to(self.device) for array in (item_history, provider_history, lengths)]
        user_embedding = self.model.encode_last(self.item_embeddings, *inputs)
        scores = user_embedding @ self.item_embeddings.T  # (B, num_items + 1)
        scores[:, 0] = -torch.inf
        scores[torch.tensor(seen_rows, device=self.device), torch.tensor(seen_items, device=self.device)] = -torch.inf
        best = torch.topk(scores, top_k, dim=1)
        items = self.item_ids[best.indices.cpu().numpy() - 1]
        return zip(users["user_id"], items, best.values.cpu().numpy(), strict=True)
