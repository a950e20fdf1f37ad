"""Judge a classifier of photos on images whose folder says what they show."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from lowshot.core.files import plain_cell
from lowshot.photos.accuracy import Accuracy
from lowshot.photos.classifier import PhotoClassifier


@dataclass(frozen=True)
class Judged:
    """Predictions for N images, and the names of what they show, which may be none of the classes.

    `probabilities` float32 (N, n_way); `typicality` float64 (N,), at least `smallest`. An image is called none of the
    classes if its typicality is at most `false_alarms`.
    """

    class_names: list[str]
    names: list[str]
    probabilities: np.ndarray
    typicality: np.ndarray
    false_alarms: float
    smallest: float

    @cached_property
    def is_known(self) -> np.ndarray:
        """Whether an image shows one of the classes, bool (N,)."""
        return np.isin(self.names, self.class_names)

    @cached_property
    def accuracy(self) -> Accuracy:
        """The accuracy on the images of the classes."""
        numbers = {name: c for c, name in enumerate(self.class_names)}
        labels = np.array([numbers[name] for name in self.names if name in numbers], np.int64)
        return Accuracy(self.probabilities[self.is_known], labels, self.class_names)

    def mistakes(self) -> np.ndarray:
        """Return the rows of images of the classes with a wrong class, the most confident first."""
        rows = np.flatnonzero(self.is_known)[~self.accuracy.is_right]
        return rows[np.argsort(-self.probabilities.max(1)[rows], kind="stable")]

    def missed(self) -> np.ndarray:
        """Return the rows of images of other classes that are given a class, the most typical first."""
        rows = np.flatnonzero(~self.is_known & ~(self.typicality <= self.false_alarms))
        return rows[np.argsort(-self.typicality[rows], kind="stable")]

    def table(self, images: Sequence[str]) -> pd.DataFrame:
        """Return a row for each image: its class, the prediction and how sure it is."""
        best = self.probabilities.argmax(1)
        names, shown = map(plain_cell, self.names), map(plain_cell, images)
        columns = {"image": [*shown], "class": [*names], "predicted": [plain_cell(self.class_names[c]) for c in best],
                   "score": self.probabilities.max(1).round(6), "typicality": self.typicality.round(6)}  # fmt: skip
        return pd.DataFrame(columns)

    def confusion(self) -> pd.DataFrame:
        """Return the number of images of each class (rows) by predicted class (columns)."""
        names = [plain_cell(name) for name in self.class_names]
        return pd.DataFrame(self.accuracy.confusion, pd.Index(names, name="class"), names)

    @property
    def none_of_these(self) -> dict[str, float | int | None]:
        """How well images of other classes are told from those of the classes. None if there are no other images, or
        if the classifier has too few photos for this rate."""
        flagged, others = self.typicality <= self.false_alarms, ~self.is_known
        can_tell = self.false_alarms >= self.smallest and not np.isnan(self.typicality).any()
        return {
            "rate": self.false_alarms,
            "false_alarms": float(flagged[~others].mean()) if can_tell else None,
            "n_others": int(others.sum()),
            "found": float(flagged[others].mean()) if can_tell and others.any() else None,
            "auroc": float(roc_auc_score(others, -self.typicality)) if can_tell and others.any() else None,
        }

    def to_json(self) -> dict:
        """Return all numbers."""
        return {**self.accuracy.to_json(), "none_of_these": self.none_of_these}

    def lines(self) -> list[str]:
        """Return the numbers as text."""
        none, lines = self.none_of_these, self.accuracy.lines("photos")
        rate = f"--false_alarms {none['rate']:g}"
        if none["false_alarms"] is None:
            return [*lines, f"none of these: the classifier has too few photos for {rate}"]
        told = f"called none of these at {rate}: {none['false_alarms']:.1%} of these photos"
        if none["found"] is not None:
            told += f", {none['found']:.1%} of {none['n_others']} of other classes (AUROC {none['auroc']:.3f})"
        return [*lines, told]


def judge(classifier: PhotoClassifier, features: np.ndarray, names: list[str], false_alarms: float) -> Judged:
    """Classify features (N, D) of images of the classes `names` (N)."""
    predictions = classifier.predict_proba(features), classifier.typicality_of(features)
    return Judged(classifier.class_names, names, *predictions, false_alarms, classifier.typicality.smallest)
