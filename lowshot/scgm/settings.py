"""How an extractor is trained on superclasses."""

from dataclasses import dataclass
from typing import Literal

from lowshot.core.settings import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt
from lowshot.representation.settings import TrainingSettings


@dataclass(kw_only=True)
class ScgmSettings(TrainingSettings):
    """How an extractor is trained on superclasses; defaults are the published ones (spec 6)."""

    method: Literal["scgm_g", "scgm_a", "coarse", "ancor"] = "scgm_g"
    """scgm_g: the mixture; scgm_a: the mixture, and contrast within superclasses against a momentum encoder; baselines:
    coarse, cross-entropy of superclasses only, and ancor, with the contrast but without the mixture"""
    embedding: PositiveInt = 128
    """dimensions of the embedding"""
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
    contrast_tau: PositiveFloat = 0.2
    """temperature of the contrast"""
    key_momentum: ClosedUnitInterval = 0.999
    """of the encoder that makes keys"""
    queue_length: PositiveInt = 65536
    """keys of a superclass that are kept; never more than it has images"""
    detach_means: bool = False
    """the mixture's terms do not move the means (the released SCGM-A, whose subclass means stay as they began)"""
    epochs: PositiveInt = 200
    lr: PositiveFloat = 0.03
    schedule: Literal["step", "cosine"] = "cosine"
    n_cycles: PositiveInt | None = 10


_OF_MIXTURE = {"n_subclasses", "alpha", "tau", "tau2", "e_step_every", "e_step_view", "exponent", "residual",
               "max_iterations", "detach_means"}  # fmt: skip


_OF_CONTRAST = {"contrast_tau", "key_momentum", "queue_length"}


def settings_unread(settings: ScgmSettings) -> set[str]:
    """Names of those settings that the method does not read."""
    return (set() if has_mixture(settings) else _OF_MIXTURE) | (set() if has_contrast(settings) else _OF_CONTRAST)


def has_mixture(settings: ScgmSettings) -> bool:
    """Whether the method assigns images to subclasses."""
    return settings.method.startswith("scgm")


def has_contrast(settings: ScgmSettings) -> bool:
    """Whether the method has a momentum encoder."""
    return settings.method in ("scgm_a", "ancor")
