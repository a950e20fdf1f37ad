"""Checksums of outputs, so that damage is noticed before anything is read from them.

- An HDF5 file is followed by a *trailer*, which HDF5 ignores: the CRC-32 of every block of the file, and a footer that
  locates them. The data stay contiguous and can be memory-mapped. `SealedFile` verifies each block when it is read for
  the first time, including the structure that the HDF5 library reads.
- A folder holds SHA256SUMS, in the format of coreutils (`sha256sum -c SHA256SUMS`), for all its files except logs.
- A JSON or YAML file has a last entry `checksum`, the SHA-256 of the other entries.

Files without a checksum, such as those of older revisions and published ones, are read as they are. Checksums find
damage by chance: CRC-32 finds every changed bit and every burst of up to 32 bits. They do not find a forger, who can
compute them too.
"""

import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lowshot.core.errors import InputError

_BLOCK = 2**20  # bytes
_MAGIC = b"lowshot-seal-1\n\0"
_FOOTER = struct.Struct("<QII16s")  # bytes of data, CRC-32 of the checksums, bytes of a block, magic
SUMS = "SHA256SUMS"
# Files of a folder that differ between equal runs, or that belong to the checksums themselves.
UNSEALED = {SUMS, "log.jsonl", "log.csv", "tensorboard"}


class Damaged(InputError):
    """A file whose content does not have its checksum."""


def seal_h5(path: Path) -> None:
    """Append the trailer to an HDF5 file, in place of one that it may have."""
    with path.open("r+b") as file:
        if (found := _footer(file)) is not None:
            file.truncate(found[1])
        sums = np.fromiter(_checksums(file), "<u4").tobytes()
        size = file.seek(0, os.SEEK_END)
        file.write(sums + _FOOTER.pack(size, zlib.crc32(sums), _BLOCK, _MAGIC))


def _checksums(file: BinaryIO) -> Iterator[int]:
    file.seek(0)
    while block := file.read(_BLOCK):
        yield zlib.crc32(block)


def _footer(file: BinaryIO) -> tuple[int, int, int, int] | None:
    """Return size of the file, size of the data, CRC-32 of the checksums and block size; None without a trailer."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _FOOTER.size))
    last = file.read(_FOOTER.size)
    if len(last) < _FOOTER.size or last[-len(_MAGIC) :] != _MAGIC:
        return None
    return size, *_FOOTER.unpack(last)[:3]


class SealedFile(io.RawIOBase):
    """The data of a file, without its trailer, to read. Raises Damaged on reading a block without its checksum."""

    def __init__(self, path: Path) -> None:
        self.path, self._at = Path(path), 0
        self._file = self.path.open("rb", buffering=0)
        try:
            self.size, self._sums = self._read_trailer()
        except BaseException:
            self._file.close()
            raise
        self._verified = np.zeros(len(self._sums), bool)

    @property
    def has_checksums(self) -> bool:
        """Whether the file has a trailer."""
        return len(self._sums) > 0

    def _read_trailer(self) -> tuple[int, np.ndarray]:
        if (found := _footer(self._file)) is None:
            return self._file.seek(0, os.SEEK_END), np.empty(0, "<u4")
        size, n_data, checksum, block = found
        n_sums = 4 * -(-n_data // _BLOCK)
        if block != _BLOCK or size != n_data + n_sums + _FOOTER.size:
            raise Damaged(f"{self.path}: damaged, its length is not the one that its end states")
        self._file.seek(n_data)
        sums = self._file.read(n_sums)
        if zlib.crc32(sums) != checksum:
            raise Damaged(f"{self.path}: damaged in its checksums")
        return n_data, np.frombuffer(sums, "<u4")

    def verify(self, start: int = 0, stop: int | None = None) -> None:
        """Verify the blocks that contain the bytes start..stop (default: all), unless they were verified before."""
        if not self.has_checksums:
            return
        stop = self.size if stop is None else min(stop, self.size)
        blocks = np.arange(start // _BLOCK, -(-stop // _BLOCK))
        for block in blocks[~self._verified[blocks]]:
            first = int(block) * _BLOCK
            if zlib.crc32(self._read_at(first, min(_BLOCK, self.size - first))) != self._sums[block]:
                raise Damaged(f"{self.path}: damaged between bytes {first} and {first + _BLOCK}")
            self._verified[block] = True

    def _read_at(self, start: int, n: int) -> bytes:
        self._file.seek(start)
        parts, left = [], n
        while left and (part := self._file.read(left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        n = max(0, min(len(view), self.size - self._at))
        if n == 0:  # a damaged file may name places far behind its end
            return 0
        self.verify(self._at, self._at + n)
        self._file.seek(self._at)
        done = 0
        while done < n and (part := self._file.readinto(view[done:n])):
            done += part
        self._at += done
        return done

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a JSON or YAML file with its checksum as last entry."""
    content = {key: value for key, value in content.items() if key != "checksum"}
    return {**content, "checksum": _checksum(content)}


def verify_checksum(path: Path, content: Any) -> None:
    """Raise Damaged if the content of a JSON or YAML file has a checksum, but not that one."""
    if not isinstance(content, dict) or not str(content.get("checksum", "")).startswith("sha256:"):
        return
    entries = {key: value for key, value in content.items() if key != "checksum"}
    if not _is_plain(entries) or content["checksum"] != _checksum(entries):
        raise Damaged(
            f"{path}: damaged or edited, its content does not have its checksum. Without the line 'checksum' it is "
            "read as a file of your own"
        )


def _is_plain(content: Any) -> bool:
    """Whether keys are text and values are those of JSON.

    YAML knows more, such as dates and keys that are numbers, which have the checksum of the text that they look like.
    """
    if isinstance(content, dict):
        return all(isinstance(key, str) and _is_plain(value) for key, value in content.items())
    if isinstance(content, list):
        return all(map(_is_plain, content))
    return content is None or isinstance(content, str | int | float)


def _checksum(content: dict[str, Any]) -> str:
    plain = json.dumps(content, sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(plain.encode()).hexdigest()}"


def seal_folder(folder: Path) -> None:
    """Write the checksums of all files of a folder, at any depth, to SHA256SUMS."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in _sealed_files(folder)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _sealed_files(folder: Path) -> list[str]:
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.as_posix() for path in files if path.parts[0] not in UNSEALED]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums_of(folder: Path) -> dict[str, str] | None:
    """Return the checksums in SHA256SUMS by file name, or None if the folder has none."""
    path = folder / SUMS
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = [line.partition("  ") for line in lines]
    if any(len(checksum) != 64 or not name for checksum, _, name in pairs):
        raise Damaged(f"{path}: damaged")
    return {name: checksum for checksum, _, name in pairs}


def verify_file(path: Path, found: str | None = None) -> None:
    """Raise Damaged if the SHA256SUMS beside a file lists it with another checksum than `found` (default: computed)."""
    known = (sums_of(path.parent) or {}).get(path.name)
    if known is not None and (found or sha256(path)) != known:
        raise Damaged(
            f"{path}: damaged or edited, it does not have the checksum in {SUMS}. If you edited it, delete its line "
            "there"
        )


def verify_folder(folder: Path) -> None:
    """Raise Damaged if a file in SHA256SUMS is missing or has another checksum."""
    for name, checksum in (sums_of(folder) or {}).items():
        if not (folder / name).is_file():
            raise Damaged(f"{folder / name}: is missing")
        if sha256(folder / name) != checksum:
            raise Damaged(f"{folder / name}: damaged or edited, it does not have the checksum in {SUMS}")
