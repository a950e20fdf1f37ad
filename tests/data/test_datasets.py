"""Readers: official files are read as they are, damaged ones are reported, and no file can run code."""

import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused, save_image
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur, rotate

from lowshot.core.artifacts import read_recipe
from lowshot.core.files import write_json
from lowshot.data.datasets import cifar100, drawing, emnist, imagenet, omniglot
from lowshot.data.datasets.cifar100 import read_pickle
from lowshot.data.datasets.content import Source, cap, downloading, hold_out
from lowshot.data.datasets.emnist import read_idx
from lowshot.data.datasets.images import Images, open_image, read_images, write_images
from lowshot.data.datasets.settings import Cifar100, Emnist, ImageNet, Omniglot

REAL = Path(os.environ.get("LOWSHOT_DATA", "../shared/data"))
RECIPE = {"stage": "preprocessing", "config": {}, "inputs": {}}


# --- helpers of all readers


def test_hold_out_by_number_and_by_share():
    labels = np.repeat([0, 1], [5, 10])
    assert np.bincount(labels[hold_out(labels, 3, 0, ["a", "b"])]).tolist() == [3, 3]
    assert np.bincount(labels[hold_out(labels, 0.2, 0, ["a", "b"])]).tolist() == [1, 2]
    refused(lambda: hold_out(labels, 5, 0, ["a", "b"]), r"none for training in these classes: a \(5 of 5\)\. Add")
    refused(lambda: hold_out(labels, 10, 0, ["a", "b"]), r"classes: a \(10 of 5\), b \(10 of 10\)\. Add")


def test_hold_out_of_a_class_does_not_depend_on_the_others():
    both, one = hold_out(np.repeat([0, 1], 10), 4, 0, ["a", "b"]), hold_out(np.repeat([0], 10), 4, 0, ["a"])
    assert np.array_equal(both[:10], one)


def test_cap_keeps_the_order_and_both_parts():
    labels, is_test = np.tile(np.repeat([0, 1], 5), 2), np.repeat([False, True], 10)
    capped = cap(Images(labels, is_test, np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)), 3, seed=0)
    assert np.bincount(capped.labels * 2 + capped.is_test).tolist() == [3, 3, 3, 3]
    assert (np.diff(capped.pixels.ravel().astype(int)) > 0).all()


def test_cap_above_the_number_of_images_changes_nothing():
    images = Images(np.array([0, 0, 1]), np.array([False, True, False]), paths=np.array(["a", "b", "c"], object))
    assert cap(images, 5, seed=0).paths.tolist() == ["a", "b", "c"]


def test_a_failed_download_says_what_to_do(tmp_path):
    def download(error):
        with downloading("omniglot", tmp_path):
            raise error

    refused(
        lambda: download(OSError("no network")),
        "omniglot: download failed .no network.. Download the files yourself and use --root",
    )
    refused(lambda: download(RuntimeError("wrong md5")), "wrong md5")


# --- the images file


