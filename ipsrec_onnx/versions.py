"""Versions of installed packages, for files that say what made them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

NOT_INSTALLED = "not installed"


def package_version(name: str) -> str:
    """Version of an installed distribution; "not installed" where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return NOT_INSTALLED


def how_to_install(extra: str, *, or_else: str | None = None) -> str:
    """Advice for one line of an error: installs this package with an extra, as README does.

    Args:
        extra: of pyproject.toml: "cpu", "gpu", "triton", "approximate", "object-stores", "report", "ray", "train" or
            "experiment".
        or_else: an extra that may be meant instead.
    """
    choice = "" if or_else is None else f" (or '.[{or_else}]')"
    return f"pip install -c constraints.txt '.[{extra}]'{choice} in the checkout of ipsrec-onnx"
