"""The images file: `pixels` uint8 (N, H, W, C), or `paths` (N,) relative to the attribute `root` and, if images are
rotated, `turns` (N,); `labels` and `is_test` (N,)."""

import io
import warnings
import zipfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import h5py
import numpy as np
from PIL import Image, ImageOps

from lowshot.core.errors import CorruptImage, InputError
from lowshot.core.h5 import creating_h5, open_h5, require_datasets, write_recipe
from lowshot.data.protocol import Split

SCHEMA = "lowshot-images-1"
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # a limit of our own is below

# How images are made smaller.
Resampling = Literal["antialiased", "nearest"]
# Number of quarter turns -> how Pillow turns an image counter-clockwise.
_TURNED = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


@dataclass
class Images:
    """Images in memory (`pixels` uint8 (N, H, W, C)), on disk (`paths` (N,) relative to `root`), or only their labels.

    `labels` int64 and `is_test` bool have shape (N,). Unlabelled images have the label -1. A path may lead to a member
    of a zip file (`12/345.zip/678.jpg`). `turns` uint8 (N,) are quarter turns, counter-clockwise, of images on disk.
    `resampling` says how stored pixels got their size, if it is known.
    """

    labels: np.ndarray
    is_test: np.ndarray
    pixels: np.ndarray | None = None
    paths: np.ndarray | None = None
    root: Path | None = None
    turns: np.ndarray | None = None
    resampling: Resampling | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_channels(self) -> int:
        return 3 if self.pixels is None else self.pixels.shape[3]

    @property
    def size(self) -> int | None:
        """Height of stored pixels; None for images on disk, whose sizes differ."""
        return None if self.pixels is None else self.pixels.shape[1]

    @property
    def n_encoded(self) -> int:
        """Number of images to decode: all images on disk, none of stored pixels."""
        return 0 if self.pixels is not None else len(self)

    @property
    def has_content(self) -> bool:
        """Whether there are images, and not only labels."""
        return self.pixels is not None or self.paths is not None

    def open(self, row: int) -> Image.Image:
        """Decode an image on disk (`open_image`), and turn it."""
        image = open_image(self.root / self.paths[row])
        turns = 0 if self.turns is None else int(self.turns[row])
        return image.transpose(_TURNED[turns]) if turns else image

    def rows(self, test: bool) -> np.ndarray:
        """Return the indices of the test or the train images. Row i of features/{test,train}.h5 is the i-th of them."""
        return np.flatnonzero(self.is_test == test)


def images_file(data: Path) -> Path:
    """Return the path of images.h5 in a folder of preprocessing.py; the path of an images file, or of a list of tasks,
    is returned as is."""
    return data if data.suffix in {".h5", ".hdf5", ".csv"} else data / "images.h5"


def write_images(path: Path, images: Images, made_from: dict) -> None:
    """Write an images file."""
    with creating_h5(path) as file:
        if images.pixels is not None:
            file.create_dataset("pixels", data=np.ascontiguousarray(images.pixels, np.uint8))
            if images.resampling is not None:
                file.attrs["resampling"] = images.resampling
        else:
            file.create_dataset("paths", data=images.paths.astype(object), dtype=h5py.string_dtype("utf-8"))
            file.attrs["root"] = str(images.root)
            if images.turns is not None:
                file.create_dataset("turns", data=images.turns.astype(np.uint8))
        file.create_dataset("labels", data=images.labels.astype(np.int32))
        file.create_dataset("is_test", data=images.is_test.astype(bool))
        write_recipe(file, SCHEMA, made_from)


def read_images(path: Path) -> Images:
    """Read and check an images file. Pixels are loaded into memory; images stored as paths stay on disk."""
    with open_h5(path) as file:
        if "pixels" not in file and "paths" not in file:
            raise InputError(f"{path}: lacks the dataset 'pixels' or 'paths'")
        content = {"pixels": ("integers", 4)} if "pixels" in file else {"paths": ("texts", 1)}
        require_datasets(file, {"labels": ("integers", 1), "is_test": ("flags", 1), **content})
        labels, is_test = file["labels"][:].astype(np.int64), file["is_test"][:].astype(bool)
        pixels = file["pixels"][:] if "pixels" in file else None
        paths = file["paths"].asstr()[:] if pixels is None else None
        root = Path(str(file.attrs["root"])) if paths is not None else None
        if has_turns := paths is not None and "turns" in file:
            require_datasets(file, {"turns": ("integers", 1)})
        turns = file["turns"][:] if has_turns else None
        stored = str(file.attrs.get("resampling", ""))
    resampling = stored if stored in get_args(Resampling) else None
    images = Images(labels, is_test, pixels, paths, root, turns, resampling)
    check_images(images, path)
    return images


def with_more(images: Images, more: Images, where: Path) -> Images:
    """Append the images `more` of the file `where`. Raises InputError unless both have stored pixels of one shape."""
    if images.pixels is None or more.pixels is None or images.pixels.shape[1:] != more.pixels.shape[1:]:
        raise InputError(f"{where}: must contain pixels of the same size and channels as the images to add them to")
    parts = {
        name: np.concatenate([getattr(one, name) for one in (images, more)]) for name in ("labels", "is_test", "pixels")
    }
    return replace(images, **parts)


