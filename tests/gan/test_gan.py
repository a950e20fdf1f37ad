"""The published generator, discriminator and losses: sizes, outputs, and the parameters that fine-tuning trains."""

import math

import pytest
import torch

from lowshot.core.errors import InputError
from lowshot.gan.losses import discriminator_losses, generator_losses, mismatch_loss, weighted
from lowshot.gan.model import Gan
from lowshot.gan.networks import (
    GENERATORS,
    ClassMeans,
    Discriminator,
    DiscriminatorOutput,
    Film,
    GanConfig,
    Generator,
    ModulatedConv,
    choose_trained,
)

SMALL = GanConfig(
    n_classes=5,
    n_channels=1,
    image_size=16,
    ngf=16,
    blocks_per_res=[1, 0],
    z_dim=6,
    ndf=2,
    network="published",
    spectral_norm=True,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small(**changes) -> GanConfig:
    return GanConfig(**{**vars(SMALL), **changes})


def build(config: GanConfig) -> Generator:
    return GENERATORS[config.network](config)


def noise_and_labels(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, SMALL.z_dim, generator=generator), torch.arange(n) % SMALL.n_classes


@pytest.mark.parametrize(
    ("n_classes", "ngf", "ndf", "generator", "discriminator"),
    [
        (47, 64, 16, [24_064, 55_024, 120_091], [6_016, 72_193, 671_921]),
        (47, 512, 64, [24_064, 271_744, 4_371_779], [24_064, 878_209, 10_456_385]),
        (1623, 1024, 64, [830_976, 1_326_336, 17_708_163], [830_976, 1_685_121, 11_263_297]),
    ],
)
def test_published_numbers_of_parameters(n_classes, ngf, ndf, generator, discriminator):
    """Numbers of parameters that each mode of fine-tuning trains, and of all parameters."""
    config = GanConfig(n_classes, 3, 32, ngf=ngf, ndf=ndf, z_dim=64, network="published")
    for network, expected in ((build(config), generator), (Discriminator(config), discriminator)):
        for mode, n in zip(("embed", "linear", "all"), expected):
            assert sum(p.numel() for p in choose_trained(network, mode)) == n
        assert sum(p.numel() for p in network.parameters()) == expected[-1]


@pytest.mark.parametrize(("size", "blocks"), [(28, [1, 1]), (32, [1, 1, 1, 1]), (64, [0, 0, 0, 0]), (64, None)])
@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("network", GENERATORS)
def test_images_of_every_size(size, blocks, n_channels, network):
    config = small(image_size=size, blocks_per_res=blocks, n_channels=n_channels, network=network)
    z, labels = noise_and_labels()
    images = build(config)(z, labels)
    assert images.shape == (4, n_channels, size, size) and images.abs().max() <= 1
    evaluated = Discriminator(config)(images, labels)
    assert evaluated.conditional.shape == evaluated.unconditional.shape == (4,) and evaluated.z.shape == z.shape


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 28, "blocks_per_res": [1, 1, 1]}, "28 px, but 3 entries .* a multiple of 8, at least 16 px"),
        ({"image_size": 28, "blocks_per_res": [1] * 4}, "28 px, but 4 entries .* a multiple of 16, at least 32 px"),
        ({"image_size": 16, "blocks_per_res": [1] * 4}, "16 px, .* at least 32 px"),
        ({"image_size": 12}, "the images have 12 px, but a GAN needs at least 16 px per side"),
        ({"ngf": 18}, "ngf 18 must be divisible by 4"),
        ({"image_size": 27, "blocks_per_res": None}, "27 px, but 1 entries .* a multiple of 2, at least 4 px"),
        ({"blocks_per_res": []}, "blocks_per_res must have at least one entry"),
    ],
)
def test_sizes_that_the_generator_cannot_make(changes, words):
    with pytest.raises(InputError, match=words):
        build(small(**changes))


def test_as_many_blocks_as_the_side_can_be_halved():
    sides = {28: 2, 32: 4, 64: 4, 105: 0, 84: 2, 16: 3}
    assert {side: len(small(image_size=side, blocks_per_res=None).blocks) for side in sides} == sides


@pytest.mark.parametrize("network", GENERATORS)
def test_an_image_depends_on_its_own_noise_and_class_only(network):
    """Includes the first block, which computes the convolutions of the constant once for all images."""
    generator, (z, labels) = build(small(network=network)), noise_and_labels()
    together = generator(z, labels)
    for i in range(len(z)):
        assert torch.allclose(generator(z[i : i + 1], labels[i : i + 1])[0], together[i], atol=1e-5)
    assert not torch.allclose(generator(z, labels.roll(1)), together) and z.std() > 0
    assert not torch.allclose(generator(z.roll(1, 0), labels), together)


