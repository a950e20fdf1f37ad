"""Matrices on disk that may be larger than memory: opened read-only, and read one block of rows at a time."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from lowshot.core.errors import InputError
from lowshot.core.files import missing
from lowshot.core.h5 import open_h5, require_datasets

BLOCK = 16384
_LARGEST = 1e16  # of a feature: products of larger ones overflow float32, and faiss ends the process
RAW_SUFFIXES = (".raw", ".float32")


def blocks(n_rows: int, start: int = 0, size: int | None = None) -> Iterator[slice]:
    """Yield consecutive slices of `size` rows (default: BLOCK) that cover the rows from `start` to `n_rows`."""
    size = size or BLOCK
    for at in range(start, n_rows, size):
        yield slice(at, min(at + size, n_rows))


def check_usable(feats: np.ndarray, where: str, first: int = 0) -> None:
    """Raise InputError for the first of the rows `feats` (N, ...) with a NaN, infinity or a number beyond ±1e16.

    `where` names their source, and `first` is the number of the first row.
    """
    if feats.size == 0 or (feats.min() >= -_LARGEST and feats.max() <= _LARGEST):  # false for NaN
        return
    usable = (np.abs(feats) <= _LARGEST).reshape(len(feats), -1).all(axis=1)
    wrong = int(usable.argmin())
    what = "numbers beyond ±1e16" if np.isfinite(feats[wrong]).all() else "NaN or infinity"
    raise InputError(f"{where}: row {first + wrong} contains {what}")


class Rows:
    """The first `n_rows` rows of a feature matrix on disk; `rows[a:b]` reads float32.

    Reading raises InputError, with the number of the row, for NaN, infinity and numbers beyond ±1e16.
    """

    def __init__(self, path: Path, source: np.ndarray | h5py.Dataset, n_rows: int) -> None:
        self.path, self.source, self.shape = path, source, (n_rows, source.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        try:
            read = np.asarray(self.source[start:stop], np.float32)
        except OSError as error:
            raise InputError(f"{self.path}: truncated or damaged ({error})") from None
        check_usable(read, str(self.path), start)
        return read


def open_rows(path: Path, dim: int | None = None, n_rows: int | None = None) -> Rows:
    """Open the feature matrix (N, D) of a file read-only, without loading it.

    The file is HDF5 (`all_feats` up to `count`), .npy, or raw float32 with `dim` columns. `n_rows` limits the rows.
    Raises InputError for another format, fewer than `n_rows` rows, another dimension than `dim`, or a raw file whose
    size is not a multiple of the row size.
    """
    path = Path(path)
    if not path.is_file():
        raise missing(path)
    if path.suffix in {".h5", ".hdf5"}:
        source, n_stored = _open_h5(path)
    elif path.suffix == ".npy":
        source, n_stored = _open_npy(path)
    elif path.suffix in RAW_SUFFIXES:
        source = open_raw(path, np.float32, dim)
        n_stored = len(source)
    else:
        raise InputError(f"{path}: features must be a .h5, .npy or {' or '.join(RAW_SUFFIXES)} file")
    if dim not in (None, source.shape[1]):
        raise InputError(f"{path}: has {source.shape[1]} dimensions, not {dim}")
    if n_stored < (n_rows or 1):
        raise InputError(f"{path}: has {n_stored} rows, but {n_rows or 1} are needed")
    return Rows(path, source, n_rows or n_stored)


def open_raw(path: Path, dtype: type, n_columns: int | None) -> np.memmap:
    """Map a headerless row-major file (N, n_columns) read-only.

    Raises InputError unless its size is a multiple of the row size.
    """
    if n_columns is None:
        raise InputError(f"{path}: a raw file does not record its number of columns. Use --dim")
    n_bytes, row_bytes = path.stat().st_size, n_columns * np.dtype(dtype).itemsize
    if n_bytes == 0 or n_bytes % row_bytes:
        raise InputError(f"{path}: {n_bytes} bytes are not a multiple of rows of {n_columns} {np.dtype(dtype).name}")
    return np.memmap(path, dtype, "r", shape=(n_bytes // row_bytes, n_columns))


def _open_npy(path: Path) -> tuple[np.ndarray, int]:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable .npy file ({error})") from None
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise InputError(f"{path}: must contain floats (N, D), not {rows.dtype} {rows.shape}")
    return rows, len(rows)


def _open_h5(path: Path) -> tuple[np.ndarray | h5py.Dataset, int]:
    file = open_h5(path)  # stays open while a chunked dataset of it is in use
    try:
        require_datasets(file, {"all_feats": ("floats", 2), "count": ("integers", 1)})
        feats, count = file["all_feats"], int(file["count"][:1].sum())
    except BaseException as error:
        file.__exit__(type(error), error, None)
        raise
    if not 0 < count <= len(feats):
        raise InputError(f"{path}: count is {count}, but the file has {len(feats)} rows")
    return mapped(path, feats), count


def mapped(path: Path, dataset: h5py.Dataset, mode: str = "r") -> np.ndarray | h5py.Dataset:
    """Return a contiguous dataset of the file `path` as a memory map, which stays valid when the file is closed. Others
    are returned unchanged.

    Raises InputError if the file ends before the dataset does.
    """
    offset = dataset.id.get_offset()
    if offset is None or dataset.size == 0:
        return dataset
    if path.stat().st_size < offset + dataset.size * dataset.dtype.itemsize:
        raise InputError(f"{path}: truncated, the file ends inside '{dataset.name.lstrip('/')}'")
    return np.memmap(path, dataset.dtype, mode, offset, dataset.shape)


def sample_rows(rows: Rows | np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Read the rows `chosen` (n,), which must be ascending, in one pass over the file: (n, D)."""
    ends = np.searchsorted(chosen, [part.stop for part in blocks(len(rows))])
    parts = np.split(chosen, ends[:-1])
    pairs = zip(blocks(len(rows)), parts)
    return np.concatenate([rows[part][picked - part.start] for part, picked in pairs if len(picked)])
