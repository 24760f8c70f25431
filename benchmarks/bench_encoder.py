"""How fast do histories become user vectors, against the plain export at full width?

    python benchmarks/bench_encoder.py
    python benchmarks/bench_encoder.py --size wechat --model sasrec
    python benchmarks/bench_encoder.py --short

Three ways, in turn, two threads each:

- plain: every layer at every position, all users padded to max_len, 64 at a time, one ONNX Runtime session of two
  threads. This is the rival.
- onnxruntime: what `ipsrec score` does: the last layers for the newest position alone, buckets of like length, one
  session of one thread that two workers share.
- fused: `--encoder fused`, kernels of our own, no padding; two workers.

Weights are drawn and shared by all three, lengths are synthetic.py's, the newest max_len items count. Items are few,
20,000: an encoder reads a row of the table for each token, however many there are. Before timing, all ways must give
the same vectors, 2e-5 apart at most. Looking up ids is not part of it; padding is.

In the JSON, `encoder_vs_plain_SIZE` is how many times as fast as plain the fused encoder is, and
`onnxruntime_vs_plain_SIZE` the default one.

The limit is sgemm: `share` is what the fused encoder multiplies (padding and masked scores not counted), a second,
over sgemm's peak with as many threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pyarrow as pa
import torch
from limits import Limits, cpu_model
from plain_graph import PlainGraph, plain_session
from rounds import ROUNDS, Timed, in_turn, print_json, ratio_in_rounds
from synthetic import SIZES, history_lengths

from ipsrec_export.graph import OPSET, build_graph
from ipsrec_export.metadata import add_metadata
from ipsrec_export.weight_names import weight_names
from ipsrec_kernels.encoder import LOOK_BACK, LOOK_FROM_NEWEST, OPERATION
from ipsrec_kernels.pack import pack_histories
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.encoding import encode
from ipsrec_onnx.fused_encoder import FusedEncoder, encode_fused, open_fused_encoder
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.model_file import read_model_file
from ipsrec_train.model import Model
from ipsrec_train.settings import settings_for

THREADS = 2
NUM_ITEMS, NUM_PROVIDERS = 20_000, 2_000
PLAIN_BATCH = 64
CHUNK_USERS = 2048  # that a worker takes at once
CLOSE = 2e-5
USERS = {"tmall": 8192, "twitch": 4096, "wechat": 1536}
MODELS = ("ipsrec-c", "ipsrec-s", "sasrec")

Float32Array = npt.NDArray[np.float32]


def main() -> None:
    """Run what was asked for; print a table a size and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), help="one size; without it all three")
    parser.add_argument("--model", choices=MODELS, default="ipsrec-c")
    parser.add_argument("--short", action="store_true", help="three rounds and a quarter of the users")
    arguments = parser.parse_args()
    rounds = 3 if arguments.short else ROUNDS
    print(f"{cpu_model()}, {THREADS} threads, onnxruntime {onnxruntime.__version__}, numba {numba.__version__}")
    figures: dict[str, Any] = {"benchmark": "encoder", "model": arguments.model, "threads": THREADS}
    with Limits(THREADS) as limits:
        for name in [arguments.size] if arguments.size else list(SIZES):
            users = USERS[name] // (4 if arguments.short else 1)
            figures[name] = run(name, arguments.model, users=users, rounds=rounds, limits=limits)
            figures[f"encoder_vs_plain_{name}"] = figures[name]["fused_vs_plain"]
            figures[f"onnxruntime_vs_plain_{name}"] = figures[name]["onnxruntime_vs_plain"]
    print_json(figures)


