"""Load batches of images as uint8 tensors, from memory or from disk with decoding workers."""

import multiprocessing
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from lowshot.core.errors import CorruptImage, InputError
from lowshot.core.runtime import available_cores
from lowshot.core.seeds import torch_stream
from lowshot.data.datasets.images import Images, to_square
from lowshot.representation.backbones import ModelConfig
from lowshot.representation.timm_models import is_timm

CropKey = tuple[int, int, int]
# Windows has no fork server.
_START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def view(config: ModelConfig) -> Callable[[Image.Image], Tensor]:
    """Return the transform from a picture to the extractor's input, uint8 (n_channels, S, S).

    It resizes and crops the centre. timm models use timm's evaluation transform. Models trained on stored pixels
    (crop_pct 1) use the same resizing as preprocessing.py.
    """
    size = config.image_size
    if is_timm(config.name):
        from timm.data import create_transform

        keys = ("interpolation", "crop_pct", "crop_mode", "mean")
        preprocessing = {key: getattr(config, key) for key in keys}
        steps = [create_transform((3, size, size), normalize=False, **preprocessing)]
    elif config.crop_pct == 1:
        steps = [partial(to_square, size=size, resampling=config.resampling), v2.PILToTensor()]
    else:
        steps = [v2.PILToTensor(), v2.Resize(round(size / config.crop_pct), antialias=True), v2.CenterCrop(size)]
    return v2.Compose([v2.Grayscale(), *steps] if config.n_channels == 1 else steps)


class _DecodedImages(Dataset):
    """Images on disk as uint8 (C, S, S): with the extractor's transform, or with a random crop if `crop` is given.

    A random crop depends on (seed, epoch, view, image) only, not on the number of workers.
    """

    def __init__(self, images: Images, config: ModelConfig, crop: CropKey | None, smallest_area: float | None) -> None:
        self.images, self.size, self.crop, self.smallest_area = images, config.image_size, crop, smallest_area
        self.view = view(config)

    def __getitem__(self, row: int) -> Tensor:
        image = self._open(row)
        if self.crop is None:
            return self.view(image)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_stream(*self.crop, "crop", row).initial_seed())
            cut = v2.RandomResizedCrop(self.size, (self.smallest_area, 1.0), antialias=True)
            return cut(v2.functional.pil_to_tensor(image))

    def _open(self, row: int) -> Image.Image:
        try:
            return self.images.open(row)
        except CorruptImage:
            if self.images.labels[row] >= 0:
                raise
            return Image.new("RGB", (256, 256))  # black, as published


def batches(
    images: Images,
    row_batches: Sequence[np.ndarray],
    config: ModelConfig,
    crop: CropKey | None = None,
    num_workers: int | None = 0,
    smallest_area: float | None = 0.08,
) -> Iterator[Tensor]:
    """Yield a uint8 tensor (B, C, S, S) for each array of row numbers in `row_batches`.

    Stored pixels are returned unchanged. Images on disk get the transform of the extractor of `config`. If `crop` is
    given as (seed, epoch, view), they get a random crop of at least `smallest_area` of the area instead. Corrupt images
    without a label (-1) become black; others raise InputError. `num_workers` None uses one worker per core, at most 4.
    """
    if images.pixels is not None:
        yield from (to_tensor(images.pixels[rows]) for rows in row_batches)
        return
    num_workers = min(4, available_cores()) if num_workers is None else num_workers
    loader = DataLoader(
        _DecodedImages(images, config, crop, smallest_area),
        batch_sampler=[rows.tolist() for rows in row_batches],
        num_workers=num_workers,
        multiprocessing_context=_START_METHOD if num_workers else None,
    )
    try:
        yield from loader
    except InputError as error:  # an error of a worker is wrapped in its traceback
        message = str(error).strip().splitlines()[-1]
        raise type(error)(re.sub(rf"^{re.escape(InputError.__module__)}\.\w+: ", "", message)) from None


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Convert uint8 (B, H, W, C) to a tensor uint8 (B, C, H, W), without a copy."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def to_unit(images: Tensor, device: torch.device) -> Tensor:
    """Convert uint8 (N, C, H, W) to float32 in [0, 1] on `device`, in channels-last format for faster convolutions."""
    return images.to(device, torch.float32, memory_format=torch.channels_last).div_(255)


def in_batches(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Split `rows` into consecutive batches; the last may be smaller."""
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
