"""Photos in class folders, to learn from or to judge a classifier on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lowshot.core.errors import InputError
from lowshot.core.sealing import sha256
from lowshot.data.datasets.content import image_digests
from lowshot.data.datasets.folder import find_folder, ignored, rows_decodable
from lowshot.data.lineage import Lineage
from lowshot.data.protocol import origins


@dataclass(frozen=True)
class Labelled:
    """Photos in class folders: `files` (N), `labels` (N,) int64, positions in `names`, and their SHA-256 `photos`."""

    root: Path
    names: list[str]
    files: list[Path]
    labels: np.ndarray
    photos: list[str]

    @property
    def lineage(self) -> Lineage:
        """What a classifier has seen that learns from them."""
        return Lineage(frozenset(origins(f"folder:{self.root.name}", self.names)))

    @property
    def paths(self) -> list[str]:
        """Their names relative to the root folder."""
        return [file.relative_to(self.root).as_posix() for file in self.files]

    @property
    def digests(self) -> dict[str, str]:
        """Their digests, as inputs of a recipe."""
        return image_digests(self.root, self.files)

    def of_rows(self, rows: Sequence[int]) -> "Labelled":
        """Return some of them."""
        files, photos = ([part[row] for row in rows] for part in (self.files, self.photos))
        return replace(self, files=files, labels=self.labels[list(rows)], photos=photos)

    def without(self, known: Mapping[str, str]) -> "Labelled":
        """Return those that are not `known` (SHA-256 -> class), with the names of their classes only.

        Raises InputError if none is left.
        """
        rows = [row for row, photo in enumerate(self.photos) if photo not in known]
        if not rows:
            raise InputError(f"{self.root}: the classifier knows all of these photos. Add others")
        if n_known := len(self.files) - len(rows):
            print(f"predict: {n_known} photos are known already and left out")
        named = [
            (file, self.names[c], known.get(photo)) for file, c, photo in zip(self.files, self.labels, self.photos)
        ]
        if moved := [f"{file} ({was})" for file, name, was in named if was not in (None, name)]:
            print(f"predict: known as photos of other classes, which they stay: {', '.join(moved[:4])}")
        classes, labels = np.unique(self.labels[rows], return_inverse=True)
        return replace(self.of_rows(rows), names=[self.names[c] for c in classes], labels=labels)


def read_labelled(images: Path, test: bool = False, skip_corrupt: bool = False) -> Labelled:
    """Find photos in class folders, in their training or test part if there are parts.

    A photo that is twice in its class is taken once. With `skip_corrupt`, those that cannot be decoded are left out.
    """
    root, found = images.resolve(), find_folder(images.resolve())
    for line in (found.notice, ignored(images)):
        if line:
            print(f"predict: {line}")
    files, labels = found.part(test and found.is_test is not None)
    labelled = Labelled(root, found.class_names, files, labels, [sha256(file) for file in files])
    first = {}
    for row, key in enumerate(zip(labels.tolist(), labelled.photos)):
        first.setdefault(key, row)
    if n_twice := len(files) - len(first):
        print(f"predict: {n_twice} photos are copies of others of their class and left out")
    labelled = labelled.of_rows(list(first.values()))
    if skip_corrupt:
        labelled = labelled.of_rows(rows_decodable(labelled.files, "predict"))
        if empty := [labelled.names[c] for c in np.setdiff1d(labels, labelled.labels)]:
            raise InputError(f"{images}: no photo of {', '.join(empty)} can be decoded. Add some, or remove the class")
    in_several = {photo for photo, n in Counter(labelled.photos).items() if n > 1}
    if twice := [file for file, photo in zip(labelled.files, labelled.photos) if photo in in_several]:
        print(f"predict: the same photo is in several classes ({', '.join(map(str, twice[:4]))}). Leave it in one")
    return labelled
