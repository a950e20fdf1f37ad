"""Outputs appear complete or not at all, and have one writer at a time.

An output is written in the hidden folder `.lowshot` beside it, which only its owner may write to, under a lock that
ends with the process. It is then sealed (`core.sealing`), flushed to disk, and exchanged with the old output in one
step. What lowshot did not write is never removed, replaced or followed.

The lock is `flock` by filelock. On network file systems it holds between machines only if their `flock` does (NFS from
Linux 2.6.12 on; Lustre with the mount option flock). Where there is none, filelock falls back to a lock file with the
holder's process number. Between users there is no lock: each has a `.lowshot` of their own.
"""

import ctypes
import errno
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lowshot.core.artifacts import Recipe, Sources, begins_like_ours, ended_early, read_recipe
from lowshot.core.errors import InputError, NotReadable
from lowshot.core.files import read_json, write_json
from lowshot.core.journal import Journal, is_of_another_run
from lowshot.core.progress import say
from lowshot.core.sealing import (
    UNSEALED,
    Damaged,
    SealedFile,
    seal_folder,
    seal_h5,
    sha256,
    sums_of,
    verify_folder,
)

_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2
# Set by the option --wait: wait for another writer instead of stopping.
WAIT = "LOWSHOT_WAIT"
_JOURNAL = ".journal"
# Names in folders of older revisions, which have no SHA256SUMS.
_OLDER_NAMES = {"config.json", "model.pt", "last.pt", "log.jsonl", "tensorboard", "checkpoint.pt", "images.h5",
                "split.json", "draws.json", "mixture.h5", "extractor", "report.html", "tables", "plots"}  # fmt: skip


class Occupied(InputError):
    """The place of an output is taken: by another process that writes it, or by something else."""


def is_done(out: Path, made_from: Recipe, overwrite: bool) -> bool:
    """Return whether `out` already exists and was made from the same inputs and settings. If so, print it.

    Raises InputError with the difference if it was made differently. With `overwrite` the answer is always no.
    """
    out = Path(out)
    if overwrite or not out.exists():
        return False
    try:
        stored = read_recipe(out)
        _refuse_if_other(out, stored, made_from)
        verify(out)
    except Damaged as error:
        raise Damaged(f"{error}. Use --overwrite to make {out} again") from None
    except NotReadable as error:
        remedy = f"Use --overwrite to make {out} again" if begins_like_ours(out) else "Use another name"
        raise InputError(f"{error}. {remedy}") from None
    early = ended_early(stored["config"])
    clear(out, made_from)
    print(f"{made_from['stage']}: {out} already exists, made from the same inputs and settings{early}")
    return True


def verify(path: Path) -> None:
    """Raise Damaged if a file or folder does not have its checksums. What has none is not verified."""
    if path.is_dir():
        verify_folder(path)
    elif path.suffix in {".h5", ".hdf5"}:
        with SealedFile(path) as file:
            file.verify()
    elif path.suffix in {".json", ".yaml"}:
        read_recipe(path)  # reading verifies
        table = path.with_suffix("")
        if is_record(path) and table.exists() and not is_recorded(table):
            raise Damaged(f"{table}: damaged or edited, it is not the table that {path.name} was written for")


def _refuse_if_other(path: Path, stored: dict | None, made_from: Recipe) -> None:
    if stored is None:
        raise InputError(f"{path}: exists, but does not record what made it. Use another name")
    if difference := made_from.difference(stored):
        raise InputError(f"{path}: exists, but was made differently ({difference}). Use another name, or --overwrite")


def clear(out: Path, made_from: Recipe) -> None:
    """Remove what interrupted processes left of the complete `out`, but no unfinished work with another recipe."""
    leftover, folder = partial_path(out), _workplace(out.parent)
    ends = (".lock", ".holder", ".old", _JOURNAL, "")
    if not any(os.path.lexists(folder / f"{out.name}{end}") for end in ends):
        return
    with suppress(InputError), _lock(out):  # it may be that of a living process
        _finish_exchange(out)
        is_old_output = leftover.is_dir() and sums_of(leftover) is not None
        stored = partial_recipe(leftover)
        if is_old_output or stored is None or made_from.difference(stored) is None:
            _remove(leftover)
        if not is_of_another_run(_journal_path(leftover), made_from):
            _journal_path(leftover).unlink(missing_ok=True)


