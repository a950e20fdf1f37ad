"""How a graph is searched and weighted, what a step of diffusion does, and what is made of its labels."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from lowshot.core.choices import Registry
from lowshot.core.settings import ClosedUnitInterval, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class ExactIndex:
    """All vectors are compared."""


@dataclass(frozen=True)
class InvertedFile:
    """IVF-Flat: only vectors of the lists nearest to the query are compared."""

    n_probe: PositiveInt = 256
    """Lists that a query looks into; fewer are faster and find less."""


@dataclass(frozen=True)
class AutoIndex:
    """Exact below a million vectors; from there on, where that takes hours on a CPU, an inverted file."""

    n_probe: PositiveInt = 256
    """From a million vectors on: lists that a query looks into; fewer are faster and find less."""


@dataclass(frozen=True)
class PublishedLists:
    """Lists that somebody else found."""

    ids: Path
    """Headerless int32 (rows, K), K being the number in the extension."""
    similarities: Path
    """Their inner products: headerless float32 (rows, K)."""


INDEXES = Registry("index", {"auto": AutoIndex, "exact": ExactIndex, "ivf": InvertedFile})
LISTS = Registry("index", {**INDEXES.classes, "published": PublishedLists})


@dataclass
class Background:
    """A background that a setup's graph is completed with."""

    file: Path
    """Graph that `background` wrote; its PCA is that of the whole graph."""
    index: Annotated[Any, INDEXES] = field(default_factory=AutoIndex)
    """How neighbours in the background are found: auto is exact below a million rows and IVF-Flat above."""


Symmetry = Literal["sum", "max", "mutual"]


@dataclass(frozen=True)
class ConstantWeight:
    """1 for every edge."""


@dataclass(frozen=True)
class SimilarityWeight:
    """The inner product of its ends, 0 if negative."""


@dataclass(frozen=True)
class GaussianWeight:
    """exp(-d^2 / (2 sigma^2)) of the distance d of its ends."""

    sigma: PositiveFloat = 0.5
    """Width, on unit vectors."""


WEIGHTS = Registry("weight", {"constant": ConstantWeight, "similarity": SimilarityWeight, "gaussian": GaussianWeight})


@dataclass(frozen=True)
class EdgeOptions:
    """How neighbour lists become a matrix; by default as published."""

    k: PositiveInt = 30
    """Neighbours of a node, itself included, and of a test image; at most those that the graph holds."""
    weight: Annotated[Any, WEIGHTS] = field(default_factory=ConstantWeight)
    """Of an edge: 1; the inner product of its ends, 0 if negative; or exp(-d^2 / (2 sigma^2)) of their distance d."""
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


@dataclass
class Fusion:
    """Late fusion with a classifier."""

    scores: Path
    """Scores of the classifier on the same shots (low_shot.py --scores); `{setup}` as in graph."""
    weight: ClosedUnitInterval = 0.5
    """Weight of diffusion; the classifier has the rest."""


@dataclass
class Labelling:
    """Unlabelled images that are to be written with the labels that reach them."""

    out: Path
    """File to write those to that are surest of a novel class (.h5)."""
    n_rows: PositiveInt = 20
    """Images of a class to write there."""
    background: Path | None = None
    """The features that the background graph was built from, if its images may be written."""


Precision = Literal["float32", "bfloat16"]


@dataclass
class StepOptions:
    """Departures from the published step, off by default. Columns are scaled at the end only, which makes no difference
    to the published step; with these it is what they mean."""

    restart: ClosedUnitInterval = 0.0
    """Share of the initial labels in every step: L <- (1 - restart) W L + restart L_0."""
    clamp: bool = False
    """Put labelled nodes back to their labels after every step."""
