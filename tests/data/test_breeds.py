"""BREEDS: the published classes of the published hierarchy, and the rule on a small hierarchy worked out by hand."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script, settings
from PIL import Image

import preprocessing
from lowshot.core.errors import InputError
from lowshot.data.datasets import breeds
from lowshot.data.datasets.breeds import BENCHMARKS, Benchmark, choose_classes
from lowshot.data.datasets.content import Source
from lowshot.data.datasets.images import read_images
from lowshot.data.datasets.settings import Breeds
from lowshot.data.protocol import read_split

PUBLISHED = Path(os.environ.get("LOWSHOT_DATA", "../shared/data")) / "breeds"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published hierarchy (LOWSHOT_DATA)")
SMALL = Benchmark(level=2, ancestor="living", n_superclasses=2, n_classes=2)

# There are a short and a long path from the root to `cats`, and the longest one sets its level. `rocks` is not below
# `living`, `worms` has too few classes, and `birds` is at level 2 as well.
EDGES = """
n00001740 living
n00001740 rocks
living cats
living birds
living worms
birds owl
birds duck
birds hen
worms earthworm
cats lynx
cats lion
rocks granite
rocks basalt
"""


def write_hierarchy(folder: Path, edges: str = EDGES, classes: str = "owl duck hen earthworm lynx lion granite basalt"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "class_hierarchy.txt").write_text(edges.strip() + "\n")
    listed = [[number, wnid, f"{wnid}, a thing"] for number, wnid in enumerate(classes.split())]
    (folder / "dataset_class_info.json").write_text(json.dumps(listed))
    nodes = sorted(set(edges.split()))
    (folder / "node_names.txt").write_text("".join(f"{node}\t{node}, by another name\n" for node in nodes))
    return folder


def write_images(root: Path, wnids: list[str]) -> None:
    for part, n in (("train", 3), ("val", 1)):
        for wnid in wnids:
            (root / part / wnid).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (6, 5), (40 * i, 9, 9)).save(root / part / wnid / f"{wnid}_{i}.JPEG")


@pytest.fixture
def small_root(tmp_path, monkeypatch):
    """The small hierarchy as the benchmark living17, with images of its four classes and of an unused one."""
    monkeypatch.setitem(BENCHMARKS, "living17", SMALL)
    write_hierarchy(tmp_path / "breeds")
    write_images(tmp_path, ["owl", "duck", "hen", "lynx", "lion", "granite"])
    return tmp_path


def find(root: Path):
    return breeds.find(Breeds(name="living17"), Source(root))


@needs_published
@pytest.mark.parametrize(
    ("name", "n_superclasses", "n_classes", "expected"),
    [  # SHA-256 of the lines `superclass class` that robustness 1.2.1 gives for split=None
        ("living17", 17, 4, "37d4781709da1ec6"),
        ("nonliving26", 26, 4, "bb0e50374d99ec39"),
        ("entity13", 13, 20, "fed8f844812edf1f"),
        ("entity30", 30, 8, "384316c3c632cfc3"),
    ],
)
def test_the_published_benchmarks(name, n_superclasses, n_classes, expected):
    chosen = choose_classes(PUBLISHED, BENCHMARKS[name])
    assert len(chosen) == n_superclasses and {len(classes) for classes in chosen.values()} == {n_classes}
    text = "\n".join(f"{node} {wnid}" for node, classes in chosen.items() for wnid in classes)
    assert hashlib.sha256(text.encode()).hexdigest().startswith(expected)


def test_the_rule_by_hand(tmp_path):
    folder = write_hierarchy(tmp_path)
    rng = np.random.RandomState(2)  # what the published rule draws from: one stream for all superclasses, sorted
    drawn = [rng.permutation(sorted(names))[:2].tolist() for names in (["owl", "duck", "hen"], ["lynx", "lion"])]
    assert choose_classes(folder, SMALL) == dict(zip(["birds", "cats"], drawn))
    assert list(choose_classes(folder, Benchmark(2, "birds", 1, 3))) == ["birds"]
    assert list(choose_classes(folder, Benchmark(1, "n00001740", 2, 2))) == ["living", "rocks"]
    assert set(choose_classes(folder, Benchmark(2, "living", 3, 1))) == {"birds", "cats", "worms"}


def test_the_longest_path_sets_the_level(tmp_path):
    folder = write_hierarchy(tmp_path, EDGES + "living mammals\nmammals cats\n")
    assert set(choose_classes(folder, Benchmark(3, "living", 1, 2))) == {"cats"}


def test_what_is_read(small_root):
    content = find(small_root).read()
    assert content.class_names == [
        c for classes in choose_classes(small_root / "breeds", SMALL).values() for c in classes
    ]
    assert content.superclass_names == ["birds", "cats"]
    assert content.superclass_of == [0, 0, 1, 1]
    images = content.images
    assert images.labels[~images.is_test].tolist() == np.repeat(np.arange(4), 3).tolist()
    assert images.labels[images.is_test].tolist() == [0, 1, 2, 3]
    assert [images.paths[0], images.paths[-1]] == [
        f"train/{content.class_names[0]}/{content.class_names[0]}_0.JPEG",
        f"val/{content.class_names[3]}/{content.class_names[3]}_0.JPEG",
    ]


def test_the_digests_follow_images_and_hierarchy(small_root):
    before = find(small_root).digests
    (small_root / "train" / "lion" / "lion_0.JPEG").unlink()
    assert [name for name, value in find(small_root).digests.items() if value != before[name]] == ["train"]
    (small_root / "breeds" / "node_names.txt").write_text("x\ty\n")
    changed = [name for name, value in find(small_root).digests.items() if value != before[name]]
    assert changed == ["node_names.txt", "train"]


@pytest.mark.parametrize("name", ["class_hierarchy.txt", "dataset_class_info.json", "node_names.txt"])
def test_a_file_that_is_not_there(small_root, name):
    (small_root / "breeds" / name).unlink()
    with pytest.raises(InputError, match=rf"breeds/{name}: no such file"):
        find(small_root)


def test_images_that_are_not_there(small_root):
    for file in (small_root / "val" / "lion").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="val/lion: contains no images"):
        find(small_root)
    shutil.rmtree(small_root / "train" / "lion")
    with pytest.raises(InputError, match=r"train/lion: no such folder \(living17 has this class\)"):
        find(small_root)


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("class_hierarchy.txt", EDGES.strip() + "\nbirds n0999\n", "n0999 is not a class in dataset_class_info.json"),
        ("class_hierarchy.txt", EDGES.strip() + "\nhen birds\n", "birds is its own ancestor"),
        ("class_hierarchy.txt", EDGES.strip() + "\nbirds\n", "line 14 does not have two parts"),
        ("class_hierarchy.txt", EDGES.replace("living", "alive").strip() + "\n", "0 superclasses .* have at least 2"),
        ("class_hierarchy.txt", EDGES.strip() + "\ncats duck\ncats owl\ncats hen\n", "hen belongs to two superclasses"),
        ("class_hierarchy.txt", "birds owl\nbirds \xff\n", "cannot be read"),
        ("dataset_class_info.json", "[[0, 1]]", "not a list of"),
        ("dataset_class_info.json", "7", "not a list of"),
        ("node_names.txt", "birds\tbird\n", "cats has no name"),
        ("node_names.txt", "birds bird\n", "line 1 does not have two parts"),
    ],
)
def test_damaged_files(small_root, name, content, cause):
    path = small_root / "breeds" / name
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(InputError, match=rf"{path.name}: .*{cause}") as error:
        find(small_root).read()
    assert "\n" not in str(error.value)


def test_preprocessing_refuses(tmp_path):
    config = {"dataset": "entity13", "root": tmp_path, "out": tmp_path / "data"}
    with pytest.raises(InputError, match=r"breeds: no such folder"):
        preprocessing.main(settings(preprocessing.Config, **config))
    assert list(tmp_path.iterdir()) == []


@needs_published
def test_preprocessing_of_living17(tmp_path):
    """The script on the published hierarchy, with three train images and one val image per class."""
    root, out = tmp_path / "imagenet", tmp_path / "data"
    chosen = choose_classes(PUBLISHED, BENCHMARKS["living17"])
    write_images(root, [wnid for classes in chosen.values() for wnid in classes])
    arguments = ["--dataset", "living17", "--root", root, "--out", out, "--dataset.max_shots", 3]
    shutil.copytree(PUBLISHED, root / "breeds")
    result = run_script("preprocessing.py", *arguments)
    assert result.returncode == 0, result.stderr
    split, images = read_split(out / "split.json"), read_images(out / "images.h5")
    assert split.superclass_of == np.repeat(np.arange(17), 4).tolist()
    assert split.superclass_names[:2] == ["salamander", "turtle"]
    assert split.class_names[:4] == ["n01631663", "n01632777", "n01630670", "n01632458"]
    assert np.bincount(images.labels[images.is_test]).tolist() == [1] * 68
    assert images.root == root.resolve()
    assert json.loads((out / "config.json").read_text())["config"]["root"] == str(root.resolve())
