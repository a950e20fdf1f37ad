"""Random augmentation of all discriminator inputs, real and generated (Karras et al., StyleGAN2-ADA, NeurIPS 2020).

Uses the subset of Beckham et al. (arXiv 2203.16662): one differentiable affine map per image. The generator does not
learn the changes as long as most images stay unchanged.

Departures from both papers: the map is sampled bilinearly once, without filtering at twice the resolution, and one of
the two rotations precedes all other changes.
"""

import math
from typing import Any

import torch
from kornia.geometry.transform import warp_affine
from torch import Tensor

from lowshot.core.choices import is_own
from lowshot.gan.settings import AdaptiveChanges, FixedChanges, NoChanges

N_UNIFORMS = 9
_LARGEST_SHIFT = 0.125
_LARGEST_PROBABILITY = 0.8  # with a higher probability, generators learn the changes (Karras et al., 2020)


class DiscriminatorAugmentation:
    """Applies the changes chosen from `lowshot.gan.settings.CHANGES` to a batch, on its device."""

    def __init__(self, settings: Any) -> None:
        self.settings, self.adapts = settings, isinstance(settings, AdaptiveChanges)
        self.first_p = settings.p if isinstance(settings, FixedChanges) else 0.0
        self.n_uniforms = getattr(settings, "n_uniforms", N_UNIFORMS)

    def adapted(self, p: Tensor, real_logits: Tensor, n_images: int) -> Tensor:
        """Return the probability `p` (a scalar), updated by the logits of `n_images` real images."""
        s = self.settings
        step = (real_logits.sign().mean() - s.target).sign() * n_images / s.n_images
        return (p + step).clamp(0, _LARGEST_PROBABILITY)

    def __call__(self, images: Tensor, uniforms: Tensor, p: Tensor) -> Tensor:
        """Return images (B, C, S, S), changed by `uniforms` (B, n_uniforms) in [0, 1). Borders are reflected."""
        if is_own(self.settings):
            return self.settings(images, uniforms)
        if isinstance(self.settings, NoChanges) or not self.settings.changes:
            return images
        size = images.shape[-1]
        maps = self._maps(uniforms, p, size)
        return warp_affine(images, maps, (size, size), padding_mode="reflection")

    def _maps(self, u: Tensor, p: Tensor, size: int) -> Tensor:
        """Return affine maps (B, 2, 3) in pixels, from the position of a point in the image to its new position."""
        happens = {name: name in self.settings.changes for name in ("flip", "rotate90", "translate", "rotate")}
        mirror = torch.where((u[:, 0] < p / 2) & happens["flip"], -1.0, 1.0)
        # Given that the change happens (u < p), u / p is uniform in [0, 1).
        turns = torch.where((u[:, 1] < p) & happens["rotate90"], (4 * u[:, 1] / p.clamp(min=1e-8)).floor(), 0.0)
        drawn = (2 * u[:, 3:5] - 1) * _LARGEST_SHIFT * size
        shift = torch.where((u[:, 2:3] < p) & happens["translate"], drawn.round(), 0.0)
        often = (1 - (1 - p).sqrt()) * happens["rotate"]
        before, after = (torch.where(u[:, i] < often, (2 * u[:, i + 1] - 1) * math.pi, 0.0) for i in (5, 7))
        first = _rotation(before) * torch.stack([mirror, torch.ones_like(mirror)], 1)[:, None]
        last, turned = _rotation(after), _rotation(turns * math.pi / 2)
        matrix = last @ turned @ first
        centre = torch.full((2,), (size - 1) / 2, device=u.device)
        move = centre - matrix @ centre + (last @ shift[:, :, None])[:, :, 0]
        return torch.cat([matrix, move[:, :, None]], 2)


def _rotation(angles: Tensor) -> Tensor:
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
