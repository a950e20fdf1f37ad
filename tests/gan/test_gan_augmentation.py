"""Augmentation of discriminator inputs: the changes, their frequencies and the adaptive probability."""

import pytest
import torch

from lowshot.gan.augmentation import N_UNIFORMS, DiscriminatorAugmentation
from lowshot.gan.settings import AdaptiveChanges, FixedChanges, NoChanges

ON, HALF, OFF = 0.0, 0.5, 0.999


def uniforms(**places) -> torch.Tensor:
    """Uniforms of one image. Changes that are not named do not happen."""
    order = ("flip", "rotate90", "translate", "x", "y", "before", "before_angle", "after", "after_angle")
    assert len(order) == N_UNIFORMS
    return torch.tensor([[places.get(name, OFF if name not in ("x", "y") else HALF) for name in order]])


def changed(image: torch.Tensor, p: float = 0.8, **places) -> torch.Tensor:
    augment = DiscriminatorAugmentation(FixedChanges(p))
    return augment(image, uniforms(**places), torch.tensor(p))


@pytest.fixture
def image() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(1, 2, 8, 8) * 2 - 1


def test_nothing_happens_to_most_images(image):
    assert torch.allclose(changed(image), image, atol=1e-5)


def test_each_change_by_hand(image):
    close = {"atol": 1e-4}
    assert torch.allclose(changed(image, flip=ON), image.flip(3), **close)
    for turns in range(4):
        turned = changed(image, rotate90=0.8 * (turns + 0.5) / 4)
        assert torch.allclose(turned, image.rot90(-turns, (2, 3)), **close)
    shifted = changed(image, translate=ON, x=1.0)  # an eighth of eight pixels to the right
    assert torch.allclose(shifted[..., 1:], image[..., :-1], **close)
    assert torch.allclose(shifted[..., 0], image[..., 1], **close)  # reflected at the border
    down = changed(image, translate=ON, y=1.0)
    assert torch.allclose(down[..., 1:, :], image[..., :-1, :], **close)
    quarter = changed(image, before=ON, before_angle=0.75)  # 0.75 of the range -180 to 180 degrees: a quarter turn
    assert torch.allclose(quarter, image.rot90(-1, (2, 3)), **close)
    both = changed(image, before=ON, before_angle=0.75, after=ON, after_angle=0.75)
    assert torch.allclose(both, image.rot90(-2, (2, 3)), **close)


def test_how_often_each_change_happens():
    """Flips have half the probability. The two rotations together have the full probability."""
    torch.manual_seed(0)
    n, p = 20_000, 0.3
    ramp = torch.linspace(-1, 1, 8).view(1, 1, 1, 8).expand(n, 1, 8, 8)  # a vertical shift does not change it
    u = torch.rand(n, N_UNIFORMS)
    for change, expected in (("flip", p / 2), ("rotate90", p * 3 / 4), ("rotate", p)):
        augment = DiscriminatorAugmentation(FixedChanges(p, changes=[change]))
        moved = (augment(ramp, u, torch.tensor(p)) - ramp).abs().amax((1, 2, 3)) > 1e-3
        assert moved.float().mean().item() == pytest.approx(expected, abs=0.012), change
    none = DiscriminatorAugmentation(FixedChanges(p, changes=[]))
    assert torch.equal(none(ramp, u, torch.tensor(p)), ramp)
    off = DiscriminatorAugmentation(NoChanges())
    assert torch.equal(off(ramp, u, torch.tensor(p)), ramp)


def test_gradients_pass_through(image):
    image.requires_grad_(True)
    changed(image, flip=ON, before=ON, before_angle=0.6).sum().backward()
    assert image.grad.abs().sum() > 0


def test_the_probability_follows_the_logits_of_real_images():
    adaptive, p = DiscriminatorAugmentation(AdaptiveChanges(n_images=1000)), torch.tensor(0.5)
    sure, unsure = torch.ones(10), torch.tensor([1.0, -1.0] * 5)  # mean signs 1 and 0; the target is 0.6
    assert adaptive.adapted(p, sure, 32).item() == pytest.approx(0.532)
    assert adaptive.adapted(p, unsure, 32).item() == pytest.approx(0.468)
    assert adaptive.adapted(torch.tensor(0.799), sure, 32).item() == pytest.approx(0.8)  # the maximum
    assert adaptive.adapted(torch.tensor(0.0), unsure, 32).item() == 0


def test_the_first_probability_and_whether_it_adapts():
    parts = [DiscriminatorAugmentation(one) for one in (NoChanges(), FixedChanges(0.4), AdaptiveChanges())]
    assert [(one.first_p, one.adapts) for one in parts] == [(0, False), (0.4, False), (0, True)]


def test_changes_of_the_users_own(image):
    class Mirror:
        def __call__(self, images, uniforms):
            assert uniforms.shape == (1, N_UNIFORMS)
            return images.flip(3)

    augment = DiscriminatorAugmentation(Mirror())
    assert torch.equal(augment(image, uniforms(), torch.tensor(0.0)), image.flip(3)) and not augment.adapts
