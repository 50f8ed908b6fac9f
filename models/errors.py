"""Errors that end a run, each with a sentence, a code and an exit status."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunError(Exception):
    """A run that cannot go on; the message is meant for the submitter."""

    code = "internal"
    exit_status = 1


class InvalidInput(RunError):
    """The specification, the data or a checkpoint cannot be used as given."""

    code = "input_invalid"
    exit_status = 2


class Diverged(RunError):
    """The loss is no longer a finite number."""

    code = "diverged"


class NotANumber(ValueError):
    """Logits hold NaN: no loss of them means anything."""


class OutOfMemory(RunError):
    """The step does not fit in the memory of the device."""

    code = "resource_exhausted"


class NoRoom(RunError):
    """There is no room on the disk for a file of the run."""

    code = "storage_full"


class ExportRefused(RunError):
    """The exported model does not answer as the trained one does."""


class Stopped(Exception):
    """SIGTERM was received and the state is safe on disk."""

    exit_status = 3


def is_full(error: Exception) -> bool:
    """The error says that a disk, a quota or the largest size of a file is reached; of Python or of safetensors."""
    return getattr(error, "errno", None) in FULL or any(f"(os error {number})" in str(error) for number in FULL)
