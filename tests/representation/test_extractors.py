"""Open an extractor and embed pictures with it, as in a notebook."""

import numpy as np
import pytest
import torch
from conftest import ROOT, run_process
from PIL import Image

import lowshot
from lowshot.core.errors import InputError
from lowshot.data.datasets.folder import find_images
from lowshot.data.datasets.images import read_images
from lowshot.data.features import read_features
from lowshot.data.lineage import lineage_of
from lowshot.representation.backbones import Extractor, ModelConfig, load_extractor, load_head


def test_stored_pixels_are_embedded_as_the_stage_does(data, extractor, features):
    images = read_images(data / "images.h5")
    model = lowshot.open_extractor(extractor)
    saved = read_features(features / "test.h5").feats
    made = lowshot.embed(model, images.pixels[images.rows(test=True)], batch_size=7)
    assert made.dtype == np.float32 and np.allclose(made, saved, atol=1e-5)
    assert not model.training and next(model.parameters()).device.type == "cpu"


def test_files_and_arrays_are_seen_alike(image_folder, extractor):
    files = sorted(find_images(image_folder))[:6]
    model = lowshot.open_extractor(str(extractor))
    arrays = np.stack([np.asarray(Image.open(file)) for file in files])
    from_files = lowshot.embed(model, [str(file) for file in files])
    assert np.allclose(from_files, lowshot.embed(model, arrays), atol=1e-5)
    # Of another size than the extractor's: resized, as files are.
    large = [np.asarray(Image.open(file).resize((48, 40))) for file in files]
    resized = lowshot.embed(model, np.stack(large))
    assert resized.shape == from_files.shape and not np.allclose(resized, from_files)


def test_one_file_and_a_generator(image_folder, extractor):
    files, model = sorted(find_images(image_folder))[:2], lowshot.open_extractor(extractor)
    both = lowshot.embed(model, (file for file in files))
    assert np.allclose(lowshot.embed(model, files[0]), both[:1], atol=1e-6)
    assert np.allclose(lowshot.embed(model, str(files[1])), both[1:], atol=1e-6)
    assert np.array_equal(lowshot.embed(model, np.array([str(file) for file in files])), both)


def test_a_model_in_training_is_evaluated(extractor):
    model, pixels = load_extractor(extractor), np.arange(768 * 4, dtype=np.uint8).reshape(4, 16, 16, 3)
    expected = lowshot.embed(model, pixels)
    assert np.allclose(lowshot.embed(model.train(), pixels, batch_size=2), expected, atol=1e-5)


def test_sizes_of_batches(extractor):
    with pytest.raises(lowshot.InputError, match="batch_size 0"):
        lowshot.embed(load_extractor(extractor), np.zeros((2, 16, 16, 3), np.uint8), batch_size=0)


def test_grey_pictures(tmp_path):
    """An extractor of grey images accepts colour images, and the other way round."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (3, 20, 20), dtype=np.uint8)
    for n_channels in (1, 3):
        model = Extractor(ModelConfig("Conv4", 2, n_channels, 16, 0.25, crop_pct=1.0)).eval()
        flat = lowshot.embed(model, grey)
        assert np.allclose(flat, lowshot.embed(model, grey[..., None]), atol=1e-6)
        assert np.allclose(flat, lowshot.embed(model, np.repeat(grey[..., None], 3, 3)), atol=1e-4)


def test_a_negative(extractor):
    model, pixels = load_extractor(extractor), np.arange(768, dtype=np.uint8).reshape(1, 16, 16, 3)
    assert np.allclose(lowshot.embed(model, pixels, invert=True), lowshot.embed(model, 255 - pixels), atol=1e-6)


def test_timm_by_name(tmp_path):
    import timm

    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pt")
    model = lowshot.open_extractor("timm:test_resnet", weights=tmp_path / "weights.pt", image_size=32)
    made = lowshot.embed(model, np.zeros((2, 32, 32, 3), np.uint8))
    assert made.shape == (2, model.dim) and model.config.n_classes == 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images: is empty"),
        (np.zeros((2, 16, 16, 3)), r"not float64 \(2, 16, 16, 3\)"),
        (np.zeros((2, 16, 16, 4), np.uint8), r"not uint8 \(2, 16, 16, 4\)"),
        (np.zeros((16, 16), np.uint8), "must be uint8"),
        (np.zeros((0, 16, 16), np.uint8), "images: is empty"),
        ([np.zeros((16, 16, 3), np.uint8)], "must be a list of paths or a uint8 array .* not a list of ndarray"),
        (np.zeros((16, 16, 3), np.uint8), r"For a single image, use images\[None\]"),
        (["nowhere.png"], "no such image"),
        (["."], "is a folder. List its files"),
        ([b"a.png"], "not a list of bytes"),
    ],
)
def test_refused_images(extractor, images, message):
    with pytest.raises(lowshot.InputError, match=message):
        lowshot.embed(load_extractor(extractor), images)


def test_refused_extractors(tmp_path, extractor):
    with pytest.raises(lowshot.InputError, match="no such file"):
        lowshot.open_extractor(tmp_path)
    with pytest.raises(lowshot.InputError, match=r"no such folder\. For a timm model, use timm:NAME"):
        lowshot.open_extractor("resnet50")
    with pytest.raises(lowshot.InputError, match="must be an extractor of open_extractor, not PosixPath"):
        lowshot.embed(extractor, ["a.png"])
    with pytest.raises(lowshot.InputError, match="weights and image_size are for timm models only"):
        lowshot.open_extractor(extractor, image_size=32)
    with pytest.raises(lowshot.InputError, match="timm"):
        lowshot.open_extractor("timm:no_such_model")


@pytest.mark.parametrize("without_classifier", ["false", "true"])
def test_a_released_extractor_is_small_and_computes_the_same(tmp_path, data, extractor, without_classifier):
    out = tmp_path / "released"
    release = [ROOT / "scripts" / "release_extractor.py", "--extractor", extractor, "--out", out]
    result = run_process(*release, "--without_classifier", without_classifier)
    assert result.returncode == 0, result.stderr
    assert run_process(*release).returncode == 2
    if without_classifier == "true":
        with pytest.raises(InputError, match="has no classifier"):
            load_head(out)
    weights = out / "model.safetensors"
    assert weights.stat().st_size < 0.7 * (extractor / "model.pt").stat().st_size
    images = read_images(data / "images.h5").pixels
    whole, half = (lowshot.embed(lowshot.open_extractor(folder), images) for folder in (extractor, out))
    assert np.allclose(whole, half, atol=0.01 * whole.max())
    assert lineage_of(out) == lineage_of(extractor)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged or edited"):
        lowshot.open_extractor(out)
    (out / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match="not a readable state dict"):
        lowshot.open_extractor(out)
