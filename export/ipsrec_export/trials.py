"""Tries files of the two profiles on validation users: the lists that they get, and how long one user takes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pyarrow as pa
from onnx import numpy_helper

from ipsrec_export.comparison import VALIDATION_USERS
from ipsrec_export.edge_gate import edge_feed, edge_lists
from ipsrec_export.edge_graph import EdgeRules, build_edge_graph
from ipsrec_export.graph import ITEM_EMBEDDINGS
from ipsrec_export.precision import OVERLAPS, Lists
from ipsrec_export.validation_users import ValidationUsers
from ipsrec_export.weight_storage import (
    Kind,
    QuantizedRows,
    as_half,
    drop_node_notes,
    drop_output,
    quantize,
    second_moment,
    storable_weights,
    store_weights,
)
from ipsrec_kernels.history_items import History, HistoryTerms
from ipsrec_kernels.item_table import build_item_table
from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.topk import retrieve
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.ids import find_ids
from ipsrec_onnx.session import open_session, run_session
from ipsrec_train.batches import Histories

_HEADROOM: Final = 2.0  # users whose embedding is larger than any of the validation users'
_TIMED: Final = 50
_WARM_UP: Final = 5


class _Trial:
    """What files of both profiles begin with; attributes and methods as Trial.

    Args:
        encoder: a copy of what build_graph gave, which is this one's now.
        catalog: of the model.
        history_terms: of the model; None for one without.
        max_len: most recent known items that the encoder sees.
        validation: validation histories and targets of the run.
    """

    def __init__(
        self,
        encoder: onnx.ModelProto,
        catalog: Catalog,
        history_terms: HistoryTerms | None,
        *,
        max_len: int,
        validation: Histories,
    ) -> None:
        self.encoder = encoder
        self.weights = storable_weights(encoder.graph)  # before the notes go, which say what belongs together
        drop_node_notes(encoder)
        self._catalog, self._terms, self._max_len = catalog, history_terms, max_len
        self._users = ValidationUsers(validation, catalog, max_len=max_len)
        self.targets = self._users.targets
        self._user_vectors = self._users.encode(_session(encoder.SerializeToString()))

    def embed(self, kinds: Mapping[str, Kind]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """As Trial."""
        users = range(min(VALIDATION_USERS, len(self.targets)))
        return self._users.encode(_session(self._stored(kinds).SerializeToString()), users), self.items_as(kinds)

    def items_as(self, kinds: Mapping[str, Kind]) -> npt.NDArray[np.float32]:
        """(num_items + 1, D) float32, what a file that stores its weights so holds of the items, to the last bit."""
        kind = kinds.get(ITEM_EMBEDDINGS, "fp32")
        if kind == "int8":
            return self._rounded_items.as_float32()
        return as_half(self._items, name=ITEM_EMBEDDINGS).astype(np.float32) if kind == "fp16" else self._items

    @functools.cached_property
    def _items(self) -> npt.NDArray[np.float32]:
        (table,) = (one for one in self.encoder.graph.initializer if one.name == ITEM_EMBEDDINGS)
        return np.asarray(numpy_helper.to_array(table))

    @functools.cached_property
    def _rounded_items(self) -> QuantizedRows:
        """Rounded for the vectors that float32 gives; with this table as their input, they come out a little others."""
        return quantize(self._items, (1,), name=ITEM_EMBEDDINGS, met=second_moment(self._user_vectors))

    def _stored(self, kinds: Mapping[str, Kind]) -> onnx.ModelProto:
        """The encoder with its weights stored so."""
        encoder = _copy(self.encoder)
        in_int8 = kinds.get(ITEM_EMBEDDINGS) == "int8"
        store_weights(encoder, kinds, rounded={ITEM_EMBEDDINGS: self._rounded_items} if in_int8 else None)
        return encoder


class EdgeTrial(_Trial):
    """A model as edge files; attributes and methods as Trial.

    Args:
        encoder: as build_graph gives it; stays as it is.
        catalog: of the model.
        history_terms: of the model; None for one without.
        max_len: most recent known items that the encoder sees.
        rules: for every user.
        validation: validation histories and targets of the run.
    """

    has_half = True

    def __init__(
        self,
        encoder: onnx.ModelProto,
        catalog: Catalog,
        history_terms: HistoryTerms | None,
        *,
        max_len: int,
        rules: EdgeRules,
        validation: Histories,
    ) -> None:
        without_items = _copy(encoder)
        drop_output(without_items, [ITEM_EMBEDDINGS])
        super().__init__(without_items, catalog, history_terms, max_len=max_len, validation=validation)
        self._rules = rules
        self._histories = self._users.raw_histories()
        self._largest_element = _HEADROOM * float(np.abs(self._user_vectors).max(initial=0)) or 1.0

    def build(self, kinds: Mapping[str, Kind]) -> onnx.ModelProto:
        """As Trial."""
        return build_edge_graph(
            self._stored(kinds),
            self._catalog,
            self._terms,
            max_len=self._max_len,
            rules=self._rules,
            largest_element=self._largest_element,
        )

    def lists(self, graph: bytes) -> Lists:
        """As Trial; seen items are in them or not, as the rules say."""
        found = edge_lists(_session(graph), self._histories, self._catalog)
        lists = np.full((len(found), min(self._rules.top_k, self._catalog.num_items)), PADDING, np.int32)
        for row, (item_ids, _, _) in zip(lists, found, strict=True):
            row[: len(item_ids)] = find_ids(self._catalog.item_table, pa.array(item_ids, self._catalog.item_ids.type))
        return lists

    def latency_ms(self, graph: bytes) -> float:
        """As Trial; 0 without users."""
        session = _session(graph)
        switch = {node.name: np.ones(1, np.bool_) for node in session.get_inputs() if node.name == "use_providers"}
        feeds = [{**edge_feed([history], self._catalog), **switch} for history in self._histories[:_TIMED]]
        return _median_ms([functools.partial(run_session, session, ["item_ids"], feed) for feed in feeds])


class ServerTrial(_Trial):
    """A model as files for `ipsrec score`; attributes and methods as Trial.

    Args:
        encoder: as build_graph gives it; stays as it is.
        catalog: of the model.
        history_terms: of the model; None for one without.
        max_len: most recent known items that the encoder sees.
        validation: validation histories and targets of the run.
    """

    has_half = False

    def __init__(
        self,
        encoder: onnx.ModelProto,
        catalog: Catalog,
        history_terms: HistoryTerms | None,
        *,
        max_len: int,
        validation: Histories,
    ) -> None:
        super().__init__(_copy(encoder), catalog, history_terms, max_len=max_len, validation=validation)
        self._top_k = min(max(OVERLAPS), catalog.num_items)

    def build(self, kinds: Mapping[str, Kind]) -> onnx.ModelProto:
        """As Trial."""
        return self._stored(kinds)

    def lists(self, graph: bytes) -> Lists:
        """As Trial; items of the history are in them."""
        session = _session(graph)
        users, table = (
            self._users.encode(session),
            build_item_table(self._users.items(session), self._catalog.item_provider, allowed=None),
        )
        history = self._users.history() if self._terms is not None else None
        return self._retrieve(table, users, history)

    def latency_ms(self, graph: bytes) -> float:
        """As Trial; 0 without users."""
        session = _session(graph)
        table = build_item_table(self._users.items(session), self._catalog.item_provider, allowed=None)

        def run(user: int) -> None:
            history = self._users.history(user) if self._terms is not None else None
            self._retrieve(table, self._users.encode(session, range(user, user + 1)), history)

        return _median_ms([functools.partial(run, user) for user in range(min(_TIMED, len(self.targets)))])

    def _retrieve(self, table: Any, users: npt.NDArray[np.float32], history: History | None) -> Lists:
        found = retrieve(
            table,
            users,
            top_k=self._top_k,
            seen=None,
            history=history,
            terms=self._terms if history is not None else None,
            candidates=None,
            max_per_provider=None,
        )
        return found.item_index


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    return open_session("a candidate", device="cpu", graph=graph)


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph alone, without what a file says beside it."""
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    del copied.metadata_props[:]
    return copied


def _median_ms(runs: list[Callable[[], Any]]) -> float:
    """Of calls that differ a little; 0 for none."""
    for run in runs[:_WARM_UP]:
        run()
    times = []
    for run in runs:
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times)) if times else 0.0
