"""The low-shot protocol as files: which classes are base or novel (split.json), which images are shots (draws.json).

The published files of Hariharan & Girshick (ICCV 2017) are accepted too: `label_idx.json`, in both its 0-based and its
1-based numbering, and `splitfile_{trial}.json`.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from lowshot.core.errors import InputError, listed
from lowshot.core.files import digest, read_json
from lowshot.core.seeds import stream

Setup = Literal["validation", "test"]
Halves = Literal["classes", "superclasses"]
# What the name of a data set ends with if its test images were held out of the training images.
VALIDATION_PART = " (validation part)"
# Source of classes that may be of any data set.
UNKNOWN = "?"
_SAME_RUN = "Use the features of the training images, and split and draws of the same preprocessing run"
_CLASS_LISTS = (
    "base_classes",
    "novel_classes",
    "base_classes_1",
    "novel_classes_1",
    "base_classes_2",
    "novel_classes_2",
)


@dataclass(frozen=True)
class Split:
    """Base and novel classes of a data set, and their halves for the validation (_1) and the test (_2) setup.

    Class numbers are positions in `class_names`. `superclass_of` maps each class to a position in `superclass_names`,
    or to None. `origins` names the data set and the class that each class comes from, "source/class"; by default those
    of the split itself. They identify a class in all splits (`lowshot.data.lineage`).
    """

    dataset: str
    class_names: list[str]
    superclass_names: list[str]
    superclass_of: list[int | None]
    base_classes: list[int]
    novel_classes: list[int]
    base_classes_1: list[int]
    novel_classes_1: list[int]
    base_classes_2: list[int]
    novel_classes_2: list[int]
    seed: int | None = None
    origins: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.origins:
            object.__setattr__(self, "origins", origins(self.dataset, self.class_names))

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything but seed and origins, so that equal splits have equal digests."""
        content = {key: value for key, value in asdict(self).items() if key not in ("seed", "origins")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def classes_digest(self) -> str:
        """SHA-256 of the class names in order. Splits of the same images that differ in halves only share it."""
        return hashlib.sha256(json.dumps(self.class_names).encode()).hexdigest()

    def setup(self, name: Setup) -> tuple[np.ndarray, np.ndarray]:
        """Return the base classes and the novel classes (int64) of the validation or the test setup. There can be
        none of them (see `setup_of`)."""
        half = {"validation": "1", "test": "2"}[name]
        base, novel = getattr(self, f"base_classes_{half}"), getattr(self, f"novel_classes_{half}")
        return np.array(base, np.int64), np.array(novel, np.int64)

    def whole(self) -> "Split":
        """Return the split without halves: the test setup has all classes, and there is no validation setup."""
        empty = {"base_classes_1": [], "novel_classes_1": []}
        return replace(self, **empty, base_classes_2=self.base_classes, novel_classes_2=self.novel_classes)

    def to_json(self) -> dict:
        return {**asdict(self), "digest": self.digest}


def setup_of(split: Split, name: Setup, where: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes of a setup. Raises InputError if it has none. `where` names the file of the split."""
    base, novel = split.setup(name)
    if len(base) and len(novel):
        return base, novel
    if not len(base) and not len(novel):
        way_out = "A split without halves has the test setup only: choose settings with split.json instead"
        raise InputError(f"{where}: has no {name} setup. {way_out}")
    raise InputError(f"{where}: has no {'novel' if len(base) else 'base'} classes in the {name} setup")


# Data sets whose classes are those of another one.
_SOURCES = {
    **dict.fromkeys(("cifar_fs", "fc100", "cifar100_fs"), "cifar100"),
    **dict.fromkeys(("omniglot_vinyals", "omniglot_fs"), "omniglot"),
    "emnist_fs": "emnist",
    **dict.fromkeys(("mini_imagenet", "tiered_imagenet"), "imagenet"),
    **dict.fromkeys(("living17", "nonliving26", "entity13", "entity30"), "imagenet"),
}
ROTATION = re.compile(r" rot\d{3}$")


def origins(dataset: str, names: list[str]) -> list[str]:
    """Return the origin "source/class" of each class of a data set. A rotated class has that of the class itself."""
    dataset = dataset.removesuffix(VALIDATION_PART)
    return [f"{_SOURCES.get(dataset, dataset)}/{ROTATION.sub('', name)}" for name in names]


def make_split(
    dataset: str,
    class_names: list[str],
    superclass_names: list[str],
    superclass_of: list[int | None],
    seed: int,
    novel_classes: list[int] | None = None,
    novel_fraction: float = 0.4,
    novel_per_superclass: int = 0,
    halves: Halves = "classes",
) -> Split:
    """Draw the novel classes (unless given), and divide base and novel classes into random halves.

    `novel_per_superclass` > 0 draws that many classes in each superclass (analogy_cifar100); otherwise `novel_fraction`
    of all classes become novel. `halves="superclasses"` keeps the classes of a superclass in one half (the cv/final
    split of analogy_cifar100). Raises InputError if the settings need superclasses that the data set lacks, or if a
    half is empty.
    """
    if (halves == "superclasses" or novel_per_superclass) and None in superclass_of:
        given = "halves superclasses" if halves == "superclasses" else f"novel_per_superclass {novel_per_superclass}"
        raise InputError(
            f"--dataset.{given}: some classes of {dataset} have no superclass. Leave the setting out, or use a data "
            f"set with superclasses"
        )
    superclasses = np.array([-1 if s is None else s for s in superclass_of])
    if novel_classes is None:
        novel_classes = _draw_novel(superclasses, seed, novel_fraction, novel_per_superclass)
    novel = np.array(sorted(novel_classes), np.int64)
    base = np.setdiff1d(np.arange(len(class_names)), novel)
    groups = superclasses if halves == "superclasses" else np.arange(len(class_names))
    first = {"base": _first_half(base, groups, seed, halves), "novel": _first_half(novel, groups, seed, halves)}
    halved = {
        f"{name}_classes_{half}": members[inside].tolist()
        for name, members in (("base", base), ("novel", novel))
        for half, inside in ((1, first[name]), (2, ~first[name]))
    }
    split = Split(
        dataset, list(class_names), list(superclass_names), list(superclass_of), base.tolist(), novel.tolist(),
        seed=seed, **halved,
    )  # fmt: skip
    check_split(split, f"split of {dataset}")
    if split.n_classes < 4:
        raise InputError(
            f"split of {dataset}: {split.n_classes} classes are too few. Two base and two novel classes are needed at "
            "least. Add classes, or make a classifier of these with predict.py"
        )
    if not all(halved.values()):
        raise InputError(
            f"split of {dataset}: {len(base)} base and {len(novel)} novel classes cannot be divided into two setups. "
            "At least two of each are needed. Add classes, or choose more or fewer novel classes "
            "(--dataset.novel_fraction)"
        )
    return split


def published_split(
    dataset: str,
    class_names: list[str],
    superclass_names: list[str],
    superclass_of: list[int | None],
    seed: int,
    train: list[int],
    validation: list[int],
    test: list[int],
) -> Split:
    """Make the split of a published few-shot data set.

    Training classes become base classes, divided into random halves. Validation classes become the novel classes of the
    validation setup, test classes the novel classes of the test setup.
    """
    for name, classes in (("training", train), ("validation", validation), ("test", test)):
        if not classes:
            raise InputError(f"split of {dataset}: there are no {name} classes. Use the complete data set")
    base = np.array(sorted(train), np.int64)
    first = _first_half(base, np.arange(len(class_names)), seed, "classes")
    split = Split(
        dataset, list(class_names), list(superclass_names), list(superclass_of), base.tolist(),
        novel_classes=sorted([*validation, *test]), novel_classes_1=sorted(validation), novel_classes_2=sorted(test),
        base_classes_1=base[first].tolist(), base_classes_2=base[~first].tolist(), seed=seed,
    )  # fmt: skip
    check_split(split, f"split of {dataset}")
    return split


def _draw_novel(superclasses: np.ndarray, seed: int, fraction: float, per_superclass: int) -> list[int]:
    if per_superclass == 0:
        n_novel = max(2, round(fraction * len(superclasses)))
        return stream(seed, "novel").permutation(len(superclasses))[:n_novel].tolist()
    drawn = []
    for superclass in np.unique(superclasses[superclasses >= 0]):
        members = np.flatnonzero(superclasses == superclass)
        if len(members) <= per_superclass:
            raise InputError(
                f"--dataset.novel_per_superclass {per_superclass}: superclass {superclass} has only {len(members)} "
                f"classes. Use at most {len(members) - 1}"
            )
        drawn += stream(seed, "novel", int(superclass)).permutation(members)[:per_superclass].tolist()
    return drawn


def _first_half(members: np.ndarray, groups: np.ndarray, seed: int, halves: str) -> np.ndarray:
    """Return the mask of `members` whose group is in the first half."""
    kind = "halves" if halves == "superclasses" else f"halves of {len(members)}"
    present = np.unique(groups) if halves == "superclasses" else members
    chosen = stream(seed, kind).permutation(present)[: len(present) // 2]
    return np.isin(groups[members], chosen)


def read_split(path: Path) -> Split:
    """Read split.json, or the published label_idx.json in either numbering."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a split file")
    try:
        if "label_names" in content:
            split = _from_label_idx(content, Path(path))
        else:
            older = {"origins": []}  # files of older revisions have none
            split = Split(**{name: {**older, **content}[name] for name in Split.__dataclass_fields__})
        check_split(split, str(path))
    except InputError:
        raise
    except KeyError as error:
        raise InputError(
            f"{path}: not a split file ({error} is missing). Use the split.json of preprocessing.py"
        ) from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: not a split file ({error})") from None
    if content.get("digest", split.digest) != split.digest:
        raise InputError(
            f"{path}: edited by hand (the digest does not match). Make it again, or delete its entry 'digest'"
        )
    return split


def is_of_same_classes(stored: str | None, split: Path) -> bool:
    """Whether a file with the digest `stored` is the split file `split`, or one beside it that differs in halves only
    (split.json and whole.json)."""
    files = [split, *(split.with_name(name) for name in ("split.json", "whole.json"))]
    alike = [file for file in files if file.is_file() and digest(file) == stored]
    return any(file == split or read_split(file).whole().digest == read_split(split).whole().digest for file in alike)


def _from_label_idx(content: dict, path: Path) -> Split:
    names = content["label_names"]
    parts = {key: content[key] for key in ("base_classes_1", "novel_classes_1", "base_classes_2", "novel_classes_2")}
    numbers = np.concatenate([np.asarray(part, np.int64) for part in parts.values()])
    one_based = bool(len(numbers) and numbers.min() == 1 and numbers.max() == len(names))
    parts = {key: [int(c) - one_based for c in part] for key, part in parts.items()}
    base = sorted(parts["base_classes_1"] + parts["base_classes_2"])
    novel = sorted(parts["novel_classes_1"] + parts["novel_classes_2"])
    are_wnids = all(isinstance(name, str) and re.fullmatch(r"n\d{8}", name) for name in names)
    return Split(dataset=path.stem, class_names=names, superclass_names=[], superclass_of=[None] * len(names),
                 base_classes=base, novel_classes=novel, origins=origins("imagenet" if are_wnids else UNKNOWN, names),
                 **parts)  # fmt: skip


def _check_types(split: Split, where: str) -> None:
    """Raise InputError unless all entries of a split have their types, and classes have different names."""
    texts = {"class_names": split.class_names, "superclass_names": split.superclass_names}
    for name, values in texts.items():
        if not isinstance(values, list) or not all(isinstance(one, str) and one for one in values):
            raise InputError(f"{where}: {name} must be a list of names")
        if len(set(values)) < len(values):
            twice = next(one for one in values if values.count(one) > 1)
            raise InputError(f"{where}: {name} contains '{twice}' twice")
    if not isinstance(split.origins, list) or not all(isinstance(one, str) for one in split.origins):
        raise InputError(f"{where}: origins must be a list of names")
    if not isinstance(split.dataset, str) or not split.class_names:
        raise InputError(f"{where}: must have a dataset name and classes")
    for name in (*_CLASS_LISTS, "superclass_of"):
        if not isinstance(getattr(split, name), list):
            raise InputError(f"{where}: {name} must be a list")


def check_split(split: Split, where: str) -> None:
    """Raise InputError for a split that is not consistent. `where` names its source."""
    _check_types(split, where)
    for name in _CLASS_LISTS:
        numbers = getattr(split, name)
        if not all(type(c) is int and 0 <= c < split.n_classes for c in numbers):
            raise InputError(f"{where}: {name} contains a class outside 0..{split.n_classes - 1}")
        if len(set(numbers)) != len(numbers):
            raise InputError(f"{where}: {name} contains a class twice")
    if both := set(split.base_classes) & set(split.novel_classes):
        c = min(both)
        raise InputError(f"{where}: class {c} ({split.class_names[c]}) is both base and novel")
    for kind in ("base", "novel"):
        whole, first, second = (getattr(split, f"{kind}_classes{half}") for half in ("", "_1", "_2"))
        if set(first) & set(second) or set(first) | set(second) != set(whole):
            raise InputError(
                f"{where}: {kind}_classes_1 and {kind}_classes_2 must be disjoint and form {kind}_classes. "
                f"Make the split again with preprocessing.py"
            )
    if len(split.origins) != split.n_classes or not all("/" in one for one in split.origins):
        raise InputError(f"{where}: origins must name 'source/class' for each of the {split.n_classes} classes")
    if len(split.superclass_of) != split.n_classes:
        raise InputError(f"{where}: superclass_of has {len(split.superclass_of)} entries for {split.n_classes} classes")
    n_superclasses = len(split.superclass_names)
    known = [s is None or (type(s) is int and 0 <= s < n_superclasses) for s in split.superclass_of]
    if not all(known):
        strange = split.superclass_of[known.index(False)]
        raise InputError(f"{where}: superclass_of contains {strange!r}, outside 0..{n_superclasses - 1}")


def make_draws(
    labels: np.ndarray,
    class_names: list[str],
    n_trials: int,
    max_shots: int,
    seed: int,
    novel_classes: Sequence[int] | None = None,
) -> dict[int, list[np.ndarray]]:
    """Draw `max_shots` distinct rows of `labels` (N,) per class for the trials 1..n_trials. n-shot uses the first n.

    Each trial and class has its own random stream. A class with fewer rows has all of them in its list. Raises
    InputError if this is one of the `novel_classes` (default: all), which give the shots.
    """
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(len(class_names)), side="right")
    starts = np.searchsorted(labels[order], np.arange(len(class_names)), side="left")
    counts = ends - starts
    demanded = range(len(class_names)) if novel_classes is None else novel_classes
    if small := [c for c in demanded if counts[c] < max_shots]:
        raise InputError(
            f"--dataset.max_shots {max_shots}: these novel classes have fewer training images: "
            f"{listed(f'{class_names[c]} ({counts[c]})' for c in small)}. Use --dataset.max_shots "
            f"{counts[small].min()}, or choose larger classes (--dataset.novel_classes of folders and feature files)"
        )
    return {
        trial: [
            order[start:end][stream(seed, "draws", trial, c).permutation(end - start)[:max_shots]]
            for c, (start, end) in enumerate(zip(starts, ends))
        ]
        for trial in range(1, n_trials + 1)
    }


