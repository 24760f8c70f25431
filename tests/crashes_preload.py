"""Imported by the server of crashes.py alone: one small job loads every kernel before the first fork."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from model_files import write_model_file

from ipsrec_onnx.scoring import score

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    model = write_model_file(folder / "model.onnx")
    histories = pa.array([model.catalog.item_ids.to_pylist()[:3], None])
    pq.write_table(pa.table({"user_id": [1, 2], "item_history": histories}), folder / "users.parquet")
    score(model.path, folder / "users.parquet", folder / "candidates.parquet", bad_rows="divert", threads=1)
