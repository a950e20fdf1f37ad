"""EMNIST (Cohen et al., 2017) in its official form: gzip IDX files of handwritten characters, 28x28x1.

Reads the ByMerge split if it is present, otherwise the only split found. ByMerge has 47 classes: upper and lower case
of similar letters are merged; the Balanced split has the same classes. The files store every image transposed; they are
turned upright. A class is a character; the superclasses are digits, uppercase and lowercase. If only the train or only
the test files are present, test images are held out (by default a fifth of each class).
"""

import gzip
import zlib
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image

from lowshot.core.errors import InputError
from lowshot.core.files import digest, missing
from lowshot.core.progress import Progress
from lowshot.data.datasets.content import Content, Found, Source, downloading, hold_out, superclasses
from lowshot.data.datasets.images import Images, resized
from lowshot.data.datasets.settings import Emnist


def find(settings: Emnist, source: Source, preferred: str = "bymerge") -> Found:
    """Find emnist-<split>-mapping.txt in ROOT, ROOT/EMNIST/raw, ROOT/emnist or ROOT/gzip, and the files beside it."""
    folders = [source.folder / name for name in ("", "EMNIST/raw", "emnist", "gzip")]
    if source.root is None and not any(any(folder.glob("emnist-*-mapping.txt")) for folder in folders):
        _download(source.folder)
    mapping = _mapping(source, folders, preferred)
    stem = mapping.name.removesuffix("-mapping.txt")
    files = {"mapping": mapping}
    for part in ("train", "test"):
        pair = {
            f"{part}_images": mapping.with_name(f"{stem}-{part}-images-idx3-ubyte.gz"),
            f"{part}_labels": mapping.with_name(f"{stem}-{part}-labels-idx1-ubyte.gz"),
        }
        if any(file.exists() for file in pair.values()):
            files |= pair
    if len(files) == 1:
        raise InputError(f"{mapping.parent}: contains neither {stem}-train-*-ubyte.gz nor {stem}-test-*-ubyte.gz")
    return Found({name: digest(file) for name, file in files.items()}, partial(_read, settings, source, files))


def _download(root: Path) -> None:
    """Download the official archive, check its MD5 and unpack it.

    torchvision's EMNIST class is not used: it would delete the mapping files.
    """
    from torchvision.datasets import EMNIST, utils  # slow to import, and only a download needs it

    with downloading("emnist", root):
        utils.download_and_extract_archive(EMNIST.url, str(root), filename="emnist-gzip.zip", md5=EMNIST.md5)


def _mapping(source: Source, folders: list[Path], preferred: str) -> Path:
    mappings = next((found for folder in folders if (found := sorted(folder.glob("emnist-*-mapping.txt")))), [])
    names = [f"emnist-{split}-mapping.txt" for split in (preferred, "bymerge")]
    chosen = next(([path] for name in names for path in mappings if path.name == name), mappings)
    if len(chosen) != 1:
        what = f"several splits, none of them {preferred} or bymerge" if chosen else "no emnist-<split>-mapping.txt"
        raise InputError(f"{source.folder}: contains {what}")
    return chosen[0]


def _read(settings: Emnist, source: Source, files: dict[str, Path]) -> Content:
    characters = _characters(files["mapping"])
    class_names = list(characters.values())
    pixels, labels, is_test = [], [], []
    for part in ("train", "test"):
        if f"{part}_images" in files:
            images, numbers = _read_part(files[f"{part}_images"], files[f"{part}_labels"], list(characters))
            pixels.append(images)
            labels.append(numbers)
            is_test.append(np.full(len(numbers), part == "test"))
    labels, is_test = np.concatenate(labels), np.concatenate(is_test)
    if len(pixels) == 1:
        is_test = hold_out(labels, settings.test_per_class or 0.2, source.seed, class_names)
    elif settings.test_per_class is not None:
        raise InputError("--dataset.test_per_class: these files have their own test images. Leave the setting out")
    kinds, kind_of = superclasses([_kind(name) for name in class_names])
    images = Images(labels, is_test, _resized(np.concatenate(pixels), settings), resampling=settings.resampling)
    return Content(images, class_names, kinds, kind_of)


def _resized(pixels: np.ndarray, settings: Emnist) -> np.ndarray:
    """Resize images uint8 (N, 28, 28, 1) if another size is set."""
    if settings.image_size in (None, pixels.shape[1]):
        return pixels
    size, bar = settings.image_size, Progress(pixels[..., 0], "emnist", unit="image", leave=False)
    images = (Image.fromarray(np.ascontiguousarray(one)) for one in bar)
    return np.stack([np.asarray(resized(one, size, settings.resampling)) for one in images])[..., None]


def _kind(character: str) -> str:
    return "digits" if character.isdigit() else "uppercase" if character.isupper() else "lowercase"


def _characters(mapping: Path) -> dict[int, str]:
    """Map labels to characters, sorted by label, from lines of `label code [other code]`. Some splits start at 1."""
    try:
        rows = [[int(word) for word in line.split()] for line in mapping.read_text().splitlines() if line.strip()]
        characters = {row[0]: chr(row[1]) for row in sorted(rows)}
    except (ValueError, IndexError, OverflowError):
        raise InputError(f"{mapping}: expected lines of a label and a character code") from None
    if not characters:
        raise InputError(f"{mapping}: is empty, expected lines of a label and a character code")
    return characters


def _read_part(images: Path, labels: Path, known: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Read upright pixels uint8 (N, 28, 28, 1), and the positions int64 (N,) of their labels in `known`."""
    pixels, numbers = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(numbers):
        raise InputError(f"{images}: {len(pixels)} images, but {labels.name} has {len(numbers)} labels")
    for unknown in numbers[~np.isin(numbers, known)][:1]:
        raise InputError(f"{labels}: label {unknown} is not in the mapping file")
    return pixels.transpose(0, 2, 1)[..., None], np.searchsorted(known, numbers)


def read_idx(path: Path, n_dims: int) -> np.ndarray:
    """Read a uint8 array of `n_dims` dimensions from a gzip IDX file. Raises InputError for any other content."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise missing(path) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip file ({error}). Download it again") from None
    if content[:4] != bytes([0, 0, 0x08, n_dims]):
        raise InputError(
            f"{path}: not an IDX file of bytes in {n_dims} dimensions (it begins with {content[:4].hex()})"
        )
    header, body = content[4 : 4 + 4 * n_dims], content[4 + 4 * n_dims :]
    shape = [int(side) for side in np.frombuffer(header.ljust(4 * n_dims, b"\0"), ">u4")]
    if len(header) < 4 * n_dims or len(body) != prod(shape):
        raise InputError(f"{path}: {len(body)} bytes of content, but the header announces {prod(shape)}")
    return np.frombuffer(body, np.uint8).reshape(shape)
