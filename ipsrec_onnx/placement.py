"""Says which execution provider runs each node of a model's graph: what ONNX Runtime did, not what was asked for."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ipsrec_onnx.model_file import ModelFile
from ipsrec_onnx.session import Device, open_session, run_session

_USERS: Final = 32
_LONGEST: Final = 20  # items of a user
_SMALL: Final = ("int32", "int64", "bool")


@dataclass(frozen=True)
class NodeRun:
    """A node that ran.

    Attributes:
        name: of the node, after ONNX Runtime's rewriting.
        op_type: its operator.
        execution_provider: that ran it, such as CPUExecutionProvider.
        computes_shapes: it makes no more than a few whole numbers for others to be shaped by.
    """

    name: str
    op_type: str
    execution_provider: str
    computes_shapes: bool


@dataclass(frozen=True)
class Placement:
    """Where a model's nodes ran.

    Attributes:
        runs: in the order of the graph's run.
    """

    runs: list[NodeRun]

    @property
    def nodes(self) -> dict[str, int]:
        """Execution provider -> how many nodes it ran."""
        return dict(Counter(run.execution_provider for run in self.runs))

    def on_the_cpu(self, *, computes_shapes: bool) -> list[NodeRun]:
        """Nodes that the CPU ran, those that compute shapes or the others."""
        cpu = [run for run in self.runs if run.execution_provider == "CPUExecutionProvider"]
        return [run for run in cpu if run.computes_shapes == computes_shapes]


def find_placement(model: ModelFile, device: Device) -> Placement:
    """Run one batch with ONNX Runtime's profile switched on, and read it.

    ONNX Runtime leaves nodes that compute shapes on the CPU by design, on a machine with a GPU, too. A node counts as
    one where its operator is Shape or Size, or where all its outputs are whole numbers or truths, fewer than there are
    users in the batch: an output that is made for each user has at least that many.

    Raises:
        ModelFileError: the graph fails.
        ExecutionProviderError: the device is not there.
    """
    max_len = min(model.max_len, _LONGEST)
    feed = {
        "item_history": np.ones((_USERS, max_len), np.int32),
        "provider_history": np.zeros((_USERS, max_len), np.int32),
        "lengths": (np.arange(_USERS) % max_len + 1).astype(np.int32),
    }
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(model.path, device=device, profile=Path(folder) / "profile")
        run_session(session, ["user_embedding"], feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return Placement(runs_of(events))


def runs_of(events: list[dict[str, Any]]) -> list[NodeRun]:
    """The nodes in a profile of ONNX Runtime; events of other kinds are passed over."""
    runs = []
    for event in events:
        arguments = event.get("args", {})
        if event.get("cat") == "Node" and "provider" in arguments:
            name = str(event["name"]).removesuffix("_kernel_time")
            computes_shapes = _computes_shapes(arguments)
            runs.append(NodeRun(name, arguments["op_name"], arguments["provider"], computes_shapes))
    return runs


def _computes_shapes(arguments: dict[str, Any]) -> bool:
    """As find_placement says; an output is {type: shape} in a profile."""
    if arguments["op_name"] in ("Shape", "Size"):
        return True
    outputs = [part for output in arguments.get("output_type_shape", []) for part in output.items()]
    return bool(outputs) and all(kind in _SMALL and np.prod(shape) < _USERS for kind, shape in outputs)
