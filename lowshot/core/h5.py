"""HDF5 files: open, create, check.

Files are opened through Python's file objects, for two reasons. Reading verifies the checksums of what HDF5 reads. And
a full disk is an OSError: where HDF5 writes to the disk itself, closing a file that could not be written crashes.
"""

import faulthandler
import io
import json
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lowshot.core.errors import InputError
from lowshot.core.files import facts_of, missing
from lowshot.core.sealing import SealedFile


class _Disk(io.FileIO):
    """A file that HDF5 writes. After the first error it takes everything without writing it, so that HDF5, which cannot
    close a file after an error, can. The error is `failed`.
    """

    failed: BaseException | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._try(lambda: self._write_all(view))
        return len(view)

    def _write_all(self, view: memoryview) -> None:
        done = 0
        while done < len(view):  # the system writes at most 2 GiB at once
            done += super().write(view[done:])

    def truncate(self, size: int | None = None) -> int:
        cut = super().truncate
        self._try(lambda: cut(size))
        return size or 0

    def flush(self) -> None:
        """Nothing is buffered here."""

    def _try(self, act: Callable[[], Any]) -> None:
        if self.failed is None:
            try:
                act()
            except BaseException as error:  # Ctrl-C too, which HDF5 would lose
                self.failed = error


class H5File(h5py.File):
    """An HDF5 file that is read and written through the Python file `raw`, which it closes. `path` is its path."""

    def __init__(self, path: Path, mode: str, raw: Any, **options: Any) -> None:
        self.path, self.raw = path, raw
        try:
            super().__init__(raw, mode, **options)
        except BaseException:
            raw.close()
            raise

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        reading = self.mode == "r"
        super().__exit__(kind, error, trace)
        if reading and isinstance(error, _LIBRARY) and _is_of_library(error):
            raise InputError(f"{self.path}: damaged or not readable ({_first_line(error)})") from None

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.raw.close()
        self._raise()

    def flush(self) -> None:
        super().flush()
        self._raise()

    def _raise(self) -> None:
        if failed := getattr(self.raw, "failed", None):
            self.raw.failed = None
            raise failed


def open_h5(path: Path) -> H5File:
    """Open an HDF5 file for reading. Raises InputError if it is missing, truncated or not HDF5, and Damaged on reading
    what does not have its checksum. Used as a context manager, it turns the many errors of the HDF5 library on damaged
    files into InputError.
    """
    path = Path(path)
    if not path.is_file():
        raise missing(path)
    raw = SealedFile(path)
    if not raw.has_checksums:
        _try_out(path.resolve(), *facts_of(path))
    try:
        return H5File(path, "r", raw)
    except _LIBRARY as error:
        if isinstance(error, InputError):
            raise
        cut_off = "it is cut off; make it again" if "truncated" in str(error) else _first_line(error)
        raise InputError(f"{path}: not a readable HDF5 file ({cut_off})") from None


# What h5py raises on damaged files.
_LIBRARY = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)
# For reading a file in a child process, which takes milliseconds, and for each GB of compressed data.
_SECONDS, _SECONDS_PER_GB = 10, 100


