"""Features that are means over views of an image: save_features.py --views."""

import json
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from conftest import assert_refused, run_script, settings

import save_features
from lowshot.classifiers.settings import FeatureTransform, NearestMeanOptions
from lowshot.classifiers.transform import apply_transform
from lowshot.core.errors import InputError
from lowshot.data.datasets.images import read_images
from lowshot.data.features import read_copies, read_features
from lowshot.photos.keeping import check_kept
from lowshot.representation.augmentation import Augmentation
from lowshot.representation.backbones import load_extractor
from lowshot.representation.extractors import batch_features

CHANGES = {"flip": True, "shift_pixels": 2}
RANDOM = {"name": "random", "n": 3, "augment": CHANGES}


def save(**changes):
    """The test.h5 of one call of save_features."""
    values = {"accelerator": "cpu", "part": "test", **changes}
    return save_features.main(settings(save_features.Config, **values)) / "test.h5"


@pytest.fixture(scope="module")
def unit(data):
    """The test images in [0, 1] and their rows."""
    images = read_images(data / "images.h5")
    rows = images.rows(test=True)
    return torch.from_numpy(images.pixels[rows]).permute(0, 3, 1, 2).float() / 255, rows, len(images)


def random_views(unit, n):
    pixels, rows, n_images = unit
    augment = Augmentation(**CHANGES)
    return [augment(pixels, augment.uniforms(n_images, 0, i + 1, save_features._AVERAGED)[rows]) for i in range(n)]


def test_raw_features_are_averaged_before_any_transform():
    """The rule of EASY, in numbers: mean, then CL2N."""
    views = torch.tensor([[[3, 1, 1, 1], [0, 1, 3, 1]], [[2, 1, 0, 1], [1, 1, 2, 0]]], dtype=torch.float32)
    model = SimpleNamespace(features=lambda images: images)
    fabric = SimpleNamespace(autocast=torch.no_grad)
    feats = batch_features(model, views, fabric)
    mean = torch.tensor([1, 1.5, 1, 0.5])
    transformed = apply_transform(FeatureTransform(centre=True, normalise=True), feats, mean)
    expected = [[0.866025, -0.288675, -0.288675, 0.288675], [-0.301511, -0.301511, 0.904534, 0]]
    assert np.allclose(transformed, expected, atol=1e-5)


def test_mirror_is_the_mean_of_both_views(tmp_path, data, extractor, unit):
    feats, model = (
        read_features(save(extractor=extractor, data=data, out=tmp_path, views="mirror")),
        load_extractor(extractor),
    )
    expected = (model.features(unit[0]) + model.features(unit[0].flip(3))).detach() / 2
    assert feats.views == {"name": "mirror"} and torch.allclose(torch.from_numpy(feats.feats), expected, atol=1e-5)
    assert not np.allclose(feats.feats, model.features(unit[0]).detach(), atol=1e-3)


def test_random_views_depend_on_image_and_number_only(tmp_path, data, extractor, unit):
    model = load_extractor(extractor)
    expected = torch.stack([model.features(view).detach() for view in random_views(unit, 3)]).mean(0)
    for batch_size in (256, 7):
        out = tmp_path / str(batch_size)
        feats = read_features(save(extractor=extractor, data=data, out=out, views=RANDOM, batch_size=batch_size))
        assert torch.allclose(torch.from_numpy(feats.feats), expected, atol=1e-5)
        assert feats.views["n"] == 3 and feats.views["augment"]["shift_pixels"] == 2


def test_copies_are_averaged_over_views_as_well(tmp_path, data, extractor, unit):
    copies = {"n": 2, "augment": CHANGES, "seed": 1}
    stored = read_copies(
        read_features(save(extractor=extractor, data=data, out=tmp_path, views="mirror", copies=copies))
    )
    model, augment = load_extractor(extractor), Augmentation(**CHANGES)
    for i in range(2):
        changed = augment(unit[0], augment.uniforms(unit[2], 1, i + 1, save_features._SUPPORT)[unit[1]])
        expected = (model.features(changed) + model.features(changed.flip(3))).detach() / 2
        assert torch.allclose(torch.from_numpy(stored[:, i]), expected, atol=1e-5)


@pytest.mark.parametrize("mirror", [True, False])
def test_features_of_older_revisions_are_complete(tmp_path, data, extractor, mirror, capsys):
    """They say `mirror: true` or `mirror: false`."""
    views = "mirror" if mirror else None
    path = save(extractor=extractor, data=data, out=tmp_path, views=views)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["config"])
        del config["views"]
        file.attrs["config"] = json.dumps(config | {"mirror": mirror})
    assert read_features(path).views == ({"name": "mirror"} if mirror else None)
    save(extractor=extractor, data=data, out=tmp_path, views=views)
    assert "already exists" in capsys.readouterr().out
    other = None if mirror else "mirror"
    with pytest.raises(InputError, match=r"setting views\.name was"):
        save(extractor=extractor, data=data, out=tmp_path, views=other)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mirror", "true"], "--mirror: is called views now"),
        (["--views", "random"], "--views.n: is required: Number of views of each image"),
        (["--views", "random", "--views.n", "4"], "--views: all 4 would equal the image; add a random change, e.g. "
         "--views.augment.flip"),
        (["--views", "random", "--views.n", "4", "--views.augment.resized_crop"], "--views.augment.resized_crop: not "),
        (["--views", "mirror", "--views.n", "4"], "--views.n: no setting of mirror (it is one of random)"),
    ],
)  # fmt: skip
def test_views_that_cannot_be(tmp_path, data, extractor, words, message):
    inputs = ["--extractor", extractor, "--data", data, "--out", tmp_path / "features"]
    assert_refused(run_script("save_features.py", *inputs, *words), message)
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("views", ["mirror", RANDOM])
def test_a_classifier_of_photos_takes_no_features_of_views(tmp_path, data, extractor, views):
    path = save(extractor=extractor, data=data, out=tmp_path, views=views)
    with pytest.raises(InputError, match=r"averaged over views\. Use features without --views"):
        check_kept(NearestMeanOptions(), path, extractor)
