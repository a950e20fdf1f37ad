"""What an artifact has seen, and whether a result made from it is admissible.

Every artifact that was made from images carries a lineage: the classes whose images it has seen, and how. Stages merge
the lineages of what they read with `|`. `judge` decides from the merged lineage whether a result may be reported, and
how it is tagged. Every evaluating stage calls it; none decides by itself.

A class is identified by its *origin*, "source/class": a data set and the class in it. Splits of one data set share the
origins of their classes, whatever their digests: "cifar100/apple" is a class of CIFAR-FS, too. "source/*" stands for
all classes of a source.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import reduce
from hashlib import sha256
from itertools import chain
from operator import or_
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lowshot.core.artifacts import stored_lineage
from lowshot.core.errors import InputError
from lowshot.data.protocol import UNKNOWN, Setup, Split, read_draws

# What a result has used besides labelled images of base classes and the shots of its own runs, strictest first.
Setting = Literal["inductive", "semi_supervised", "transductive", "unknown"]
_SETTINGS: tuple[Setting, ...] = ("inductive", "semi_supervised", "transductive", "unknown")
_SIGHTS = ("labelled", "superclasses", "unlabelled")
# Formats that can store a lineage.
_FORMS = {".h5", ".hdf5", ".json", ".yaml"}
# Origin of unlabelled images that may be of any class.
ANY = "*/*"


@dataclass(frozen=True)
class Shots:
    """Shots of novel classes: the first `n` draws of a trial, for each of `classes` (origins).

    `rows` is the digest of their rows among the training images, and `images` that of the images file, if known.
    """

    trial: int
    n: int
    classes: tuple[str, ...]
    rows: str
    images: str | None = None


def shots_of(
    split: Split, classes: Iterable[int], drawn: Sequence[np.ndarray], trial: int, n: int, images: str | None
) -> Shots:
    """Return the first `n` draws of a trial. `drawn` has the rows (any number,) of each class of the split."""
    classes = list(classes)
    rows = sorted([_key(split.origins[c])[1], np.asarray(drawn[c][:n]).tolist()] for c in classes)
    digest = sha256(json.dumps(rows).encode()).hexdigest()
    return Shots(trial, n, tuple(sorted(split.origins[c] for c in classes)), digest, images)


@dataclass(frozen=True)
class Lineage:
    """What an artifact has seen.

    Attributes:
        labelled: Origins of classes of which images were seen with their label.
        superclasses: Origins of classes of which images were seen with their superclass.
        unlabelled: Origins of classes of which training images were seen without a label.
        shots: Labelled shots of novel classes.
        test_images: Whether test images were seen together.
        unknown: Names of inputs that do not say what they have seen.
    """

    labelled: frozenset[str] = frozenset()
    superclasses: frozenset[str] = frozenset()
    unlabelled: frozenset[str] = frozenset()
    shots: frozenset[Shots] = frozenset()
    test_images: bool = False
    unknown: frozenset[str] = frozenset()

    def __or__(self, other: "Lineage") -> "Lineage":
        return Lineage(*(getattr(self, one.name) | getattr(other, one.name) for one in fields(self)))

    @property
    def sources(self) -> set[str]:
        """The data sets of all classes that were seen."""
        seen = chain.from_iterable(getattr(self, name) for name in _SIGHTS)
        return {_source_of(origin) for origin in seen} - {"*", UNKNOWN}

    def to_json(self) -> dict[str, Any]:
        """Return what is not empty, as lists."""
        content = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name)}
        content |= {name: sorted(content[name]) for name in (*_SIGHTS, "unknown") if name in content}
        return content | ({"shots": [asdict(one) for one in _in_order(self.shots)]} if self.shots else {})

    @classmethod
    def from_json(cls, content: Any) -> "Lineage":
        """Raises KeyError, TypeError or ValueError for anything that `to_json` does not return."""
        known = {one.name for one in fields(cls)}
        if not isinstance(content, dict) or not content.keys() <= known:
            raise ValueError("unknown entries")
        texts = {name: content.get(name, []) for name in (*_SIGHTS, "unknown")}
        if not all(isinstance(part, list) and all(isinstance(one, str) for one in part) for part in texts.values()):
            raise TypeError("lists of names expected")
        shots = frozenset(_checked_shots(**one) for one in content.get("shots", []))
        seen_test = content.get("test_images", False)
        return cls(shots=shots, test_images=bool(seen_test), **{name: frozenset(part) for name, part in texts.items()})


def _in_order(shots: Iterable[Shots]) -> list[Shots]:
    return sorted(shots, key=lambda one: (one.trial, one.n, one.rows))


def _checked_shots(trial: int, n: int, classes: list[str], rows: str, images: str | None = None) -> Shots:
    texts = [*classes, rows, *([] if images is None else [images])]
    if type(trial) is not int or type(n) is not int or not all(isinstance(one, str) for one in texts):
        raise TypeError("shots of another form")
    return Shots(trial, n, tuple(classes), rows, images)


def lineage_of(path: Path) -> Lineage:
    """Return the lineage stored in an artifact. It is unknown for a file that has none."""
    stored = stored_lineage(path) if path.is_dir() or path.suffix in _FORMS else None
    if stored is None:
        return Lineage(unknown=frozenset({str(path)}))
    try:
        return Lineage.from_json(stored)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its lineage cannot be read ({error}). Make the file again") from None


def lineage_of_method(setting: Setting) -> Lineage:
    """Return what a method sees besides labelled training images and shots, from the setting that it declares."""
    unlabelled = frozenset({ANY} if setting == "semi_supervised" else ())
    return Lineage(unlabelled=unlabelled, test_images=setting == "transductive")


def merged(lineages: Iterable[Lineage]) -> Lineage:
    """Return what all of them have seen together."""
    return reduce(or_, lineages, Lineage())


def lineage_of_shots(split: Split, draws: Path, trial: int, n: int, images: str) -> Lineage:
    """Return the lineage of a training on n shots of each novel class. `images` is the digest of the images file."""
    drawn = read_draws(draws, [trial])[trial]
    return Lineage(shots=frozenset({shots_of(split, split.novel_classes, drawn, trial, n, images)}))


def trained_on(split: Split, classes: Iterable[int]) -> Lineage:
    """Return the lineage of a training on images of `classes` with their labels."""
    return Lineage(labelled=frozenset(split.origins[c] for c in classes))


@dataclass(frozen=True)
class Judged:
    """The novel classes of a result, and the runs that it judges.

    `draws` maps a trial to the shot rows of every class, `runs` are pairs (trial, n), and `images` is the digest of the
    images file of the training features. Episodes have no runs.
    """

    split: Split
    setup: Setup | Literal["both"]
    novel_classes: Sequence[int]
    runs: Sequence[tuple[int, int]] = ()
    draws: dict[int, list[np.ndarray]] = field(default_factory=dict)
    images: str | None = None


@dataclass(frozen=True)
class Tags:
    """How a result is tagged.

    Attributes:
        setting: What its method and inputs have used besides labelled images and the shots of the runs.
        superclasses: Whether images of its novel classes were seen with their superclass.
        outside: Data sets that were seen besides that of the split, sorted.
    """

    setting: Setting
    superclasses: bool
    outside: tuple[str, ...]

    def __or__(self, other: "Tags") -> "Tags":
        """The tags of a result that both apply to: the loosest setting wins."""
        setting = max(self.setting, other.setting, key=_SETTINGS.index)
        outside = tuple(sorted({*self.outside, *other.outside}))
        return Tags(setting, self.superclasses or other.superclasses, outside)

    def to_json(self) -> dict[str, Any]:
        return {"setting": self.setting, "superclasses": self.superclasses, "outside": list(self.outside)}


def judge(inputs: dict[str, Lineage], judged: Judged) -> Tags:
    """Decide whether a result is admissible, and how it is tagged.

    Args:
        inputs: The lineages of what the result is made from, by the names that messages use: files, and the method
            (`lineage_of_method`).
        judged: The novel classes and runs of the result.

    Raises InputError if something has seen images of the novel classes with their label, except for shots within those
    of all runs, or, in the validation setup, shots of the test setup.
    """
    for name, seen in inputs.items():
        _refuse_labelled(name, seen, judged)
        for shots in _in_order(seen.shots):
            _refuse_other_shots(name, shots, judged)
    seen, used = merged(inputs.values()), ["inductive"]
    used += ["semi_supervised"] if _among(seen.unlabelled, judged) else []
    used += ["transductive"] if seen.test_images else []
    own = {_source_of(one) for one in judged.split.origins}
    outside = set() if UNKNOWN in own else seen.sources - own
    whole = UNKNOWN in own and any(_key(origin)[1] == "*" for origin in seen.labelled)  # is the split's source in it?
    used += ["unknown"] if seen.unknown or whole else []
    return Tags(max(used, key=_SETTINGS.index), bool(_among(seen.superclasses, judged)), tuple(sorted(outside)))


def check_base_only(name: str, seen: Lineage, split: Split) -> None:
    """Raise InputError if the artifact `name` has seen images of novel classes, with their label or without."""
    sights = chain(*(getattr(seen, sight) for sight in _SIGHTS), *(shots.classes for shots in seen.shots))
    for c in _numbers(sights, split, split.novel_classes)[:1]:
        raise InputError(
            f"{name}: has seen images of class {c} ({split.class_names[c]}), which is novel in this split. Use one "
            "that was trained on its base classes only"
        )


def _refuse_labelled(name: str, seen: Lineage, judged: Judged) -> None:
    for c in _among(seen.labelled, judged)[:1]:
        raise InputError(
            f"{name}: has seen labelled images of class {c} ({judged.split.class_names[c]}), which is a novel class "
            "here. Use one that was trained on the base classes of this split"
        )


def _refuse_other_shots(name: str, shots: Shots, judged: Judged) -> None:
    """Raise InputError unless the shots are within those of every run."""
    split, of_others = judged.split, set(judged.split.novel_classes) - set(map(int, judged.novel_classes))
    chosen, of_others = (_numbers(shots.classes, split, classes) for classes in (judged.novel_classes, of_others))
    if judged.setup == "validation" and of_others:
        raise InputError(
            f"{name}: was trained on shots of the test setup. Nothing may be chosen with it on the validation setup"
        )
    if not chosen:
        return
    for trial, n in judged.runs or [(0, 0)]:
        if trial == shots.trial and n >= shots.n and _is_drawn(shots, [*chosen, *of_others], judged):
            continue
        what = f"n = {n}, trial {trial}" if judged.runs else "tasks, which draw their own shots"
        raise InputError(
            f"{name}: was trained on {shots.n} shots of trial {shots.trial} and cannot be evaluated on {what}. Use one "
            f"of these shots, or low_shot.py --shots {shots.n} --trials {shots.trial} with the same draws"
        )


def _is_drawn(shots: Shots, classes: list[int], judged: Judged) -> bool:
    """Whether shots are the first draws of their trial, as far as it is known."""
    drawn = shots_of(judged.split, classes, judged.draws[shots.trial], shots.trial, shots.n, judged.images)
    return drawn.rows == shots.rows and (None in (drawn.images, shots.images) or drawn.images == shots.images)


def _among(seen: Iterable[str], judged: Judged) -> list[int]:
    return _numbers(seen, judged.split, judged.novel_classes)


def _numbers(seen: Iterable[str], split: Split, classes: Iterable[int]) -> list[int]:
    """Return those of `classes` whose origin is among the origins `seen`."""
    keys = {_key(one) for one in seen}
    whole = {source for source, name in keys if name == "*"}
    anywhere = {name for source, name in keys if source == UNKNOWN}
    names = {name for _, name in keys}

    def is_seen(c: int) -> bool:
        source, name = _key(split.origins[c])
        of_source = (source, name) in keys or source in whole or "*" in whole
        return of_source or name in anywhere or (source == UNKNOWN and name in names)

    return [int(c) for c in classes if is_seen(c)]


def _source_of(origin: str) -> str:
    return origin.partition("/")[0]


def _key(origin: str) -> tuple[str, str]:
    """Return source and name. Folders of photos are one source, so that a renamed folder is no other data set."""
    source, _, name = origin.partition("/")
    return source.partition(":")[0], name
