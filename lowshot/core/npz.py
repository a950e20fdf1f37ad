"""Arrays in .npz files, read without pickled objects."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lowshot.core.errors import InputError
from lowshot.core.files import missing


def read_npz(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the arrays `names` of a file. Raises InputError if it is not readable or lacks one."""
    if not path.is_file():
        raise missing(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in names if name in file}
    except Exception as error:  # corrupt data can raise anything
        raise InputError(f"{path}: not a readable .npz file ({error})") from None
    for name in names:
        if not isinstance(held.get(name), np.ndarray):
            raise InputError(f"{path}: lacks the array '{name}'")
    return held
