"""Damage files in the many ways that hypothesis finds, and read them: they are accepted, or refused in one line.

Each file is read in a fork, so that a crash or a hang of a library ends that process only.
"""

import faulthandler
import json
import os
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import yaml
from hypothesis import strategies as st

from lowshot.core.errors import InputError

SECONDS = 30
_SLACK = 16 << 20  # bytes that a reader may need beside twice the honest need, for imports and the like
_ADDRESSES = 2 << 30  # bytes of address space that a reader may ask for


class Reader(NamedTuple):
    """A reader of files: `read` reads the file `path`, in which `honest` is right, and `damaged` are the damages."""

    name: str
    path: Path
    honest: bytes
    read: Callable[[Path], Any]
    damaged: Callable[[bytes], st.SearchStrategy[bytes]]


class Outcome(NamedTuple):
    """How reading ended: what is wrong with it in words (empty: nothing), and the bytes of memory that it took."""

    violation: str
    taken: int


def outcome(reader: Reader, content: bytes) -> Outcome:
    """Read a damaged file in a fork."""
    reader.path.write_bytes(content)
    said = tempfile.TemporaryFile()  # noqa: SIM115 -- closed below
    child = os.fork()
    if child == 0:
        _read_in_child(reader, said.fileno())
    ended, usage, end = 0, None, time.monotonic() + SECONDS
    while not ended:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if not ended and time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            return Outcome("hang", 0)
        time.sleep(0 if ended else 0.001)
    said.seek(0)
    with said:
        before, _, violation = said.read().decode(errors="replace").partition("\n")
    if os.WIFSIGNALED(status):
        violation = f"crash with signal {os.WTERMSIG(status)}"
    return Outcome(violation, (usage.ru_maxrss - int(before or 0)) * 1024)


