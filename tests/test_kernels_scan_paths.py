"""Each way of scanning that a CPU can have: chosen from what LLVM compiles for, and equal in every byte."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from ipsrec_kernels.cpu import PATHS, cpu_features, has_wide_vectors, runnable_paths
from ipsrec_kernels.item_table import build_item_table
from ipsrec_kernels.left_out import left_out
from ipsrec_kernels.quantise import LONGEST_INT8
from ipsrec_kernels.ragged import Ragged
from ipsrec_kernels.scan import scan
from ipsrec_kernels.scan_users import prepare_users
from ipsrec_kernels.shortlist import empty_shortlists, provider_slots
from ipsrec_kernels.topk import retrieve

PLAIN = {"seen": None, "history": None, "terms": None, "candidates": None, "max_per_provider": None}
AVX2 = "+sse4.2,+popcnt,+bmi,+bmi2,+avx,+avx2,+fma,+f16c"

# Prints the ways that this process can scan, and the lists of one fixed case.
SCRIPT = """
import numpy as np
from ipsrec_kernels.cpu import has_wide_vectors, runnable_paths
from ipsrec_kernels.item_table import build_item_table
from ipsrec_kernels.topk import retrieve
rng = np.random.default_rng(3)
items, users = rng.standard_normal((700, 24), dtype=np.float32), rng.standard_normal((9, 24), dtype=np.float32)
table = build_item_table(items, np.arange(700, dtype=np.int32) // 7, allowed=None)
plain = dict.fromkeys(("seen", "history", "terms", "candidates"))
found = retrieve(table, users, top_k=20, max_per_provider=2, **plain)
print(*runnable_paths(), has_wide_vectors(), b"".join(array.tobytes() for array in found).hex())
"""


def run(**environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_cpu_without_avx512_scans_narrow_float32_and_finds_the_same():
    if "avx2" not in cpu_features():
        pytest.skip("this CPU has no AVX2 to stand in for one without AVX-512")
    *own_paths, _, own = run()
    *paths, wide, found = run(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=AVX2)
    assert own_paths == list(runnable_paths())
    assert (paths, wide) == (["float32"], "False")
    assert found == own


@pytest.mark.parametrize("features", ["", "+avx2,+fma", "+avx512f,+avx512bw,-avx512vnni"])
def test_int8_is_never_chosen_without_its_instruction(monkeypatch, features):
    monkeypatch.setattr("ipsrec_kernels.cpu.config.CPU_FEATURES", features)
    assert runnable_paths() == ("float32",)
    assert has_wide_vectors() is ("+avx512f" in features)
    items = np.ones((3, 4), np.float32)
    assert build_item_table(items, np.zeros(3, np.int32), allowed=None).panels.dtype == np.float32
    with pytest.raises(ValueError, match=r"path is 'int8', expected one of \['float32'\] on this CPU with 4 dims"):
        build_item_table(items, np.zeros(3, np.int32), allowed=None, path="int8")


def test_an_unknown_path_is_refused():
    with pytest.raises(ValueError, match="path is 'int4', unknown; expected one of"):
        build_item_table(np.ones((3, 4), np.float32), np.zeros(3, np.int32), allowed=None, path="int4")


def test_more_dims_than_int32_sums_can_hold_are_scanned_as_float32(rng):
    items = rng.standard_normal((5, LONGEST_INT8 + 1)).astype(np.float32)
    table = build_item_table(items, np.zeros(5, np.int32), allowed=None)
    assert table.panels.dtype == np.float32
    found = retrieve(table, items[1:], top_k=1, **PLAIN)
    assert found.item_index[:, 0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("path", runnable_paths())
def test_the_largest_sums_that_int8_can_have_are_right(path):
    items = np.array([[0.0], [1.0], [-1.0], [0.5]], np.float32) * np.ones(LONGEST_INT8, np.float32)
    table = build_item_table(items, np.zeros(4, np.int32), allowed=None, path=path)
    found = retrieve(table, items[1:3], top_k=3, **PLAIN)
    assert found.item_index.tolist() == [[1, 3, 2], [2, 3, 1]]
    assert found.scores[0].tolist() == [LONGEST_INT8, LONGEST_INT8 / 2, -LONGEST_INT8]


@pytest.mark.parametrize("path", runnable_paths())
def test_every_interval_holds_its_score(rng, path):
    """The bound is what exactness rests on: look at the scan's own intervals, outlier blocks and all sizes included."""
    for scale in (1e-40, 1e-20, 1.0, 1e15):
        items = (rng.standard_normal((600, 16)) * scale).astype(np.float32)
        items[[7, 300]] *= 1000.0  # ruin the scales of their blocks
        users = (rng.standard_normal((13, 16)) * rng.choice([1e-30, 1.0, 1e10], (13, 1))).astype(np.float32)
        table = build_item_table(items, np.zeros(600, np.int32), allowed=None, path=path)
        lists = empty_shortlists(13, 601)
        none = Ragged(np.zeros(0, np.int32), np.zeros(14, np.int64))
        scan_users, scratch = prepare_users(table, users)
        nothing = left_out(none, none, none, users_at_once=13)
        scan(table, users, scan_users, scratch, 0, lists, np.arange(13), 0, 600, 0, nothing, provider_slots(601))
        exact = (users.astype(np.float64) @ items.astype(np.float64).T).astype(np.float32)
        for u in range(13):
            assert lists.counts[u] == 599
            item = -lists.item[u, :599]
            assert sorted(item.tolist()) == list(range(1, 600))
            assert (lists.low[u, :599] <= exact[u, item]).all()
            assert (lists.high[u, :599] >= exact[u, item]).all()


def test_paths_are_listed_fastest_first():
    assert [path for path in PATHS if path in runnable_paths()] == list(runnable_paths())
