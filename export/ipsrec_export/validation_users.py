"""The validation users whose lists decide about a file: their histories, as each kind of file takes them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime
import pyarrow as pa

from ipsrec_export.comparison import VALIDATION_BATCH, VALIDATION_USERS
from ipsrec_export.graph import INPUTS, ITEM_EMBEDDINGS, USER_EMBEDDING
from ipsrec_kernels.history_items import History
from ipsrec_kernels.pack import pack_histories
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.session import run_session
from ipsrec_train.batches import Histories

# One target of 2,048 that falls from rank 1 to 2 can be more than a bound of .1%. Catalogs of a million items get
# fewer users: a candidate should take a minute, not an hour.
_MOST_USERS: Final = 20_000
_MOST_SCORES: Final = 2**30


class ValidationUsers:
    """Validation users with a history; of many, the first ones.

    Args:
        validation: histories and targets of all.
        catalog: that they are numbered by.
        max_len: most recent items that an encoder sees.

    Attributes:
        targets: (U,) int32.
    """

    def __init__(self, validation: Histories, catalog: Catalog, *, max_len: int) -> None:
        most = int(np.clip(_MOST_SCORES // (catalog.num_items + 1), VALIDATION_USERS, _MOST_USERS))
        self._catalog, self._max_len, self._validation = catalog, max_len, validation
        self._rows = np.flatnonzero(np.diff(validation.offsets) > 0)[:most]
        self.targets = validation.targets[self._rows]
        users = len(self._rows)
        items, lengths = pack_histories(
            validation.values, validation.offsets, self._rows, bucket_len=max_len, batch_size=max(1, users)
        )
        self._items, self._lengths = items[:users], lengths[:users]
        self._providers = catalog.item_provider[self._items]

    def raw_histories(self) -> list[list[Any]]:
        """Whole histories of item ids."""
        offsets, ids = self._validation.offsets, self._catalog.item_ids
        values = (self._validation.values[offsets[row] : offsets[row + 1]] for row in self._rows)
        return [ids.take(pa.array(items - 1)).to_pylist() for items in values]

    def history(self, user: int | None = None) -> History:
        """What the history terms see of all users, or of one."""
        chosen = slice(None) if user is None else slice(user, user + 1)
        lengths = self._lengths[chosen]
        real = np.arange(self._max_len)[None, :] < lengths[:, None]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return History(items=self._items[chosen][real], providers=self._providers[chosen][real], offsets=offsets)

    def encode(self, session: onnxruntime.InferenceSession, users: range | None = None) -> npt.NDArray[np.float32]:
        """(U, D) embeddings of all users, or of some in a row."""
        first, last = (0, len(self.targets)) if users is None else (users.start, users.stop)
        parts = [
            self._run(session, USER_EMBEDDING, slice(at, min(last, at + VALIDATION_BATCH)))
            for at in range(first, last, VALIDATION_BATCH)
        ]
        (output,) = (node for node in session.get_outputs() if node.name == USER_EMBEDDING)
        return np.concatenate(parts) if parts else np.zeros((0, output.shape[1]), np.float32)

    def items(self, session: onnxruntime.InferenceSession) -> npt.NDArray[np.float32]:
        """(num_items + 1, D) item embeddings that a server's file gives."""
        one = {name: np.ones((1,) if name == INPUTS[2] else (1, 1), np.int32) for name in INPUTS}
        return np.ascontiguousarray(run_session(session, [ITEM_EMBEDDINGS], one)[0])

    def _run(self, session: onnxruntime.InferenceSession, output: str, users: slice) -> npt.NDArray[np.float32]:
        # Each batch is as wide as its longest history: what lies beyond changes no bit.
        width = int(self._lengths[users].max())
        batch = (self._items[users, :width], self._providers[users, :width], self._lengths[users])
        return np.asarray(run_session(session, [output], dict(zip(INPUTS, batch, strict=True)))[0])
