"""What lowshot wrote, and may therefore replace."""

import os
from fnmatch import fnmatch
from pathlib import Path

from lowshot.core.artifacts import begins_like_ours, read_recipe
from lowshot.core.errors import InputError, NotReadable, Occupied
from lowshot.core.files import read_json
from lowshot.core.sealing import SUMS, Damaged, sha256, sums_of

# Formats that have no room for a recipe, which is in a record beside the file.
_RECORDED = {".csv", ".npz"}
# Files of ours in the folder of a training that have no checksums.
_LOGS = [SUMS, "log.jsonl", "log.csv", "tensorboard/events.out.tfevents.*"]
# Names in folders of older revisions, which have no SHA256SUMS.
_OLDER_NAMES = {"config.json", "model.pt", "last.pt", "log.jsonl", "tensorboard", "checkpoint.pt", "images.h5",
                "split.json", "draws.json", "mixture.h5", "extractor", "report.html", "tables", "plots"}  # fmt: skip


def check_out(out: Path) -> None:
    """Raise InputError unless `out` is free, or an output of lowshot that may be replaced."""
    check_name(out)
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


def check_name(out: Path) -> None:
    if len(os.fsencode(out.name)) > 240:  # helpers have longer names; file systems take 255 bytes
        raise Occupied(f"--out {out.name[:20]}...: the name is too long. Use at most 240 bytes")
    if out.name in ("", "..") or out.name.startswith("~"):
        raise Occupied(f"--out {out}: must have a name of its own that does not begin with ~, such as outputs/data")


def is_ours(out: Path) -> bool:
    """Whether an existing output has a recipe, or checksums of ours. Raises InputError if a file cannot be read."""
    if out.suffix in _RECORDED:
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
    logs = _LOGS if any(name.endswith(".pt") for name in sums) else [SUMS]  # trainings have logs
    files = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    names = [path.relative_to(folder).as_posix() for path in files]
    return [name for name in names if name not in sums and not any(fnmatch(name, log) for log in logs)]


def record_path(out: Path) -> Path:
    """Return the file beside `out` that holds its recipe, for formats that have no room for one (.csv, .npz)."""
    return out.with_name(f"{out.name}.json")


def is_record(path: Path) -> bool:
    """Whether a file is the record of a table."""
    return path.with_suffix("").suffix in _RECORDED and path.suffix == ".json" and "tables" in read_json(path)


def check_record(out: Path) -> None:
    """Raise InputError if the place of the record of `out` is taken by something else."""
    record = record_path(out)
    check_out(record)
    if record.exists() and "schema" in read_json(record):
        raise InputError(f"{record}: exists, and is not the record of {out.name}. Use another name for the table")


def _recorded(out: Path) -> list[str]:
    """Return the digests in the record of `out`: the current one first. Older records have none, and fit any file."""
    record = read_json(record_path(out)) if record_path(out).is_file() else {}
    return record.get("tables", [sha256(out)]) if isinstance(record, dict) and "stage" in record else []


def is_recorded(out: Path) -> bool:
    """Whether a file exists, and is the one that its record was written for. True for formats without a record."""
    return out.exists() and (out.suffix not in _RECORDED or sha256(out) in _recorded(out)[:1])
