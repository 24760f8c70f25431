"""The run folder: what training leaves behind, and what it needs to go on after a kill.

    run.json             model, settings, data fingerprint, versions; what is known when training starts
    model.safetensors    weights of the best epoch so far
    metrics.jsonl        one line an epoch: loss, validation metrics, seconds
    resume.safetensors   weights, optimizer and moving average after the last whole epoch
    catalog.parquet, providers.parquet    of the dataset, so that a run can be exported without it

Every file is replaced whole. Weights are safetensors: reading them runs no code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ipsrec_onnx.atomic import atomic_file
from ipsrec_onnx.catalog import Catalog, catalog_from_tables, catalog_to_table
from ipsrec_onnx.dataset import Dataset
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.staging import origin
from ipsrec_onnx.uris import is_uri
from ipsrec_onnx.versions import package_version
from ipsrec_train.model import Model
from ipsrec_train.settings import ModelSettings, refuse_other_types, settings_for, settings_type
from ipsrec_train.training_settings import TrainingSettings

RUN_FILE, MODEL_FILE, METRICS_FILE, RESUME_FILE = "run.json", "model.safetensors", "metrics.jsonl", "resume.safetensors"
CATALOG_FILE, PROVIDERS_FILE = "catalog.parquet", "providers.parquet"


@dataclass(frozen=True)
class Run:
    """A run folder that was opened.

    Attributes:
        path: the folder.
        info: what run.json holds.
        metrics: one dict an epoch, as in metrics.jsonl; validation metrics only where the epoch was validated.
    """

    path: Path
    info: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any]:
        """The epoch whose weights model.safetensors holds."""
        metric = self.info["training"]["stop_metric"]
        return best_epoch(self.metrics, metric)


def best_epoch(metrics: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The epoch with the best validation metric, the first of equals; {"epoch": 0} before the first validation."""
    validated = [epoch for epoch in metrics if metric in epoch]
    return max(validated, key=lambda epoch: (epoch[metric], -epoch["epoch"]), default={"epoch": 0})


def open_run(path: str | Path) -> Run:
    """Open the folder that training wrote.

    Raises:
        DataError: the folder is no run, no epoch of it is complete, or a file of it is broken.
    """
    folder = Path(path)
    for name in (RUN_FILE, METRICS_FILE, MODEL_FILE):
        if not (folder / name).is_file():
            raise DataError(f"{folder} is no finished training run: it has no {name}; make one with `ipsrec train`")
    info = read_run_info(folder)
    try:
        lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / METRICS_FILE} cannot be read: {error}; train it again") from error
    metric = info["training"].get("stop_metric")
    whole = all(isinstance(line, dict) and "epoch" in line for line in metrics)
    if not whole or not any(metric in line for line in metrics):
        raise DataError(
            f"{folder / METRICS_FILE} needs a line with epoch for each epoch, and {metric} in one of them; "
            "train it again"
        )
    return Run(path=folder, info=info, metrics=metrics)


def read_run_info(folder: Path) -> dict[str, Any]:
    """Read run.json, also of a run that is not finished.

    Raises:
        DataError: it is missing or broken.
    """
    info = _read_json(folder / RUN_FILE)
    for name, part in (("model", str), ("settings", dict), ("training", dict), ("dataset", dict), ("versions", dict)):
        if not isinstance(info.get(name), part):
            raise DataError(f"{folder / RUN_FILE}: {name} is {info.get(name)!r}, so it is broken; train it again")
    if "max_len" not in info["settings"] or "fingerprint" not in info["dataset"]:
        raise DataError(f"{folder / RUN_FILE} lacks max_len or the dataset's fingerprint; train it again")
    return info


def load_catalog(folder: Path) -> Catalog:
    """Read the catalog that lies in a run folder."""
    try:
        return catalog_from_tables(pq.read_table(folder / CATALOG_FILE), pq.read_table(folder / PROVIDERS_FILE))
    except (pa.ArrowException, OSError, ValueError, DataError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder}: the run's catalog cannot be read: {first}; train it again") from error


