"""Settings from a TOML file, such as those in configs/, with changes on top.

model = "ipsrec-c"
variant = "recommended"    # of an IPSRec alone

[settings]       # names of the model's settings
dropout = 0.5

[training]       # names of TrainingSettings
learning_rate = 0.001
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipsrec_onnx.errors import DataError
from ipsrec_train.settings import ModelSettings, refuse_other_types, settings_for, settings_type
from ipsrec_train.training_settings import TrainingSettings


@dataclass(frozen=True)
class Config:
    """Everything that says what is trained, and how."""

    model: str
    settings: ModelSettings
    training: TrainingSettings


def read_config(path: Path | None, *, model: str | None, variant: str | None, changes: dict[str, Any]) -> Config:
    """Read settings and change some of them.

    Args:
        path: TOML file; None starts from the defaults.
        model: wins over the file's.
        variant: wins over the file's.
        changes: names of the model's settings or of TrainingSettings; None values are left out.

    Raises:
        DataError: the file is no TOML, or a name or value in it makes no sense.
    """
    try:
        read = {} if path is None else tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as TOML: {error}") from error
    unknown = sorted(set(read) - {"model", "variant", "settings", "training"})
    if unknown:
        raise DataError(f"{path}: unknown name {unknown[0]!r}, expected model, variant, [settings] and [training]")
    for part in ("settings", "training"):
        if not isinstance(read.get(part, {}), dict):
            raise DataError(f"{path}: {part} is {read[part]!r}, expected a table [{part}] of names and values")
    name = model or read.get("model", "ipsrec-c")
    if not isinstance(name, str):
        raise DataError(f"{path}: model is {name!r}, expected a name such as ipsrec-c")
    chosen = variant or read.get("variant")
    if not isinstance(chosen, str | None):
        raise DataError(f"{path}: variant is {chosen!r}, expected a name such as recommended")
    of_training = {field.name for field in dataclasses.fields(TrainingSettings)}
    training = {**read.get("training", {}), **_given(changes, of_training)}
    wrong = sorted(set(training) - of_training)
    if wrong:
        raise DataError(f"{path}: unknown name {wrong[0]!r} in [training], expected {', '.join(sorted(of_training))}")
    settings = {**read.get("settings", {}), **_given(changes, set(changes) - of_training)}
    for holder, values in ((settings_type(name), settings), (TrainingSettings, training)):
        refuse_other_types(holder, values, where=path or "settings")
    return Config(
        model=name,
        settings=settings_for(name, chosen, settings),
        training=TrainingSettings(**training),
    )


def _given(changes: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if name in names and value is not None}
