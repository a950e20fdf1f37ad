"""Training-time augmentation of a whole batch at once. The standard one: one affine map an image (crop and flip are
part of it), then blur, then colours.

Every image owns a row of uniform numbers, drawn per epoch from (seed, epoch): what happens to an image depends neither
on the batch it stands in nor on the number of processes.
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
)
from kornia.filters import filter2d_separable, get_gaussian_kernel1d
from torch import Tensor

from lowshot.core.choices import own_name
from lowshot.core.errors import InputError
from lowshot.core.seeds import torch_stream
from lowshot.representation.settings import StandardAugmentation

_N_UNIFORMS = 18
_CROP_TRIES = 10
_N_MORE_UNIFORMS = 6 + 2 * _CROP_TRIES


class Augmentation(StandardAugmentation):
    """The changes of `StandardAugmentation`, done to a batch on its device."""

    def uniforms(self, n_images: int, seed: int, epoch: int, view: int = 0) -> Tensor:
        """Random numbers of a view of an epoch, float32 in [0, 1): one row for each of `n_images` training images."""
        key = (epoch, view) if view else (epoch,)
        first = torch.rand(n_images, _N_UNIFORMS, generator=torch_stream(seed, "augmentation", *key))
        later = (self.crop_area, self.blur_probability, self.jitter_probability, self.hue, self.grey_probability)
        if all(setting is None for setting in later):
            return first
        # A stream of their own: settings that came later leave the numbers of the others as they were.
        more = torch.rand(n_images, _N_MORE_UNIFORMS, generator=torch_stream(seed, "augmentation, more", *key))
        return torch.cat([first, more], dim=1)

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Images in [0, 1] (B, C, H, W) and their rows of `uniforms` -> augmented images of the same shape."""
        if self._moves or self.crop_area is not None:
            theta = self._affine(uniforms, images.shape[-1])
            if self.crop_area is not None:
                theta = self._cropped(theta, uniforms)
            grid = _grid(theta, images)
            border = self.border if self._moves else "border"  # a crop alone stays inside
            images = F.grid_sample(images, grid, padding_mode=border, align_corners=False)
        elif self.flip:
            images = torch.where(uniforms[:, 0].view(-1, 1, 1, 1) < 0.5, images.flip(-1), images)
        if self.blur_sigma:
            sigma = _chance(uniforms[:, 18:19], self.blur_probability) * uniforms[:, 12:13] * self.blur_sigma
            radius = 1 if self.blur_sigma <= 1 else min(math.ceil(3 * self.blur_sigma), images.shape[-1])
            images = _blur(images, sigma, radius)
        return self._recolour(images, uniforms)

    @property
    def smallest_area(self) -> float | None:
        """Smallest share of the area of an image on disk that its decoder is to cut out; None for no cut."""
        return 0.08 if self.resized_crop and self.crop_area is None else self.crop_area

    def without_crop(self) -> "Augmentation":
        """For images from which a decoder has cut the part already."""
        return replace(self, crop_area=None)

    @property
    def _moves(self) -> bool:
        parts = (
            self.shift_pixels,
            self.crop_pixels,
            self.rotate_degrees,
            self.scale,
            self.translate,
            self.shear_degrees,
        )
        return any(part != 0 for part in parts)

    def _affine(self, u: Tensor, size: int) -> Tensor:
        """Maps (B, 2, 3) from output to input coordinates in [-1, 1]."""
        signed = 2 * u - 1
        on = (u[:, 11] < self.affine_probability).float()
        angle = on * signed[:, 1] * math.radians(self.rotate_degrees)
        shear = torch.tan(on * signed[:, 2] * math.radians(self.shear_degrees))
        left, right, top, bottom = ((u[:, 7:11] * (self.crop_pixels + 1)).floor() / size).unbind(1)
        stretch_x = (1 - left - right) / (1 + on * signed[:, 3] * self.scale)
        stretch_y = (1 - top - bottom) / (1 + on * signed[:, 4] * self.scale)
        mirror = torch.where(u[:, 0] < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(angle)
        whole = (signed[:, 5:7] * (self.shift_pixels + 0.5)).round() * 2 / size
        move = whole + 2 * self.translate * on[:, None] * signed[:, 16:18]
        cos, sin = angle.cos(), angle.sin()
        row_x = torch.stack([mirror * stretch_x * cos, stretch_x * (shear * cos - sin), left - right + move[:, 0]], 1)
        row_y = torch.stack([mirror * stretch_y * sin, stretch_y * (shear * sin + cos), top - bottom + move[:, 1]], 1)
        return torch.stack([row_x, row_y], 1)

    def _cropped(self, theta: Tensor, u: Tensor) -> Tensor:
        """The maps, with their input cut to a random part: torchvision's rule, the first of ten random parts that fits
        into the image (else all of it), but not rounded to whole pixels."""
        area = self.crop_area + (1 - self.crop_area) * u[:, 24 : 24 + _CROP_TRIES]
        ratio = (4 / 3) ** (2 * u[:, 24 + _CROP_TRIES : 24 + 2 * _CROP_TRIES] - 1)
        sides = torch.stack([area * ratio, area / ratio], dim=2).sqrt()
        fits = (sides <= 1).all(dim=2)
        first = sides[torch.arange(len(u), device=u.device), fits.float().argmax(dim=1)]
        sides = torch.where(fits.any(dim=1, keepdim=True), first, 1.0)
        centre = (2 * u[:, 22:24] - 1) * (1 - sides)
        return torch.cat([theta[:, :, :2] * sides[:, :, None], (theta[:, :, 2] * sides + centre)[:, :, None]], dim=2)

    def _recolour(self, images: Tensor, u: Tensor) -> Tensor:
        """Jitter, hue and grey; the published recipes have the first two in random order."""
        on, is_rgb = _chance(u[:, 19:20], self.jitter_probability), images.shape[1] == 3
        if self.jitter:
            images = _jitter(images, 1 + on * (self.jitter * (2 * u[:, 13:16] - 1)))
        if self.hue and is_rgb:
            images = adjust_hue(images, 2 * math.pi * (on * (self.hue * (2 * u[:, 20:21] - 1))))
        if self.grey_probability and is_rgb:
            is_grey = u[:, 21].view(-1, 1, 1, 1) < self.grey_probability
            images = torch.where(is_grey, rgb_to_grayscale(images), images)
        return images


class OwnAugmentation:
    """A user's augmentation, in the form of `Augmentation`: it sees whole images."""

    smallest_area = None

    def __init__(self, choice: Any) -> None:
        self.choice, self.name = choice, own_name(type(choice))
        if not isinstance(getattr(choice, "n_uniforms", None), int):
            raise InputError(f"{self.name}: has no n_uniforms, the random numbers that an image takes; 0 for none")

    def uniforms(self, n_images: int, seed: int, epoch: int, view: int = 0) -> Tensor:
        """As of `Augmentation`: (n_images, n_uniforms)."""
        key = (epoch, view) if view else (epoch,)
        return torch.rand(n_images, self.choice.n_uniforms, generator=torch_stream(seed, "augmentation", *key))

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Images in [0, 1] (B, C, H, W) and their rows of `uniforms` -> augmented images of the same shape."""
        changed = self.choice(images, uniforms)
        if changed.shape != images.shape:
            raise InputError(f"{self.name}: makes {tuple(changed.shape)} of images {tuple(images.shape)}")
        return changed

    def without_crop(self) -> "OwnAugmentation":
        """It cuts nothing that a decoder could."""
        return self


def augmentation_of(choice: Any) -> Augmentation | OwnAugmentation:
    """What a chosen augmentation does; a class of the user's own may inherit from `Augmentation`."""
    if isinstance(choice, Augmentation):
        return choice
    return Augmentation(**vars(choice)) if type(choice) is StandardAugmentation else OwnAugmentation(choice)


def _grid(theta: Tensor, images: Tensor) -> Tensor:
    """Where each pixel of the output looks in the input: (B, H, W, 2). F.affine_grid multiplies a small matrix for each
    image, which takes longer than sampling."""
    whole = torch.eye(2, 3, device=images.device)[None]
    x, y = F.affine_grid(whole, [1, 1, *images.shape[2:]], align_corners=False).unbind(-1)
    across, down, move = theta[:, None, None].unbind(-1)
    return torch.addcmul(torch.addcmul(move, across, x[..., None]), down, y[..., None])


def _chance(u: Tensor, probability: float | None) -> Tensor | float:
    """1 where it happens, else 0, by uniform numbers of any shape."""
    return 1.0 if probability is None else (u < probability).float()


def _blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with standard deviations (B, 1) in pixels, by taps up to `radius` pixels away: 1 is enough below
    one pixel."""
    # Not gaussian_blur2d, which makes the CPU wait for the GPU: it reads the standard deviations to check them.
    kernel = get_gaussian_kernel1d(2 * radius + 1, sigma.clamp(min=0.05))
    return filter2d_separable(images, kernel, kernel, "replicate")


def _jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and colour by factors (B, 3): blends with black, the mean grey level and the grey image
    (PIL's rule)."""
    brightness, contrast, colour = factors.unbind(1)
    images = adjust_brightness_accumulative(images, brightness)
    as_rgb = images.expand(-1, 3, -1, -1)  # kornia before 0.9 takes one mean of all grey images together
    images = adjust_contrast_with_mean_subtraction(as_rgb, contrast)[:, : images.shape[1]]
    return adjust_saturation_with_gray_subtraction(images, colour)
