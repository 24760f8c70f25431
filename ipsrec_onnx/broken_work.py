"""Says where work broke down: an exception that nobody raised on purpose becomes one line that can be reported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ipsrec_onnx.errors import DefectError, IpsrecError, OutOfMemoryError

TRACEBACK_VARIABLE = "IPSREC_TRACEBACK"  # set to anything, the command line shows where an error comes from


@contextlib.contextmanager
def broken_work(where: str) -> Iterator[None]:
    """Name what the block works on where it breaks down.

    Raises:
        OutOfMemoryError: memory ran out.
        DefectError: any other exception that is no IpsrecError.
    """
    try:
        yield
    except IpsrecError:
        raise
    except Exception as error:
        raise describe_error(error, where=where) from error


def describe_error(error: Exception, *, where: str) -> IpsrecError:
    """Describe an exception that nobody raised on purpose.

    Args:
        error: the exception.
        where: what was worked on; may be empty.
    """
    place = f"{where}: " if where else ""
    said = " ".join(str(error).split())[:500]
    named = f"{type(error).__name__}: {said}" if said else type(error).__name__
    if isinstance(error, MemoryError):  # Arrow's, too
        return OutOfMemoryError(
            f"{place}memory ran out ({named}); give a smaller --max-memory, fewer --threads or a smaller --top-k"
        )
    return DefectError(
        f"{place}{named}; this is a defect, please report it with what {TRACEBACK_VARIABLE}=1 in the environment shows"
    )
