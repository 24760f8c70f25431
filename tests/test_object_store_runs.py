"""Runs in an object store, which grow for hours, and what is made from them; a real S3 server on loopback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import write_model_file
from s3_server import S3Server

from ipsrec_export.export import export
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.object_store import store_path
from ipsrec_onnx.scorer import Scorer
from ipsrec_train.loop import Loop
from ipsrec_train.prepare import prepare
from ipsrec_train.run import Progress
from ipsrec_train.settings import SASRecSettings
from ipsrec_train.train import train
from ipsrec_train.training_settings import TrainingSettings


def test_a_run_is_in_the_store_after_each_epoch_and_goes_on_from_there(
    s3_server: S3Server,
    bucket: str,
    small_interactions: pa.Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset, settings = tmp_path / "dataset", SASRecSettings(dim=8, num_layers=1, max_len=8)
    pq.write_table(small_interactions, tmp_path / "interactions.parquet")
    prepare(tmp_path / "interactions.parquet", dataset, min_item_interactions=1)
    training = TrainingSettings(epochs=3, batch_size=32)
    alike: dict[str, Any] = {"model": "sasrec", "settings": settings, "training": training, "threads": 1, "quiet": True}
    whole = train(dataset, tmp_path / "run", **alike)
    real, sent = Loop.run_epoch, []

    def run_two_epochs(self: Loop, held_out: Any, progress: Progress) -> dict[str, Any]:
        sent.append(set((store_path(bucket) / "run").files()))
        if progress.epoch == 2:
            raise KeyboardInterrupt
        return real(self, held_out, progress)

    arguments: dict[str, Any] = {"dataset": dataset, "output": f"{bucket}/run", **alike}
    monkeypatch.setattr(Loop, "run_epoch", run_two_epochs)
    with pytest.raises(KeyboardInterrupt):
        train(**arguments)
    assert not sent[0] and {"run.json", "metrics.jsonl", "resume.safetensors"} <= sent[1] == sent[2]
    monkeypatch.setattr(Loop, "run_epoch", real)
    with pytest.raises(DataError, match=rf"output {bucket}/run exists already"):
        train(**arguments)
    resumed = train(**arguments, resume=True)
    assert str(resumed.path) == f"{bucket}/run"
    assert [line["epoch"] for line in resumed.metrics] == [1, 2, 3]
    there = s3_server.folder / bucket.removeprefix("s3://") / "run"
    assert (there / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    train(**{**arguments, "training": TrainingSettings(epochs=1, batch_size=32)}, overwrite=True)
    assert len((there / "metrics.jsonl").read_text().splitlines()) == 1
    assert {path.name for path in there.iterdir()} == {path.name for path in whole.path.iterdir()}


def test_a_dataset_in_the_store_is_found_again_by_the_export_of_its_run(
    bucket: str, small_interactions: pa.Table, tmp_path: Path
) -> None:
    pq.write_table(small_interactions, tmp_path / "interactions.parquet")
    prepare(tmp_path / "interactions.parquet", f"{bucket}/dataset", min_item_interactions=1)
    settings = SASRecSettings(dim=8, num_layers=1, max_len=8)
    training = TrainingSettings(epochs=1, batch_size=32)
    train(f"{bucket}/dataset", tmp_path / "run", model="sasrec", settings=settings, training=training, quiet=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["dataset"]["path"] == f"{bucket}/dataset"
    done = export(tmp_path / "run", f"{bucket}/model.onnx")
    assert str(done.output) == f"{bucket}/model.onnx" and done.gate.passed
    scorer = Scorer(f"{bucket}/model.onnx")
    assert scorer.score_one([5000, 5001]).item_ids


@pytest.mark.parametrize("place", ["s3://nowhere/run", "s3://nowhere"])
def test_training_is_refused_before_it_begins_where_its_run_could_not_be_sent(
    bucket: str, small_interactions: pa.Table, tmp_path: Path, place: str
) -> None:
    with pytest.raises(DataError, match=r"there is no bucket nowhere; make it first|has no name of its own"):
        train(tmp_path / "no dataset is looked for", place, quiet=True)


def test_what_is_mapped_from_a_disk_cannot_lie_in_a_store(bucket: str, tmp_path: Path) -> None:
    model = write_model_file(tmp_path / "model.onnx")
    with pytest.raises(DataError, match=r"index cache s3://.*: it is mapped from a disk"):
        Scorer(model.path, index_cache=f"{bucket}/cache")
    Scorer(model.path, index_cache=f"file://{tmp_path}/cache")
    assert (tmp_path / "cache").is_dir()