def run(name: str, model_name: str, *, users: int, rounds: int, limits: Limits) -> dict[str, Any]:
    """Time the three ways at one size; gives medians and ratios."""
    max_len = SIZES[name].max_len
    rng = np.random.default_rng(0)
    lengths = np.minimum(history_lengths(rng, users, SIZES[name].mean_length), max_len)
    histories = Histories(
        rng.integers(1, NUM_ITEMS + 1, lengths.sum()).astype(np.int32),
        rng.integers(1, NUM_PROVIDERS + 1, lengths.sum()).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )
    net = drawn_model(model_name, max_len=max_len)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(THREADS) as pool:
        model = read_model_file(write_model_file(Path(folder) / "model.onnx", net))
        session = plain_session(write_plain_file(Path(folder) / "plain.onnx", net), threads=THREADS)
        encoder = open_fused_encoder(model)
        ways: dict[str, Callable[[], Float32Array]] = {
            "plain": lambda: encode_plain(session, histories, max_len),
            "onnxruntime": lambda: in_chunks(pool, histories, lambda part: encode(model, part)),
            "fused": lambda: in_chunks(pool, histories, lambda part: encode_fused(encoder, part)),
        }
        expected = ways["plain"]()
        apart = {way: float(np.abs(work() - expected).max()) for way, work in ways.items()}
        assert max(apart.values()) <= CLOSE, f"user vectors differ: {apart}"
        peak = limits.sgemm_gflop_per_s()
        times = in_turn(ways, limits, rounds=rounds)
        peak = max(peak, limits.sgemm_gflop_per_s())
    flop = multiplied(encoder, lengths)
    return report(name, times, users=users, mean_length=float(lengths.mean()), flop=flop, peak=peak, apart=apart)


def report(
    name: str,
    times: dict[str, Timed],
    *,
    users: int,
    mean_length: float,
    flop: float,
    peak: float,
    apart: dict[str, float],
) -> dict[str, Any]:
    """Print one size; gives its ratios."""
    ratios = {way: ratio_in_rounds(times["plain"], timed) for way, timed in times.items()}
    share = flop / times["fused"].median / 1e9 / peak
    print(f"\n{name}: {users:,} users, {mean_length:.1f} items each after the cut, sgemm {peak:.0f} GFLOP/s")
    print(f"{'':<12} {'users/s':>30} {'x plain':>8} {'apart':>8} {'two cores':>9}")
    for way, timed in times.items():
        print(
            f"{way:<12} {timed.spread(users):>30} {ratios[way]:>8.2f} {apart[way]:>8.0e} "
            f"{timed.whole:>7}/{len(timed.seconds)}"
        )
    print(f"fused: {share:.2f} of sgemm's peak")
    return {
        "users_per_s": users / times["fused"].median,
        "fused_vs_plain": ratios["fused"],
        "onnxruntime_vs_plain": ratios["onnxruntime"],
        "fused_vs_onnxruntime": ratio_in_rounds(times["onnxruntime"], times["fused"]),
        "share_of_sgemm": share,
        "sgemm_gflop_per_s": peak,
        "max_abs_difference": apart["fused"],
        "samples": {way: timed.to_json() for way, timed in times.items()},
    }


def multiplied(encoder: FusedEncoder, lengths: npt.NDArray[np.int64]) -> float:
    """Floating-point operations of the products that the fused encoder makes of these histories."""
    settings, step = encoder.model.settings, encoder.program.step
    dim, inner, heads = settings["dim"], settings["inner_dim"], settings["num_heads"]
    dense = 2 * (4 * dim * dim + 2 * dim * inner)  # a token or a user: four square products and the feed-forward
    tokens = lengths.astype(np.float64) * step
    seen = lengths * (lengths + 1) / 2 * step * step  # pairs of a token and one that it looks at
    operations = encoder.program.steps[:, OPERATION]
    full, newest = ((operations == wanted).sum() for wanted in (LOOK_BACK, LOOK_FROM_NEWEST))
    for_all = dense * tokens.sum() + 4 * dim * seen.sum()
    for_newest = dense * len(lengths) + 4 * heads * dim * tokens.sum()
    return float(full * for_all + newest * for_newest)