def load_model(run: Run) -> tuple[Model, Catalog]:
    """Build the model of a run with the weights of its best epoch, in evaluation mode, and its catalog.

    Raises:
        DataError: the settings are not of this model, or the weights do not fit them.
    """
    catalog = load_catalog(run.path)
    name, variant = run.info["model"], run.info["settings"].get("variant")
    settings = {setting: value for setting, value in run.info["settings"].items() if setting != "variant"}
    try:
        known = settings_type(name)
    except DataError as error:
        raise DataError(f"{run.path / RUN_FILE}: {error}; train it again") from error
    refuse_other_types(known, settings, where=run.path / RUN_FILE)
    made_with = settings_for(name, variant, settings)
    _check_shapes(run.path / MODEL_FILE, name, made_with, catalog)
    model = Model(name, made_with, item_provider=catalog.item_provider, num_providers=catalog.num_providers)
    load_weights(model, run.path / MODEL_FILE)
    return model.eval(), catalog


def _check_shapes(path: Path, name: str, settings: ModelSettings, catalog: Catalog) -> None:
    """Compare what the settings ask for with what the file has, before memory is taken: a run may come from anybody.

    Raises:
        DataError: the file is broken, or its tensors have other names or shapes.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            found = {tensor: tuple(opened.get_slice(tensor).get_shape()) for tensor in opened.keys()}  # noqa: SIM118
        # Each layer, and each height of Caser's filters, has weights of its own.
        modules = max(getattr(settings, "num_layers", 1), min(getattr(settings, "window", 1), settings.max_len))
        if modules > max(1, len(found)):
            raise DataError(f"{path}: {len(found)} weights, too few for {modules} layers; train it again")
        with torch.device("meta"):  # shapes without memory
            model = Model(name, settings, item_provider=catalog.item_provider, num_providers=catalog.num_providers)
    except (SafetensorError, RuntimeError, OSError, OverflowError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: the weights cannot be read into this model: {first}; train it again") from error
    expected = {tensor: tuple(weight.shape) for tensor, weight in model.state_dict().items()}
    for tensor in sorted(expected.keys() | found.keys()):
        if found.get(tensor) != expected.get(tensor):
            raise DataError(
                f"{path}: the weights cannot be read into this model: {tensor} has shape {found.get(tensor)}, expected "
                f"{expected.get(tensor)}; train it again"
            )


def load_weights(model: Model, path: Path) -> None:
    """Read a safetensors file into a model.

    Raises:
        DataError: the file is broken or holds other tensors.
    """
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: the weights cannot be read into this model: {first}; train it again") from error


def run_info(
    model: str, settings: ModelSettings, training: TrainingSettings, dataset: Dataset, *, device: str
) -> dict[str, Any]:
    """What is known when training starts: the content of run.json."""
    return {
        "model": model,
        "settings": asdict(settings),
        "training": asdict(training),
        "dataset": {"path": _where(dataset.path), "fingerprint": dataset.fingerprint},
        # Sums are split among threads, so that their number belongs to what a repetition needs.
        "machine": {"device": device, "threads": torch.get_num_threads()},
        "versions": {"ipsrec-onnx": package_version("ipsrec-onnx"), "torch": torch.__version__},
    }


def _where(dataset: Path) -> str:
    """The whole path of a dataset; its URI, where it lies in a store."""
    path = origin(dataset)
    return path if is_uri(path) else str(dataset.resolve())


def can_resume(folder: Path, info: dict[str, Any]) -> bool:
    """Is there a run in the folder that can go on from a whole epoch?

    Raises:
        DataError: the run there is another one, or what resuming needs was removed from it.
    """
    if not (folder / RUN_FILE).is_file():
        return False
    before = read_run_info(folder)
    old, new = _fixed(before), _fixed(info)
    for name in new:
        if name not in old:
            raise DataError(
                f"{folder}: the run to resume was begun by a version without {name}, so it cannot go on; "
                "start again with --overwrite"
            )
        if old[name] != new[name]:
            raise DataError(
                f"{folder}: the run to resume has {name} {old[name]}, now it is {new[name]}; "
                "ask for the same, or start again with --overwrite"
            )
    if (folder / RESUME_FILE).is_file():
        return True
    if (folder / METRICS_FILE).is_file():
        raise DataError(f"{folder} has no {RESUME_FILE}, so the run cannot go on; start again with --overwrite")
    return False


def _fixed(info: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run must have in common with its beginning: all but how long it may train, and where."""
    free = {"patience"} if info["training"].get("schedule") == "linear" else {"patience", "epochs"}
    training = {name: value for name, value in info["training"].items() if name not in free}
    return {
        "model": info["model"],
        "dataset": info["dataset"]["fingerprint"],
        **info["settings"],
        **training,
    }


