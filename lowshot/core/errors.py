"""The exceptions a user may see."""


class InputError(ValueError):
    """Input that cannot be used. The message is one line and names the file (or the setting) and the cause.

    `lowshot.core.cli.run` prints it on stderr and ends with exit code 2; library callers catch it like any exception.
    """


class CorruptImage(InputError):
    """An image that cannot be decoded, or is missing in its zip; unlabelled sets do without it."""


class Diverged(InputError):
    """Training that ended in numbers which are none: other settings may do better."""