def encode_plain(session: onnxruntime.InferenceSession, histories: Histories, max_len: int) -> Float32Array:
    """Everybody at full width, PLAIN_BATCH users a call."""
    users = np.arange(len(histories.lengths))
    parts = []
    for first in range(0, len(users), PLAIN_BATCH):
        rows = users[first : first + PLAIN_BATCH]
        shape = {"bucket_len": max_len, "batch_size": len(rows)}
        items, lengths = pack_histories(histories.items, histories.offsets, rows, **shape)
        providers, _ = pack_histories(histories.providers, histories.offsets, rows, **shape)
        feed = {"item_history": items, "provider_history": providers, "lengths": lengths}
        known = {node.name for node in session.get_inputs()}  # SASRec's graph has no providers
        feed = {key: value.astype(np.int64) for key, value in feed.items() if key in known}
        parts.append(session.run(["user_embedding"], feed)[0])
    return np.concatenate(parts)


def in_chunks(
    pool: ThreadPoolExecutor, histories: Histories, encode_part: Callable[[Histories], Float32Array]
) -> Float32Array:
    """Let the workers take chunks of users, no larger than an even share."""
    users = len(histories.lengths)
    size = min(CHUNK_USERS, -(-users // THREADS))
    parts = [some_users(histories, first, min(first + size, users)) for first in range(0, users, size)]
    return np.concatenate(list(pool.map(encode_part, parts)))


def some_users(histories: Histories, first: int, stop: int) -> Histories:
    """Histories first..stop - 1."""
    start, end = histories.offsets[[first, stop]]
    offsets = histories.offsets[first : stop + 1] - start
    return Histories(histories.items[start:end], histories.providers[start:end], offsets)


def drawn_model(name: str, *, max_len: int, num_items: int = NUM_ITEMS, num_providers: int = NUM_PROVIDERS) -> Model:
    """A model of the paper's dimensions with weights about as large as trained ones."""
    torch.manual_seed(0)
    item_provider = np.sort(np.arange(num_items + 1) % (num_providers + 1)).astype(np.int32)
    settings = settings_for(name, None, {"max_len": max_len})
    model = Model(name, settings, item_provider=item_provider, num_providers=num_providers).eval()
    with torch.no_grad():
        for part, weight in model.encoder.named_parameters():
            if "norm" not in part:
                weight.normal_(std=0.1 if weight.ndim == 1 else weight.shape[-1] ** -0.5)
        for table in (model.items, model.providers):
            table.weight.normal_(std=0.5)
    return model


def write_model_file(path: Path, model: Model) -> Path:
    """Export a model as `ipsrec export` does, without a run and without the gate."""
    proto = build_graph(model)
    add_metadata(
        proto,
        model=model.name,
        settings=dataclasses.asdict(model.settings),
        catalog=Catalog(
            item_ids=pa.array(np.arange(1, NUM_ITEMS + 1)),
            provider_ids=pa.array(np.arange(1, NUM_PROVIDERS + 1)),
            item_provider=model.item_provider.numpy().astype(np.int32),
            popularity=np.zeros(NUM_ITEMS + 1, np.int64),
        ),
        history_terms=None,
        training={},
        gate={"passed": True},
        weights=weight_names(model.encoder, proto.graph),
    )
    onnx.save_model(proto, path)
    return path


def write_plain_file(path: Path, model: Model, *, graph: PlainGraph | None = None) -> Path:
    """Export the plain graph of the same weights, or a form of it."""
    batch = torch.export.Dim("batch", min=1, max=2**20)
    history = {0: batch, 1: torch.export.Dim("sequence", min=1, max=model.settings.max_len)}
    # As wide as it is run: the exporter fixes the width of IPSRec-S, which cuts its 2 L positions into halves.
    width = model.settings.max_len
    ones = torch.ones(2, width, dtype=torch.int64)
    example = (ones, ones.clone(), torch.tensor([width, 1]))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():  # the exporter tells developers of torch many things
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            (PlainGraph(model, scores=False) if graph is None else graph).eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["item_history", "provider_history", "lengths"],
            output_names=["user_embedding"],
            dynamic_shapes={"item_history": history, "provider_history": history, "lengths": {0: batch}},
            verbose=False,
        )
    assert program is not None
    onnx.save_model(program.model_proto, path)
    return path


if __name__ == "__main__":
    main()