def start_run(folder: Path, info: dict[str, Any], catalog: Catalog) -> None:
    """Make a run folder and write what is known at the start; an old run in it is removed.

    Raises:
        DataError: something else than a run lies there.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"output {folder} is a file, expected the name of a folder; choose another name")
    if folder.is_dir() and not (folder / RUN_FILE).is_file() and any(folder.iterdir()):
        raise DataError(f"output {folder}: the folder there has no {RUN_FILE}, so it is no run; choose another name")
    folder.mkdir(exist_ok=True)
    for name in (MODEL_FILE, METRICS_FILE, RESUME_FILE):
        (folder / name).unlink(missing_ok=True)
    _write_info(folder, info)
    for name, table in zip((CATALOG_FILE, PROVIDERS_FILE), catalog_to_table(catalog), strict=True):
        with atomic_file(folder / name, overwrite=True) as temporary:
            pq.write_table(table, temporary, compression="zstd")


def _write_info(folder: Path, info: dict[str, Any]) -> None:
    with atomic_file(folder / RUN_FILE, overwrite=True) as temporary:
        temporary.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def save_model(folder: Path, model: Model) -> None:
    """Keep the weights as the best so far."""
    with atomic_file(folder / MODEL_FILE, overwrite=True) as temporary:
        save_file(_plain(model.state_dict()), temporary)


@dataclass(frozen=True)
class Progress:
    """How far training is: what resuming needs beside tensors.

    Attributes:
        epoch: whole epochs done.
        metrics: one dict an epoch.
    """

    epoch: int
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class Learning:
    """Everything that training changes. Random numbers are not among it: each epoch has a stream of its own.

    Attributes:
        model: the weights.
        optimizer: the moments.
        average: moving average of the weights; None where there is none.
    """

    model: Model
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None


def save_progress(folder: Path, learning: Learning, progress: Progress) -> None:
    """Write metrics.jsonl and everything that is needed to go on from here with the same result."""
    tensors = {f"model.{name}": tensor for name, tensor in learning.model.state_dict().items()}
    if learning.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in learning.average.state_dict().items()}
    for index, moments in learning.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    with atomic_file(folder / RESUME_FILE, overwrite=True) as temporary:
        save_file(_plain(tensors), temporary, metadata={"progress": json.dumps(asdict(progress))})
    _write_metrics(folder, progress)


def continue_run(folder: Path, info: dict[str, Any], progress: Progress) -> None:
    """Bring run.json up to what is asked for now, and metrics.jsonl up to the epoch that was resumed from.

    A kill between resume.safetensors and metrics.jsonl leaves the latter a line short.
    """
    _write_info(folder, info)
    _write_metrics(folder, progress)


def _write_metrics(folder: Path, progress: Progress) -> None:
    with atomic_file(folder / METRICS_FILE, overwrite=True) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in progress.metrics), encoding="utf-8")


def load_progress(folder: Path, learning: Learning) -> Progress:
    """Put everything that training changes where save_progress found it.

    Raises:
        DataError: the state is broken or belongs to another model.
    """
    path = folder / RESUME_FILE
    try:
        with safe_open(path, framework="pt") as opened:
            progress = Progress(**json.loads(opened.metadata()["progress"]))
        tensors = load_file(path)
        learning.model.load_state_dict(_under("model.", tensors))
        if learning.average is not None:
            learning.average.load_state_dict(_under("average.", tensors))
        learning.optimizer.load_state_dict({**learning.optimizer.state_dict(), "state": _moments(tensors)})
    except (SafetensorError, RuntimeError, OSError, KeyError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: training cannot go on from here: {first}; start again with --overwrite") from error
    return progress


def _moments(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimizer's state, parameter by parameter."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".")
            state.setdefault(int(index), {})[moment] = tensor
    return state


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Detached, contiguous, on the CPU, none sharing memory: what safetensors can write."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: found {type(value).__name__}, expected a JSON object; train it again")
    return value
