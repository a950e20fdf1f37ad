"""Distribution calibration (Yang, Liu & Xu, ICLR 2021): rows drawn from a normal distribution around every shot.

The mean of the distribution is that of the shot and the means of the nearest base classes, the covariance is that of
these classes. The paper's rows join the shots as training rows of a linear classifier.
"""

from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from lowshot.core.errors import InputError
from lowshot.core.seeds import stream
from lowshot.data.additions import Run
from lowshot.data.features import Features
from lowshot.hallucination.settings import Calibrated


class CalibratedRows:
    """Adds drawn rows to a low-shot training set.

    Equations 3, 6 and 7 of the paper, with the constants of its release. Departs from the release in the number of
    rows: a class is filled up to `max_per_label`, where the release draws 750 besides the shots. Two of its properties
    are settings: the statistics of the base classes are of raw features, while the shots are powered (`base_space`),
    and alpha is added to every entry of the covariance, not to the diagonal alone (`alpha_on`).

    The drawn rows go back through the inverse of the power, so that they are features like the shots. A classifier with
    the same `--transform.power` sees them as they were drawn, apart from the length: it normalises, the release does
    not. The power keeps the sign of an entry, as drawn entries and features of other networks may be negative.

    Args:
        settings: The space to draw in, the distribution, and the number of rows per class.
        train: The train features to extend.
        base_rows: Rows of the base classes in `train`, (rows,).

    Raises InputError for a base class with a single row, and for fewer base classes than `n_nearest`.
    """

    def __init__(self, settings: Calibrated, train: Features, base_rows: np.ndarray) -> None:
        rows = base_rows[np.argsort(train.labels[base_rows], kind="stable")]
        classes, self.starts, self.counts = np.unique(train.labels[rows], return_index=True, return_counts=True)
        if self.counts.min() < 2:
            raise InputError(
                f"{train.path}: class {classes[self.counts.argmin()]} has a single row, but --add.calibrated needs the "
                "covariance of every base class. Add images to it"
            )
        if len(classes) < settings.n_nearest:
            raise InputError(
                f"--add.calibrated.n_nearest {settings.n_nearest}: there are only {len(classes)} base classes"
            )
        feats = _powered(train.feats[rows], settings.power) if settings.base_space == "powered" else train.feats[rows]
        self.settings = settings
        self.means = np.add.reduceat(feats, self.starts, dtype=np.float64) / self.counts[:, None]
        self.deviations = (feats - np.repeat(self.means, self.counts, axis=0)).astype(np.float32)
        self.deviations /= np.sqrt(np.repeat(self.counts, self.counts) - 1)[:, None].astype(np.float32)
        mean_variance = np.square(self.deviations, dtype=np.float64).sum() / self.means.size
        self.alpha = settings.alpha * (mean_variance if settings.alpha_on == "diagonal" else 1.0)

    def extend(self, run: Run, benchmark: Any, seed: int) -> Run:
        """Add rows until each class has `max_per_label`, in turn from the distributions of its rows in `run`.

        Row j of a class depends only on (seed, trial, class, j) and these rows, so that a larger `max_per_label` does
        not change the first rows.
        """
        classes = np.unique(run.labels)
        parts = [self._rows(run.feats[run.labels == c], int(c), seed, run.trial) for c in classes]
        return run.joined(np.concatenate(parts), np.repeat(classes, [len(part) for part in parts]))

    def _rows(self, shots: np.ndarray, label: int, seed: int, trial: int) -> np.ndarray:
        """Return the new rows (n_new, D) of a class with `shots` (S, D)."""
        n_new = max(0, self.settings.max_per_label - len(shots))
        shape = -(-n_new // len(shots)), len(shots), self.n_normals
        noise = stream(seed, "calibrated", trial, label).standard_normal(shape, np.float32)
        drawn = self.draw(_powered(shots, self.settings.power), noise)
        return _powered(drawn.reshape(-1, shots.shape[1])[:n_new], 1 / self.settings.power)

    @property
    def n_normals(self) -> int:
        """Number of standard normal numbers that a row is made from."""
        of_alpha = self.means.shape[1] if self.settings.alpha_on == "diagonal" else 1
        return self.settings.n_nearest * int(self.counts.max()) + of_alpha

    def draw(self, shots: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return rows (R, S, D) in the space to draw in, R for each of the powered `shots` (S, D).

        `noise` (R, S, n_normals) are standard normal numbers. A row is a weighted sum of the deviations of the nearest
        classes' rows from their mean, which has their covariance. So no covariance is ever formed or decomposed.
        """
        k = self.settings.n_nearest
        nearest = np.argsort(cdist(shots, self.means), axis=1, kind="stable")[:, :k]
        mean = (self.means[nearest].sum(axis=1) + shots) / (k + 1)
        deviations = self._deviations(nearest) / np.sqrt(np.float32(k))
        of_classes, of_alpha = np.split(noise, [deviations.shape[1]], axis=2)
        drawn = (of_classes.swapaxes(0, 1) @ deviations).swapaxes(0, 1)
        return (mean + drawn + np.sqrt(self.alpha) * of_alpha).astype(np.float32)

    def _deviations(self, nearest: np.ndarray) -> np.ndarray:
        """Return the deviations of all rows of the classes `nearest` (S, k), padded with zeros: (S, k * most, D)."""
        place = np.arange(self.counts.max())
        inside = place < self.counts[nearest][..., None]
        rows = np.where(inside, self.starts[nearest][..., None] + place, 0)
        padded = self.deviations[rows] * inside[..., None]
        return padded.reshape(len(nearest), -1, padded.shape[-1])


def _powered(feats: np.ndarray, power: float) -> np.ndarray:
    """Raise the magnitude of every entry to `power` and keep its sign (the paper's ladder of powers, equation 3)."""
    return np.copysign(np.abs(feats) ** np.float32(power), feats)
