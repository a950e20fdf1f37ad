"""Replace an older output with a finished one: in one step where the system can."""

import ctypes
import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from lowshot.core.locking import helper, workplace

_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2


def exchange(partial: Path, out: Path) -> None:
    """Move the file or folder `partial` to `out`, and remove what was there."""
    if not (partial.is_dir() and out.exists()):
        partial.replace(out)
    elif _exchanged(partial, out):
        remove(partial)
    else:
        out.rename(_old_path(out))
        partial.rename(out)
        remove(_old_path(out))
    flush(out.parent)


def _old_path(out: Path) -> Path:
    return helper(workplace(out.parent) / out.name, "old")


def finish_exchange(out: Path) -> None:
    """Undo or finish an exchange in two steps that was interrupted."""
    old = _old_path(out)
    if not os.path.lexists(old):
        return
    if out.exists():
        remove(old)
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


def flush(path: Path) -> None:
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


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
