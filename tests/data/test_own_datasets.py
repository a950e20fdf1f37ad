"""The user's own data sets in preprocessing.py: what they must return, their recipes, and the error messages."""

import json

import numpy as np
import pytest
from conftest import assert_refused, run_script

from lowshot.core.errors import InputError
from lowshot.data.datasets import own
from lowshot.data.datasets.content import Content, Source
from lowshot.data.datasets.images import Images, read_images
from lowshot.data.protocol import read_draws, read_split

SETS = '''
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowshot.core.settings import PositiveInt
from lowshot.data.datasets.content import Content, Source
from lowshot.data.datasets.images import Images
from lowshot.data.datasets.settings import Capped, DrawnSplit


@dataclass(kw_only=True)
class Stripes(DrawnSplit, Capped):
    """Stripes of ten widths."""

    n_images: PositiveInt = 8
    """Images of a width."""

    def read(self, source: Source) -> Content:
        labels = np.repeat(np.arange(10), self.n_images)
        lines = (np.arange(20) // (labels[:, None] + 1) % 2 * 255).astype(np.uint8)
        pixels = np.broadcast_to(lines[:, None, :, None], (len(labels), 20, 20, 1)) ^ np.uint8(source.seed)
        is_test = np.arange(len(labels)) % self.n_images < 2
        return Content(Images(labels, is_test, pixels), [f"width {c}" for c in range(10)])


@dataclass
class Listed:
    """Paths below the root, of six classes, two of them novel."""

    def read(self, source: Source) -> Content:
        paths = sorted(path.relative_to(source.root) for path in source.root.glob("*/*.png"))
        names = sorted({path.parts[0] for path in paths})
        labels = [names.index(path.parts[0]) for path in paths]
        images = Images(labels, [False] * len(labels), paths=paths, root=source.root)
        return Content(images, names, ["a", "b"], [0, 0, 0, 1, 1, None], novel_classes=[1, 4])


@dataclass
class Digested(Listed):
    def digests(self, source: Source) -> dict[str, str]:
        return {"version": (source.root / "version").read_text()}


@dataclass
class Pool:
    def read(self, source):
        return Content(Images(np.full(3, -1), np.zeros(3, bool), np.zeros((3, 4, 4, 3), np.uint8)), [])


@dataclass
class Unreadable:
    def load(self, source):
        ...


class Plain:
    def read(self, source):
        ...


@dataclass
class Wrong:
    label: int = 2

    def read(self, source):
        labels = np.array([0, 1, self.label])
        return Content(Images(labels, np.zeros(3, bool), np.zeros((3, 4, 4, 3), np.uint8)), ["a", "b"])
'''


@pytest.fixture
def sets(tmp_path):
    (tmp_path / "my_sets.py").write_text(SETS)
    return tmp_path / "my_sets.py"


@pytest.fixture
def photos(tmp_path):
    from PIL import Image

    for c in range(6):
        for i in range(21):
            path = tmp_path / "photos" / f"class{c}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (40 * c, 10 * i, 0)).save(path)
    return tmp_path / "photos"


def run(sets, name: str, *arguments: object, out: str = "out"):
    return run_script("preprocessing.py", "--dataset", f"my_sets.py:{name}", *arguments, "--out", out,
                      folder=sets.parent)  # fmt: skip


def test_settings_of_its_own_and_inherited(sets):
    options = ["--dataset.n_images", 10, "--dataset.novel_fraction", 0.5, "--dataset.max_shots", 4,
               "--dataset.max_per_class", 5, "--dataset.n_trials", 2]  # fmt: skip
    done = run(sets, "Stripes", *options)
    assert done.returncode == 0, done.stderr
    out = sets.parent / "out"
    images, split = read_images(out / "images.h5"), read_split(out / "split.json")
    assert np.bincount(images.labels * 2 + images.is_test).tolist() == [5, 2] * 10
    assert (split.dataset, split.class_names[3], len(split.novel_classes)) == ("Stripes", "width 3", 5)
    draws = read_draws(out / "draws.json")
    assert sorted(draws) == [1, 2] and {len(rows) for rows in draws[1]} == {4}
    stored = json.loads((out / "config.json").read_text())
    assert stored["config"]["dataset"] == {
        "name": "my_sets.py:Stripes", "n_trials": 2, "max_shots": 4, "draw_rule": "streams", "max_per_class": 5,
        "halves": "classes", "validation_share": None, "novel_fraction": 0.5, "novel_per_superclass": 0, "n_images": 10,
    }  # fmt: skip
    assert set(stored["inputs"]) == {"code of dataset"} and "root" not in stored["config"]
    assert "already exists" in run(sets, "Stripes", *options).stdout
    assert_refused(run(sets, "Stripes", *options, "--seed", 1), "setting seed was 0, now 1")
    assert_refused(run(sets, "Stripes"), "setting dataset.max_per_class was 5, now None")
    sets.write_text(SETS + "# changed\n")
    assert_refused(run(sets, "Stripes", *options), "input code of dataset has changed")


