"""Augmentation: exact where possible, and independent of the batch that an image is in."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from lowshot.core.seeds import torch_stream
from lowshot.representation.augmentation import Augmentation, _blur

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

LATER = {
    "crop_area": 0.2,
    "blur_probability": 0.5,
    "jitter_probability": 0.8,
    "hue": 0.1,
    "grey_probability": 0.2,
}
PUBLISHED = Augmentation(flip=True, crop_area=0.2, jitter=0.4, jitter_probability=0.8, hue=0.1, grey_probability=0.2,
                         blur_sigma=2, blur_probability=0.5)  # fmt: skip


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


@pytest.mark.parametrize("augment", [EVERYTHING, PUBLISHED, replace(EVERYTHING, **LATER)])
def test_everything_stays_in_range_and_changes_the_image(augment):
    out = augment(images(), augment.uniforms(6, 0, 0))
    assert out.shape == (6, 3, 16, 16) and out.min() >= 0 and out.max() <= 1
    assert not torch.allclose(out, images())


@pytest.mark.parametrize("augment", [EVERYTHING, PUBLISHED])
def test_an_image_does_not_depend_on_its_batch(augment):
    x, uniforms = images(), augment.uniforms(6, 0, 5)
    whole = augment(x, uniforms)
    parts = torch.cat([augment(x[i : i + 2], uniforms[i : i + 2]) for i in (0, 2, 4)])
    assert torch.allclose(whole, parts, atol=1e-6)
    assert torch.equal(uniforms, augment.uniforms(6, 0, 5))
    others = [augment.uniforms(6, *key) for key in ((0, 6), (1, 5), (0, 5, 1))]
    assert not any((uniforms == other).any() for other in others)


def test_jitter_leaves_colours_of_grey_images_alone():
    grey = images(4, 1)
    augment = Augmentation(jitter=0.4)
    uniforms = augment.uniforms(4, 0, 0)
    as_rgb = augment(grey.expand(-1, 3, -1, -1), uniforms)
    assert torch.allclose(as_rgb[:, :1], augment(grey, uniforms), atol=1e-5)


def test_newer_settings_do_not_change_older_ones():
    """Bit for bit: the random numbers of a row, their use, and two sums from before the newer settings existed."""
    x, before = images(50), EVERYTHING.uniforms(50, 3, 1, 1)
    assert torch.equal(before, torch.rand(50, 18, generator=torch_stream(3, "augmentation", 1, 1)))
    for name, value in LATER.items():
        uniforms = replace(EVERYTHING, **{name: value}).uniforms(50, 3, 1, 1)
        assert uniforms.shape[1] > 18 and torch.equal(uniforms[:, :18], before)
        assert torch.isin(uniforms[:, 18:], before).float().mean() < 0.01
        assert torch.equal(EVERYTHING(x, uniforms), EVERYTHING(x, before))
    weights = torch.arange(16.0).view(16, 1) + 2 * torch.arange(16.0)
    assert (EVERYTHING(x, before) * weights).sum().item() == pytest.approx(422158.1, rel=1e-4)
    small = replace(EVERYTHING, affine_probability=1.0, border="zeros", blur_sigma=1.0)
    assert (small(x[:, :1], before) * weights).sum().item() == pytest.approx(124052.9, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "share"), [("jitter_probability", 1), ("grey_probability", 1), ("blur_probability", 0.9)]
)
def test_probabilities(name, share):
    """A tenth of the blurs has less than 0.2 pixels, which changes nothing."""
    x = images(1500)
    off = Augmentation(jitter=0.4, hue=0.1, blur_sigma=2, blur_probability=0, jitter_probability=0)
    for probability in (0.0, 0.3, 1.0):
        augment = replace(off, **{name: probability})
        changed = ((augment(x, augment.uniforms(1500, 0, 0)) - x).abs().flatten(1).amax(1) > 1e-5).float().mean()
        assert changed == pytest.approx(probability * share, abs=0.04 if probability else 0)
    if name != "grey_probability":  # not given is always
        assert torch.equal(*(replace(off, **{name: p})(x, augment.uniforms(1500, 0, 0)) for p in (None, 1.0)))


def drawn(n, **columns):
    """Return rows of random numbers in which the columns u13, u20, ... are given."""
    rows = torch.rand(n, 44, generator=torch.Generator().manual_seed(2))
    for name, values in columns.items():
        rows[:, int(name[1:])] = values
    return rows


def turned(x, turns):
    """Rotate the hue of images by shares of the colour circle in -1/2 .. 1/2."""
    return Augmentation(hue=0.5)(x, drawn(len(x), u20=turns + 0.5))


def test_hue_is_that_of_torchvision():
    x, turns = images(40), torch.linspace(-0.5, 0.5, 40)
    x[0], x[1, 1], x[2] = 0.3, x[1, 0], torch.tensor([1.0, 0, 0]).view(3, 1, 1)  # grey, two equal channels, pure red
    expected = torch.stack([V.adjust_hue(image, turn.item()) for image, turn in zip(x, turns)])
    assert torch.allclose(turned(x, turns), expected, atol=5e-6)
    third = turned(x, torch.full((40,), 1 / 3))  # red becomes green, green blue, blue red
    assert torch.allclose(third, x[:, [2, 0, 1]], atol=5e-6)


def test_hue_of_greys_and_no_turn_change_nothing():
    x, turns = images(40), torch.linspace(-0.5, 0.5, 40)
    grey = torch.cat([torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16), images(38, 1).expand(-1, 3, -1, -1)])
    assert torch.allclose(turned(grey, turns), grey, rtol=0, atol=2e-6)
    assert torch.allclose(turned(x, torch.zeros(40)), x, rtol=0, atol=2e-6)


def luma(x):
    """Return RGB images as grey images."""
    return 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:] if x.shape[1] == 3 else x


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_its_formula(channels):
    """With factors from 0 to 2, for smooth, black, white and two-valued images."""
    x, u = images(60, channels), drawn(60)
    u[0, 13:16], u[1, 13:16], u[2, 13:16], u[3, 14], u[4, 15] = 0, 0.5, 1, 0, 0
    x[5], x[6], x[10:20] = 0, 1, x[10:20].round()
    brightness, contrast, colour = (2 * u[:, 13:16].double()).view(60, 3, 1, 1, 1).unbind(1)
    expected = (brightness * x).clamp(0, 1)
    mean = luma(expected).mean((2, 3), keepdim=True)
    expected = (mean + contrast * (expected - mean)).clamp(0, 1)
    expected = (luma(expected) + colour * (expected - luma(expected))).clamp(0, 1)
    out = Augmentation(jitter=1.0)(x, u)
    assert out.dtype == torch.float32 and torch.allclose(out.double(), expected, rtol=0, atol=1e-6)
    assert torch.allclose(out[1], x[1], rtol=0, atol=1e-6)


def test_grey_is_its_formula():
    x = images(30)
    out = Augmentation(grey_probability=0.5)(x, drawn(30, u21=torch.linspace(0, 0.99, 30)))
    assert torch.allclose(out[:15], luma(x[:15]).expand(-1, 3, -1, -1), rtol=0, atol=1e-6)
    assert torch.equal(out[15:], x[15:])
    one = images(30, 1)
    assert torch.equal(Augmentation(grey_probability=1.0)(one, drawn(30)), one)


def test_hue_turns_at_most_so_far_and_leaves_single_channels_alone():
    augment, red = Augmentation(hue=0.1), torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(300, 3, 2, 2)
    out = augment(red, augment.uniforms(300, 0, 0))[:, :, 0, 0]
    assert (out[:, 0] == 1).all() and out[:, 1:].max() <= 0.6 + 1e-5 and (out[:, 1:].amax(0) > 0.57).all()
    grey = images(5, 1)
    assert torch.equal(augment(grey, augment.uniforms(5, 0, 0)), grey)


def test_blur_is_that_of_torchvision():
    """On smooth images, away from the border, where torchvision uses reflection."""
    x = torch.nn.functional.avg_pool2d(images(4).repeat_interleave(3, 2).repeat_interleave(3, 3), 5, 1)
    for sigma in (0.6, 1.5, 2.0):
        blurred = _blur(x, torch.full((4, 1), sigma), 6)
        expected = V.gaussian_blur(x, [13, 13], [sigma, sigma])
        assert torch.allclose(blurred[..., 6:-6, 6:-6], expected[..., 6:-6, 6:-6], atol=1e-5)
    assert torch.equal(_blur(x, torch.zeros(4, 1), 6), x)
    assert torch.allclose(_blur(torch.full((2, 1, 8, 8), 0.4), torch.full((2, 1), 2.0), 6), torch.tensor(0.4))


@pytest.mark.parametrize(("radius", "channels"), [(1, 1), (1, 3), (6, 3), (20, 1)])
def test_blur_is_its_formula(radius, channels):
    """Including the border, which is replicated; on images that are not square, with a different sigma each."""
    x, sigma = images(5, channels)[:, :, :11], torch.tensor([0.0, 0.1, 0.7, 2.0, 50.0])[:, None]
    steps = torch.arange(-radius, radius + 1).double()
    weights = torch.exp(-0.5 * (steps / sigma.double().clamp(min=1e-9)) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    rows, columns = ((torch.arange(n)[:, None] + steps.long()).clamp(0, n - 1) for n in x.shape[2:])
    expected = torch.einsum("bchwk,bk->bchw", x.double()[..., columns], weights)
    expected = torch.einsum("bchkw,bk->bchw", expected[:, :, rows], weights)
    assert torch.allclose(_blur(x, sigma, radius).double(), expected, rtol=0, atol=1e-6)


def test_a_sharp_blur_is_cut_at_the_side_of_the_image():
    augment = Augmentation(blur_sigma=1e9)
    out = augment(images(2), augment.uniforms(2, 0, 0))
    assert (out.amax(dim=(2, 3)) - out.amin(dim=(2, 3))).max() < 0.6 and out.isfinite().all()


def boxes(crop_area, n=4000, **options):
    """Return width, height, left and top edge of the crops, as shares of the image, measured on a ramp."""
    augment = Augmentation(crop_area=crop_area, **options)
    ramp = torch.arange(8.0).add(0.5).div(8)
    x = torch.stack([ramp.expand(8, 8), ramp.view(8, 1).expand(8, 8)]).expand(n, 2, 8, 8)
    out = augment(x, augment.uniforms(n, 0, 0))
    first, last = out[:, 0, 3, 3:5].T, out[:, 1, 3:5, 3].T  # the middle, where no border is near
    sides = 8 * torch.stack([first[1] - first[0], last[1] - last[0]], dim=1)
    centre = torch.stack([first.mean(0), last.mean(0)], dim=1)
    return sides, centre - sides.abs() / 2


def test_crop_takes_parts_as_torchvision_does():
    sides, edges = boxes(0.2)
    area, ratio = sides.prod(1), sides[:, 0] / sides[:, 1]
    assert area.min() > 0.2 - 1e-4 and area.max() < 1 + 1e-4
    assert ratio.min() > 0.75 - 1e-3 and ratio.max() < 4 / 3 + 1e-3
    assert edges.min() > -1e-4 and (edges + sides).max() < 1 + 1e-4
    small = sides.amax(1) < 0.6  # parts that can be anywhere
    assert edges[small].amin(0).max() < 0.01 and (edges + sides)[small].amax(0).min() > 0.99
    torch.manual_seed(0)
    crop, picture = v2.RandomResizedCrop(8, (0.2, 1.0)), [torch.empty(3, 1000, 1000)]
    drawn = [crop.make_params(picture) for _ in range(2000)]
    left, width, height = (torch.tensor([one[k] for one in drawn]) / 1000 for k in ("left", "width", "height"))
    at = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    for ours, theirs in ((area, width * height), (ratio, width / height), (edges[:, 0], left)):
        assert torch.allclose(ours.quantile(at), theirs.quantile(at), atol=0.04)


def test_a_crop_of_the_whole_area_only_flips():
    x = images(100)
    augment = Augmentation(crop_area=1.0, flip=True)
    out = augment(x, augment.uniforms(100, 0, 0))
    only_flip = Augmentation(flip=True)
    assert torch.allclose(out, only_flip(x, augment.uniforms(100, 0, 0)), atol=1e-5)


def test_a_crop_flips_and_never_reaches_outside():
    sides, _ = boxes(0.2, flip=True)
    assert 0.45 < (sides[:, 0] < 0).float().mean() < 0.55 and (sides[:, 1] > 0).all()
    augment = Augmentation(crop_area=0.2, flip=True)
    assert torch.allclose(augment(torch.ones(50, 3, 8, 8), augment.uniforms(50, 0, 0)), torch.ones(1))


def test_a_crop_is_that_of_torchvision_inside():
    """A crop equals torchvision's crop and resize of the same box, away from the border."""
    sides, edges = boxes(0.2, n=5)
    yy, xx = torch.meshgrid(torch.linspace(0, 3, 40), torch.linspace(0, 3, 40), indexing="ij")
    x = (torch.sin(xx * 2 + yy) / 2 + 0.5).expand(5, 1, 40, 40)
    augment = Augmentation(crop_area=0.2)
    out = augment(x, augment.uniforms(5, 0, 0))
    for i, ((width, height), (left, top)) in enumerate(zip((sides * 40).tolist(), (edges * 40).tolist())):
        picture = Image.fromarray(x[i, 0].numpy())
        expected = picture.resize((40, 40), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        difference = (V.pil_to_tensor(expected)[0] - out[i, 0]).abs()
        assert difference[3:-3, 3:-3].max() < 5e-3


def test_the_area_that_a_decoder_cuts():
    assert Augmentation().smallest_area is None
    assert Augmentation(resized_crop=True).smallest_area == 0.08
    assert Augmentation(crop_area=0.2).smallest_area == 0.2
    assert Augmentation(resized_crop=True, crop_area=0.2).smallest_area == 0.2
