"""Additions: repetition, rows from files, and the checks of what an addition returns."""

from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from lowshot.core.errors import InputError
from lowshot.data.additions import FileRows, Repetition, RowsOfFile, Run, check_extended
from lowshot.data.features import Features

NOVEL = np.array([4, 7])
TRAIN = Features(np.zeros((3, 2), np.float32), np.array([4, 7, 7]), "train.h5", None)
BENCHMARK = SimpleNamespace(novel_classes=NOVEL, train=TRAIN)


def a_run(labels, trial=1, n_shot=1):
    """A run whose row i is (i, -i), with the class labels[i]."""
    numbers = np.arange(len(labels), dtype=np.float32)
    return Run(trial, n_shot, np.stack([numbers, -numbers], 1), np.array(labels, np.int64))


def numbers(run):
    """Return, for each row, its index in `a_run`."""
    assert np.array_equal(run.feats[:, 0], -run.feats[:, 1])
    return run.feats[:, 0].astype(int).tolist()


# --- runs ---


def test_joined_rows_are_appended():
    joined = a_run([4, 7], trial=3, n_shot=1).joined(np.full((1, 2), 9, np.float32), np.array([7]))
    assert joined.feats.tolist() == [[0, 0], [1, -1], [9, 9]] and joined.labels.tolist() == [4, 7, 7]
    assert joined.key == (3, 1)


def test_rows_are_taken_by_index():
    taken = a_run([4, 7, 7]).taken(np.array([2, 2, 0]))
    assert numbers(taken) == [2, 2, 0] and taken.labels.tolist() == [7, 7, 4]


# --- repetition ---


@pytest.mark.parametrize(
    ("labels", "most", "expected"),
    [
        ([4, 7], 3, [0, 0, 0, 1, 1, 1]),
        ([4, 4, 7, 7], 5, [0, 1, 0, 1, 0, 2, 3, 2, 3, 2]),  # class after class, its rows in turn
        ([4, 4, 7, 7], 2, [0, 1, 2, 3]),
        ([4, 4, 4, 7], 2, [0, 1, 2, 3, 3]),  # a class that has more keeps all of it
        ([7, 4, 7], 3, [0, 2, 0, 1, 1, 1]),  # classes in the order of their first rows
    ],
)
def test_repetition_by_hand(labels, most, expected):
    run = a_run(labels)
    repeated = Repetition(most).extend(run, BENCHMARK, 0)
    assert numbers(repeated) == expected
    assert repeated.labels.tolist() == [labels[i] for i in expected] and repeated.key == run.key
    assert numbers(check_extended("add.repetition", run, repeated)) == expected


def test_repetition_repeats_the_shots_in_turn():
    """The shots of each class, (class, shot), repeated along the second axis."""
    n_shot, most = 3, 20
    rows = np.arange(2 * n_shot).reshape(2, n_shot)[:, np.arange(max(n_shot, most)) % n_shot]
    repeated = Repetition(most).extend(a_run([4] * n_shot + [7] * n_shot), BENCHMARK, 0)
    assert numbers(repeated) == rows.ravel().tolist() and repeated.labels.tolist() == [4] * most + [7] * most


# --- rows of a file ---

ROWS = {
    "feats": np.array([[1, 1], [2, 2], [3, 3], [4, 4]], np.float32),
    "labels": np.array([4, 7, 7, 4]),
    "trials": np.array([1, 1, 2, 1]),
    "n_shots": np.array([1, 1, 1, 5]),
}


def write(path, rows):
    if path.suffix == ".npz":
        np.savez(path, **rows)
    else:
        with h5py.File(path, "w") as file:
            for name, values in rows.items():
                file[name] = values
    return path


@pytest.fixture(params=[".h5", ".npz"])
def path(request, tmp_path):
    return tmp_path / f"rows{request.param}"


def opened(path, **changes):
    rows = {name: value for name, value in (ROWS | changes).items() if value is not None}
    return FileRows(RowsOfFile(write(path, rows)), TRAIN)


def test_each_row_joins_the_run_that_it_names(path):
    rows = opened(path)
    first = rows.extend(a_run([4, 7]), BENCHMARK, 0)
    assert first.feats.tolist() == [[0, 0], [1, -1], [1, 1], [2, 2]] and first.labels.tolist() == [4, 7, 4, 7]
    assert rows.extend(a_run([4, 7], trial=2), BENCHMARK, 0).feats[2:].tolist() == [[3, 3]]
    assert rows.extend(a_run([4, 7], n_shot=5), BENCHMARK, 0).feats[2:].tolist() == [[4, 4]]
    assert check_extended("add.rows", a_run([4, 7]), first).labels.dtype == np.int64


def test_any_width_of_numbers_will_do(path):
    small = {name: ROWS[name].astype(np.uint8) for name in ("trials", "n_shots")}
    small["labels"] = ROWS["labels"].astype(np.uint64)
    first = opened(path, feats=ROWS["feats"].astype(np.float64), **small).extend(a_run([4, 7]), BENCHMARK, 0)
    checked = check_extended("add.rows", a_run([4, 7]), first)
    assert checked.feats.dtype == np.float32 and checked.labels.dtype == np.int64
    assert checked.labels.tolist() == [4, 7, 4, 7]


