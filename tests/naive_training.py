"""Slow, obvious twins of the models, losses and batches: float64, plain loops, one history at a time, no masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from naive_baselines import caser_user, gru4rec_user, srgnn_user

from ipsrec_train.model import Model
from ipsrec_train.settings import CaserSettings, GRU4RecSettings, SRGNNSettings

Vector = npt.NDArray[np.float64]


class NaiveModel:
    """Computes the states of one history from the weights of a model."""

    def __init__(self, model: Model) -> None:
        self.settings = model.settings
        self.name = model.name
        self.weights = {name: tensor.detach().double().numpy() for name, tensor in model.state_dict().items()}
        self.item_provider = model.item_provider.numpy()

    def item_embedding(self, item: int) -> Vector:
        embedding = self.weights["items.weight"][item]
        if self.settings.provider_in_item:
            embedding = embedding + self.weights["providers.weight"][self.item_provider[item]]
        return embedding

    def states(self, items: Sequence[int], providers: Sequence[int]) -> tuple[list[Vector], list[Vector]]:
        """Item and provider state of every position; no provider states from a model with one stream."""
        if self.name in ("gru4rec", "caser", "sr-gnn"):
            return [self._baseline_user(items[: t + 1]) for t in range(len(items))], []
        x = [
            self.item_embedding(item)
            + self.weights["encoder.item_input.position"][t]
            + self.weights.get("encoder.item_input.segment", 0.0)
            for t, item in enumerate(items)
        ]
        if self.name == "sasrec":
            return self._self_attention(x), []
        y = [
            self.weights["providers.weight"][provider]
            + self.weights["encoder.provider_input.position"][t]
            + self.weights["encoder.provider_input.segment"]
            for t, provider in enumerate(providers)
        ]
        return self._cross_stream(x, y) if self.name == "ipsrec-c" else self._single_stream(x, y)

    def _baseline_user(self, items: Sequence[int]) -> Vector:
        embeddings = [self.item_embedding(item) for item in items]
        match self.settings:
            case GRU4RecSettings():
                return gru4rec_user(self.weights, embeddings, num_layers=self.settings.num_layers)
            case CaserSettings():
                window = min(self.settings.window, self.settings.max_len)
                return caser_user(self.weights, embeddings, window=window)
            case SRGNNSettings():
                return srgnn_user(self.weights, items, embeddings, steps=self.settings.steps)
        raise AssertionError(self.name)

    def _self_attention(self, x: list[Vector]) -> list[Vector]:
        x = [self._norm("encoder.norm", state) for state in x]
        for number in range(self.settings.num_layers):
            layer = f"encoder.layers.{number}"
            x = [self._layer(layer, x[t], self._linear(f"{layer}.query", x[t]), x[: t + 1]) for t in range(len(x))]
        return x

    def user(self, items: Sequence[int], providers: Sequence[int]) -> Vector:
        return self.states(items, providers)[0][-1]

    def scores(self, items: Sequence[int]) -> list[float]:
        """Score of item_index 1, 2, ... after a history of at most max_len items, history terms included."""
        user = self.user(items, [self.item_provider[item] for item in items])
        scores = [float(user @ self.item_embedding(i)) for i in range(1, len(self.item_provider))]
        if self.settings.history_terms == "none":
            return scores
        a = [0.0] * len(items)
        if self.settings.history_terms == "all":
            a = [math.log1p(math.exp(20 * raw - 1)) for raw in self.weights["history_terms.provider"]]
        b = [20 * raw for raw in self.weights["history_terms.item"]]
        return [score + history_score(items, i, self.item_provider, a, b) for i, score in enumerate(scores, 1)]

    def _cross_stream(self, x: list[Vector], y: list[Vector]) -> tuple[list[Vector], list[Vector]]:
        x = [self._norm("encoder.item_norm", state) for state in x]
        y = [self._norm("encoder.provider_norm", state) for state in y]
        released = self.settings.variant == "released"
        positions = range(len(x))
        for layer in range(0 if released else self.settings.num_layers):
            item, provider = f"encoder.item_layers.{layer}", f"encoder.provider_layers.{layer}"
            x = [self._layer(item, x[t], self._linear(f"{item}.query", x[t]), x[: t + 1]) for t in positions]
            y = [self._layer(provider, y[t], self._linear(f"{provider}.query", y[t]), y[: t + 1]) for t in positions]
        for layer in range(self.settings.num_layers if released else 1):
            item, provider = f"encoder.item_fusion.{layer}", f"encoder.provider_fusion.{layer}"
            from_x = [self._linear(f"{item}.query", state) for state in x]
            from_y = [self._linear(f"{provider}.query", state) for state in y]
            if self.settings.co_attention == "queries":
                x, y = (
                    [self._layer(item, x[t], from_y[t], x[: t + 1]) for t in positions],
                    [self._layer(provider, y[t], from_x[t], y[: t + 1]) for t in positions],
                )
            else:
                x, y = (
                    [self._layer(item, x[t], from_x[t], y[: t + 1]) for t in positions],
                    [self._layer(provider, y[t], from_y[t], x[: t + 1]) for t in positions],
                )
        return x, y

    def _single_stream(self, x: list[Vector], y: list[Vector]) -> tuple[list[Vector], list[Vector]]:
        x = [self._norm("encoder.norm", state) for state in x]
        y = [self._norm("encoder.norm", state) for state in y]
        for number in range(self.settings.num_layers):
            layer = f"encoder.layers.{number}"
            new_x, new_y = [], []
            for t in range(len(x)):
                if self.settings.variant == "released":
                    seen_by_item, seen_by_provider = x[: t + 1], x + y[: t + 1]
                else:
                    seen_by_item = seen_by_provider = x[: t + 1] + y[: t + 1]
                new_x.append(self._layer(layer, x[t], self._linear(f"{layer}.query", x[t]), seen_by_item))
                new_y.append(self._layer(layer, y[t], self._linear(f"{layer}.query", y[t]), seen_by_provider))
            x, y = new_x, new_y
        return x, y

    def _layer(self, name: str, residual: Vector, query: Vector, seen: list[Vector]) -> Vector:
        """One position of one attention layer with its feed-forward."""
        width = self.settings.dim // self.settings.num_heads
        looked = np.zeros(self.settings.dim)
        for head in range(self.settings.num_heads):
            part = slice(head * width, (head + 1) * width)
            alike = [float(query[part] @ self._linear(f"{name}.key", state)[part]) / math.sqrt(width) for state in seen]
            weights = [math.exp(value - max(alike)) for value in alike]
            for weight, state in zip(weights, seen, strict=True):
                looked[part] += weight / sum(weights) * self._linear(f"{name}.value", state)[part]
        state = self._norm(f"{name}.attention_norm", residual + self._linear(f"{name}.output", looked))
        inner = self._linear(f"{name}.inner", state)
        inner = np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in inner])
        return self._norm(f"{name}.feed_forward_norm", state + self._linear(f"{name}.outer", inner))

    def _linear(self, name: str, state: Vector) -> Vector:
        return self.weights[f"{name}.weight"] @ state + self.weights[f"{name}.bias"]

    def _norm(self, name: str, state: Vector) -> Vector:
        centred = state - state.mean()
        normal = centred / math.sqrt((centred**2).mean() + self.settings.layer_norm_eps)
        return normal * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def history_score(
    items: Sequence[int], item: int, item_provider: npt.NDArray[np.integer], a: Sequence[float], b: Sequence[float]
) -> float:
    """What a history, oldest first, adds to the score of one item."""
    total = 0.0
    for age, taken in enumerate(reversed(items)):
        if item_provider[item] != 0 and item_provider[taken] == item_provider[item]:
            total += a[age]
        if taken == item:
            total += b[age]
    return total


def softmax_loss(
    users: Vector,
    table: Vector,
    targets: Sequence[int],
    *,
    item_provider: npt.NDArray[np.integer],
    a: Vector | None = None,
    b: Vector | None = None,
    histories: Sequence[Sequence[int]] = (),
    counted: Vector | None = None,
) -> dict[str, Vector]:
    """Mean cross entropy and its gradients; column 0 of the table takes no part.

    Args:
        users, table, targets, item_provider, a, b, histories: as in ipsrec_train.losses, item by item.
        counted: (num_items + 1,) how often each item counts in the softmax's sum; once where None. A target counts
            once for its own row.

    Returns:
        "loss", "users", "table" and, with histories, "a" and "b".
    """
    num_targets, num_items = len(users), len(table) - 1
    gradients = {"loss": np.zeros(()), "users": np.zeros_like(users), "table": np.zeros_like(table)}
    if a is not None and b is not None:
        gradients |= {"a": np.zeros_like(a), "b": np.zeros_like(b)}
    for t in range(num_targets):
        scores = [float(users[t] @ table[i]) for i in range(1, num_items + 1)]
        if a is not None and b is not None:
            scores = [
                score + history_score(histories[t], i, item_provider, list(a), list(b))
                for i, score in enumerate(scores, 1)
            ]
        times = [1.0 if counted is None or i == targets[t] else float(counted[i]) for i in range(1, num_items + 1)]
        total = sum(n * math.exp(score - max(scores)) for n, score in zip(times, scores, strict=True))
        gradients["loss"] += math.log(total) + max(scores) - scores[targets[t] - 1]
        for i, score in enumerate(scores, 1):
            slope = times[i - 1] * math.exp(score - max(scores)) / total - (i == targets[t])
            gradients["users"][t] += slope * table[i]
            gradients["table"][i] += slope * users[t]
            if a is None or b is None:
                continue
            for age, taken in enumerate(reversed(histories[t])):
                if item_provider[i] != 0 and item_provider[taken] == item_provider[i]:
                    gradients["a"][age] += slope
                if taken == i:
                    gradients["b"][age] += slope
    return {name: value / num_targets for name, value in gradients.items()}


def contrastive_loss(item_users: Vector, provider_users: Vector, *, temperature: float, symmetric: bool) -> float:
    """Eq. 12, or the released code's symmetric one, one anchor at a time."""
    users = len(item_users)
    losses = []
    for u in range(users):
        anchors = [(item_users, provider_users)]
        if symmetric:
            anchors.append((provider_users, item_users))
        for own, other in anchors:
            positive = math.exp(own[u] @ other[u] / temperature)
            negatives = 0.0
            for v in range(users):
                if v != u:
                    negatives += math.exp(own[u] @ other[v] / temperature)
                    if symmetric:
                        negatives += math.exp(own[u] @ own[v] / temperature)
            losses.append(-math.log(positive / (positive + negatives)))
    return sum(losses) / len(losses)


def windows(history: Sequence[int], max_len: int) -> list[list[int]]:
    """Cut from the end: each window's last item is target only, and the last but one is the newest input."""
    cut: list[list[int]] = []
    end = len(history)
    while end >= 2:
        begin = max(0, end - 1 - max_len)
        cut.append(list(history[begin:end]))
        end = begin + 1  # the first input of this window is the last target of the one before
    return cut


def prefixes(history: Sequence[int], max_len: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every target and the items of its window before it."""
    for window in windows(history, max_len):
        for length in range(1, len(window)):
            yield tuple(window[:length]), window[length]


def rank(scores: Sequence[float], target: int) -> int:
    """Rank of item_index `target` where scores are of item_index 1, 2, ...; ties by the smaller one."""
    best = sorted(range(1, len(scores) + 1), key=lambda item: (-scores[item - 1], item))
    return best.index(target) + 1
