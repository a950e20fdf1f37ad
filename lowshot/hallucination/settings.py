"""Settings of mining and of generators."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowshot.core.settings import NonNegativeFloat, PositiveFloat, PositiveInt

Scope = Literal["global", "superclass"]
RuleName = Literal["hariharan2017", "ghosted2018"]
KMeans = Literal["faiss", "published"]
PairSource = Literal["centroids", "features"]
PairScope = Literal["all", "superclass"]


@dataclass
class Generator:
    """Rows that an analogy generator hallucinates."""

    folder: Path
    """Folder of train_analogy_generator.py."""
    pairs: PairSource = "centroids"
    """Pairs to draw from a base class: two independent centroids, or two different training rows (features)."""
    pair_scope: PairScope = "all"
    """Base classes to draw pairs from: all, or only those of the shot's superclass."""
    max_per_label: PositiveInt = 20
    """Number of rows to fill up each novel class to, including shots and rows of earlier additions."""

    @property
    def label(self) -> str:
        return f"generator ({self.pairs}, {self.pair_scope})"


@dataclass
class Calibrated:
    """Rows drawn around every shot with the covariance of the nearest base classes (Yang et al., ICLR 2021)."""

    max_per_label: PositiveInt = 750
    """Number of rows to fill up each novel class to, including shots and rows of earlier additions."""
    n_nearest: PositiveInt = 2
    """Number of base classes whose mean and covariance a shot borrows."""
    power: PositiveFloat = 0.5
    """Power of the space to draw in: the magnitude of every entry is raised to it, and its sign is kept. For a
    classifier in the same space, set --transform.power to the same value."""
    base_space: Literal["raw", "powered"] = "raw"
    """Features to compute the statistics of the base classes from: unchanged ones (raw), as published, or those of the
    space to draw in (powered)."""
    alpha: NonNegativeFloat = 0.21
    """Added to the covariance."""
    alpha_on: Literal["entries", "diagonal"] = "entries"
    """Where alpha is added. entries: to every entry, as published; diagonal: to the variances, as a multiple of their
    mean over base classes and dimensions."""
