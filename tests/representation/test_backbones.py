"""Backbones: published parameter counts and names, initialisation, round trips, refused weights."""

import math

import pytest
import torch

from lowshot.core.errors import InputError
from lowshot.representation.backbones import (
    Extractor,
    ModelConfig,
    load_extractor,
    load_head,
    load_weights,
    save_extractor,
)

MADE_FROM = {"stage": "train_extractor", "config": {}, "inputs": {}}


def build(name="Conv4", size=16, **options):
    return Extractor(ModelConfig(name, options.pop("n_classes", 5), 3, size, **options))


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "trunk", "total", "dim"),
    [
        ("ResNet10", 4_905_792, 5_417_792, 512),
        ("ResNet18", 11_176_512, 11_688_512, 512),
        ("ResNet34", 21_284_672, 21_796_672, 512),
        ("ResNet50", 23_504_128, 25_552_128, 2048),
        ("ResNet101", 42_500_608, 44_548_608, 2048),
    ],
)
def test_resnets_have_the_published_sizes(name, trunk, total, dim):
    with torch.device("meta"):
        model = Extractor(ModelConfig(name, 1000, 3, 224))
    assert (count(model.trunk), count(model), model.dim) == (trunk, total, dim)
    assert model.classifier.bias is None


def test_released_parameter_names():
    names = set(build("ResNet10", 224).state_dict())
    assert {"trunk.0.weight", "trunk.1.running_mean", "trunk.4.C1.weight", "trunk.5.BNshortcut.weight",
            "trunk.7.C2.weight", "classifier.weight"} <= names  # fmt: skip
    bottleneck = set(build("ResNet50", 224).state_dict())
    assert "trunk.4.C2.bias" in bottleneck and "trunk.4.BN3.weight" in bottleneck
    assert not any("BNshortcut" in name for name in bottleneck)


def test_convolutions_start_with_fan_out_variance():
    torch.manual_seed(0)
    weight = build("ResNet10", 224).trunk[7].C2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (3 * 3 * 512)), rel=0.02)


@pytest.mark.parametrize(
    ("name", "size", "dim"),
    [("Conv4", 28, 64), ("Conv4", 32, 256), ("ResNet10", 28, 512), ("VGG16BN", 32, 512), ("VGG16BN", 28, 512)],
)
def test_features_are_flat_and_not_negative(name, size, dim):
    model = build(name, size).eval()
    with torch.no_grad():
        scores, features = model(torch.rand(2, 3, size, size))
    assert scores.shape == (2, 5) and features.shape == (2, dim) == (2, model.dim)
    assert features.min() >= 0


def test_width_scales_the_channels_and_mlp_is_a_head():
    half = build("ResNet10", 32, width=0.5, head="mlp")
    assert half.dim == 256 and half.classifier[-1].out_features == 5


def test_round_trip_through_a_folder(tmp_path):
    model = build("ResNet10", 28, width=0.25)
    save_extractor(tmp_path, model, MADE_FROM)
    again, images = load_extractor(tmp_path), torch.rand(2, 3, 28, 28)
    assert torch.equal(again(images)[0], model.eval()(images)[0])


def test_released_checkpoint_loads(tmp_path):
    """Key prefix `module.`, wrapped in {epoch, state}, with the classifier bias of older files."""
    source, target = build("ResNet10", 32, width=0.25), build("ResNet10", 32, width=0.25)
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    torch.save({"epoch": 89, "state": {**state, "module.classifier.bias": torch.zeros(5)}}, tmp_path / "89.tar")
    load_weights(target, tmp_path / "89.tar")
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values()))


def test_torchvision_vgg_kernels_load(tmp_path):
    from torchvision.models import vgg16

    with torch.device("meta"):
        shapes = {k: v.shape for k, v in vgg16().features.state_dict().items()}
    state = {f"features.{k}": torch.randn(shape) for k, shape in shapes.items()}
    torch.save(state, tmp_path / "vgg16.pth")
    model = build("VGG16BN", 32)
    load_weights(model, tmp_path / "vgg16.pth")
    assert torch.equal(model.trunk[0].weight, state["features.0.weight"])
    convolutions = [layer for layer in model.trunk if isinstance(layer, torch.nn.Conv2d)]
    assert torch.equal(convolutions[-1].weight, state["features.28.weight"])


def test_refused_weights(tmp_path):
    model = build("Conv4")
    with pytest.raises(InputError, match="no such file"):
        load_weights(model, tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(InputError, match=r"text\.pt: not a readable state dict"):
        load_weights(model, tmp_path / "text.pt")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="parameter 'x' is not in Conv4"):
        load_weights(model, tmp_path / "other.pt")
    torch.save(build("Conv4", n_classes=7).state_dict(), tmp_path / "seven.pt")
    with pytest.raises(InputError, match="has shape"):
        load_weights(model, tmp_path / "seven.pt")


def test_too_small_images_are_refused():
    with pytest.raises(InputError, match="16 px"):
        build("Conv4", 12)


@pytest.mark.parametrize("head", ["linear", "cosine", "mlp"])
def test_the_head_alone(tmp_path, head):
    model = build("Conv4", head=head)
    save_extractor(tmp_path, model.eval(), MADE_FROM)
    found, features = load_head(tmp_path), torch.rand(3, model.dim)
    assert (found.dim, found.n_classes) == (64, 5)
    assert torch.equal(found.classifier(features), model.classifier(features))


def test_missing_heads_are_refused(tmp_path):
    save_extractor(tmp_path, build("Conv4", n_classes=0), MADE_FROM)
    with pytest.raises(InputError, match="has no classifier"):
        load_head(tmp_path)
    save_extractor(tmp_path, build("Conv4"), MADE_FROM)
    torch.save(build("Conv4", n_classes=7).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: contains no linear classifier of 5 classes"):
        load_head(tmp_path)


def test_unknown_backbones_are_refused(tmp_path):
    with pytest.raises(InputError, match="no backbone is called 'ResNet11', did you mean 'ResNet1"):
        build("ResNet11")
