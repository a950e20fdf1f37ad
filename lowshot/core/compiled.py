"""Loops that no library has, compiled by numba."""

from collections.abc import Callable
from typing import Any

import numba
import scipy.linalg  # noqa: F401 -- numba imports it with the first loop, when a clock may run already


def compiled(**options: Any) -> Callable:
    """`numba.njit` with its code kept on disk; compiled anew if neither the package nor the home folder is writable."""

    def decorate(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            return numba.njit(**options)(function)

    return decorate
