"""BREEDS (Santurkar et al., ICLR 2021): superclasses of ImageNet classes, taken from one level of a class hierarchy.

Reads ROOT/{train,val}/<wnid>/* (val is the test part) and the published hierarchy in ROOT/breeds: class_hierarchy.txt
(lines `parent child`), dataset_class_info.json (lists of number, wnid and name) and node_names.txt (wnid, tab, name).

The benchmarks follow the `robustness` package with split=None: its source and target classes are pooled, as in SCGM
(Ni et al., ICLR 2022). Class numbers are grouped by superclass. SCGM trains on 90 % of the training images and
validates on the rest; train_scgm.py --holdout 0.1 does the same, with a random stream of its own.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lowshot.core.errors import InputError
from lowshot.core.files import digest, read_json
from lowshot.data.datasets.content import Content, Found, Source, listing_digest
from lowshot.data.datasets.imagenet import list_classes, read_listed
from lowshot.data.datasets.settings import Breeds


class Benchmark(NamedTuple):
    """The `n_superclasses` nodes at depth `level` below `ancestor` that have at least `n_classes` ImageNet classes.
    `n_classes` are drawn from each."""

    level: int
    ancestor: str
    n_superclasses: int
    n_classes: int


BENCHMARKS = {
    "living17": Benchmark(5, "n00004258", 17, 4),
    "nonliving26": Benchmark(5, "n00021939", 26, 4),
    "entity13": Benchmark(3, "n00001740", 13, 20),
    "entity30": Benchmark(4, "n00001740", 30, 8),
}

_ROOT_NODE = "n00001740"
_HIERARCHY, _CLASSES, _NAMES = "class_hierarchy.txt", "dataset_class_info.json", "node_names.txt"


def find(settings: Breeds, source: Source) -> Found:
    """List the images of every class of a benchmark."""
    root = source.folder.resolve()
    folder = root / "breeds"
    digests = {file: digest(folder / file) for file in (_HIERARCHY, _CLASSES, _NAMES)}
    chosen = choose_classes(folder, BENCHMARKS[settings.name])
    files = list_classes(root, list(chain.from_iterable(chosen.values())), f"{settings.name} has this class")
    digests |= {part: listing_digest(root, chain.from_iterable(classes)) for part, classes in files.items()}
    return Found(digests, partial(_read, root, chosen, files), stays=True)


def choose_classes(folder: Path, benchmark: Benchmark) -> dict[str, list[str]]:
    """Map each superclass of a benchmark to its ImageNet classes (all as wnids, in the published order).

    Superclasses are sorted. The classes of one superclass after another are drawn with the published seed, 2. Raises
    InputError if a file in `folder` is damaged or the hierarchy does not yield the benchmark's number of superclasses.
    """
    path = folder / _HIERARCHY
    parents, order = _read_hierarchy(path)
    levels = _levels(parents, order, benchmark.ancestor)
    below = _classes_below(path, parents, order, _imagenet_classes(folder / _CLASSES))
    nodes = sorted(node for node in levels if levels[node] == benchmark.level)
    enough = [node for node in nodes if len(below[node]) >= benchmark.n_classes]
    if len(enough) != benchmark.n_superclasses:
        raise InputError(
            f"{path}: {len(enough)} superclasses at level {benchmark.level} below {benchmark.ancestor} have at least "
            f"{benchmark.n_classes} classes, expected {benchmark.n_superclasses}. Use the published file"
        )
    rng = np.random.RandomState(2)
    chosen = {node: rng.choice(sorted(below[node]), benchmark.n_classes, replace=False).tolist() for node in enough}
    owners = Counter(chain.from_iterable(chosen.values()))
    if twice := sorted(c for c, n in owners.items() if n > 1):
        raise InputError(f"{path}: {twice[0]} belongs to two superclasses. Use the published file")
    return chosen


def _read_hierarchy(path: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Return the parents of each node that has any, and all nodes with parents before children."""
    parents: dict[str, list[str]] = {}
    for parent, child in _pairs(path, None):
        parents.setdefault(child, []).append(parent)
    try:
        return parents, list(TopologicalSorter(parents).static_order())
    except CycleError as error:
        raise InputError(f"{path}: {error.args[1][0]} is its own ancestor. Use the published file") from None


def _levels(parents: dict[str, list[str]], order: list[str], ancestor: str) -> dict[str, int]:
    """Return the depth of `ancestor` and all its descendants: the length of the longest path from the root node."""
    level, inside = {_ROOT_NODE: 0}, {ancestor}
    for node in order:
        above = parents.get(node, [])
        if depths := [level[parent] for parent in above if parent in level]:
            level[node] = max(depths) + 1
        if not inside.isdisjoint(above):
            inside.add(node)
    return {node: level[node] for node in level.keys() & inside}


def _classes_below(
    path: Path, parents: dict[str, list[str]], order: list[str], classes: set[str]
) -> dict[str, set[str]]:
    """Return the ImageNet classes at or below each node. Raises InputError for a node without any."""
    below = {node: {node} & classes for node in order}
    for node in reversed(order):
        if not below[node]:
            raise InputError(f"{path}: {node} is not a class in {_CLASSES}, and neither is a node below it")
        for parent in parents.get(node, []):
            below[parent] |= below[node]
    return below


def _imagenet_classes(path: Path) -> set[str]:
    content = read_json(path)
    try:
        return {str(wnid) for _, wnid, _ in content}
    except (TypeError, ValueError):
        raise InputError(f"{path}: not a list of (number, wnid, name)") from None


def _pairs(path: Path, separator: str | None) -> Iterator[list[str]]:
    """Yield the two parts of each line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        if len(pair := line.split(separator)) != 2:
            raise InputError(f"{path}: line {number} does not have two parts. Use the published file")
        yield pair


def _read(root: Path, chosen: dict[str, list[str]], files: dict[str, list[list[Path]]]) -> Content:
    path = root / "breeds" / _NAMES
    synonyms = dict(_pairs(path, "\t"))
    for node in chosen:
        if node not in synonyms:
            raise InputError(f"{path}: {node} has no name")
    names = [synonyms[node].split(",")[0] for node in chosen]
    superclass_of = [s for s, classes in enumerate(chosen.values()) for _ in classes]
    return Content(read_listed(root, files), list(chain.from_iterable(chosen.values())), names, superclass_of)
