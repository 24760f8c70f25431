"""Compares what a written model file holds beside its graph with the run that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from ipsrec_export.comparison import history_terms, same_bits
from ipsrec_onnx.catalog import Catalog, catalog_to_table
from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.model_file import ModelFile
from ipsrec_train.model import Model

# Of the length of a row, that rounding to float16 or int8 moves it: some ten times what was seen. Rows that belong to
# others, or whose columns do, are further off than their length.
_FARTHEST: Final = 0.1


def refuse_other_contents(
    written: ModelFile, model: Model, catalog: Catalog, *, items: npt.NDArray[np.float32] | None = None
) -> None:
    """Check that scoring reads back what training learned, to the last bit, or as storing was to round it.

    Args:
        written: the file, opened as scoring opens it.
        model: of the run, on the CPU.
        catalog: of the run.
        items: (num_items + 1, D) float32, what storing was to make of the item table; None where it stays as it is.

    Raises:
        ModelFileError: the item table, the history terms or the catalog of the file are others.
    """
    others = list(_differences(written, model, catalog, items))
    if others:
        raise ModelFileError(
            f"export: {', '.join(others)} in the file differ from those of the run, so no model file is written; "
            "report this model's settings as a defect"
        )


def _differences(
    written: ModelFile, model: Model, catalog: Catalog, items: npt.NDArray[np.float32] | None
) -> Iterator[str]:
    learned = model.item_embeddings().detach().numpy()
    if not same_bits(written.item_embeddings, learned if items is None else items) or not _near(items, learned):
        yield "item_embeddings"
    found, expected = written.history_terms, history_terms(model)
    if found is None or expected is None:
        if found is not expected:
            yield "history terms"
    elif not all(same_bits(*weights) for weights in zip(found, expected, strict=True)):
        yield "history terms"
    tables = zip(catalog_to_table(written.catalog), catalog_to_table(catalog), strict=True)
    if not all(table.equals(other) for table, other in tables):
        yield "catalog"


def _near(items: npt.NDArray[np.float32] | None, learned: npt.NDArray[np.float32]) -> bool:
    """Is each row near what was learned, however it was rounded?"""
    if items is None:
        return True
    lengths = np.linalg.norm(learned.astype(np.float64), axis=1)
    return items.shape == learned.shape and bool(
        (np.linalg.norm(items.astype(np.float64) - learned, axis=1) <= _FARTHEST * lengths).all()
    )
