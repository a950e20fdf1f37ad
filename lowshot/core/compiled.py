"""Loops compiled by numba, where no library has them."""

from collections.abc import Callable
from typing import Any

import numba
import scipy.linalg  # noqa: F401 -- numba imports it with the first loop, when a clock may run already


def compiled(**options: Any) -> Callable:
    """`numba.njit` with a cache on disk. Without a writable package or home folder, code is compiled anew."""

    def decorate(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            return numba.njit(**options)(function)

    return decorate
