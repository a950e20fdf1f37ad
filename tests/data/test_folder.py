"""The user's own photos: parts, novel classes by choice, small classes, and files that cannot be read."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_refused, refused, run_script, save_image, settings
from PIL import Image

from lowshot.data.datasets import folder
from lowshot.data.datasets.content import Source
from lowshot.data.datasets.folder import find_folder
from lowshot.data.datasets.images import open_image, read_images
from lowshot.data.datasets.settings import Folder
from lowshot.data.protocol import read_draws, read_split
from preprocessing import Config, main


def save_classes(root: Path, **sizes: int) -> Path:
    for c, (name, size) in enumerate(sizes.items()):
        for i in range(size):
            save_image(root / name / f"{i}.png", (20 * c, 9 * i, 0))
    return root


def config_of(root: Path, out: str = "out", **dataset) -> Config:
    dataset = {"name": "folder", "max_shots": 2, "n_trials": 2} | dataset
    return settings(Config, dataset=dataset, root=root, out=root.parent / out)


def found(root: Path, **options):
    return folder.find(Folder(**options), Source(root)).read()


# --- class folders


def test_folder_of_classes(tmp_path):
    for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        for i in range(5):
            save_image(tmp_path / name / f"{i}.png", colour)
    (tmp_path / "red" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    content = folder.find(Folder(), Source(tmp_path)).read()
    assert content.class_names == ["blue", "red"]
    assert content.superclass_of == [None, None]
    assert content.images.paths[:2].tolist() == ["blue/0.png", "blue/1.png"]
    assert content.images.root == tmp_path.resolve()
    assert np.bincount(content.images.labels[content.images.is_test]).tolist() == [1, 1]


def test_folder_of_superclasses_stored_as_pixels(tmp_path):
    for name in ("animal/cat", "animal/dog", "thing/cat"):
        for i in range(3):
            save_image(tmp_path / name / f"{i}.JPG", (0, 200, 0), size=(40 + i, 30))
    content = folder.find(Folder(image_size=16), Source(tmp_path)).read()
    assert content.class_names == ["animal/cat", "animal/dog", "thing/cat"]
    assert (content.superclass_names, content.superclass_of) == (["animal", "thing"], [0, 0, 1])
    assert content.images.pixels.shape == (9, 16, 16, 3)
    assert abs(content.images.pixels.astype(int) - [0, 200, 0]).max() < 6


@pytest.mark.parametrize("image_size", [None, 16])
def test_folder_with_a_corrupt_image(tmp_path, image_size):
    for i in range(5):
        save_image(tmp_path / "a" / f"{i}.png", size=(60, 60))
    whole = (tmp_path / "a" / "3.png").read_bytes()
    (tmp_path / "a" / "3.png").write_bytes(whole[: len(whole) // 2])
    refused(folder.find(Folder(image_size=image_size), Source(tmp_path)).read, r"a/3\.png: corrupt image")


def test_folders_that_cannot_be_read(tmp_path):
    refused(lambda: folder.find(Folder(), Source(tmp_path / "none")), "none: no such folder")
    refused(lambda: folder.find(Folder(), Source(tmp_path)), "contains no class folders")
    (tmp_path / "a").mkdir()
    refused(lambda: folder.find(Folder(), Source(tmp_path)), "no images in a")
    save_image(tmp_path / "a" / "x.png")
    save_image(tmp_path / "b" / "c" / "x.png")
    refused(lambda: folder.find(Folder(), Source(tmp_path)), "Put all class folders on one level")


@pytest.mark.parametrize("link", ["a/link.png", "link"])
def test_folder_with_a_link_that_leads_out(tmp_path, link):
    save_image(tmp_path / "outside" / "x.png")
    save_image(tmp_path / "root" / "a" / "x.png")
    target = tmp_path / "outside" / ("x.png" if link.endswith("png") else "")
    (tmp_path / "root" / link).symlink_to(target)
    refused(lambda: folder.find(Folder(), Source(tmp_path / "root")), "a symbolic link to a file outside")


def test_folder_digest_follows_names_and_sizes(tmp_path):
    save_image(tmp_path / "a" / "1.png")
    save_image(tmp_path / "b" / "1.png")
    before = folder.find(Folder(), Source(tmp_path)).digests
    assert folder.find(Folder(), Source(tmp_path)).digests == before
    save_image(tmp_path / "b" / "2.png")
    assert folder.find(Folder(), Source(tmp_path)).digests != before


# --- parts


@pytest.fixture
def parts(tmp_path):
    """Four classes in train (4 images), val (1) and test (2), named as some tools do."""
    for part, size in (("Train", 4), ("valid", 1), ("test", 2)):
        save_classes(tmp_path / "photos" / part, **dict.fromkeys(("bus", "rose", "train", "cat"), size))
    return tmp_path / "photos"


def test_parts_are_no_superclasses(parts):
    both = find_folder(parts)
    assert both.class_names == ["bus", "cat", "rose", "train"]
    files, labels = both.part(test=True)
    assert {file.parent.parent.name for file in files} == {"test"} and labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    files, labels = both.part(test=False)
    assert np.bincount(labels).tolist() == [5] * 4
    assert all(file.parent.name == both.class_names[c] for file, c in zip(files, labels))
    assert both.notice == "the images in Train/ and valid/ are for training, those in test/ for test"


def test_preprocessing_of_parts(parts, capsys):
    out = main(config_of(parts))
    images, split = read_images(out / "images.h5"), read_split(out / "split.json")
    assert (split.dataset, split.superclass_names) == ("photos", [])
    assert split.origins[0] == "folder:photos/bus"
    assert all(path.startswith("test/") == is_test for path, is_test in zip(images.paths, images.is_test))
    printed = capsys.readouterr().out
    assert "folder: the images in Train/ and valid/ are for training, those in test/ for test" in printed
    refused(
        lambda: main(config_of(parts, "other", test_per_class=1)), "test_per_class 1: would be ignored: the images in"
    )


def test_parts_with_superclasses_of_which_val_is_for_test(tmp_path):
    for part in ("training", "val"):
        save_classes(tmp_path / part, **{"animal/cat": 3, "animal/dog": 3, "thing/cup": 3})
    content = found(tmp_path)
    assert (content.class_names, content.superclass_of) == (["animal/cat", "animal/dog", "thing/cup"], [0, 0, 1])
    assert content.images.is_test.sum() == 9


def test_classes_that_a_part_lacks(tmp_path):
    save_classes(tmp_path / "train", bus=2, cat=2, dog=2)
    save_classes(tmp_path / "test", bus=2, rose=2, tree=2)
    refused(lambda: find_folder(tmp_path), "no training images in rose, tree; no test images in cat, dog. Add images")
    (tmp_path / "val").mkdir()
    refused(lambda: find_folder(tmp_path), "val: contains no class folders")


def test_folders_with_the_names_of_parts_beside_others(tmp_path):
    save_classes(tmp_path, **{"train/bus": 2, "val/bus": 2, "extra/bus": 2})
    both = find_folder(tmp_path)
    assert both.class_names == ["extra/bus", "train/bus", "val/bus"] and both.is_test is None
    assert (
        "train, val are no parts for training and test here, because there are others beside them (extra)"
        in both.notice
    )
    assert find_folder(tmp_path / "train").notice is None


# --- novel classes by choice

SIZES = {"a": 10, "b": 3, "c": 10, "d": 4, "e": 10, "f": 3}


@pytest.mark.parametrize("given", [["d", "b", "f"], "file"])
def test_novel_classes_by_name(tmp_path, given):
    root = save_classes(tmp_path / "photos", **SIZES)
    (tmp_path / "novel.txt").write_text("b\nd\n\nf \n")
    given = [str(tmp_path / "novel.txt")] if given == "file" else given
    config = config_of(root, novel_classes=given)
    split = read_split(main(config) / "split.json")
    assert (split.novel_classes, split.base_classes) == ([1, 3, 5], [0, 2, 4])
    main(config_of(root, novel_classes=["b", "d", "f"]))
    refused(lambda: main(config_of(root, novel_classes=["b", "d"])), "input novel_classes has changed")


def test_novel_classes_by_size(tmp_path):
    split = read_split(main(config_of(save_classes(tmp_path / "photos", **SIZES), base_min=4)) / "split.json")
    assert split.novel_classes == [1, 3, 5], "a fifth, and at least one image, is held out for test"


def test_choices_of_novel_classes_that_cannot_be(tmp_path):
    root = save_classes(tmp_path / "photos", **SIZES, rose=9)
    for options, told in (
        ({"novel_classes": ["a", "ross", "x"]}, "has no classes of these names: 'ross', did you mean 'rose'?, 'x'$"),
        ({"novel_classes": ["a"]}, "novel_classes: makes 1 of 7 classes novel, but two novel and two base"),
        ({"base_min": 9}, "base_min 9: makes 7 of 7 .* Classes have 2 to 8 training images"),
        ({"base_min": 2}, "base_min 2: makes 0 of 7"),
        (
            {"base_min": 4, "novel_fraction": 0.5},
            "novel_fraction: would be ignored, because --dataset.base_min",
        ),
        ({"base_min": 4, "novel_classes": ["a", "b"]}, "base_min: would be ignored, because --dataset.novel_classes"),
        ({"novel_classes": ["a", "b"], "novel_per_superclass": 1}, "novel_per_superclass: would be ignored"),
    ):
        refused(lambda options=options: main(config_of(root, **options)), told.replace("?,", r"\?,"))
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_the_line_takes_names_and_files(tmp_path):
    root, out = save_classes(tmp_path / "photos", **{"1": 4, "no": 4, "c d": 4, "e": 4}), tmp_path / "out"
    line = ["preprocessing.py", "--dataset", "folder", "--root", root, "--out", out, "--dataset.max_shots", 2]
    done = run_script(*line, "--dataset.novel_classes", "1", "c d")
    assert (done.returncode, done.stderr) == (0, "")
    assert read_split(out / "split.json").novel_classes == [0, 1]
    assert "the test setup has only 1 novel classes and only 1 test images of a class" in done.stdout
    assert_refused(run_script(*line, "--dataset.novel_classes", "names.txt"), "no classes of these names: 'names.txt'")


# --- small classes


def test_shots_are_demanded_of_novel_classes_only(tmp_path):
    root = save_classes(tmp_path / "photos", a=10, b=3, c=10, d=3)
    draws = read_draws(main(config_of(root, novel_classes=["a", "c"], max_shots=5)) / "draws.json")
    assert [[len(rows) for rows in classes] for classes in draws.values()] == [[5, 2, 5, 2]] * 2
    told = r"max_shots 5: these novel classes .* images: b \(2\), d \(2\)\. Use --dataset.max_shots 2, or choose larger"
    refused(lambda: main(config_of(root, "other", novel_classes=["b", "d"], max_shots=5)), told)


def test_all_small_and_empty_classes_are_named(tmp_path):
    root = save_classes(tmp_path / "photos", a=1, b=3, c=1, d=3)
    refused(lambda: main(config_of(root)), r"none for training in these classes: a \(1 of 1\), c \(1 of 1\)\.")
    for name in ("x", "y"):
        (root / name).mkdir()
    (root / "y" / "1.CR2").write_bytes(b"")
    refused(lambda: main(config_of(root)), r"no images in x, y\. Add .*1 files .*ignored, .*Convert \.CR2 to JPEG")


def test_few_classes(tmp_path):
    root = save_classes(tmp_path / "photos", a=5, b=5, c=5)
    refused(lambda: main(config_of(root)), "split of photos: 3 classes are too few.*predict.py")


# --- files that cannot be read


@pytest.mark.parametrize("image_size", [None, 8])
@pytest.mark.parametrize("divided", [False, True])
def test_corrupt_images_are_left_out_on_request(tmp_path, capsys, image_size, divided):
    root = tmp_path / "photos"
    for part in ("train", "test") if divided else (".",):
        save_classes(root / part, a=5, b=5, c=5, d=5)
    first = root / ("train" if divided else ".")
    for name in ("a/0.png", "c/3.png"):
        (first / name).write_bytes(b"no image")
    refused(
        lambda: main(config_of(root, image_size=image_size)),
        "2 corrupt images: .* or leave corrupt images out with --dataset.skip",
    )
    images = read_images(main(config_of(root, image_size=image_size, skip_corrupt=True)) / "images.h5")
    printed = capsys.readouterr().out
    assert re.search(r"2 corrupt images are left out: (train/)?a/0\.png, (train/)?c/3\.png\n", printed)
    assert np.bincount(images.labels).tolist() == ([9, 10, 9, 10] if divided else [4, 5, 4, 5])
    assert np.bincount(images.labels[images.is_test]).tolist() == ([5] * 4 if divided else [1] * 4)
    if image_size:
        shades = images.pixels[:, 0, 0, 0] // 20
        assert np.array_equal(shades, images.labels), "pixels stay with their labels"


# --- images of more than 8 bits


@pytest.mark.parametrize(
    ("values", "kind", "file", "shown"),
    [
        ([0, 2048, 4000], np.uint16, "x.png", [0, 128, 249]),  # 12 bits in 16
        ([0, 200, 255], np.uint16, "x.png", [0, 200, 255]),
        ([0, 5000, 9000], np.uint16, "x.png", [0, 19, 35]),  # dark
        ([0, 257, 65535], np.uint16, "x.png", [0, 1, 255]),
        ([0, 2048, 4095], np.uint16, "x.tif", [0, 128, 255]),
        ([0, 512, 1023], np.uint16, "x.tif", [0, 128, 255]),
        ([0, 8192, 16000], np.uint16, "x.tif", [0, 128, 249]),
        ([0, 100, 200], np.int32, "x.tif", [0, 100, 200]),
        ([-5, 2**17, 2**18 - 1], np.int32, "x.tif", [0, 128, 255]),
        ([0, 0.5, 0.9], np.float32, "x.tif", [0, 128, 230]),
        ([-1, 100, 200], np.float32, "x.tif", [0, 128, 255]),
        ([0, 0, 0], np.uint16, "x.tif", [0, 0, 0]),
    ],
)
def test_the_white_of_deep_images(tmp_path, values, kind, file, shown):
    Image.fromarray(np.array([values], kind)).save(tmp_path / file)
    assert np.asarray(open_image(tmp_path / file))[0, :, 0].tolist() == shown


def test_the_white_that_a_tiff_declares(tmp_path):
    image = Image.fromarray(np.array([[0, 100, 900]], np.uint16))
    for declared, brightest in ((4095, 56), (3000, 56), (65535, 4), (100, 224)):
        image.save(tmp_path / "x.tif", tiffinfo={281: declared})
        assert np.asarray(open_image(tmp_path / "x.tif"))[0, 2, 0] == brightest


def test_a_folder_with_the_name_of_a_data_set(tmp_path):
    """Otherwise a report would put published figures of this data set beside the results."""
    root = save_classes(tmp_path / "cifar100", a=4, b=4, c=4, d=4)
    split = read_split(main(config_of(root)) / "split.json")
    assert (split.dataset, split.origins[0]) == ("cifar100 (folder)", "folder:cifar100/a")
