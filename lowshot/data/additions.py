"""Additions: methods that add training rows to the shots of a run.

Hallucinated features, GAN samples, propagated labels, augmented copies, repetition and your own rows are *additions* to
the training set of a low-shot classifier. They are applied in the order in which they are named. Defines their
interface, `Addition`, and the additions that need no model.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from lowshot.core.errors import InputError
from lowshot.core.h5 import open_h5, require_datasets
from lowshot.core.npz import read_npz
from lowshot.core.settings import PositiveInt
from lowshot.data.features import Features, read_copies

# What a method has seen besides labelled training images: nothing, or unlabelled training images.
Seen = Literal["inductive", "semi_supervised"]
_ARRAYS = ("feats", "labels", "trials", "n_shots")


@dataclass(frozen=True)
class Run:
    """The training rows of novel classes for one (trial, n): the shots and all rows added to them.

    `feats` is float32 (m, D), `labels` int64 (m,).
    """

    trial: int
    n_shot: int
    feats: np.ndarray
    labels: np.ndarray

    @property
    def key(self) -> tuple[int, int]:
        """Key of the run's random streams; it does not depend on which other runs there are."""
        return self.trial, self.n_shot

    def joined(self, feats: np.ndarray, labels: np.ndarray) -> "Run":
        """Append rows (M, D) with their labels (M,). Raises InputError if D differs."""
        if np.shape(feats)[1:] != self.feats.shape[1:]:
            raise InputError(f"rows of shape {np.shape(feats)} do not match features of shape {self.feats.shape}")
        return replace(self, feats=np.concatenate([self.feats, feats]), labels=np.concatenate([self.labels, labels]))

    def taken(self, rows: np.ndarray) -> "Run":
        """Select rows by index (M,), in that order. An index may occur more than once."""
        return replace(self, feats=self.feats[rows], labels=self.labels[rows])


class Addition(Protocol):
    """An addition that is ready to use.

    Your own addition is a dataclass of settings with a method `extend`. Two attributes are optional. `setting` declares
    what the method sees besides labelled training images: "inductive" (nothing, the default), "semi_supervised"
    (unlabelled images) or "transductive" (test images). `label` is its name in tables.
    """

    def extend(self, run: Run, benchmark: Any, seed: int) -> Run:
        """Return the run with rows of its novel classes added.

        Args:
            run: The shots, and the rows that earlier additions have added.
            benchmark: A `lowshot.evaluation.benchmark.Benchmark`: `train` (all training features with labels), `split`,
                `draws`, and the `base_classes` and `novel_classes` of the setup.
            seed: Seed of all random draws; see `lowshot.core.seeds.stream`.
        """


def check_extended(name: str, before: Run, after: Any) -> Run:
    """Check the run that an addition returned. Raises InputError, with the addition's name, for unusable rows."""
    if not isinstance(after, Run) or after.key != before.key:
        raise InputError(f"{name}: extend must return {_in_words(before)}, not {_in_words(after)}")
    feats, labels = after.feats, after.labels
    if not isinstance(feats, np.ndarray) or not isinstance(labels, np.ndarray):
        found = f"{type(feats).__name__} and {type(labels).__name__}"
        raise InputError(f"{name}: rows and labels must be numpy arrays, not {found}")
    if feats.ndim != 2 or feats.shape[1] != before.feats.shape[1] or feats.dtype.kind not in "fiu":
        shape = ("m", *before.feats.shape[1:])
        expected = f"numbers ({', '.join(map(str, shape))})"
        raise InputError(f"{name}: rows must be {expected}, not {feats.dtype} {feats.shape}")
    if labels.shape != feats.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(f"{name}: labels must be integers ({len(feats)},), not {labels.dtype} {labels.shape}")
    feats = _as_float32(feats)
    if not np.isfinite(feats).all():
        raise InputError(f"{name}: rows contain NaN, infinity or numbers outside the range of float32")
    if other := sorted({*labels.tolist()} ^ {*before.labels.tolist()}):
        raise InputError(f"{name}: class {other[0]} is not a novel class of the run, or has no rows left")
    return replace(after, feats=feats, labels=labels.astype(np.int64))


def _in_words(run: Any) -> str:
    return f"the Run of trial {run.trial}, n = {run.n_shot}" if isinstance(run, Run) else type(run).__name__


