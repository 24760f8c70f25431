"""The plan of an experiment: which rows its tables have, and what is trained for each.

reference = "SASRec"          # a row that every other one is compared with; may be left out

[training]                    # for all rows: names of TrainingSettings
epochs = 100

[settings]                    # for all rows: names of the models' settings
max_len = 50

[search]                      # what --tune tries, unless a row says otherwise
dropout = [0.2, 0.5]

[[rows]]
name = "SASRec"
table = ["paper", "ablation"] # one or several of paper, ablation, beyond
model = "sasrec"
baseline = true
variant = "paper"             # the rest may be left out
settings = { dropout = 0.5 }
training = { learning_rate = 0.0005 }
search = { dropout = [0.2, 0.5] }
against = ["GRU4Rec"]         # rows that this one is compared with besides
"""

from __future__ import annotations

import importlib.resources
import re
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ipsrec_onnx.errors import DataError
from ipsrec_train.config import Config, read_config

TABLES = ("paper", "ablation", "beyond")
COUNTING = "Counting"  # the name of the floor, which is not trained; no row may take it
DEFAULT_SEARCH: dict[str, list[Any]] = {"dropout": [0.2, 0.5], "learning_rate": [5e-4, 1e-3]}

_PLAN_NAMES = {"reference": str, "training": dict, "settings": dict, "search": dict, "rows": list}
_ROW_NAMES = {
    "name": str,
    "table": (str, list),
    "model": str,
    "variant": str,
    "baseline": bool,
    "settings": dict,
    "training": dict,
    "search": dict,
    "against": list,
}


@dataclass(frozen=True)
class Row:
    """One model with its settings.

    Attributes:
        name: as the tables show it.
        tables: those that it stands in.
        model: name of the model, as `ipsrec train --model` has it.
        variant: of the model; None takes the model's own default.
        changes: settings of the model and of training that differ from the defaults; never the seed.
        search: name of a setting -> values that tuning tries.
        baseline: one of the models to beat.
        against: names of rows to compare with besides the best baseline and the reference.
    """

    name: str
    tables: tuple[str, ...]
    model: str
    variant: str | None
    changes: dict[str, Any]
    search: dict[str, list[Any]]
    baseline: bool
    against: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The name as part of a file's name."""
        return slug_of(self.name)

    def config(self, **changes: Any) -> Config:
        """What is trained, with some more changes.

        Raises:
            DataError: a name or value makes no sense; the message names the row.
        """
        try:
            return read_config(None, model=self.model, variant=self.variant, changes={**self.changes, **changes})
        except DataError as error:
            raise DataError(f"row {self.name!r}: {error}") from error


@dataclass(frozen=True)
class Plan:
    """Rows, in the order of the tables.

    Attributes:
        rows: at least one.
        reference: name of the row that every other one is compared with; None for none.
    """

    rows: tuple[Row, ...]
    reference: str | None

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {"reference": self.reference, "rows": [_listed(asdict(row)) for row in self.rows]}

    def row(self, name: str) -> Row:
        """The row of a name."""
        return next(row for row in self.rows if row.name == name)


