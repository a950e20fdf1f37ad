"""Walk a folder of outputs, and tell the state of each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from filelock import FileLock, Timeout

from lowshot.core.artifacts import CONTENT, stored_recipe
from lowshot.core.errors import InputError
from lowshot.core.files import digest, missing
from lowshot.core.locking import is_workplace
from lowshot.core.ownership import is_ours, is_record
from lowshot.core.progress import Progress
from lowshot.core.publishing import verify
from lowshot.core.sealing import SealedFile, sums_of

State = Literal["whole", "without checksums", "damaged", "orphaned", "unfinished", "being written"]
_SUFFIXES = {".h5", ".hdf5", ".json", ".yaml"}


class Finding(NamedTuple):
    """State of an output: `cause` says what is damaged, `lost` names inputs of which no output has the digest."""

    path: Path
    state: State
    cause: str = ""
    lost: tuple[str, ...] = ()


def audit(folder: Path) -> list[Finding]:
    """Return the state of all outputs below `folder`, by path. Raises InputError if there is no such folder."""
    if not folder.is_dir():
        raise missing(folder, "no such folder")
    found = [_state_of(path) for path in Progress(sorted(_outputs(folder)), "verify", unit="output")]
    known = _digests([one.path for one in found if one.state != "damaged"])
    return [one._replace(lost=_lost(one.path, known)) if one.state not in _OPEN else one for one in found]


_OPEN = {"damaged", "unfinished", "being written"}


def _outputs(folder: Path) -> Iterator[Path]:
    """Yield files and folders with a recipe, damaged ones, and unfinished ones. What is in a folder belongs to it."""
    left = [folder]
    while left:
        for path in left.pop().iterdir():
            if path.is_symlink():
                continue
            if is_workplace(path):
                yield from _unfinished(path)
            elif path.is_dir() and not _is_output(path):
                left.append(path)
            elif path.is_dir() or (path.is_file() and path.suffix in _SUFFIXES and _is_output(path)):
                yield path


def _unfinished(workplace: Path) -> Iterator[Path]:
    """Yield what a workplace holds: unfinished outputs, and journals of outputs of which there is nothing else yet."""
    for path in workplace.iterdir():
        is_journal = path.suffix == ".journal" and not path.with_suffix("").exists()
        if is_journal or path.suffix not in {".lock", ".holder", ".journal"}:
            yield path


def _is_output(path: Path) -> bool:
    try:
        return is_ours(path)
    except InputError:
        return True  # damaged


def _state_of(path: Path) -> Finding:
    if is_workplace(path.parent):
        return Finding(path, "being written" if _is_held(path) else "unfinished")
    try:
        verify(path)
    except InputError as error:
        return Finding(path, "damaged", str(error))
    if is_record(path) and not (table := path.with_suffix("")).exists():
        return Finding(path, "orphaned", f"the record of {table.name}, which is not here")
    return Finding(path, "whole" if _has_checksums(path) else "without checksums")


def _is_held(partial: Path) -> bool:
    lock = partial.with_name(f"{partial.name.removesuffix('.journal')}.lock")
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _has_checksums(path: Path) -> bool:
    if path.is_dir():
        return sums_of(path) is not None
    if path.suffix in {".h5", ".hdf5"}:
        with SealedFile(path) as file:
            return file.has_checksums
    return "checksum" in path.read_text(encoding="utf-8")[-200:]


def _digests(paths: list[Path]) -> set[str]:
    """Return the digests by which recipes name outputs: those of files, folders, and files in folders."""
    parts = [part for path in paths if path.is_dir() for part in path.rglob("*") if part.is_file() or part.is_dir()]
    return {digest(path) for path in [*paths, *parts]}


def _lost(path: Path, known: set[str]) -> tuple[str, ...]:
    """Return the inputs that no output here has the digest of. Those of preprocessing.py are no outputs."""
    made_from = stored_recipe(path)
    if made_from["stage"] == "preprocessing":
        return ()
    own = {"selection", CONTENT} | ({"images"} if made_from["stage"] == "predict" else set())
    named = {name: one.partition(":")[0] for name, one in made_from["inputs"].items() if one and name not in own}
    return tuple(name for name, one in named.items() if one not in known)
