"""Unlabelled images in zip files: their indices and paths, images that cannot be decoded, features, resuming."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import run_script, settings, unfinished
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import preprocessing
import save_features
import train_extractor
from lowshot.core.errors import CorruptImage, InputError
from lowshot.core.files import digest
from lowshot.data.datasets.images import Images, open_image, read_images, write_images
from lowshot.data.datasets.yfcc100m import N_IMAGES, member
from lowshot.data.features import read_features

START, COUNT = 12_345_994, 10  # six members of 12/345.zip and four of 12/346.zip
CORRUPT, CUT_OFF, MISSING, BLACK = 12_345_996, 12_345_999, 12_346_001, 12_346_002
BLANK = [i - START for i in (CORRUPT, CUT_OFF, MISSING, BLACK)]


def shade(i: int) -> int:
    return 40 + 10 * (i % 10)


def encoded(i: int) -> bytes:
    """Encode an image of coloured stripes; its mean identifies the image."""
    file = io.BytesIO()
    stripes = 30 * np.sin(np.arange(16)[:, None, None] + np.arange(20)[:, None] * np.array([-1, 0, 1]))
    pixels = np.zeros((16, 20, 3)) if i == BLACK else shade(i) + stripes
    Image.fromarray(pixels.round().astype(np.uint8)).save(file, "JPEG", quality=95)
    return {CORRUPT: b"a video", CUT_OFF: file.getvalue()[:200]}.get(i, file.getvalue())


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The images 12345990 to 12346009 in their zip files. Four of them count as blank, for different reasons."""
    root = tmp_path_factory.mktemp("yfcc")
    for i in range(12_345_990, 12_346_010):
        path, name = root / Path(member(i)).parent, Path(member(i)).name
        path.parent.mkdir(exist_ok=True)
        if i != MISSING:
            with zipfile.ZipFile(path, "a") as file:
                file.writestr(name, encoded(i))
    return root


@pytest.fixture(scope="module")
def pool(tmp_path_factory, root) -> Path:
    """The images START to START + COUNT - 1, written by the script."""
    out = tmp_path_factory.mktemp("pool") / "data"
    result = run_script(
        "preprocessing.py", "--dataset", "yfcc100m", "--root", root, "--dataset.start", START, "--dataset.count", COUNT,
        "--out", out,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "10 unlabelled images" in result.stdout
    return out


@pytest.fixture(scope="module")
def pool_features(tmp_path_factory, pool, extractor) -> Path:
    """The features of `pool`, computed without worker processes."""
    out = tmp_path_factory.mktemp("features")
    options = {"extractor": extractor, "data": pool, "accelerator": "cpu", "batch_size": 4, "num_workers": 0}
    return save_features.main(save_features.Config(out=out, **options)) / "train.h5"


def config(root: Path, out: Path, **changes) -> preprocessing.Config:
    dataset = {"name": "yfcc100m", "start": START, "count": 3} | changes
    return settings(preprocessing.Config, dataset=dataset, root=root, out=out)


# Where images are


def test_the_published_example():
    assert member(12_345_678) == "12/345.zip/678.jpg"
    assert member(0) == "00/000.zip/000.jpg" and member(N_IMAGES - 1) == "99/999.zip/999.jpg"


@given(st.integers(0, N_IMAGES - 1))
def test_the_digits_of_a_path_are_those_of_the_number(i):
    assert int("".join(filter(str.isdigit, member(i)))) == i


def test_what_is_listed_begins_at_the_start(pool, root):
    images = read_images(pool / "images.h5")
    assert images.paths.tolist() == [member(i) for i in range(START, START + COUNT)]
    assert images.paths[5] == "12/345.zip/999.jpg" and images.paths[6] == "12/346.zip/000.jpg"
    assert (images.labels == -1).all() and not images.is_test.any() and images.root == root
    readable = [i for i in range(COUNT) if i not in BLANK]
    seen = [np.asarray(open_image(images.root / images.paths[i])).mean() for i in readable]
    assert np.allclose(seen, [shade(START + i) for i in readable], atol=3)


def test_a_pool_has_neither_split_nor_draws(pool):
    assert sorted(path.name for path in pool.iterdir()) == ["SHA256SUMS", "config.json", "images.h5"]
    made_from = json.loads((pool / "config.json").read_text())
    assert made_from["config"]["dataset"]["start"] == START and list(made_from["inputs"]) == ["zips"]


def test_the_same_again_does_nothing_and_another_start_is_named(pool, root, capsys):
    preprocessing.main(config(root, pool, count=COUNT))
    assert "already exists" in capsys.readouterr().out
    with pytest.raises(InputError, match=f"setting dataset.start was {START}, now {START + 1}"):
        preprocessing.main(config(root, pool, start=START + 1, count=COUNT))


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"start": 12_346_008, "count": 1000}, r"12/347\.zip: no such zip"),
        ({"start": 0, "count": 1}, r"00/000\.zip: no such zip"),
        ({"start": N_IMAGES - 1, "count": 2}, "exceeds the last image, 99999999"),
        ({"n_trials": 3}, "dataset.n_trials: no setting of yfcc100m .*; its settings are: count, start"),
        ({"image_size": 32}, r"dataset.image_size: no setting of yfcc100m \(it is one of omniglot, emnist, folder, "),
    ],
)
def test_refused(tmp_path, root, changes, cause):
    with pytest.raises(InputError, match=cause):
        preprocessing.main(config(root, tmp_path / "out", **changes))
    assert not list(tmp_path.iterdir())


