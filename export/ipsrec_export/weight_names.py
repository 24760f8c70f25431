"""Says which initializer of an exported graph holds which weight of the encoder.

The exporter gives matrices names of its own and lays them out as (inputs, outputs); weights of equal bytes share one
initializer. So names alone say little, and the file carries a map that is made from the values.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn


def weight_names(encoder: nn.Module, graph: onnx.GraphProto) -> dict[str, str]:
    """Find the encoder's weights in a graph by their values.

    Args:
        encoder: of the model that was exported.
        graph: its initializers in memory still.

    Returns:
        Names in the encoder's state_dict -> names of initializers: matrices (inputs, outputs), others as they are.
        Weights that the graph does not use are left out.
    """
    found: dict[tuple[tuple[int, ...], bytes], str] = {}
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor)
            found.setdefault((array.shape, array.tobytes()), tensor.name)
    names = {}
    for name, weight in encoder.state_dict().items():
        array = weight.detach().numpy()
        if name.endswith(".weight") and array.ndim == 2:
            array = np.ascontiguousarray(array.T)
        key = (array.shape, array.tobytes())
        if key in found:
            names[name] = found[key]
    return names