@pytest.mark.parametrize("network", GENERATORS)
def test_between_classes_begins_and_ends_at_them(network):
    generator, (z, labels) = build(small(network=network)), noise_and_labels()
    others = labels.roll(1)
    for share, expected in ((1.0, labels), (0.0, others)):
        images = generator.between(z, labels, others, torch.full((4, 1), share))
        assert torch.allclose(images, generator(z, expected), atol=1e-6)
    half = generator.between(z, labels, others, torch.full((4, 1), 0.5))
    assert torch.allclose(half, generator.between(z, others, labels, torch.full((4, 1), 0.5)), atol=1e-6)


@pytest.mark.parametrize("film", ["relu", "affine"])
def test_film_by_hand(film):
    """The noise comes before the class. The first half scales, the second shifts; as released, neither is negative."""
    layer, (z, labels) = Film(small(film=film), 3), noise_and_labels()
    x = torch.randn(4, 3, 2, 2)
    out = torch.cat([z, layer.table.weight[labels]], 1) @ layer.linear.weight.T + layer.linear.bias
    gamma, beta = (half[:, :, None, None] for half in (out[:, :3], out[:, 3:]))
    expected = gamma.clamp(min=0) * x + beta.clamp(min=0) if film == "relu" else (1 + gamma) * x + beta
    assert torch.allclose(layer(x, z, lambda table: table(labels)), expected, atol=1e-6)


def test_modulated_convolution_against_weights_of_every_image():
    layer, x, style = ModulatedConv(3, 4, 5), torch.randn(2, 3, 6, 6), torch.randn(2, 5)
    layer.bias.data.normal_()
    made = layer(x, style)
    for image, own, out in zip(x, layer.style(style), made):
        weight = layer.weight * own[None, :, None, None]
        weight = weight / weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        expected = torch.nn.functional.conv2d(image[None], weight, layer.bias, padding=1)[0]
        assert torch.allclose(out, torch.where(expected > 0, expected, 0.2 * expected) * 2**0.5, atol=1e-4)


def test_the_projection_is_what_a_class_adds():
    discriminator, labels = Discriminator(SMALL).eval(), torch.tensor([3, 1, 3])
    images, seen = torch.rand(3, 1, 16, 16) * 2 - 1, []
    discriminator.hidden.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.relu()))
    evaluated = discriminator(images, labels)
    added = (discriminator.table.weight[labels] * seen[0]).sum(1)
    assert torch.allclose(evaluated.conditional - evaluated.unconditional, added, atol=1e-5) and added.abs().min() > 0


def test_one_pass_evaluates_as_passes_of_their_own():
    """There is no batch norm, so real and generated images can share a batch."""
    discriminator, labels = Discriminator(SMALL).eval(), torch.arange(6) % 5
    images = torch.rand(6, 1, 16, 16) * 2 - 1
    together = discriminator(images, labels)
    parts = [discriminator(images[rows], labels[rows]) for rows in (slice(0, 2), slice(2, 6))]
    for whole, *halves in zip(together, *parts):
        assert torch.allclose(whole, torch.cat(halves), atol=1e-5)


@pytest.mark.parametrize("n_features", [0, 3])
def test_every_layer_but_the_table_is_spectrally_normalised(n_features):
    discriminator = Discriminator(small(n_features=n_features))
    images, labels = torch.rand(4, 1, 16, 16), torch.arange(4)
    for _ in range(300):
        discriminator(images, labels)
    layers = {name: layer for name, layer in discriminator.named_modules()
              if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)) and "table" not in name}  # fmt: skip
    assert len(layers) == 10 + 4 + 5  # layers of blocks, of shortcuts (the last block has none), of heads
    for name, layer in layers.items():
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-2), name
    assert not any("parametrizations" in name for name, _ in discriminator.table.named_parameters())


MOVED = {
    "published": {"embed": {"table"}, "linear": {"table", "linear"}},
    "modulated": {"embed": {"table"}, "linear": {"table", "mapping", "style"}},
    "discriminator": {"embed": {"table"}, "linear": {"table", "hidden", "logit", "noise"}},
}


