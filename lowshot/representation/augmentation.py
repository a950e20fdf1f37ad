"""Augmentation of training images, one batch at a time on its device.

`Augmentation` applies one affine map per image (crop and flip included), then blur, then colour changes. Each image has
its own row of uniform random numbers per epoch, drawn from (seed, epoch). Its augmentation therefore depends neither on
the batch that it is in nor on the number of processes.
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
    """Applies the settings of `StandardAugmentation` to a batch."""

    def uniforms(self, n_images: int, seed: int, epoch: int, view: int = 0) -> Tensor:
        """Draw the random numbers of one view and epoch: float32 (n_images, n_uniforms) in [0, 1)."""
        key = (epoch, view) if view else (epoch,)
        first = torch.rand(n_images, _N_UNIFORMS, generator=torch_stream(seed, "augmentation", *key))
        later = (self.crop_area, self.blur_probability, self.jitter_probability, self.hue, self.grey_probability)
        if all(setting is None for setting in later):
            return first
        # A separate stream: settings that were added later do not change the numbers of the older ones.
        more = torch.rand(n_images, _N_MORE_UNIFORMS, generator=torch_stream(seed, "augmentation, more", *key))
        return torch.cat([first, more], dim=1)

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Augment images (B, C, H, W) in [0, 1] with their rows of `uniforms`. Returns the same shape."""
        if self._moves or self.crop_area is not None:
            theta = self._affine(uniforms, images.shape[-1])
            if self.crop_area is not None:
                theta = self._cropped(theta, uniforms)
            grid = _grid(theta, images)
            border = self.border if self._moves else "border"  # a crop alone stays inside the image
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
        """Smallest share of the area that the decoder crops from an image on disk; None for no crop."""
        return 0.08 if self.resized_crop and self.crop_area is None else self.crop_area

    def without_crop(self) -> "Augmentation":
        """Return the augmentation without its crop, for images that the decoder has already cropped."""
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
        """Return maps (B, 2, 3) from output to input coordinates in [-1, 1]."""
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
        """Crop the input of the maps at random, by the rule of torchvision's RandomResizedCrop: use the first of ten
        random crops that fits into the image, or the whole image. Unlike there, crops are not rounded to pixels."""
        area = self.crop_area + (1 - self.crop_area) * u[:, 24 : 24 + _CROP_TRIES]
        ratio = (4 / 3) ** (2 * u[:, 24 + _CROP_TRIES : 24 + 2 * _CROP_TRIES] - 1)
        sides = torch.stack([area * ratio, area / ratio], dim=2).sqrt()
        fits = (sides <= 1).all(dim=2)
        first = sides[torch.arange(len(u), device=u.device), fits.float().argmax(dim=1)]
        sides = torch.where(fits.any(dim=1, keepdim=True), first, 1.0)
        centre = (2 * u[:, 22:24] - 1) * (1 - sides)
        return torch.cat([theta[:, :, :2] * sides[:, :, None], (theta[:, :, 2] * sides + centre)[:, :, None]], dim=2)

    def _recolour(self, images: Tensor, u: Tensor) -> Tensor:
        """Apply jitter, hue and grey in this order. The published recipes apply the first two in random order."""
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
    """Gives the user's augmentation the interface of `Augmentation`. It always receives whole images."""

    smallest_area = None

    def __init__(self, choice: Any) -> None:
        self.choice, self.name = choice, own_name(type(choice))
        if not isinstance(getattr(choice, "n_uniforms", None), int):
            raise InputError(
                f"{self.name}: lacks the attribute n_uniforms, the number of random numbers per image. Set it to 0 if "
                f"it needs none"
            )

    def uniforms(self, n_images: int, seed: int, epoch: int, view: int = 0) -> Tensor:
        """Draw the random numbers of one view and epoch: float32 (n_images, n_uniforms) in [0, 1)."""
        key = (epoch, view) if view else (epoch,)
        return torch.rand(n_images, self.choice.n_uniforms, generator=torch_stream(seed, "augmentation", *key))

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Augment images (B, C, H, W) in [0, 1] with their rows of `uniforms`. Returns the same shape."""
        changed = self.choice(images, uniforms)
        if changed.shape != images.shape:
            raise InputError(f"{self.name}: must return shape {tuple(images.shape)}, not {tuple(changed.shape)}")
        return changed

    def without_crop(self) -> "OwnAugmentation":
        """Return the augmentation itself, as it has no crop that a decoder could apply."""
        return self


def augmentation_of(choice: Any) -> Augmentation | OwnAugmentation:
    """Return the implementation of a chosen augmentation. The user's own class may inherit from `Augmentation`."""
    if isinstance(choice, Augmentation):
        return choice
    return Augmentation(**vars(choice)) if type(choice) is StandardAugmentation else OwnAugmentation(choice)


def _grid(theta: Tensor, images: Tensor) -> Tensor:
    """Return the input coordinates of each output pixel, (B, H, W, 2).

    Replaces F.affine_grid, which multiplies a small matrix per image and takes longer than the sampling itself.
    """
    whole = torch.eye(2, 3, device=images.device)[None]
    x, y = F.affine_grid(whole, [1, 1, *images.shape[2:]], align_corners=False).unbind(-1)
    across, down, move = theta[:, None, None].unbind(-1)
    return torch.addcmul(torch.addcmul(move, across, x[..., None]), down, y[..., None])


def _chance(u: Tensor, probability: float | None) -> Tensor | float:
    """Return 1 with the given probability, else 0, from uniform numbers of any shape."""
    return 1.0 if probability is None else (u < probability).float()


def _blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur with a Gaussian of standard deviations (B, 1) in pixels and a kernel of the given radius. Radius 1 is enough
    for standard deviations below one pixel."""
    # kornia's gaussian_blur2d is avoided: it reads the standard deviations to check them, so the CPU waits for the GPU.
    kernel = get_gaussian_kernel1d(2 * radius + 1, sigma.clamp(min=0.05))
    return filter2d_separable(images, kernel, kernel, "replicate")


def _jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast and colour by factors (B, 3), as PIL does: blend with black, with the mean grey level
    and with the grey image."""
    brightness, contrast, colour = factors.unbind(1)
    images = adjust_brightness_accumulative(images, brightness)
    as_rgb = images.expand(-1, 3, -1, -1)  # kornia before 0.9 uses a single mean for a batch of grey images
    images = adjust_contrast_with_mean_subtraction(as_rgb, contrast)[:, : images.shape[1]]
    return adjust_saturation_with_gray_subtraction(images, colour)
