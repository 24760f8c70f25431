"""The whole scoring of one user, slow and obvious: dicts, lists, and float64."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from model_files import TinyModel


def naive_score_user(
    model: TinyModel,
    item_history: list[Any],
    provider_history: list[Any] | None,
    *,
    top_k: int,
    keep_seen: bool = False,
    allow: set[Any] | None = None,
    deny: set[Any] | None = None,
    candidates: list[Any] | None = None,
    max_per_provider: int | None = None,
    cold_users: str = "popular",
) -> tuple[str, list[Any], list[float]]:
    """Give status, item ids and scores as `score` should."""
    item_ids = [None, *model.catalog.item_ids.to_pylist()]
    item_index = {item_id: index for index, item_id in enumerate(item_ids) if index}
    provider_index = {name: index for index, name in enumerate(model.catalog.provider_ids.to_pylist(), start=1)}
    item_provider = model.catalog.item_provider.tolist()
    known = []  # (item, provider), oldest first
    for position, item_id in enumerate(item_history):
        if item_id in item_index:
            item = item_index[item_id]
            own = item_provider[item]
            known.append((item, own if provider_history is None else provider_index.get(provider_history[position], 0)))
    if not known:
        if cold_users == "empty":
            return "cold", [], []
        scores = {item: np.float32(model.catalog.popularity[item]) for item in range(1, len(item_ids))}
    else:
        scores = _scores(model, known[-model.max_len :])
    seen = set() if keep_seen else {item for item, _ in known}
    ranked: list[int] = []
    of_provider: Counter[int] = Counter()
    for item in sorted(scores, key=lambda item: (-float(scores[item]), item)):
        provider = item_provider[item]
        if (
            item in seen
            or (allow is not None and item_ids[item] not in allow)
            or (deny is not None and item_ids[item] in deny)
            or (candidates is not None and item_ids[item] not in candidates)
            or (max_per_provider is not None and provider and of_provider[provider] == max_per_provider)
        ):
            continue
        of_provider[provider] += 1
        ranked.append(item)
    ranked = ranked[:top_k]
    status = "scored" if known else "cold"
    return status, [item_ids[item] for item in ranked], [float(scores[item]) for item in ranked]


def _scores(model: TinyModel, seen_by_model: list[tuple[int, int]]) -> dict[int, np.float32]:
    """score(u, i) = h . e_i + sum_s a[age_s] [prov(s) = prov(i)] + sum_s b[age_s] [s = i], rounded once."""
    (newest, newest_provider), (oldest, _) = seen_by_model[-1], seen_by_model[0]
    user = model.item_embeddings[newest] + model.provider_embeddings[newest_provider]  # float32, as in the graph
    user = user + model.item_embeddings[oldest]
    terms = model.history_terms or {"provider": [0.0] * model.max_len, "item": [0.0] * model.max_len}
    scores = {}
    for item in range(1, len(model.item_embeddings)):
        total = float(np.dot(user.astype(np.float64), model.item_embeddings[item].astype(np.float64)))
        provider = int(model.catalog.item_provider[item])
        by_provider = by_item = 0.0
        for age, (past_item, past_provider) in reversed(list(enumerate(reversed(seen_by_model)))):
            if provider and past_provider == provider:
                by_provider += terms["provider"][age]
            if past_item == item:
                by_item += terms["item"][age]
        scores[item] = np.float32(total + by_provider + by_item)
    return scores
