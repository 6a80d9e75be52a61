"""The exceptions a user can meet. Each carries the exit code the command line ends with.

Exit codes: 0 done, 1 a fault of our own, 2 wrong usage, 3 to 8 below.
"""


class TvmSparseError(Exception):
    """Base of every error this package raises on purpose; its message is one line that says what to do."""

    exit_code = 1


class ModelError(TvmSparseError):
    """The model file is missing, damaged, unsupported or incomplete (dynamic shapes, NaN weights)."""

    exit_code = 3


class InputError(TvmSparseError, ValueError):
    """An input array or an argument has the wrong name, shape, dtype or value."""

    exit_code = 4


class CompileError(TvmSparseError):
    """The target or architecture is unknown, or its compiler is not here."""

    exit_code = 5


class VerificationError(TvmSparseError):
    """The compiled network and the reference disagree."""

    exit_code = 6


class LibraryError(TvmSparseError):
    """A compiled library is damaged, is for another machine, or its driver is missing."""

    exit_code = 7


class OutputError(TvmSparseError):
    """A result cannot be written; whatever stood there before is untouched."""

    exit_code = 8
