"""Outputs appear complete or not at all, and have one writer at a time.

An output is written in the hidden folder `.lowshot` beside it, which only its owner may write to, under a lock
(`core.locking`). It is then sealed (`core.sealing`), flushed to disk, and exchanged with the old output in one step
(`core.exchange`). What lowshot did not write is never removed, replaced or followed (`core.ownership`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lowshot.core.artifacts import Recipe, Sources, begins_like_ours, ended_early, read_recipe
from lowshot.core.errors import InputError, NotReadable, Occupied
from lowshot.core.exchange import exchange, finish_exchange, flush, remove
from lowshot.core.files import write_json
from lowshot.core.journal import Journal, is_of_another_run
from lowshot.core.locking import helper, lock, workplace
from lowshot.core.ownership import check_name, check_out, is_record, is_recorded, record_path
from lowshot.core.progress import say
from lowshot.core.sealing import Damaged, SealedFile, seal_folder, seal_h5, sha256, sums_of, verify_folder


def is_done(out: Path, made_from: Recipe, overwrite: bool) -> bool:
    """Return whether `out` already exists and was made from the same inputs and settings. If so, print it.

    Raises InputError with the difference if it was made differently. With `overwrite` the answer is always no.
    """
    out = Path(out)
    if overwrite or not out.exists():
        if not overwrite:
            made_from.absent.add(out)
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
    leftover = partial_path(out)
    helpers = (helper(leftover, kind) for kind in ("lock", "holder", "old", "journal"))
    if not any(os.path.lexists(path) for path in (leftover, *helpers)):
        return
    with suppress(InputError), lock(out):  # it may be that of a living process
        finish_exchange(out)
        is_old_output = leftover.is_dir() and sums_of(leftover) is not None
        stored = partial_recipe(leftover)
        if is_old_output or stored is None or made_from.difference(stored) is None:
            remove(leftover)
        if not is_of_another_run(_journal_path(leftover), made_from):
            _journal_path(leftover).unlink(missing_ok=True)


@contextmanager
def writing(out: Path, made_from: Recipe, resumable: bool = False, discard: bool = True) -> Iterator[Path]:
    """Yield a path to write to, and publish it as `out` when the block ends without an error.

    A block that writes a folder creates it. After an error the unfinished output is removed, or kept if `resumable`. A
    resumable leftover with a recipe other than `made_from` is discarded, or refused without `discard`. A journal
    (`core.journal`) is kept except after bad input.

    Raises InputError if another process writes `out` or has just made it differently, if `out` exists and is not an
    output of lowshot, or if it is inside another output.
    """
    out = Path(out)
    check_out(out)
    made_from.sources.check()
    _refuse_inputs(out, made_from.sources)
    _refuse_inside(out)
    with _parents(out), lock(out):
        finish_exchange(out)
        if out in made_from.absent and out.exists():  # another process has made it meanwhile
            _refuse_if_other(out, read_recipe(out), made_from)
        partial = partial_path(out)
        parts = _journal_path(partial)
        if not discard:
            refuse_other_leftover(partial, made_from)
        if partial.is_symlink() or (os.path.lexists(partial) and not (resumable and _continues(partial, made_from))):
            remove(partial)
        try:
            yield partial
            _check_after(made_from.sources, partial)
            publish(partial, out)
        except BaseException as error:
            if isinstance(error, OSError) and error.filename is None:  # a full disk: say where
                error.filename = str(out)
            if not resumable:
                remove(partial)
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
        remove(partial)
        raise


def _refuse_inputs(out: Path, sources: Sources) -> None:
    """Raise InputError if `out` is, or contains, a file that the stage reads."""
    place = out.resolve()
    for source in sources:
        if place in (source.resolve(), *source.resolve().parents):
            raise InputError(f"{out}: is where the input {source} is. Use another name")


def _refuse_inside(out: Path) -> None:
    """Raise InputError if `out` is inside an output, which would no longer be what its recipe says."""
    for parent in out.resolve().parents:
        if partial_recipe(parent) is not None:
            raise InputError(f"{out}: is inside the output {parent}. Use another folder")


def refuse_other_leftover(partial: Path, made_from: Recipe) -> None:
    """Raise InputError if an unfinished output has other inputs or settings."""
    stored = partial_recipe(partial)
    if stored is not None and (difference := made_from.difference(stored)):
        raise InputError(
            f"{partial}: an unfinished run that was made differently ({difference}). Continue it with its own "
            "settings, or discard it with --overwrite"
        )


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
    """Return the recipe of an output that may be unfinished, or None if it does not exist or cannot be read."""
    try:
        return read_recipe(partial) if partial.exists() else None
    except (InputError, OSError):
        return None


def partial_path(out: Path) -> Path:
    """Return where `out` is written until it is complete."""
    check_name(out)
    return workplace(out.parent) / out.name


def open_journal(partial: Path, made_from: Recipe) -> Journal:
    """Open the journal of an unfinished output, within `writing`. It is removed with the output's publication."""
    return Journal(_journal_path(partial), made_from)


def _journal_path(partial: Path) -> Path:
    return helper(partial, "journal")


def write_record(out: Path, partial: Path, made_from: Recipe) -> None:
    """Write the recipe of `partial`, which will replace `out`, with the digests of both: whichever of the two a killed
    run leaves as `out` is known as ours.
    """
    digests = dict.fromkeys(sha256(path) for path in (partial, out) if path.exists())
    with writing(record_path(out), made_from) as record:
        write_json(record, {**made_from, "tables": list(digests)})


def publish(partial: Path, out: Path) -> None:
    """Seal and flush `partial`, and exchange it with an existing output."""
    _seal(partial)
    for path in [partial, *partial.rglob("*")] if partial.is_dir() else [partial]:
        flush(path)
    check_out(out)  # the user may have put something there in the meantime
    exchange(partial, out)


def _seal(partial: Path) -> None:
    for path in [partial] if partial.is_file() else sorted(partial.rglob("*.h5")):
        if path.suffix in {".h5", ".hdf5"}:
            seal_h5(path)
    if partial.is_dir():
        seal_folder(partial)
