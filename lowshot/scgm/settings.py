"""Settings to train an extractor on superclasses."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from lowshot.core.choices import Registry
from lowshot.core.settings import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt
from lowshot.representation.settings import SCHEDULES, Cosine, HoldoutSettings


@dataclass
class Coarse:
    """The cross-entropy of superclasses only."""


@dataclass(kw_only=True)
class MixtureSettings:
    """Settings of the methods that assign images to subclasses."""

    n_subclasses: PositiveInt = 100
    """Total number of subclasses of all superclasses."""
    alpha: NonNegativeFloat = 0.5
    """Weight of the two mixture terms of the loss."""
    tau: PositiveFloat = 0.1
    """Temperature of subclasses."""
    tau2: PositiveFloat = 1.0
    """Temperature of superclasses given subclasses."""
    e_step_every: PositiveInt = 5
    """Number of epochs between assignments of subclasses; the first assignment is before the first epoch."""
    e_step_view: Literal["augmented", "clean"] = "augmented"
    """Images used for the assignment: augmented, with batch norm in training mode (as published), or clean."""
    exponent: PositiveFloat = 25.0
    """Sharpness of the assignment."""
    residual: PositiveFloat = 0.1
    """Tolerance of the assignment: stop if an iteration changes less, summed over images."""
    max_iterations: PositiveInt = 1001
    """Maximum number of iterations of the assignment."""
    detach_means: bool = False
    """Do not update means by the mixture terms (as in the released SCGM-A, whose subclass means never change)."""


@dataclass(kw_only=True)
class ContrastSettings:
    """Settings of the methods with a momentum encoder."""

    contrast_tau: PositiveFloat = 0.2
    """Temperature of the contrastive loss."""
    key_momentum: ClosedUnitInterval = 0.999
    """Momentum of the key encoder."""
    queue_length: PositiveInt = 65536
    """Maximum number of keys per superclass; also limited by its number of images."""


@dataclass(kw_only=True)
class ScgmG(MixtureSettings):
    """The mixture."""


@dataclass(kw_only=True)
class ScgmA(ContrastSettings, MixtureSettings):
    """The mixture, and a contrastive loss within superclasses with a momentum encoder."""


@dataclass(kw_only=True)
class Ancor(ContrastSettings):
    """The contrastive loss without the mixture."""


METHODS = Registry("method", {"scgm_g": ScgmG, "scgm_a": ScgmA, "coarse": Coarse, "ancor": Ancor})


@dataclass(kw_only=True)
class ScgmSettings(HoldoutSettings):
    """How an extractor is trained on superclasses. Defaults are the published values."""

    method: Annotated[Any, METHODS] = field(default_factory=ScgmG)
    """Training method. scgm_g: the mixture. scgm_a: the mixture, and a contrastive loss within superclasses with a
    momentum encoder. Baselines: coarse (cross-entropy of superclasses only) and ancor (the contrastive loss only)."""
    embedding: PositiveInt = 128
    """Dimension of the embedding."""
    epochs: PositiveInt = 200
    lr: PositiveFloat = 0.03
    schedule: Annotated[Any, SCHEDULES] = field(default_factory=lambda: Cosine(n_cycles=10))

    renamed = (
        HoldoutSettings.renamed | {"method": "method.name"} | {one.name: f"method.{one.name}" for one in fields(ScgmA)}
    )


def has_mixture(settings: ScgmSettings) -> bool:
    """Whether the method assigns images to subclasses."""
    return isinstance(settings.method, MixtureSettings)


def has_contrast(settings: ScgmSettings) -> bool:
    """Whether the method has a momentum encoder."""
    return isinstance(settings.method, ContrastSettings)
