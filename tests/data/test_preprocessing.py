"""The preprocessing stage: its output, existing outputs, and error messages."""

import json
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import assert_refused, run_script, settings
from PIL import Image

import preprocessing
from lowshot.core.errors import InputError
from lowshot.data.datasets import drawing
from lowshot.data.datasets.images import read_images
from lowshot.data.protocol import check_draws, read_draws, read_split
from preprocessing import Config, main


@pytest.fixture
def root(tmp_path):
    """Two superclasses of four classes, five images each."""
    for c in range(8):
        for i in range(5):
            path = tmp_path / "images" / f"group{c // 4}" / f"class{c}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (30 * c, 50 * i, 0)).save(path)
    return tmp_path / "images"


def config_of(root: Path, out: str = "out", seed: int = 0, overwrite: bool = False, **dataset) -> Config:
    dataset = {"name": "folder", "image_size": 8, "max_shots": 4} | dataset
    return settings(Config, dataset=dataset, root=root, out=root.parent / out, seed=seed, overwrite=overwrite)


def command_line(*arguments: str) -> subprocess.CompletedProcess:
    return run_script("preprocessing.py", *arguments)


def test_what_is_written(root):
    config = config_of(root, novel_per_superclass=2, n_trials=2)
    assert main(config) == config.out
    assert sorted(p.name for p in config.out.iterdir()) == [
        "SHA256SUMS",
        "config.json",
        "draws.json",
        "images.h5",
        "split.json",
        "whole.json",
    ]
    images, split = read_images(config.out / "images.h5"), read_split(config.out / "split.json")
    draws = read_draws(config.out / "draws.json")
    assert images.pixels.shape == (40, 8, 8, 3)
    assert len(images.rows(test=True)) == 8
    assert [len(split.base_classes), len(split.novel_classes_1), len(split.novel_classes_2)] == [4, 2, 2]
    assert sorted(draws) == [1, 2]
    train_labels = images.labels[images.rows(test=False)]
    check_draws(draws, train_labels, np.arange(8), 4, config.out / "draws.json", config.out / "images.h5")
    stored = json.loads((config.out / "config.json").read_text())
    assert stored["schema"] == preprocessing.SCHEMA
    assert stored["config"]["dataset"]["novel_per_superclass"] == 2
    assert "root" not in stored["config"]
    assert set(stored["inputs"]) == {"images", "content of files"}


def test_the_same_again_does_nothing(root, capsys):
    main(config_of(root))
    before = {p: p.stat().st_mtime_ns for p in config_of(root).out.iterdir()}
    main(config_of(root))
    assert "already exists" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in config_of(root).out.iterdir()} == before


def test_other_settings_or_images_are_named(root):
    main(config_of(root))
    with pytest.raises(InputError, match="setting seed was 0, now 1"):
        main(config_of(root, seed=1))
    (root / "group0" / "class0" / "0.png").unlink()
    with pytest.raises(InputError, match="input images has changed"):
        main(config_of(root, max_shots=3))
    main(config_of(root, max_shots=3, overwrite=True))
    assert len(read_images(config_of(root).out / "images.h5")) == 39


