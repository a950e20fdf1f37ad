"""Augmentation: exact where it can be, and the same for an image whatever batch it is in."""

import pytest
import torch

from lowshot.augmentation import Augmentation

EVERYTHING = Augmentation(
    flip=True,
    shift_pixels=2,
    crop_pixels=2,
    rotate_degrees=30,
    scale=0.15,
    translate=0.15,
    shear_degrees=12,
    affine_probability=0.5,
    border="reflection",
    blur_sigma=0.5,
    jitter=0.4,
)


def images(n=6, channels=3):
    return torch.rand(n, channels, 16, 16, generator=torch.Generator().manual_seed(1))


def test_off_by_default():
    x = images()
    assert torch.equal(Augmentation()(x, Augmentation().uniforms(6, 0, 0)), x)


def test_flip_mirrors_about_half():
    augment, x = Augmentation(flip=True), images(200)
    out = augment(x, augment.uniforms(200, 0, 0))
    mirrored = (out == x.flip(-1)).flatten(1).all(1)
    assert ((out == x).flatten(1).all(1) ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


@pytest.mark.parametrize("flip", [False, True])
def test_shift_moves_whole_pixels_and_fills_with_zeros(flip):
    augment = Augmentation(shift_pixels=2, flip=flip)
    x, uniforms = images(50), augment.uniforms(50, 3, 0)
    out = augment(x, uniforms)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    windows = [padded[:, :, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
    candidates = torch.stack(windows + [w.flip(-1) for w in windows] * flip)
    error = (candidates - out).abs().flatten(2).amax(2)
    assert error.min(0).values.max() < 1e-4
    assert len(error.argmin(0).unique()) > 10


def test_crop_of_a_constant_stays_constant():
    augment = Augmentation(crop_pixels=4, border="border")
    out = augment(torch.full((20, 1, 16, 16), 0.5), augment.uniforms(20, 0, 0))
    assert torch.allclose(out, torch.full_like(out, 0.5), atol=1e-5)


def test_everything_stays_in_range_and_changes_the_image():
    out = EVERYTHING(images(), EVERYTHING.uniforms(6, 0, 0))
    assert out.shape == (6, 3, 16, 16) and out.min() >= 0 and out.max() <= 1
    assert not torch.allclose(out, images())


def test_an_image_does_not_depend_on_its_batch():
    x, uniforms = images(), EVERYTHING.uniforms(6, 0, 5)
    whole = EVERYTHING(x, uniforms)
    parts = torch.cat([EVERYTHING(x[i : i + 2], uniforms[i : i + 2]) for i in (0, 2, 4)])
    assert torch.allclose(whole, parts, atol=1e-6)
    assert torch.equal(uniforms, EVERYTHING.uniforms(6, 0, 5))
    assert not torch.equal(uniforms, EVERYTHING.uniforms(6, 0, 6))


def test_jitter_leaves_colours_of_grey_images_alone():
    grey = images(4, 1)
    augment = Augmentation(jitter=0.4)
    uniforms = augment.uniforms(4, 0, 0)
    as_rgb = augment(grey.expand(-1, 3, -1, -1), uniforms)
    assert torch.allclose(as_rgb[:, :1], augment(grey, uniforms), atol=1e-5)
