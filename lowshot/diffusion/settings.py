"""Settings of the graph (index, edges), of the diffusion steps, and of the outputs made from the propagated labels."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from lowshot.core.choices import Registry
from lowshot.core.settings import ClosedUnitInterval, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class ExactIndex:
    """Exhaustive search: compares all vectors."""


@dataclass(frozen=True)
class InvertedFile:
    """IVF-Flat: compares a query only with the vectors of the nearest inverted lists."""

    n_probe: PositiveInt = 256
    """Number of inverted lists to scan per query. Fewer lists are faster but lower the recall."""


@dataclass(frozen=True)
class AutoIndex:
    """Exact search below a million vectors, an inverted file from there on (exact search would take hours on a CPU)."""

    n_probe: PositiveInt = 256
    """Number of inverted lists to scan per query, from a million vectors on. Fewer lists are faster but lower the
    recall."""


@dataclass(frozen=True)
class PublishedLists:
    """Precomputed neighbour lists."""

    ids: Path
    """Neighbour ids: headerless int32 (rows, K). K is the number in the file extension."""
    similarities: Path
    """Inner products with the neighbours: headerless float32 (rows, K)."""


INDEXES = Registry("index", {"auto": AutoIndex, "exact": ExactIndex, "ivf": InvertedFile})
LISTS = Registry("index", {**INDEXES.classes, "published": PublishedLists})


@dataclass
class Background:
    """The background to add to the graph of a setup."""

    file: Path
    """Graph written by `build_graph.py background`. Its PCA is used for the whole graph."""
    index: Annotated[Any, INDEXES] = field(default_factory=AutoIndex)
    """Index for the search in the background: auto is exact below a million rows and IVF-Flat above."""


Symmetry = Literal["sum", "max", "mutual"]


@dataclass(frozen=True)
class ConstantWeight:
    """Weight 1 for every edge."""


@dataclass(frozen=True)
class SimilarityWeight:
    """The inner product of the two nodes, or 0 if it is negative."""


@dataclass(frozen=True)
class GaussianWeight:
    """exp(-d^2 / (2 sigma^2)), where d is the distance between the two nodes."""

    sigma: PositiveFloat = 0.5
    """Width of the kernel. Distances are between unit vectors."""


WEIGHTS = Registry("weight", {"constant": ConstantWeight, "similarity": SimilarityWeight, "gaussian": GaussianWeight})


@dataclass(frozen=True)
class EdgeOptions:
    """How to turn neighbour lists into a matrix. The defaults follow the paper."""

    k: PositiveInt = 30
    """Number of neighbours of a node (itself included) and of a test image. At most the k of the graph."""
    weight: Annotated[Any, WEIGHTS] = field(default_factory=ConstantWeight)
    """Edge weight: 1, the inner product of the two nodes (0 if negative), or exp(-d^2 / (2 sigma^2)) of their
    distance d."""
    symmetry: Symmetry = "sum"
    """How to combine the two directions of an edge: their sum (as in the paper), the larger weight (max), or the
    smaller weight (mutual: keeps only mutual edges)."""


@dataclass
class Propagated:
    """Rows labelled by diffusion.py, most confident first."""

    label: ClassVar[str] = "propagated labels"

    file: Path
    """File written by diffusion.py --label."""
    max_per_label: PositiveInt = 20
    """Fill every novel class up to this number of rows, shots included."""


@dataclass
class Fusion:
    """Late fusion with a classifier."""

    scores: Path
    """Scores of the classifier on the same shots (low_shot.py --scores). May contain `{setup}`, like --graph."""
    weight: ClosedUnitInterval = 0.5
    """Weight of diffusion. The classifier gets 1 - weight."""


@dataclass
class Labelling:
    """Output of unlabelled images with their propagated labels."""

    out: Path
    """File to write (.h5): for each novel class, the images labelled with the highest confidence."""
    n_rows: PositiveInt = 20
    """Number of images to write per class."""
    background: Path | None = None
    """Features that the background graph was built from. Required if the graph has a background."""


Precision = Literal["float32", "bfloat16"]


@dataclass
class StepOptions:
    """Variants of the published step, off by default. Columns are scaled only at the end. For the published step this
    makes no difference; the variants are defined that way."""

    restart: ClosedUnitInterval = 0.0
    """Share of the initial labels in every step: L <- (1 - restart) W L + restart L_0."""
    clamp: bool = False
    """Reset labelled nodes to their labels after every step."""
