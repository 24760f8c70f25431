from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from naive_training import rank
from safetensors.torch import load_file
from training_data import MAX_LEN, make_dataset, small_settings, small_training

from ipsrec_export.export import export
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.errors import DataError, ExecutionProviderError
from ipsrec_onnx.metrics import metrics_of_ranks
from ipsrec_onnx.model_file import open_model_file
from ipsrec_train import loop, losses
from ipsrec_train import train as module
from ipsrec_train.batches import load_histories
from ipsrec_train.distributed import Workers
from ipsrec_train.history_scores import scored_items
from ipsrec_train.loop import CUTOFFS
from ipsrec_train.model import Model
from ipsrec_train.progress import TrainingBar
from ipsrec_train.ranking import rank_targets
from ipsrec_train.run import load_model, open_run
from ipsrec_train.settings import VARIANTS
from ipsrec_train.train import train
from ipsrec_train.training_settings import TrainingSettings

NEVER_THE_SAME = {"train_s", "wall_s"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), np.random.default_rng(2))


@pytest.fixture(scope="module")
def straight(dataset, tmp_path_factory):
    """Four epochs in one go."""
    return run_training(dataset, tmp_path_factory.mktemp("runs") / "straight")


def run_training(dataset, output, *, model="ipsrec-c", settings=None, resume=False, overwrite=False, **training):
    return train(
        dataset,
        output,
        model=model,
        settings=settings or small_settings(),
        training=small_training(**training),
        threads=1,
        resume=resume,
        overwrite=overwrite,
        quiet=True,
    )


def assert_same_run(found, expected):
    """The same weights and metrics, bit for bit."""
    for name in ("model.safetensors", "resume.safetensors"):
        weights, others = load_file(found.path / name), load_file(expected.path / name)
        assert weights.keys() == others.keys()
        for part, tensor in weights.items():
            assert torch.equal(tensor, others[part]), f"{name}: {part}"
    figures = [
        [{name: value for name, value in line.items() if name not in NEVER_THE_SAME} for line in run.metrics]
        for run in (found, expected)
    ]
    assert figures[0] == figures[1]


def popularity_ndcg(dataset):
    opened = open_dataset(dataset)
    scores = opened.catalog.popularity[1:].astype(float).tolist()
    targets = load_histories(opened, "valid").targets
    return metrics_of_ranks(np.array([rank(scores, target) for target in targets]), [10])["ndcg@10"]


def test_loss_falls_and_the_model_beats_popularity(dataset, tmp_path):
    run = run_training(dataset, tmp_path / "run", epochs=12)
    losses = [line["loss"] for line in run.metrics]
    assert losses[0] < np.log(60) + 0.5  # no worse than knowing nothing
    assert losses[-1] < losses[0] - 0.5
    assert run.best["ndcg@10"] > 1.5 * popularity_ndcg(dataset)


