"""Batches of images for training and feature extraction, as uint8 tensors: from memory, or decoded from disk by
workers."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from lowshot.datasets.images import Images, open_image, to_tensor
from lowshot.errors import InputError
from lowshot.seeds import torch_stream

CropKey = tuple[int, int]


class _DecodedImages(Dataset):
    """Images on disk as uint8 (C, S, S): the centre of the resized image, or with `crop` = (seed, epoch) a random part
    of it.

    A random part depends on (seed, epoch, image) only, so the number of workers changes nothing.
    """

    def __init__(self, images: Images, size: int, crop: CropKey | None) -> None:
        self.images, self.size, self.crop = images, size, crop
        self.centre = v2.Compose([v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size)])

    def __getitem__(self, row: int) -> Tensor:
        image = v2.functional.pil_to_tensor(open_image(self.images.root / self.images.paths[row]))
        if self.crop is None:
            return self.centre(image)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_stream(*self.crop, "crop", row).initial_seed())
            return v2.RandomResizedCrop(self.size, antialias=True)(image)


def batches(
    images: Images,
    row_batches: Sequence[np.ndarray],
    image_size: int,
    crop: CropKey | None = None,
    num_workers: int = 0,
) -> Iterator[Tensor]:
    """Yield one uint8 tensor (B, C, S, S) for each array of row numbers in `row_batches`.

    Stored pixels come as they are; images on disk are resized and cut to `image_size`, at random if `crop` gives (seed,
    epoch).
    """
    if images.pixels is not None:
        yield from (to_tensor(images.pixels[rows]) for rows in row_batches)
        return
    loader = DataLoader(
        _DecodedImages(images, image_size, crop),
        batch_sampler=[rows.tolist() for rows in row_batches],
        num_workers=num_workers,
        multiprocessing_context="forkserver" if num_workers else None,
    )
    try:
        yield from loader
    except InputError as error:  # a worker's comes wrapped in the traceback of that process
        message = str(error).strip().splitlines()[-1]
        raise InputError(message.removeprefix(f"{InputError.__module__}.InputError: ")) from None


def to_unit(images: Tensor, device: torch.device) -> Tensor:
    """uint8 (N, C, H, W) -> float32 in [0, 1] on `device`, channels last in memory: convolutions are faster so."""
    return images.to(device, torch.float32, memory_format=torch.channels_last).div_(255)


def in_batches(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut `rows` into consecutive batches; the last may be short."""
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
