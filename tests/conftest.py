"""Fixtures that several test files share."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from s3_server import S3Server

# Triton reads this when a kernel is defined: without a GPU its interpreter runs the kernels, on the CPU.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# As ray_engine sets it, before any test imports Ray, which reads it then.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each file in one process, for its fixtures, and all of Ray in one: Ray's processes find each other."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.get_closest_marker("ray") else item.path.name))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260)


@pytest.fixture(scope="session")
def real_data() -> Path | None:
    """The folder of the two real data sets, where it lies beside the checkout; for tests that can do without."""
    return SHARED_DATA if SHARED_DATA.is_dir() else None


@pytest.fixture(scope="session")
def shared_data(real_data: Path | None) -> Path:
    """The folder of the two real data sets; lies beside the checkout."""
    if real_data is None:
        pytest.skip(f"the real data sets are not at {SHARED_DATA}")
    return real_data


@pytest.fixture
def small_interactions(rng: np.random.Generator) -> pa.Table:
    """2,000 interactions of 60 users and 80 items of 12 providers, in no order, with many equal timestamps."""
    item = rng.zipf(1.3, 2_000) % 80
    return pa.table(
        {
            "user_id": 1_000 + rng.integers(0, 60, 2_000),
            "item_id": 5_000 + item,
            "provider_id": [f"provider {row}" for row in item % 12],
            "timestamp": rng.integers(0, 50, 2_000),
        }
    )


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server on loopback; for tests that stop it, there is S3Server itself."""
    server = S3Server(tmp_path_factory.mktemp("s3") / "store")
    yield server
    server.stop()


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a new bucket, with what reaches it in the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{secrets.token_hex(6)}"
    s3_server.make_bucket(name)
    return f"s3://{name}"
