"""Writes ONNX nodes one after another, each named after what it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper


class GraphNodes:
    """Nodes and constants of a graph that grows downwards.

    Attributes:
        nodes: in the order of their work.
        initializers: constants, each once.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._small: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, op: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output.

        Returns:
            Name of its output: the one given, or one that is free.
        """
        output = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], domain=domain, **attributes))
        return output

    def top(self, values: str, k: str, *, largest: bool = True) -> tuple[str, str]:
        """Append a TopK along the last axis, sorted.

        Returns:
            Names of the values and of their places; of equal ones, the smaller place comes first.
        """
        found, place = f"top_{len(self.nodes)}", f"place_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node("TopK", [values, k], [found, place], axis=-1, largest=int(largest), sorted=1)
        )
        return found, place

    def table(self, name: str, values: npt.NDArray[Any]) -> str:
        """Keep an array under a name."""
        if values.dtype == object:  # strings
            tensor = helper.make_tensor(
                name, onnx.TensorProto.STRING, values.shape, [text.encode() for text in values.ravel()]
            )
        else:
            tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        self.initializers.append(tensor)
        return name

    def narrow_table(self, name: str, values: npt.NDArray[Any]) -> str:
        """Keep whole numbers in the narrowest type that Gather and Cast have.

        Tried: 3 bytes for each of 10^6 places, put together when the file is loaded. The file was 1 MB smaller, and
        ONNX Runtime kept 34 MB more.
        """
        kinds = (np.uint8, np.uint16, np.int32, np.int64)
        kind = next(kind for kind in kinds if np.iinfo(kind).min <= values.min() and values.max() <= np.iinfo(kind).max)
        return self.table(name, values.astype(kind))

    def constant(self, value: Any, dtype: npt.DTypeLike = np.int64) -> str:
        """Name of a small constant; equal ones are kept once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._small:
            self._small[key] = self.table(f"constant_{len(self._small)}", array)
        return self._small[key]
