"""Given few-shot tasks: a CSV file that lists the support and query images of every task.

One line an image, separated by commas, semicolons or tabs, with the columns

    task      name of the task
    part      support or query
    class     class of the image in the task
    image     path of a picture, relative to the folder of the file; or, in all lines, a row of a feature file
    cluster   optional: tasks of one cluster are not independent, such as tasks of one subject
    source    optional: data set that the class is of, such as omniglot, or a name for pictures of your own. Without it,
              a class that the extractor knows by this name is refused, and results are tagged unknown
"""

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from lowshot.core.errors import InputError
from lowshot.core.files import missing
from lowshot.data.datasets.content import listing_digest
from lowshot.data.datasets.images import Images
from lowshot.data.protocol import UNKNOWN, Split, origins

_NEEDED, _OPTIONAL = ("task", "part", "class", "image"), ("cluster", "source")
_PARTS = ("support", "query")


@dataclass(frozen=True)
class GivenTask:
    """One task. `support` and `queries` (n,) are rows of the features, their labels (n,) positions in `class_names`."""

    name: str
    cluster: str
    class_names: list[str]
    support: np.ndarray
    support_labels: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray

    @property
    def n_shot(self) -> int:
        """The number of support images of each class; the smallest one if they differ."""
        return int(np.bincount(self.support_labels).min())


@dataclass(frozen=True)
class TaskList:
    """All tasks of a file.

    `pictures` are the distinct pictures in the order of the file, or None if its images are rows of a feature file.
    `classes` are the distinct pairs (source, class) in the order of the file, and `image_classes` int64 (N,) the
    position of the first class of each picture or, for rows, of each row in `rows`.
    """

    path: Path
    tasks: list[GivenTask]
    pictures: list[str] | None
    rows: np.ndarray
    classes: list[tuple[str, str]]
    image_classes: np.ndarray

    @property
    def root(self) -> Path:
        """The folder of the pictures."""
        return self.path.resolve().parent

    @property
    def files(self) -> list[Path]:
        """The pictures as files. Raises InputError for rows of a feature file, or for a file that is missing."""
        if self.pictures is None:
            raise InputError(f"{self.path}: lists rows of a feature file, not pictures. Give that file to episodes.py")
        files = [self.root / name for name in self.pictures]
        for file in files:
            if not file.is_file():
                raise missing(file, f"no such picture (listed in {self.path.name})")
        return files

    @cached_property
    def images_digest(self) -> str:
        """Digest of the names and sizes of the pictures, as in the recipe of their features."""
        return listing_digest(self.root, self.files)

    def images(self) -> Images:
        """Return the pictures as images. Row i of their features is picture i."""
        paths = np.array([file.relative_to(self.root).as_posix() for file in self.files], object)
        return Images(self.image_classes, np.zeros(len(paths), bool), paths=paths, root=self.root)

    @property
    def states_sources(self) -> bool:
        """Whether the file says of all classes which data set they are of."""
        return all(source for source, _ in self.classes)

    def as_split(self) -> Split:
        """Return the classes as a split in which all are novel."""
        names = [f"{source}/{name}" if source else name for source, name in self.classes]
        of_sources = [origins(source or UNKNOWN, [name])[0] for source, name in self.classes]
        novel = list(range(len(names)))
        return Split(self.path.stem, names, [], [None] * len(names), [], novel, [], [], [], novel, origins=of_sources)