@contextmanager
def writing(out: Path, made_from: Recipe | None = None, resumable: bool = False) -> Iterator[Path]:
    """Yield a path to write to, and publish it as `out` when the block ends without an error.

    A block that writes a folder creates it. After an error the unfinished output is removed, or kept if `resumable`. A
    resumable leftover with a recipe other than `made_from` is discarded. A journal (`core.journal`) is kept except
    after bad input.

    Raises InputError if another process writes `out`, or if `out` exists and is not an output of lowshot.
    """
    out = Path(out)
    check_out(out)
    sources = made_from.sources if made_from is not None else Sources()
    sources.check()
    _refuse_inputs(out, sources)
    with _parents(out), _lock(out):
        _finish_exchange(out)
        partial = partial_path(out)
        parts = _journal_path(partial)
        if partial.is_symlink() or (os.path.lexists(partial) and not (resumable and _continues(partial, made_from))):
            _remove(partial)
        try:
            yield partial
            _check_after(sources, partial)
            publish(partial, out)
        except BaseException as error:
            if isinstance(error, OSError) and error.filename is None:  # a full disk: say where
                error.filename = str(out)
            if not resumable:
                _remove(partial)
            if isinstance(error, InputError) and not isinstance(error, Occupied):
                parts.unlink(missing_ok=True)
            kept = [path for path in (parts, partial) if os.path.lexists(path)]
            if kept and not hasattr(error, "__notes__"):
                error.add_note(f"the same command continues from {kept[0]}")
            raise
        parts.unlink(missing_ok=True)


