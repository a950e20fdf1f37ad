"""Exceptions that a user may see."""

from collections.abc import Iterable


class InputError(ValueError):
    """Input that cannot be used. The message is one line: the file or setting, the cause, and the remedy.

    `lowshot.core.cli.run` prints it on stderr and exits with code 2. Callers of the library can catch it.
    """


class NotReadable(InputError):
    """A JSON or YAML file that cannot be parsed."""


class Occupied(InputError):
    """The place of an output is taken: by another process that writes it, or by something else."""


class CorruptImage(InputError):
    """An image that cannot be decoded, or is missing in its zip file. Unlabelled data sets skip it."""


class Diverged(InputError):
    """A training that ended in NaN or infinity. Other settings may work."""


def listed(names: Iterable[str], most: int = 50, between: str = ", ") -> str:
    """Return the first `most` names for a message of one line, and how many more there are."""
    names = list(names)
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return between.join([*names[:most], *more])


def is_memory_error(error: RuntimeError) -> bool:
    """Whether torch reports that memory is short: it has a class for GPUs, and plain RuntimeErrors for CPUs and for
    killed processes of a loader.
    """
    said = ("can't allocate memory", "exited unexpectedly", "is killed by signal: Killed")
    return type(error).__name__ == "OutOfMemoryError" or any(one in str(error) for one in said)
