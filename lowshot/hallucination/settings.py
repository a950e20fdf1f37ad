"""What can be chosen of mining and of generators."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowshot.core.settings import PositiveInt

Scope = Literal["global", "superclass"]
RuleName = Literal["hariharan2017", "ghosted2018"]
KMeans = Literal["faiss", "published"]
PairSource = Literal["centroids", "features"]
PairScope = Literal["all", "superclass"]


@dataclass
class Generator:
    """Hallucinated rows of an analogy generator."""

    folder: Path
    """Folder of train_analogy_generator.py."""
    pairs: PairSource = "centroids"
    """What pairs of a base class are drawn from: two independent centroids, or two different training rows."""
    pair_scope: PairScope = "all"
    """Base classes a pair may come from: all, or those of the shot's superclass."""
    max_per_label: PositiveInt = 20
    """Rows of a novel class, shots and what was added before included, to fill up to."""

    @property
    def label(self) -> str:
        return f"generator ({self.pairs}, {self.pair_scope})"
