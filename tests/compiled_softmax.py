"""Compile the kernels of ipsrec_gpu/softmax.py for a GPU that need not be there, and print what each takes, as JSON.

    python tests/compiled_softmax.py 80 90 100

A program of its own: where TRITON_INTERPRET is set, kernels are defined for the interpreter and cannot be compiled.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ipsrec_gpu import softmax

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
INTEGERS = {"stride": "i32", "width": "i32", "tiles": "i32"}
INTEGER_TENSORS = ("PLACES", "TARGET_COLUMN", "FIRST")
KERNELS = {
    softmax._sum_kernel: {"TILE": softmax._TILE, "LANE": 8, "BLOCK": 32},
    softmax._term_kernel: {"TILE": 128},
    softmax._probability_kernel: {"TILE": softmax._TILE, "BLOCK": 32},
}


def compiled(kernel: triton.JITFunction, constants: dict[str, int], *, capability: int) -> dict[str, int]:
    """Compile one kernel for bfloat16 scores with all that it can do; registers, stack and vector loads of it."""
    constants = {**constants, "ENTRIES": 21, "HAS_TERMS": True, "HAS_BIAS": True}
    types = {
        name: "constexpr" if name in constants else INTEGERS.get(name, "*i32" if name in INTEGER_TENSORS else "*fp32")
        for name in kernel.arg_names
    }
    types["SCORES"] = "*bf16"
    # As where the rows of scores begin at multiples of 16, which is where they lie in training.
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(kernel.arg_names)
        if types[name].startswith("*") or name == "stride"
    }
    source = ASTSource(kernel, signature=types, constexprs=constants, attrs=aligned)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
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
        "vector_loads": len(re.findall(r"\bLDG\.E\.128", code)),
    }


def main() -> None:
    """Compile everything for the capabilities that are asked for."""
    found = {
        f"{kernel.__name__} sm_{capability}": compiled(kernel, constants, capability=capability)
        for capability in map(int, sys.argv[1:])
        for kernel, constants in KERNELS.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
