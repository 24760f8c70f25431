"""How fast does a GPU turn histories into user vectors, against the plain export in half precision?

    python benchmarks/gpu_encoder.py
    python benchmarks/gpu_encoder.py --size tmall --model ipsrec-c --batch 8192
    python benchmarks/gpu_encoder.py --device cpu --items 2000 --batch 64 --rounds 1      # the script, not the speed

Three graphs of the same drawn weights in ONNX Runtime's CUDA execution provider, in turn, inputs and outputs on the
device:

- plain: opset 20, all in float16, every layer at every position. This is the rival.
- fp16: what `ipsrec export --precision fp16` writes.
- fp32: what `ipsrec export` writes, with use_tf32=0, for that is on unless one says so, and is no float32.

All histories are full: 20, 50 and 100 items at the sizes of tmall, twitch and wechat, whose tables of items and
providers the graphs have. Before timing, all vectors must be those of fp32, 1% of a vector's largest element apart at
most. A sample is several calls, each waited for. Copies from and to the host are not part of it.

In the JSON, `fp16_vs_plain_SIZE_MODEL_BATCH` is how many times as fast as plain the half-precision export is.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from bench_encoder import drawn_model, write_plain_file
from limits import cpu_model
from plain_graph import PlainGraph
from rounds import Timed, in_turn, print_json, ratio_in_rounds
from synthetic import DIM, SIZES
from torch import Tensor

from ipsrec_export.graph import build_graph, build_lean_graph
from ipsrec_export.lean import BLOCKED_HALF
from ipsrec_train.layers import TransformerLayer
from ipsrec_train.model import Model

MODELS = ("ipsrec-c", "ipsrec-s")
ROUNDS, CALLS, WARM_UP = 7, 10, 3
CLOSE = 1e-2
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def main() -> None:
    """Run what was asked for; print a table for each graph's shape and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(PROVIDERS), default="cuda")
    parser.add_argument("--size", choices=sorted(SIZES), help="one size; without it all three")
    parser.add_argument("--model", choices=MODELS, help="one model; without it both")
    parser.add_argument("--batch", type=int, action="append", help="may be given again  [default: 4096 and 8192]")
    parser.add_argument(
        "--items", type=int, help="rows of the item table, a tenth as many providers  [default: the size's]"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--calls", type=int, default=CALLS, help="of a session, in a sample")
    arguments = parser.parse_args()
    print(f"{cpu_model()}, onnxruntime {onnxruntime.__version__}, {PROVIDERS[arguments.device]}")
    figures: dict[str, Any] = {"benchmark": "gpu_encoder", "device": arguments.device}
    for size in [arguments.size] if arguments.size else list(SIZES):
        for name in [arguments.model] if arguments.model else list(MODELS):
            with tempfile.TemporaryDirectory() as folder:
                sessions = open_sessions(make_model(name, size, arguments.items), Path(folder), arguments.device)
            for batch in arguments.batch or [4096, 8192]:
                case = f"{size}_{name}_{batch}"
                figures[case] = run(sessions, size, arguments, title=case, batch=batch)
                figures[f"fp16_vs_plain_{case}"] = figures[case]["fp16"]["vs_plain"]
    print_json(figures)


def run(
    sessions: dict[str, onnxruntime.InferenceSession],
    size: str,
    arguments: argparse.Namespace,
    *,
    title: str,
    batch: int,
) -> dict[str, Any]:
    """Check and time the graphs with one batch; prints and gives users a second."""
    counts = SIZES[size]
    items = arguments.items or counts.items
    rng = np.random.default_rng(0)
    feed = {
        "item_history": rng.integers(1, items + 1, (batch, counts.max_len)),
        "provider_history": rng.integers(1, num_providers(size, arguments.items) + 1, (batch, counts.max_len)),
        "lengths": np.full(batch, counts.max_len),
    }
    bound = {way: Bound(session, feed, arguments.device) for way, session in sessions.items()}
    for way in bound.values():
        for _ in range(WARM_UP):
            way.call()
    expected = bound["fp32"].users()
    scale = np.abs(expected).max(1, keepdims=True)
    apart = {way: float((np.abs(one.users() - expected) / scale).max()) for way, one in bound.items()}
    assert max(apart.values()) <= CLOSE, f"user vectors differ: {apart}"

    def calls(one: Bound) -> Callable[[], None]:
        def work() -> None:
            for _ in range(arguments.calls):
                one.call()

        return work

    times = in_turn({way: calls(one) for way, one in bound.items()}, None, rounds=arguments.rounds)
    print(f"\n{title}: {counts.max_len} items each, tables of {items:,} items")
    print(f"{'':<8} {'users/s':>34} {'x plain':>8} {'apart':>8}")
    return {
        way: report(way, timed, times["plain"], batch * arguments.calls, apart[way]) for way, timed in times.items()
    }


def report(way: str, timed: Timed, plain: Timed, users: int, apart: float) -> dict[str, Any]:
    """Print one row; gives its figures."""
    ratio = ratio_in_rounds(plain, timed)
    print(f"{way:<8} {timed.spread(users):>34} {ratio:>8.2f} {apart:>8.0e}")
    rates = sorted(users / seconds for seconds in timed.seconds)
    return {
        "users_per_s": users / timed.median,
        "min": rates[0],
        "max": rates[-1],
        "vs_plain": ratio,
        "apart": apart,
    }


class Bound:
    """A session whose inputs and output lie on the device."""

    def __init__(
        self, session: onnxruntime.InferenceSession, feed: dict[str, npt.NDArray[np.int64]], device: str
    ) -> None:
        self.session, self.binding = session, session.io_binding()
        for node in session.get_inputs():
            array = feed[node.name].astype(np.int32 if node.type == "tensor(int32)" else np.int64)
            self.binding.bind_ortvalue_input(node.name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
        (output,) = (node for node in session.get_outputs() if node.name == "user_embedding")
        kind = np.float16 if output.type == "tensor(float16)" else np.float32
        shape = [len(feed["lengths"]), DIM]
        self.output = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, device, 0)
        self.binding.bind_ortvalue_output(output.name, self.output)

    def call(self) -> None:
        """Run once, and wait until the output is there."""
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()

    def users(self) -> npt.NDArray[np.float32]:
        """(B, DIM) of the last call, on the host."""
        return np.asarray(self.output.numpy(), np.float32)


def open_sessions(model: Model, folder: Path, device: str) -> dict[str, onnxruntime.InferenceSession]:
    """Export the three graphs and open them; the files are not needed after that."""
    write_plain_file(folder / "plain.onnx", model, graph=HalfPlainGraph(model))
    onnx.save_model(build_lean_graph(model), folder / "fp16.onnx")
    onnx.save_model(build_graph(model), folder / "fp32.onnx")
    return {way: open_session(folder / f"{way}.onnx", device) for way in ("plain", "fp16", "fp32")}


def open_session(path: Path, device: str) -> onnxruntime.InferenceSession:
    """Open a graph on the device, and nowhere else without a word."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    wanted: Any = PROVIDERS[device]
    if device == "cuda":
        onnxruntime.preload_dlls(directory="")
        wanted = (wanted, {"use_tf32": "0"})
    session = onnxruntime.InferenceSession(
        str(path), options, providers=[wanted, PROVIDERS["cpu"]][: 1 + (device == "cuda")]
    )
    assert session.get_providers()[0] == PROVIDERS[device], f"{PROVIDERS[device]} did not start"
    return session


class HalfLayer(TransformerLayer):
    """A layer of float16, which cannot add the float32 mask."""

    def attend(self, residual: Tensor, queries: Tensor, keys: Tensor, *, mask: Tensor) -> Tensor:
        """As TransformerLayer.attend."""
        return super().attend(residual, queries, keys, mask=mask.clamp(min=BLOCKED_HALF).half())


class HalfPlainGraph(PlainGraph):
    """The plain graph, tables and all in float16."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, scores=False)
        self.encoder = copy.deepcopy(model.encoder)
        for part in self.encoder.modules():
            if isinstance(part, TransformerLayer):
                part.__class__ = HalfLayer
        self.half()


def make_model(name: str, size: str, items: int | None) -> Model:
    """A model with the tables of a size."""
    counts = SIZES[size]
    return drawn_model(
        name, max_len=counts.max_len, num_items=items or counts.items, num_providers=num_providers(size, items)
    )


def num_providers(size: str, items: int | None) -> int:
    """Of a size, or of a smaller table."""
    return SIZES[size].providers if items is None else max(1, items // 10)


if __name__ == "__main__":
    main()