def read_task_list(path: Path) -> TaskList:
    """Read and check a file of given tasks. Raises InputError that names the file, the task and the cause."""
    lines = list(_lines(path))
    if not lines:
        raise InputError(f"{path}: lists no images")
    are_rows = [line["image"].isascii() and line["image"].isdigit() for line in lines]
    if any(are_rows) and not all(are_rows):
        raise InputError(f"{path}: lists paths of pictures and rows of a feature file. Use one of them in all lines")
    for line in lines:  # one name for each image
        line["image"] = _row(path, line["image"]) if all(are_rows) else _relative(path, line["image"])
    images = dict.fromkeys(line["image"] for line in lines)
    rows = {name: int(name) if all(are_rows) else i for i, name in enumerate(images)}
    classes = {key: i for i, key in enumerate(dict.fromkeys(map(_class_of, lines)))}
    first = {line["image"]: classes[_class_of(line)] for line in reversed(lines)}
    by_task: dict[str, list[dict]] = {}
    for line in lines:
        by_task.setdefault(line["task"], []).append(line)
    has_clusters = any(line.get("cluster") for line in lines)
    tasks = [
        _task(f"{path}: task {name}", name, f"task {name}" if has_clusters else name, part, rows)
        for name, part in by_task.items()
    ]
    pictures = None if all(are_rows) else list(images)
    of_images = np.array([first[name] for name in images], np.int64)
    return TaskList(path, tasks, pictures, np.array(list(rows.values()), np.int64), list(classes), of_images)


def _class_of(line: dict) -> tuple[str, str]:
    return line.get("source") or "", line["class"]


def _lines(path: Path) -> Iterator[dict]:
    """Yield the lines of the file as {column: text}."""
    if not path.is_file():
        raise missing(path, "no such file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, strict=True, delimiter=max(",;\t", key=first.count))
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            _check_columns(path, reader.fieldnames)
            for line in reader:
                if None in line or None in line.values():
                    raise InputError(f"{path}: line {reader.line_num}: has another number of columns than the first")
                line = {name: text.strip() for name, text in line.items()}
                if empty := [name for name in _NEEDED if not line[name]]:
                    raise InputError(f"{path}: line {reader.line_num}: '{empty[0]}' is empty")
                if line["part"] not in _PARTS:
                    raise InputError(f"{path}: line {reader.line_num}: part '{line['part']}': must be support or query")
                yield line
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error})") from None


def _check_columns(path: Path, columns: list[str]) -> None:
    for name in _NEEDED:
        if name not in columns:
            raise InputError(f"{path}: has no column '{name}'. Needed are {', '.join(_NEEDED)}")
    for name in columns:
        if name not in (*_NEEDED, *_OPTIONAL) or columns.count(name) > 1:
            raise InputError(f"{path}: column '{name}': must be one of {', '.join((*_NEEDED, *_OPTIONAL))}, each once")


def _row(path: Path, number: str) -> str:
    """Return a row number without leading zeros."""
    if len(number.lstrip("0")) > 10:
        raise InputError(f"{path}: row {number[:20]}... is no row of a feature file")
    return str(int(number))


def _relative(path: Path, name: str) -> str:
    """Return a path in its shortest form. Raises InputError if it leads out of the folder of the file `path`."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise InputError(f"{path}: picture '{name}' is outside the folder of the file. Use paths relative to it")
    return PurePosixPath(name).as_posix()


def _task(where: str, name: str, own_cluster: str, lines: list[dict], rows: dict[str, int]) -> GivenTask:
    """Return one task, of its own cluster unless the lines name another. Raises InputError if it is not a task."""
    parts = {part: [line for line in lines if line["part"] == part] for part in _PARTS}
    class_names = list(dict.fromkeys(line["class"] for line in parts["support"]))
    if len(class_names) < 2:
        raise InputError(f"{where}: has support images of {len(class_names)} classes. A task needs at least two")
    if not parts["query"]:
        raise InputError(f"{where}: has no query images")
    for line in parts["query"]:
        if line["class"] not in class_names:
            raise InputError(f"{where}: class {line['class']} has query images, but no support images")
    image, times = Counter(line["image"] for line in lines).most_common(1)[0]
    if times > 1:
        raise InputError(f"{where}: image {image} is listed twice")
    clusters = {line.get("cluster") or "" for line in lines}
    if len(clusters) > 1:
        raise InputError(f"{where}: is in several clusters: {', '.join(sorted(map(repr, clusters)))}")
    arrays = [
        np.array(values, np.int64)
        for part in _PARTS
        for values in (
            [rows[line["image"]] for line in parts[part]],
            [class_names.index(line["class"]) for line in parts[part]],
        )
    ]
    return GivenTask(name, clusters.pop() or own_cluster, class_names, *arrays)
