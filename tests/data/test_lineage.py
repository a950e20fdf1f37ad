"""What a result may have seen: each row of the lineage table, for the same classes by other routes."""

from dataclasses import replace

import numpy as np
import pytest

from lowshot.core.errors import InputError
from lowshot.data.lineage import Judged, Lineage, judge, shots_of, trained_on
from lowshot.data.protocol import Split, origins

NAMES = list("abcdefgh")
# Base a, b / e, f; novel c, d (validation) and g, h (test).
SPLIT = Split("cifar_fs", NAMES, [], [None] * 8, [0, 1, 4, 5], [2, 3, 6, 7], [0, 1], [2, 3], [4, 5], [6, 7],
              origins=origins("cifar100", NAMES))  # fmt: skip
# The same classes with other halves, in another order, and under the name of another data set.
ORDER = NAMES[::-1]
OTHER = Split("cifar100", ORDER, [], [None] * 8, [7, 6, 3, 2], [5, 4, 1, 0], [7, 3], [5, 0], [6, 2], [4, 1])
DRAWS = {trial: [np.arange(5) + 100 * c + 10 * trial for c in range(8)] for trial in (1, 2)}
SPLITS = {
    "same": SPLIT,
    "other halves": OTHER,
    "published": replace(SPLIT, dataset="label_idx", origins=[f"?/{n}" for n in NAMES]),
}


def judged(split=SPLIT, setup="test", runs=((1, 1), (1, 5)), images=None):
    novel = split.setup(setup)[1]
    order = [SPLIT.class_names.index(name) for name in split.class_names]
    draws = {trial: [rows[c] for c in order] for trial, rows in DRAWS.items()}
    return Judged(split, setup, novel, runs, draws, images)


def seen(**sights):
    return Lineage(**{name: frozenset(value) if isinstance(value, list) else value for name, value in sights.items()})


def told(lineage, where=None):
    """The setting, or the first words of the refusal."""
    try:
        tags = judge({"train.h5": lineage}, where or judged())
    except InputError as error:
        return "refused: " + str(error)
    return " ".join([tags.setting, *(["superclasses"] if tags.superclasses else []), *tags.outside])


SHOTS = {n: shots_of(SPLIT, [6, 7], DRAWS[1], 1, n, None) for n in (1, 5)}
TABLE = [
    ("base classes with labels", trained_on(SPLIT, SPLIT.base_classes), "inductive"),
    ("validation classes with labels", trained_on(SPLIT, [0, 1, 2, 3, 4, 5]), "inductive"),
    ("novel class with labels", trained_on(SPLIT, [0, 6]), "refused: train.h5: has seen labelled images of class"),
    ("all classes of the source with labels", seen(labelled=["cifar100/*"]), "refused"),
    ("shots of the run", seen(shots=[SHOTS[1]]), "inductive"),
    ("more shots than the run", seen(shots=[SHOTS[5]]), "refused: train.h5: was trained on 5 shots of trial 1 and"),
    ("shots of another trial", seen(shots=[shots_of(SPLIT, [6, 7], DRAWS[2], 2, 1, None)]), "refused"),
    ("other draws", seen(shots=[shots_of(SPLIT, [6, 7], DRAWS[2], 1, 1, None)]), "refused"),
    ("superclasses of novel classes", seen(superclasses=["cifar100/g"]), "inductive superclasses"),
    ("superclasses of base classes", seen(superclasses=["cifar100/a"]), "inductive"),
    ("novel images without label", seen(unlabelled=["cifar100/g"]), "semi_supervised"),
    ("base images without label", seen(unlabelled=["cifar100/a"]), "inductive"),
    ("images of any class", seen(unlabelled=["*/*"]), "semi_supervised"),
    ("test images together", seen(test_images=True), "transductive"),
    ("test images, and novel images without label", seen(test_images=True, unlabelled=["*/*"]), "transductive"),
    ("another data set", seen(labelled=["imagenet/*"]), "inductive imagenet"),
    ("a file that says nothing", seen(unknown=["train.h5"]), "unknown"),
    ("a file that says nothing, and test images", seen(unknown=["train.h5"], test_images=True), "unknown"),
]


@pytest.mark.parametrize("route", SPLITS)
@pytest.mark.parametrize("what, lineage, expected", TABLE, ids=[row[0] for row in TABLE])
def test_the_table(route, what, lineage, expected):
    split = SPLITS[route]
    if route == "other halves":  # its test classes are d and g
        lineage = replace(lineage, labelled=lineage.labelled - {"cifar100/d"})
    if route == "published" and any(origin.endswith("/*") for origin in lineage.labelled):
        expected = "unknown"  # its classes may be those of any data set
    assert told(lineage, judged(split)).startswith(expected)
