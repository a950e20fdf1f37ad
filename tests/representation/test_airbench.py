"""Training on few operations: the network of airbench, triangle, small images first, counted operations."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import settings
from torch import nn

import train_extractor
from lowshot.core.errors import InputError
from lowshot.representation.airbench import Pair, Whitening, airbench_trunk, start_as_identity, whitening_filters
from lowshot.representation.backbones import Extractor, ModelConfig, WideBlock, load_extractor
from lowshot.representation.extractor_training import turned
from lowshot.representation.losses import loss_of
from lowshot.representation.operations import operations_per_image
from lowshot.representation.settings import Plain, ProgressiveResizing, Triangle


def test_whitening_by_hand():
    moment = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)  # eigenvalues 1 and 3
    filters = whitening_filters(moment, 5e-4)
    assert filters[:2].abs().flatten().tolist() == pytest.approx([0.7069301, 0.7069301, 0.4082143, 0.4082143], abs=1e-7)
    assert torch.equal(filters[2:], -filters[:2])
    whitened = filters[:2] @ moment @ filters[:2].T
    assert whitened.diagonal().tolist() == pytest.approx([0.9995002, 0.9998334], abs=1e-7)
    assert whitened[0, 1].item() == pytest.approx(0, abs=1e-12)


def test_whitening_of_an_image():
    layer = Whitening(1)
    layer.fit([torch.arange(9.0).reshape(1, 1, 3, 3)], 5e-4)
    lengths = layer.weight.flatten(1).norm(dim=1)[:4]  # eigenvectors have unit length
    assert sorted(lengths.tolist()) == pytest.approx([0.1099016, 0.9097137, 44.7213595, 44.7213595], rel=1e-4)


def test_convolutions_start_as_the_identity():
    trunk = airbench_trunk(3, [32, 48], depth=3)
    start_as_identity(trunk)
    first, second = [layer for layer in trunk if isinstance(layer, nn.Conv2d)]
    [_, pair] = [layer for layer in trunk if isinstance(layer, Pair)]
    image = torch.rand(1, 48, 6, 6)
    assert torch.allclose(first(image[:, :24])[:, :24], image[:, :24])  # 24 -> 32
    assert torch.allclose(second(image[:, :32])[:, :32], image[:, :32])  # 32 -> 48
    for layer in (pair.convolutions[0], pair.convolutions[3]):
        assert torch.allclose(layer(image), image)


def test_groups_of_any_depth():
    for depth, n_convolutions, n_shortcuts in ((1, 1, 0), (2, 2, 0), (3, 3, 1), (4, 4, 1), (5, 5, 2)):
        trunk = airbench_trunk(1, [8], depth)
        assert sum(isinstance(layer, nn.Conv2d) for layer in trunk.modules()) == n_convolutions
        assert sum(isinstance(layer, Pair) for layer in trunk.modules()) == n_shortcuts
        assert trunk(torch.rand(2, 1, 9, 9)).shape == (2, 8)


def test_airbench96_has_shortcuts():
    """Its training, 37 epochs of 48 steps of 1024 images, is published as 4.9e15 operations."""
    model = Extractor(ModelConfig("Airbench", 10, 3, 32, options={"widths": [128, 384, 512], "depth": 3}))
    assert 3 * operations_per_image(model, 32) * 37 * 48 * 1024 == pytest.approx(4.9e15, rel=0.01)


def test_features_of_each_pooling():
    torch.manual_seed(0)
    maximum, average = (airbench_trunk(1, [8], 1, pooling).eval() for pooling in ("maximum", "average"))
    average.load_state_dict(maximum.state_dict())
    images = torch.rand(2, 1, 9, 9)
    maps = maximum[:-1](images)
    assert torch.allclose(maximum(images), maps.amax((2, 3)) / 9)
    assert torch.allclose(average(images), maps.mean((2, 3)))
    normalised = airbench_trunk(1, [8], 1, "normalised")
    normalised.load_state_dict(maximum.state_dict(), strict=False)
    expected = F.batch_norm(normalised[:-3](images).mean((2, 3)), None, None, training=True)
    assert torch.allclose(normalised(images), expected, atol=1e-5)


@pytest.mark.parametrize(("side", "last"), [(32, 3), (28, 3), (24, 2), (20, 2)])
def test_sides_of_the_groups(side, last):
    trunk = airbench_trunk(3, [8, 8, 8], depth=2)[:-1]
    assert trunk(torch.rand(1, 3, side, side)).shape == (1, 8, last, last)


def test_it_trains_from_the_command_line_and_is_rebuilt(tmp_path, data):
    model = {"name": "Airbench", "widths": [16, 24], "depth": 1, "identity": False, "pooling": "average"}
    config = settings(train_extractor.Config, data=data, out=tmp_path / "e", model=model, epochs=1, batch_size=16)
    extractor = load_extractor(train_extractor.main(config))
    assert extractor.dim == 24 and extractor.config.options["pooling"] == "average"
    assert extractor.trunk[0].weight.any()  # fitted, and part of the file
    assert not [name for name, _ in extractor.named_parameters() if name == "trunk.0.weight"]  # and not trained


def test_too_small_images_are_refused():
    with pytest.raises(InputError, match="need images of at least 9 px"):
        Extractor(ModelConfig("Airbench", 5, 3, 8, options={"widths": [8, 8, 8], "depth": 1}))


def test_pooling_before_the_leaky_relu_changes_nothing():
    torch.manual_seed(0)
    block = WideBlock(3, 8, True, nn.Identity()).double()
    image = torch.rand(4, 3, 10, 10, dtype=torch.float64)

    def slow(x):
        return F.max_pool2d(F.leaky_relu(block.convolutions(x) + block.shortcut(x), 0.1), 2, ceil_mode=True)

    gradients = []
    for forward in (block, slow):
        block.zero_grad()
        forward(image).square().sum().backward()
        gradients.append(block.convolutions[0].weight.grad.clone())
    assert torch.equal(block(image), slow(image))
    assert torch.allclose(*gradients, rtol=1e-10)


def test_triangle():
    schedule = Triangle(rise=0.23, start=0.2, end=0.07)
    rates = [schedule.rate(epoch, 100, 2.0) for epoch in (0, 11.5, 23, 61.5, 100)]
    assert rates == pytest.approx([0.4, 1.2, 2.0, 1.07, 0.14])


def test_label_smoothing_by_hand():
    scores, label = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([0])
    losses = [loss_of(Plain(label_smoothing=share))(scores, scores, label, None).item() for share in (0, 0.1, 0.2)]
    assert losses == pytest.approx([0.4401897, 0.5901897, 0.7401897], abs=1e-6)


def test_small_images_come_first_and_cost_less(tmp_path, data):
    """8 px for half of the training, then the full 16 px. Convolutions of a quarter of the pixels cost a quarter."""
    seen = {}
    for name, small in (("small", {"sizes": [8], "until": [0.5]}), ("full", None)):
        options = {
            "model": {"name": "ResNet10", "width": 0.1},
            "epochs": 2,
            "batch_size": 50,
            "progressive_resizing": small,
        }
        folder = train_extractor.main(settings(train_extractor.Config, data=data, out=tmp_path / name, **options))
        seen[name] = [json.loads(line)["operations"] for line in (folder / "log.jsonl").read_text().splitlines()]
    model = load_extractor(tmp_path / "full")
    eight, sixteen = (3 * operations_per_image(model, side) for side in (8, 16))
    n = 6 * 10  # images of base classes
    assert seen == {"small": [n * eight, n * (eight + sixteen)], "full": [n * sixteen, 2 * n * sixteen]}
    assert eight == pytest.approx(sixteen / 4, rel=0.01)


@pytest.mark.parametrize(
    ("small", "message"),
    [
        (
            {"sizes": [8, 12], "until": [0.5]},
            "--progressive_resizing: 2 sizes and 1 shares of the training. Give one share for",
        ),
        ({"sizes": [12, 8], "until": [0.5, 0.2]}, "--progressive_resizing.until .*: must increase"),
        ({"sizes": [8, 12], "until": [0.5, 0.5]}, "--progressive_resizing.until .*: must increase"),
        ({"sizes": [2], "until": [0.5]}, "--progressive_resizing.sizes 2: not possible with this network"),
        ({"sizes": [20], "until": [0.5]}, "--progressive_resizing.sizes 20: the images have 16 px"),
    ],
)
def test_sizes_that_do_not_fit(tmp_path, data, small, message):
    model = {"name": "Conv4", "width": 0.1}
    config = settings(train_extractor.Config, data=data, out=tmp_path / "e", model=model, progressive_resizing=small)
    with pytest.raises(InputError, match=message):
        train_extractor.main(config)


def test_sizes_in_order():
    small = ProgressiveResizing(sizes=[20, 28], until=[0.2, 0.5])
    assert [small.at(done, 32) for done in (0, 0.19, 0.2, 0.49, 0.5, 1)] == [20, 20, 28, 28, 32, 32]


def test_a_quarter_of_the_images_is_turned_by_each_number():
    images = torch.rand(6, 1, 5, 5)
    changed, turns = turned(images)
    assert turns.tolist() == [0, 0, 1, 2, 2, 3]
    assert all(torch.equal(new, old.rot90(int(n), (1, 2))) for new, old, n in zip(changed, images, turns))


def test_turns_are_learned_and_not_kept(tmp_path, data):
    """The weight of the task changes the trunk, and the extractor has one classifier."""
    options = {"data": data, "model": {"name": "Conv4", "width": 0.1}, "epochs": 2, "batch_size": 16}

    def trained(out, **changes):
        config = settings(train_extractor.Config, **(options | {"rotation_weight": 0.5} | changes), out=tmp_path / out)
        return load_extractor(train_extractor.main(config)).state_dict()

    whole = trained("a")
    assert not [name for name in whole if "turns" in name]
    assert not torch.equal(whole["trunk.0.weight"], trained("b", rotation_weight=1.0)["trunk.0.weight"])


def test_nesterov_needs_momentum(tmp_path, data):
    optimizer = {"name": "sgd", "nesterov": True, "momentum": 0.0}
    config = settings(train_extractor.Config, data=data, out=tmp_path / "e", optimizer=optimizer, epochs=1)
    with pytest.raises(InputError, match=r"--optimizer\.nesterov: needs momentum"):
        train_extractor.main(config)


def test_operations_of_published_networks():
    airbench94 = Extractor(ModelConfig("Airbench", 10, 3, 32, options={"widths": [64, 256, 256], "depth": 2}))
    assert operations_per_image(airbench94, 32) == pytest.approx(2 * 118.1e6, rel=1e-3)
    assert operations_per_image(airbench94, 20) == pytest.approx(247.5e6 / 3, rel=1e-3)
    quarter = Extractor(ModelConfig("ResNet12", 64, 3, 32, width=0.25))
    assert operations_per_image(quarter, 32) == pytest.approx(198.4e6 / 3, rel=1e-3)
