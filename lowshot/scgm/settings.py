"""How an extractor is trained on superclasses."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from lowshot.core.choices import Registry
from lowshot.core.settings import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt
from lowshot.representation.settings import SCHEDULES, Cosine, HoldoutSettings


@dataclass
class Coarse:
    """Cross-entropy of superclasses only."""


@dataclass(kw_only=True)
class MixtureSettings:
    """Of the methods that assign images to subclasses."""

    n_subclasses: PositiveInt = 100
    """subclasses of all superclasses together"""
    alpha: NonNegativeFloat = 0.5
    """weight of the mixture's two terms"""
    tau: PositiveFloat = 0.1
    """temperature of subclasses"""
    tau2: PositiveFloat = 1.0
    """temperature of superclasses given subclasses"""
    e_step_every: PositiveInt = 5
    """epochs from one assignment of subclasses to the next, the first before the first epoch"""
    e_step_view: Literal["augmented", "clean"] = "augmented"
    """what images are assigned by: an augmented view with batch norm in training mode, as published, or themselves"""
    exponent: PositiveFloat = 25.0
    """sharpness of the assignment"""
    residual: PositiveFloat = 0.1
    """the assignment's iteration ends where it changes less, summed over images"""
    max_iterations: PositiveInt = 1001
    """and here at the latest"""
    detach_means: bool = False
    """the mixture's terms do not move the means (the released SCGM-A, whose subclass means stay as they began)"""


@dataclass(kw_only=True)
class ContrastSettings:
    """Of the methods with a momentum encoder."""

    contrast_tau: PositiveFloat = 0.2
    """temperature of the contrast"""
    key_momentum: ClosedUnitInterval = 0.999
    """of the encoder that makes keys"""
    queue_length: PositiveInt = 65536
    """keys of a superclass that are kept; never more than it has images"""


@dataclass(kw_only=True)
class ScgmG(MixtureSettings):
    """The mixture."""


@dataclass(kw_only=True)
class ScgmA(ContrastSettings, MixtureSettings):
    """The mixture, and contrast within superclasses against a momentum encoder."""


@dataclass(kw_only=True)
class Ancor(ContrastSettings):
    """The contrast without the mixture."""


METHODS = Registry("method", {"scgm_g": ScgmG, "scgm_a": ScgmA, "coarse": Coarse, "ancor": Ancor})


@dataclass(kw_only=True)
class ScgmSettings(HoldoutSettings):
    """How an extractor is trained on superclasses; defaults are the published ones (spec 6)."""

    method: Annotated[Any, METHODS] = field(default_factory=ScgmG)
    """scgm_g: the mixture; scgm_a: the mixture, and contrast within superclasses against a momentum encoder; baselines:
    coarse, cross-entropy of superclasses only, and ancor, with the contrast but without the mixture"""
    embedding: PositiveInt = 128
    """dimensions of the embedding"""
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