def check_images(images: Images, where: Path | str) -> None:
    """Raise InputError unless all parts of the images agree and have the right types. `where` names their source."""
    stored = images.pixels if images.pixels is not None else images.paths
    n, n_labels, n_marks = len(stored), len(images.labels), len(images.is_test)
    if not n == n_labels == n_marks:
        raise InputError(f"{where}: has {n} images, {n_labels} labels and {n_marks} test flags, expected equally many")
    if images.pixels is not None and (images.pixels.ndim != 4 or images.pixels.dtype != np.uint8):
        raise InputError(f"{where}: expected pixels uint8 (N, H, W, C), found {stored.dtype} {stored.shape}")
    if images.turns is not None and (len(images.turns) != n or images.turns.max(initial=0) > 3):
        raise InputError(f"{where}: turns must be a number in 0..3 for each of the {n} images")
    for name in images.paths if images.pixels is None else []:
        if name.startswith("/") or ".." in name.split("/"):
            raise InputError(f"{where}: image path '{name}' is outside the root folder. Use paths relative to it")


def open_image(path: Path) -> Image.Image:
    """Decode an image file, or a member of a zip file (`12/345.zip/678.jpg`), as RGB.

    The image appears as in a viewer: rotated by its EXIF orientation, transparent parts on white, and grey of more than
    8 bits scaled to 8 bits by its depth, which is often less than that of the file (`_white_level`).

    Raises CorruptImage if it cannot be decoded or is missing in its zip file, and InputError if the file does not exist
    or the zip file cannot be read.
    """
    archive = next((parent for parent in path.parents if parent.suffix == ".zip" and parent.is_file()), None)
    file = path if archive is None else _member(_open_zip(archive), path.relative_to(archive).as_posix())
    try:
        with opened_image(file) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except MemoryError:
        raise InputError(f"{path}: not enough memory to decode it") from None
    except Exception as error:  # corrupt data raises anything in decoders: struct.error, IndexError, TypeError, ...
        raise CorruptImage(f"{path}: corrupt image ({error}). Replace or remove it") from None


# What Pillow may decode. It knows more formats, and starts Ghostscript for one of them (EPS), whatever a file's name.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
_MOST_PIXELS = 120_000_000  # a phone takes 108 million; 360 MB when decoded
_MOST_BYTES = 2**28  # of a member of a zip file


def opened_image(file: Path | io.BytesIO) -> Image.Image:
    """Open an image with Pillow. Raises one of its exceptions for another format, and ValueError if it is too large."""
    image = Image.open(file, formats=_FORMATS)
    if image.width * image.height > _MOST_PIXELS:
        image.close()
        raise ValueError(f"{image.width} x {image.height} pixels are more than {_MOST_PIXELS // 10**6} million")
    return image


@lru_cache(maxsize=8)
def _open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip file once for the many images read from it. A file that drops out of the cache closes itself."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable zip file ({error})") from None


def _member(archive: zipfile.ZipFile, name: str) -> io.BytesIO:
    try:
        if (n_bytes := archive.getinfo(name).file_size) > _MOST_BYTES:
            raise ValueError(f"{n_bytes} bytes are more than {_MOST_BYTES}")
        return io.BytesIO(archive.read(name))
    except KeyError:
        raise CorruptImage(f"{archive.filename}/{name}: no such image in the zip file") from None
    except OSError as error:
        raise InputError(f"{archive.filename}/{name}: cannot be read ({error})") from None
    except Exception as error:  # wrong checksum, truncated, encrypted, unknown compression
        raise CorruptImage(f"{archive.filename}/{name}: corrupt in the zip file ({error})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow's own conversion clips these at 255
        values = np.nan_to_num(np.asarray(image, np.float32))
        white = _white_level(image, float(values.max()))
        return Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _white_level(image: Image.Image, brightest: float) -> float:
    """Return the white of a grey image of more than 8 bits, of which `brightest` is the largest value.

    White of floats is 1, or the largest value if that is more. White of integers of a TIFF file is the smallest of
    2^8-1, 2^10-1, 2^12-1, 2^14-1, 2^16-1, ... that is no less than the largest value or what the file declares
    (MaxSampleValue, or a depth other than that of the container): cameras and microscopes store 12 bits in 16, programs
    8 bits in 32. PNG samples use all 16 bits by the standard, so a merely dark image stays dark. It is taken for one of
    12 or 8 bits only if it would otherwise be black, without a value above a sixteenth of white.
    """
    if image.mode == "F":
        return max(1.0, brightest)
    tags, step = getattr(image, "tag_v2", {}), 4 if image.format == "PNG" else 2
    depth = max(tags.get(_BITS_PER_SAMPLE, (16,)))
    declared = max(tags.get(_MAX_SAMPLE_VALUE, (0 if depth in (16, 32) else 2**depth - 1,)))
    bits = int(max(brightest, declared, 255)).bit_length()
    return 2.0 ** (bits + -bits % step) - 1


_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281  # tags of TIFF files


def to_square(image: Image.Image, size: int, resampling: Resampling = "antialiased") -> Image.Image:
    """Resize the short side to `size` px and crop the centre to a square."""
    return ImageOps.fit(image, (size, size), _FILTERS[resampling])


def resized(image: Image.Image, size: int, resampling: Resampling) -> Image.Image:
    """Resize both sides to `size` px."""
    return image if image.size == (size, size) else image.resize((size, size), _FILTERS[resampling])


# Pillow's bilinear filter averages over all pixels when it makes an image smaller.
_FILTERS = {"antialiased": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}


def rows_of(images: Images, split: Split, classes: np.ndarray | list[int], where: Path) -> np.ndarray:
    """Return the training rows of `classes`. Raises InputError for a label that is not a class of the split."""
    if images.labels.max() >= split.n_classes:
        raise InputError(
            f"{where}: label {images.labels.max()} is not one of the split's {split.n_classes} classes. Use the "
            f"split.json of the same preprocessing run"
        )
    rows = images.rows(test=False)
    return rows[np.isin(images.labels[rows], classes)]