def _as_float32(feats: np.ndarray) -> np.ndarray:
    """Convert to float32. Numbers outside its range become infinite; the caller checks for that."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(feats, np.float32)


@dataclass
class Repetition:
    """Repeats the rows of each class: the control for all methods that generate new ones."""

    max_per_label: PositiveInt = 20
    """Number of rows to fill up each novel class to, shots included."""

    def extend(self, run: Run, benchmark: Any, seed: int) -> Run:
        rows = [np.flatnonzero(run.labels == c) for c in dict.fromkeys(run.labels.tolist())]
        filled = [one[np.arange(max(len(one), self.max_per_label)) % len(one)] for one in rows]
        return run.taken(np.concatenate(filled))


@dataclass
class CopiesOfShots:
    """Augmented copies of the shots, from the train features (save_features.py --copies)."""

    n: PositiveInt | None = None
    """Number of copies of each shot. Default: all that the file has."""

    @property
    def label(self) -> str:
        return "augmented copies" if self.n is None else f"{self.n} augmented copies"

    def extend(self, run: Run, benchmark: Any, seed: int) -> Run:
        """Add the first `n` copies of each shot, shot after shot.

        Tian et al. (RFS, ECCV 2020) learn from five copies of each shot. Departs from their code in that the shots stay
        as well. Copies are of the shots only, whatever earlier additions have added. Raises InputError for a file
        without copies, or with fewer than `n`.
        """
        shots = benchmark.shot_rows(run.trial, run.n_shot)
        copies = read_copies(benchmark.train, shots.ravel())[:, : self.n]
        if copies.shape[1] < (self.n or 0):
            raise InputError(
                f"{benchmark.train.path}: has {copies.shape[1]} augmented copies of each image. Use --add.copies "
                f"{copies.shape[1]}, or save_features.py --copies {self.n}"
            )
        labels = np.repeat(benchmark.novel_classes, run.n_shot * copies.shape[1])
        return run.joined(copies.reshape(len(labels), -1), labels)


@dataclass
class RowsOfFile:
    """Your own rows, from a file."""

    file: Path
    """An .h5 or .npz file with feats float (M, D), and labels (class numbers of the split), trials and n_shots int
    (M,). Each row is added to the shots of its class in its run (trial, n_shots)."""
    setting: Seen = "semi_supervised"
    """What the rows were made from, besides labelled training images: nothing (inductive) or unlabelled images
    (semi_supervised)."""


class FileRows:
    """The rows of an opened file. Raises InputError for an invalid file, or another dimension than that of `train`."""

    def __init__(self, settings: RowsOfFile, train: Features) -> None:
        self.path, self.rows = settings.file, _read_rows(settings.file)
        if self.rows["feats"].shape[1] != train.dim:
            dims = f"{self.rows['feats'].shape[1]} dimensions, but {train.path} has {train.dim}"
            raise InputError(f"{self.path}: feats has {dims}. Make rows from features of the same extractor")

    def extend(self, run: Run, benchmark: Any, seed: int) -> Run:
        """Add the file's rows of this run. Raises InputError if there are none, or one is not of a novel class."""
        chosen = (self.rows["trials"] == run.trial) & (self.rows["n_shots"] == run.n_shot)
        feats, labels = self.rows["feats"][chosen], self.rows["labels"][chosen]
        if len(labels) == 0:
            raise InputError(
                f"{self.path}: has no rows for trial {run.trial}, n = {run.n_shot}. Add some, or restrict the run with "
                f"--trials and --shots"
            )
        for c in labels[~np.isin(labels, benchmark.novel_classes)][:1]:
            raise InputError(f"{self.path}: has rows of class {c}, which is not a novel class of this setup")
        return run.joined(feats, labels)


def _read_rows(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a rows file. Raises InputError for any other file."""
    rows = read_npz(path, _ARRAYS) if path.suffix == ".npz" else _read_h5(path)
    feats = rows["feats"]
    if feats.ndim != 2 or feats.dtype.kind != "f" or not np.isfinite(_as_float32(feats)).all():
        raise InputError(f"{path}: feats must be finite floats (M, D), not {feats.dtype} {feats.shape}")
    for name in _ARRAYS[1:]:
        if rows[name].shape != feats.shape[:1] or rows[name].dtype.kind not in "iu":
            found = f"{rows[name].dtype} {rows[name].shape}"
            raise InputError(f"{path}: {name} must be integers ({len(feats)},), not {found}")
    return {"feats": _as_float32(feats), **{name: rows[name].astype(np.int64) for name in _ARRAYS[1:]}}


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    with open_h5(path) as file:
        require_datasets(file, dict.fromkeys(_ARRAYS, ("numbers", None)))
        return {name: file[name][()] for name in _ARRAYS}
