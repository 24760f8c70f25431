"""Train one model on one dataset: all positions in one pass, full ranking after each epoch, the best epoch kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch

from ipsrec_onnx.atomic import refuse_existing
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.errors import DataError, ExecutionProviderError
from ipsrec_onnx.staging import follow, staged
from ipsrec_train.batches import cut_windows, load_histories
from ipsrec_train.distributed import Workers, join_workers
from ipsrec_train.loop import Loop
from ipsrec_train.losses import softmax_means
from ipsrec_train.model import Model
from ipsrec_train.progress import TrainingBar
from ipsrec_train.run import (
    RUN_FILE,
    Progress,
    Run,
    best_epoch,
    can_resume,
    continue_run,
    load_progress,
    open_run,
    read_run_info,
    run_info,
    save_model,
    save_progress,
    start_run,
)
from ipsrec_train.settings import ModelSettings, settings_for
from ipsrec_train.training_settings import TrainingSettings

SEEN_S: Final = 60.0  # a network file system may show a new file so late


@staged(inputs=["dataset"], runs=["output"])
def train(
    dataset: str | Path,
    output: str | Path,
    *,
    model: str = "ipsrec-c",
    settings: ModelSettings | None = None,
    training: TrainingSettings | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Run:
    """Train a model and leave a run folder behind (ipsrec_train/run.py says what is in it).

    On a CPU the same dataset, settings and thread count give the same weights, whether or not training was killed
    and resumed on the way.

    Args:
        dataset: folder made by `ipsrec prepare`.
        output: the run folder.
        model: name of the model, a key of MODEL_SETTINGS.
        settings: of that model; its defaults where None.
        training: how to train.
        device: "cpu" or "cuda".
        threads: of the CPU; all where None.
        resume: go on from the last whole epoch of an interrupted run.
        overwrite: start anew in a folder that exists.
        quiet: no progress on stderr.

    Returns:
        The finished run.

    Raises:
        DataError: the dataset is broken or empty, the output exists, or the run to resume is another one.
        ExecutionProviderError: cuda is asked for and not there.
    """
    settings, training = settings or settings_for(model, None, {}), training or TrainingSettings()
    folder = refuse_existing(output, overwrite=overwrite or resume)
    _refuse_missing(device)
    if training.compile and device == "cpu":
        raise DataError("settings: compile is for device cuda; leave it out on a CPU, where it did not pay")
    if threads is not None and threads < 1:
        raise DataError(f"settings: threads is {threads}, expected 1 or more")
    if threads is not None:
        torch.set_num_threads(threads)
    workers, place = join_workers(device)
    data = open_dataset(dataset)
    learned, held_out = load_histories(data, "train"), load_histories(data, "valid")
    if not len(cut_windows(learned.offsets, settings.max_len)):
        raise DataError(f"{data.path}: no user has two training interactions; prepare it with fewer filters")
    torch.manual_seed(training.seed)
    net = Model(model, settings, item_provider=data.catalog.item_provider, num_providers=data.catalog.num_providers).to(
        place
    )
    info = run_info(model, settings, training, data, device=device)
    bar = TrainingBar(quiet=quiet or not workers.first)
    loop = Loop(net, learned=learned, catalog=data.catalog, training=training, device=place, workers=workers, bar=bar)
    if place.type == "cuda":
        bar.say(f"scores become gradients by {softmax_means(place.type)}")
    progress = Progress(epoch=0, metrics=[])
    if resume and can_resume(folder, info):
        progress = load_progress(folder, loop.learning)
        before = read_run_info(folder).get("machine")
        bar.say(f"going on after epoch {progress.epoch}")
        if before != info["machine"]:
            bar.say(f"until now on {before}, from now on {info['machine']}: the last bits of the weights may differ")
    workers.wait()  # all have read what the first is about to write
    if workers.first:
        if progress.epoch:
            continue_run(folder, info, progress)
        else:
            start_run(folder, info, data.catalog)
    _refuse_unshared(folder, progress, workers, place)
    while progress.epoch < training.epochs and not _out_of_patience(progress, training):
        line = loop.run_epoch(held_out, progress)
        progress = Progress(epoch=progress.epoch + 1, metrics=[*progress.metrics, line])
        if workers.first:
            if best_epoch(progress.metrics, training.stop_metric)["epoch"] == progress.epoch:
                save_model(folder, loop.validated)
            save_progress(folder, loop.learning, progress)
            follow(folder)
    workers.wait()
    return open_run(folder)


def _refuse_missing(device: Literal["cpu", "cuda"]) -> None:
    if device not in ("cpu", "cuda"):
        raise DataError(f"settings: device is {device!r}, expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ExecutionProviderError(
            f"device cuda: torch {torch.__version__} finds no GPU; use --device cpu, or install a CUDA build of torch"
        )


def _refuse_unshared(folder: Path, progress: Progress, workers: Workers, place: torch.device) -> None:
    """Refuse processes that do not see one run: each on its own disk, all but the first would begin anew.

    Raises:
        DataError: in all processes, if it is so in one.
    """
    workers.wait()  # the first has written it
    seen_by = time.monotonic() + (SEEN_S if workers.size > 1 else 0.0)
    while not (folder / RUN_FILE).is_file() and time.monotonic() < seen_by:
        time.sleep(0.2)
    found = np.array([(folder / RUN_FILE).is_file(), progress.epoch, progress.epoch**2], np.int64)
    there, epochs, squares = workers.sum_array(found, place).tolist()
    if there < workers.size or workers.size * squares != epochs**2:  # no spread: all are after the same epoch
        raise DataError(
            f"output {folder}: not all {workers.size} processes find the same run there; give a folder that all "
            "machines share"
        )


def _out_of_patience(progress: Progress, training: TrainingSettings) -> bool:
    return progress.epoch - int(best_epoch(progress.metrics, training.stop_metric)["epoch"]) >= training.patience