def unlabelled_halves(labels: np.ndarray, c: int, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide the training images of class `c` that are not `drawn` as shots of a trial into two halves at random.

    The first half may be learned from without labels, the second one judges what was learned. Both are rows of
    `labels` (N,) in random order. They are the same for every number of shots and every seed.
    """
    rest = np.setdiff1d(np.flatnonzero(labels == c), drawn)
    learned, judging = np.array_split(stream(0, "unlabelled", c).permutation(rest), 2)
    return learned, judging


def with_douze2018_draws(
    draws: dict[int, list[np.ndarray]], labels: np.ndarray, split: Split, max_shots: int
) -> dict[int, list[np.ndarray]]:
    """Replace the shots of novel classes by those of the release of Douze et al. (CVPR 2018).

    numpy's legacy generator, seeded with the trial number, shuffles the rows of one novel class after another, in
    ascending order. n-shot uses the first n. Each setup starts again from the seed.
    """
    drawn = {trial: list(classes) for trial, classes in draws.items()}
    for trial, classes in drawn.items():
        for setup in get_args(Setup):
            random = np.random.RandomState(trial)
            for c in sorted(split.setup(setup)[1]):
                rows = np.flatnonzero(labels == c)
                random.shuffle(rows)
                classes[c] = rows[:max_shots]
    return drawn


def draws_to_json(draws: dict[int, list[np.ndarray]], split: Split, seed: int) -> dict:
    trials = {str(trial): [rows.tolist() for rows in classes] for trial, classes in draws.items()}
    digests = {"split_digest": split.digest, "classes_digest": split.classes_digest}
    return {"dataset": split.dataset, **digests, "seed": seed, "trials": trials}


def read_draws(path: Path, trials: list[int] | None = None) -> dict[int, list[np.ndarray]]:
    """Read rows of the train features per trial and class, from draws.json or from published files.

    Args:
        path: draws.json, or a template of published files such as ``splitfile_{trial}.json``, in which ``{...}`` is
            replaced by the trial number.
        trials: The trials to read. None reads all trials of draws.json, or 1 to 5 of a template.
    """
    if _is_template(path):
        files = {trial: _filled(path, trial) for trial in trials or range(1, 6)}
        return {trial: _row_lists(read_json(file), file) for trial, file in files.items()}
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("trials"), dict):
        hint = (
            "Use the draws.json of preprocessing.py, or a template such as splitfile_{trial}.json for published files"
        )
        raise InputError(f"{path}: not a draws file ('trials' is missing). {hint}")
    if strange := [name for name in content["trials"] if not re.fullmatch("0|[1-9][0-9]{0,8}", name)]:
        raise InputError(f"{path}: '{strange[0]}' is not a trial number")
    if not content["trials"]:
        raise InputError(f"{path}: has no trials")
    missing = [trial for trial in trials or [] if str(trial) not in content["trials"]]
    if missing:
        raise InputError(f"{path}: has no trial {missing[0]} (available: {', '.join(content['trials'])})")
    chosen = trials or [int(trial) for trial in content["trials"]]
    return {trial: _row_lists(content["trials"][str(trial)], path) for trial in chosen}


def draws_inputs(path: Path, trials: list[int] | None) -> dict[str, Path]:
    """Return the files that `read_draws` would read, with their names in a recipe."""
    if not _is_template(path):
        return {"draws": path}
    return {f"draws_{trial}": _filled(path, trial) for trial in trials or range(1, 6)}


def _is_template(path: Path) -> bool:
    """Whether the name of a file has a place for the trial. Folders may have braces in their names."""
    return "{" in Path(path).name


def _filled(path: Path, trial: int) -> Path:
    before, after = Path(path).name.split("{", 1)
    return Path(path).with_name(before + str(trial) + after.split("}", 1)[-1])


def _row_lists(content: object, path: Path) -> list[np.ndarray]:
    whole = isinstance(content, list) and all(isinstance(rows, list) for rows in content)
    if not whole or not all(type(row) is int and 0 <= row < 2**62 for rows in content for row in rows):
        raise InputError(f"{path}: must hold, for each trial and class, a list of row numbers (integers from 0)")
    return [np.array(rows, np.int64) for rows in content]


def check_draws_of(path: Path, split: Split) -> None:
    """Raise InputError if draws.json states that it was drawn for other classes. Published files state nothing, and
    files of older revisions the digest of the whole split.
    """
    content = {} if _is_template(path) else read_json(path)
    known = content.get("split_digest", split.digest)
    if known != split.digest and content.get("classes_digest") != split.classes_digest:
        raise InputError(
            f"{path}: was drawn for another split ({str(known)[:12]}, not {split.digest[:12]}). Use the files of one "
            "preprocessing run"
        )


def check_draws(
    draws: dict[int, list[np.ndarray]],
    labels: np.ndarray,
    classes: np.ndarray,
    n_shot: int,
    where: Path | str,
    train: Path | str,
) -> None:
    """Raise InputError unless each of `classes` has, in every trial, `n_shot` distinct rows of `labels` (N,) with its
    label. `where` and `train` name the sources of the draws and of the labels."""
    for trial, rows_of in draws.items():
        for c in classes:
            rows = rows_of[c] if c < len(rows_of) else np.empty(0, np.int64)
            what = f"{where}: trial {trial}, class {c}"
            if len(rows) < n_shot:
                raise InputError(
                    f"{what}: has draws up to n = {len(rows)}, but the largest n is {n_shot}. Use n up to {len(rows)} "
                    f"(--shots), or, if the class has {n_shot} images, preprocessing.py --dataset.max_shots {n_shot}"
                )
            if (outside := rows[(rows < 0) | (rows >= len(labels))]).size:
                raise InputError(f"{what}: row {outside[0]} is outside the {len(labels)} rows of {train}. {_SAME_RUN}")
            if (wrong := rows[labels[rows] != c]).size:
                raise InputError(f"{what}: row {wrong[0]} of {train} is of class {labels[wrong[0]]}. {_SAME_RUN}")
            if len(np.unique(rows)) != len(rows):
                raise InputError(f"{what}: contains a row twice")
