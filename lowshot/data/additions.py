"""What adds training rows to the shots of a run: the interface, and what needs no model for it.

Hallucinated features, samples of a GAN, propagated labels, repetition and rows of the user's own are *additions* of one
low-shot classifier, combined in the order in which they are named. What an addition has to be is `Addition`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from lowshot.core.artifacts import open_h5, require_datasets
from lowshot.core.errors import InputError
from lowshot.core.settings import PositiveInt
from lowshot.data.features import Features

# What a method saw beside labelled training images: nothing, or unlabelled training images.
Seen = Literal["inductive", "semi_supervised"]
_ARRAYS = ("feats", "labels", "trials", "n_shots")


@dataclass(frozen=True)
class Run:
    """What one (trial, n) learns novel classes from: its shots, and what was added. `feats` float32 (m, D), `labels`
    int64 (m,)."""

    trial: int
    n_shot: int
    feats: np.ndarray
    labels: np.ndarray

    @property
    def key(self) -> tuple[int, int]:
        """What the run's own random streams hang on, whichever runs are beside it."""
        return self.trial, self.n_shot

    def joined(self, feats: np.ndarray, labels: np.ndarray) -> "Run":
        """The run with further rows (M, D) and their labels (M,) behind its own; InputError for another D."""
        if np.shape(feats)[1:] != self.feats.shape[1:]:
            raise InputError(f"rows of shape {np.shape(feats)} do not fit features of {self.feats.shape[1]} dimensions")
        return replace(self, feats=np.concatenate([self.feats, feats]), labels=np.concatenate([self.labels, labels]))

    def taken(self, rows: np.ndarray) -> "Run":
        """The run with those of its rows that the numbers (M,) name, in their order; a number may be there twice."""
        return replace(self, feats=self.feats[rows], labels=self.labels[rows])


class Addition(Protocol):
    """An implementation, opened and checked.

    A class of the user's own is a dataclass of its settings that has `extend` itself. It may say `setting` too: what
    the method sees beside labelled training images, "semi_supervised" (unlabelled ones), "transductive" (test images)
    or, unless it does, "inductive" (none); and `label`, its name in tables.
    """

    def extend(self, run: Run, benchmark: Any, seed: int) -> Run:
        """The run with rows of its novel classes added.

        Args:
            run: shots, and what the additions before have added.
            benchmark: `train` (all training features with their labels), `split`, `base_classes` and `novel_classes` of
                the setup, `draws`; see `lowshot.evaluation.benchmark.Benchmark`.
            seed: of everything that is drawn at random; see `lowshot.core.seeds.stream`.
        """


def check_extended(name: str, before: Run, after: Any) -> Run:
    """What an addition made of a run; InputError, naming the addition, for rows that no classifier can learn from."""
    if not isinstance(after, Run) or after.key != before.key:
        raise InputError(f"{name}: extend returned {_in_words(after)}, not {_in_words(before)}")
    feats, labels = after.feats, after.labels
    if not isinstance(feats, np.ndarray) or not isinstance(labels, np.ndarray):
        raise InputError(f"{name}: rows and labels are {type(feats).__name__} and {type(labels).__name__}, not arrays")
    if feats.ndim != 2 or feats.shape[1] != before.feats.shape[1] or feats.dtype.kind not in "fiu":
        shape = ("m", *before.feats.shape[1:])
        raise InputError(f"{name}: rows are {feats.dtype} {feats.shape}, not numbers ({', '.join(map(str, shape))})")
    if labels.shape != feats.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(f"{name}: labels are {labels.dtype} {labels.shape}, not integers ({len(feats)},)")
    feats = _as_float32(feats)
    if not np.isfinite(feats).all():
        raise InputError(f"{name}: made rows that hold NaN, infinity or numbers beyond float32")
    if other := sorted({*labels.tolist()} ^ {*before.labels.tolist()}):
        raise InputError(f"{name}: class {other[0]} is no novel class of the run, or has no row left")
    return replace(after, feats=feats, labels=labels.astype(np.int64))


