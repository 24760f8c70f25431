"""score on users of every Arrow type: what the naive twin computes, or one IpsrecError."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import TinyModel, write_model_file
from naive_scoring import naive_score_user
from strategies import DrawnUsers, drawn_users

from ipsrec_onnx.errors import IpsrecError
from ipsrec_onnx.scoring import score

TOP_K = 6


@pytest.fixture(scope="module", params=[False, True], ids=["integers", "strings"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_model_file(tmp_path_factory.mktemp("model") / "m.onnx", num_items=15, string_ids=request.param)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_any_table_of_users_is_scored_as_by_the_naive_twin_or_refused(model: TinyModel, data: st.DataObject) -> None:
    ids = {"item_ids": model.catalog.item_ids.to_pylist(), "provider_ids": model.catalog.provider_ids.to_pylist()}
    users: DrawnUsers = data.draw(drawn_users(**ids))
    divert = data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(users.table, folder / "u.parquet", rows=data.draw(st.integers(1, 9)))
        bad = users.bad_rows()
        options: dict[str, Any] = {"top_k": TOP_K, "threads": 1, "bad_rows": "divert" if divert else "error"}
        if users.refused or (any(bad) and not divert):
            with pytest.raises(IpsrecError):
                score(model.path, folder / "u.parquet", folder / "o.parquet", **options)
            assert [path.name for path in folder.iterdir()] == ["u.parquet"]
            return
        report = score(model.path, folder / "u.parquet", folder / "o.parquet", **options)
        rows = pq.read_table(folder / "o.parquet").to_pylist()
        assert (report.counts.rows_in, report.counts.rows_diverted) == (len(bad), sum(bad))
        good = [number for number, row_is_bad in enumerate(bad) if not row_is_bad]
        for number, row in zip(good, rows, strict=True):
            items = users.items[number]
            providers = None if users.providers is None else users.providers[number]
            assert items is not None
            expected = naive_score_user(model, items, providers, top_k=TOP_K)
            assert (row["status"], row["item_ids"], row["scores"]) == expected


def _write(table: pa.Table, path: Path, *, rows: int) -> None:
    """Write small row groups; a type that pyarrow cannot write to Parquet goes as the nearest one that it can."""
    try:
        pq.write_table(table, path, row_group_size=rows)
    except pa.ArrowNotImplementedError:
        plain = [pa.array(column.to_pylist(), _plain(column.type)) for column in table.columns]
        pq.write_table(pa.table(plain, table.column_names), path, row_group_size=rows)


def _plain(arrow_type: pa.DataType) -> pa.DataType:
    if not hasattr(arrow_type, "value_type") or pa.types.is_dictionary(arrow_type):
        return arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type
    return pa.large_list(_plain(arrow_type.value_type))
