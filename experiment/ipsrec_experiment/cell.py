"""One cell of an experiment, a process of its own: train a row with one seed, export it, rank with the exported file.

    python -m ipsrec_experiment.cell < job.json

A kill at any time leaves nothing that the next run cannot go on from: training resumes at its last whole epoch, and
cell.json, which says that the cell is done, is written last and at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ipsrec_onnx.atomic import atomic_file
from ipsrec_onnx.errors import IpsrecError

CELL_FILE, RANKS_FILE, MODEL_FILE = "cell.json", "ranks.npz", "model.onnx"
REFUSED = "refused: "  # begins the last line of a process that stops on purpose
CUTOFFS = (5, 10)
SPLITS: tuple[Literal["test", "valid"], ...] = ("test", "valid")
PROTOCOLS: tuple[Literal["kept", "excluded"], ...] = ("kept", "excluded")  # what becomes of the user's seen items


@dataclass(frozen=True)
class Job:
    """What a process does.

    Attributes:
        row: name of the row, for messages.
        model: name of the model.
        variant: of the model; None for its default.
        changes: settings of the model and of training; the seed is among them.
        dataset: folder made by `ipsrec prepare`.
        run: the run folder.
        cell: folder of what export and evaluation give; None only trains, for a trial of tuning.
        device: "cpu" or "cuda", for training.
        threads: of the CPU.
    """

    row: str
    model: str
    variant: str | None
    changes: dict[str, Any]
    dataset: str
    run: str
    cell: str | None
    device: Literal["cpu", "cuda"]
    threads: int

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.changes["seed"])

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def do_job(job: Job) -> None:
    """Train, and where the job has a cell, export and evaluate.

    Raises:
        IpsrecError: what training, export or evaluation refuses.
    """
    from ipsrec_train.config import read_config
    from ipsrec_train.train import train

    started = time.perf_counter()
    config = read_config(None, model=job.model, variant=job.variant, changes=job.changes)
    Path(job.run).parent.mkdir(parents=True, exist_ok=True)
    run = train(
        job.dataset,
        job.run,
        model=config.model,
        settings=config.settings,
        training=config.training,
        device=job.device,
        threads=job.threads,
        resume=True,
    )
    if job.cell is not None:
        _export_and_evaluate(job, Path(job.cell), run, started)


def _export_and_evaluate(job: Job, folder: Path, run: Any, started: float) -> None:
    """Fill the folder of a cell; cell.json comes last."""
    from ipsrec_export.export import export
    from ipsrec_onnx.dataset import open_dataset
    from ipsrec_onnx.evaluation import rank_held_out
    from ipsrec_onnx.metrics import metrics_of_ranks
    from ipsrec_onnx.model_file import open_model_file
    from ipsrec_train.run import load_model

    folder.mkdir(parents=True, exist_ok=True)
    exported = export(run.path, folder / MODEL_FILE, dataset=job.dataset, overwrite=True)
    model, dataset = open_model_file(folder / MODEL_FILE), open_dataset(job.dataset)
    held_out = {
        (split, protocol): rank_held_out(
            model,
            dataset,
            split=split,
            depth=max(CUTOFFS),
            exclude_seen=protocol == "excluded",
            threads=job.threads,
        )
        for split in SPLITS
        for protocol in PROTOCOLS
    }
    write_ranks(
        folder / RANKS_FILE, {f"{split}_{protocol}": held.ranks for (split, protocol), held in held_out.items()}
    )
    trained = [epoch["wall_s"] for epoch in run.metrics]
    stop_metric = run.info["training"]["stop_metric"]
    cell = {
        "row": job.row,
        "seed": job.seed,
        "model": run.info["model"],
        "settings": run.info["settings"],
        "training": run.info["training"],
        "parameters": sum(weights.numel() for weights in load_model(run)[0].parameters()),
        "epochs": len(run.metrics),
        "best_epoch": run.best["epoch"],
        "stop_metric": stop_metric,
        "curve": [
            {"epoch": e["epoch"], "loss": e["loss"], stop_metric: e[stop_metric]}
            for e in run.metrics
            if stop_metric in e
        ],
        "epoch_s": float(np.median([epoch["train_s"] for epoch in run.metrics])),
        "training_s": float(sum(trained)),
        "model_bytes": exported.bytes_written,
        "gate": {
            "embedding_error": exported.gate.embedding_error,
            "overlap": exported.gate.overlap,
            "ndcg_change": exported.gate.ndcg_change,
        },
        "metrics": {
            split: {protocol: metrics_of_ranks(held_out[split, protocol].ranks, CUTOFFS) for protocol in PROTOCOLS}
            for split in SPLITS
        },
        "unknown_targets": held_out["test", "kept"].unknown_targets,
        "cold_users": held_out["test", "kept"].cold_users,
        "dataset_fingerprint": dataset.fingerprint,
        "machine": run.info.get("machine", {}),
        "versions": {**model.training["versions"], "numpy": np.__version__},
        "process_s": time.perf_counter() - started,
    }
    with atomic_file(folder / CELL_FILE, overwrite=True) as temporary:
        temporary.write_text(json.dumps(cell, indent=1) + "\n", encoding="utf-8")


def write_ranks(path: Path, ranks: dict[str, npt.NDArray[np.int64]]) -> None:
    """Store ranks by name, each (U,) int64 with 0 for a target beyond the lists."""
    with atomic_file(path, overwrite=True) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{name: array.astype(np.int32) for name, array in ranks.items()})


def main() -> None:
    """Read a job from stdin, do it, and leave with 0, or with 1 and one line on stderr."""
    line = sys.stdin.readline()
    job = Job(**json.loads(line))
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group: the parent decides, and sends SIGTERM
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        do_job(job)
    except IpsrecError as error:
        sys.stderr.write(f"{REFUSED}{' '.join(str(error).split())}\n")
        sys.exit(1)


def _stop_with_parent() -> None:
    """Wait for the end of stdin, which the parent holds open as long as it lives; then stop as if it had asked to.

    Past the buffered reader, whose lock a waiting thread would hold when the process ends.
    """
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
