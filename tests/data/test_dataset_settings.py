"""The settings of each data set, and older names of settings in recipes."""

import pytest
from conftest import assert_refused, run_script, settings

from lowshot.core.artifacts import recipe
from lowshot.core.parts import parts_of
from lowshot.data.datasets.registry import READERS
from lowshot.data.datasets.settings import DATASETS, DrawnSplit, Folder, Glyphs, ImageNet, Shots, Yfcc100m, part_of
from preprocessing import Config

SHOTS = {"n_trials", "max_shots", "draw_rule"}
CAPPED = SHOTS | {"max_per_class"}
HALVED = CAPPED | {"halves", "validation_share"}
DRAWN = HALVED | {"novel_fraction", "novel_per_superclass"}
RESIZED = {"image_size", "resampling"}
BREEDS = dict.fromkeys(("living17", "nonliving26", "entity13", "entity30"), DRAWN)
SETTINGS = {
    "glyphs": DRAWN,
    "omniglot": HALVED | RESIZED | {"test_per_class"},
    "cifar100": DRAWN,
    "emnist": DRAWN | RESIZED | {"test_per_class"},
    "folder": DRAWN | RESIZED | {"test_per_class", "novel_classes", "base_min", "skip_corrupt"},
    "features": SHOTS | {"novel_classes"},
    "imagenet": SHOTS | {"protocol"},
    "cifar_fs": CAPPED,
    "fc100": CAPPED,
    "omniglot_vinyals": CAPPED | RESIZED,
    "mini_imagenet": CAPPED,
    "tiered_imagenet": CAPPED,
    "emnist_fs": CAPPED | RESIZED,
    "omniglot_fs": CAPPED | RESIZED,
    "cifar100_fs": CAPPED,
    **BREEDS,
    "yfcc100m": {"start", "count"},
}


def test_each_data_set_has_the_settings_that_are_read():
    assert {name: set(parts_of(one)) - {"name"} for name, one in DATASETS.classes.items()} == SETTINGS
    assert set(DATASETS.classes.values()) == set(READERS)


def test_parts_that_a_data_set_lacks_are_the_defaults():
    folder = Folder(max_shots=3, novel_fraction=0.5)
    assert part_of(folder, Shots) is folder and part_of(folder, DrawnSplit) is folder
    assert part_of(ImageNet(protocol="x", max_shots=3), DrawnSplit) == DrawnSplit()
    assert part_of(Yfcc100m(count=1), Shots) == Shots()


def test_what_must_be_given(tmp_path):
    for arguments, words in [
        ([], ("--dataset: is required: Data set to read (glyphs, omniglot", "or your own as file.py:Class")),
        (["--dataset", "imagenet"], ("--dataset.protocol: is required: Folder with",)),
        (["--dataset", "yfcc100m"], ("--dataset.count: is required: Number of images to read (an integer > 0)",)),
        (["--dataset", "omniglott"], ("no data set is called 'omniglott', did you mean 'omniglot'?",)),
    ]:
        assert_refused(run_script("preprocessing.py", *arguments, "--out", tmp_path / "out"), *words)


@pytest.mark.parametrize("name", ["novel_fraction", "n_trials", "draw_rule", "image_size", "protocol", "count"])
def test_older_names_on_the_line(tmp_path, name):
    refused = run_script("preprocessing.py", "--dataset", "folder", f"--{name}=1", "--out", tmp_path / "out")
    assert_refused(refused, f"--{name}: is called dataset.{name} now")


# In revision d41a11c a recipe had the settings of all data sets, whether they were read or not.
OLDER = {"seed": 0, "novel_fraction": 0.4, "novel_per_superclass": 0, "halves": "classes", "n_trials": 5,
         "max_shots": 20, "test_per_class": None, "image_size": None, "max_per_class": None}  # fmt: skip
INPUTS = {"images": "some digest"}


def older(dataset: str, **changes: object) -> dict:
    """A recipe as that revision stored it. Three settings are only in it if they are not the defaults."""
    return {"stage": "preprocessing", "config": {"dataset": dataset, **OLDER, **changes}, "inputs": INPUTS}


def today(dataset: dict, root: str | None = None, **changes: object):
    config = settings(Config, dataset=dataset, out="out", **changes)
    return recipe("preprocessing", config, INPUTS, **({} if root is None else {"root": root}))


KNOWN = [
    (older("glyphs"), today({"name": "glyphs"})),
    (older("folder", root="/photos"), today({"name": "folder"}, root="/photos")),
    (older("folder", image_size=16, test_per_class=3),
     today({"name": "folder", "image_size": 16, "test_per_class": 3})),
    (older("cifar100", novel_per_superclass=1, halves="superclasses", seed=2),
     today({"name": "cifar100", "novel_per_superclass": 1, "halves": "superclasses"}, seed=2)),
    (older("cifar100", validation_share=0.1), today({"name": "cifar100", "validation_share": 0.1})),
    (older("omniglot", draw_rule="douze2018", max_shots=10),
     today({"name": "omniglot", "draw_rule": "douze2018", "max_shots": 10})),
    (older("imagenet", root="/images"), today({"name": "imagenet", "protocol": "published"}, root="/images")),
    (older("cifar_fs", max_shots=3), today({"name": "cifar_fs", "max_shots": 3})),
    (older("emnist_fs", max_per_class=50, seed=1), today({"name": "emnist_fs", "max_per_class": 50}, seed=1)),
    (older("entity13", root="/images"), today({"name": "entity13"}, root="/images")),
    (older("yfcc100m", root="/yfcc", start=3, count=9),
     today({"name": "yfcc100m", "start": 3, "count": 9}, root="/yfcc")),
]  # fmt: skip


@pytest.mark.parametrize(("stored", "made_from"), KNOWN, ids=lambda one: str(one["config"]["dataset"]))
def test_what_an_older_revision_made_is_there_already(stored, made_from):
    assert made_from.difference(stored) is None
    assert made_from.difference(dict(made_from)) is None


def test_other_settings_than_those_of_an_older_revision_are_named():
    stored = older("folder", image_size=16)
    for changes, named in [
        ({"image_size": 8}, "setting dataset.image_size was 16, now 8"),
        ({"image_size": 16, "max_shots": 3}, "setting dataset.max_shots was 20, now 3"),
        ({"image_size": 16, "draw_rule": "douze2018"}, "setting dataset.draw_rule was streams, now douze2018"),
        ({"image_size": 16, "validation_share": 0.1}, "setting dataset.validation_share was None, now 0.1"),
    ]:
        assert today({"name": "folder", **changes}).difference(stored) == named
    assert today({"name": "glyphs"}).difference(stored) == "setting dataset.name was folder, now glyphs"
    assert today({"name": "folder"}, root="/b").difference(older("folder", root="/a")) == "setting root was /a, now /b"


def test_the_name_of_a_data_set_of_several(tmp_path):
    assert Glyphs() == settings(Config, dataset="glyphs", out="x").dataset
    for name in ("living17", "fc100", "cifar100_fs"):
        assert settings(Config, dataset=name, out="x").dataset.name == name
