"""Load batches of images as uint8 tensors, from memory or from disk with decoding workers."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert
from torchvision.transforms import v2

from lowshot.core.errors import CorruptImage, InputError
from lowshot.core.runtime import one_thread
from lowshot.core.seeds import torch_stream
from lowshot.core.workers import end_with_parent, n_workers, worker_context
from lowshot.data.datasets.images import Images, to_square
from lowshot.representation.backbones import ModelConfig
from lowshot.representation.timm_models import is_timm

CropKey = tuple[int, int, int]


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


class _Texts:
    """Texts in two tensors, which workers share with this process. An array of Python strings would be copied."""

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [os.fsencode(text) for text in texts]
        self.bytes = torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8)
        self.ends = torch.tensor([0, *map(len, encoded)]).cumsum(0)

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self.bytes[self.ends[i] : self.ends[i + 1]].numpy().tobytes())


class _DecodedImages(Dataset):
    """Images on disk. A batch is uint8 (V, B, C, S, S): a random crop for each of V keys, or without keys (V = 1) what
    the extractor's transform makes of the images.

    A random crop depends on its key (seed, epoch, view) and the image only, not on the number of workers.
    """

    def __init__(self, images: Images, config: ModelConfig, smallest_area: float | None) -> None:
        self.images = replace(images, paths=_Texts(images.paths))
        self.view = view(config)
        self.cut = v2.RandomResizedCrop(config.image_size, (smallest_area or 1.0, 1.0), antialias=True)

    def __getitems__(self, batch: tuple[Sequence[CropKey], np.ndarray]) -> Tensor:
        keys, rows = batch
        with one_thread():
            return torch.stack([self._views(row, keys) for row in rows], dim=1)

    def _views(self, row: int, keys: Sequence[CropKey]) -> Tensor:
        image = self._open(row)
        if not keys:
            return self.view(image)[None]
        pixels = v2.functional.pil_to_tensor(image)
        return torch.stack([self._crop(pixels, *key, "crop", row) for key in keys])

    def _crop(self, pixels: Tensor, *key: int | str) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator of the CPU
            torch.default_generator.manual_seed(torch_stream(*key).initial_seed())
            return self.cut(pixels)

    def _open(self, row: int) -> Image.Image:
        try:
            return self.images.open(row)
        except CorruptImage:
            if self.images.labels[row] >= 0:
                raise
            return Image.new("RGB", (256, 256))  # black, as published


class ImageLoader:
    """Loads batches of images, in one pass after the other with the same workers.

    Stored pixels are returned unchanged. Images on disk get the transform of the extractor of `config`, or random crops
    of at least `smallest_area` of the area. Corrupt images without a label (-1) become black; others raise InputError.
    """

    def __init__(
        self,
        images: Images,
        config: ModelConfig,
        num_workers: int | None = 0,
        n_loaded: int | None = None,
        smallest_area: float | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`num_workers` None depends on `n_loaded`, the number of images to load in all passes (default: each once).
        Batches for a GPU, the `device`, are in pinned memory."""
        self.images, self.smallest_area = images, smallest_area
        self.plan: list[tuple[Sequence[CropKey], np.ndarray]] = []  # of the pass; an entry for each batch
        if images.pixels is None:
            n = n_workers(num_workers, len(images) if n_loaded is None else n_loaded, _n_processes())
            pool = {"multiprocessing_context": worker_context(), "persistent_workers": True} if n else {}
            self.decoded = DataLoader(
                _DecodedImages(images, config, smallest_area),
                batch_sampler=self.plan,
                num_workers=n,
                worker_init_fn=end_with_parent,
                collate_fn=default_convert,
                generator=torch.Generator(),  # by default a pass draws from the global one, but not with kept workers
                pin_memory=device is not None and device.type == "cuda",
                **pool,
            )

    def whole(self, row_batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Yield the images uint8 (B, C, S, S) of each array of row numbers, without random crops."""
        return (views[0] for views in self._pass(row_batches, []))

    def views(self, row_batches: Sequence[np.ndarray], keys: Sequence[CropKey]) -> Iterator[Sequence[Tensor]]:
        """Yield the images of each array of row numbers once for each key (seed, epoch, view), uint8 (B, C, S, S).

        If there is a `smallest_area`, images on disk are cropped at random by the key. Otherwise they are all equal.
        """
        if self.images.pixels is None and self.smallest_area is not None:
            return self._pass(row_batches, keys)
        return ([images] * len(keys) for images in self.whole(row_batches))

    def _pass(self, row_batches: Sequence[np.ndarray], keys: Sequence[CropKey]) -> Iterator[Sequence[Tensor]]:
        if self.images.pixels is not None:
            yield from ([to_tensor(self.images.pixels[rows])] for rows in row_batches)
            return
        self.plan[:] = [(keys, rows) for rows in row_batches]
        try:
            yield from self.decoded
        except InputError as error:  # an error of a worker is wrapped in its traceback
            message = str(error).strip().splitlines()[-1]
            raise type(error)(re.sub(rf"^{re.escape(InputError.__module__)}\.\w+: ", "", message)) from None
        except (ConnectionError, EOFError):  # a batch that a killed worker had finished is lost with its memory
            raise RuntimeError("a DataLoader worker exited unexpectedly") from None


def _n_processes() -> int:
    """Return the number of processes of a training, which share the machine."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Convert uint8 (B, H, W, C) to a tensor uint8 (B, C, H, W), without a copy."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def to_unit(images: Tensor, device: torch.device) -> Tensor:
    """Convert uint8 (N, C, H, W) to float32 in [0, 1] on `device`, in channels-last format for faster convolutions."""
    moved = images.to(device, non_blocking=device.type == "cuda")  # as bytes, a quarter of the transfer
    return moved.to(torch.float32, memory_format=torch.channels_last).div_(255)


def in_batches(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Split `rows` into consecutive batches; the last may be smaller."""
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
