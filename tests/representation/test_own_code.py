"""The user's own losses, backbones, augmentations, schedules, optimisers and mixup, through the real scripts."""

import json
import os

import numpy as np
import pytest
import torch
from conftest import assert_refused, run_script

import lowshot
from lowshot.core.artifacts import read_recipe
from lowshot.core.choices import own_class
from lowshot.core.errors import InputError
from lowshot.core.files import digest, read_json
from lowshot.data.features import read_copies, read_features
from lowshot.representation.augmentation import Augmentation, augmentation_of
from lowshot.representation.backbones import load_extractor

SMALL = ["--epochs", 2, "--batch_size", 16, "--accelerator", "cpu"]
CONV4 = ["--model", "Conv4", "--model.width", 0.25]

OWN = '''
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from lowshot.representation.augmentation import Augmentation


@dataclass
class Half:
    """The built-in sgm of a given weight, written again."""

    weight: float = 0.02

    def __call__(self, scores, features, labels, model):
        assert scores.dtype == features.dtype == torch.float32 and model.classifier.weight.requires_grad
        delta = F.one_hot(labels, scores.shape[1]) - scores.softmax(1)
        term = (delta.square().sum(1) * features.square().sum(1)).mean()
        return F.cross_entropy(scores, labels) + self.weight * term


@dataclass
class OneEach:
    """Returns no single number."""

    def __call__(self, scores, features, labels, model):
        return F.cross_entropy(scores, labels, reduction="none")


@dataclass
class Tiny:
    """A backbone of one convolution."""

    channels: int = 4
    image_size: int = 16

    def build(self, n_channels, image_size):
        assert image_size == self.image_size
        pool = [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        return nn.Sequential(nn.Conv2d(n_channels, self.channels, 3), nn.BatchNorm2d(self.channels), nn.ReLU(), *pool)


@dataclass
class Maps:
    """A backbone that makes maps, not features."""

    def build(self, n_channels, image_size):
        return nn.Conv2d(n_channels, 2, 3)


@dataclass
class Dim:
    """Darkens each image by a share of its own."""

    strength: float = 0.5
    n_uniforms = 1

    def __call__(self, images, uniforms):
        assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
        assert uniforms.shape == (len(images), 1)
        return images * (1 - self.strength * uniforms.view(-1, 1, 1, 1))


@dataclass
class Noisy:
    """Draws from torch's own generator."""

    n_uniforms = 0

    def __call__(self, images, uniforms):
        return images + 0.1 * torch.randn_like(images)


@dataclass
class Uncounted:
    """Does not say how many numbers an image takes."""

    def __call__(self, images, uniforms):
        return images


@dataclass
class Inverted(Augmentation):
    """The built-in changes, then the negative."""

    def __call__(self, images, uniforms):
        return 1 - super().__call__(images, uniforms)


@dataclass
class Halving:
    """A rate that halves with every epoch."""

    def rate(self, epoch, n_epochs, lr):
        return lr / 2 ** int(epoch)


@dataclass
class Ascent:
    """An optimiser."""

    beta: float = 0.5

    def build(self, model, lr, weight_decay):
        return torch.optim.RMSprop(model.parameters(), lr, alpha=self.beta, weight_decay=weight_decay)


@dataclass
class Quarter:
    """Every image keeps a quarter of itself."""

    def shares(self, n_images, device):
        return torch.full((n_images,), 0.25, device=device)
'''


