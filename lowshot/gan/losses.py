"""Losses of both networks (Beckham et al., arXiv 2203.16662).

They are a non-saturating adversarial loss, a regression of the noise, and an unconditional adversarial loss that can
use unlabelled images.
"""

import torch.nn.functional as F
from torch import Tensor

from lowshot.gan.networks import DiscriminatorOutput


def generator_losses(fake: DiscriminatorOutput, z: Tensor) -> dict[str, Tensor]:
    """Return the loss terms by name, averaged over a batch of images generated from the noise `z` (B, z_dim)."""
    return {
        "adversarial": F.softplus(-fake.conditional).mean(),
        "noise": F.mse_loss(fake.z, z),
        "unconditional": F.softplus(-fake.unconditional).mean(),
    }


def discriminator_losses(
    real: DiscriminatorOutput, fake: DiscriminatorOutput, unlabelled: DiscriminatorOutput, z: Tensor
) -> dict[str, Tensor]:
    """Return the loss terms of the discriminator by name, averaged over the batch.

    `unlabelled` are real images of any class, from a larger pool or `real` again. Their number may differ.
    """
    return {
        "adversarial": _real_or_fake(real.conditional, fake.conditional),
        "noise": F.mse_loss(fake.z, z),
        "unconditional": _real_or_fake(unlabelled.unconditional, fake.unconditional),
    }


def mismatch_loss(logits: Tensor, differs: Tensor) -> Tensor:
    """Return the loss of real images that are paired with the class of another image (Reed et al., ICML 2016).

    The discriminator should classify such a pair as generated. The conditional `logits` (B,) count where the class
    `differs` (B,) from the true one. With weight 1, mismatched pairs count as much as generated images. In the paper
    both together count as much as real images.
    """
    return (F.softplus(logits) * differs).mean() / 2


def weighted(losses: dict[str, Tensor], gamma: float, alpha: float, mismatch: float = 0.0) -> Tensor:
    """Return adversarial + gamma * noise + alpha * unconditional + mismatch * mismatch.

    Terms with weight 0 are left out of the graph.
    """
    weights = {"adversarial": 1.0, "noise": gamma, "unconditional": alpha, "mismatch": mismatch}
    return sum(weights[name] * loss for name, loss in losses.items() if weights[name])


def _real_or_fake(real: Tensor, fake: Tensor) -> Tensor:
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