def test_two_runs_write_the_same(root):
    first, second = (main(config_of(root, out=name)) for name in ("one", "two"))
    for name in ("split.json", "draws.json", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert np.array_equal(read_images(first / "images.h5").pixels, read_images(second / "images.h5").pixels)


def test_max_per_class(root):
    images = read_images(main(config_of(root, max_per_class=2, max_shots=2)) / "images.h5")
    assert np.bincount(images.labels[images.rows(test=False)]).tolist() == [2] * 8


def test_a_validation_part_leaves_the_test_images_out(root):
    """Half of the four training images of a class replace its test image. The classes stay, the name changes."""
    whole, part = (main(config_of(root, out=str(share), max_shots=2, validation_share=share))
                   for share in (None, 0.5))  # fmt: skip
    images, kept = read_images(whole / "images.h5"), read_images(part / "images.h5")
    assert (
        np.bincount(kept.labels[kept.is_test]).tolist() == np.bincount(kept.labels[~kept.is_test]).tolist() == [2] * 8
    )
    assert np.array_equal(kept.pixels, images.pixels[~images.is_test])
    split, other = read_split(whole / "split.json"), read_split(part / "split.json")
    assert (split.dataset, other.dataset) == ("images", "images (validation part)") and split.digest != other.digest
    assert split.novel_classes_2 == other.novel_classes_2 and split.base_classes_1 == other.base_classes_1
    draws = json.loads((part / "draws.json").read_text())
    assert draws != json.loads((whole / "draws.json").read_text())


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (
            {"max_shots": 5},
            r"max_shots 5: these novel classes .*: group\d/class\d \(4\), .*\(4\)\. Use --dataset.max_shots 4, or",
        ),
        ({"test_per_class": 5}, r"none for training in these classes: group0/class0 \(5 of 5\), .*class7 \(5 of 5\)\."),
        ({"validation_share": 0.9}, r"leaves none for training in these classes: group0/class0 \(4 of 4\), "),
        ({"novel_per_superclass": 4}, "novel_per_superclass 4"),
        ({"novel_fraction": 1.0}, "0 base and 8 novel classes cannot be divided"),
        ({"protocol": "x"}, r"dataset.protocol: no setting of folder \(it is one of imagenet\)"),
        ({"name": "cifar100"}, r"dataset.image_size: no setting of cifar100 \(it is one of omniglot, emnist, folder, "),
    ],
)
def test_refusals_leave_nothing_behind(root, options, cause):
    with pytest.raises(InputError, match=cause):
        main(config_of(root, **options))
    assert [p.name for p in root.parent.iterdir()] == ["images"]


def test_glyphs_need_no_files(root):
    with pytest.raises(InputError, match=r"--root .*images: glyphs are rendered, not read from files"):
        main(settings(Config, dataset="glyphs", root=root, out=root.parent / "out"))


def test_glyphs(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "SCRIPTS", {name: drawing.SCRIPTS[name] for name in ("hebrew", "nko")})
    out = main(settings(Config, out=tmp_path / "out",
                        dataset={"name": "glyphs", "halves": "superclasses", "novel_per_superclass": 5}))  # fmt: skip
    images, split = read_images(out / "images.h5"), read_split(out / "split.json")
    assert images.pixels.shape == (24 * 70, 28, 28, 1)
    assert np.bincount(images.labels[images.is_test]).tolist() == [20] * 24
    assert split.superclass_names == ["hebrew", "nko"]
    assert len(split.novel_classes_1) == len(split.novel_classes_2) == 5