@pytest.fixture
def own(tmp_path):
    """The file of the user's classes."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def train(data, out, *words):
    return run_script("train_extractor.py", "--data", data, "--out", out, *SMALL, *words)


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def change(path):
    """Change the file, as an editor would. Code that this process has imported stays unchanged."""
    path.write_text(path.read_text() + "\n# changed\n")
    os.utime(path, ns=(1, 1))


def test_a_loss_does_what_ours_does(tmp_path, data, own):
    mine = ["--loss", f"{own}:Half", "--loss.weight", 0.1]
    done = train(data, tmp_path / "own", *CONV4, *mine)
    assert done.returncode == 0, done.stderr
    assert train(data, tmp_path / "ours", *CONV4, "--loss", "sgm", "--loss.weight", 0.1).returncode == 0
    losses = [[record["loss"] for record in records(tmp_path / name)] for name in ("own", "ours")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    made_from = read_recipe(tmp_path / "own")
    assert made_from["config"]["loss"] == {"name": "own.py:Half", "weight": 0.1}
    assert made_from["inputs"]["code of loss"] == digest(own)
    assert "already exists" in train(data, tmp_path / "own", *CONV4, *mine).stdout
    other = train(data, tmp_path / "own", *CONV4, *mine[:2])
    assert_refused(other, "setting loss.weight was 0.1, now 0.02")
    change(own)
    assert_refused(
        train(data, tmp_path / "own", *CONV4, *mine), "exists, but was made differently (input code of loss has changed"
    )


def test_losses_that_are_refused(tmp_path, data, own):
    for name, words in (
        ("OneEach", ["own.py:OneEach: must return a scalar tensor, not (16,)"]),
        ("Halving", ["own.py:Halving: defines no __call__(scores, features, labels, model)"]),
        ("Hlaf", ["own.py defines no 'Hlaf', did you mean 'Half'?"]),
    ):
        assert_refused(train(data, tmp_path / "out", *CONV4, "--loss", f"{own}:{name}"), *words)
    assert_refused(train(data, tmp_path / "out", "--loss", f"{own}:Half", "--loss.wieght", 1), "loss.wieght", "weight")
    assert_refused(train(data, tmp_path / "out", "--loss", f"{own}:Half", "--mixup", "beta"), "not own.py:Half")
    assert not (tmp_path / "out").exists()


def test_a_backbone_is_imported_only_if_the_command_names_it(tmp_path, data, own):
    folder, code = tmp_path / "extractor", f"{own}:Tiny"
    done = train(data, folder, "--model", code, "--model.channels", 6)
    assert done.returncode == 0 and "D = 24" in done.stdout, done.stderr
    described = read_json(folder / "config.json")
    assert described["model"]["name"] == "own.py:Tiny"
    assert described["model"]["options"] == {"channels": 6, "image_size": 16}
    assert described["inputs"]["code of model"] == digest(own)
    save = ["save_features.py", "--extractor", folder, "--data", data, "--accelerator", "cpu", "--out", tmp_path / "f"]
    assert_refused(run_script(*save), str(folder), "was made with own.py:Tiny", "--code own.py:Tiny")
    assert_refused(run_script(*save, "--code", f"{own}:Maps"), "--code own.py:Tiny")
    done = run_script(*save, "--code", code)
    assert done.returncode == 0 and "changed" not in done.stdout, done.stderr
    features = tmp_path / "f" / "test.h5"
    assert read_recipe(features)["inputs"]["code of extractor"] == digest(own)
    model, pixels = lowshot.open_extractor(folder, code=[code]), np.zeros((2, 16, 16, 3), np.uint8)
    assert lowshot.embed(model, pixels).shape == (2, 24) == (2, read_features(features).dim)
    with pytest.raises(InputError, match=r"--code own\.py:Tiny"):
        load_extractor(folder)
    change(own)
    other = run_script(*save, "--code", code)
    assert_refused(other, "input code of extractor has changed")
    assert f"{own} has changed since the extractor was trained" in other.stdout
    assert run_script(*save, "--code", code, "--overwrite").returncode == 0
    assert read_recipe(features)["inputs"]["code of extractor"] == digest(own)


def test_backbones_that_are_refused(tmp_path, data, own):
    made = train(data, tmp_path / "out", "--model", f"{own}:Maps")
    assert_refused(made, "own.py:Maps", "features of shape (1, D)", "not shape (1, 2, 14, 14)")
    assert_refused(train(data, tmp_path / "out", "--model", f"{own}:Tiny", "--model.image_size", 20), "image_size 20")
    assert not (tmp_path / "out").exists()


def test_a_backbone_goes_on_from_weights_and_learns_superclasses(tmp_path, data, own):
    first = tmp_path / "first"
    assert train(data, first, "--model", f"{own}:Tiny").returncode == 0
    done = train(data, tmp_path / "second", "--model", f"{own}:Tiny", "--weights", first / "model.pt", "--epochs", 0)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("first", "second"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    done = run_script("train_scgm.py", "--data", data, "--out", tmp_path / "scgm", *SMALL, "--model", f"{own}:Tiny",
                      "--method", "coarse", "--schedule.n_cycles", 1, "--embedding", 5)  # fmt: skip
    assert done.returncode == 0 and "D = 5" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["Dim", "Noisy", "Inverted"])
def test_an_augmentation_trains_to_the_same_weights_again(tmp_path, data, own, name):
    for out in ("one", "two"):
        done = train(data, tmp_path / out, *CONV4, "--augment", f"{own}:{name}")
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / out / "model.pt", weights_only=True) for out in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert read_recipe(tmp_path / "one")["inputs"]["code of augment"] == digest(own)


def test_numbers_of_an_image_depend_on_nothing_else(own):
    dim = augmentation_of(own_class(f"{own}:Dim")(0.25))
    numbers = dim.uniforms(6, 0, 3)
    assert numbers.shape == (6, 1) and torch.equal(numbers, dim.uniforms(6, 0, 3))
    assert not any(torch.equal(numbers, dim.uniforms(6, *key)) for key in ((1, 3), (0, 4), (0, 3, 1)))
    images = torch.rand(6, 3, 4, 4)
    expected = images * (1 - 0.25 * numbers.view(6, 1, 1, 1))
    assert torch.equal(dim(images, numbers), expected)
    assert torch.equal(dim(images[2:3], numbers[2:3]), expected[2:3])
    assert dim.smallest_area is None and dim.without_crop() is dim


def test_copies_by_an_augmentation(tmp_path, data, extractor, own):
    options = ["--extractor", extractor, "--data", data, "--accelerator", "cpu", "--part", "test"]
    for name, batch_size in (("one", 7), ("two", 40)):
        done = run_script("save_features.py", *options, "--out", tmp_path / name, "--batch_size", batch_size,
                          "--copies", 2, "--copies.augment", f"{own}:Dim")  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert read_recipe(tmp_path / "one" / "test.h5")["inputs"]["code of copies.augment"] == digest(own)
    copies = [read_copies(read_features(tmp_path / name / "test.h5")) for name in ("one", "two")]
    assert copies[0].shape[1] == 2 and np.allclose(*copies, atol=1e-5)


def test_augmentations_that_are_refused(tmp_path, data, own):
    refused = train(data, tmp_path / "out", *CONV4, "--augment", f"{own}:Uncounted")
    assert_refused(refused, "own.py:Uncounted: lacks the attribute n_uniforms", "Set it to 0")
    assert not (tmp_path / "out").exists()


def test_a_schedule_an_optimiser_and_a_blend(tmp_path, data, own):
    done = train(data, tmp_path / "out", *CONV4, "--schedule", f"{own}:Halving", "--lr", 0.01, "--optimizer",
                 f"{own}:Ascent", "--optimizer.beta", 0.9, "--mixup", f"{own}:Quarter")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [record["lr"] for record in records(tmp_path / "out")] == [0.01, 0.005]
    made_from = read_recipe(tmp_path / "out")
    assert made_from["config"]["optimizer"] == {"name": "own.py:Ascent", "beta": 0.9}
    assert {"code of schedule", "code of optimizer", "code of mixup"} <= made_from["inputs"].keys()


def test_the_built_in_changes_are_inherited(own):
    inverted = own_class(f"{own}:Inverted")(flip=True)
    images, numbers = torch.rand(5, 3, 4, 4), inverted.uniforms(5, 0, 0)
    assert augmentation_of(inverted) is inverted
    assert torch.equal(inverted(images, numbers), 1 - Augmentation(flip=True)(images, numbers))
