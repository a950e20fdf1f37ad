"""Parts of long work that are done, on disk, so that a killed run continues after them."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

from lowshot.core.artifacts import Recipe, is_recipe
from lowshot.core.progress import say


class Journal(list):
    """A list whose entries are also lines of a file. It starts with the entries of an interrupted run, if that had the
    same recipe. Append with `append` only.

    A line is the CRC-32 of an entry and the entry as JSON. The first entry is the recipe. What follows the first line
    that is cut off or damaged does not count.
    """

    def __init__(self, path: Path, made_from: Recipe) -> None:
        self.path, self.made_from = path, made_from
        stored, n_bytes = _whole_lines(path)
        if path.exists() and path.stat().st_size > n_bytes:
            say(f"{path}: cut off or damaged after {max(0, len(stored) - 1)} parts, what follows is thrown away")
        if _is_of(stored, made_from) and not path.is_symlink():
            super().__init__(stored[1:])
            os.truncate(path, n_bytes)
        else:
            path.unlink(missing_ok=True)

    def append(self, entry: Any) -> None:
        """Append an entry of plain values."""
        first = [] if self.path.exists() else [_line(self.made_from)]
        with self.path.open("ab") as file:
            file.write(b"".join([*first, _line(entry)]))
        super().append(entry)


def is_of_another_run(path: Path, made_from: Recipe) -> bool:
    """Whether a file is the journal of a run with another recipe than this."""
    stored, _ = _whole_lines(path)
    return bool(stored) and not _is_of(stored, made_from)


def _is_of(stored: list, made_from: Recipe) -> bool:
    return bool(stored) and is_recipe(stored[0]) and made_from.difference(stored[0]) is None


def _line(entry: Any) -> bytes:
    text = json.dumps(entry).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _whole_lines(path: Path) -> tuple[list, int]:
    """Return the entries up to the first damaged line, and their number of bytes."""
    entries: list[Any] = []
    n_bytes = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
        text = line[9:-1]
        if line != b"%08x %s\n" % (zlib.crc32(text), text):
            break
        try:
            entries.append(json.loads(text))
        except (ValueError, RecursionError):
            break
        n_bytes += len(line)
    return entries, n_bytes
