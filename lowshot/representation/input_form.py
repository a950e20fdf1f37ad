"""What an extractor knows about its input besides size and channels: how pictures were made smaller, and whether they
show bright ink on black, dark ink on paper, or neither."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lowshot.core.errors import CorruptImage
from lowshot.data.datasets.images import Images, Resampling
from lowshot.representation.backbones import ModelConfig

# Number of images that the brightness is computed from.
_LOOKED_AT = 256
# Training images are drawings if their mean brightness differs from middle grey by this much. Pictures are the reverse
# if theirs is as much as the second number on the other side. Photos, which lie in between, are never the reverse.
_DRAWINGS, _REVERSE = 0.2, 0.1
# Images are of both kinds if either has this share.
_MIXED = 0.1


def learn_form(config: ModelConfig, images: Images, rows: np.ndarray) -> None:
    """Note in the configuration of an extractor what its training images (`rows` of `images`) are like."""
    config.brightness = round(float(_brightness_of(images, rows).mean()), 4)
    if images.pixels is not None:
        config.resampling = _resampling(images, rows)


def _resampling(images: Images, rows: np.ndarray) -> Resampling:
    """Return how stored images were made smaller. Images of two values are 1-bit drawings, whatever made them."""
    if np.isin(images.pixels[evenly_spaced(rows)], (0, 255)).all():
        return "nearest"
    return images.resampling or "antialiased"


def evenly_spaced(rows: Sequence, n: int = _LOOKED_AT) -> Sequence:
    """Return at most `n` of the rows, evenly spaced."""
    if len(rows) <= n:
        return rows
    places = np.linspace(0, len(rows) - 1, n).astype(int)
    return rows[places] if isinstance(rows, np.ndarray) else [rows[i] for i in places]


def _brightness_of(images: Images, rows: np.ndarray) -> np.ndarray:
    """Return the mean brightness, in 0..1, of each of some images."""
    if images.pixels is not None:
        return images.pixels[evenly_spaced(rows)].mean((1, 2, 3)) / 255
    found = [_brightness(images, row) for row in evenly_spaced(rows)[:64]]
    return np.array([one for one in found if one is not None])


def _brightness(images: Images, row: int) -> float | None:
    """Return the mean brightness of an image, or None if it is corrupt, which whoever needs its pixels reports."""
    try:
        image = images.open(row)
    except CorruptImage:
        return None
    image.thumbnail((64, 64))
    return float(np.asarray(image.convert("L")).mean() / 255)


class Polarity(NamedTuple):
    """How images compare with the training images of an extractor of drawings.

    `is_reversed`: whether they are dark where those are bright, such as ink on paper for an extractor of bright ink on
    black; None if that cannot be told. `is_mixed`: whether there are images of both kinds.
    """

    is_reversed: bool | None
    is_mixed: bool = False


def polarity(config: ModelConfig, images: Images, rows: np.ndarray) -> Polarity:
    """Compare `rows` of the images with what the extractor was trained on."""
    known = config.brightness
    if known is None or abs(known - 0.5) < _DRAWINGS or len(rows) == 0:
        return Polarity(None)
    towards = (_brightness_of(images, rows) - 0.5) * np.sign(known - 0.5)  # negative: the reverse
    if len(towards) == 0:
        return Polarity(None)
    mean, shares = towards.mean(), ((towards <= -_REVERSE).mean(), (towards >= _REVERSE).mean())
    return Polarity(None if abs(mean) < _REVERSE else bool(mean < 0), min(shares) >= _MIXED)


def polarity_of_files(config: ModelConfig, files: Sequence[Path]) -> Polarity:
    """The same for image files."""
    names = np.array([str(file.absolute()) for file in files], object)
    pictures = Images(np.zeros(len(names), int), np.zeros(len(names), bool), paths=names, root=Path("/"))
    return polarity(config, pictures, np.arange(len(names)))


def inverts(invert: bool | None, seen: Polarity, stage: str) -> bool:
    """Whether a stage inverts its images: as it is told, or else if they are the reverse. It says what it decides."""
    if invert is not None:
        return invert
    if seen.is_mixed:
        print(f"{stage}: some images are dark on light and others light on dark, and the extractor knows one of them. "
              "Invert those that differ", flush=True)  # fmt: skip
    if seen.is_reversed:
        print(f"{stage}: inverting the images: they are the reverse of what the extractor was trained on, such as dark "
              "ink on paper for bright ink on black. Use --invert false if that is wrong", flush=True)  # fmt: skip
    return bool(seen.is_reversed)
