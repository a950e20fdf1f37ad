"""Imports that wait, and when they should wait no longer."""

from types import ModuleType


def load(*rooms: ModuleType) -> None:
    """Import now what `rooms` would import when it is first used.

    For where a clock starts: importing is no part of the work that is measured.
    """
    for room in rooms:
        for name in room.__all__:
            getattr(room, name)