def _read_in_child(reader: Reader, said: int) -> None:
    """Read the file, and write the memory at the start and what is wrong to the descriptor `said`."""
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ADDRESSES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.write(said, b"%d\n" % resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    wrong = ""
    try:
        reader.read(reader.path)
    except (InputError, OSError) as error:
        if isinstance(error.__context__, MemoryError):
            wrong = f"asks for too much memory: {error}"
        elif not str(error):
            wrong = f"says nothing: {error!r}"
    except BaseException:
        wrong = traceback.format_exc()
    os.write(said, wrong.encode(errors="replace"))
    os._exit(0)


def violation(found: Outcome, honest: Outcome) -> str:
    """Return what is wrong with how a damaged file was read, or nothing."""
    if not found.violation and found.taken > 2 * honest.taken + _SLACK:
        return f"takes {found.taken >> 20} MiB, the honest file {honest.taken >> 20} MiB"
    return found.violation


# --- damages of any file ---

_TOKENS = [b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 60000, b'{"a":' * 30000, b"\xff\xfe", b"\x00",
           b"\xef\xbb\xbf", b"null", b"true", b"-1", b'""', b"&a [*a]", b"!!python/object:os.system", b"2001-99-99",
           b"<<: *x", b"\n", b"=1+1", b'"\\ud800"', b"\xe2\x80\xae", b": ", b"- ", b"'", b"{}", b"[]"]  # fmt: skip


@st.composite
def _scratched(draw: st.DrawFn, honest: bytes) -> bytes:
    """Bytes of the file that are flipped, cut off, overwritten, moved or inserted."""
    data = bytearray(honest)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)) | st.integers(0, min(4096, max(0, len(data) - 1))))
        kind = draw(st.sampled_from(["flip", "flip", "cut", "overwrite", "zero", "insert", "copy"]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at:]
        elif kind == "overwrite":
            new = draw(st.binary(min_size=1, max_size=16))
            data[at : at + len(new)] = new
        elif kind == "zero":
            data[at : at + 64] = bytes(min(64, len(data) - at))
        elif kind == "insert":
            data[at:at] = draw(st.sampled_from(_TOKENS))
        elif kind == "copy":
            source = draw(st.integers(0, max(0, len(data) - 1)))
            data[at : at + 32] = data[source : source + 32]
    return bytes(data)


# --- damages of JSON and YAML ---

_PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.sampled_from([2**31, 2**62, 2**63, 2**64, 10**400, -(2**70), 0.5, 1.9, -0.0, 1e308, 5e-324])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(
        ["=1+1", "a\nb", "<b>", "x" * 2000, "../../x", "{trial}", "\u202e", "NaN", "1", "true", "\\", "%s"]
    )
)
_VALUES = st.recursive(
    _PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def _places(content: Any) -> list[tuple[Any, Any]]:
    """List (container, key) of every value at any depth, level by level."""
    places, level = [], [content]
    while level:
        containers = [one for one in level if isinstance(one, dict | list)]
        found = [(one, key) for one in containers for key in (one if isinstance(one, dict) else range(len(one)))]
        places, level = places + found, [one[key] for one, key in found]
    return places


@st.composite
def _edited(draw: st.DrawFn, honest: bytes, dump: Callable[[Any], str]) -> bytes:
    """Values that are replaced, removed, renamed or exchanged."""
    content = yaml.safe_load(honest)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(content)
        if not places:
            break
        shallow = places[: draw(st.sampled_from([8, 40, len(places)]))]
        container, key = draw(st.sampled_from(range(len(shallow))).map(shallow.__getitem__))
        kind = draw(st.sampled_from(["replace", "replace", "remove", "rename", "append", "exchange"]))
        if kind == "replace":
            container[key] = draw(_VALUES)
        elif kind == "remove":
            del container[key]
        elif kind == "rename" and isinstance(container, dict):
            container[draw(st.text(max_size=6))] = container.pop(key)
        elif kind == "append" and isinstance(container[key], list):
            container[key].append(draw(_VALUES))
        elif kind == "exchange":
            other, there = draw(st.sampled_from(range(len(places))).map(places.__getitem__))
            if there in (other if isinstance(other, dict) else range(len(other))):
                container[key] = json.loads(json.dumps(other[there]))
    if draw(st.integers(0, 20)) == 0:
        content = draw(_VALUES)
    return dump(content).encode("utf-8", errors="surrogatepass")


def damaged_json(honest: bytes) -> st.SearchStrategy[bytes]:
    """Damages of a JSON file."""
    return _edited(honest, json.dumps) | _edited(honest, json.dumps) | _scratched(honest)


def damaged_yaml(honest: bytes) -> st.SearchStrategy[bytes]:
    """Damages of a YAML file. Text that YAML cannot hold is written as JSON, which is YAML too."""
    return _edited(honest, json.dumps) | _edited(honest, yaml.safe_dump) | _scratched(honest)


# --- damages of HDF5 ---

_DTYPES = ["i1", "i4", "i8", "u8", "f2", "f4", "f8", "f16", "c8", "S5", "?", ">f4", ">i8", "V4"]
_SHAPES: list[Callable[[tuple], tuple]] = [
    lambda shape: (), lambda shape: (0,), lambda shape: (*shape, 1), lambda shape: shape[::-1], lambda shape: shape[:1],
    lambda shape: (1, *shape), lambda shape: (shape[0] - 1, *shape[1:]), lambda shape: (shape[0] + 1, *shape[1:]),
    lambda shape: (0, *shape[1:]), lambda shape: (*shape[:-1], 0),
]  # fmt: skip


def _replace(file: h5py.File, name: str, **options: Any) -> None:
    del file[name]
    file.create_dataset(name, **options)


def _another_type(file: h5py.File, name: str, draw: st.DrawFn) -> None:
    dtype, shape = draw(st.sampled_from(_DTYPES)), file[name].shape
    _replace(file, name, shape=shape, dtype=dtype)


def _another_shape(file: h5py.File, name: str, draw: st.DrawFn) -> None:
    shape = draw(st.sampled_from(_SHAPES))(file[name].shape or (1,))
    values = np.resize(file[name][()], [max(0, n) for n in shape])
    _replace(file, name, data=values)


def _bomb(file: h5py.File, name: str, draw: st.DrawFn) -> None:
    rows, width = draw(st.sampled_from([2**20, 2**27, 2**40])), draw(st.sampled_from([1, 64]))
    kept = draw(st.booleans())
    filters = {"compression": "gzip", "shuffle": True} if draw(st.booleans()) else {}
    shape = (rows, *file[name].shape[1:]) if kept else (rows, width)
    dtype = file[name].dtype if file[name].dtype.kind != "O" else "f4"
    _replace(file, name, shape=shape, dtype=dtype, chunks=tuple(min(n, 1024) or 1 for n in shape), **filters)


def _another_value(file: h5py.File, name: str, draw: st.DrawFn) -> None:
    values = file[name][()]
    if values.size and values.dtype.kind in "fiub":
        kinds = {"f": [np.nan, np.inf, -np.inf, 1e30, -1e30, 0], "b": [True]}
        value = draw(st.sampled_from(kinds.get(values.dtype.kind, [-1, 10**6, np.iinfo(np.int32).max, 0])))
        np.ndarray.flat.__get__(np.atleast_1d(values))[draw(st.integers(0, values.size - 1))] = np.array(value).astype(
            values.dtype
        )
        _replace(file, name, data=values)


def _elsewhere(file: h5py.File, name: str, draw: st.DrawFn) -> None:
    """A link, a virtual data set, or data in another file."""
    shape, dtype = file[name].shape, file[name].dtype
    kind = draw(st.sampled_from(["soft", "loop", "external", "virtual", "outside", "hard"]))
    del file[name]
    if kind == "soft":
        file[name] = h5py.SoftLink(f"/{draw(st.sampled_from(list(file) or ['x']))}")
    elif kind == "loop":
        file[name] = h5py.SoftLink(f"/{name}")
    elif kind == "external":
        file[name] = h5py.ExternalLink(file.filename if draw(st.booleans()) else "/dev/zero", f"/{name}")
    elif kind == "virtual":
        layout = h5py.VirtualLayout(shape or (1,), dtype)
        layout[...] = h5py.VirtualSource("/dev/null", name, shape or (1,))
        file.create_virtual_dataset(name, layout)
    elif kind == "outside" and dtype.kind != "O":
        file.create_dataset(name, shape, dtype, external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)])
    elif kind == "hard" and list(file):
        file[name] = file[draw(st.sampled_from(list(file)))]


