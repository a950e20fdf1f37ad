"""How a matching network is trained."""

from dataclasses import dataclass

from lowshot.core.settings import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt, RunOnly, Seed


@dataclass(kw_only=True)
class MatchingSettings:
    """How a matching network is trained; the defaults are the published values."""

    n_episodes: PositiveInt = 60_000
    """steps of gradient descent, one episode each"""
    end_after: RunOnly[PositiveInt | None] = None
    """end behind this one; an unfinished run that is past it ends at once, its last checkpoint kept as the model"""
    n_way: PositiveInt | None = None
    """base classes of an episode; all if not given"""
    max_shots: PositiveInt = 10
    """most support rows of a class; each class draws from 1 to that many"""
    n_reads: PositiveInt = 5
    """attention steps over the support"""
    lr: PositiveFloat = 0.1
    """learning rate"""
    lr_decay: PositiveFloat = 0.1
    """factor on the rate after every step_episodes"""
    step_episodes: PositiveInt = 20_000
    """episodes at a constant rate"""
    momentum: ClosedUnitInterval = 0.9
    """of SGD"""
    dampening: ClosedUnitInterval = 0.9
    """of SGD; equal to the momentum it averages gradients"""
    weight_decay: NonNegativeFloat = 0.001
    """L2 on every parameter"""
    seed: Seed = 0
    """of initialisation and episodes"""
