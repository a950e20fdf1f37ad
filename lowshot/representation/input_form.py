"""What an extractor knows about its input besides size and channels: how pictures were made smaller, and whether they
show bright ink on black, dark ink on paper, or neither."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lowshot.data.datasets.images import Images, Resampling
from lowshot.representation.backbones import ModelConfig

# Number of images that the brightness is computed from.
_LOOKED_AT = 256
# Training images are drawings if their mean brightness differs from middle grey by this much. Pictures are the reverse
# if theirs is as much as the second number on the other side. Photos, which lie in between, are never the reverse.
_DRAWINGS, _REVERSE = 0.2, 0.1


def learn_form(config: ModelConfig, images: Images, rows: np.ndarray) -> None:
    """Note in the configuration of an extractor what its training images (`rows` of `images`) are like."""
    config.brightness = round(_mean_brightness(images, rows), 4)
    if images.pixels is not None:
        config.resampling = _resampling(images, rows)


def _resampling(images: Images, rows: np.ndarray) -> Resampling:
    """Return how stored images were made smaller. Images of two values are 1-bit drawings, whatever made them."""
    if np.isin(images.pixels[_some(rows)], (0, 255)).all():
        return "nearest"
    return images.resampling or "antialiased"


def _some(rows: Sequence) -> Sequence:
    """Return at most `_LOOKED_AT` of the rows, evenly spaced."""
    if len(rows) <= _LOOKED_AT:
        return rows
    places = np.linspace(0, len(rows) - 1, _LOOKED_AT).astype(int)
    return rows[places] if isinstance(rows, np.ndarray) else [rows[i] for i in places]


def _mean_brightness(images: Images, rows: np.ndarray) -> float:
    """Return the mean of some images in 0..1."""
    if images.pixels is not None:
        return float(images.pixels[_some(rows)].mean() / 255)
    return float(np.mean([_brightness(images.open(row)) for row in _some(rows)[:64]]))


def _brightness(image: Image.Image) -> float:
    image.thumbnail((64, 64))
    return float(np.asarray(image.convert("L")).mean() / 255)


def are_reversed(config: ModelConfig, images: Images, rows: np.ndarray) -> bool | None:
    """Whether images are dark where the training images of the extractor are bright, such as ink on paper for an
    extractor of bright ink on black. None if that cannot be told."""
    known = config.brightness
    if known is None or abs(known - 0.5) < _DRAWINGS or len(rows) == 0:
        return None
    difference = _mean_brightness(images, rows) - 0.5
    return None if abs(difference) < _REVERSE else difference * (known - 0.5) < 0


def files_are_reversed(config: ModelConfig, files: Sequence[Path]) -> bool | None:
    """The same for image files."""
    names = np.array([str(file.absolute()) for file in files], object)
    pictures = Images(np.zeros(len(names), int), np.zeros(len(names), bool), paths=names, root=Path("/"))
    return are_reversed(config, pictures, np.arange(len(names)))
