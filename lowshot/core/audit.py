"""Walk a folder of outputs, and tell the state of each."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from lowshot.core.artifacts import CONTENT, stored_recipe
from lowshot.core.errors import InputError
from lowshot.core.files import DIGESTED, digest, missing
from lowshot.core.locking import is_held, is_helper, is_workplace
from lowshot.core.ownership import is_ours, is_record
from lowshot.core.progress import Progress
from lowshot.core.publishing import verify
from lowshot.core.sealing import SUMS, SealedFile, sums_of

State = Literal["whole", "without checksums", "damaged", "not readable", "orphaned", "unfinished", "being written"]
_SUFFIXES = {".h5", ".hdf5", ".json", ".yaml"}


class Finding(NamedTuple):
    """State of an output: `cause` says what is damaged, `lost` names inputs of which no output has the digest."""

    path: Path
    state: State
    cause: str = ""
    lost: tuple[str, ...] = ()


def audit(folder: Path) -> list[Finding]:
    """Return the state of all outputs below `folder`, where stages may be at work, by path.

    Raises InputError if there is no such folder.
    """
    if not folder.is_dir():
        raise missing(folder, "no such folder")
    states = map(_state_of, Progress(sorted(_outputs(folder)), "verify", unit="output"))
    found = [one for one in states if os.path.lexists(one.path)]
    known = _digests([one.path for one in found if one.state not in _OPEN])
    return [one._replace(lost=_lost(one.path, known)) if one.state not in _OPEN else one for one in found]


_OPEN = {"damaged", "not readable", "unfinished", "being written"}


def _outputs(folder: Path) -> Iterator[Path]:
    """Yield outputs, unfinished ones, and what cannot be read. What is in a folder of an output belongs to it."""
    left = [folder]
    while left:
        parent = left.pop()
        try:
            paths = list(parent.iterdir())
        except FileNotFoundError:
            continue
        except OSError:
            yield parent
            continue
        if is_workplace(parent):
            yield from filter(_is_unfinished, paths)
            continue
        for path in paths:
            if path.is_symlink():
                continue
            if path.is_dir() and (is_workplace(path) or not _is_output(path)):
                left.append(path)
            elif path.is_dir() or (path.is_file() and path.suffix in _SUFFIXES and _is_output(path)):
                yield path


def _is_unfinished(path: Path) -> bool:
    """Whether a path in a workplace is an unfinished output, or the journal of one of which there is nothing else."""
    if not is_helper(path):
        return True
    return path.suffix == ".old" or (path.suffix == ".journal" and not _unhelped(path).exists())


def _is_output(path: Path) -> bool:
    try:
        return is_ours(path)
    except (InputError, OSError):
        return True  # damaged, or not readable


def _state_of(path: Path) -> Finding:
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        return Finding(path, "not readable", "permission denied")
    if is_workplace(path.parent):
        return Finding(path, "being written" if is_held(_unhelped(path)) else "unfinished")
    try:
        verify(path)
        if is_record(path) and not (table := path.with_suffix("")).exists():
            return Finding(path, "orphaned", f"the record of {table.name}, which is not here")
        unlisted = _without_checksum(path)
    except InputError as error:
        return Finding(path, "damaged", str(error))
    except OSError as error:
        return Finding(path, "not readable", str(error))
    return Finding(path, "without checksums" if unlisted else "whole", unlisted)


def _unhelped(path: Path) -> Path:
    """Return the unfinished output that a journal belongs to, or `path` itself."""
    return path.with_name(path.name[1:].rpartition(".")[0]) if is_helper(path) else path


def _without_checksum(path: Path) -> str:
    """Say which content of an output has no checksum; nothing if all has."""
    if path.is_dir():
        sums = sums_of(path) or {}
        names = [one.name for one in sorted(path.iterdir()) if one.suffix in DIGESTED and one.name not in sums]
        return f"{', '.join(names)}: not in {SUMS}" if names else ""
    if path.suffix in {".h5", ".hdf5"}:
        with SealedFile(path) as file:
            return "" if file.has_checksums else "no checksums at its end"
    return "" if "checksum" in path.read_text(encoding="utf-8")[-200:] else "no entry checksum"


def _digests(paths: list[Path]) -> set[str]:
    """Return the digests by which recipes name outputs: those of files, folders, and files in folders."""
    parts = [part for path in paths if path.is_dir() for part in path.rglob("*") if part.is_file() or part.is_dir()]
    known = set()
    for path in [*paths, *parts]:
        with suppress(InputError, OSError):  # replaced by a stage, or not readable
            known.add(digest(path))
    return known


def _lost(path: Path, known: set[str]) -> tuple[str, ...]:
    """Return the inputs that no output here has the digest of. Those of preprocessing.py are no outputs."""
    made_from = stored_recipe(path)
    if made_from["stage"] == "preprocessing":
        return ()
    own = {"selection", CONTENT} | ({"images"} if made_from["stage"] == "predict" else set())
    named = {name: one.partition(":")[0] for name, one in made_from["inputs"].items() if one and name not in own}
    lost = tuple(name for name, one in named.items() if one not in known)
    has_choice = "selection" not in made_from["inputs"] or path.with_suffix(".selection.yaml").exists()
    return lost if has_choice else (*lost, "selection")
