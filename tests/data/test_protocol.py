"""Splits and draws: their guarantees, the published files, and invalid files."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowshot.core.errors import InputError
from lowshot.core.files import write_json
from lowshot.data.protocol import (
    check_draws,
    draws_inputs,
    draws_to_json,
    make_draws,
    make_split,
    read_draws,
    read_split,
    with_douze2018_draws,
)

PUBLISHED = Path(os.environ.get("LOWSHOT_DATA", "../shared/data")) / "imagenet_lowshot"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published protocol files (LOWSHOT_DATA)")
NAMES = [f"class{c}" for c in range(12)]
GROUPS = [c // 3 for c in range(12)]


def a_split(**options):
    return make_split("toy", NAMES, list("abcd"), GROUPS, **{"seed": 0, "novel_fraction": 0.5} | options)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), n_classes=st.integers(4, 40), fraction=st.floats(0.1, 0.8))
def test_a_split_parts_the_classes(seed, n_classes, fraction):
    n_novel = max(2, round(fraction * n_classes))
    if n_classes - n_novel < 2:
        return
    split = make_split("toy", [str(c) for c in range(n_classes)], [], [None] * n_classes, seed, novel_fraction=fraction)
    assert len(split.novel_classes) == n_novel
    assert sorted(split.base_classes + split.novel_classes) == list(range(n_classes))
    for whole, first, second in (
        (split.base_classes, split.base_classes_1, split.base_classes_2),
        (split.novel_classes, split.novel_classes_1, split.novel_classes_2),
    ):
        assert sorted(first + second) == whole
        assert 0 <= len(second) - len(first) <= 1


def test_seed_decides_the_split():
    assert a_split() == a_split()
    assert a_split(seed=1).digest != a_split(seed=2).digest


def test_novel_classes_of_every_superclass():
    split = a_split(novel_per_superclass=1)
    assert [GROUPS[c] for c in split.novel_classes] == [0, 1, 2, 3]


def test_halves_of_superclasses_keep_a_superclass_together():
    split = a_split(novel_per_superclass=1, halves="superclasses")
    first, second = ({GROUPS[c] for c in np.concatenate(split.setup(name))} for name in ("validation", "test"))
    assert not first & second
    assert len(first) == len(second) == 2


def test_fixed_novel_classes_are_kept():
    assert a_split(novel_classes=[11, 2, 5]).novel_classes == [2, 5, 11]


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"novel_fraction": 1.0}, "0 base and 12 novel classes cannot be divided"),
        ({"novel_classes": [3]}, "11 base and 1 novel classes cannot be divided"),
        ({"novel_per_superclass": 3}, "superclass 0 has only 3 classes. Use at most 2"),
    ],
)
def test_impossible_splits(options, cause):
    with pytest.raises(InputError, match=cause):
        a_split(**options)


def test_settings_that_need_superclasses():
    with pytest.raises(InputError, match=r"--dataset\.halves superclasses: some classes of toy have no superclass"):
        make_split("toy", NAMES, [], [None] * 12, 0, halves="superclasses")


def test_split_file_round_trip(tmp_path):
    split = a_split()
    write_json(tmp_path / "split.json", split.to_json())
    again = read_split(tmp_path / "split.json")
    assert again == split
    assert again.digest == split.digest


def test_digest_ignores_the_seed_only():
    split = a_split()
    assert replace(split, seed=99).digest == split.digest
    assert replace(split, dataset="other").digest != split.digest


def edited(split, **changes):
    return {key: value for key, value in (split.to_json() | changes).items() if key != "digest"}


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ([1, 2], "not a split file"),
        ({"label_names": ["a"]}, "'base_classes_1' is missing"),
        ({"dataset": "toy"}, "'class_names' is missing"),
        (a_split().to_json() | {"dataset": "other"}, "the digest does not match"),
        (edited(a_split(), base_classes=list(range(12))), "both base and novel"),
        (edited(a_split(), base_classes_1=a_split().base_classes_2), "must be disjoint and form base_classes"),
        (edited(a_split(), novel_classes=[1, 1]), "contains a class twice"),
        (edited(a_split(), novel_classes=["1"]), "outside 0..11"),
        (edited(a_split(), novel_classes=[True]), "outside 0..11"),
        (edited(a_split(), novel_classes=None), "novel_classes must be a list"),
        (edited(a_split(), class_names=["a"] * 12), "class_names contains 'a' twice"),
        (edited(a_split(), class_names=[""] + [str(c) for c in range(11)]), "class_names must be a list of names"),
        (edited(a_split(), class_names="abcdefghijkl"), "class_names must be a list of names"),
        (edited(a_split(), class_names=None), "class_names must be a list of names"),
        (edited(a_split(), superclass_of=[False] * 12), "superclass_of contains False"),
        (edited(a_split(), superclass_of={}), "superclass_of must be a list"),
        (edited(a_split(), dataset=None), "must have a dataset name"),
        (edited(a_split(), superclass_of=[0]), "1 entries for 12 classes"),
        (edited(a_split(), superclass_of=[9] * 12), "superclass_of contains 9"),
    ],
)
def test_bad_split_files(tmp_path, content, cause):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=cause) as refused:
        read_split(path)
    assert str(path) in str(refused.value)


def label_idx(first_number, **changes):
    lists = {"base_classes_1": [0, 1], "base_classes_2": [2], "novel_classes_1": [3, 4], "novel_classes_2": [5]}
    numbered = {name: [c + first_number for c in classes] for name, classes in (lists | changes).items()}
    return {"label_names": [f"n{c}" for c in range(6)], "base_classes": [], **numbered}


@pytest.mark.parametrize("first_number", [0, 1])
def test_published_class_lists_in_both_numberings(tmp_path, first_number):
    write_json(tmp_path / "label_idx.json", label_idx(first_number))
    split = read_split(tmp_path / "label_idx.json")
    assert split.class_names == ["n0", "n1", "n2", "n3", "n4", "n5"]
    assert split.base_classes == [0, 1, 2]
    assert split.novel_classes == [3, 4, 5]
    assert [part.tolist() for part in split.setup("test")] == [[2], [5]]


def test_published_class_lists_that_overlap(tmp_path):
    write_json(tmp_path / "label_idx.json", label_idx(0, novel_classes_2=[2]))
    with pytest.raises(InputError, match=r"class 2 \(n2\) is both base and novel"):
        read_split(tmp_path / "label_idx.json")


@needs_published
@pytest.mark.parametrize("shift", [0, 1])
def test_the_published_imagenet_lists(tmp_path, shift):
    content = json.loads((PUBLISHED / "label_idx.json").read_text())
    lists = {name: numbers for name, numbers in content.items() if name != "label_names"}
    content |= {name: [c + shift for c in numbers] for name, numbers in lists.items()}
    (tmp_path / "label_idx.json").write_text(json.dumps(content))
    split = read_split(tmp_path / "label_idx.json")
    assert (split.n_classes, len(split.base_classes), len(split.novel_classes)) == (1000, 389, 611)
    assert (len(split.base_classes_1), len(split.base_classes_2)) == (193, 196)
    assert (len(split.novel_classes_1), len(split.novel_classes_2)) == (300, 311)
    assert 0 in split.base_classes_2


@needs_published
def test_the_published_imagenet_draws():
    draws = read_draws(PUBLISHED / "splitfile_{trial}.json")
    assert sorted(draws) == [1, 2, 3, 4, 5]
    for classes in draws.values():
        rows = np.stack(classes)
        assert rows.shape == (1000, 20)
        assert len(np.unique(rows)) == 20_000
        assert (rows.min(axis=1)[1:] > rows.max(axis=1)[:-1]).all()


LABELS = np.repeat(np.arange(4), 10)[np.random.default_rng(0).permutation(40)]
CLASSES = ["a", "b", "c", "d"]


def test_draws_are_distinct_rows_of_their_class():
    draws = make_draws(LABELS, CLASSES, n_trials=3, max_shots=10, seed=0)
    for classes in draws.values():
        for c, rows in enumerate(classes):
            assert sorted(rows) == np.flatnonzero(c == LABELS).tolist()


def test_fewer_shots_are_the_first_of_more():
    few, many = (make_draws(LABELS, CLASSES, 2, max_shots, seed=0) for max_shots in (3, 8))
    for trial in (1, 2):
        for c in range(4):
            assert many[trial][c][:3].tolist() == few[trial][c].tolist()


def test_the_shots_of_the_diffusion_paper():
    """RandomState(1) shuffles 0..9 to 2 9 6 4 0 3 1 7 8 5; the next class continues with the same generator."""
    labels, split = np.repeat(np.arange(6), 10), make_split("toy", list("abcdef"), [], [None] * 6, 0, [1, 2, 4, 5])
    draws = make_draws(labels, split.class_names, 2, 10, seed=0)
    drawn = with_douze2018_draws(draws, labels, split, max_shots=10)
    first, second = sorted(split.novel_classes_1)
    assert (drawn[1][first] - 10 * first).tolist() == [2, 9, 6, 4, 0, 3, 1, 7, 8, 5]
    assert (drawn[1][min(split.novel_classes_2)] % 10).tolist() == [2, 9, 6, 4, 0, 3, 1, 7, 8, 5]
    assert not np.array_equal(drawn[1][second] % 10, drawn[1][first] % 10)
    assert not np.array_equal(drawn[2][first], drawn[1][first])
    for c in split.base_classes:
        assert np.array_equal(drawn[1][c], draws[1][c])
    few = with_douze2018_draws(draws, labels, split, max_shots=3)
    assert np.array_equal(few[1][second], drawn[1][second][:3])


def test_a_trial_does_not_depend_on_the_number_of_trials():
    three, five = (make_draws(LABELS, CLASSES, n_trials, 5, seed=0) for n_trials in (3, 5))
    assert np.array_equal(three[3], five[3])
    assert not np.array_equal(five[3], five[4])
    assert not np.array_equal(five[3], make_draws(LABELS, CLASSES, 3, 5, seed=1)[3])


def test_a_class_does_not_depend_on_the_others():
    without_first = np.where(LABELS == 0, 1, LABELS)
    mine, other = (make_draws(labels, CLASSES[1:], 1, 5, 0)[1] for labels in (LABELS - 1, without_first - 1))
    assert np.array_equal(mine[1:], other[1:])


def test_too_few_images_for_the_shots():
    labels = np.delete(LABELS, np.flatnonzero(LABELS == 0)[0])
    told = r"max_shots 11: these novel classes .* images: a \(9\), b \(10\), .*Use --dataset.max_shots 9, or"
    with pytest.raises(InputError, match=told):
        make_draws(labels, CLASSES, 1, 11, seed=0)
    with pytest.raises(InputError, match=r"images: b \(10\), d \(10\). Use --dataset.max_shots 10"):
        make_draws(labels, CLASSES, 1, 11, 0, [1, 3])


def test_base_classes_may_have_fewer_images_than_shots():
    kept = np.delete(np.arange(len(LABELS)), np.flatnonzero(LABELS == 0)[4:])
    draws, whole = (make_draws(labels, CLASSES, 2, 10, 0, [1, 2]) for labels in (LABELS[kept], LABELS))
    for trial in (1, 2):
        assert sorted(kept[draws[trial][0]]) == np.flatnonzero(LABELS == 0)[:4].tolist()
        assert all(np.array_equal(kept[draws[trial][c]], whole[trial][c]) for c in (1, 2, 3)), "a stream for each class"


def test_draws_file_round_trip(tmp_path):
    draws = make_draws(LABELS, CLASSES, 3, 4, seed=7)
    write_json(tmp_path / "draws.json", draws_to_json(draws, a_split(), seed=7))
    again = read_draws(tmp_path / "draws.json")
    assert all(np.array_equal(draws[trial], again[trial]) for trial in (1, 2, 3))
    assert list(read_draws(tmp_path / "draws.json", [2])) == [2]
    assert json.loads((tmp_path / "draws.json").read_text())["split_digest"] == a_split().digest


def test_published_draws_by_template(tmp_path):
    for trial in (1, 4):
        write_json(tmp_path / f"splitfile_{trial}.json", [[trial, 2], [3]])
    draws = read_draws(tmp_path / "splitfile_{trial}.json", [1, 4])
    assert [rows.tolist() for rows in draws[4]] == [[4, 2], [3]]
    assert draws_inputs(tmp_path / "splitfile_{}.json", [4]) == {"draws_4": tmp_path / "splitfile_4.json"}
    with pytest.raises(InputError, match=r"splitfile_2\.json: no such file"):
        read_draws(tmp_path / "splitfile_{trial}.json", [2])


def test_folders_may_have_braces(tmp_path):
    folder = tmp_path / "a {b} é"
    folder.mkdir()
    write_json(folder / "draws.json", {"trials": {"1": [[3]]}})
    write_json(folder / "splitfile_2.json", [[4]])
    assert read_draws(folder / "draws.json")[1][0] == [3] and draws_inputs(folder / "draws.json", None)
    assert read_draws(folder / "splitfile_{trial}.json", [2])[2][0] == [4]


@pytest.mark.parametrize(
    ("content", "trials", "cause"),
    [
        ([[0]], None, "'trials' is missing"),
        ({"trials": [[0]]}, None, "'trials' is missing"),
        ({"trials": {"1": [[0]]}}, [1, 3], "has no trial 3"),
        ({"trials": {"one": [[0]]}}, None, "'one' is not a trial number"),
        ({"trials": {"01": [[0]]}}, None, "'01' is not a trial number"),
        ({"trials": {"\u0661": [[0]]}}, None, "is not a trial number"),
        ({"trials": {"1" * 5000: [[0]]}}, None, "is not a trial number"),
        ({"trials": {}}, None, "has no trials"),
        *[
            ({"trials": {"1": rows}}, None, "must hold, for each trial and class, a list of row numbers")
            for rows in (5, [5], [["x"]], [[1.9]], [[True]], [[[1]]], [[-1]], [[2**70]], {"0": [1]})
        ],
    ],
)
def test_bad_draws_files(tmp_path, content, trials, cause):
    write_json(tmp_path / "draws.json", content)
    with pytest.raises(InputError, match=cause):
        read_draws(tmp_path / "draws.json", trials)


def test_check_draws_accepts_good_ones():
    draws = make_draws(LABELS, CLASSES, 2, 5, seed=0)
    check_draws(draws, LABELS, np.arange(4), 5, Path("draws.json"), Path("train.h5"))


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        (
            [0],
            "has draws up to n = 1, but the largest n is 2. Use n up to 1 .--shots., or, "
            "if the class has 2 images, preprocessing.py --dataset.max_shots 2",
        ),
        ([0, 4], "row 4 is outside the 4 rows of train.h5"),
        ([-1, 0], "row -1 is outside the 4 rows"),
        ([0, 2], "row 2 of train.h5 is of class 1"),
        ([0, 0], "contains a row twice"),
    ],
)
def test_check_draws_refuses(rows, cause):
    draws = {1: [np.array(rows)]}
    with pytest.raises(InputError, match=f"draws.json: trial 1, class 0: {cause}"):
        check_draws(draws, np.array([0, 0, 1, 1]), np.array([0]), 2, Path("draws.json"), Path("train.h5"))


def test_check_draws_refuses_a_class_that_is_not_listed():
    with pytest.raises(InputError, match="class 1: has draws up to n = 0"):
        check_draws({1: [np.array([0])]}, np.array([0, 1]), np.array([1]), 1, Path("draws.json"), Path("train.h5"))
