"""Compile the kernels of ipsrec_gpu for a GPU that need not be there, and print what each takes, as JSON.

    python tests/compiled_kernels.py softmax 80 90 100
    python tests/compiled_kernels.py scan 80 90 100

A program of its own: where TRITON_INTERPRET is set, kernels are defined for the interpreter and cannot be compiled.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ipsrec_gpu import scan_kernels, search, softmax
from ipsrec_gpu.scan_table import TILE_ITEMS, TILE_USERS

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Kernel(NamedTuple):
    """A kernel as it is launched: types of its arguments, compile-time ones, numbers that are multiples of 16."""

    name: str
    function: triton.JITFunction
    types: dict[str, str]
    constants: dict[str, int]
    sixteens: tuple[str, ...] = ()
    num_warps: int = 4


def softmax_kernels() -> Iterator[Kernel]:
    """For bfloat16 scores with all that can be, rows at multiples of 16, which is where they lie in training."""
    integers = {"stride": "i32", "width": "i32", "tiles": "i32"}
    integer_tensors = dict.fromkeys(("PLACES", "TARGET_COLUMN", "FIRST"), "*i32")
    for function, constants in (
        (softmax._sum_kernel, {"TILE": softmax._TILE, "LANE": 8, "BLOCK": 32}),
        (softmax._term_kernel, {"TILE": 128}),
        (softmax._probability_kernel, {"TILE": softmax._TILE, "BLOCK": 32}),
    ):
        everything = {**constants, "ENTRIES": 21, "HAS_TERMS": True, "HAS_BIAS": True}
        types = {"SCORES": "*bf16", **integers, **integer_tensors}
        yield Kernel(function.__name__, function, types, everything, sixteens=("stride",))


def scan_kernels_of_search() -> Iterator[Kernel]:
    """At both widths that there are, with the groups that the search takes."""
    integers = dict.fromkeys(("num_tiles", "num_groups", "room", "width"), "i32")
    int32 = ("reach", "counts", "kept_groups", "item_at", "groups", "kept", "providers", "places")
    types = {"users": "*fp16", "items": "*fp16", "offsets": "*i64", **integers, **dict.fromkeys(int32, "*i32")}
    for dims in (64, search.LARGEST_DIM):
        scan = {"BM": TILE_USERS, "BN": TILE_ITEMS, "D": dims, "STAGES": 3 if dims == 64 else 2}
        for function, group in (
            (scan_kernels.group_highs, 1),
            (scan_kernels.group_highs, search._GROUP),
            (scan_kernels.group_highs, search._SAMPLE_GROUP),
            (scan_kernels.keep_groups, search._GROUP),
        ):
            name = f"{function.__name__} {dims} {group}"
            yield Kernel(name, function, types, {**scan, "G": group}, num_warps=8 if group == 1 else 4)
        few = {"BN": TILE_ITEMS, "D": dims}
        keep_items = {**few, "CHUNK": search._CHUNK, "G": search._GROUP}
        yield Kernel(f"keep_items {dims}", scan_kernels.keep_items, types, keep_items)
        of_providers = {**few, "CHUNK": search._CHUNK * search._GROUP}
        yield Kernel(f"keep_of_providers {dims}", scan_kernels.keep_of_providers, types, of_providers)


def compiled(kernel: Kernel, *, capability: int) -> dict[str, int]:
    """Compile one kernel; registers, stack, shared memory and vector loads of it."""
    names = kernel.function.arg_names
    types = {name: "constexpr" if name in kernel.constants else kernel.types.get(name, "*fp32") for name in names}
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(names)
        if types[name].startswith("*") or name in kernel.sixteens
    }
    source = ASTSource(kernel.function, signature=types, constexprs=kernel.constants, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    built = triton.compile(source, target=target, options={"num_warps": kernel.num_warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([CUOBJDUMP, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[0]),
        "stack": int(re.findall(r"STACK:(\d+)", usage)[0]),
        "local": int(re.findall(r"LOCAL:(\d+)", usage)[0]),
        "shared": built.metadata.shared,
        "vector_loads": len(re.findall(r"\bLDG\.E\.128", code)),
    }


def main() -> None:
    """Compile one module's kernels for the capabilities that are asked for."""
    kernels = {"softmax": softmax_kernels, "scan": scan_kernels_of_search}[sys.argv[1]]
    found = {
        f"{kernel.name} sm_{capability}": compiled(kernel, capability=capability)
        for capability in map(int, sys.argv[2:])
        for kernel in kernels()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
