"""Learn a classifier from the features of a few photos per class, and measure how good it is."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowshot.classifiers.heads import Head
from lowshot.classifiers.methods import ScoreRows, fit_head
from lowshot.classifiers.settings import INDUCTIVE_METHODS
from lowshot.core.settings import stored_values
from lowshot.photos.accuracy import Accuracy
from lowshot.photos.calibration import Calibration, calibrate
from lowshot.photos.classifier import Support
from lowshot.photos.held_out import Candidate, assign_folds, choose, leave_out
from lowshot.photos.typicality import Typicality, typicality_of

_UNKNOWN = (
    "with one photo per class none can be held out: the accuracy is not known, and scores are not calibrated. Add "
    "photos, or use predict.py evaluate"
)


@dataclass(frozen=True)
class Learned:
    """A classifier of features, and what was found out about it.

    `support` has the method. `candidates` are the methods that were compared, the chosen one first; empty if the method
    was given. `calibration` and `accuracy` are None if no class has two photos.
    """

    support: Support
    head: ScoreRows
    typicality: Typicality
    candidates: list[Candidate]
    calibration: Calibration | None
    accuracy: Accuracy | None

    @property
    def temperature(self) -> float | None:
        """The number that scores are divided by."""
        return self.calibration and self.calibration.temperature

    def evidence(self) -> dict:
        """Return what config.json says of the choice and of the accuracy."""
        return {
            "candidates": [
                {"method": INDUCTIVE_METHODS.name_of(one.method), "options": stored_values(one.method),
                 "log_loss": _number(one.loss), "accuracy_over_classes": _number(one.accuracy)}
                for one in self.candidates
            ],
            "size_bias": None if self.calibration is None else self.calibration.size_bias,
            "held_out": None if self.accuracy is None else self.accuracy.to_json(),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """Return the same as text."""
        compared = [f"{named(one.method)} {one.accuracy:.1%}" for one in self.candidates]
        found = f", chosen by cross-validation (accuracy: {', '.join(compared)})" if len(compared) > 1 else ""
        chosen = [f"method {named(self.support.method)}{found}"]
        if self.accuracy is None:
            return [*chosen, _UNKNOWN]
        return [*chosen, *self.accuracy.lines("held-out photos")]


def learn(support: Support, class_names: list[str]) -> Learned:
    """Learn from photos, with their method or, if it is to be chosen, with the best one.

    The accuracy and the calibration are those of classifiers that were fitted without the photo (`leave_out`). They are
    of the chosen method, and the choice has seen all photos, so with very few of them the accuracy is a little high.
    """
    features, labels, n_way = support.features, support.labels, len(class_names)
    candidates = choose(features, labels, n_way) if support.is_chosen else []
    method = candidates[0].method if candidates else support.method
    head, typicality = fit_head(method, features, labels, n_way), typicality_of(features, labels, n_way)
    # A method of the user's own is not saved as layers, to which a bias could be added.
    counts = labels.bincount(minlength=n_way) if isinstance(head, Head) else torch.ones(n_way)
    scores = leave_out(method, features, labels, n_way)
    held = ~scores[:, 0].isnan()
    calibration = accuracy = None
    if held.any():
        calibration = calibrate(scores[held], labels[held], counts)
        accuracy = Accuracy(_calibrated(scores[held], labels[held], counts), labels[held].numpy(), class_names)
        head = head.shifted(calibration.shift(counts)) if isinstance(head, Head) else head
    return Learned(replace(support, method=method), head, typicality, candidates, calibration, accuracy)


def _calibrated(scores: Tensor, labels: Tensor, counts: Tensor) -> np.ndarray:
    """Return probabilities (N, n_way) of held-out scores, calibrated on the other four fifths of them."""
    probabilities, folds = np.empty(scores.shape), assign_folds(labels, min(5, len(labels)))
    for fold in np.unique(folds):
        rest, own = torch.from_numpy(folds != fold), folds == fold
        calibration = calibrate(scores[rest], labels[rest], counts)
        probabilities[own] = calibration(scores[~rest], counts).softmax(1).numpy()
    return probabilities


def named(method: Any) -> str:
    """Return the name of a method with its main setting, such as "logistic_regression (C 10)"."""
    settings = {"C": getattr(method, "C", None), "metric": getattr(method, "metric", None)}
    shown = [f"{name} {value:g}" if name == "C" else value for name, value in settings.items() if value is not None]
    return INDUCTIVE_METHODS.name_of(method) + "".join(f" ({one})" for one in shown)


def sizes_of(labels: Tensor, class_names: list[str]) -> list[str]:
    """Say how many photos the classes have. Unequal classes deserve a warning: the small ones are less certain."""
    counts = labels.bincount(minlength=len(class_names)).tolist()
    least, most = min(counts), max(counts)
    if least == most:
        return [f"{len(class_names)} classes, {least} photos each"]
    smallest = class_names[counts.index(least)], class_names[counts.index(most)]
    lines = [f"{len(class_names)} classes, {least} ({smallest[0]}) to {most} photos each ({smallest[1]})"]
    if most > 2 * least:
        small = [f"{name} {n}" for n, name in sorted(zip(counts, class_names)) if 2 * n < most]
        listed = ", ".join(small[:10]) + (f" and {len(small) - 10} more" if len(small) > 10 else "")
        lines.append(f"unequal classes count alike, but few photos make a class less certain ({listed})")
    return lines


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
