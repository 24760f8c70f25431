"""The gate of an edge file: it recommends what `ipsrec score` recommends, to the same users.

Users are those of the validation split, as the caller has them: raw ids, whole histories, ids between them that the
catalog does not know; and users without any known item.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime
import pyarrow as pa

from ipsrec_export.comparison import VALIDATION_USERS
from ipsrec_onnx import Scorer
from ipsrec_onnx.candidates import STATUS_COLD
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.session import run_session
from ipsrec_train.batches import Histories

# Both sides round the same: a list differs where two items are as near as the last bit of a user's vector.
MIN_SAME_LISTS: Final = 0.99
MIN_OVERLAP: Final = 0.999
MAX_SCORE_ERROR: Final = 1e-5
_DRAWN_USERS: Final = 64  # of random items, for a catalog of which validation users know few
_LONGEST_DRAWN: Final = 200
_UNKNOWN_EVERY: Final = 4  # so many users have ids in their histories that the catalog does not know
_SCORES_OF_A_RUN: Final = 1 << 24  # (users, num_items) float32 that a run may hold some of


@dataclass(frozen=True)
class EdgeGateReport:
    """How the edge file's lists compare with those of `ipsrec score`; stored in it.

    Attributes:
        passed: lists are the same, as far as the precision allows, and those of cold users are in any case.
        users: how many were compared, cold_users among them.
        cold_users: of these, users without a known item.
        same_lists: share of users who get the same items in the same order.
        overlap: mean share of a list that the other has, too.
        score_error: largest difference of the scores of two equal lists, as a share of the largest score.
        min_same_lists, min_overlap, max_score_error: what float32 must keep to. Of another precision, whose graph has
            kept to it in float32 before, precision.py judges the rounding: 0, 0 and 1 here.
    """

    passed: bool
    users: int
    cold_users: int
    same_lists: float
    overlap: float
    score_error: float
    min_same_lists: float
    min_overlap: float
    max_score_error: float

    def as_metadata(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def refuse_unless_passed(self) -> None:
        """Raise ModelFileError with the figures."""
        if not self.passed:
            raise ModelFileError(
                f"export: the edge graph gives other lists than `ipsrec score`, so no file is written: "
                f"{self.same_lists:.2%} of {self.users} lists are the same (at least {self.min_same_lists:.0%}), their "
                f"overlap is {self.overlap:.4f} (at least {self.min_overlap}), scores are "
                f"{self.score_error:.1e} off (at most {self.max_score_error:.0e}); report this model's settings "
                "as a defect"
            )


def run_edge_gate(
    session: onnxruntime.InferenceSession, scorer: Scorer, catalog: Catalog, validation: Histories, *, exact: bool
) -> EdgeGateReport:
    """Compare an edge file with a Scorer of the same rules.

    Args:
        session: of the edge file.
        scorer: of the float32 model file that it was made from, with the same top_k and keep_seen.
        catalog: of both.
        validation: validation histories; the first VALIDATION_USERS that are not empty are compared.
        exact: hold it to the same lists, as float32 must give them.
    """
    histories = edge_users(catalog, validation)
    expected = scorer.score(_users_table(histories, catalog)).candidates
    cold = np.array([status == STATUS_COLD for status in expected["status"].to_pylist()])
    same, overlap, score_error = np.zeros(len(histories), bool), np.zeros(len(histories)), 0.0
    items, scores = expected["item_ids"].to_pylist(), expected["scores"].to_pylist()
    for user, (found_items, found_scores, found_cold) in enumerate(edge_lists(session, histories, catalog)):
        same[user] = found_items == items[user] and found_cold == cold[user]
        longer = max(len(items[user]), len(found_items))
        overlap[user] = len(set(found_items) & set(items[user])) / longer if longer else 1.0
        if same[user] and items[user]:
            error = np.abs(found_scores - np.array(scores[user], np.float32)).max()
            score_error = max(score_error, float(error / max(np.abs(found_scores).max(), np.finfo(np.float32).tiny)))
    least_same, least_overlap, most_error = (MIN_SAME_LISTS, MIN_OVERLAP, MAX_SCORE_ERROR) if exact else (0.0, 0.0, 1.0)
    is_alike = same.mean() >= least_same and overlap.mean() >= least_overlap and score_error <= most_error
    return EdgeGateReport(
        passed=bool(same[cold].all() and is_alike),
        users=len(histories),
        cold_users=int(cold.sum()),
        same_lists=float(same.mean()),
        overlap=float(overlap.mean()),
        score_error=score_error,
        min_same_lists=least_same,
        min_overlap=least_overlap,
        max_score_error=most_error,
    )


def edge_users(catalog: Catalog, validation: Histories) -> list[list[Any]]:
    """Raw ids of users to compare with: without a known item, of random items, and of the validation split."""
    users = np.flatnonzero(np.diff(validation.offsets) > 0)[:VALIDATION_USERS]
    unknown = _unknown_id(catalog)
    rng = np.random.default_rng(0)
    histories: list[list[Any]] = [[], [unknown], [unknown] * 5]
    for length in rng.integers(1, _LONGEST_DRAWN + 1, _DRAWN_USERS):
        drawn = rng.integers(0, catalog.num_items, length)
        histories.append(catalog.item_ids.take(pa.array(drawn)).to_pylist())
    for number, user in enumerate(users):
        rows = validation.values[validation.offsets[user] : validation.offsets[user + 1]] - 1
        history = catalog.item_ids.take(pa.array(rows)).to_pylist()
        if number % _UNKNOWN_EVERY == 0:
            history.insert(int(rng.integers(0, len(history) + 1)), unknown)
        histories.append(history)
    return histories


def edge_lists(
    session: onnxruntime.InferenceSession, histories: list[list[Any]], catalog: Catalog
) -> list[tuple[list[Any], npt.NDArray[np.float32], bool]]:
    """Item ids and scores of each user, and whether the user is cold; providers are used."""
    lists = []
    switch = {node.name: np.ones(1, np.bool_) for node in session.get_inputs() if node.name == "use_providers"}
    batch_size = int(np.clip(_SCORES_OF_A_RUN // (catalog.num_items + 1), 1, 64))
    for first in range(0, len(histories), batch_size):
        feed = {**edge_feed(histories[first : first + batch_size], catalog), **switch}
        outputs = run_session(session, ["item_ids", "scores", "counts", "cold"], feed)
        lists += [
            (item_ids[:count].tolist(), scores[:count], bool(is_cold))
            for item_ids, scores, count, is_cold in zip(*outputs, strict=True)
        ]
    return lists


def edge_feed(histories: list[list[Any]], catalog: Catalog) -> dict[str, npt.NDArray[Any]]:
    """Histories of raw ids as an edge file takes them, right padded with the catalog's first id."""
    lengths = np.array([len(history) for history in histories], np.int64)
    is_int64 = pa.types.is_int64(catalog.item_ids.type)
    padded = np.full(
        (len(histories), lengths.max(initial=0)), catalog.item_ids[0].as_py(), np.int64 if is_int64 else object
    )
    for row, history in zip(padded, histories, strict=True):
        row[: len(history)] = history
    return {"item_history": padded, "lengths": lengths}


def _unknown_id(catalog: Catalog) -> Any:
    """An id that no item has."""
    if not pa.types.is_int64(catalog.item_ids.type):
        return max(catalog.item_ids.to_pylist()) + "?"
    known = set(catalog.item_ids.to_pylist())
    return next(number for number in range(-1, -len(known) - 2, -1) if number not in known)


def _users_table(histories: list[list[Any]], catalog: Catalog) -> pa.Table:
    return pa.table(
        {
            "user_id": np.arange(len(histories)),
            "item_history": pa.array(histories, pa.large_list(catalog.item_ids.type)),
        }
    )
