"""The paper's printed figures for its three data sets: facts, kept in paper_figures.json with their source."""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Sequence
from typing import Any

from ipsrec_onnx.errors import DataError

DATA_SETS = ("tmall", "twitch", "wechat")


def paper_figures(data_set: str | None, names: Sequence[str]) -> dict[str, Any] | None:
    """What the paper prints for some rows.

    Args:
        data_set: one of DATA_SETS; None for none.
        names: of rows; "IPSRec-S paper w/o CL" and "IPSRec-S released w/o CL" both stand for its "IPSRec-S w/o CL".

    Returns:
        `data_set`, `source` and `rows`: name of a row -> metric -> figure; a figure that the paper lacks is left out.

    Raises:
        DataError: the paper has no such data set.
    """
    if data_set is None:
        return None
    if data_set not in DATA_SETS:
        raise DataError(f"--paper-figures is {data_set!r}, expected one of {', '.join(DATA_SETS)}")
    text = importlib.resources.files("ipsrec_experiment").joinpath("paper_figures.json").read_text(encoding="utf-8")
    read = json.loads(text)
    rows = {}
    for name in names:
        printed = read[data_set].get(re.sub(" (paper|released)", "", name))
        if printed is not None:
            pairs = zip(read["metrics"], printed, strict=True)
            rows[name] = {metric: figure for metric, figure in pairs if figure is not None}
    return {"data_set": data_set, "source": read["source"], "rows": rows}
