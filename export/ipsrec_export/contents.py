"""Compares what a written model file holds beside its graph with the run that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from ipsrec_export.comparison import history_terms, same_bits
from ipsrec_onnx.catalog import Catalog, catalog_to_table
from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.model_file import ModelFile
from ipsrec_train.model import Model

Stored = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def refuse_other_contents(written: ModelFile, model: Model, catalog: Catalog, *, stored: Stored | None = None) -> None:
    """Check that scoring reads back what training learned, to the last bit.

    Args:
        written: the file, opened as scoring opens it.
        model: of the run, on the CPU.
        catalog: of the run.
        stored: what storing makes of the item table; None where it stays as it is.

    Raises:
        ModelFileError: the item table, the history terms or the catalog of the file are others.
    """
    others = list(_differences(written, model, catalog, stored))
    if others:
        raise ModelFileError(
            f"export: {', '.join(others)} in the file differ from those of the run, so no model file is written; "
            "report this model's settings as a defect"
        )


def _differences(written: ModelFile, model: Model, catalog: Catalog, stored: Stored | None) -> Iterator[str]:
    items = model.item_embeddings().detach().numpy()
    if not same_bits(written.item_embeddings, items if stored is None else stored(items)):
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
