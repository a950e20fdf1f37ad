"""Control over lazy imports."""

from types import ModuleType


def load(room: ModuleType, *names: str) -> None:
    """Import now what a subpackage would import on first use of `names` (all names if none is given).

    For use before a clock starts: importing does not count as work.
    """
    for name in names or room.__all__:
        getattr(room, name)
