"""Which way to scan this CPU can run: decided by what LLVM compiles for, before anything is compiled."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

from numba import config
from numba.core.codegen import get_host_cpu_features

Path: TypeAlias = Literal["int8", "float32"]
PATHS: Final[tuple[Path, ...]] = ("int8", "float32")


def cpu_features() -> frozenset[str]:
    """Names of the features that Numba hands to LLVM: the host's, or those that NUMBA_CPU_FEATURES names.

    NUMBA_CPU_NAME alone adds none: LLVM may then know more of that CPU than this says, never less.
    """
    settings: Any = config  # Numba fills this module in as it is imported
    given = settings.CPU_FEATURES if settings.CPU_FEATURES is not None else get_host_cpu_features()
    return frozenset(name[1:] for name in given.split(",") if name.startswith("+"))


def runnable_paths() -> tuple[Path, ...]:
    """The ways to scan that can be compiled here, the fastest first.

    "int8" needs AVX-512 VNNI. LLVM ends the whole process when it meets that instruction without the feature, so this
    is asked first and never tried.
    """
    return PATHS if {"avx512f", "avx512bw", "avx512vnni"} <= cpu_features() else PATHS[1:]


def has_wide_vectors() -> bool:
    """Has the CPU 32 registers of 16 float32 (AVX-512)?"""
    return "avx512f" in cpu_features()
