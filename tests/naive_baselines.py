"""Slow, obvious twins of the baselines' encoders, from the papers: float64, plain loops, one history at a time.

Each takes the weights of a model by name and the embeddings of one history, oldest first, and gives the user vector of
that history.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Weights = Mapping[str, Vector]


def sigmoid(values: Vector) -> Vector:
    return np.array([1 / (1 + math.exp(-value)) for value in values])


def linear(weights: Weights, name: str, values: Vector) -> Vector:
    return weights[f"{name}.weight"] @ values + weights.get(f"{name}.bias", 0.0)


def gru4rec_user(weights: Weights, embeddings: Sequence[Vector], *, num_layers: int) -> Vector:
    """Cho et al. 2014: the update gate says how much of the old state stays."""
    inputs = list(embeddings)
    for layer in range(num_layers):
        by_input, by_state = weights[f"encoder.gru.weight_ih_l{layer}"], weights[f"encoder.gru.weight_hh_l{layer}"]
        width = by_state.shape[1]
        state, outputs = np.zeros(width), []
        for given in inputs:
            x, h = by_input @ given, by_state @ state
            reset = sigmoid(x[:width] + h[:width])
            update = sigmoid(x[width : 2 * width] + h[width : 2 * width])
            proposed = np.tanh(x[2 * width :] + reset * h[2 * width :])
            state = update * state + (1 - update) * proposed
            outputs.append(state)
        inputs = outputs
    return linear(weights, "encoder.dense", inputs[-1])


def caser_user(weights: Weights, embeddings: Sequence[Vector], *, window: int) -> Vector:
    """Section 3 of the paper: an image of `window` rows, the newest item last."""
    dim = len(embeddings[0])
    image = [np.zeros(dim)] * max(0, window - len(embeddings)) + list(embeddings[-window:])
    found: list[float] = []
    bias = weights["encoder.vertical.bias"]
    for column in range(dim):  # the order in which the dense layer takes them: all filters of a column
        for number, shares in enumerate(weights["encoder.vertical.weight"]):
            found.append(
                sum(share * row[column] for share, row in zip(shares, image, strict=True)) + float(bias[number])
            )
    for height in range(1, window + 1):
        filters = weights[f"encoder.horizontal.{height - 1}.weight"]  # (filters, dim, height)
        for number, pattern in enumerate(filters):
            matches = []
            for top in range(window - height + 1):
                match = sum(float(pattern[:, row] @ image[top + row]) for row in range(height))
                matches.append(max(0.0, match + float(weights[f"encoder.horizontal.{height - 1}.bias"][number])))
            found.append(max(matches))
    return np.maximum(linear(weights, "encoder.dense", np.array(found)), 0.0)


def srgnn_user(weights: Weights, items: Sequence[int], embeddings: Sequence[Vector], *, steps: int) -> Vector:
    """Section 3 of the paper: nodes are the distinct items, an edge counts once."""
    nodes = [int(item) for item in np.unique(items)]
    states = [embeddings[list(items).index(item)] for item in nodes]
    edges = {(nodes.index(one), nodes.index(other)) for one, other in itertools.pairwise(items)}
    width = len(states[0])
    for _ in range(steps):
        new_states = []
        for node, state in enumerate(states):
            arriving = [linear(weights, "encoder.edge_in", states[one]) for one, other in edges if other == node]
            leaving = [linear(weights, "encoder.edge_out", states[other]) for one, other in edges if one == node]
            before = sum(arriving, np.zeros(width)) / max(len(arriving), 1) + weights["encoder.bias_in"]
            after = sum(leaving, np.zeros(width)) / max(len(leaving), 1) + weights["encoder.bias_out"]
            m = linear(weights, "encoder.from_messages", np.concatenate([before, after]))
            s = linear(weights, "encoder.from_state", state)
            reset, update = sigmoid(m[:width] + s[:width]), sigmoid(m[width : 2 * width] + s[width : 2 * width])
            proposed = np.tanh(m[2 * width :] + reset * s[2 * width :])
            new_states.append((1 - update) * state + update * proposed)
        states = new_states
    along = [states[nodes.index(item)] for item in items]
    history = np.zeros(width)
    for state in along:
        seen = sigmoid(linear(weights, "encoder.of_last", along[-1]) + linear(weights, "encoder.of_each", state))
        history = history + float(weights["encoder.attention.weight"][0] @ seen) * state
    return linear(weights, "encoder.output", np.concatenate([history, along[-1]]))