def test_without_settings_the_defaults_hold(sets, photos):
    done = run(sets, "Listed", "--root", photos)
    assert done.returncode == 0, done.stderr
    out = sets.parent / "out"
    images, split = read_images(out / "images.h5"), read_split(out / "split.json")
    assert images.paths[21] == "class1/00.png" and images.root == photos and not images.is_test.any()
    assert split.novel_classes == [1, 4] and split.superclass_of == [0, 0, 0, 1, 1, None]
    draws = read_draws(out / "draws.json")
    assert sorted(draws) == [1, 2, 3, 4, 5] and {len(rows) for rows in draws[1]} == {20}
    stored = json.loads((out / "config.json").read_text())
    expected = {"dataset": {"name": "my_sets.py:Listed"}, "rotations": False, "seed": 0, "root": str(photos)}
    assert stored["config"] == expected
    assert set(stored["inputs"]) == {"files", "content of files", "code of dataset"}


def test_what_is_read_decides_whether_it_is_there_already(sets, photos):
    (photos / "version").write_text("1")
    for name in ("Listed", "Digested"):
        assert run(sets, name, "--root", photos, out=name).returncode == 0
        assert "already exists" in run(sets, name, "--root", photos, out=name).stdout
    (photos / "more.txt").write_text("more")
    assert_refused(run(sets, "Listed", "--root", photos, out="Listed"), "input files has changed")
    assert "already exists" in run(sets, "Digested", "--root", photos, out="Digested").stdout
    (photos / "version").write_text("2")
    assert_refused(run(sets, "Digested", "--root", photos, out="Digested"), "input version has changed")


def test_unlabelled_images_have_no_split(sets):
    done = run(sets, "Pool")
    assert done.returncode == 0 and "3 unlabelled images" in done.stdout, done.stderr
    assert sorted(path.name for path in (sets.parent / "out").iterdir()) == ["SHA256SUMS", "config.json", "images.h5"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["None"], ["my_sets.py:None: my_sets.py defines no 'None'"]),
        (["Strips"], ["defines no 'Strips', did you mean 'Stripes'?"]),
        (["Unreadable"], ["my_sets.py:Unreadable: defines no read(source), which makes it a data set"]),
        (["Plain"], ["my_sets.py:Plain: is not a dataclass, whose fields would be the settings of a data set"]),
        (["Stripes", "--dataset.n_images", 0], ["--dataset.n_images: '0': must be an integer > 0"]),
        (["Stripes", "--dataset.n_image", 1], ["--dataset.n_image: no setting of my_sets.py:Stripes, did you mean"]),
        (["Listed", "--dataset.n_trials", 1], ["--dataset.n_trials: no setting of my_sets.py:Listed"]),
        (["Listed", "--root", "nowhere"], ["nowhere: no such folder"]),
        (["Wrong"], ["my_sets.py:Wrong: label 2 is outside 0..1, the range of class_names"]),
        (["Wrong", "--dataset.label", -1], ["my_sets.py:Wrong: label -1 is outside 0..1"]),
    ],
)
def test_refused_in_one_line(sets, arguments, words):
    assert_refused(run(sets, *arguments), *words)
    assert not (sets.parent / "out").exists()


def test_a_file_that_is_not_there(tmp_path):
    assert_refused(run(tmp_path / "my_sets.py", "Stripes"), "my_sets.py:Stripes: my_sets.py: no such file")


class Returns:
    """A data set that returns the content it was given."""

    def __init__(self, content: object) -> None:
        self.content = content

    def read(self, source: Source) -> object:
        return self.content


def images(n: int = 4, **parts: object) -> Images:
    made = {"labels": np.arange(n) % 2, "is_test": np.zeros(n, bool), "pixels": np.zeros((n, 3, 3, 1), np.uint8)}
    return Images(**made | parts)


def read(content: object) -> Content:
    return own.find(Returns(content), Source()).read()


