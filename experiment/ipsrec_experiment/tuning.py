"""Settings chosen by validation: the same number of trials for every row, one after another, kept in a journal.

Optuna says what to try next: the whole grid where it has no more points than there are trials, else TPE. Each choice
is seeded by its number alone, so that an interrupted search goes on as if it had not been. A trial is a training
with the first seed; its worth is the best validation metric that training saw. Test interactions are never read here.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipsrec_experiment.plan import Row
from ipsrec_onnx.atomic import atomic_file
from ipsrec_onnx.errors import DataError


@dataclass(frozen=True)
class Trial:
    """What to try.

    Attributes:
        number: of the trial in its row, from 0.
        changes: name of a setting -> value.
    """

    number: int
    changes: dict[str, Any]


def read_choice(folder: Path, row: Row) -> dict[str, Any] | None:
    """What tuning found for a row: `chosen` changes and all `trials`; None where it is not done."""
    path = _choice_file(folder, row)
    if not path.is_file():
        return None
    try:
        choice = json.loads(path.read_text(encoding="utf-8"))
        return {"chosen": dict(choice["chosen"]), "trials": list(choice["trials"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is broken ({error!r}); remove it, and tuning goes on from its journal") from error


class Search:
    """The search of one row; its state is the journal."""

    def __init__(self, folder: Path, row: Row, *, trials: int) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder.mkdir(exist_ok=True)
        backend = JournalFileBackend(str(folder / f"{row.slug}.journal"))
        self._folder, self._row, self._trials = folder, row, trials
        self._study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=row.slug,
            direction="maximize",
            load_if_exists=True,
        )
        if self._budget == self._grid_size:
            for place in itertools.product(*(range(len(values)) for values in row.search.values())):
                self._study.enqueue_trial(dict(zip(row.search, place, strict=True)), skip_if_exists=True)

    @property
    def left(self) -> int:
        """Trials that are still to be done."""
        return self._budget - sum(trial.state.is_finished() for trial in self._study.get_trials(deepcopy=False))

    def next(self) -> Trial | None:
        """The trial to do now: the one that was interrupted, or a new one; None after the last."""
        import optuna

        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == optuna.trial.TrialState.RUNNING and set(trial.params) == set(self._row.search):
                return Trial(trial.number, self._values(trial.params))
        if self.left <= 0:
            return None
        number = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = optuna.samplers.TPESampler(seed=number)  # has no say where the grid is waiting
        asked = self._study.ask(
            {
                name: optuna.distributions.CategoricalDistribution(range(len(values)))
                for name, values in self._row.search.items()
            }
        )
        return Trial(asked.number, self._values(asked.params))

    def tell(self, trial: Trial, value: float | None) -> None:
        """Say what a trial was worth; None for settings that cannot be trained. After the last, write the choice.

        Raises:
            DataError: no trial could be trained.
        """
        import optuna

        state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
        self._study.tell(trial.number, value, state=state)
        if self.left <= 0:
            self.write_choice()

    def write_choice(self) -> None:
        """Write the settings of the best trial, the first of equals, and what every trial gave.

        Raises:
            DataError: no trial could be trained.
        """
        trials: list[dict[str, Any]] = [
            {"number": trial.number, "changes": self._values(trial.params), "value": trial.value}
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state.is_finished()
        ]
        worth = [trial for trial in trials if trial["value"] is not None]
        if not worth:
            raise DataError(f"row {self._row.name!r}: none of its {len(trials)} trials could be trained; see its logs")
        best = max(worth, key=lambda trial: (trial["value"], -trial["number"]))
        with atomic_file(_choice_file(self._folder, self._row), overwrite=True) as temporary:
            text = json.dumps({"chosen": best["changes"], "trials": trials}, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")

    @property
    def _budget(self) -> int:
        """A grid is not tried twice."""
        return min(self._trials, self._grid_size)

    @property
    def _grid_size(self) -> int:
        return math.prod(len(values) for values in self._row.search.values())

    def _values(self, params: dict[str, Any]) -> dict[str, Any]:
        """Optuna holds places in the lists of values: a value may be of any type."""
        return {name: values[params[name]] for name, values in self._row.search.items()}


def _choice_file(folder: Path, row: Row) -> Path:
    return folder / f"{row.slug}.json"