def test_images_file_round_trip(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    write_images(tmp_path / "images.h5", Images(np.array([0, 1, 1]), np.array([False, False, True]), pixels), RECIPE)
    images = read_images(tmp_path / "images.h5")
    assert np.array_equal(images.pixels, pixels)
    assert (images.n_channels, images.size) == (1, 4)
    assert images.rows(test=True).tolist() == [2]
    assert read_recipe(tmp_path / "images.h5") == RECIPE


def test_images_file_with_paths(tmp_path):
    paths = np.array(["ä/1.jpg", "b/2.jpg"], object)
    images = Images(np.array([0, 1]), np.array([False, True]), paths=paths, root=tmp_path)
    write_images(tmp_path / "images.h5", images, RECIPE)
    again = read_images(tmp_path / "images.h5")
    assert again.paths.tolist() == ["ä/1.jpg", "b/2.jpg"]
    assert again.root == tmp_path


@pytest.mark.parametrize("name", ["../x.jpg", "/x.jpg"])
def test_image_paths_that_lead_out_of_the_root(tmp_path, name):
    images = Images(np.array([0]), np.array([False]), paths=np.array([name], object), root=tmp_path)
    write_images(tmp_path / "images.h5", images, RECIPE)
    refused(lambda: read_images(tmp_path / "images.h5"), "is outside the root folder")


def test_truncated_images_file(tmp_path):
    write_images(
        tmp_path / "images.h5", Images(np.zeros(9), np.zeros(9, bool), np.zeros((9, 8, 8, 1), np.uint8)), RECIPE
    )
    whole = (tmp_path / "images.h5").read_bytes()
    (tmp_path / "images.h5").write_bytes(whole[: len(whole) // 2])
    refused(lambda: read_images(tmp_path / "images.h5"), "images.h5: not a readable HDF5 file")


def test_open_image_names_the_file(tmp_path):
    refused(lambda: open_image(tmp_path / "x.png"), r"x\.png: no such image")
    (tmp_path / "x.png").write_bytes(b"not an image")
    refused(lambda: open_image(tmp_path / "x.png"), r"x\.png: corrupt image")


# --- glyphs


def test_glyphs_are_144_classes_of_12_scripts():
    assert [len(set(chars)) for chars, _ in drawing.SCRIPTS.values()] == [12] * 12
    assert len({char for chars, _ in drawing.SCRIPTS.values() for char in chars}) == 144


def test_every_font_has_every_character_it_is_used_for():
    for chars, fonts in drawing.SCRIPTS.values():
        for font in fonts:
            absent = drawing.master("\uffff", font)
            assert not any(np.array_equal(drawing.master(char, font), absent) for char in chars), font


def _alike(masters: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the correlations (N, M) of blurred images (N, 1, 64, 64) and (M, 1, 64, 64)."""
    small = [gaussian_blur(F.avg_pool2d(x, 2), 7, 1.0).flatten(1) for x in (masters, others)]
    small = [F.normalize(x - x.mean(dim=1, keepdim=True), dim=1) for x in small]
    return small[0] @ small[1].T


def test_no_two_glyphs_look_almost_the_same():
    chars = [char for chars, _ in drawing.SCRIPTS.values() for char in chars]
    masters = torch.from_numpy(np.stack([drawing.master(char, "DejaVuSans") for char in chars]))[:, None]
    closest = torch.zeros(len(chars), len(chars))
    for angle in (-15, 0, 15):
        for shift in ((0, 0), (4, 0), (0, 4), (-4, 0), (0, -4)):
            closest = torch.maximum(closest, _alike(torch.roll(rotate(masters, angle), shift, (2, 3)), masters))
    closest.fill_diagonal_(0)
    assert closest.max() < 0.9


def test_a_glyph_does_not_depend_on_how_many_are_drawn():
    few, many = (drawing.draw_class(3, "greek", "Ω", n) for n in (2, 5))
    assert few.shape == (2, 28, 28, 1)
    assert few.dtype == np.uint8
    assert np.array_equal(few, many[:2])
    assert len(np.unique(many.reshape(5, -1), axis=0)) == 5


def test_glyphs_have_bright_ink_on_a_dark_ground():
    drawn = drawing.draw_class(0, "latin", "A", 20)[..., 0]
    assert drawn[:, 8:20, 8:20].mean() > 1.5 * drawn[:, [0, -1]].mean()
    assert (drawn.max(axis=(1, 2)) > 90).all()


# --- omniglot


@pytest.fixture
def omniglot_root(tmp_path):
    for part, alphabets in (("background", ["Greek", "Latin"]), ("evaluation", ["Tengwar"])):
        for alphabet in alphabets:
            for character in ("character01", "character02"):
                for number in range(4):
                    paper = np.full((105, 105), 255, np.uint8)
                    paper[20:60, 40:50] = 0
                    path = tmp_path / "omniglot-py" / f"images_{part}" / alphabet / character / f"{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(paper).convert("1").save(path)
    return tmp_path


def test_omniglot(omniglot_root):
    content = omniglot.find(Omniglot(test_per_class=1), Source(omniglot_root)).read()
    assert content.class_names[1::2] == ["Greek/character02", "Latin/character02", "Tengwar/character02"]
    assert content.superclass_names == ["Greek", "Latin", "Tengwar"]
    assert content.superclass_of == [0, 0, 1, 1, 2, 2]
    assert content.novel_classes == [4, 5]
    assert content.images.pixels.shape == (24, 28, 28, 1)
    assert content.images.pixels[0, 10, 11, 0] > 200
    assert content.images.pixels[0, 25, 2, 0] == 0
    assert content.images.is_test.sum() == 6


def test_omniglot_from_its_own_folder_and_at_its_own_size(omniglot_root):
    found = omniglot.find(Omniglot(test_per_class=1, image_size=105), Source(omniglot_root / "omniglot-py"))
    assert found.digests == omniglot.find(Omniglot(), Source(omniglot_root)).digests
    assert found.read().images.pixels.shape == (24, 105, 105, 1)


@pytest.mark.parametrize("resampling", ["nearest", "antialiased"])
def test_drawings_made_smaller_by_nearest_neighbour_stay_1_bit(omniglot_root, resampling):
    images = omniglot.find(Omniglot(test_per_class=1, resampling=resampling), Source(omniglot_root)).read().images
    assert (set(np.unique(images.pixels)) == {0, 255}) == (resampling == "nearest")
    assert images.resampling == resampling


def test_omniglot_that_is_not_there(tmp_path):
    refused(lambda: omniglot.find(Omniglot(), Source(tmp_path)), "images_background: no such folder")


def test_omniglot_with_an_empty_character(omniglot_root):
    (omniglot_root / "omniglot-py" / "images_evaluation" / "Tengwar" / "character03").mkdir()
    refused(lambda: omniglot.find(Omniglot(), Source(omniglot_root)), "Tengwar/character03: contains no images")


# --- cifar100


def save_cifar(root: Path, **changes) -> Path:
    """Save a tiny data set in the official form, with keys in bytes, as newer Pythons write them."""
    base = root / "cifar-100-python"
    base.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    meta = {"fine_label_names": ["apple", "bear", "cat"], "coarse_label_names": ["animals", "food"]}
    parts = {}
    for name, n in (("train", 6), ("test", 3)):
        fine = [i % 3 for i in range(n)]
        data = rng.integers(0, 256, (n, 3072), np.uint8)
        parts[name] = {b"data": data, b"fine_labels": fine, b"coarse_labels": [int(f == 0) for f in fine]}
    for name, content in ({"meta": meta} | parts | changes).items():
        (base / name).write_bytes(pickle.dumps(content, protocol=2))
    return base


def test_cifar100(tmp_path):
    base = save_cifar(tmp_path)
    content = cifar100.find(Cifar100(), Source(tmp_path)).read()
    assert content.class_names == ["apple", "bear", "cat"]
    assert [content.superclass_names[s] for s in content.superclass_of] == ["food", "animals", "animals"]
    assert content.images.pixels.shape == (9, 32, 32, 3)
    assert content.images.is_test.tolist() == [False] * 6 + [True] * 3
    flat = read_pickle(base / "train")["data"][0]
    assert content.images.pixels[0, 0, 1].tolist() == [flat[1], flat[1024 + 1], flat[2048 + 1]]
    assert cifar100.find(Cifar100(), Source(base)).digests == cifar100.find(Cifar100(), Source(tmp_path)).digests


class Malicious:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_cannot_run_code(tmp_path, protocol):
    proof = tmp_path / "proof"
    (tmp_path / "evil").write_bytes(pickle.dumps({"data": Malicious(os.mkdir, str(proof))}, protocol))
    refused(lambda: read_pickle(tmp_path / "evil"), r"evil: refused, because the pickle refers to (posix|nt)\.mkdir")
    assert not proof.exists()


@pytest.mark.parametrize("function", [eval, getattr, __import__, np.load, np.fromfile, bytearray])
def test_a_pickle_can_name_nothing_but_arrays(tmp_path, function):
    (tmp_path / "evil").write_bytes(pickle.dumps(Malicious(function, "x")))
    refused(lambda: read_pickle(tmp_path / "evil"), "refused, because the pickle refers to")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_plain_pickles(tmp_path, protocol):
    content = {b"data": np.arange(5, dtype=np.uint8), "names": ["a", b"b"], "n": 3}
    (tmp_path / "plain").write_bytes(pickle.dumps(content, protocol))
    again = read_pickle(tmp_path / "plain")
    assert again["data"].tolist() == [0, 1, 2, 3, 4]
    assert (again["names"], again["n"]) == (["a", b"b"], 3)


def test_damaged_pickles(tmp_path):
    whole = pickle.dumps({"data": np.zeros(100)})
    for content, cause in (
        (whole[:50], "damaged pickle"),
        (b"", "damaged pickle"),
        (pickle.dumps([1]), "expected a dict, found a list"),
    ):
        (tmp_path / "x").write_bytes(content)
        refused(lambda: read_pickle(tmp_path / "x"), cause)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"meta": {"fine_label_names": ["a"]}}, "meta: the list coarse_label_names is missing"),
        ({"test": {b"data": np.zeros((1, 3072), np.uint8)}}, "test: not a CIFAR-100 file"),
        ({"test": {b"data": np.zeros((1, 9)), b"fine_labels": [0], b"coarse_labels": [0]}}, "expected data uint8"),
        (
            {"test": {b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [7], b"coarse_labels": [0]}},
            "outside 0..2",
        ),
        ({"test": {b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [0], b"coarse_labels": [0]}}, "two super"),
    ],
)
def test_damaged_cifar100(tmp_path, changes, cause):
    save_cifar(tmp_path, **changes)
    refused(lambda: cifar100.find(Cifar100(), Source(tmp_path)).read(), cause)


def test_cifar100_that_is_not_there(tmp_path):
    refused(lambda: cifar100.find(Cifar100(), Source(tmp_path)), "cifar-100-python: no such folder")


# --- emnist


def save_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def save_emnist(root: Path, parts=("train", "test"), split="bymerge", first_label=0) -> np.ndarray:
    root.mkdir(exist_ok=True)
    lines = [f"{first_label + i} {ord(char)}" for i, char in enumerate("7Ab")]
    (root / f"emnist-{split}-mapping.txt").write_text("\n".join(lines) + "\n")
    upright = np.random.default_rng(0).integers(0, 256, (15, 28, 28), np.uint8)
    for part in parts:
        save_idx(root / f"emnist-{split}-{part}-images-idx3-ubyte.gz", upright.transpose(0, 2, 1))
        save_idx(root / f"emnist-{split}-{part}-labels-idx1-ubyte.gz", np.arange(15) % 3 + first_label)
    return upright


def test_emnist_at_another_size(tmp_path):
    upright = save_emnist(tmp_path)
    images = emnist.find(Emnist(image_size=32), Source(tmp_path)).read().images
    assert images.pixels.shape == (30, 32, 32, 1)
    by_hand = Image.fromarray(upright[0]).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(images.pixels[0, :, :, 0], np.asarray(by_hand))


@pytest.mark.parametrize("below", ["", "EMNIST/raw"])
def test_emnist(tmp_path, below):
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    upright = save_emnist(tmp_path / below)
    content = emnist.find(Emnist(), Source(tmp_path)).read()
    assert content.class_names == ["7", "A", "b"]
    assert [content.superclass_names[s] for s in content.superclass_of] == ["digits", "uppercase", "lowercase"]
    assert np.array_equal(content.images.pixels[:15, ..., 0], upright)
    assert content.images.is_test.tolist() == [False] * 15 + [True] * 15


def test_emnist_split_that_counts_from_one(tmp_path):
    save_emnist(tmp_path, split="letters", first_label=1)
    assert emnist.find(Emnist(), Source(tmp_path)).read().images.labels[:3].tolist() == [0, 1, 2]


def test_emnist_with_one_part_holds_images_out(tmp_path):
    save_emnist(tmp_path, parts=("test",))
    images = emnist.find(Emnist(test_per_class=2), Source(tmp_path)).read().images
    assert np.bincount(images.labels[images.is_test]).tolist() == [2, 2, 2]
    assert emnist.find(Emnist(), Source(tmp_path)).read().images.is_test.sum() == 3


def test_emnist_files_that_are_not_there(tmp_path):
    refused(lambda: emnist.find(Emnist(), Source(tmp_path)), "contains no emnist-<split>-mapping.txt")
    save_emnist(tmp_path, parts=())
    refused(lambda: emnist.find(Emnist(), Source(tmp_path)), "contains neither emnist-bymerge-train")
    save_emnist(tmp_path)
    (tmp_path / "emnist-bymerge-train-labels-idx1-ubyte.gz").unlink()
    refused(lambda: emnist.find(Emnist(), Source(tmp_path)), r"train-labels-idx1-ubyte\.gz: no such file")


def test_several_emnist_splits(tmp_path):
    for split in ("letters", "digits"):
        save_emnist(tmp_path, split=split)
    refused(lambda: emnist.find(Emnist(), Source(tmp_path)), "several splits, none of them bymerge")


def test_emnist_test_part_and_held_out_images(tmp_path):
    save_emnist(tmp_path)
    refused(emnist.find(Emnist(test_per_class=2), Source(tmp_path)).read, "have their own test images")


def test_emnist_labels_that_have_no_name(tmp_path):
    save_emnist(tmp_path)
    save_idx(tmp_path / "emnist-bymerge-test-labels-idx1-ubyte.gz", np.full(15, 9))
    refused(emnist.find(Emnist(), Source(tmp_path)).read, "label 9 is not in the mapping file")
    save_idx(tmp_path / "emnist-bymerge-test-labels-idx1-ubyte.gz", np.zeros(4))
    refused(emnist.find(Emnist(), Source(tmp_path)).read, "15 images, but .* has 4 labels")
    (tmp_path / "emnist-bymerge-mapping.txt").write_text("zero 48")
    refused(emnist.find(Emnist(), Source(tmp_path)).read, "expected lines of a label")


def test_damaged_idx_files(tmp_path):
    path = tmp_path / "x.gz"
    save_idx(path, np.random.default_rng(0).integers(0, 256, (5, 28, 28)))
    whole = path.read_bytes()
    inside = gzip.decompress(whole)
    for content, cause in (
        (b"plain", "damaged gzip"),
        (whole[: len(whole) // 2], "damaged gzip"),
        (gzip.compress(b"\0\0\x0d\3" + inside[4:]), "not an IDX file of bytes in 3"),
        (gzip.compress(inside[:-1]), "3919 bytes of content, but the header announces 3920"),
        (gzip.compress(inside[:9]), "the header announces"),
    ):
        path.write_bytes(content)
        refused(lambda: read_idx(path, 3), cause)
    refused(lambda: read_idx(tmp_path / "none.gz", 3), "no such file")


@pytest.mark.skipif(not (REAL / "emnist").is_dir(), reason="no real EMNIST files (LOWSHOT_DATA)")
def test_real_emnist():
    content = emnist.find(Emnist(), Source(REAL / "emnist")).read()
    assert "".join(content.class_names) == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
    assert len(content.images) == 116_323
    mean = content.images.pixels[content.images.labels == content.class_names.index("T")].mean(axis=0)[..., 0]
    assert mean[4:9, 8:20].mean() > 2 * mean[8:20, 4:9].mean()  # an upright T has its bar at the top, not at the left


# --- imagenet


@pytest.fixture
def imagenet_root(tmp_path):
    """Four classes in an unsorted published order, with three train images and one val image each."""
    wnids = ["n04", "n01", "n03", "n02"]
    for wnid in wnids:
        for i in (2, 1, 3):
            save_image(tmp_path / "train" / wnid / f"{wnid}_{i}.JPEG")
        save_image(tmp_path / "val" / wnid / "ILSVRC2012_val_1.JPEG")
    lists = {"base_classes_1": [0], "base_classes_2": [1], "novel_classes_1": [2], "novel_classes_2": [3]}
    (tmp_path / "protocol").mkdir()
    write_json(tmp_path / "protocol" / "label_idx.json", {"label_names": wnids, **lists})
    for trial in range(1, 4):
        rows = [[3 * c + trial % 3, 3 * c + (trial + 1) % 3] for c in range(4)]
        write_json(tmp_path / "protocol" / f"splitfile_{trial}.json", rows)
    return tmp_path


def find_imagenet(root: Path, **options):
    options = {"n_trials": 3, "max_shots": 2} | options
    return imagenet.find(ImageNet(protocol=root / "protocol", **options), Source(root))


def test_imagenet_rows_follow_the_published_order(imagenet_root):
    content = find_imagenet(imagenet_root).read()
    assert content.class_names == ["n04", "n01", "n03", "n02"]
    assert content.images.paths[:4].tolist() == [
        "train/n04/n04_1.JPEG", "train/n04/n04_2.JPEG", "train/n04/n04_3.JPEG", "train/n01/n01_1.JPEG",
    ]  # fmt: skip
    assert content.images.paths[12:14].tolist() == [
        "val/n04/ILSVRC2012_val_1.JPEG",
        "val/n01/ILSVRC2012_val_1.JPEG",
    ]
    assert content.images.is_test.tolist() == [False] * 12 + [True] * 4
    assert content.split.novel_classes_2 == [3]
    assert [rows.tolist() for rows in content.draws[2]] == [[2, 0], [5, 3], [8, 6], [11, 9]]


def test_imagenet_takes_the_first_trials_and_shots(imagenet_root):
    draws = find_imagenet(imagenet_root, n_trials=1, max_shots=1).read().draws
    assert [[rows.tolist() for rows in classes] for classes in draws.values()] == [[[1], [4], [7], [10]]]


def test_imagenet_refusals(imagenet_root):
    refused(lambda: find_imagenet(imagenet_root, n_trials=5), r"splitfile_4\.json: no such file")
    refused(find_imagenet(imagenet_root, max_shots=5).read, "trial 1, class 0: has draws up to n = 2, but")
    save_image(imagenet_root / "train" / "n04" / "n04_0.JPEG")
    refused(find_imagenet(imagenet_root).read, "is of class")
    (imagenet_root / "val" / "n01" / "ILSVRC2012_val_1.JPEG").unlink()
    refused(lambda: find_imagenet(imagenet_root), "val/n01: contains no images")
    (imagenet_root / "val" / "n01").rmdir()
    refused(lambda: find_imagenet(imagenet_root), "the protocol has this class")


@pytest.mark.skipif(not (REAL / "imagenet_lowshot").is_dir(), reason="no published protocol files (LOWSHOT_DATA)")
def test_the_published_draws_are_refused_for_other_images():
    published, labels = ImageNet(protocol=REAL / "imagenet_lowshot"), np.repeat(np.arange(1000), 1000)
    refused(lambda: imagenet.published_draws(published, labels, Path("train")), "is (past|of class)")
