"""Batches of images for training and feature extraction, as uint8 tensors: from memory, or decoded from disk by
workers."""

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
from lowshot.data.datasets.images import Images, open_image, to_square
from lowshot.representation.backbones import ModelConfig
from lowshot.representation.timm_models import is_timm

CropKey = tuple[int, int, int]
# Windows has no fork server.
_START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def view(config: ModelConfig) -> Callable[[Image.Image], Tensor]:
    """How the extractor of `config` sees a picture: uint8 (n_channels, S, S), the centre of the resized picture.

    A timm model sees what timm's own evaluation shows it, one of ours that takes whole pictures (crop_pct 1) what
    preprocessing.py stores of them.
    """
    size = config.image_size
    if is_timm(config.name):
        from timm.data import create_transform

        keys = ("interpolation", "crop_pct", "crop_mode", "mean")
        preprocessing = {key: getattr(config, key) for key in keys}
        steps = [create_transform((3, size, size), normalize=False, **preprocessing)]
    elif config.crop_pct == 1:
        steps = [partial(to_square, size=size), v2.PILToTensor()]
    else:
        steps = [v2.PILToTensor(), v2.Resize(round(size / config.crop_pct), antialias=True), v2.CenterCrop(size)]
    return v2.Compose([v2.Grayscale(), *steps] if config.n_channels == 1 else steps)


class _DecodedImages(Dataset):
    """Images on disk as uint8 (C, S, S): as the extractor views them, or with `crop` a random part.

    A random part depends on (seed, epoch, view, image) only, so the number of workers changes nothing.
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
            return open_image(self.images.root / self.images.paths[row])
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
    """Yield one uint8 tensor (B, C, S, S) for each array of row numbers in `row_batches`.

    Stored pixels come as they are; images on disk as the extractor of `config` views them, or cut at random to its
    image size if `crop` gives (seed, epoch, view), a part of `smallest_area` to all of the area. Unlabelled ones (-1)
    that are corrupt are black pictures. `num_workers` None: one per core, at most 4.
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
    except InputError as error:  # a worker's comes wrapped in the traceback of that process
        message = str(error).strip().splitlines()[-1]
        raise InputError(re.sub(rf"^{re.escape(InputError.__module__)}\.\w+: ", "", message)) from None


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (B, H, W, C) -> uint8 (B, C, H, W), without a copy."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def to_unit(images: Tensor, device: torch.device) -> Tensor:
    """uint8 (N, C, H, W) -> float32 in [0, 1] on `device`, channels last in memory: convolutions are faster so."""
    return images.to(device, torch.float32, memory_format=torch.channels_last).div_(255)


def in_batches(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut `rows` into consecutive batches; the last may be short."""
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
