"""What the scores of a run say about every test image. All numbers of the benchmark are computed from it."""

from dataclasses import dataclass, fields

import numpy as np

# Probability of the novel classes together in the accuracies with a class prior. Wang et al. (CVPR 2018) choose it by
# cross-validation. This is the value of Gidaris & Komodakis (CVPR 2018), for all numbers of shots.
NOVEL_PRIOR = 0.8


@dataclass(frozen=True)
class Columns:
    """The classes that the columns of a score matrix stand for, and which of them are base or novel.

    `classes` int64 (C,) are class numbers; `base` and `novel` int64 (B,) and (M,) are columns. Columns of classes
    outside the setup are neither.
    """

    classes: np.ndarray
    base: np.ndarray
    novel: np.ndarray

    @classmethod
    def of(cls, classes: np.ndarray, base_classes: np.ndarray, novel_classes: np.ndarray) -> "Columns":
        """Return the columns of `classes` (C,), which are ascending."""
        return cls(classes, np.searchsorted(classes, base_classes), np.searchsorted(classes, novel_classes))


@dataclass(frozen=True)
class Outcomes:
    """What the scores of N test images say, each (..., N).

    Attributes:
        ranks: `true_class_ranks` among all classes that have a score, int32.
        group_ranks: The rank among the base classes for images of base classes, among the novel classes for images of
            novel classes, int32.
        prior_ranks: The rank among base and novel classes by probability, if the novel classes have the probability
            `NOVEL_PRIOR` together, int32.
        predicted: The class with the highest score, int32. If it ties with the true class, which does not count as a
            hit, it is the other class.
        leads: The highest score of a base class minus the highest of a novel class, float64.
    """

    ranks: np.ndarray
    group_ranks: np.ndarray
    prior_ranks: np.ndarray
    predicted: np.ndarray
    leads: np.ndarray

    def __getitem__(self, run: int) -> "Outcomes":
        """Return the outcomes of one of several runs."""
        return Outcomes(*(getattr(self, one.name)[run] for one in fields(self)))

    @staticmethod
    def joined(parts: list["Outcomes"]) -> "Outcomes":
        """Concatenate the outcomes of several chunks of images."""
        names = [one.name for one in fields(Outcomes)]
        return Outcomes(*(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names))
