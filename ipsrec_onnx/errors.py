"""What can go wrong, in words a person can act on.

A message says where (file, row group, row, column, id), what was found, what was expected, and how to mend it,
in one line. The command line prints it and exits with code 1; nothing else catches these.
"""


class IpsrecError(Exception):
    """Base of every error that this project raises on purpose."""


class DataError(IpsrecError):
    """An input or output file is not what the contract asks for."""


class ModelFileError(IpsrecError):
    """A model file is missing, broken, too new, or did not pass its gate."""


class ExecutionProviderError(IpsrecError):
    """The asked-for ONNX Runtime execution provider is not there."""


class EngineError(IpsrecError):
    """The engine that was to run a job is not there, has no room for it, or lost its workers."""


class OutOfMemoryError(IpsrecError):
    """Memory ran out in the middle of the work."""


class DefectError(IpsrecError):
    """The work broke down in a way that no input should cause: a defect of ours, or of a library that we use."""
