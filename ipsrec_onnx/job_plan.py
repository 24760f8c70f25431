"""What a job will take, as `ipsrec plan` says before it; how wrong that was, as `ipsrec score --plan` says after."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ipsrec_onnx.cards import CardOptions
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.job_description import first_difference
from ipsrec_onnx.probe import Probe

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Prediction:
    """What a job will take in one way of running it.

    Attributes:
        workers: of a cluster; None for one process.
        start_s: seconds until the first user is scored: opening the model, laying out the items, loading kernels.
        loop_s: seconds to score and write all users.
        finish_s: seconds from then to the manifest.
        users_per_s: speed in between.
        memory_bytes: that a process has at most.
        output_bytes: of the candidates.
    """

    workers: int | None
    start_s: float
    loop_s: float
    finish_s: float
    users_per_s: float
    memory_bytes: int
    output_bytes: int

    @property
    def wall_s(self) -> float:
        """Seconds from start to end."""
        return self.start_s + self.loop_s + self.finish_s

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "wall_s": self.wall_s}


@dataclass(frozen=True)
class JobPlan:
    """What a job will take.

    Attributes:
        job: what is planned, as planned_job has it.
        rows: users of the job.
        threads: that score.
        probe: what was measured; None for a job without users.
        here: of one process on this machine.
        cluster: of so many such machines; None where nobody asked.
        compiled: did the plan compile kernels? The compiler's memory is in its figure, and not in that of later jobs.
    """

    job: dict[str, Any]
    rows: int
    threads: int
    probe: Probe | None
    here: Prediction
    cluster: Prediction | None
    compiled: bool

    def to_json(self) -> dict[str, Any]:
        """JSON values, as read_plan takes them."""
        return {
            "format_version": FORMAT_VERSION,
            "rows": self.rows,
            "threads": self.threads,
            "compiled": self.compiled,
            "here": self.here.to_json(),
            "cluster": None if self.cluster is None else self.cluster.to_json(),
            "probe": None if self.probe is None else {**asdict(self.probe), "users_per_s": self.probe.users_per_s},
            "job": self.job,
        }


@dataclass(frozen=True)
class Deviation:
    """One figure of a plan.

    Attributes:
        planned: what the plan said.
        taken: what it was.
        percent: of what it was, by which the plan was too high; negative where it was too low.
    """

    planned: float
    taken: float
    percent: float


@dataclass(frozen=True)
class PlanCheck:
    """How wrong a plan was; None where a figure cannot be compared: nothing says what memory workers elsewhere had."""

    wall_s: Deviation
    memory_bytes: Deviation | None
    output_bytes: Deviation


def planned_job(
    description: Mapping[str, Any],
    *,
    threads: int | None,
    max_memory: int | None,
    cards: CardOptions,
    catalog_shards: int,
    index_cache: str | Path | None,
) -> dict[str, Any]:
    """Say what is planned: the job, as describe_job has it, and what its speed and its memory depend on beside it."""
    return {
        **description,
        "threads": threads,
        "max_memory": max_memory,
        "gpus": list(cards.gpus),
        "search": cards.search,
        "catalog_shards": catalog_shards,
        "index_cache": index_cache is not None,
    }


def read_plan(path: str | Path) -> dict[str, Any]:
    """Read what JobPlan.to_json gave.

    Raises:
        DataError: it is no plan.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if found["format_version"] != FORMAT_VERSION or not isinstance(found["job"], dict):
            raise ValueError(f"format version {found['format_version']!r}, expected {FORMAT_VERSION}")
        for prediction in [found["here"], *([] if found["cluster"] is None else [found["cluster"]])]:
            for name in ("wall_s", "memory_bytes", "output_bytes"):
                float(prediction[name])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"plan {path}: cannot be read ({error}); make it with `ipsrec plan --output`") from error
    return dict(found)


def prediction_for(
    plan: dict[str, Any], job: dict[str, Any], *, workers: int | None, path: str | Path
) -> dict[str, Any]:
    """The prediction of a plan that is of this very job.

    Args:
        plan: as read_plan gave it.
        job: as planned_job gives it.
        workers: of a cluster that is to do it; None for one process.
        path: of the plan, for messages.

    Raises:
        DataError: the plan is of another job, or of another number of workers.
    """
    if plan["job"] != job:
        raise DataError(f"plan {path}: it is of another job: {first_difference(plan['job'], job)}; plan this one")
    if workers is None:
        return dict(plan["here"])
    planned = None if plan["cluster"] is None else plan["cluster"]["workers"]
    if planned != workers:
        raise DataError(
            f"plan {path}: it is of {planned or 'no'} workers, and {workers} are to do the job; make it with "
            f"--workers {workers}"
        )
    return dict(plan["cluster"])


def check_plan(prediction: dict[str, Any], *, wall_s: float, memory_bytes: int | None, output_bytes: int) -> PlanCheck:
    """Compare what was predicted with what was taken."""

    def deviation(name: str, taken: float) -> Deviation:
        planned = float(prediction[name])
        return Deviation(planned, taken, 100.0 * (planned - taken) / taken if taken else 0.0)

    return PlanCheck(
        wall_s=deviation("wall_s", wall_s),
        memory_bytes=None if memory_bytes is None else deviation("memory_bytes", memory_bytes),
        output_bytes=deviation("output_bytes", output_bytes),
    )
