"""Skips a test where something is not installed; where everything must be, the test fails instead."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def skip_without(what: str) -> NoReturn:
    """Skip for a reason; with IPSREC_TEST_EVERYTHING=1, as .ci/run sets it, fail: a proof that is skipped is none."""
    if os.environ.get("IPSREC_TEST_EVERYTHING") == "1":
        pytest.fail(f"{what}; IPSREC_TEST_EVERYTHING=1 asks for it", pytrace=False)
    pytest.skip(what)
