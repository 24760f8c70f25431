"""Other ways to the best k of all items, each exact: what bench_retrieval.py compares with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnx import TensorProto, helper

Scores = npt.NDArray[np.float32]


def make_peers(items: Scores, *, top_k: int, threads: int) -> dict[str, Callable[[Scores], Scores]]:
    """Name -> users (B, dim) to scores (B, top_k), each exact over the whole catalog."""
    torch.set_num_threads(threads)
    transposed = np.ascontiguousarray(items.T)
    session = onnxruntime.InferenceSession(
        top_k_model(top_k), session_options(threads), providers=["CPUExecutionProvider"]
    )
    by_torch = torch.from_numpy(np.array(items))

    def run_numpy(users: Scores) -> Scores:
        scores = users @ items.T
        return np.take_along_axis(scores, np.argpartition(scores, -top_k, axis=1)[:, -top_k:], axis=1)

    peers: dict[str, Callable[[Scores], Scores]] = {
        "onnxruntime": lambda users: session.run(["scores"], {"users": users, "items": transposed})[0],
        "torch": lambda users: torch.topk(torch.from_numpy(users) @ by_torch.T, top_k, dim=1).values.numpy(),
        "numpy": run_numpy,
    }
    if importlib.util.find_spec("faiss") is not None:
        import faiss

        faiss.omp_set_num_threads(threads)
        index = faiss.IndexFlatIP(items.shape[1])
        index.add(items)
        peers["faiss"] = lambda users: index.search(users, top_k)[0]
    if importlib.util.find_spec("implicit") is not None:
        from implicit.cpu.topk import topk

        peers["implicit"] = lambda users: topk(items, users, top_k, num_threads=threads)[1]
    missing = [name for name in ("faiss", "implicit") if name not in peers]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}")
    return peers


def session_options(threads: int) -> Any:
    """Threads that do not spin on after their work: they would take a core from what is timed next."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def top_k_model(top_k: int) -> bytes:
    """The graph MatMul, TopK."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["users", "items"], ["all"]),
            helper.make_node("TopK", ["all", "k"], ["scores", "places"], axis=-1, largest=1, sorted=1),
        ],
        "top_k",
        [
            helper.make_tensor_value_info("users", TensorProto.FLOAT, ["B", "D"]),
            helper.make_tensor_value_info("items", TensorProto.FLOAT, ["D", "N"]),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", top_k]),
            helper.make_tensor_value_info("places", TensorProto.INT64, ["B", top_k]),
        ],
        [helper.make_tensor("k", TensorProto.INT64, [1], [top_k])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return bytes(model.SerializeToString())
