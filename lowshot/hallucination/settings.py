"""Settings of mining and of generators."""

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
