"""RecTools' SASRecModel.recommend, which leaves out seen items; started by bench_peers.py.

It starts from a data frame of interactions in memory: its own preparation of sequences is timed, reading is not. Its
feed-forward is 64 wide inside, with ReLU, and its weights are random: one step of fit makes the model.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pandas as pd
import rectools
import torch
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from serve import arguments_of_a_peer, serve

BATCH, TOP_K = 256, 100


def main() -> None:
    """Build the model and wait for bench_peers.py."""
    arguments = arguments_of_a_peer(__doc__.splitlines()[0])
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    data = np.load(arguments.data)
    num_items, max_len = len(data["items.weight"]) - 1, len(data["encoder.item_input.position"])
    offsets = data["offsets"][: arguments.users + 1]
    # One more user has every item, for RecTools knows the items of the interactions alone.
    items = np.concatenate([data["values"][: offsets[-1]], np.arange(1, num_items + 1)])
    users = np.repeat(np.arange(arguments.users + 1), np.append(np.diff(offsets), num_items))
    seconds = pd.to_timedelta(np.arange(len(items)), unit="s")
    frame = pd.DataFrame(
        {
            Columns.User: users,
            Columns.Item: items,
            Columns.Weight: 1,
            Columns.Datetime: pd.Timestamp("2024-01-01") + seconds,
        }
    )
    dataset = Dataset.construct(frame)
    model = SASRecModel(
        n_blocks=2,
        session_max_len=max_len,
        n_heads=2,
        n_factors=64,
        loss="BCE",
        n_negatives=1,
        batch_size=32,
        recommend_batch_size=BATCH,
        recommend_torch_device="cpu",
        recommend_n_threads=arguments.threads,
        get_trainer_func=one_step,
        dataloader_num_workers=0,
        verbose=0,
    )
    model.fit(dataset)
    wanted = np.arange(arguments.users)
    serve(
        {"rectools": lambda: model.recommend(wanted, dataset, k=TOP_K, filter_viewed=True)},
        users=arguments.users,
        version=rectools.__version__,
        inner={"rectools": 64},
    )


def one_step(**_: Any) -> Trainer:
    """A trainer that stops after one step."""
    off = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    return Trainer(max_steps=1, accelerator="cpu", **off)


if __name__ == "__main__":
    main()
