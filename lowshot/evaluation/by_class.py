"""Results of single classes: the images of each class, their hits, and what they are taken for."""

from collections.abc import Iterable, Sequence

import numpy as np

from lowshot.data.protocol import Split
from lowshot.evaluation.outcomes import Outcomes

# Number of wrong predictions that the results name for each class and n.
_MOST = 5


def judged_classes(split: Split, labels: np.ndarray, novel_classes: Sequence[int]) -> list[dict]:
    """Return the classes of the test images with `labels` (N,) in ascending order, with their number of images."""
    classes, counts = np.unique(labels, return_counts=True)
    groups = np.where(np.isin(classes, novel_classes), "novel", "base").tolist()
    return [
        {"class": c, "name": split.class_names[c], "group": group, "n_images": n}
        for c, n, group in zip(classes.tolist(), counts.tolist(), groups)
    ]


def class_hits(outcomes: Outcomes, labels: np.ndarray) -> list[int]:
    """Return the number of images of each class that are classified correctly, in the order of `judged_classes`."""
    _, places = np.unique(labels, return_inverse=True)
    return np.bincount(places, outcomes.ranks == 0).astype(int).tolist()


def confused(outcomes: Outcomes, labels: np.ndarray) -> list[list[int]]:
    """Return [true class, predicted class, number of images] for all wrong predictions of a run."""
    wrong = outcomes.ranks > 0
    pairs, counts = np.unique(np.stack([labels[wrong], outcomes.predicted[wrong]]), axis=1, return_counts=True)
    return np.vstack([pairs, counts]).T.tolist()


def most_confused(runs: Iterable[tuple[int, list[list[int]]]], class_names: list[str]) -> list[dict]:
    """Return the most frequent wrong predictions of each class and n, over the trials.

    Args:
        runs: n and the `confused` images of every run.

    Returns:
        Entries of a results file: n_shot, class, predicted, name (of the predicted class) and n_images, the most
        frequent first. There are at most five for each class and n.
    """
    table = np.array([[n, *one] for n, pairs in runs for one in pairs], np.int64).reshape(-1, 4)
    keys, places = np.unique(table[:, :3], axis=0, return_inverse=True)
    counts = np.bincount(places.ravel(), table[:, 3], len(keys)).astype(np.int64)
    order = np.lexsort((keys[:, 2], -counts, keys[:, 1], keys[:, 0]))
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.append(True, (keys[1:, :2] != keys[:-1, :2]).any(1)))[: len(keys)]
    place = np.arange(len(keys)) - np.repeat(first, np.diff(np.append(first, len(keys))))
    return [
        {"n_shot": n, "class": c, "predicted": other, "name": class_names[other], "n_images": count}
        for (n, c, other), count in zip(keys[place < _MOST].tolist(), counts[place < _MOST].tolist())
    ]