def test_a_seed_is_refused(tmp_path, root):
    with pytest.raises(InputError, match="--seed 1: yfcc100m has no random draws"):
        preprocessing.main(replace(config(root, tmp_path / "out"), seed=1))


def test_a_cut_off_zip_is_refused(tmp_path):
    path = tmp_path / "00" / "000.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("000.jpg", encoded(1))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"000\.zip: not a zip file, or truncated"):
        preprocessing.main(config(tmp_path, tmp_path / "out", start=0))


# Reading through a zip


def test_what_cannot_be_decoded_is_named(root):
    for i, cause in ((CORRUPT, "corrupt image"), (CUT_OFF, "corrupt image"), (MISSING, "no such image in the zip")):
        with pytest.raises(CorruptImage, match=cause) as error:
            open_image(root / member(i))
        assert member(i) in str(error.value)


def test_a_wrong_checksum_is_corrupt(tmp_path):
    path, content = tmp_path / "a.zip", encoded(1)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.jpg", content)
    path.write_bytes(path.read_bytes().replace(content, content[:-9] + b"!" + content[-8:]))
    with pytest.raises(CorruptImage, match=r"a\.zip/x\.jpg: corrupt in the zip"):
        open_image(path / "x.jpg")


def test_a_missing_or_damaged_zip_is_not_a_corrupt_image(tmp_path):
    with pytest.raises(InputError, match="no such image") as error:
        open_image(tmp_path / "gone.zip" / "x.jpg")
    assert not isinstance(error.value, CorruptImage)
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"bad\.zip: not a readable zip") as error:
        open_image(tmp_path / "bad.zip" / "x.jpg")
    assert not isinstance(error.value, CorruptImage)


def test_a_folder_may_be_called_zip(tmp_path):
    (tmp_path / "class.zip").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "class.zip" / "x.png")
    assert open_image(tmp_path / "class.zip" / "x.png").size == (4, 4)


def test_no_path_leads_out_of_a_zip_or_the_root(tmp_path, root):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x.jpg", encoded(1))
    with pytest.raises(CorruptImage, match="no such image in the zip"):
        open_image(tmp_path / "a.zip" / ".." / "secret.png")
    outside = Images(np.array([-1]), np.array([False]), paths=np.array(["12/345.zip/../../x.jpg"], object), root=root)
    write_images(tmp_path / "images.h5", outside, {})
    with pytest.raises(InputError, match="is outside the root folder"):
        read_images(tmp_path / "images.h5")


# Features


def test_blank_images_have_zero_features(pool_features):
    feats = read_features(pool_features)
    assert np.flatnonzero(~feats.feats.any(axis=1)).tolist() == BLANK and (feats.labels == -1).all()
    with h5py.File(pool_features) as file:
        assert np.flatnonzero(file["is_blank"]).tolist() == BLANK


def test_several_workers_make_the_same(tmp_path, pool, extractor, pool_features):
    options = ["--extractor", extractor, "--data", pool, "--batch_size", 3, "--num_workers", 2, "--accelerator", "cpu"]
    result = run_script("save_features.py", *options, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "4 of 10 images are blank" in result.stdout
    assert np.allclose(read_features(tmp_path / "train.h5").feats, read_features(pool_features).feats, atol=1e-5)


def test_a_killed_run_goes_on_and_counts_all_blank_images(tmp_path, pool, extractor, pool_features, capsys):
    (tmp_path / "train.h5").write_bytes(pool_features.read_bytes())
    partial = unfinished(tmp_path / "train.h5")
    with h5py.File(partial, "r+") as file:  # as a kill within the second block leaves it
        file["all_feats"][4:], file["is_blank"][4:], file["count"][0] = 0, False, 4
        file["all_feats"][0] = 7
    options = {"extractor": extractor, "data": pool, "accelerator": "cpu", "batch_size": 4, "num_workers": 0}
    again = read_features(save_features.main(save_features.Config(out=tmp_path, **options)) / "train.h5").feats
    assert (again[0] == 7).all(), "rows before `count` are kept"
    assert np.array_equal(again[1:], read_features(pool_features).feats[1:])
    assert "4 of 10 images are blank" in capsys.readouterr().out


def test_a_labelled_set_refuses_what_is_corrupt(tmp_path, pool, extractor):
    images = read_images(pool / "images.h5")
    images.labels[:] = 0
    write_images(tmp_path / "images.h5", images, {})
    options = {"extractor": extractor, "data": tmp_path, "accelerator": "cpu", "num_workers": 0}
    with pytest.raises(InputError, match=f"{member(CORRUPT)}: corrupt image"):
        save_features.main(save_features.Config(out=tmp_path / "features", **options))
    assert not (tmp_path / "features").exists()


def test_stages_that_need_classes_say_so(tmp_path, pool):
    with pytest.raises(InputError, match=r"split\.json: no such file"):
        train_extractor.main(train_extractor.Config(data=pool, out=tmp_path / "extractor"))
    assert not (tmp_path / "extractor").exists()


def test_zips_of_another_size_are_other_input(tmp_path, root):
    other = tmp_path / "12"
    other.mkdir()
    for name in ("345.zip", "346.zip"):
        (other / name).write_bytes((root / "12" / name).read_bytes())
    out = preprocessing.main(config(tmp_path, tmp_path / "out"))
    made = digest(out)
    with zipfile.ZipFile(other / "345.zip", "a") as file:
        file.writestr("000.jpg", encoded(0))
    with pytest.raises(InputError, match="input zips has changed"):
        preprocessing.main(config(tmp_path, out))
    assert digest(out) == made
