"""Runs the parts of a job on a Ray cluster: Ray Data places them, sends them again where a worker dies, and ends it.

Nothing of that is ours. The driver gives Ray Data the list of parts, in batches; actors hold a PartWorker each, which
writes the parts itself and gives back an account of each; so the driver holds none of the data.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ipsrec_onnx.broken_work import describe_error
from ipsrec_onnx.cores import usable_cores
from ipsrec_onnx.engine_options import RayOptions
from ipsrec_onnx.errors import EngineError, IpsrecError
from ipsrec_onnx.job_description import machine_kind
from ipsrec_onnx.part_worker import PartDone, PartsJob, PartWorker
from ipsrec_onnx.session import Device
from ipsrec_onnx.user_parts import UserPart, cut_into_batches

# A batch that has killed its worker so often would kill the next one, too.
_MOST_DEATHS: Final = 3
_CONNECT_S: Final = 10.0
_OBJECT_STORE_BYTES: Final = 256 << 20  # of a Ray that is started here: parts' names go through it, and accounts
_QUIET: Final = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # what goes wrong is raised as well
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a thread of Ray Data that outlives a cluster starts another one, and ends us
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class RayCluster:
    """A cluster that this process has joined; made by connect.

    Attributes:
        workers: sessions side by side.
        threads: of each.
        gpus: of each; none where the CPU scores.
        share: of a machine's memory that is a worker's.
        machine: the kind of machine that the workers run on, as machine_kind gives it.
    """

    workers: int
    threads: int
    gpus: tuple[int, ...]
    share: float
    machine: dict[str, Any]

    def score(self, job: PartsJob, parts: Sequence[UserPart]) -> Iterator[PartDone]:
        """Have workers score parts, or look through those that are done.

        Args:
            job: what is to be done.
            parts: one or more.

        Yields:
            The account of each part when it is done, in any order.

        Raises:
            IpsrecError: the first one, in the order of the parts, that a worker raised; all parts before it are done.
            EngineError: Ray lost a worker too often, or breaks down.
        """
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        batches = list(cut_into_batches(len(parts), self.workers))
        places = [{"start": batch.start, "stop": batch.stop} for batch in batches]
        listed = ray.data.from_items(places, override_num_blocks=len(batches))
        context = listed.context  # its own: the caller may have other data sets
        context.enable_progress_bars = context.print_on_execution_start = False
        context.target_max_block_size = 1  # each account is a block: else they are held back until the batch is done
        results = listed.map_batches(
            _Actor,
            fn_constructor_args=(job, list(parts)),
            batch_size=None,
            # One at a time: what waits behind a busy worker is not for an idle one.
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(batches)), max_tasks_in_flight_per_actor=1),
            num_cpus=self.threads,
            num_gpus=len(self.gpus),
            max_restarts=-1,
            max_task_retries=_MOST_DEATHS,
        )
        with _ray_errors(), contextlib.closing(_rows(results)) as rows:
            yield from _until_first_error((row["done"] for row in rows), parts)


def _rows(results: Any) -> Generator[dict[str, Any], None, None]:
    """The rows of a dataset, as they are done; to be closed where they are not all taken.

    Ray Data's own iterators fetch ahead in threads, which go on after an error: they touch the cluster when it has
    ended, and Ray then ends this process without a word.
    """
    import ray
    from ray.data.block import BlockAccessor

    bundles = results.iter_internal_ref_bundles()
    try:
        for bundle in bundles:
            for block in bundle.block_refs:
                yield from BlockAccessor.for_block(ray.get(block)).iter_rows(public_row_format=True)
    finally:
        del bundles  # stops what is still at work


@contextlib.contextmanager
def connect(
    options: RayOptions, *, device: Device, threads: int | None, note: Callable[[str], None]
) -> Iterator[RayCluster]:
    """Join a cluster, or start Ray on this machine, while the block runs; one that has been joined before stays joined.

    Args:
        options: which cluster.
        device: where users are encoded and items searched.
        threads: of a worker; None for its share of the CPUs.
        note: is told where the cluster lets the job wait.

    Raises:
        EngineError: there is no such cluster, or it has no room for the workers.
        ModuleNotFoundError: Ray is not installed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    gpus = options.gpus(device)
    joined = ray.is_initialized()
    if not joined:
        _start(ray, options, threads=threads)
    try:
        started = not joined and options.address is None
        yield _cluster(ray, options, threads=threads, gpus=gpus, started=started, note=note)
    finally:
        if not joined:
            ray.shutdown()


