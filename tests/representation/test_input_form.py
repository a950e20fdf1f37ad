"""What an extractor knows about its input: resampling and brightness, and how the commands follow it."""

import csv
import json

import numpy as np
import pytest
from conftest import run_script, settings
from PIL import Image

import predict
import preprocessing
import save_features
import train_extractor
from lowshot.data.datasets.images import Images, read_images, resized, to_square
from lowshot.data.features import read_features
from lowshot.representation.backbones import ModelConfig, load_extractor
from lowshot.representation.input_form import inverts, learn_form, polarity
from lowshot.representation.loading import view


def stored(pixels, **form):
    pixels = np.asarray(pixels, np.uint8)
    return Images(np.zeros(len(pixels), int), np.zeros(len(pixels), bool), pixels, **form)


def config_of(images):
    config = ModelConfig("Conv4", 2, 1, 4, crop_pct=1.0)
    learn_form(config, images, np.arange(len(images)))
    return config


def test_what_is_learned_from_stored_pixels():
    drawings = config_of(stored(np.where(np.arange(64) % 8, 0, 255).reshape(4, 4, 4, 1)))
    assert drawings.resampling == "nearest" and drawings.brightness == pytest.approx(1 / 8, abs=1e-4)
    grey = stored(np.arange(64).reshape(4, 4, 4, 1))
    assert config_of(grey).resampling == "antialiased"
    grey.resampling = "nearest"
    assert config_of(grey).resampling == "nearest"


@pytest.mark.parametrize(
    ("trained", "seen", "expected"),
    [
        (0.1, 0.9, True), (0.1, 0.62, True), (0.1, 0.2, False), (0.9, 0.15, True), (0.9, 0.8, False),
        (0.1, 0.55, None), (0.45, 0.95, None), (0.6, 0.1, None), (None, 0.9, None),
    ],
)  # fmt: skip
def test_only_drawings_are_reversed(trained, seen, expected):
    config = ModelConfig("Conv4", 2, 1, 4, brightness=trained)
    images = stored(np.full((3, 4, 4, 1), round(255 * seen)))
    assert polarity(config, images, np.arange(3)).is_reversed is expected


def test_images_of_both_kinds(capsys):
    config = ModelConfig("Conv4", 2, 1, 4, brightness=0.1)
    pixels = np.full((20, 4, 4, 1), 25)
    pixels[:3] = 230
    seen = polarity(config, stored(pixels), np.arange(20))
    assert seen == (False, True) and inverts(None, seen, "stage") is False
    assert "some images are dark on light and others light on dark" in capsys.readouterr().out
    assert not polarity(config, stored(pixels), np.arange(2, 20)).is_mixed


