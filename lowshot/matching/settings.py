"""Settings of the training of a matching network."""

from dataclasses import dataclass

from lowshot.core.settings import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt, RunOnly, Seed


@dataclass(kw_only=True)
class MatchingSettings:
    """Settings of the training of a matching network. The defaults are the published values."""

    n_episodes: PositiveInt = 60_000
    """Number of training episodes. Each is one gradient step."""
    end_after: RunOnly[PositiveInt | None] = None
    """End training after this episode. A run that is resumed after this episode trains no further and saves its last
    checkpoint as the model."""
    n_way: PositiveInt | None = None
    """Number of base classes per episode. Default: all."""
    max_shots: PositiveInt = 10
    """Maximum number of support rows per class. Each class draws between 1 and this number."""
    n_reads: PositiveInt = 5
    """Number of attention steps over the support."""
    lr: PositiveFloat = 0.1
    """Initial learning rate of SGD."""
    lr_decay: PositiveFloat = 0.1
    """Factor of the learning rate after every step_episodes episodes."""
    step_episodes: PositiveInt = 20_000
    """Number of episodes between two decays of the learning rate."""
    momentum: ClosedUnitInterval = 0.9
    """Momentum of SGD."""
    dampening: ClosedUnitInterval = 0.9
    """Dampening of SGD. If equal to the momentum, the update direction is a moving average of the gradients."""
    weight_decay: NonNegativeFloat = 0.001
    """L2 penalty of all parameters."""
    seed: Seed = 0
    """Seed of initialisation and episodes."""
