"""Chooses how a model's weights are stored: the smallest file whose lists are as good as those of float32.

Good is what the validation users' lists say, of the very graph that is written: NDCG@10 may fall by no more than a
share of float32's that the caller names. No chance is allowed for, as gate.py does for half precision: the bound is the
caller's word. So with few users a single target that falls by one place can be too much, and int8 is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from ipsrec_export.graph import ITEM_EMBEDDINGS
from ipsrec_export.weight_storage import Kind, StoredWeight, fits_half, groups_of
from ipsrec_onnx.errors import ModelFileError

PrecisionChoice = Literal["fp32", "fp16", "int8", "auto"]

MAX_NDCG_DROP: Final = 0.001
OVERLAPS: Final = (10, 100)
NDCG_AT: Final = 10

Lists = npt.NDArray[np.int32]  # (U, K) item_index, best first, PADDING behind the last


class Trial(Protocol):
    """A model of which files can be made, and tried on validation users.

    Attributes:
        encoder: in float32.
        weights: of it, that can be stored in fewer bytes.
        targets: (U,) int32, the item that each user took next; U may be 0.
        has_half: "auto" tries float16, too; a server's file in it is another graph, made for CUDA.
    """

    encoder: onnx.ModelProto
    weights: list[StoredWeight]
    targets: npt.NDArray[np.int32]
    has_half: bool

    def build(self, kinds: Mapping[str, Kind]) -> onnx.ModelProto:
        """Make the file's graph with weights stored as kinds says, by name; those it does not name are float32."""

    def lists(self, graph: bytes) -> Lists:
        """Recommend to all users."""

    def latency_ms(self, graph: bytes) -> float:
        """Median time of one user on one thread."""

    def embed(self, kinds: Mapping[str, Kind]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """(n, D) of the first users, some thousands, and (num_items + 1, D) of the items, as kinds says."""


@dataclass(frozen=True)
class Candidate:
    """One way of storing the weights, and what it gave.

    Attributes:
        precision: "fp32", "fp16" or "int8".
        kept: tables and layers that are stored in another way, and how.
        bytes: of the graph with its weights; what a file says beside it is the same for all.
        latency_ms: median of one user, on one thread of the exporting machine.
        overlap_at_10: mean share of float32's top 10 that this one's top 10 has.
        overlap_at_100: the same of the top 100.
        ndcg_at_10: of the validation users, as they would get the lists.
        ndcg_change: of that from float32's, relative; negative is worse.
        ndcg_change_error: standard error of the change, over the users, relative; None for fewer than two.
        passed: it is no worse than the bound allows.
    """

    precision: Literal["fp32", "fp16", "int8"]
    kept: dict[str, Kind]
    bytes: int
    latency_ms: float
    overlap_at_10: float
    overlap_at_100: float
    ndcg_at_10: float
    ndcg_change: float
    ndcg_change_error: float | None
    passed: bool

    def as_metadata(self) -> dict[str, Any]:
        """JSON values; what was kept as one text, empty for nothing."""
        return {**asdict(self), "kept": ", ".join(f"{group} {kind}" for group, kind in self.kept.items())}


@dataclass(frozen=True)
class PrecisionReport:
    """How a file's weights are stored, and what else was tried.

    Attributes:
        chosen: one of the candidates.
        candidates: float32 first.
    """

    chosen: Candidate
    candidates: list[Candidate]

    def as_metadata(self) -> list[dict[str, Any]]:
        """JSON values, a row for each candidate."""
        return [{**one.as_metadata(), "chosen": one is self.chosen} for one in self.candidates]


def choose_precision(
    trial: Trial, *, precision: PrecisionChoice, max_ndcg_drop: float = MAX_NDCG_DROP
) -> tuple[onnx.ModelProto, Candidate, list[Candidate]]:
    """Make a file in a precision, or for "auto" the smallest that passes.

    "auto" tries fp32, fp16 and int8. Where int8 does not pass, groups of weights are put back, to float16 where a
    file in it passes and else to float32: first the item table if the rest is not to blame, then layer by layer, the
    one first that moves scores the most, until the lists pass.

    Args:
        trial: the model.
        precision: to make it in.
        max_ndcg_drop: how far NDCG@10 may fall, as a share of float32's.

    Returns:
        The graph, what it is, and everything that was tried, float32 first.

    Raises:
        ModelFileError: this precision does not pass.
        DataError: float16 does not hold a weight, or one is not finite.
        ValueError: max_ndcg_drop is no number from 0 on.
    """
    if not max_ndcg_drop >= 0:
        raise ValueError(f"max_ndcg_drop is {max_ndcg_drop}, expected 0 or more")
    search = _Search(trial, max_ndcg_drop)
    chosen = search.baseline
    if precision == "auto":
        search.try_all()
        chosen = min((one for one in search.tried if one.passed), key=lambda one: one.bytes)
    elif precision != "fp32":
        chosen = search.attempt(precision)
        if not chosen.passed:
            raise ModelFileError(_refusal(chosen, search))
    return trial.build(kinds_of(trial.weights, chosen.precision, chosen.kept)), chosen, search.tried


def kinds_of(weights: Iterable[StoredWeight], precision: Kind, kept: Mapping[str, Kind]) -> dict[str, Kind]:
    """How a candidate stores each weight, by name; kept as Candidate has it."""
    return {weight.name: kept.get(weight.group, precision) for weight in weights}


class _Search:
    """Candidates of one model.

    Attributes:
        tried: so far; float32 is the first.
        baseline: float32.
    """

    def __init__(self, trial: Trial, max_ndcg_drop: float) -> None:
        self.trial, self.max_ndcg_drop = trial, max_ndcg_drop
        self.groups = groups_of(trial.weights)
        self.tried: list[Candidate] = []
        graph = self._graph("fp32", {})
        self.lists = trial.lists(graph)
        self.gains = _gains(self.lists, trial.targets)
        self.baseline = self._judge("fp32", {}, graph, self.lists)

    @property
    def is_known(self) -> bool:
        """Does any user's list have the target? If none does, nothing is known, and no file but float32 passes."""
        return bool(self.tried) and (self.tried[0].ndcg_at_10 > 0 or self.max_ndcg_drop >= 1)

    def attempt(self, precision: Literal["fp32", "fp16", "int8"], kept: Mapping[str, Kind] | None = None) -> Candidate:
        """Make a file and judge it."""
        graph = self._graph(precision, kept or {})
        return self._judge(precision, dict(kept or {}), graph, self.trial.lists(graph))

    def try_all(self) -> None:
        """Go through the candidates of "auto"."""
        beyond_half = [group for group, names in self.groups.items() if not self._fits_half(names)]
        halves = self.trial.has_half and self.attempt("fp16", dict.fromkeys(beyond_half, "fp32")).passed
        if self.attempt("int8").passed or not self.is_known:
            return
        back: dict[str, Kind] = {
            group: "fp16" if halves and group not in beyond_half else "fp32" for group in self.by_harm()
        }
        layers = [group for group in back if group != ITEM_EMBEDDINGS]
        kept: dict[str, Kind] = {}
        if not layers or not self.attempt("int8", {group: back[group] for group in layers}).passed:
            kept[ITEM_EMBEDDINGS] = back[ITEM_EMBEDDINGS]
            if self._enough(kept):
                return
        # With all of them back it is a file that was tried already.
        for group in layers[:-1]:
            kept[group] = back[group]
            if self._enough(kept):
                return

    def by_harm(self) -> list[str]:
        """Groups by what int8 does to them alone, the worst first.

        Harm is how far it moves the scores of float32's list against each other, as a share of how far these lie apart.
        """
        users, items = self.trial.embed({})
        lists = self.lists[: len(users)]
        scores = _scores(users, items, lists)
        apart = np.maximum(scores.std(1), np.finfo(np.float32).tiny)
        harm = {}
        for group, names in self.groups.items():
            moved = _scores(*self.trial.embed(dict.fromkeys(names, "int8")), lists) - scores
            harm[group] = float(np.mean(moved.std(1) / apart))
        return sorted(harm, key=lambda group: -harm[group])

    def _enough(self, kept: Mapping[str, Kind]) -> bool:
        """Try int8 with some groups kept: is there no need to go on?"""
        found = self.attempt("int8", kept)
        return found.passed or found.bytes >= min(one.bytes for one in self.tried if one.passed)

    def _graph(self, precision: Kind, kept: Mapping[str, Kind]) -> bytes:
        graph: bytes = self.trial.build(kinds_of(self.trial.weights, precision, kept)).SerializeToString()
        return graph

    def _judge(
        self, precision: Literal["fp32", "fp16", "int8"], kept: dict[str, Kind], graph: bytes, lists: Lists
    ) -> Candidate:
        gains = _gains(lists, self.trial.targets)
        ndcg, before = _mean(gains), _mean(self.gains)
        changes = (gains - self.gains) / before if before > 0 else np.zeros(len(gains))
        change = _mean(changes)
        first, last = OVERLAPS
        candidate = Candidate(
            precision=precision,
            kept=kept,
            bytes=len(graph),
            latency_ms=self.trial.latency_ms(graph),
            overlap_at_10=_overlap(self.lists, lists, first),
            overlap_at_100=_overlap(self.lists, lists, last),
            ndcg_at_10=ndcg,
            ndcg_change=change,
            ndcg_change_error=float(changes.std(ddof=1) / np.sqrt(len(changes))) if len(changes) > 1 else None,
            passed=(self.is_known or not self.tried) and change >= -self.max_ndcg_drop,
        )
        self.tried.append(candidate)
        return candidate

    def _fits_half(self, names: list[str]) -> bool:
        return all(
            fits_half(numpy_helper.to_array(tensor))
            for tensor in self.trial.encoder.graph.initializer
            if tensor.name in names
        )


def _scores(users: npt.NDArray[np.float32], items: npt.NDArray[np.float32], lists: Lists) -> npt.NDArray[np.float64]:
    """(U, K) of each user's own list."""
    scores = [items[row].astype(np.float64) @ user for user, row in zip(users, lists, strict=True)]
    return np.array(scores).reshape(lists.shape)


def _gains(lists: Lists, targets: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """(U,) what each user adds to NDCG@10, which is their mean."""
    hit = lists[:, :NDCG_AT] == targets[:, None]
    return np.where(hit.any(1), 1 / np.log2(hit.argmax(1) + 2.0), 0.0)


def _mean(gains: npt.NDArray[np.float64]) -> float:
    """0 without users."""
    return float(gains.mean()) if len(gains) else 0.0


def _overlap(before: Lists, after: Lists, top_k: int) -> float:
    """Mean share of the first items of a list that the other has among its first, too; 1 without users."""
    shares = []
    for one, other in zip(before[:, :top_k], after[:, :top_k], strict=True):
        real = one[one > 0]
        shares.append(len(np.intersect1d(real, other)) / len(real) if len(real) else 1.0)
    return float(np.mean(shares)) if shares else 1.0


def _refusal(found: Candidate, search: _Search) -> str:
    users = len(search.trial.targets)
    chance = "" if found.ndcg_change_error is None else f" +/- {found.ndcg_change_error:.2%}"
    asked = f"export: --precision {found.precision} is not good enough, so no file is written: "
    if search.baseline.ndcg_at_10 == 0:
        return (
            f"{asked}none of {users} validation users has the target in float32's top 10; export with --precision fp32"
        )
    return (
        f"{asked}NDCG@10 {search.baseline.ndcg_at_10:.4f} -> {found.ndcg_at_10:.4f} ({found.ndcg_change:+.2%}{chance}, "
        f"at most -{search.max_ndcg_drop:.2%}), top-10 overlap {found.overlap_at_10:.4f} ({users} validation users); "
        "export with --precision auto, or with a larger --max-ndcg-drop"
    )