def test_pictures_are_made_smaller_as_the_training_images_were():
    picture = Image.fromarray(np.where(np.random.default_rng(0).random((105, 105)) < 0.1, 0, 255).astype(np.uint8))
    for resampling in ("nearest", "antialiased"):
        seen = view(ModelConfig("Conv4", 2, 1, 28, crop_pct=1.0, resampling=resampling))(picture.convert("RGB"))
        assert np.array_equal(seen[0].numpy(), np.asarray(to_square(picture, 28, resampling)))
        assert (set(np.unique(seen)) <= {0, 255}) == (resampling == "nearest")
        assert resized(picture, 28, resampling).size == (28, 28)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Ink on paper: 4 classes of bars at different angles, 10 files each, 56 px; and the extractor of their inverse."""
    root, rng = tmp_path_factory.mktemp("drawings"), np.random.default_rng(0)
    yy, xx = np.mgrid[-1:1:56j, -1:1:56j]
    for c in range(4):
        (root / "paper" / f"class{c}").mkdir(parents=True)
        for i in range(10):
            angle = np.pi * c / 4 + rng.normal(0, 0.1)
            ink = np.abs(xx * np.sin(angle) - yy * np.cos(angle)) < 0.12
            Image.fromarray(np.where(ink, 0, 255).astype(np.uint8)).save(root / "paper" / f"class{c}" / f"{i}.png")
            (root / "black" / f"class{c}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(ink, 255, 0).astype(np.uint8)).save(root / "black" / f"class{c}" / f"{i}.png")
    photos = {"name": "folder", "image_size": 16, "resampling": "nearest", "test_per_class": 2, "max_shots": 2}
    data = preprocessing.main(settings(preprocessing.Config, dataset=photos, root=root / "black", out=root / "data"))
    small = {"model": {"name": "Conv4", "width": 0.25}, "epochs": 3, "batch_size": 8, "accelerator": "cpu"}
    train_extractor.main(settings(train_extractor.Config, data=data, out=root / "extractor", **small))
    return root


def test_the_extractor_stores_what_it_learned_from(drawings):
    assert read_images(drawings / "data/images.h5").resampling == "nearest"
    config = load_extractor(drawings / "extractor").config
    assert config.resampling == "nearest" and config.brightness < 0.3


def fit(drawings, photos, out, *options):
    chosen = ["--extractor", drawings / "extractor", "--images", drawings / photos]
    return run_script("predict.py", "fit", *chosen, "--out", out, *options)


def test_a_forgotten_invert_changes_nothing(drawings, tmp_path):
    """The classifier of ink on paper is that of bright ink on black; the command says what it does."""
    plain, followed = fit(drawings, "black", tmp_path / "plain"), fit(drawings, "paper", tmp_path / "followed")
    assert "inverting" not in plain.stdout and "predict: inverting the images" in followed.stdout, followed.stderr
    forced = fit(drawings, "paper", tmp_path / "forced", "--invert", "true")
    assert "inverting" not in forced.stdout
    assert json.loads((tmp_path / "followed/config.json").read_text())["config"]["invert"] is True
    assert fit(drawings, "paper", tmp_path / "followed", "--invert", "true").returncode == 0  # already there
    tables = []
    for name, images in (("plain", "black"), ("followed", "paper"), ("forced", "paper")):
        out = tmp_path / f"{name}.csv"
        done = run_script("predict.py", "classify", "--classifier", tmp_path / name, "--images", drawings / images,
                          "--out", out)  # fmt: skip
        assert done.returncode == 0 and "reverse" not in done.stdout, done.stdout
        tables.append([(row["image"], row["class"], row["score"]) for row in csv.DictReader(out.open())])
    assert tables[0] == tables[1] == tables[2]


def test_pictures_that_are_the_reverse_of_the_classifiers_photos(drawings, tmp_path):
    predict.fit(predict.FitConfig(extractor=drawings / "extractor", images=drawings / "black", out=tmp_path / "c"))
    done = run_script("predict.py", "classify", "--classifier", tmp_path / "c", "--images", drawings / "paper", "--out",
                      tmp_path / "p.csv")  # fmt: skip
    assert "look like the reverse of the photos of the classifier" in done.stdout


def test_features_of_the_reverse_are_inverted(drawings, tmp_path, capsys):
    photos = {"name": "folder", "image_size": 16, "resampling": "nearest", "test_per_class": 2, "max_shots": 2}
    data = preprocessing.main(
        settings(preprocessing.Config, dataset=photos, root=drawings / "paper", out=tmp_path / "d")
    )
    made = {}
    for name, where in (("black", drawings / "data"), ("paper", data)):
        save_features.main(save_features.Config(extractor=drawings / "extractor", data=where, out=tmp_path / name))
        made[name] = read_features(tmp_path / name / "train.h5").feats
    assert capsys.readouterr().out.count("save_features: inverting the images") == 1
    assert np.allclose(made["black"], made["paper"], atol=1e-5)
    plain = save_features.Config(extractor=drawings / "extractor", data=data, out=tmp_path / "plain", invert=False)
    save_features.main(plain)
    assert not np.allclose(read_features(tmp_path / "plain/train.h5").feats, made["paper"], atol=1e-2)
