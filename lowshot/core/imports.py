"""Imports that wait, and when they should wait no longer."""

from types import ModuleType


def load(room: ModuleType, *names: str) -> None:
    """Import now what a subpackage would import when `names` of it (all, if none is given) are first used.

    For where a clock starts: importing is no part of the work that is measured.
    """
    for name in names or room.__all__:
        getattr(room, name)
