"""RecBole's SASRec: full_sort_predict and torch.topk, as its full_sort_topk does; started by bench_peers.py.

The same SASRec as ours with inner width 256, and with our weights, so that the lists can be compared. Padded tensors
are given: neither reading nor ids nor padding is timed, and the history is not left out, for RecBole does not do that
for sequential models. Batches of 256.
"""

from __future__ import annotations

import collections

import numpy as np
import recbole
import torch
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender.sasrec import SASRec
from serve import arguments_of_a_peer, padded, serve

BATCH, TOP_K = 256, 100


class Items:
    """What SASRec asks of a dataset."""

    def __init__(self, count: int) -> None:
        self.count = count

    def num(self, field: str) -> int:
        """Items with the padding row."""
        return self.count


def main() -> None:
    """Build the model, check its lists, wait for bench_peers.py."""
    arguments = arguments_of_a_peer(__doc__.splitlines()[0])
    torch.set_num_threads(arguments.threads)
    data = np.load(arguments.data)
    rows, max_len = data["items.weight"].shape[0], len(data["encoder.item_input.position"])
    names = ("n_layers", "n_heads", "hidden_size", "inner_size", "hidden_dropout_prob", "attn_dropout_prob")
    settings = dict(zip(names, (2, 2, 64, 256, 0.5, 0.5), strict=True))
    config = collections.defaultdict(
        lambda: None,
        settings,
        USER_ID_FIELD="user_id",
        ITEM_ID_FIELD="item_id",
        LIST_SUFFIX="_list",
        ITEM_LIST_LENGTH_FIELD="item_length",
        NEG_PREFIX="neg_",
        MAX_ITEM_LIST_LENGTH=max_len,
        device="cpu",
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        initializer_range=0.02,
        loss_type="CE",
    )
    model = SASRec(config, Items(rows)).eval()
    model.load_state_dict(weights(data))
    items, lengths = padded(data, arguments.users, max_len, left=False, padding=0)
    batches = [
        Interaction(
            {
                "item_id_list": torch.from_numpy(items[first : first + BATCH]),
                "item_length": torch.from_numpy(lengths[first : first + BATCH]),
            }
        )
        for first in range(0, arguments.users, BATCH)
    ]

    def recommend() -> list[torch.Tensor]:
        found = []
        with torch.no_grad():
            for batch in batches:
                scores = model.full_sort_predict(batch)
                scores[:, 0] = -np.inf
                found.append(torch.topk(scores, TOP_K).indices)
        return found

    expected = data["expected"]  # (n, TOP_K) our lists, seen items kept
    lists = torch.cat(recommend()).numpy()[: len(expected)]
    shared = float(np.mean([len(np.intersect1d(a, b)) / TOP_K for a, b in zip(lists, expected, strict=True)]))
    serve(
        {"recbole": recommend},
        users=arguments.users,
        version=recbole.__version__,
        overlap=shared,
        inner={"recbole": 256},
    )


def weights(data: np.lib.npyio.NpzFile) -> dict[str, torch.Tensor]:
    """Our weights under RecBole's names."""
    ours = {"items": "item_embedding", "encoder.norm": "LayerNorm"}
    for layer in range(2):
        for here, there in (
            ("query", "multi_head_attention.query"),
            ("key", "multi_head_attention.key"),
            ("value", "multi_head_attention.value"),
            ("output", "multi_head_attention.dense"),
            ("attention_norm", "multi_head_attention.LayerNorm"),
            ("inner", "feed_forward.dense_1"),
            ("outer", "feed_forward.dense_2"),
            ("feed_forward_norm", "feed_forward.LayerNorm"),
        ):
            ours[f"encoder.layers.{layer}.{here}"] = f"trm_encoder.layer.{layer}.{there}"
    found = {"position_embedding.weight": torch.from_numpy(data["encoder.item_input.position"])}
    for here, there in ours.items():
        for part in ("weight", "bias"):
            if f"{here}.{part}" in data:
                found[f"{there}.{part}"] = torch.from_numpy(data[f"{here}.{part}"])
    return found


if __name__ == "__main__":
    main()
