"""Row groups of one size, however the rows arrive."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ipsrec_onnx.row_writer import open_row_writer


def test_rows_without_any_do_not_pile_up_in_a_writer(tmp_path: Path) -> None:
    schema = pa.schema([("x", pa.int64())])
    with open_row_writer(tmp_path / "x.parquet", schema, group_rows=3) as writer:
        for rows in ([1], [], [], [2, 3, 4], []):
            writer.write(pa.table({"x": pa.array(rows, pa.int64())}))
        assert writer._waiting["x"].num_chunks == 1
    assert pq.read_table(tmp_path / "x.parquet")["x"].to_pylist() == [1, 2, 3, 4]
