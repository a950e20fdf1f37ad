"""Training-time augmentation of a whole batch at once: one affine map an image, then flip, blur and colour jitter.

Every image owns a row of uniform numbers, drawn per epoch from (seed, epoch): what happens to an image depends neither
on the batch it stands in nor on the number of processes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from lowshot.seeds import torch_stream

_N_UNIFORMS = 18


@dataclass
class Augmentation:
    """Which random changes a training image goes through; everything is off by default."""

    flip: bool = False
    """mirror left to right with probability 1/2"""
    shift_pixels: NonNegativeInt = 0
    """shift by up to this many pixels each way, the border filled (random crop of a padded image)"""
    crop_pixels: NonNegativeInt = 0
    """cut 0 to this many pixels from each side and stretch back"""
    rotate_degrees: NonNegativeFloat = 0.0
    """rotate by up to this angle each way"""
    scale: ClosedUnitInterval = 0.0
    """stretch width and height independently by a factor in 1 +- this"""
    translate: ClosedUnitInterval = 0.0
    """shift by up to this share of the image each way"""
    shear_degrees: NonNegativeFloat = 0.0
    """shear by up to this angle each way"""
    affine_probability: ClosedUnitInterval = 1.0
    """how often rotate, scale, translate and shear happen (all together)"""
    border: Literal["zeros", "border", "reflection"] = "zeros"
    """what fills the outside of a moved image"""
    blur_sigma: ClosedUnitInterval = 0.0
    """Gaussian blur with a standard deviation between 0 and this many pixels (at most 1)"""
    jitter: ClosedUnitInterval = 0.0
    """brightness, contrast and colour, in this order, by factors in 1 +- this (the published ImageJitter)"""
    resized_crop: bool = False
    """images on disk: a random part of 8 to 100 % of the area, stretched to the image size"""

    def uniforms(self, n_images: int, seed: int, epoch: int, view: int = 0) -> Tensor:
        """Random numbers of a view of an epoch, float32 in [0, 1): one row for each of `n_images` training images."""
        key = (epoch, view) if view else (epoch,)
        return torch.rand(n_images, _N_UNIFORMS, generator=torch_stream(seed, "augmentation", *key))

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Images in [0, 1] (B, C, H, W) and their rows of `uniforms` -> augmented images of the same shape."""
        if self._moves:
            theta = self._affine(uniforms, images.shape[-1])
            grid = F.affine_grid(theta, list(images.shape), align_corners=False)
            images = F.grid_sample(images, grid, padding_mode=self.border, align_corners=False)
        elif self.flip:
            images = torch.where(uniforms[:, 0].view(-1, 1, 1, 1) < 0.5, images.flip(-1), images)
        if self.blur_sigma:
            images = _blur(images, uniforms[:, 12] * self.blur_sigma)
        return _jitter(images, 1 + self.jitter * (2 * uniforms[:, 13:16] - 1)) if self.jitter else images

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


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with 3 taps a direction, sigma (B,) in pixels: enough below one pixel."""
    side = torch.exp(-0.5 / sigma.clamp(min=0.05).square()).view(-1, 1, 1, 1)
    across = F.pad(images, (1, 1, 0, 0), mode="replicate")
    images = (images + side * (across[..., :-2] + across[..., 2:])) / (1 + 2 * side)
    down = F.pad(images, (0, 0, 1, 1), mode="replicate")
    return (images + side * (down[..., :-2, :] + down[..., 2:, :])) / (1 + 2 * side)


def _jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and colour by factors (B, 3): blends with black, the mean grey level and the grey image
    (PIL's rule)."""
    brightness, contrast, colour = factors.view(-1, 3, 1, 1, 1).unbind(1)
    images = (images * brightness).clamp(0, 1)
    mean = _grey(images).mean(dim=(2, 3), keepdim=True)
    images = torch.lerp(mean.expand_as(images), images, contrast).clamp(0, 1)
    return torch.lerp(_grey(images).expand_as(images), images, colour).clamp(0, 1) if images.shape[1] == 3 else images


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(-1, 1, 1)).sum(dim=1, keepdim=True)