@pytest.mark.parametrize("name", list(ROWS))
def test_a_missing_array_is_named(path, name):
    with pytest.raises(InputError, match=rf"rows\..*lacks the (dataset|array) '{name}'") as caught:
        opened(path, **{name: None})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feats": ROWS["feats"] * np.nan}, "feats must be finite floats (M, D), not float32 (4, 2)"),
        ({"feats": np.full((4, 2), np.inf, np.float32)}, "feats must be finite floats (M, D), not float32 (4, 2)"),
        ({"feats": np.full((4, 2), 1e300)}, "feats must be finite floats (M, D), not float64 (4, 2)"),
        ({"feats": ROWS["feats"].astype(int)}, "feats must be finite floats (M, D), not int64 (4, 2)"),
        ({"feats": ROWS["feats"][:, 0]}, "feats must be finite floats (M, D), not float32 (4,)"),
        ({"feats": np.float32(1)}, "feats must be finite floats (M, D), not float32 ()"),
        (
            {"feats": np.zeros((4, 3), np.float32)},
            "feats has 3 dimensions, but train.h5 has 2. Make rows from features of the same extractor",
        ),
        ({"labels": ROWS["labels"][:3]}, "labels must be integers (4,), not int64 (3,)"),
        ({"labels": ROWS["labels"] + 0.5}, "labels must be integers (4,), not float64 (4,)"),
        ({"trials": np.array([[1, 1, 2, 1]])}, "trials must be integers (4,), not int64 (1, 4)"),
        ({"n_shots": np.ones(4, bool)}, "n_shots must be integers (4,), not bool (4,)"),
    ],
)
def test_refused_arrays(path, changes, message):
    with pytest.raises(InputError) as caught:
        opened(path, **changes)
    assert str(caught.value) == f"{path}: {message}"


def test_rows_of_other_classes_and_of_no_run(path):
    rows = opened(path, labels=np.array([4, 5, 7, 4]))
    with pytest.raises(InputError, match=r"rows\..*: has rows of class 5, which is not a novel class of this setup"):
        rows.extend(a_run([4, 7]), BENCHMARK, 0)
    with pytest.raises(InputError, match=r"rows\..*: has no rows for trial 2, n = 5"):
        rows.extend(a_run([4, 7], trial=2, n_shot=5), BENCHMARK, 0)


def test_pickled_objects_are_not_opened(tmp_path):
    path = write(tmp_path / "rows.npz", ROWS | {"labels": np.array([4, 7, 7, None], object)})
    with pytest.raises(InputError, match=r"rows\.npz: not a readable \.npz file \(.*allow_pickle=False") as caught:
        FileRows(RowsOfFile(path), TRAIN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rows.npz", "rows.h5", "rows.txt"])
def test_other_files_are_refused(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(InputError, match=rf"{name}: no such file"):
        FileRows(RowsOfFile(path), TRAIN)
    for content in (b"", b"no rows", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: not a readable") as caught:
            FileRows(RowsOfFile(path), TRAIN)
        assert "\n" not in str(caught.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=name):
        FileRows(RowsOfFile(path), TRAIN)


def test_a_single_npy_array_is_refused(tmp_path):
    path = tmp_path / "rows.npz"
    with path.open("wb") as file:
        np.save(file, ROWS["feats"])
    with pytest.raises(InputError, match=r"rows\.npz: "):
        FileRows(RowsOfFile(path), TRAIN)


# --- what an addition may return ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.feats, "extend must return the Run of trial 1, n = 1, not ndarray"),
        (lambda run: None, "extend must return the Run of trial 1, n = 1, not NoneType"),
        (
            lambda run: replace(run, trial=2),
            "extend must return the Run of trial 1, n = 1, not the Run of trial 2, n = 1",
        ),
        (
            lambda run: replace(run, feats=run.feats.tolist()),
            "rows and labels must be numpy arrays, not list and ndarray",
        ),
        (
            lambda run: replace(run, labels=run.labels.tolist()),
            "rows and labels must be numpy arrays, not ndarray and list",
        ),
        (lambda run: replace(run, feats=run.feats[:, :1]), "rows must be numbers (m, 2), not float32 (2, 1)"),
        (lambda run: replace(run, feats=run.feats[:, 0]), "rows must be numbers (m, 2), not float32 (2,)"),
        (lambda run: replace(run, feats=run.feats.astype(str)), "rows must be numbers (m, 2), not <U32 (2, 2)"),
        (lambda run: replace(run, labels=run.labels[:1]), "labels must be integers (2,), not int64 (1,)"),
        (lambda run: replace(run, labels=run.labels + 0.0), "labels must be integers (2,), not float64 (2,)"),
        (lambda run: replace(run, feats=run.feats * np.inf), "rows contain NaN, infinity or numbers outside"),
        (lambda run: replace(run, feats=np.full((2, 2), 1e300)), "rows contain NaN, infinity or numbers outside"),
        (
            lambda run: replace(run, labels=np.array([4, 5])),
            "class 5 is not a novel class of the run, or has no rows left",
        ),
        (lambda run: run.taken(np.array([0])), "class 7 is not a novel class of the run, or has no rows left"),
    ],
)
def test_refused_returns(change, message):
    run = a_run([4, 7])
    with np.errstate(invalid="ignore"), pytest.raises(InputError) as caught:
        check_extended("add.Noise", run, change(run))
    assert str(caught.value).startswith(f"add.Noise: {message}")


def test_what_is_returned_becomes_float32_and_int64():
    run = a_run([4, 7])
    wide = replace(run, feats=run.feats.astype(np.float64), labels=run.labels.astype(np.int16))
    checked = check_extended("add.Noise", run, wide)
    assert (checked.feats.dtype, checked.labels.dtype) == (np.float32, np.int64)
    assert numbers(checked) == [0, 1]
