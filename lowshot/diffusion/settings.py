"""How a graph is searched and weighted, and what a step of diffusion does."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lowshot.core.settings import ClosedUnitInterval, PositiveFloat, PositiveInt

IndexKind = Literal["exact", "ivf"]


Symmetry = Literal["sum", "max", "mutual"]


@dataclass(frozen=True)
class EdgeOptions:
    """How neighbour lists become a matrix; by default as published."""

    k: PositiveInt = 30
    """Neighbours of a node, itself included, and of a test image; at most those that the graph holds."""
    weight: Literal["constant", "similarity", "gaussian"] = "constant"
    """Of an edge: 1; the inner product of its ends, 0 if negative; or exp(-d^2 / (2 sigma^2)) of their distance d."""
    sigma: PositiveFloat = 0.5
    """gaussian: its width, on unit vectors."""
    symmetry: Symmetry = "sum"
    """Both directions of an edge are added, as published; or the larger counts, or the smaller (mutual edges only)."""


@dataclass
class Propagated:
    """Rows that diffusion.py labelled, the surest ones first."""

    setting: ClassVar[str] = "semi_supervised"
    label: ClassVar[str] = "propagated labels"

    file: Path
    """Rows file of diffusion.py."""
    max_per_label: PositiveInt = 20
    """Rows of a novel class, shots included, to fill up to."""


Precision = Literal["float32", "bfloat16"]


@dataclass
class StepOptions:
    """Departures from the published step, off by default. Columns are scaled at the end only, which makes no difference
    to the published step; with these it is what they mean."""

    restart: ClosedUnitInterval = 0.0
    """Share of the initial labels in every step: L <- (1 - restart) W L + restart L_0."""
    clamp: bool = False
    """Put labelled nodes back to their labels after every step."""