def _start(module: Any, options: RayOptions, *, threads: int | None) -> None:
    """Join the cluster of an address, or start Ray here with as many CPUs as the workers have threads."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    workers = options.workers or 1
    here = {
        "num_cpus": workers * (threads or max(1, usable_cores() // workers)),
        "object_store_memory": _OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    try:
        _refuse_unreachable(options.address)
        with _silent_stderr():
            module.init(address=options.address or "local", **quiet, **({} if options.address else here))
    except (OSError, RuntimeError, ValueError) as error:
        wanted = "Ray cannot be started here" if options.address is None else f"--address {options.address}"
        raise EngineError(
            f"{wanted}: {_in_one_line(error)}; start a cluster with `ray start --head`, or leave --address out"
        ) from error


def _refuse_unreachable(address: str | None) -> None:
    """Ask for a connection before Ray does, which tries for minutes and then ends the process.

    Raises:
        OSError, ValueError: nobody answers there.
    """
    if address is None or address == "auto":
        return
    if address.startswith("ray://"):
        raise ValueError("ray:// is for drivers outside of the cluster, found a driver of data: run it on the cluster")
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdigit()):
        raise ValueError("expected host:port, or auto")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


def _cluster(
    module: Any,
    options: RayOptions,
    *,
    threads: int | None,
    gpus: tuple[int, ...],
    started: bool,
    note: Callable[[str], None],
) -> RayCluster:
    """See what the cluster has, or the Ray that was started here, and cut it into workers.

    Raises:
        EngineError: it has too little.
    """
    found = [node["Resources"] for node in module.nodes() if node["Alive"]]
    nodes = [node for node in found if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= len(gpus)]
    if not nodes:
        wanted = f"{len(gpus)} GPUs" if gpus else "a CPU"
        raise EngineError(f"--engine ray: no machine of the cluster has {wanted}; add one, or leave --engine ray out")
    cpus = [int(node["CPU"]) for node in nodes]
    most = [int(node["GPU"]) // len(gpus) for node in nodes] if gpus else cpus  # workers of each, but for its CPUs
    workers = options.workers or (sum(most) if gpus else len(nodes))
    threads = threads or max(1, min(max(cpus), sum(cpus) // workers))
    room = sum(min(cpu // threads, slots) for cpu, slots in zip(cpus, most, strict=True))
    if room < workers:
        wanted = f"{threads} threads" + (f" and {len(gpus)} GPUs" if gpus else "")
        raise EngineError(
            f"--workers {workers}: the cluster has room for {room} workers of {wanted}; take fewer --workers or "
            "--threads, or a larger cluster"
        )
    # Of a Ray that was started here, workers are on this machine. A GPU is asked for all the same: by its number there.
    machine = machine_kind(None) if started and not gpus else _machine_of_a_worker(module, gpus, note=note)
    return RayCluster(workers, threads, gpus, 1.0 / -(-workers // len(nodes)), machine)


def _machine_of_a_worker(module: Any, gpus: tuple[int, ...], *, note: Callable[[str], None]) -> dict[str, Any]:
    """Have a worker say what machine it is on."""
    with _ray_errors():
        kind = module.remote(machine_kind).options(num_cpus=1, num_gpus=len(gpus))
        answer = kind.remote(gpus or None)
        if not module.wait([answer], timeout=_CONNECT_S)[0]:
            wanted = f"{len(gpus)} GPUs" if gpus else "CPU"
            note(f"the cluster is busy: waiting for a free {wanted}; `ray status` says who has them")
        return dict(module.get(answer))


@dataclass(frozen=True)
class _Failure:
    """What a worker says of each part that is not done when its batch breaks off.

    Attributes:
        part: which one. The first one of a batch failed; those before it are done.
        error: why.
    """

    part: UserPart
    error: IpsrecError


def _until_first_error(told: Iterable[PartDone | _Failure], parts: Sequence[UserPart]) -> Iterator[PartDone]:
    """Pass on what is done.

    Raises:
        IpsrecError: the first one in the order of the parts, once those before it are done.
    """
    places = {part: place for place, part in enumerate(parts)}
    done, errors, first = set[int](), dict[int, IpsrecError](), 0
    for outcome in told:
        if isinstance(outcome, _Failure):
            errors[places[outcome.part]] = outcome.error
        else:
            done.add(places[outcome.part])
            yield outcome
        while first in done:
            first += 1
        if first in errors:
            raise errors[first]


class _Actor:
    """What Ray Data starts; errors go back as values, so that the first one in the order of the parts is raised.

    A batch gives one row for each of its parts, in their order, whatever happens: where its worker dies, Ray has
    another one do it again, and drops as many rows as it has had already.
    """

    def __init__(self, job: PartsJob, parts: Sequence[UserPart]) -> None:
        self._worker = functools.cache(lambda: PartWorker(job))
        self._parts = parts

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> Iterator[dict[str, Any]]:
        parts = self._parts[int(batch["start"][0]) : int(batch["stop"][0])]
        told = 0
        error: IpsrecError
        try:
            for done in self._worker().score(parts):
                yield _row(done)
                told += 1
            return
        except IpsrecError as raised:
            error = raised
        except Exception as raised:
            first = parts[min(told, len(parts) - 1)]
            error = describe_error(raised, where=f"part of file {first.file} from row {first.first_row}")
        for part in parts[told:]:
            yield _row(_Failure(part, error))


def _row(outcome: PartDone | _Failure) -> dict[str, Any]:
    return {"done": np.array([outcome], object)}


@contextlib.contextmanager
def _ray_errors() -> Iterator[None]:
    """Say in one line what Ray raises.

    Raises:
        EngineError: it did.
    """
    import ray.data.exceptions
    import ray.exceptions

    try:
        yield
    except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
        raise EngineError(
            f"Ray gave up: {_in_one_line(error)}; what is done stays for --resume. A worker that is killed again and "
            "again has too little memory: give fewer --workers or --max-memory"
        ) from error


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what is written to stderr: Ray's own log speaks of its level there, and stderr may be JSON lines."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