@pytest.mark.parametrize("name", ["ipsrec-s", "ipsrec-c"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_learns_and_every_weight_of_it_moves(dataset, tmp_path, name, variant):
    settings = small_settings(variant, contrastive_weight=0.1)
    run = run_training(dataset, tmp_path / "run", model=name, settings=settings, epochs=2)
    assert run.metrics[1]["loss"] < run.metrics[0]["loss"]
    moments = load_file(run.path / "resume.safetensors")
    model, _ = load_model(run)
    for index, (part, parameter) in enumerate(model.named_parameters()):
        moved = moments[f"optimizer.{index}.exp_avg_sq"]
        assert moved.shape == parameter.shape
        assert moved.any(), part
    assert not model.items.weight[0].any()
    assert not model.providers.weight[0].any()


@pytest.mark.parametrize(("variant", "symmetric"), [("recommended", False), ("paper", False), ("released", True)])
def test_the_loss_is_cross_entropy_and_lambda_times_the_variants_contrastive_loss(
    dataset, tmp_path, monkeypatch, variant, symmetric
):
    real, calls = loop.contrastive_loss, []

    def recorded(*states, **options):
        loss = real(*states, **options)
        calls.append((loss.item(), options))
        return loss

    monkeypatch.setattr(loop, "contrastive_loss", recorded)

    def first_loss(weight):
        settings = small_settings(variant, dropout=0.0, contrastive_weight=weight, temperature=0.7)
        return run_training(dataset, tmp_path / str(weight), settings=settings, epochs=1, batch_size=10_000).metrics[0][
            "loss"
        ]

    plain = first_loss(0.0)
    assert calls == []
    both = first_loss(0.5)
    ((contrast, options),) = calls  # one batch holds everything
    assert options == {"temperature": 0.7, "symmetric": symmetric}
    assert both - plain == pytest.approx(0.5 * contrast, rel=1e-5)


def test_each_epoch_meets_all_windows_in_another_order(dataset, tmp_path, monkeypatch):
    real, chosen = loop.Windows.pack, []

    def recorded(windows, numbers):
        chosen.extend(numbers.tolist())
        return real(windows, numbers)

    monkeypatch.setattr(loop.Windows, "pack", recorded)
    run_training(dataset, tmp_path / "run", epochs=3)
    orders = np.split(np.array(chosen), 3)
    assert [sorted(order) for order in orders] == [list(range(windows_of(dataset)))] * 3
    assert len({tuple(order) for order in orders}) == 3


def test_metrics_have_a_line_an_epoch(straight):
    assert [line["epoch"] for line in straight.metrics] == [1, 2, 3, 4]
    names = {f"{metric}@{cutoff}" for metric in ("hr", "mrr", "ndcg") for cutoff in CUTOFFS}
    for line in straight.metrics:
        assert set(line) == {"epoch", "loss", "targets", *names} | NEVER_THE_SAME
        assert all(0 <= line[name] <= 1 for name in names)
        assert 0 < line["train_s"] <= line["wall_s"]


def test_run_json_says_what_was_trained(straight, dataset):
    info = straight.info
    assert info["model"] == "ipsrec-c"
    assert info["settings"] == asdict(small_settings())
    assert info["training"] == asdict(small_training())
    assert info["dataset"] == {"path": str(dataset.resolve()), "fingerprint": open_dataset(dataset).fingerprint}
    assert info["versions"]["torch"] == torch.__version__


def test_the_same_seed_gives_the_same_run_bit_for_bit(straight, dataset, tmp_path):
    torch.manual_seed(123)
    assert_same_run(run_training(dataset, tmp_path / "again"), straight)


def test_another_seed_gives_another_run(straight, dataset, tmp_path):
    other = run_training(dataset, tmp_path / "other", seed=8, epochs=1)
    assert other.metrics[0]["loss"] != straight.metrics[0]["loss"]


def test_two_epochs_and_two_more_equal_four_bit_for_bit(straight, dataset, tmp_path):
    run_training(dataset, tmp_path / "run", epochs=2)
    torch.manual_seed(123)
    assert_same_run(run_training(dataset, tmp_path / "run", epochs=4, resume=True), straight)


def test_resuming_a_finished_run_changes_nothing(dataset, tmp_path):
    first = run_training(dataset, tmp_path / "run", epochs=2)
    before = {path.name: path.read_bytes() for path in first.path.iterdir()}
    again = run_training(dataset, tmp_path / "run", epochs=2, resume=True)
    assert {path.name: path.read_bytes() for path in again.path.iterdir()} == before


def test_resume_without_anything_to_go_on_from_starts_at_the_first_epoch(straight, dataset, tmp_path):
    assert_same_run(run_training(dataset, tmp_path / "run", resume=True), straight)


# Trains, and is killed in the middle of its third epoch: no cleaning up, no last words.
KILLED = """
import os, signal, sys
from ipsrec_train.loop import Loop
from ipsrec_train.train import train
from training_data import small_settings, small_training

steps_of_epoch = []
step = Loop.step

def killed_step(self, *arguments):
    steps_of_epoch.append(1)
    if len(steps_of_epoch) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *arguments)

Loop.step = killed_step
train(sys.argv[1], sys.argv[2], settings=small_settings(), training=small_training(), threads=1, quiet=True)
"""


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_an_epoch_goes_on_as_if_nothing_had_been(straight, dataset, tmp_path):
    batches = -(-windows_of(dataset) // small_training().batch_size)
    assert batches > 2
    output = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(dataset), str(output), str(2 * batches + 2)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(open_run(output).metrics) == 2
    assert_same_run(run_training(dataset, output, resume=True), straight)


def windows_of(dataset):
    offsets = load_histories(open_dataset(dataset), "train").offsets
    return sum(-(-max(length - 1, 0) // MAX_LEN) for length in np.diff(offsets).tolist())


def test_a_run_stopped_while_it_saved_its_best_weights_goes_on_the_same(straight, dataset, tmp_path, monkeypatch):
    """Killed between the two files of an epoch: the best weights are newer than the progress."""
    real, calls = module.save_progress, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(module, "save_progress", killed)
    with pytest.raises(KeyboardInterrupt):
        run_training(dataset, tmp_path / "run")
    monkeypatch.undo()
    assert_same_run(run_training(dataset, tmp_path / "run", resume=True), straight)


def test_a_run_stopped_before_its_last_line_of_metrics_gets_it_back(straight, dataset, tmp_path):
    """Killed between resume.safetensors and metrics.jsonl of the last epoch."""
    run_training(dataset, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    assert_same_run(run_training(dataset, tmp_path / "run", resume=True), straight)


def test_a_resumed_run_says_how_long_it_may_train_now(dataset, tmp_path):
    run_training(dataset, tmp_path / "run", epochs=1)
    run = run_training(dataset, tmp_path / "run", epochs=2, patience=7, resume=True)
    assert (run.info["training"]["epochs"], run.info["training"]["patience"], len(run.metrics)) == (2, 7, 2)


def test_a_run_that_cannot_go_on_is_not_thrown_away_by_resume(dataset, tmp_path):
    run_training(dataset, tmp_path / "run", epochs=1)
    (tmp_path / "run" / "resume.safetensors").unlink()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(DataError, match=r"has no resume\.safetensors"):
        run_training(dataset, tmp_path / "run", epochs=2, resume=True)
    with pytest.raises(DataError, match="the run to resume has model"):
        run_training(dataset, tmp_path / "run", epochs=2, resume=True, model="ipsrec-s")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == kept


def test_another_number_of_threads_is_recorded_and_said(dataset, tmp_path, capfd):
    run_training(dataset, tmp_path / "run", epochs=1)
    resumed = train(
        dataset,
        tmp_path / "run",
        settings=small_settings(),
        training=small_training(epochs=2),
        threads=2,
        resume=True,
    )
    torch.set_num_threads(1)
    assert resumed.info["machine"] == {"device": "cpu", "threads": 2}
    assert "the last bits of the weights may differ" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"), [({"threads": 0}, "threads is 0"), ({"device": "mps"}, "device is 'mps'")]
)
def test_a_machine_that_makes_no_sense_is_refused(dataset, tmp_path, wrong, message):
    with pytest.raises(DataError, match=message):
        train(dataset, tmp_path / "run", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_training_stops_without_patience_and_keeps_the_best_epoch(dataset, tmp_path):
    run = run_training(dataset, tmp_path / "run", epochs=60, patience=1, learning_rate=0.1)
    assert len(run.metrics) < 60
    assert run.best["epoch"] == len(run.metrics) - 1
    reached = [line["ndcg@10"] for line in run.metrics]
    assert reached[-1] <= reached[-2] == max(reached)
    assert reached[:-1] == sorted(set(reached[:-1]))  # each epoch but the last was better than the one before


def test_the_kept_weights_reproduce_the_metrics_of_the_best_epoch(dataset, tmp_path):
    run = run_training(dataset, tmp_path / "run", epochs=30, patience=2, learning_rate=0.1)
    assert run.best["epoch"] < len(run.metrics)
    model, _ = load_model(run)
    ranks = rank_targets(
        model, load_histories(open_dataset(dataset), "valid"), columns=scored_items(model.item_provider)
    )
    metrics = metrics_of_ranks(ranks, CUTOFFS)
    assert metrics == {name: run.best[name] for name in metrics}
    assert metrics["ndcg@10"] != run.metrics[-1]["ndcg@10"]


def test_the_stop_metric_is_the_one_that_is_asked_for(dataset, tmp_path):
    run = run_training(dataset, tmp_path / "run", stop_metric="mrr@10", epochs=5)
    assert run.best["mrr@10"] == max(line["mrr@10"] for line in run.metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "ipsrec-s"}, "the run to resume has model ipsrec-c, now it is ipsrec-s"),
        ({"settings": small_settings(dim=8)}, "the run to resume has dim 16, now it is 8"),
        ({"seed": 8}, "the run to resume has seed 7, now it is 8"),
        ({"learning_rate": 0.5}, "ask for the same, or start again with --overwrite"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(straight, dataset, changes, message):
    before = (straight.path / "run.json").read_bytes()
    with pytest.raises(DataError, match=message):
        run_training(dataset, straight.path, resume=True, **changes)
    assert (straight.path / "run.json").read_bytes() == before


def test_a_run_of_a_version_without_a_setting_does_not_go_on(dataset, tmp_path):
    run = run_training(dataset, tmp_path / "run", epochs=1)
    del run.info["training"]["negatives"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(run.info))
    with pytest.raises(DataError, match="was begun by a version without negatives, so it cannot go on; start again"):
        run_training(dataset, tmp_path / "run", epochs=2, resume=True)


def test_a_run_does_not_go_on_with_other_data(straight, tmp_path):
    other = make_dataset(tmp_path, np.random.default_rng(3))
    with pytest.raises(DataError, match=r"the run to resume has dataset [0-9a-f]{64}, now it is [0-9a-f]{64}"):
        run_training(other, straight.path, resume=True)


def test_the_same_data_in_another_folder_is_the_same_data(straight, dataset, tmp_path):
    moved = make_dataset(tmp_path, np.random.default_rng(2))
    assert run_training(moved, straight.path, resume=True).metrics == straight.metrics


def test_an_existing_output_is_refused_and_overwrite_starts_anew(dataset, tmp_path):
    run_training(dataset, tmp_path / "run", epochs=2)
    with pytest.raises(DataError, match="exists already; choose another name, or replace it with --overwrite"):
        run_training(dataset, tmp_path / "run", epochs=1)
    again = run_training(dataset, tmp_path / "run", epochs=1, model="ipsrec-s", overwrite=True)
    assert len(again.metrics) == 1
    assert again.info["model"] == "ipsrec-s"
    load_model(again)


@pytest.mark.parametrize("how", ["overwrite", "resume"])
def test_a_file_in_place_of_the_run_folder_is_refused(dataset, tmp_path, how):
    (tmp_path / "run").write_text("precious")
    with pytest.raises(DataError, match="is a file, expected the name of a folder"):
        run_training(dataset, tmp_path / "run", epochs=1, **{how: True})
    assert (tmp_path / "run").read_text() == "precious"


@pytest.mark.parametrize("how", ["overwrite", "resume"])
def test_a_folder_that_is_no_run_is_never_touched(dataset, tmp_path, how):
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(DataError, match="no run"):
        run_training(dataset, tmp_path, epochs=1, **{how: True})
    assert (tmp_path / "model.safetensors").read_text() == "precious"


def test_a_missing_dataset_leaves_no_folder(tmp_path):
    with pytest.raises(DataError, match="is no dataset"):
        run_training(tmp_path / "absent", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_learning_rate_that_blows_up_is_told_in_one_line(dataset, tmp_path):
    with pytest.raises(DataError, match="try a smaller --learning-rate") as refused:
        run_training(dataset, tmp_path / "run", learning_rate=1e30)
    assert "\n" not in str(refused.value)


# More steps than an epoch has, and fewer.
@pytest.mark.parametrize("steps", [1_000, 3])
def test_looking_at_the_loss_rarely_as_on_a_gpu_changes_nothing(dataset, straight, tmp_path, monkeypatch, steps):
    monkeypatch.setattr(loop, "LOOK_EVERY", {"cpu": steps})
    assert_same_run(run_training(dataset, tmp_path / "run"), straight)
    with pytest.raises(DataError, match=r"training: loss nan in epoch 1; try a smaller --learning-rate"):
        run_training(dataset, tmp_path / "wild", learning_rate=1e30)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU here Triton does not interpret")
@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_a_step_as_a_gpu_takes_it_has_the_same_loss_and_gradients(dataset, monkeypatch, precision, close):
    pytest.importorskip("triton")
    opened = open_dataset(dataset)

    def step(precision):
        torch.manual_seed(3)
        settings = small_settings("recommended", dropout=0.0, contrastive_weight=0.1)
        net = Model(
            "ipsrec-c", settings, item_provider=opened.catalog.item_provider, num_providers=opened.catalog.num_providers
        )
        one = loop.Loop(
            net,
            learned=load_histories(opened, "train"),
            catalog=opened.catalog,
            training=small_training(precision=precision),
            device=torch.device("cpu"),
            workers=Workers(),
            bar=TrainingBar(quiet=True),
        )
        net.train()
        loss = one.step(np.arange(6), one.all_items)
        return {"loss": loss, **{name: weight.grad for name, weight in net.named_parameters()}}

    expected = step("fp32")
    # The encoder in autocast, rows by Triton from buffers with room at the end.
    monkeypatch.setattr(loop.Loop, "_low_precision_encoder", precision == "bf16")
    monkeypatch.setattr(losses, "_rows_on", lambda device: losses._triton_rows)
    monkeypatch.setattr(losses, "ROW_ALIGNMENT", {"cpu": losses.ROW_ALIGNMENT["cuda"]})
    for name, found in step(precision).items():
        largest = float(expected[name].abs().max())
        if largest < 1e-6:  # nothing but rounding: the keys' biases, say, change no softmax
            continue
        np.testing.assert_allclose(found, expected[name], rtol=close, atol=close * largest, err_msg=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_is_refused_where_it_is_not(dataset, tmp_path):
    with pytest.raises(ExecutionProviderError, match=r"device cuda: torch .* finds no GPU; use --device cpu"):
        train(dataset, tmp_path / "run", device="cuda")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"epochs": 0},
        {"patience": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"seed": -1},
    ],
)
def test_training_settings_that_make_no_sense_are_refused(change):
    (name,) = change
    with pytest.raises(DataError, match=f"^settings: {name} is {change[name]}, expected"):
        replace(TrainingSettings(), **change)


def test_quiet_is_quiet_and_otherwise_each_epoch_has_a_line_on_stderr(dataset, tmp_path, capfd):
    run_training(dataset, tmp_path / "quiet", epochs=1)
    assert capfd.readouterr() == ("", "")
    train(dataset, tmp_path / "loud", settings=small_settings(), training=small_training(epochs=2), threads=1)
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split(":")[0] for line in err.splitlines()] == ["epoch 1", "epoch 2"]
    assert all("loss" in line and "ndcg@10" in line for line in err.splitlines())
    assert len((tmp_path / "loud" / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "loud" / "run.json").read_text())["model"] == "ipsrec-c"


def test_parts_of_a_batch_give_the_step_of_the_whole(dataset, tmp_path):
    settings = small_settings(dropout=0.0)
    whole = run_training(dataset, tmp_path / "whole", settings=settings, epochs=2)
    parts = run_training(dataset, tmp_path / "parts", settings=settings, epochs=2, batch_parts=5)
    assert [line["loss"] for line in parts.metrics] == pytest.approx([line["loss"] for line in whole.metrics], rel=1e-4)


def test_a_sample_of_negatives_learns_what_all_items_teach(dataset, tmp_path):
    everything = run_training(dataset, tmp_path / "all", epochs=12)
    sampled = run_training(dataset, tmp_path / "sampled", epochs=12, negatives=30)
    assert sampled.best["ndcg@10"] > 0.85 * everything.best["ndcg@10"]


def test_low_precision_learns_the_same(dataset, tmp_path):
    exact = run_training(dataset, tmp_path / "exact", epochs=12)
    low = run_training(dataset, tmp_path / "low", epochs=12, precision="bf16")
    assert low.metrics[0]["loss"] == pytest.approx(exact.metrics[0]["loss"], rel=0.01)
    assert low.best["ndcg@10"] > 0.9 * exact.best["ndcg@10"]


def test_an_average_of_the_weights_is_kept_and_resumed_bit_for_bit(dataset, tmp_path):
    options = {"average": 0.9, "schedule": "linear", "warmup_steps": 3}
    straight = run_training(dataset, tmp_path / "straight", **options)
    plain = run_training(dataset, tmp_path / "plain", schedule="linear", warmup_steps=3)
    assert [line["loss"] for line in plain.metrics] == [line["loss"] for line in straight.metrics]
    kept = load_file(straight.path / "model.safetensors")
    last = load_file(straight.path / "resume.safetensors")
    assert straight.best["epoch"] == 4
    assert not torch.equal(kept["items.weight"], last["model.items.weight"])
    assert torch.equal(kept["items.weight"], last["average.module.items.weight"])

    def stop_after_two_epochs(folder):
        real, calls = module.save_progress, []

        def stopped(*arguments):
            real(*arguments)
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "save_progress", stopped)
            with pytest.raises(KeyboardInterrupt):
                run_training(dataset, folder, **options)

    stop_after_two_epochs(tmp_path / "resumed")
    assert_same_run(run_training(dataset, tmp_path / "resumed", resume=True, **options), straight)


def test_a_falling_learning_rate_cannot_be_resumed_for_another_number_of_epochs(dataset, tmp_path):
    run_training(dataset, tmp_path / "run", epochs=2, schedule="linear")
    with pytest.raises(DataError, match="the run to resume has epochs 2, now it is 3"):
        run_training(dataset, tmp_path / "run", epochs=3, schedule="linear", resume=True)


WORKER = """
import os
import sys
from ipsrec_train import train as module
from training_data import small_settings, small_training

module.SEEN_S = 1.0
dataset, folders, epochs, average = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3]), float(sys.argv[4])
module.train(
    dataset,
    folders[int(os.environ["RANK"]) % len(folders)],
    settings=small_settings(dropout=0.0),
    training=small_training(epochs=epochs, average=average),
    threads=1,
    resume=epochs > 2,
    quiet=True,
)
"""


def run_two_processes(folder, dataset, *outputs, epochs, average=0.0):
    """Train as torchrun does, on the CPU; from the third epoch on, what is there goes on."""
    script = folder / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(script), str(dataset), ",".join(map(str, outputs)), str(epochs), str(average)]
    return subprocess.run(command, env=environment, capture_output=True, check=False, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_run_goes_on_with_any_number_of_processes(dataset, tmp_path, average):
    """Two processes take the steps of one, and each resumes and exports what the other wrote."""
    options = {"settings": small_settings(dropout=0.0), "average": average}
    done = run_two_processes(tmp_path, dataset, tmp_path / "two", epochs=2, average=average)
    assert done.returncode == 0, done.stderr
    one, two = run_training(dataset, tmp_path / "one", epochs=2, **options), open_run(tmp_path / "two")
    assert_like_runs(two, one, rel=1e-4)
    assert {path.name for path in two.path.iterdir()} == {path.name for path in one.path.iterdir()}

    straight = run_training(dataset, tmp_path / "straight", epochs=4, **options)
    assert_like_runs(run_training(dataset, two.path, epochs=4, resume=True, **options), straight, rel=1e-3)
    done = run_two_processes(tmp_path, dataset, one.path, epochs=4, average=average)
    assert done.returncode == 0, done.stderr
    assert_like_runs(open_run(one.path), straight, rel=1e-3)
    for name in ("one", "two"):
        report = export(tmp_path / name, tmp_path / f"{name}.onnx")
        assert open_model_file(report.output).training["best"] == open_run(tmp_path / name).best


def assert_like_runs(found, expected, *, rel):
    """The same targets, and losses and metrics up to another order of sums."""
    assert [line["targets"] for line in found.metrics] == [line["targets"] for line in expected.metrics]
    losses = [[line["loss"] for line in run.metrics] for run in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=rel)
    assert found.best["ndcg@10"] == pytest.approx(expected.best["ndcg@10"], abs=0.02)


@pytest.mark.slow
def test_processes_that_do_not_share_the_run_folder_are_refused(dataset, tmp_path):
    """As on two machines, each with a disk of its own: a fresh run, and one that only the first could go on with."""
    message = "not all 2 processes find the same run there; give a folder that all machines share"
    done = run_two_processes(tmp_path, dataset, tmp_path / "here", tmp_path / "there", epochs=2)
    assert done.returncode != 0
    assert done.stderr.count(f"DataError: output {tmp_path / 'here'}: {message}") == 1
    run_training(dataset, tmp_path / "began", settings=small_settings(dropout=0.0), epochs=2)
    shutil.copytree(tmp_path / "began", tmp_path / "behind")
    run_training(dataset, tmp_path / "began", settings=small_settings(dropout=0.0), epochs=3, resume=True)
    before = (tmp_path / "began" / "resume.safetensors").read_bytes()
    done = run_two_processes(tmp_path, dataset, tmp_path / "began", tmp_path / "behind", epochs=4)
    assert done.returncode != 0
    assert message in done.stderr
    assert (tmp_path / "began" / "resume.safetensors").read_bytes() == before


def test_validation_may_be_rarer_and_changes_no_weight(straight, dataset, tmp_path):
    rare = run_training(dataset, tmp_path / "rare", epochs=4, validate_every=3)
    assert [("ndcg@10" in line) for line in rare.metrics] == [False, False, True, True]
    assert [line["loss"] for line in rare.metrics] == [line["loss"] for line in straight.metrics]
    assert [line.get("ndcg@10") for line in rare.metrics[2:]] == [line["ndcg@10"] for line in straight.metrics[2:]]
    assert rare.best["epoch"] in (3, 4)
    assert run_training(dataset, tmp_path / "rare", epochs=4, validate_every=3, resume=True).metrics == rare.metrics


def test_patience_reaches_to_the_first_validation():
    with pytest.raises(DataError, match=r"patience is 2, expected validate_every \(3\) or more"):
        small_training(patience=2, validate_every=3)
