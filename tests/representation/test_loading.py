"""Random crops of images on disk: their smallest area, what they depend on, and that training crops once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from lowshot.core.seeds import torch_stream
from lowshot.data.datasets.images import Images
from lowshot.representation.augmentation import Augmentation
from lowshot.representation.backbones import ModelConfig
from lowshot.representation.image_training import Trainer
from lowshot.representation.loading import batches, to_unit

MODEL = ModelConfig("Conv4", 10, 3, 16)


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """30 equal images on disk whose red value is the column and whose green value is the row."""
    root = tmp_path_factory.mktemp("ramps")
    y, x = np.mgrid[:64, :64].astype(np.uint8) * 4
    for i in range(30):
        Image.fromarray(np.stack([x, y, x], axis=2)).save(root / f"{i:02}.png")
    paths = np.array([f"{i:02}.png" for i in range(30)], object)
    return Images(np.zeros(30, int), np.zeros(30, bool), paths=paths, root=root)


def areas(images: torch.Tensor) -> torch.Tensor:
    """Return the share of the area that each crop (B, 3, S, S) shows, from the span of its ramps."""
    values = images.float() / 252
    spans = values[:, :2].amax(dim=(2, 3)) - values[:, :2].amin(dim=(2, 3))
    return spans.prod(dim=1)


def cut(images: Images, smallest_area: float, key=(0, 1, 0), rows=None, num_workers=0) -> torch.Tensor:
    parts = [np.arange(30)] if rows is None else rows
    return torch.cat(list(batches(images, parts, MODEL, key, num_workers, smallest_area)))


def test_the_smallest_area(ramps):
    small, large = areas(cut(ramps, 0.08)), areas(cut(ramps, 0.6))
    assert small.min() < 0.3 and large.min() > 0.5
    assert len(small.unique()) > 10
    assert torch.equal(cut(ramps, 0.08), torch.cat(list(batches(ramps, [np.arange(30)], MODEL, (0, 1, 0)))))


def test_the_default_is_torchvisions_own(ramps):
    with torch.random.fork_rng():
        torch.manual_seed(torch_stream(0, 1, 0, "crop", 7).initial_seed())
        image = v2.functional.pil_to_tensor(Image.open(ramps.root / ramps.paths[7]))
        assert torch.equal(v2.RandomResizedCrop(16, antialias=True)(image), cut(ramps, 0.08)[7])


def test_a_part_depends_on_seed_epoch_view_and_image_only(ramps):
    whole = cut(ramps, 0.2)
    assert torch.equal(whole, cut(ramps, 0.2, rows=[np.arange(4), np.arange(4, 30)]))
    for key in ((1, 1, 0), (0, 2, 0), (0, 1, 1)):
        assert not torch.equal(whole, cut(ramps, 0.2, key))


@pytest.mark.parametrize("stored", [False, True])
def test_training_cuts_once(ramps, stored):
    """The decoder crops images on disk, the augmentation crops stored pixels."""
    augment = Augmentation(crop_area=0.2)
    pixels = np.stack([np.asarray(Image.open(ramps.root / path)) for path in ramps.paths])
    images = Images(ramps.labels, ramps.is_test, pixels) if stored else ramps
    trainer = SimpleNamespace(
        settings=SimpleNamespace(seed=3, num_workers=0),
        augment=augment,
        fabric=SimpleNamespace(device=torch.device("cpu")),
        train_rows=np.arange(30),
        images=images,
        model=SimpleNamespace(config=MODEL),
    )
    seen = torch.cat(list(Trainer._batches(trainer, 5, [np.arange(30)], 1)))
    if stored:
        whole = to_unit(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.device("cpu"))
        assert torch.equal(seen, augment(whole, augment.uniforms(30, 3, 5, 1)))
    else:
        assert torch.equal(seen, to_unit(cut(ramps, 0.2, (3, 5, 1)), torch.device("cpu")))