def slug_of(name: str) -> str:
    """A name as part of a file's name: small letters, digits, hyphens."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def read_plan(path: Path | None) -> Plan:
    """Read a plan, and check that each of its rows can be trained.

    Args:
        path: TOML file; None takes the paper's tables, which come with the package.

    Raises:
        DataError: the file is no plan; the message says where, and what was expected.
    """
    if path is None:
        text = importlib.resources.files("ipsrec_experiment").joinpath("paper.toml").read_text(encoding="utf-8")
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"plan {path} cannot be read: {error}; give a TOML file with [[rows]]") from error
    where = f"plan {path or 'paper.toml'}"
    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{where} is no TOML: {error}; mend that line") from error
    try:
        return _plan_of(read)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def pick_rows(plan: Plan, names: Sequence[str]) -> tuple[Row, ...]:
    """Pick rows by their names or by those of their models, in the plan's order.

    Args:
        plan: where from.
        names: "all", or names in any order.

    Raises:
        DataError: a name is of no row and no model.
    """
    if not names or "all" in names:
        return plan.rows
    wanted = {name.lower() for name in names}
    picked = tuple(row for row in plan.rows if wanted & {row.name.lower(), row.model.lower()})
    unknown = sorted(wanted - {name.lower() for row in picked for name in (row.name, row.model)})
    if unknown:
        known = ", ".join(row.name for row in plan.rows)
        raise DataError(f"--models: no row and no model is called {unknown[0]!r}; the plan has {known}")
    return picked


def _plan_of(read: dict[str, Any]) -> Plan:
    _refuse_others(read, _PLAN_NAMES, where="the plan")
    if not read.get("rows"):
        raise DataError("found no [[rows]], expected one or more")
    shared = {**read.get("settings", {}), **read.get("training", {})}
    rows = tuple(
        _row_of(row, number, shared=shared, search=read.get("search", DEFAULT_SEARCH))
        for number, row in enumerate(read["rows"], start=1)
    )
    names = [row.name for row in rows]
    files = [row.slug for row in rows]
    for number, row in enumerate(rows):
        if not row.slug or row.slug == slug_of(COUNTING) or row.slug in files[:number]:
            raise DataError(f"row {row.name!r}: expected a name of its own, with letters or digits, not {COUNTING!r}")
        for other in row.against:
            if other not in (*names, COUNTING) or other == row.name:
                raise DataError(f"row {row.name!r}: against {other!r}, expected another row or {COUNTING!r}")
    reference = read.get("reference")
    if reference is not None and reference not in names:
        raise DataError(f"reference is {reference!r}, expected the name of a row")
    return Plan(rows=rows, reference=reference)


def _row_of(row: Any, number: int, *, shared: dict[str, Any], search: dict[str, Any]) -> Row:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not row["name"].strip():
        raise DataError(f'row {number} has no name, expected name = "..."')
    where = f"row {row['name']!r}"
    if not row["name"].strip().isprintable():
        raise DataError(f"{where}: found a line break or the like in its name, expected words of one line")
    _refuse_others(row, _ROW_NAMES, where=where)
    if "model" not in row:
        raise DataError(f'{where} has no model, expected model = "sasrec" or another')
    tables = row.get("table", "beyond")
    tables = (tables,) if isinstance(tables, str) else tuple(tables)
    if not tables or not set(tables) <= set(TABLES):
        raise DataError(f"{where}: table is {list(tables)}, expected one or several of {', '.join(TABLES)}")
    if not all(isinstance(name, str) for name in row.get("against", [])):
        raise DataError(f"{where}: against is {row['against']!r}, expected names of rows")
    made = Row(
        name=row["name"].strip(),
        tables=tables,
        model=row["model"],
        variant=row.get("variant"),
        changes={**shared, **row.get("settings", {}), **row.get("training", {})},
        search=row.get("search", search),
        baseline=row.get("baseline", False),
        against=tuple(row.get("against", ())),
    )
    _refuse_untrainable(made)
    return made


def _refuse_untrainable(row: Row) -> None:
    """Have the model read its settings now, and not after hours of other rows."""
    if "seed" in {*row.changes, *row.search}:
        raise DataError(f"row {row.name!r}: it sets the seed, which --seeds does; leave it out")
    row.config()
    for name, values in row.search.items():
        if not isinstance(values, list) or not values or len({repr(value) for value in values}) < len(values):
            raise DataError(f"row {row.name!r}: search.{name} is {values!r}, expected a list of different values")
        for value in values:
            row.config(**{name: value})


def _refuse_others(read: dict[str, Any], known: dict[str, Any], *, where: str) -> None:
    for name, value in read.items():
        if name not in known:
            raise DataError(f"{where}: unknown name {name!r}, expected one of {', '.join(known)}")
        if not isinstance(value, known[name]):
            kinds = known[name] if isinstance(known[name], tuple) else (known[name],)
            expected = " or ".join({"dict": "table", "str": "text"}.get(kind.__name__, kind.__name__) for kind in kinds)
            raise DataError(f"{where}: {name} is {value!r}, expected a {expected}")


def _listed(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {name: _listed(part) for name, part in value.items()}
    return [_listed(part) for part in value] if isinstance(value, list | tuple) else value
