"""The kernel tests once more with Numba's bounds checks: an index outside its array is an IndexError there.

Intrinsics that load and store by address are outside these checks: see docs/security.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
LEFT_OUT = {"test_kernels_bounds.py", "test_kernels_scan_paths.py"}  # itself; and what compiles for other CPUs
FILES = sorted(path for path in TESTS.glob("test_kernels_*.py") if path.name not in LEFT_OUT)


def run_with_checks(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with bounds checks, and a cache of its own: Numba's does not know of them."""
    cache = Path(os.environ.get("NUMBA_CACHE_DIR", TESTS.parent / ".numba_cache")) / "bounds"
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=TESTS.parent, capture_output=True, text=True, timeout=900
    )


def test_the_checks_are_on() -> None:
    program = "import numba, numpy\n@numba.njit\ndef f(a, i):\n    return a[i]\nf(numpy.zeros(3), 3)"
    done = run_with_checks("-c", program)
    assert done.returncode == 1 and "IndexError: index is out of bounds" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1_000)  # all kernels are compiled anew
def test_no_kernel_leaves_its_arrays() -> None:
    assert len(FILES) >= 6
    done = run_with_checks("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, FILES))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
