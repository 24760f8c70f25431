"""RePlay's SasRecCompiled (OpenVINO) and torch.topk; started by bench_peers.py.

Two ways: as it comes, which on CPUs with bfloat16 units computes in bfloat16, and with float32 asked for. Its
feed-forward is 64 wide inside, with ReLU, and its weights are random. Padded tensors are given: neither reading nor ids
nor padding is timed, and the history is not left out. Batches of 256.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import openvino
import replay
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.models.nn.sequential.compiled import SasRecCompiled
from replay.models.nn.sequential.sasrec import SasRec
from serve import arguments_of_a_peer, padded, serve

BATCH, TOP_K = 256, 100


def main() -> None:
    """Compile both ways and wait for bench_peers.py."""
    arguments = arguments_of_a_peer(__doc__.splitlines()[0])
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    data = np.load(arguments.data)
    num_items, max_len = len(data["items.weight"]) - 1, len(data["encoder.item_input.position"])
    schema = TensorSchema(
        TensorFeatureInfo(
            name="item_id",
            is_seq=True,
            cardinality=num_items,
            padding_value=num_items,
            embedding_dim=64,
            feature_type=FeatureType.CATEGORICAL,
            feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
            feature_hint=FeatureHint.ITEM_ID,
        )
    )
    model = SasRec(schema, block_count=2, head_count=2, max_seq_len=max_len, hidden_size=64).eval()
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "sasrec.onnx"
        as_it_comes = SasRecCompiled.compile(
            model, mode="batch", batch_size=BATCH, num_threads=arguments.threads, onnx_path=str(graph)
        )
        core = openvino.Core()
        names = [name for node in core.read_model(str(graph)).inputs for name in node.names]
        fixed = openvino.convert_model(str(graph), input=[(name, [BATCH, max_len]) for name in names])
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": arguments.threads}
        in_float32 = SasRecCompiled(core.compile_model(fixed, "CPU", options), schema)
    precision = str(as_it_comes._model.get_property("INFERENCE_PRECISION_HINT"))
    items, lengths = padded(data, arguments.users, max_len, left=True, padding=num_items + 1)
    real = np.arange(max_len)[None, :] >= max_len - lengths[:, None]
    batches = [
        {
            "query_id": torch.arange(BATCH)[:, None],
            "padding_mask": torch.from_numpy(real[first : first + BATCH]),
            # Our item_index counts from 1, and theirs from 0.
            "feature_tensor": {"item_id": torch.from_numpy(items[first : first + BATCH] - 1)},
        }
        for first in range(0, arguments.users - BATCH + 1, BATCH)
    ]

    def recommend(compiled: SasRecCompiled) -> list[torch.Tensor]:
        return [torch.topk(compiled.predict(batch), TOP_K).indices for batch in batches]

    serve(
        {"replay": lambda: recommend(as_it_comes), "replay-f32": lambda: recommend(in_float32)},
        users=len(batches) * BATCH,
        version=f"{replay.__version__}, OpenVINO {openvino.__version__.partition('-')[0]}",
        precision=precision,
        inner={"replay": 64, "replay-f32": 64},
    )


if __name__ == "__main__":
    main()
