"""The numbers of the low-shot benchmark. All are fractions in 0..1, computed from the same scores.

The six accuracies (Hariharan & Girshick, ICCV 2017) are top-1 and top-5 on novel, base and all images. An image is
classified among all classes that have a score, without masking and without class priors. Two further numbers are made
from these accuracies:

- `top1_harmonic_mean`: harmonic mean of `top1_base` and `top1_novel`.
- `top1_novel_class_mean`, ...: means over classes of the accuracies of their images.

The others are among the classes of the setup:

- `top1_novel_among_novel`, `top1_base_among_base`: images of a group, classified among the classes of the group.
- `ausuc`: area under the curve of base against novel accuracy (`base_novel_curve`).
- `top1_all_with_prior`: all images, with a prior for the novel classes (`NOVEL_PRIOR`).
"""

import numpy as np

from lowshot.core.errors import InputError
from lowshot.evaluation.outcomes import Outcomes

TOP_K = (1, 5)
GROUPS = ("novel", "base", "all")
# Number of places at which results files hold the base-novel curve.
N_PLACES = 41


def accuracies(
    outcomes: Outcomes, labels: np.ndarray, base_classes: np.ndarray, novel_classes: np.ndarray
) -> dict[str, float]:
    """Return all numbers of a run (`lowshot.evaluation.settings.Metric`).

    Args:
        outcomes: of N test images.
        labels: (N,), base or novel classes.

    Raises InputError if no test image is of a novel class, or none of a base class.
    """
    members = {"novel": np.isin(labels, novel_classes), "base": np.isin(labels, base_classes)}
    for name, inside in members.items():
        if not inside.any():
            raise InputError(f"--test: no image of the {name} classes of the setup. Use features of all test images")
    members["all"] = members["novel"] | members["base"]
    classes = {name: np.unique(labels[inside], return_inverse=True)[1] for name, inside in members.items()}
    found = {f"top{k}_{name}": _share(outcomes.ranks[members[name]] < k) for name in GROUPS for k in TOP_K}
    for k in TOP_K:
        for name in ("novel", "base"):
            found[f"top{k}_{name}_among_{name}"] = _share(outcomes.group_ranks[members[name]] < k)
        found[f"top{k}_harmonic_mean"] = harmonic_mean(found[f"top{k}_base"], found[f"top{k}_novel"])
        for name in GROUPS:
            found[f"top{k}_{name}_class_mean"] = _class_mean(outcomes.ranks[members[name]] < k, classes[name])
        found[f"top{k}_all_with_prior"] = _share(outcomes.prior_ranks[members["all"]] < k)
    return found | {"ausuc": ausuc(outcomes.leads, outcomes.group_ranks == 0, labels, members["novel"])}


def _share(hits: np.ndarray) -> float:
    return float(hits.mean())


def _class_mean(hits: np.ndarray, classes: np.ndarray) -> float:
    """Return the mean over classes of the share of hits (N,). `classes` (N,) are 0, 1, ... without gaps."""
    return float((np.bincount(classes, hits) / np.bincount(classes)).mean())


def harmonic_mean(one: float, other: float) -> float:
    """Return the harmonic mean, which is 0 if one of the numbers is 0."""
    return 2 * one * other / (one + other) if one and other else 0.0


def ausuc(leads: np.ndarray, hits: np.ndarray, labels: np.ndarray, is_novel: np.ndarray) -> float:
    """Return the area under the curve of base accuracy over novel accuracy (`base_novel_curve`)."""
    base, novel = base_novel_curve(leads, hits, labels, is_novel)
    return min(1.0, float(np.trapezoid(base, novel)))  # a sum of shares may round to just above 1


def base_novel_curve(
    leads: np.ndarray, hits: np.ndarray, labels: np.ndarray, is_novel: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return base and novel accuracy (points,) for all biases (Chao et al., ECCV 2016).

    A bias is added to the scores of all novel classes and runs from minus to plus infinity. An image is predicted as
    novel once the bias reaches its lead. Images of equal lead change together, and points are joined by straight lines.
    Accuracies are means over the classes that have images.

    Args:
        leads: (N,), highest base score minus highest novel score.
        hits: (N,) bool, whether the true class has the highest score in its group.
        labels: (N,).
        is_novel: (N,) bool.
    """
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    n_novel, n_base = (len(np.unique(labels[inside])) for inside in (is_novel, ~is_novel))
    weights = hits / counts[classes] / np.where(is_novel, n_novel, n_base)  # what a hit adds to the accuracy
    order = np.argsort(leads, kind="stable")
    last = np.flatnonzero(np.append(np.diff(leads[order]) > 0, True))  # the last image of each lead
    gained = np.cumsum(np.where(is_novel, weights, 0)[order])[last]
    lost = np.cumsum(np.where(is_novel, 0, weights)[order])[last]
    novel = np.concatenate([[0], gained])
    base = np.where(is_novel, 0, weights).sum() - np.concatenate([[0], lost])
    return base, novel


def sampled(base: np.ndarray, novel: np.ndarray) -> dict[str, list[float]]:
    """Return a base-novel curve at a fixed number of places, from the lowest to the highest bias.

    Places are equally spaced along the curve, where its length is the base accuracy lost plus the novel accuracy
    gained. So steep ends are as dense as the middle, and curves of several trials can be averaged place by place.
    """
    length = base[0] - base + novel
    places = np.linspace(0, length[-1], N_PLACES)
    curves = {"base": base, "novel": novel}
    return {name: np.interp(places, length, one).clip(0, 1).round(4).tolist() for name, one in curves.items()}


def chance(metric: str, n_base: int, n_novel: int) -> float | None:
    """Return the expected value of a metric if the classes of the setup are ranked at random, or None where it depends
    on more. A classifier that ranks at random and also scores classes outside the setup is below it."""
    if metric == "ausuc":
        return 1 / (2 * n_base * n_novel)
    if metric.endswith("_with_prior"):
        return None
    n_classes = {"novel_among_novel": n_novel, "base_among_base": n_base}.get(
        metric.partition("_")[2], n_base + n_novel
    )
    return min(1.0, int(metric[3]) / n_classes)