def _in_words(run: Any) -> str:
    return f"the Run of trial {run.trial}, n = {run.n_shot}" if isinstance(run, Run) else type(run).__name__


def _as_float32(feats: np.ndarray) -> np.ndarray:
    """Numbers beyond float32 become infinite, which is told later."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(feats, np.float32)


@dataclass
class Repetition:
    """Every class's rows again and again: the control of whatever makes new ones."""

    max_per_label: PositiveInt = 20
    """Rows of a novel class, shots included, to fill up to."""

    def extend(self, run: Run, benchmark: Any, seed: int) -> Run:
        rows = [np.flatnonzero(run.labels == c) for c in dict.fromkeys(run.labels.tolist())]
        filled = [one[np.arange(max(len(one), self.max_per_label)) % len(one)] for one in rows]
        return run.taken(np.concatenate(filled))


@dataclass
class RowsOfFile:
    """Rows that the user made, in a file."""

    file: Path
    """An .h5 or .npz file of feats float (M, D), labels (class numbers of the split), trials and n_shots int (M,). Each
    row joins the shots of its class in the run (trial, n) that it names."""
    setting: Seen = "semi_supervised"
    """What the rows were made from beside labelled training images: inductive (nothing), semi_supervised (unlabelled
    images)."""


class FileRows:
    """The rows of a file, opened; InputError for a file that holds none, or rows of another dimension than `train`."""

    def __init__(self, settings: RowsOfFile, train: Features) -> None:
        self.path, self.rows = settings.file, _read_rows(settings.file)
        if self.rows["feats"].shape[1] != train.dim:
            dims = f"{self.rows['feats'].shape[1]} dimensions, but {train.path} has {train.dim}"
            raise InputError(f"{self.path}: rows of {dims}")

    def extend(self, run: Run, benchmark: Any, seed: int) -> Run:
        """The run with its rows of the file; InputError if it has none, or one of another class."""
        chosen = (self.rows["trials"] == run.trial) & (self.rows["n_shots"] == run.n_shot)
        feats, labels = self.rows["feats"][chosen], self.rows["labels"][chosen]
        if len(labels) == 0:
            raise InputError(f"{self.path}: has no row of trial {run.trial}, n = {run.n_shot}")
        for c in labels[~np.isin(labels, benchmark.novel_classes)][:1]:
            raise InputError(f"{self.path}: has rows of class {c}, which is no novel class of this setup")
        return run.joined(feats, labels)


def _read_rows(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a rows file; InputError for one that is none."""
    rows = _read_npz(path) if path.suffix == ".npz" else _read_h5(path)
    feats = rows["feats"]
    if feats.ndim != 2 or feats.dtype.kind != "f" or not np.isfinite(_as_float32(feats)).all():
        raise InputError(f"{path}: feats is {feats.dtype} {feats.shape}, not finite floats (M, D)")
    for name in _ARRAYS[1:]:
        if rows[name].shape != feats.shape[:1] or rows[name].dtype.kind not in "iu":
            raise InputError(f"{path}: {name} is {rows[name].dtype} {rows[name].shape}, not integers ({len(feats)},)")
    return {"feats": _as_float32(feats), **{name: rows[name].astype(np.int64) for name in _ARRAYS[1:]}}


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    with open_h5(path) as file:
        require_datasets(file, list(_ARRAYS))
        try:
            return {name: np.asarray(file[name]) for name in _ARRAYS}
        except Exception as error:  # bad bytes make decoders fail in every way
            raise InputError(f"{path}: cannot be read ({error})") from None


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in _ARRAYS if name in file}
    except Exception as error:  # bad bytes make decoders fail in every way
        raise InputError(f"{path}: not a readable .npz file ({error})") from None
    for name in _ARRAYS:
        if not isinstance(held.get(name), np.ndarray):
            raise InputError(f"{path}: lacks the array '{name}'")
    return held
