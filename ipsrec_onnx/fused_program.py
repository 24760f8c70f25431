"""Says what each model's layers look at, as a program for the fused encoder's kernel.

The programs are those of `encode_last` in ipsrec_train: what only the newest item needs is made for it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.encoder import (
    ASKING,
    LAYER,
    LOOK_BACK,
    LOOK_FROM_NEWEST,
    LOOKED_AT,
    NUM_COLUMNS,
    OPERATION,
    OUT,
    QUERY_LAYER,
    RESIDUAL,
    TAKE_NEWEST,
)

_PARTS = ("query", "key", "value", "output", "attention_norm", "inner", "outer", "feed_forward_norm")


@dataclass(frozen=True, eq=False)
class Program:
    """What the kernel runs, and what it needs for that.

    Attributes:
        layers: names of the layers in the encoder's state_dict, as the steps number them.
        parts: "layer.part" of all that the steps read; an exported graph has no more than that.
        steps: (n, NUM_COLUMNS) int64.
        num_slots: that the steps name.
        norms: name of the LayerNorm of item and of provider embeddings.
        two_streams: whether providers are looked at.
        step: tokens of one moment in slot 0: 2 where items and providers alternate.
    """

    layers: tuple[str, ...]
    parts: frozenset[str]
    steps: npt.NDArray[np.int64]
    num_slots: int
    norms: tuple[str, str]
    two_streams: bool
    step: int


def make_program(model: str, settings: dict[str, Any]) -> Program:
    """Write the program of a model.

    Args:
        model: "sasrec", "ipsrec-s" or "ipsrec-c".
        settings: of the model.

    Raises:
        KeyError: a setting is missing, or has a value that no model has.
    """
    if model == "ipsrec-c":
        return _cross_program(settings)
    # `released` IPSRec-S shows no provider to an item: what makes the user is one stream of items.
    alternating = model == "ipsrec-s" and settings["variant"] != "released"
    names = [f"layers.{number}" for number in range(settings["num_layers"])]
    steps = [_look_back(name, name, 0, 0, 0, 0) for name in names[:-1]]
    steps += [_take_newest(0, 0), _from_newest(names[-1], names[-1], 0, 0, 0, 0)]
    return _program(steps, norms=("norm", "norm"), two_streams=alternating, step=2 if alternating else 1)


def _cross_program(settings: dict[str, Any]) -> Program:
    num_layers = settings["num_layers"]
    own, fusions = (0, num_layers) if settings["variant"] == "released" else (num_layers, 1)
    queries = {"queries": True, "keys_values": False}[settings["co_attention"]]
    x, y = 0, 1  # slots of the item and of the provider stream
    steps = []
    for number in range(own - 1):
        item, provider = f"item_layers.{number}", f"provider_layers.{number}"
        steps += [_look_back(item, item, x, x, x, x), _look_back(provider, provider, y, y, y, y)]
    for number in range(fusions - 1):
        item, provider = f"item_fusion.{number}", f"provider_fusion.{number}"
        new_x, new_y = x ^ 2, y ^ 2  # both streams read the old states of both
        if queries:
            steps += [_look_back(item, provider, y, x, x, new_x), _look_back(provider, item, x, y, y, new_y)]
        else:
            steps += [_look_back(item, item, x, y, x, new_x), _look_back(provider, provider, y, x, y, new_y)]
        x, y = new_x, new_y
    # The last fusion looks at all tokens of one stream; of the other it takes the newest.
    if own:
        item, provider = f"item_layers.{own - 1}", f"provider_layers.{own - 1}"
        if queries:
            steps += [_take_newest(y, y), _from_newest(provider, provider, y, y, y, y)]
            steps += [_look_back(item, item, x, x, x, x), _take_newest(x, x)]
        else:
            steps += [_take_newest(x, x), _from_newest(item, item, x, x, x, x)]
            steps += [_look_back(provider, provider, y, y, y, y)]
    else:
        steps += [_take_newest(x, x), _take_newest(y, y)]
    item, provider = f"item_fusion.{fusions - 1}", f"provider_fusion.{fusions - 1}"
    steps += [_from_newest(item, provider, y, x, x, x) if queries else _from_newest(item, item, x, y, x, x)]
    return _program(steps, norms=("item_norm", "provider_norm"), two_streams=True, step=1)


# A step with the names of its layers in place of their numbers.
_Step = dict[int, Any]


def _look_back(layer: str, query_layer: str, asking: int, looked_at: int, residual: int, out: int) -> _Step:
    return _step(LOOK_BACK, layer, query_layer, asking, looked_at, residual, out)


def _from_newest(layer: str, query_layer: str, asking: int, looked_at: int, residual: int, out: int) -> _Step:
    return _step(LOOK_FROM_NEWEST, layer, query_layer, asking, looked_at, residual, out)


def _take_newest(looked_at: int, out: int) -> _Step:
    return {OPERATION: TAKE_NEWEST, LOOKED_AT: looked_at, OUT: out}


def _step(operation: int, layer: str, query_layer: str, asking: int, looked_at: int, residual: int, out: int) -> _Step:
    return {
        OPERATION: operation,
        LAYER: layer,
        QUERY_LAYER: query_layer,
        ASKING: asking,
        LOOKED_AT: looked_at,
        RESIDUAL: residual,
        OUT: out,
    }


def _program(steps: Sequence[_Step], *, norms: tuple[str, str], two_streams: bool, step: int) -> Program:
    layers = sorted({written[column] for written in steps for column in (LAYER, QUERY_LAYER) if column in written})
    parts = {f"{written[LAYER]}.{part}" for written in steps if LAYER in written for part in _PARTS[1:]}
    parts |= {f"{written[QUERY_LAYER]}.query" for written in steps if QUERY_LAYER in written}
    table = np.zeros((len(steps), NUM_COLUMNS), np.int64)
    for row, written in zip(table, steps, strict=True):
        for column, value in written.items():
            row[column] = layers.index(value) if isinstance(value, str) else value
    slots = table[:, [ASKING, LOOKED_AT, RESIDUAL, OUT]]
    return Program(tuple(layers), frozenset(parts), table, int(slots.max()) + 1, norms, two_streams, step)
