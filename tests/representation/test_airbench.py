"""The network of airbench: whitening by hand, identity start, pooling, training from a config; pooling before ReLU."""

import pytest
import torch
import torch.nn.functional as F
from conftest import settings
from torch import nn

import train_extractor
from lowshot.core.errors import InputError
from lowshot.representation.airbench import Whitening, airbench_trunk, whitening_filters
from lowshot.representation.backbones import Extractor, ModelConfig, WideBlock, load_extractor
from lowshot.representation.operations import operations_per_image


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
    trunk = airbench_trunk(3, [32, 32], depth=2)
    first, second = [layer for layer in trunk if isinstance(layer, nn.Conv2d)][1:3]
    image = torch.rand(1, 32, 6, 6)
    assert torch.allclose(first(image), image)  # 32 -> 32
    assert torch.allclose(second(image), image)


@pytest.mark.parametrize(("side", "last"), [(32, 3), (28, 3), (24, 2), (20, 2)])
def test_sides_of_the_groups(side, last):
    trunk = airbench_trunk(3, [8, 8, 8], depth=2)[:-2]
    assert trunk(torch.rand(1, 3, side, side)).shape == (1, 8, last, last)


def test_it_trains_from_the_command_line_and_is_rebuilt(tmp_path, data):
    model = {"name": "Airbench", "widths": [16, 24], "depth": 1}
    config = settings(train_extractor.Config, data=data, out=tmp_path / "e", model=model, epochs=1, batch_size=16)
    extractor = load_extractor(train_extractor.main(config))
    assert extractor.dim == 24
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


def test_operations_of_published_networks():
    airbench94 = Extractor(ModelConfig("Airbench", 10, 3, 32, options={"widths": [64, 256, 256], "depth": 2}))
    assert operations_per_image(airbench94, 32) == pytest.approx(2 * 118.1e6, rel=1e-3)
    assert operations_per_image(airbench94, 20) == pytest.approx(247.5e6 / 3, rel=1e-3)
    quarter = Extractor(ModelConfig("ResNet12", 64, 3, 32, width=0.25))
    assert operations_per_image(quarter, 32) == pytest.approx(198.4e6 / 3, rel=1e-3)
