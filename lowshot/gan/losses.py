"""The losses of both networks (Beckham et al., arXiv 2203.16662; spec 3.4): non-saturating, with noise regression, and
with an unconditional term that unlabelled images can feed."""

import torch.nn.functional as F
from torch import Tensor

from lowshot.gan.networks import DiscriminatorOutput


def generator_losses(fake: DiscriminatorOutput, z: Tensor) -> dict[str, Tensor]:
    """Terms by name, means over the batch, of generated images made of the noise `z` (B, z_dim)."""
    return {
        "adversarial": F.softplus(-fake.conditional).mean(),
        "noise": F.mse_loss(fake.z, z),
        "unconditional": F.softplus(-fake.unconditional).mean(),
    }


def discriminator_losses(
    real: DiscriminatorOutput, fake: DiscriminatorOutput, unlabelled: DiscriminatorOutput, z: Tensor
) -> dict[str, Tensor]:
    """The same for the discriminator. `unlabelled` are real images of whatever class: those of a larger pool, or `real`
    once more; there need not be as many."""
    return {
        "adversarial": _told_apart(real.conditional, fake.conditional),
        "noise": F.mse_loss(fake.z, z),
        "unconditional": _told_apart(unlabelled.unconditional, fake.unconditional),
    }


def mismatch_loss(logits: Tensor, differs: Tensor) -> Tensor:
    """Of real images that are given out for another class (Reed et al., ICML 2016): their conditional `logits` (B,) are
    to be those of generated ones, where that class `differs` (B,) from their own. With weight 1 it counts as much as
    generated images do (there both together count as much as real ones)."""
    return (F.softplus(logits) * differs).mean() / 2


def weighted(losses: dict[str, Tensor], gamma: float, alpha: float, mismatch: float = 0.0) -> Tensor:
    """The loss: adversarial + gamma * noise + alpha * unconditional + mismatch * mismatch; a term of no weight has no
    gradient."""
    weights = {"adversarial": 1.0, "noise": gamma, "unconditional": alpha, "mismatch": mismatch}
    return sum(weights[name] * loss for name, loss in losses.items() if weights[name])


def _told_apart(real: Tensor, fake: Tensor) -> Tensor:
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
