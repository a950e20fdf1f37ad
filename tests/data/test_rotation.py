"""Rotated classes as an option of every data set, and the split without halves."""

import json

import numpy as np
import pytest
from PIL import Image

import preprocessing
from lowshot.core.errors import InputError
from lowshot.core.settings import build
from lowshot.data.datasets.content import Content
from lowshot.data.datasets.images import Images, read_images, write_images
from lowshot.data.datasets.rotation import rotated
from lowshot.data.lineage import Judged, judge, trained_on
from lowshot.data.protocol import Split, check_draws, make_split, read_draws, read_split, setup_of


def a_split():
    return make_split("toys", list("abcdefgh"), ["x", "y"], [0, 0, 0, 0, 1, 1, 1, None], seed=0)


def content(**changes):
    pixels = np.arange(16 * 9, dtype=np.uint8).reshape(16, 3, 3, 1)
    images = Images(np.repeat(np.arange(8), 2), np.tile([False, True], 8), pixels)
    split = a_split()
    fields = {"split": split, "draws": {1: [np.array([c]) for c in range(8)]}, "novel_classes": split.novel_classes}
    return Content(images, split.class_names, split.superclass_names, split.superclass_of, **(fields | changes))


def test_images_names_and_superclasses_are_turned_together():
    one = rotated(content())
    assert one.images.pixels.shape == (64, 3, 3, 1) and one.images.labels[16:18].tolist() == [8, 8]
    assert one.class_names[8:10] == ["a rot090", "b rot090"] and one.class_names[24] == "a rot270"
    assert one.superclass_names == ["x", "y", "x rot090", "y rot090", "x rot180", "y rot180", "x rot270", "y rot270"]
    assert one.superclass_of[8:16] == [2, 2, 2, 2, 3, 3, 3, None]
    assert np.array_equal(one.images.pixels[16, :, :, 0], np.rot90(one.images.pixels[0, :, :, 0]))
    assert np.array_equal(one.images.is_test, np.tile(content().images.is_test, 4))


def test_a_rotated_class_is_base_or_novel_with_the_class_itself():
    before, after = a_split(), rotated(content()).split
    for name in ("base_classes", "novel_classes", "base_classes_1", "novel_classes_2"):
        assert sorted(getattr(after, name)) == sorted(c + 8 * q for c in getattr(before, name) for q in range(4))
    assert after.origins == before.origins * 4
    with pytest.raises(InputError, match="has seen labelled images"):
        judge({"extractor": trained_on(before, before.novel_classes[:1])}, Judged(after, "test", after.novel_classes))


def test_shots_are_rows_of_the_turned_images():
    one = rotated(content())
    labels = one.images.labels[one.images.rows(test=False)]
    check_draws(one.draws, labels, np.arange(32), 1, "draws", "train")


def test_images_on_disk_are_turned_when_they_are_opened(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images = Images(np.zeros(1, int), np.zeros(1, bool), paths=np.array(["a.png"], object), root=tmp_path)
    write_images(
        tmp_path / "images.h5", rotated(Content(images, ["a"])).images, {"stage": "x", "config": {}, "inputs": {}}
    )
    read = read_images(tmp_path / "images.h5")
    for quarter in range(4):
        assert np.array_equal(np.asarray(read.open(quarter)), np.rot90(pixels, quarter))


@pytest.mark.parametrize(
    ("names", "label", "width", "cause"),
    [
        ([], -1, 2, "images with classes"),
        (["a"], -1, 2, "images with classes"),
        (["a"], 0, 3, "square images, not 2 x 3"),
    ],
)
def test_what_cannot_be_turned(names, label, width, cause):
    images = Images(np.full(1, label), np.zeros(1, bool), np.zeros((1, 2, width, 1), np.uint8))
    with pytest.raises(InputError, match=cause):
        rotated(Content(images, names))


def run(tmp_path, out="data", **settings):
    values = {"dataset": {"name": "glyphs", "max_per_class": 4, "max_shots": 2}, "out": tmp_path / out, **settings}
    return preprocessing.main(build(preprocessing.Config, values))


def test_the_whole_stage(tmp_path):
    plain, turned = run(tmp_path), run(tmp_path, "turned", rotations=True)
    one, four = read_split(plain / "split.json"), read_split(turned / "split.json")
    assert four.n_classes == 4 * one.n_classes and set(four.origins) == set(one.origins)
    assert [c for c in four.novel_classes if c < one.n_classes] == one.novel_classes
    images = read_images(turned / "images.h5")
    draws, labels = read_draws(turned / "draws.json"), images.labels[images.rows(test=False)]
    check_draws(draws, labels, np.arange(four.n_classes), 2, "draws", "train")


def test_whole_has_all_classes_in_the_test_setup(tmp_path):
    data = run(tmp_path)
    split, whole = (read_split(data / f"{name}.json") for name in ("split", "whole"))
    assert isinstance(whole, Split) and whole.digest != split.digest and whole.classes_digest == split.classes_digest
    base, novel = setup_of(whole, "test", data / "whole.json")
    assert base.tolist() == split.base_classes and novel.tolist() == split.novel_classes
    with pytest.raises(InputError, match=r"whole\.json: has no validation setup.*choose settings with split\.json"):
        setup_of(whole, "validation", data / "whole.json")
    assert json.loads((data / "whole.json").read_text())["novel_classes_1"] == []


def test_rotations_are_not_rotated_again():
    once = rotated(content())
    with pytest.raises(InputError, match="has rotated classes already"):
        rotated(once)