def test_command_line(root):
    out = root.parent / "out"
    done = command_line("--dataset", "folder", "--root", str(root), "--out", str(out), "--dataset.max_shots", "4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "8 classes, 32 train and 8 test images" in done.stdout
    assert "test setup: 3 base and 2 novel classes; validation setup: 2 base and 1 novel classes" in done.stdout
    assert "ignored" not in done.stdout
    assert read_images(out / "images.h5").paths is not None


def test_ignored_files_are_counted(root, capsys):
    for name in ("class0/phone.heic", "class1/notes.txt", ".hidden.txt"):
        (root / "group0" / name).write_bytes(b"")
    main(config_of(root))
    assert (
        f"folder: 2 files in {root} are ignored, because they are not images (.heic, .txt)" in capsys.readouterr().out
    )
    for path in (root / "group0" / "class0").glob("*.png"):
        path.unlink()
    told = r"images: no images in group0/class0\. Add images \(.*\.jpeg \.jpg .*2 files .* Convert \.heic to"
    with pytest.raises(InputError, match=told):
        main(config_of(root, out="other"))


def test_a_missing_root_is_named(root, monkeypatch):
    monkeypatch.chdir(root)
    with pytest.raises(InputError, match="--root: is required"):
        main(settings(Config, dataset="folder", out=root.parent / "out"))
    with pytest.raises(InputError, match=r"images/absent: no such folder$"):
        main(config_of(root / "absent"))


def test_command_line_with_a_corrupt_image(root):
    out = root.parent / "out"
    (root / "group1" / "class7" / "2.png").write_bytes(b"no image")
    done = command_line("--dataset", "folder", "--root", str(root), "--out", str(out), "--dataset.max_shots", "4")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "2.png: corrupt image" in done.stderr
    assert [p.name for p in root.parent.iterdir()] == ["images"]


def test_a_root_without_the_data_set_says_where_files_are_described(tmp_path):
    done = run_script("preprocessing.py", "--dataset", "omniglot", "--root", tmp_path, "--out", tmp_path / "out")
    assert_refused(done, "omniglot-py/images_background: no such folder", "preprocessing.py --help lists the files")


# --- features without images ---


@pytest.fixture
def train(tmp_path):
    """A feature file of six classes with ten rows each, which records no recipe."""
    rng, path = np.random.default_rng(0), tmp_path / "train.h5"
    with h5py.File(path, "w") as file:
        file["all_feats"], file["all_labels"] = rng.random((60, 4), np.float32), np.repeat(np.arange(6), 10)
        file["count"] = [60]
    return path


def of_features(root, **dataset):
    dataset = {"name": "features", "max_shots": 10, "n_trials": 2} | dataset
    return settings(Config, dataset=dataset, root=root, out=root.parent / "out")


def test_the_classes_of_features(train):
    out = main(of_features(train, novel_classes=[5, 1]))
    assert sorted(p.name for p in out.iterdir()) == [
        "SHA256SUMS",
        "config.json",
        "draws.json",
        "split.json",
        "whole.json",
    ]
    split, draws = read_split(out / "split.json"), read_draws(out / "draws.json")
    assert (split.novel_classes, split.base_classes, split.class_names) == ([1, 5], [0, 2, 3, 4], list("012345"))
    check_draws(draws, np.repeat(np.arange(6), 10), np.arange(6), 10, out / "draws.json", train)
    stored = json.loads((out / "config.json").read_text())
    assert set(stored["inputs"]) == {"features"}
    words = preprocessing.next_step(of_features(train))
    assert words[:5] == ["low_shot.py", "--train", train, "--test", train.with_name("test.h5")]


def test_novel_classes_of_features_are_drawn(train):
    split = read_split(main(of_features(train)) / "split.json")
    assert len(split.novel_classes) == 2


def test_features_that_cannot_be_divided(train):
    for dataset, root, words in (
        ({"novel_classes": [1, 6]}, train, r"--dataset.novel_classes 6: .*train.h5 has the classes 0 to 5"),
        ({"max_shots": 11}, train, "--dataset.max_shots 11: these novel classes have fewer training images: "),
        ({}, None, "--root: is required"),
        ({}, train.with_name("tarin.h5"), "tarin.h5: no such file or folder, did you mean 'train.h5'"),
    ):
        config = replace(of_features(train, **dataset), root=root)
        with pytest.raises(InputError, match=words):
            main(config)
        assert not config.out.exists()


# --- images that are not what their names say ---


def test_all_corrupt_images_are_named(root):
    for c in (0, 5):
        (root / f"group{c // 4}" / f"class{c}" / "2.png").write_bytes(b"no image")
    for size in (8, None):
        told = r"2 corrupt images: .*class0/2\.png: corrupt image .*class5/2\.png: corrupt image .*remove them"
        with pytest.raises(InputError, match=told):
            main(config_of(root, image_size=size))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify image file"),
        (None, "12000 x 12000 pixels are more than 120 million"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_only_images_of_known_formats_and_sizes_are_decoded(root, content, cause):
    """Pillow would start Ghostscript for the first, and decode 430 MB from the few kilobytes of the second."""
    path = root / "group0" / "class0" / "2.png"
    if content is None:
        with warnings.catch_warnings(action="ignore"):
            Image.new("1", (12_000, 12_000)).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"2\.png: corrupt image .*{cause}"):
        main(config_of(root))


def test_images_of_the_same_size_in_bytes_are_other_images(root):
    config = config_of(root)
    main(config)
    image = next(root.rglob("*.png"))
    content = image.read_bytes()
    image.write_bytes(content[:-1] + b"x")
    with pytest.raises(InputError, match="input content of files has changed"):
        main(config)
    image.write_bytes(content)
    (config.out / "SHA256SUMS").unlink()
    where = config.out / "config.json"
    recipe = json.loads(where.read_text())
    del recipe["inputs"]["content of files"], recipe["checksum"]
    where.write_text(json.dumps(recipe))
    assert main(config) == config.out, "older recipes do not have this digest"
