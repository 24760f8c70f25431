"""A process that runs an edge graph for one user at a time, on one thread, when it is told to.

    python edge_worker.py onnxruntime MODEL USERS
    python edge_worker.py torch NET USERS
    python edge_worker.py torch-kept NET USERS

All workers, those of Node and of a browser too, speak one language, so that a benchmark lets them work in turn. USERS
is a JSON list of histories, each a list of ids as text. The first line a worker prints is {"load_ms", "pss_mb",
"anonymous_mb"}: the time to open the file, what the process has more in memory after the first user, shared pages by
their share, and what of it no file backs. For each line "lists FIRST COUNT" it then prints {"item_ids": [[text, ...],
...], "scores": [...]}, for each line "times FIRST COUNT" {"ms": [...], "cpu_ms": [...]},
from a history to lists of its language: by the clock, and of its processor time, which does not count how long a
shared machine lets it wait.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402 - it reads the number of its threads when it is loaded

Lists = tuple[list[Any], list[float]]


def main() -> None:
    """Open the model, then answer lines until there are no more."""
    runtime, model, users = sys.argv[1:]
    histories = json.loads(Path(users).read_text(encoding="utf-8"))
    opener = open_onnxruntime() if runtime == "onnxruntime" else open_torch(kept=runtime == "torch-kept")
    before = memory_mb()
    started = time.perf_counter()
    recommend = opener(model)
    load_ms = 1e3 * (time.perf_counter() - started)
    recommend(histories[0])
    used = {name: value - before[name] for name, value in memory_mb().items()}
    say({"load_ms": load_ms, **used})
    for line in sys.stdin:
        what, first, count = line.split()
        part = histories[int(first) : int(first) + int(count)]
        if what == "lists":
            lists = [recommend(history) for history in part]
            say({"item_ids": [list(map(str, ids)) for ids, _ in lists], "scores": [scores for _, scores in lists]})
        else:
            ms, cpu_ms = zip(*(timed(recommend, history) for history in part), strict=True)
            say({"ms": ms, "cpu_ms": cpu_ms})


def open_onnxruntime() -> Callable[[str], Callable[[list[str]], Lists]]:
    """ONNX Runtime with one thread; a history is made an array, an array a list."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3

    def opener(path: str) -> Callable[[list[str]], Lists]:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        dtype: Any = np.int64 if session.get_inputs()[0].type == "tensor(int64)" else object

        def recommend(history: list[str]) -> Lists:
            feed = {"item_history": np.array([history], dtype), "lengths": np.array([len(history)])}
            item_ids, scores, counts = session.run(["item_ids", "scores", "counts"], feed)
            return item_ids[0, : counts[0]].tolist(), scores[0, : counts[0]].tolist()

        return recommend

    return opener


def open_torch(*, kept: bool) -> Callable[[str], Callable[[list[str]], Lists]]:
    """The trained module in PyTorch, eager: what the edge file stands for, as one would write it.

    Args:
        kept: make the item table once. The module itself makes it of items and providers in every call.
    """
    import torch
    from safetensors import safe_open

    from ipsrec_train.model import Model
    from ipsrec_train.settings import settings_type

    torch.set_num_threads(1)

    def opener(path: str) -> Callable[[list[str]], Lists]:
        with safe_open(path, framework="pt") as opened:
            about = json.loads(opened.metadata()["about"])
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        item_ids, item_provider = weights.pop("item_ids").tolist(), weights.pop("item_provider").numpy()
        top_k, max_len = about["top_k"], about["max_len"]
        settings = settings_type(about["model"])(**about["settings"])
        num_providers = len(weights["providers.weight"]) - 1
        net = Model(about["model"], settings, item_provider=item_provider, num_providers=num_providers)
        net.load_state_dict(weights)
        net.eval()
        index_of = {str(item_id): index for index, item_id in enumerate(item_ids, start=1)}
        with torch.no_grad():
            once = net.item_embeddings().clone()

        terms = net.history_terms
        with torch.no_grad():
            item_weights = None if terms is None else terms.item_weights()
            provider_weights = None if terms is None else terms.provider_weights()

        @torch.inference_mode()
        def recommend(history: list[str]) -> Lists:
            seen = torch.tensor([index_of[item_id] for item_id in history if item_id in index_of])
            items = seen[-max_len:]
            providers = net.item_provider[items]
            table = once if kept else net.item_embeddings()
            user = net.encode_last(table, items[None], providers[None], torch.tensor([len(items)]))[0]
            scores = table @ user
            if terms is not None:
                newest_last = torch.arange(len(items) - 1, -1, -1)
                gains = torch.zeros(net.providers.num_embeddings)
                gains.index_add_(0, providers, provider_weights[newest_last])
                gains[0] = 0  # "no provider" is nobody's
                scores += gains[net.item_provider]
                scores.index_add_(0, items, item_weights[newest_last])
            scores[0] = -torch.inf
            scores[seen] = -torch.inf
            best, at = torch.topk(scores, top_k)
            return [item_ids[index - 1] for index in at.tolist()], best.tolist()

        return recommend

    return opener


def timed(recommend: Callable[[list[str]], Lists], history: list[str]) -> tuple[float, float]:
    """Time one user: milliseconds by the clock and of the processor."""
    started, cpu_started = time.perf_counter(), time.process_time()
    recommend(history)
    cpu_ms = 1e3 * (time.process_time() - cpu_started)
    return 1e3 * (time.perf_counter() - started), cpu_ms


def memory_mb() -> dict[str, float]:
    """What this process has in memory."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    kb = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    return {"pss_mb": kb["Pss"] / 1024, "anonymous_mb": kb["Anonymous"] / 1024}


def say(answer: dict[str, Any]) -> None:
    """One line of JSON, at once."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
