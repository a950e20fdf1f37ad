"""The accuracy of a classifier of photos: over images and over classes, with what is confused with what."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import binomtest

from lowshot.photos.calibration import expected_calibration_error

_LISTED = 20  # classes in a text


@dataclass(frozen=True)
class Accuracy:
    """`probabilities` float32 (N, n_way) of images whose class is known: `labels` int64 (N,)."""

    probabilities: np.ndarray
    labels: np.ndarray
    class_names: list[str]

    @cached_property
    def predicted(self) -> np.ndarray:
        """The most likely class (N,) of each image."""
        return self.probabilities.argmax(1)

    @cached_property
    def is_right(self) -> np.ndarray:
        """Whether the prediction is right, bool (N,)."""
        return self.predicted == self.labels

    @cached_property
    def confusion(self) -> np.ndarray:
        """Number of images (n_way, n_way) of each class (row) by predicted class (column)."""
        n_way = len(self.class_names)
        return np.bincount(self.labels * n_way + self.predicted, minlength=n_way**2).reshape(n_way, n_way)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy over images."""
        found = binomtest(int(self.is_right.sum()), len(self.labels)).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    @property
    def over_classes(self) -> float:
        """The mean accuracy of the classes, whatever their number of images."""
        counts = self.confusion.sum(1)
        return float((self.confusion.diagonal() / counts.clip(1))[counts > 0].mean())

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, over ten bins of equally many images."""
        return expected_calibration_error(self.probabilities.max(1), self.is_right)

    def to_json(self) -> dict:
        """Return all numbers."""
        counts = self.confusion.sum(1)
        return {
            "n_images": len(self.labels),
            "accuracy": float(self.is_right.mean()),
            "interval": list(self.interval),
            "accuracy_over_classes": self.over_classes,
            "expected_calibration_error": self.calibration_error,
            "classes": [
                {"class": name, "n_images": int(n), "n_right": int(row[c]), "mistaken_for": self._mistaken_for(c)}
                for c, (name, n, row) in enumerate(zip(self.class_names, counts, self.confusion))
            ],
        }

    def lines(self, what: str) -> list[str]:
        """Return the numbers as text; `what` names the images."""
        low, high = self.interval
        first = (
            f"{what}: {self.is_right.mean():.1%} of {len(self.labels)} right (95 % interval {low:.1%} to {high:.1%}), "
            f"{self.over_classes:.1%} as the mean of the classes; chance {1 / len(self.class_names):.1%}; expected "
            f"calibration error {self.calibration_error:.1%}"
        )
        counts = self.confusion.sum(1)
        shares = np.where(counts > 0, self.confusion.diagonal() / counts.clip(1), np.nan)
        worst = np.argsort(shares, kind="stable")[: min(_LISTED, np.count_nonzero(counts))]  # NaN comes last
        width = max(len(self.class_names[c]) for c in worst)
        right = self.confusion.diagonal()
        rows = [f"  {self.class_names[c]:{width}}  {right[c]:>4} of {counts[c]:<4}  {self._mistaken(c)}" for c in worst]
        n_more, n_unknown = np.count_nonzero(counts) - len(worst), np.count_nonzero(counts == 0)
        others = [f"  ... and {n_more} classes that are not worse"] if n_more else []
        others += [f"  {n_unknown} classes were not judged"] if n_unknown else []
        return [first, *(row.rstrip() for row in rows), *others]

    def _mistaken_for(self, c: int) -> dict[str, int]:
        """Return the other classes that images of the class `c` were given, most frequent first."""
        row = self.confusion[c].copy()
        row[c] = 0
        order = np.argsort(-row, kind="stable")
        return {self.class_names[other]: int(row[other]) for other in order[: np.count_nonzero(row)]}

    def _mistaken(self, c: int) -> str:
        others = [f"{name} ({n})" for name, n in self._mistaken_for(c).items()][:3]
        return f"mistaken for {', '.join(others)}" if others else ""