def _another_thing(file: h5py.File, name: str, draw: st.DrawFn) -> None:
    kind = draw(st.sampled_from(["absent", "group", "empty", "texts", "type", "records"]))
    del file[name]
    if kind == "group":
        file.create_group(name)
    elif kind == "empty":
        file[name] = h5py.Empty("f4")
    elif kind == "texts":
        file.create_dataset(name, data=["1", "a\ud800".encode("utf-8", "replace"), "x" * 9], dtype=h5py.string_dtype())
    elif kind == "type":
        file[name] = np.dtype("f4")
    elif kind == "records":
        file[name] = np.zeros(3, [("a", "f4"), ("b", "i4")])


def _another_filter(file: h5py.File, name: str, draw: st.DrawFn) -> None:
    values = file[name][()]
    if values.ndim and values.size and values.dtype.kind in "fiu":
        options = draw(
            st.sampled_from([{"compression": "gzip"}, {"compression": "lzf"}, {"fletcher32": True}, {"shuffle": True}])
        )
        _replace(file, name, data=values, chunks=tuple(max(1, n // 2) for n in values.shape), **options)


def _another_attribute(file: h5py.File, name: str, draw: st.DrawFn) -> None:
    known = [*file.attrs, "config", "root"]
    value = draw(
        _PLAIN | _VALUES.map(json.dumps) | st.sampled_from([np.arange(9), np.float32(1), b"\xff", "[" * 60000])
    )
    try:
        file.attrs[draw(st.sampled_from(known))] = np.nan if value is None else value
    except (TypeError, ValueError, OverflowError, OSError, RuntimeError):
        del file.attrs[known[0]]


_EDITS = [
    _another_type,
    _another_shape,
    _bomb,
    _another_value,
    _elsewhere,
    _another_thing,
    _another_filter,
    _another_attribute,
]


@st.composite
def _restructured(draw: st.DrawFn, honest: bytes) -> bytes:
    """Data sets of other types, shapes, values, places and filters."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.h5"
        path.write_bytes(honest)
        with h5py.File(path, "r+") as file:
            for _ in range(draw(st.integers(1, 2))):
                names = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)
                         and isinstance(file[name], h5py.Dataset) and file[name].shape is not None]  # fmt: skip
                names = [name for name in names if file[name].nbytes < 2**20]
                if names:
                    with suppress(OSError, RuntimeError, KeyError):  # what an earlier edit made impossible
                        draw(st.sampled_from(_EDITS))(file, draw(st.sampled_from(names)), draw)
        content = path.read_bytes()
    return draw(_scratched(content)) if draw(st.integers(0, 4)) == 0 else content


def damaged_h5(honest: bytes) -> st.SearchStrategy[bytes]:
    """Damages of an HDF5 file."""
    return _restructured(honest) | _scratched(honest)
