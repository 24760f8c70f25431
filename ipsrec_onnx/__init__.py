"""Score users with a model file: Parquet in, ONNX Runtime, exact top-k, Parquet out.

Never imports torch, click, or the layers above it (ipsrec_train, ipsrec_export, ipsrec_cli). `Scorer` is loaded when it
is asked for: importing this package alone, as every command does, loads neither ONNX Runtime nor kernels.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipsrec_onnx.scorer import Scorer

__all__ = ["Scorer"]


def __getattr__(name: str) -> Any:
    if name == "Scorer":
        from ipsrec_onnx.scorer import Scorer

        return Scorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