@pytest.mark.parametrize("mode", ["embed", "linear", "all"])
@pytest.mark.parametrize("which", MOVED)
def test_fine_tuning_moves_exactly_its_part(which, mode):
    torch.manual_seed(0)
    generator = build(small(network=which if which in GENERATORS else "published"))
    networks = {"generator": generator, "discriminator": Discriminator(SMALL)}
    network, (z, labels) = networks.get(which, generator), noise_and_labels(20)
    optimizer = torch.optim.AdamW(choose_trained(network, mode), lr=0.1, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    fake = networks["discriminator"](networks["generator"](z, labels), labels)
    weighted(generator_losses(fake, z), gamma=1.0, alpha=1.0).backward()
    optimizer.step()
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    expected = {name for name in before if mode == "all" or MOVED[which][mode] & set(name.split("."))}
    assert moved == expected and expected


def test_losses_by_hand():
    def evaluated(conditional, unconditional, z):
        hidden = torch.zeros(len(z), 2)
        return DiscriminatorOutput(torch.tensor(conditional), torch.tensor(unconditional), torch.tensor(z), hidden)

    real = evaluated([2.0, -1.0], [0.0, 0.0], [[0.0], [0.0]])
    fake = evaluated([1.0, 0.0], [3.0, -3.0], [[1.0], [2.0]])
    pool = evaluated([9.0] * 3, [1.0, 2.0, 3.0], [[9.0]] * 3)  # only the unconditional logits of this pool count
    z = torch.tensor([[0.0], [0.0]])

    def softplus(*values):
        return sum(math.log1p(math.exp(value)) for value in values) / len(values)

    made = {name: loss.item() for name, loss in generator_losses(fake, z).items()}
    expected = {"adversarial": softplus(-1, 0), "noise": 2.5, "unconditional": softplus(-3, 3)}
    assert made == pytest.approx(expected, rel=1e-5)
    losses = discriminator_losses(real, fake, pool, z)
    expected = {
        "adversarial": (softplus(-2, 1) + softplus(1, 0)) / 2,
        "noise": 2.5,
        "unconditional": (softplus(-1, -2, -3) + softplus(3, -3)) / 2,
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5)
    total = expected["adversarial"] + 0.5 * expected["noise"] + 0.25 * expected["unconditional"]
    assert weighted(losses, gamma=0.5, alpha=0.25).item() == pytest.approx(total, rel=1e-5)
    assert weighted(losses, gamma=0.0, alpha=0.0).item() == pytest.approx(expected["adversarial"], rel=1e-5)
    mismatch = mismatch_loss(torch.tensor([2.0, 5.0, -1.0, 0.0]), torch.tensor([True, False, True, True]))
    assert mismatch.item() == pytest.approx(softplus(2, -1, 0) * 3 / 4 / 2, rel=1e-5)
    total = expected["adversarial"] + 0.3 * mismatch.item()
    assert weighted(losses | {"mismatch": mismatch}, 0.0, 0.0, 0.3).item() == pytest.approx(total, rel=1e-5)


def test_classes_described_by_features():
    """The means of the first classes are standardised. Those of other classes use the same standardisation.

    Both networks and the averaged generator get the means.
    """
    gan = Gan(small(n_features=3, network="modulated"))
    features, labels = torch.randn(60, 3) * torch.tensor([1.0, 5.0, 0.1]) + 7, torch.arange(60) % 3
    gan.describe(features, labels)
    tables = [one for one in gan.modules() if isinstance(one, ClassMeans)]
    assert len(tables) == 3
    raw = torch.stack([features[labels == c].mean(0) for c in range(3)])
    for table in tables:
        assert torch.allclose(table.means[:3], (raw - raw.mean(0)) / raw.std(0, correction=0), atol=1e-3)
        assert not table.means[3:].any()
        expected = (table.means[:3] @ table.linear.weight.T + table.linear.bias) / table.linear.out_features**0.5
        assert torch.allclose(table(torch.arange(3)), expected, atol=1e-6)
    gan.check_knows([0, 2], "there")
    with pytest.raises(InputError, match=r"there: has no embedding of class 4\. Fine-tune"):
        gan.check_knows([0, 4], "there")
    shots, base = 7 + torch.randn(2, 3), tables[0].means[:3].clone()
    gan.describe(shots, torch.tensor([4, 4]))
    for table in tables:
        expected = (shots.mean(0) - raw.mean(0)) / raw.std(0, correction=0)
        assert torch.allclose(table.means[4], expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(table.means[:3], base)
    z = noise_and_labels(1)[0].expand(4, -1)
    images = gan.generator(z, torch.tensor([0, 1, 4, 3]))
    assert torch.cdist(images.flatten(1), images.flatten(1)).fill_diagonal_(1).min() > 1e-3


def test_a_feature_that_base_classes_share_does_not_swamp_others():
    gan = Gan(small(n_features=2, network="modulated"))
    gan.describe(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1]))
    gan.describe(torch.tensor([[1.0, 1.0]]), torch.tensor([2]))
    assert gan.generator.table.means[:3].tolist() == [[0, -1], [0, 1], [1, -1]]


@pytest.mark.parametrize(("mode", "learns"), [("embed", False), ("linear", True), ("all", True)])
def test_unlabelled_images_teach_only_what_is_trained(mode, learns):
    """The unconditional logit does not depend on the class table, which is all that `embed` trains."""
    discriminator = Discriminator(SMALL)
    choose_trained(discriminator, mode)
    images, (z, labels) = torch.rand(4, 1, 16, 16), noise_and_labels()
    evaluated = discriminator(images, labels)
    loss = discriminator_losses(evaluated, evaluated, evaluated, z)["unconditional"]
    assert loss.requires_grad == learns
