"""Versions of installed packages, for files that say what made them."""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

NOT_INSTALLED = "not installed"


def package_version(name: str) -> str:
    """Version of an installed distribution; "not installed" where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return NOT_INSTALLED


@functools.cache
def sources_sha256() -> str:
    """SHA-256 of the sources by which users are scored: a checkout changes without a new version."""
    digest = hashlib.sha256()
    for package in ("ipsrec_gpu", "ipsrec_kernels", "ipsrec_onnx"):
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            for path in sorted(Path(folder).glob("*.py")):
                digest.update(f"{package}/{path.name}".encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def how_to_install(extra: str, *, or_else: str | None = None) -> str:
    """Advice for one line of an error: installs this package with an extra, as README does.

    Args:
        extra: of pyproject.toml: "cpu", "gpu", "triton", "approximate", "object-stores", "report", "ray", "train" or
            "experiment".
        or_else: an extra that may be meant instead.
    """
    choice = "" if or_else is None else f" (or '.[{or_else}]')"
    return f"pip install -c constraints.txt '.[{extra}]'{choice} in the checkout of ipsrec-onnx"
