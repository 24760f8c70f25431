"""Compares what a written model file holds beside its graph with the run that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from ipsrec_export.comparison import history_terms, same_bits
from ipsrec_export.weight_storage import LARGEST_INT8
from ipsrec_onnx.catalog import Catalog, catalog_to_table
from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.model_file import ModelFile
from ipsrec_train.model import Model

_MOST_STEPS: Final = 0.5 + LARGEST_INT8 * 2.0**-11  # that rounding moves an element
_SMALLEST: Final = 1e-30


def refuse_other_contents(written: ModelFile, model: Model, catalog: Catalog) -> None:
    """Check that scoring reads back what training learned: to the last bit, or of an int8 table to half a step.

    Args:
        written: the file, opened as scoring opens it.
        model: of the run, on the CPU.
        catalog: of the run.

    Raises:
        ModelFileError: the item table, the history terms or the catalog of the file are others.
    """
    others = list(_differences(written, model, catalog))
    if others:
        raise ModelFileError(
            f"export: {', '.join(others)} in the file differ from those of the run, so no model file is written; "
            "report this model's settings as a defect"
        )


def _differences(written: ModelFile, model: Model, catalog: Catalog) -> Iterator[str]:
    if not _same_table(written, model.item_embeddings().detach().numpy()):
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


def _same_table(written: ModelFile, expected: npt.NDArray[np.float32]) -> bool:
    found = written.item_embeddings
    if written.precision != "int8":
        return same_bits(found, expected)
    steps = np.abs(expected).max(1, keepdims=True) / LARGEST_INT8
    # Scales are float16, so that a step may be 2^-11 longer, of 127 of them.
    return found.shape == expected.shape and bool((np.abs(found - expected) <= _MOST_STEPS * steps + _SMALLEST).all())
