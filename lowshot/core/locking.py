"""The hidden folder for unfinished outputs, and the lock that gives an output one writer at a time.

The lock is `flock` by filelock, and ends with the process. On network file systems it holds between machines only if
their `flock` does (NFS from Linux 2.6.12 on; Lustre with the mount option flock). Where there is none, filelock falls
back to a lock file with the holder's process number. Between users there is no lock: each has a hidden folder.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lowshot.core.errors import InputError, Occupied
from lowshot.core.progress import say

# Set by the option --wait: wait for another writer instead of stopping.
WAIT = "LOWSHOT_WAIT"


def workplace(parent: Path) -> Path:
    """Return the hidden folder for unfinished outputs in `parent`: `.lowshot`, or one with the user's number if that
    belongs to another user.
    """
    ours = parent / ".lowshot"
    if hasattr(os, "getuid") and os.path.lexists(ours) and ours.lstat().st_uid != os.getuid():
        ours = parent / f".lowshot-{os.getuid()}"
    return ours


def helper(unfinished: Path, kind: str) -> Path:
    """Return the path of a helper of an unfinished output, such as its "lock". No output may have such a name
    (`core.ownership.check_name`).
    """
    return unfinished.with_name(f"~{unfinished.name}.{kind}")


def is_helper(path: Path) -> bool:
    """Whether a path in a workplace was made by `helper`."""
    return path.name.startswith("~")


def is_workplace(folder: Path) -> bool:
    """Whether a folder holds unfinished outputs."""
    return folder.name == ".lowshot" or folder.name.startswith(".lowshot-")


def _private_folder(parent: Path) -> Path:
    """Make the hidden folder. Raises InputError if it is a link, or if others can write to it."""
    folder = workplace(parent)
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
def lock(out: Path) -> Iterator[None]:
    """Hold the lock of an output. Raises InputError if another process has it, unless told to wait."""
    held = _acquired(out)
    holder = helper(workplace(out.parent) / out.name, "holder")
    try:
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        _write_new(holder, json.dumps({**facts, "command": Path(sys.argv[0]).name}))
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
            Path(held.lock_file).unlink(missing_ok=True)  # filelock takes no lock on a removed file
        held.release()
        with suppress(OSError):  # it holds something else
            holder.parent.rmdir()


def is_held(unfinished: Path) -> bool:
    """Whether a living process writes an unfinished output. False if it cannot be told."""
    path = helper(unfinished, "lock")
    try:
        if path.exists():
            with FileLock(path, timeout=0):
                pass
    except Timeout:
        return True
    except OSError:  # no permission
        return False
    return False


def _acquired(out: Path) -> FileLock:
    """Return the acquired lock."""
    told = False
    while True:
        unfinished = _private_folder(out.parent) / out.name
        mine = FileLock(helper(unfinished, "lock"), mode=0o600)
        try:
            mine.acquire(timeout=1 if told else 0)
            return mine
        except FileNotFoundError:  # another process has just removed the empty folder
            continue
        except Timeout:
            held = _held_by(helper(unfinished, "holder"))
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
