"""Versions of installed packages, for files that say what made them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version(name: str) -> str:
    """Version of an installed distribution; "not installed" where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
