"""Feature files: what is refused, padding, row order, resuming."""

import h5py
import numpy as np
import pytest
import torch
from conftest import assert_refused, edit_json, run_script, settings, unfinished

import save_features
from lowshot.core.errors import InputError
from lowshot.data.datasets.images import read_images
from lowshot.data.features import read_features, write_features
from lowshot.representation.backbones import load_extractor

MADE_FROM = {"stage": "save_features", "config": {}, "inputs": {"extractor": "abc"}}


def stored(path, feats=None, labels=(0, 1, 2), **changes):
    feats = np.arange(6, dtype=np.float32).reshape(3, 2) if feats is None else feats
    write_features(path, feats, np.array(labels), MADE_FROM)
    with h5py.File(path, "r+") as file:
        for name, value in changes.items():
            del file[name]
            if value is not None:
                file[name] = value
    return path


def test_round_trip(tmp_path):
    read = read_features(stored(tmp_path / "f.h5"), n_classes=3)
    assert read.feats.dtype == np.float32 and read.feats.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert read.labels.tolist() == [0, 1, 2] and read.extractor == "abc" and read.dim == 2


def test_padding_of_published_files_is_never_read(tmp_path):
    path = tmp_path / "published.hdf5"
    with h5py.File(path, "w") as file:
        file["all_feats"] = np.concatenate([np.ones((3, 2), np.float32), np.zeros((5, 2), np.float32)])
        file["all_labels"] = np.array([2, 1, 1, 0, 0, 0, 0, 0], np.int32)
        file["count"] = np.array([3], np.int32)
    read = read_features(path)
    assert read.feats.shape == (3, 2) and read.labels.tolist() == [2, 1, 1] and read.extractor is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": np.array([4], np.int32)}, "count is 4, but the file has 3 rows"),
        ({"count": np.array([0], np.int32)}, "count is 0"),
        ({"all_labels": None}, "lacks the dataset 'all_labels'"),
        ({"all_feats": np.array([[1, 2], [np.nan, 0], [1, 1]], np.float32)}, "all_feats: row 1"),
        ({"all_feats": np.array([[1, 2], [0, 0], [np.inf, 1]], np.float32)}, "all_feats: row 2"),
        ({"all_feats": np.array([[1, 2], [0, 0], [1, -1e30]], np.float32)}, "row 2 contains numbers beyond ±1e16"),
        ({"all_feats": np.zeros(3, np.float32)}, "shape"),
        ({"all_labels": np.array([0, 1, 3], np.int32)}, "label 3 is outside"),
    ],
)
def test_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        read_features(stored(tmp_path / "f.h5", **changes), n_classes=3)
    assert "f.h5" in str(error.value)


def test_truncated_file(tmp_path):
    path = stored(tmp_path / "f.h5", np.ones((500, 64), np.float32), np.zeros(500))
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(InputError, match=r"f\.h5"):
        read_features(path)


def test_missing_or_foreign_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_features(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("features")
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        read_features(tmp_path / "text.h5")


def test_rows_are_the_images_in_order(data, extractor, features):
    images, model = read_images(data / "images.h5"), load_extractor(extractor)
    for name, test in (("train", False), ("test", True)):
        rows, read = images.rows(test), read_features(features / f"{name}.h5")
        assert np.array_equal(read.labels, images.labels[rows])
        pixels = torch.from_numpy(images.pixels[rows[-3:]]).permute(0, 3, 1, 2).float() / 255
        assert np.allclose(read.feats[-3:], model.features(pixels).detach().numpy(), atol=1e-5)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, data, extractor, features):
    config = save_features.Config(extractor=extractor, data=data, out=tmp_path, batch_size=16, accelerator="cpu")
    done = save_features.main(config) / "train.h5"
    partial = unfinished(done)
    with h5py.File(partial, "r+") as file:  # as a kill after the second block leaves it
        file["all_feats"][32:] = 0
        file["all_feats"][:2] = 7
        file["count"][0] = 32
    again = read_features(save_features.main(config) / "train.h5").feats
    assert (again[:2] == 7).all(), "rows before `count` are kept"
    assert np.allclose(again[32:], read_features(features / "train.h5").feats[32:], atol=1e-5)


def test_images_of_another_form_are_refused(tmp_path, data, extractor, image_folder):
    import preprocessing

    photos = {"name": "folder", "test_per_class": 4, "max_shots": 5, "image_size": 20}
    options = {"dataset": photos, "root": image_folder, "out": tmp_path / "other"}
    other = preprocessing.main(settings(preprocessing.Config, **options))
    result = run_script("save_features.py", "--extractor", extractor, "--data", other, "--out", tmp_path / "f")
    assert_refused(result, "the image size in pixels is 20", "was trained with 16")
    assert not (tmp_path / "f").exists()


def test_a_corrupt_image_leaves_nothing(tmp_path, image_folder):
    import shutil

    import preprocessing
    import train_extractor

    root = tmp_path / "photos"
    shutil.copytree(image_folder, root)
    options = {"dataset": {"name": "folder", "test_per_class": 4, "max_shots": 5}, "root": root}
    data = preprocessing.main(settings(preprocessing.Config, out=tmp_path / "data", **options))
    model = {"name": "Conv4", "width": 0.25, "image_size": 16}
    small = {"model": model, "epochs": 0, "accelerator": "cpu", "num_workers": 0}
    extractor = train_extractor.main(settings(train_extractor.Config, data=data, out=tmp_path / "extractor", **small))
    (root / "super1" / "class7" / "3.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"class7/3\.png: corrupt image"):
        save_features.main(
            save_features.Config(
                extractor=extractor, data=data, out=tmp_path / "features", accelerator="cpu", num_workers=0
            )
        )
    assert not list((tmp_path / "features").glob(".lowshot"))


def test_an_output_of_other_inputs_is_named(tmp_path, data, extractor, features):
    import shutil

    shutil.copytree(features, tmp_path / "f")
    shutil.copytree(extractor, tmp_path / "e")
    edit_json(tmp_path / "e" / "config.json", '"epochs": 2', '"epochs": 4')
    (tmp_path / "e" / "SHA256SUMS").unlink()
    result = run_script("save_features.py", "--extractor", tmp_path / "e", "--data", data, "--out", tmp_path / "f")
    assert_refused(result, "train.h5", "input extractor has changed", "--overwrite")