TWO = ["a", "b"]
SPLIT_OF_THREE = {"class_names": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "read must return a Content with Images, not NoneType"),
        (Content([1], TWO), "read must return a Content with Images, not Content"),
        (Content(images(labels=np.array([0.5, 1, 0, 1])), TWO), r"expected labels int \(N,\) .*, found float64 \(4,\)"),
        (Content(images(labels=np.zeros((4, 1), int)), TWO), r"expected labels int \(N,\) .*, found int64 \(4, 1\)"),
        (
            Content(images(is_test=np.zeros(4)), TWO),
            r"expected .* and is_test bool \(N,\), found .* and float64 \(4,\)",
        ),
        (
            Content(images(is_test=np.zeros(3, bool)), TWO),
            "has 4 images, 4 labels and 3 test flags, expected equally many",
        ),
        (
            Content(images(pixels=np.zeros((4, 3, 3), np.uint8)), TWO),
            r"expected pixels uint8 .*, found uint8 \(4, 3, 3\)",
        ),
        (Content(images(pixels=np.zeros((4, 3, 3, 1))), TWO), "expected pixels uint8 .*, found float64"),
        (Content(images(pixels=None), TWO), "images must have either pixels or paths"),
        (Content(images(paths=np.array(list("abcd"))), TWO), "images must have either pixels or paths"),
        (
            Content(images(pixels=None, paths=list("abcd")), TWO),
            "images with paths need root, the folder .*, not None",
        ),
        (
            Content(images(pixels=None, paths=[1, 2, 3, 4], root="."), TWO),
            "paths must be str or Path, relative to root",
        ),
        (Content(images(pixels=None, paths=["/a"] * 4, root="."), TWO), "image path '/a' is outside the root folder"),
        (Content(images(0), TWO), "contains no images"),
        (Content(images(), "ab"), "class_names must be a list of distinct str, not str ab"),
        (Content(images(), ["a", "a"]), r"class_names must be a list of distinct str, not list \['a', 'a'\]"),
        (Content(images(), ["a", 1]), r"class_names must be a list of distinct str, not list \['a', 1\]"),
        (Content(images(), ["a"]), r"label 1 is outside 0..0, the range of class_names"),
        (Content(images(), ["a", "b", "c"]), r"class 2 \(c\) has no images"),
        (Content(images(), []), "images have labels, but class_names is empty"),
        (Content(images(), TWO, ["s"], [0, 1]), r"superclass_of must have None or 0\.\.0 for each of the 2 classes"),
        (Content(images(), TWO, ["s"], [0]), "superclass_of must have .* for each of the 2 classes"),
        (Content(images(), TWO, "s", [0, 0]), "superclass_names must be a list of str, not str s"),
        (Content(images(), TWO, novel_classes=[2]), r"novel_classes has a class outside 0\.\.1"),
        (Content(images(), TWO, split="mine"), "split must be a Split with the same class_names"),
    ],
)
def test_what_it_returns_is_checked(content, cause):
    with pytest.raises(InputError, match=rf"^\S*test_own_datasets:Returns: {cause}"):
        read(content)


def test_lists_become_arrays(tmp_path):
    content = read(Content(images(labels=[0, 1, 1, 0], is_test=[True, False, False, True]), TWO))
    assert content.images.labels.tolist() == [0, 1, 1, 0] and content.images.rows(test=True).tolist() == [0, 3]


def test_a_wrong_root_is_reported_at_once(tmp_path):
    with pytest.raises(InputError, match=r"a\.png: no such image"):
        read(Content(images(pixels=None, paths=["a.png"] * 4, root=tmp_path), TWO))


def test_digests_must_be_str():
    class Digested(Returns):
        def digests(self, source):
            return {"version": 1}

    with pytest.raises(InputError, match="Digested: digests must return a dict of str, not dict"):
        own.find(Digested(None), Source())


def test_draws_of_its_own_fit_the_images_that_are_kept(sets):
    sets.write_text(
        SETS
        + """

@dataclass(kw_only=True)
class Drawn(Stripes):
    def read(self, source):
        content = Stripes.read(self, source)
        n = self.n_images - 2
        content.draws = {1: [np.arange(n * c, n * c + 3) for c in range(10)]}
        return content
"""
    )
    done = run(sets, "Drawn")
    assert done.returncode == 0, done.stderr
    assert read_draws(sets.parent / "out" / "draws.json")[1][2].tolist() == [12, 13, 14]
    refused = run(sets, "Drawn", "--dataset.max_per_class", 4, out="other")
    assert_refused(refused, "draws of Drawn: trial 1, class 1: row 8 of the train part is of class 2")
