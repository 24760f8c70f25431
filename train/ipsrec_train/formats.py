"""Which input format is read by what."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from ipsrec_onnx.errors import DataError
from ipsrec_train.format_amazon import read_amazon
from ipsrec_train.format_generic import read_generic
from ipsrec_train.format_recbole import read_recbole
from ipsrec_train.format_tmall import Action, read_tmall
from ipsrec_train.format_twitch import read_twitch
from ipsrec_train.format_wechat import read_wechat
from ipsrec_train.interaction_files import Columns
from ipsrec_train.interactions import Interactions
from ipsrec_train.item_providers import OnProviderConflict

InputFormat = Literal["generic", "tmall", "twitch", "wechat", "recbole", "amazon"]

# What the columns are called unless the caller says otherwise; the other formats have fixed names.
DEFAULT_COLUMNS = {"generic": Columns(), "recbole": Columns(provider="seller_id")}


def read_interactions(
    source: Path,
    folder: Path,
    *,
    input_format: InputFormat,
    columns: dict[str, str],
    action: Action | None,
    on_conflict: OnProviderConflict,
) -> Interactions:
    """Read an input of any format.

    Args:
        source: file or folder.
        folder: for files that are needed until the end.
        input_format: how the input is laid out.
        columns: names of columns that differ from the format's, by attribute of Columns.
        action: which actions of a Tmall log count.
        on_conflict: what to do with an item that has several providers in a second file of the input.

    Raises:
        DataError: an option that the format does not have, or an input that is not as described.
    """
    if input_format not in get_args(InputFormat):
        raise DataError(f"format {input_format!r}, expected one of {', '.join(get_args(InputFormat))}")
    if columns and input_format not in DEFAULT_COLUMNS:
        raise DataError(
            f"--{next(iter(columns))}-column is for --format {' and '.join(DEFAULT_COLUMNS)}, the columns of "
            f"{input_format} are known; leave it out"
        )
    if action is not None and input_format != "tmall":
        raise DataError(f"--action is for --format tmall, {input_format} has no actions; leave it out")
    named = Columns(**{**vars(DEFAULT_COLUMNS.get(input_format, Columns())), **columns})
    match input_format:
        case "generic":
            return read_generic(source, named)
        case "tmall":
            return read_tmall(source, folder, action=action or "buy")
        case "twitch":
            return read_twitch(source, folder)
        case "wechat":
            return read_wechat(source, folder, on_conflict=on_conflict)
        case "recbole":
            return read_recbole(source, folder, columns=named, on_conflict=on_conflict)
        case "amazon":
            return read_amazon(source, folder, on_conflict=on_conflict)