def _is_of_library(error: BaseException) -> bool:
    """Whether h5py raised an exception, and not the code that uses it."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return not isinstance(error, InputError) and any("h5py" in frame.filename for frame in last)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@lru_cache(maxsize=1024)
def _try_out(path: Path, *_facts: int) -> None:
    """Read the structure of a file without checksums in a child process first, because the HDF5 library can crash on a
    damaged file, or never return. Does nothing on systems that cannot fork.
    """
    if not hasattr(os, "fork"):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads; the child only reads the file
        child = os.fork()
    if child == 0:
        try:
            import resource  # exists on POSIX systems only

            faulthandler.disable()  # a crash is expected
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            _read_structure(path)
        finally:
            os._exit(0)
    end = time.monotonic() + _SECONDS + _SECONDS_PER_GB * path.stat().st_size / 1e9
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.001)
    if found[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise InputError(f"{path}: damaged, the HDF5 library does not come to an end with it")
    if os.WIFSIGNALED(found[1]):
        raise InputError(f"{path}: damaged, the HDF5 library crashes on it")


def _read_structure(path: Path) -> None:
    """Visit all objects of a file, with their attributes, and read what is not stored as it is in memory."""
    with suppress(Exception), h5py.File(path, "r") as file:
        names: list[str] = []
        file.visit(names.append)
        for name in ["/", *names]:
            with suppress(Exception):
                thing = file[name]
                dict(thing.attrs)
                if isinstance(thing, h5py.Dataset) and thing.id.get_offset() is None:
                    _check_storage(path, thing)
                    for part in thing.iter_chunks() if thing.chunks else [()]:
                        thing[part]


@contextmanager
def creating_h5(path: Path, **options: Any) -> Iterator[H5File]:
    """Create an HDF5 file and yield it. It appears as `path` when it is closed, so a killed process leaves no file
    without its structure.
    """
    new = path.with_name(f"~{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        with H5File(path, "w", _Disk(new, "x+"), **options) as file:
            yield file
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    new.replace(path)


def create_array(file: H5File, name: str, shape: tuple[int, ...], dtype: str | type | np.dtype) -> None:
    """Create a dataset of zeros whose place in the file is fixed at once. It can be memory-mapped, and writing to it
    changes nothing else in the file, so a killed process leaves the file readable.
    """
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # the file system returns zeros
    layout.set_obj_track_times(False)  # without timestamps, equal content has the same digest
    kind = h5py.h5t.py_create(np.dtype(dtype))
    h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), layout)


def reserve_space(file: H5File) -> None:
    """Reserve disk space for all datasets, as far as the system can. Raises OSError if the disk is too small, which
    would kill a process that writes to a memory map (SIGBUS).
    """
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.raw.fileno(), 0, os.fstat(file.raw.fileno()).st_size)


def update_h5(path: Path) -> H5File:
    """Open an unfinished HDF5 file to write into its datasets."""
    return H5File(path, "r+", _Disk(path, "r+"))


# Letters of the dtypes that a dataset may have.
_KINDS = {"floats": "f", "integers": "iu", "flags": "biu", "texts": "O", "numbers": "fiub"}


def require_datasets(file: H5File, fields: dict[str, tuple[str, int | None]]) -> None:
    """Raise InputError for the first dataset that is missing or not as in `fields`: name -> (kind, number of axes, or
    None for any).

    Links out of the file and virtual datasets are refused, because no digest would notice when their targets change.
    So are datasets that claim more than the file holds.
    """
    for name, (kind, n_axes) in fields.items():
        link = file.get(name, getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            raise InputError(f"{file.path}: '{name}' is a link to {getattr(link, 'filename', 'another dataset')}")
        dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise InputError(f"{file.path}: lacks the dataset '{name}' (it has: {_names_in(file)})")
        known = dataset.dtype.kind in _KINDS[kind] and dataset.dtype.itemsize <= 8 and dataset.shape is not None
        if not known or n_axes not in (None, dataset.ndim):
            found = f"{dataset.dtype} {dataset.shape}"
            raise InputError(f"{file.path}: '{name}' must be {kind} with {n_axes} axes, not {found}")
        _check_storage(file.path, dataset)


def _names_in(file: H5File) -> str:
    return ", ".join(one if isinstance(one, str) else repr(one) for one in file) or "nothing"


def _check_storage(path: Path, dataset: h5py.Dataset) -> None:
    """Raise InputError if the data of a dataset are elsewhere, or fewer than its shape says."""
    name, stored, needed = dataset.name.lstrip("/"), dataset.id.get_storage_size(), dataset.nbytes
    if dataset.is_virtual or dataset.external:
        raise InputError(f"{path}: the data of '{name}' are in another file. Copy them into this one")
    most = stored * (_MOST_COMPRESSED if dataset.compression else 1)
    if stored > path.stat().st_size or needed > most:
        raise InputError(f"{path}: '{name}' has {stored} bytes, but its shape {dataset.shape} needs {needed}")
    if dataset.chunks and dataset.id.get_num_chunks() < np.prod(
        -(-np.array(dataset.shape) // np.array(dataset.chunks))
    ):
        raise InputError(f"{path}: '{name}' has gaps. Write all of it")


_MOST_COMPRESSED = 1040  # deflate makes at most one byte of 1032


def write_recipe(file: h5py.File, schema: str, made_from: dict) -> None:
    """Store the schema name and the recipe as attributes of the open HDF5 `file`, and the lineage, which can be longer
    than the 64 KiB of an attribute, as a dataset of bytes.
    """
    file.attrs["schema"] = schema
    for key, value in made_from.items():
        if key == "lineage":
            file[key] = np.frombuffer(json.dumps(value).encode(), np.uint8)
        else:
            file.attrs[key] = json.dumps(value)


def read_lineage(file: H5File) -> Any:
    """Return what `write_recipe` stored as the lineage, or None. Raises InputError for anything else."""
    if "lineage" not in file:
        return None
    require_datasets(file, {"lineage": ("integers", 1)})
    try:
        return json.loads(bytes(file["lineage"][:].astype(np.uint8)))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file.path}: its lineage cannot be read ({error})") from None
