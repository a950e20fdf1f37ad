"""Feature files as .npz, in and out, and features of a folder of images."""

import numpy as np
import pytest
from conftest import assert_refused, run_script, settings
from PIL import Image

import low_shot
import preprocessing
import save_features
from lowshot.core.errors import InputError
from lowshot.core.files import read_json
from lowshot.data.features import read_features
from lowshot.representation.backbones import load_extractor
from lowshot.representation.extractors import embed


def test_features_of_a_folder_are_keyed_by_path(tmp_path, image_folder, extractor, capsys):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name, c in (("b.png", 0), ("deep/a.png", 1)):
        Image.open(image_folder / f"super0/class{c}/0.png").save(folder / name)
    (folder / "c.png").write_bytes(b"no image")
    (folder / "phone.heic").touch()
    words = ["--extractor", extractor, "--images", folder, "--out", tmp_path / "f", "--npz", "--accelerator", "cpu"]
    made = run_script("save_features.py", *words)
    assert made.returncode == 0, made.stderr
    assert "1 files in" in made.stdout and "1 of 3 images are blank" in made.stdout
    with np.load(tmp_path / "f" / "features.npz") as file:
        paths, feats, labels = (file[name] for name in ("paths", "feats", "labels"))
    assert paths.tolist() == ["b.png", "c.png", "deep/a.png"] and labels.tolist() == [-1, -1, -1]
    expected = embed(load_extractor(extractor), [folder / "b.png", folder / "deep/a.png"])
    assert np.allclose(feats[[0, 2]], expected, atol=1e-5) and not feats[1].any()
    assert np.array_equal(read_features(tmp_path / "f" / "features.h5").feats, feats)
    assert run_script("save_features.py", *words).stdout.count("already exists") == 2


def test_a_source_of_images_is_needed(tmp_path, extractor, data, image_folder):
    both = ["--data", data, "--images", image_folder]
    for words in ([], both):
        made = run_script("save_features.py", "--extractor", extractor, *words, "--out", tmp_path / "f")
        assert_refused(made, "exactly one source of images is needed. Use either --data or --images")
    made = run_script("save_features.py", "--extractor", extractor, "--images", image_folder, "--part", "train",
                      "--out", tmp_path / "f")  # fmt: skip
    assert_refused(made, "--part: a folder of images has no parts")


def test_the_benchmark_reads_npz_as_it_reads_h5(tmp_path, data, extractor, features):
    config = settings(save_features.Config, extractor=extractor, data=data, out=tmp_path, npz=True, accelerator="cpu")
    save_features.main(config)
    numbers = []
    for suffix in (".h5", ".npz"):
        files = {name: tmp_path / f"{name}{suffix}" for name in ("train", "test")}
        files |= {"split": data / "split.json", "draws": data / "draws.json", "out": tmp_path / f"r{suffix[1:]}.json"}
        low_shot.main(settings(low_shot.Config, **files, shots=[1], classifier="nearest_mean"))
        numbers.append(read_json(files["out"])["trials"])
    assert numbers[0] == numbers[1]


def test_a_split_of_features_in_an_npz_file(tmp_path):
    np.savez(tmp_path / "train.npz", feats=np.random.default_rng(0).random((60, 4)), labels=np.arange(60) % 6)
    dataset = {"name": "features", "max_shots": 5}
    config = settings(preprocessing.Config, dataset=dataset, root=tmp_path / "train.npz", out=tmp_path / "data")
    assert len(read_json(preprocessing.main(config) / "split.json")["class_names"]) == 6


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"feats": np.zeros((3, 2))}, "lacks the array 'labels'"),
        ({"feats": np.zeros(3), "labels": np.zeros(3, int)}, r"feats must be floats \(N, D\), not float64 \(3,\)"),
        ({"feats": np.zeros((3, 2)), "labels": np.zeros(2, int)}, r"labels must be integers \(3,\), not int64 \(2,\)"),
        ({"feats": np.full((3, 2), np.nan), "labels": np.zeros(3, int)}, "feats: row 0 contains NaN"),
    ],
)
def test_npz_files_that_are_no_features(tmp_path, arrays, message):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(InputError, match=rf"f\.npz: .*{message}"):
        read_features(tmp_path / "f.npz")


def test_an_npz_file_of_the_user_is_not_replaced(tmp_path, data, extractor):
    (tmp_path / "train.npz").write_bytes(b"mine")
    config = settings(save_features.Config, extractor=extractor, data=data, out=tmp_path, npz=True, accelerator="cpu")
    with pytest.raises(InputError, match=r"train\.npz: exists, and lowshot did not write it"):
        save_features.main(config)
    assert (tmp_path / "train.npz").read_bytes() == b"mine"