@contextmanager
def _parents(out: Path) -> Iterator[None]:
    """Make the folders that `out` is in. After an error, those that were made and are empty are removed."""
    made = [parent for parent in out.parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # they hold something
            for parent in made:
                parent.rmdir()
        raise


def _check_after(sources: Sources, partial: Path) -> None:
    """Raise InputError if an input has changed, and remove what was made from it."""
    try:
        sources.check()
    except InputError:
        _remove(partial)
        raise


def _refuse_inputs(out: Path, sources: Sources) -> None:
    """Raise InputError if `out` is, or contains, a file that the stage reads."""
    place = out.resolve()
    for source in sources:
        if place in (source.resolve(), *source.resolve().parents):
            raise InputError(f"{out}: is where the input {source} is. Use another name")


@contextmanager
def building(out: Path, made_from: Recipe) -> Iterator[Path]:
    """Like `writing`, for a file that an interrupted run continues. After bad input it is removed."""
    with writing(out, made_from, resumable=True) as partial:
        try:
            yield partial
        except InputError:
            partial.unlink(missing_ok=True)
            raise


def _continues(partial: Path, made_from: Recipe) -> bool:
    stored = partial_recipe(partial)
    if stored is None:
        say(f"{partial}: an unfinished output that cannot be read, it is thrown away")
    return stored is not None and made_from.difference(stored) is None


def partial_recipe(partial: Path) -> dict | None:
    """Return the recipe of an unfinished output, or None if it does not exist or cannot be read."""
    try:
        return read_recipe(partial) if partial.exists() else None
    except InputError:
        return None


def partial_path(out: Path) -> Path:
    """Return where `out` is written until it is complete."""
    _check_name(out)
    return _workplace(out.parent) / out.name


def open_journal(partial: Path, made_from: Recipe) -> Journal:
    """Open the journal of an unfinished output, within `writing`. It is removed with the output's publication."""
    return Journal(_journal_path(partial), made_from)


def _journal_path(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}{_JOURNAL}")


def _workplace(parent: Path) -> Path:
    """Return the hidden folder for unfinished outputs in `parent`: `.lowshot`, or one with the user's number if that
    belongs to another user.
    """
    ours = parent / ".lowshot"
    if hasattr(os, "getuid") and os.path.lexists(ours) and ours.lstat().st_uid != os.getuid():
        ours = parent / f".lowshot-{os.getuid()}"
    return ours


def is_workplace(folder: Path) -> bool:
    """Whether a folder holds unfinished outputs."""
    return folder.name == ".lowshot" or folder.name.startswith(".lowshot-")


def _private_folder(parent: Path) -> Path:
    """Make the hidden folder. Raises InputError if it is a link, or if others can write to it."""
    folder = _workplace(parent)
    created = False
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        created = True
    facts = folder.lstat()
    is_private = not hasattr(os, "getuid") or (facts.st_uid == os.getuid() and not facts.st_mode & 0o022)
    # FAT file systems have no permissions: whoever may write there may write everywhere.
    if not folder.is_dir() or folder.is_symlink() or not (is_private or created or _has_no_permissions(parent)):
        raise InputError(f"{folder}: must be a folder that only you can write to, for unfinished outputs. Remove it")
    return folder


def _has_no_permissions(folder: Path) -> bool:
    """Whether the file system of a folder ignores permissions."""
    probe = folder / f".lowshot-{os.getpid()}.probe"
    try:
        probe.mkdir(mode=0o700)
        return bool(probe.stat().st_mode & 0o022)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            probe.rmdir()


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Hold the lock of an output. Raises InputError if another process has it, unless told to wait."""
    lock = _acquired(out)
    holder = Path(lock.lock_file).with_suffix(".holder")
    try:
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        _write_new(holder, json.dumps({**facts, "command": Path(sys.argv[0]).name}))
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
            Path(lock.lock_file).unlink(missing_ok=True)  # filelock takes no lock on a removed file
        lock.release()
        with suppress(OSError):  # it holds something else
            holder.parent.rmdir()


def _acquired(out: Path) -> FileLock:
    """Return the acquired lock."""
    told = False
    while True:
        lock = FileLock(_private_folder(out.parent) / f"{out.name}.lock", mode=0o600)
        try:
            lock.acquire(timeout=1 if told else 0)
            return lock
        except FileNotFoundError:  # another process has just removed the empty folder
            continue
        except Timeout:
            held = _held_by(Path(lock.lock_file).with_suffix(".holder"))
            if WAIT not in os.environ:
                raise Occupied(f"{out}: {held}. Use another name, or --wait") from None
            if not told:
                say(f"{out}: {held}; waiting for it")
            told = True


def _write_new(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def _held_by(holder: Path) -> str:
    try:
        facts = json.loads(holder.read_text(encoding="utf-8"))
        return "is being written by {command}, process {pid} on {host}, since {since}".format(**facts)
    except (OSError, ValueError, KeyError):
        return "is being written by another process"


def check_out(out: Path) -> None:
    """Raise InputError unless `out` is free, or an output of lowshot that may be replaced."""
    _check_name(out)
    if out.is_symlink():
        raise Occupied(f"{out}: is a symbolic link. Name its target {out.resolve()}, or use another name")
    if not out.exists():
        return
    if not _may_replace(out):
        raise Occupied(
            f"{out}: exists, and lowshot did not write it, or it was edited or cut off, so it is not replaced. Delete "
            "it, or use another name"
        )
    if out.is_dir() and (others := _others_in(out)):
        named = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
        raise Occupied(
            f"{out}: contains files that lowshot did not write ({named}), so it is not replaced. Move them away, or "
            "use another name"
        )


def _check_name(out: Path) -> None:
    if out.name in ("", ".."):
        raise Occupied(f"--out {out}: must have a name of its own, such as outputs/data")


def record_path(out: Path) -> Path:
    """Return the file beside `out` that holds its recipe, for formats that have no room for one (.csv)."""
    return out.with_name(f"{out.name}.json")


def is_record(path: Path) -> bool:
    """Whether a file is the record of a table."""
    return path.name.endswith(".csv.json") and "tables" in read_json(path)


def check_record(out: Path) -> None:
    """Raise InputError if the place of the record of `out` is taken by something else."""
    record = record_path(out)
    check_out(record)
    if record.exists() and "schema" in read_json(record):
        raise InputError(f"{record}: exists, and is not the record of {out.name}. Use another name for the table")


def write_record(out: Path, partial: Path, made_from: Recipe) -> None:
    """Write the recipe of `partial`, which will replace `out`, with the digests of both: whichever of the two a killed
    run leaves as `out` is known as ours.
    """
    digests = dict.fromkeys(sha256(path) for path in (partial, out) if path.exists())
    with writing(record_path(out), made_from) as record:
        write_json(record, {**made_from, "tables": list(digests)})


def _recorded(out: Path) -> list[str]:
    """Return the digests in the record of `out`: the current one first. Older records have none, and fit any file."""
    record = read_json(record_path(out)) if record_path(out).is_file() else {}
    return record.get("tables", [sha256(out)]) if isinstance(record, dict) and "stage" in record else []


def is_recorded(out: Path) -> bool:
    """Whether a file exists, and is the one that its record was written for. True for formats without a record."""
    return out.exists() and (out.suffix != ".csv" or sha256(out) in _recorded(out)[:1])


def is_ours(out: Path) -> bool:
    """Whether an existing output has a recipe, or checksums of ours. Raises InputError if a file cannot be read."""
    if out.suffix == ".csv":
        return sha256(out) in _recorded(out)
    try:
        return read_recipe(out) is not None or (out.is_dir() and sums_of(out) is not None)
    except Damaged:
        return True
    except NotReadable:
        return begins_like_ours(out)


def _may_replace(out: Path) -> bool:
    try:
        return is_ours(out)
    except InputError:
        return False


def _others_in(folder: Path) -> list[str]:
    """List what lowshot did not write into a folder."""
    sums = sums_of(folder)
    if sums is None:
        return [path.name for path in sorted(folder.iterdir()) if path.name not in _OLDER_NAMES]
    files = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    names = [path.relative_to(folder) for path in files]
    return [name.as_posix() for name in names if name.parts[0] not in UNSEALED and name.as_posix() not in sums]


def publish(partial: Path, out: Path) -> None:
    """Seal and flush `partial`, and exchange it with an existing output."""
    _seal(partial)
    for path in [partial, *partial.rglob("*")] if partial.is_dir() else [partial]:
        _flush(path)
    check_out(out)  # the user may have put something there in the meantime
    if partial.is_dir() and out.exists():
        if not _exchanged(partial, out):
            out.rename(_old_path(out))
            partial.rename(out)
            _remove(_old_path(out))
        else:
            _remove(partial)
    else:
        partial.replace(out)
    _flush(out.parent)


def _seal(partial: Path) -> None:
    for path in [partial] if partial.is_file() else sorted(partial.rglob("*.h5")):
        if path.suffix in {".h5", ".hdf5"}:
            seal_h5(path)
    if partial.is_dir():
        seal_folder(partial)


def _old_path(out: Path) -> Path:
    return _workplace(out.parent) / f"{out.name}.old"


def _finish_exchange(out: Path) -> None:
    """Undo or finish an exchange in two steps that was interrupted."""
    old = _old_path(out)
    if not os.path.lexists(old):
        return
    if out.exists():
        _remove(old)
    else:
        old.rename(out)


def _exchanged(partial: Path, out: Path) -> bool:
    """Exchange two folders in one step. Returns False where the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    names = os.fsencode(partial), os.fsencode(out)
    if hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    elif hasattr(libc, "renamex_np"):  # macOS
        failed = libc.renamex_np(*names, _RENAME_SWAP)
    else:
        return False
    if failed and (code := ctypes.get_errno()) not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(code, os.strerror(code), str(out))
    return not failed


def _flush(path: Path) -> None:
    """Flush a file or folder to disk, as far as the system can."""
    if path.is_file():
        with path.open("r+b") as handle:  # Windows flushes writable files only
            os.fsync(handle.fileno())
    elif os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot flush folders
                os.fsync(folder)
        finally:
            os.close(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
