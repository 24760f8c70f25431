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

    def split(self, values: str, parts: int) -> list[str]:
        """Append a Split of the first axis into equal parts."""
        names = [f"part_{len(self.nodes)}_{part}" for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [values], names, axis=0, num_outputs=parts))
        return names

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
        """Keep whole numbers under a name, in the file in as few bytes as their range needs.

        They are int32, or int64 where they must be, again when the file is loaded: ONNX Runtime computes what hangs on
        constants alone once.
        """
        smallest, largest = int(values.min()), int(values.max())
        dtype = next(kind for kind in (np.int32, np.int64) if _holds(kind, smallest) and _holds(kind, largest))
        num_bytes = max(1, -(-(largest - smallest).bit_length() // 8))
        if num_bytes == np.dtype(dtype).itemsize:
            return self.table(name, values.astype(dtype))
        above = values.astype(np.int64) - smallest  # below 2^56
        whole = self.constant(smallest, dtype)
        for byte in range(0, num_bytes, 2):
            kind = np.uint16 if byte + 1 < num_bytes else np.uint8
            part = self.table(f"{name}_{byte}", (above >> 8 * byte).astype(kind))
            part = self.add("Cast", part, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
            part = self.add("Mul", part, self.constant(1 << 8 * byte, dtype)) if byte else part
            whole = self.add("Add", whole, part, name=name if byte + 2 >= num_bytes else None)
        return name

    def constant(self, value: Any, dtype: npt.DTypeLike = np.int64) -> str:
        """Name of a small constant; equal ones are kept once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._small:
            self._small[key] = self.table(f"constant_{len(self._small)}", array)
        return self._small[key]


def _holds(kind: type[np.signedinteger[Any]], value: int) -> bool:
    return int(np.iinfo(kind).min) <= value <= int(np.iinfo(kind).max)
