"""Flip single bits of outputs: each is noticed, or changes nothing that is read."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml

from lowshot.core.errors import InputError
from lowshot.core.ownership import is_recorded, record_path
from lowshot.core.publishing import verify
from lowshot.core.sealing import SUMS, UNSEALED, SealedFile, sums_of


def unnoticed(out: Path, folder: Path, n: int, seed: int = 0) -> list[str]:
    """Flip `n` random bits of the output `out`, one at a time, in a copy in `folder`. Return those that have an effect
    and are not noticed. Logs, which have no checksums, are left out.
    """
    copy = _copied(out, folder)
    files = [path for path in _parts(copy) if path.is_file()]
    sizes, generator, missed = [path.stat().st_size for path in files], random.Random(seed), []
    for path in generator.choices(files, [size**0.5 for size in sizes], k=n):  # small files are flipped, too
        honest = path.read_bytes()
        bit = generator.randrange(8 * len(honest))
        damaged = bytearray(honest)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        if not _is_noticed(copy) and not _reads_the_same(path, honest):
            missed.append(f"bit {bit} of {path.relative_to(folder)}")
        path.write_bytes(honest)
    return missed


def _parts(out: Path) -> list[Path]:
    if out.is_file():
        return [out, record_path(out)]
    return [path for path in sorted(out.rglob("*")) if path.relative_to(out).parts[0] not in UNSEALED - {SUMS}]


def _copied(out: Path, folder: Path) -> Path:
    if out.is_dir():
        return Path(shutil.copytree(out, folder / out.name))
    if record_path(out).exists():
        shutil.copy(record_path(out), folder)
    return Path(shutil.copy(out, folder))


def _is_noticed(out: Path) -> bool:
    try:
        for one in [out] if out.is_file() or sums_of(out) is not None else out.iterdir():  # features are files
            verify(one)
        if out.suffix == ".csv":
            verify(record_path(out))
            return not is_recorded(out)
    except InputError:
        return True
    return False


def _reads_the_same(path: Path, honest: bytes) -> bool:
    """Whether all that is read of a file is as it was: the flipped bit is one of a checksum."""
    if path.suffix in {".h5", ".hdf5"}:
        path.with_name("honest.h5").write_bytes(honest)
        with SealedFile(path.with_name("honest.h5")) as file:
            data = file.read()
        path.with_name("honest.h5").unlink()
        return path.read_bytes()[: len(data)] == data
    if path.suffix in {".json", ".yaml"}:
        before, after = _parsed(path.suffix, honest), _parsed(path.suffix, path.read_bytes())
        return all(key in after and after[key] == value for key, value in before.items() if key != "checksum")
    return False


def _parsed(suffix: str, content: bytes) -> Any:
    return {".json": json.loads, ".yaml": yaml.safe_load}[suffix](content.decode())
