"""Opening an extractor, the folder of a trained one or a model of timm with its own weights, and running it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lowshot.core.artifacts import digest, read_recipe
from lowshot.core.errors import InputError
from lowshot.core.progress import Progress
from lowshot.core.runtime import pick_device
from lowshot.data.datasets.images import Images
from lowshot.representation.backbones import Extractor, ModelConfig, load_extractor, load_timm_weights, timm_config
from lowshot.representation.loading import batches, in_batches, to_unit, view
from lowshot.representation.settings import ExtractorChoice, TimmModel
from lowshot.representation.timm_models import PREFIX, is_timm

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def open_extractor(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    image_size: int | None = None,
    code: Sequence[str] = (),
) -> Extractor:
    """An extractor in evaluation mode, for pictures: the folder of a trained one, or ``"timm:NAME"``.

    Args:
        source: folder of train_extractor.py or train_scgm.py, or a model of timm such as "timm:resnet50.a1_in1k".
        weights: timm: a .safetensors file or a state dict to read; by default its weights are downloaded by name.
        image_size: timm: side in pixels of the images that the network sees; its own if not given.
        code: classes of your own, ``file.py:Class``, that the extractor was made with and that may be imported.

    Raises InputError for a folder that holds no extractor, a name that timm does not know, or weights that do not fit.
    """
    if not is_timm(str(source)):
        if not Path(source).is_dir():
            raise InputError(f"{source}: no such folder; a model of timm is named timm:NAME")
        if weights or image_size:
            raise InputError(f"{source}: weights and image_size belong to timm:NAME; an extractor's folder has its own")
        return load_extractor(Path(source), code)
    return _timm_extractor(str(source), weights and Path(weights), image_size=image_size)


def _timm_extractor(name: str, weights: Path | None, **form: Any) -> Extractor:
    """`form` is what `timm_config` takes."""
    model = Extractor(timm_config(name, 0, **form))
    load_timm_weights(model, weights)
    return model.eval()


def chosen_extractor(choice: ExtractorChoice, images: Images | None = None) -> tuple[Extractor, dict[str, str]]:
    """The extractor in evaluation mode, for `images` (None: for pictures on disk); the inputs of a recipe by it, as
    digests.

    Raises InputError if none or two are chosen, or if stored images have another form than it takes; to a timm model's
    size they can be stretched.
    """
    if (choice.extractor is None) == (choice.timm is None):
        raise InputError("give either --extractor FOLDER or --timm NAME")
    if choice.timm is not None:
        model = _chosen_timm(choice.timm, images)
        return model, {"extractor": fingerprint(model), **_digests(weights=choice.timm.weights)}
    model = load_extractor(choice.extractor, choice.code)
    if images is not None:
        _check_form(model, images, choice.extractor)
    return model, _digests(**{"extractor": choice.extractor, "code of extractor": model.code})


def _digests(**files: Path | None) -> dict[str, str]:
    return {name: digest(file) for name, file in files.items() if file is not None}


def _chosen_timm(choice: TimmModel, images: Images | None) -> Extractor:
    form = {"image_size": choice.image_size, "resize": getattr(choice, "resize", False)}
    if images is not None:
        form |= {"n_channels": images.n_channels, "stored_size": images.size}
    return _timm_extractor(PREFIX + choice.name, choice.weights, **form)


@torch.inference_mode()
def batch_features(model: Extractor, images: Tensor, fabric: Fabric) -> np.ndarray:
    """Features float32 (N, D) of images in [0, 1] (N, C, H, W), computed in the precision of `fabric`."""
    with fabric.autocast():
        return model.features(images).float().cpu().numpy()


@torch.inference_mode()
def embed(
    extractor: Extractor,
    images: str | Path | Iterable[str | Path] | np.ndarray,
    *,
    invert: bool = False,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """Features of pictures.

    Args:
        extractor: see `open_extractor`; it is put into evaluation mode.
        images: image files, or an array uint8 (N, H, W, C) or (N, H, W). An array of the extractor's own size and
            channels is taken as it is; files and other arrays as it views pictures: resized, the centre cut out, grey
            if it learned from grey images.
        invert: take the negative, for dark ink on paper and an extractor that learned bright ink on black.
        batch_size: images at once; changes the speed only.
        num_workers: processes that decode files; worth their start with some hundred of them.
        device: where to compute; a GPU if there is one.

    Returns:
        float32 (N, D).

    Raises:
        InputError: for an array of another form, no images, a file that is missing or corrupt, or features that are
            NaN or infinite.
    """
    if not isinstance(extractor, Extractor):
        raise InputError(f"extractor: a {type(extractor).__name__}; give what open_extractor returns")
    if batch_size < 1 or num_workers < 0:
        raise InputError(f"batch_size {batch_size}, num_workers {num_workers}: at least 1 and 0")
    home, device = next(extractor.parameters()).device, torch.device(device or pick_device())
    pictures = _pictures(images, extractor.config)
    parts = in_batches(np.arange(len(pictures)), batch_size)
    loaded, feats = batches(pictures, parts, extractor.config, None, num_workers), []
    network = extractor.eval().to(device)
    try:
        for pixels in Progress(loaded, "images", len(parts), unit="batch"):
            feats.append(network.features(to_unit(255 - pixels if invert else pixels, device)).float().cpu().numpy())
    finally:
        extractor.to(home)
    features = np.concatenate(feats)
    if not np.isfinite(features).all():
        raise InputError("the extractor makes features that are NaN or infinite")
    return features


def _pictures(images: Iterable[str | Path] | np.ndarray, config: ModelConfig) -> Images:
    """Unlabelled images: files, or pixels of the extractor's form."""
    if isinstance(images, (str, Path)):
        images = [images]
    is_array = isinstance(images, np.ndarray) and images.dtype.kind not in "OU"  # others hold paths
    files = images if is_array else list(images)
    labels, is_test = np.zeros(len(files), np.int64), np.zeros(len(files), bool)
    if len(files) == 0:
        raise InputError("images: none are given")
    if is_array:
        return Images(labels, is_test, _pixels(images, config))
    strange = [file for file in files if not isinstance(file, (str, Path))]
    if strange:
        raise InputError(f"images: {type(strange[0]).__name__} in a list; give paths, or one uint8 array (N, H, W, C)")
    folders = [file for file in files if Path(file).is_dir()]
    if folders:
        raise InputError(f"{folders[0]}: is a folder; give its files")
    names = np.array([str(Path(file).absolute()) for file in files], object)
    return Images(labels, is_test, paths=names, root=Path("/"))


def _pixels(images: np.ndarray, config: ModelConfig) -> np.ndarray:
    """uint8 (N, S, S, n_channels) as the extractor of `config` takes them."""
    if images.ndim == 3 and images.shape[2] in (1, 3, 4):
        raise InputError(f"images: an array of shape {images.shape}; if that is one picture, give images[None]")
    pixels = images[..., None] if images.ndim == 3 else images
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or 0 in pixels.shape:
        form = "uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
        raise InputError(f"images: {images.dtype} of shape {images.shape}; an array must be {form}")
    if pixels.shape[1:] == (config.image_size, config.image_size, config.n_channels):
        return np.ascontiguousarray(pixels)
    seen, colours = view(config), np.broadcast_to(pixels, (*pixels.shape[:3], 3))
    viewed = torch.stack([seen(Image.fromarray(np.ascontiguousarray(one))) for one in colours])
    return viewed.permute(0, 2, 3, 1).numpy()


def drop_projection(model: Extractor, choice: ExtractorChoice) -> None:
    """Let `model` end with its trunk: the features of a network whose embeddings serve its training loss only.

    Raises InputError if it has no projection.
    """
    if not model.config.embedding:
        raise InputError(f"layer trunk: {choice.extractor or choice.timm.name} has no projection to leave out")
    model.dim, model.projection = model.projection[0].in_features, torch.nn.Identity()


def handed_on(folder: Path) -> dict:
    """What features must say of the extractor in `folder`: what it has learned of novel classes, and
    `extractor_ended_after`, the epoch behind which its training was ended early."""
    made_from = read_recipe(folder) or {"config": {}}
    ended = {"extractor_ended_after": made_from["config"].get("ended_after")}
    return novel_classes_seen(folder) | {name: epoch for name, epoch in ended.items() if epoch is not None}


def novel_classes_seen(folder: Path) -> dict:
    """Of what an extractor has learned of novel classes, what its features must say: `validation_classes`, if it was
    trained on those of the validation setup, be it on superclasses; `saw_shots`, the run (trial, n) of its shots;
    `saw_samples`, if it learned from a GAN's images beside them."""
    made_from = read_recipe(folder) or {"config": {}, "inputs": {}}
    config, seen = made_from["config"], {}
    if config.get("validation_classes") or config.get("classes") == "all":
        seen["validation_classes"] = True
    if config.get("shots"):
        seen["saw_shots"] = [config["trial"], config["shots"]]
    if "samples" in made_from["inputs"]:
        seen["saw_samples"] = True
    return seen


def check_knows_base_only(folder: Path, split: Path) -> None:
    """InputError if the extractor in `folder` says that it was trained on another split, or on novel classes."""
    trained_on = (read_recipe(folder) or {"inputs": {}})["inputs"].get("split")
    if trained_on not in (None, digest(split)):
        raise InputError(f"{folder}: trained on another split than {split}, maybe on its novel classes")
    if novel_classes_seen(folder):
        raise InputError(f"{folder}: has learned novel classes; only one of base classes will do here")


def _check_form(model: Extractor, images: Images, folder: Path) -> None:
    size = model.config.image_size
    for what, stored, expected in (
        ("channels", images.n_channels, model.config.n_channels),
        ("pixels a side", images.size or size, size),
    ):
        if stored != expected:
            raise InputError(f"images.h5: images of {stored} {what}, but {folder} was trained on {expected}")


def fingerprint(model: Extractor) -> str:
    """SHA-256 of an extractor's configuration and weights."""
    config = {name: value for name, value in asdict(model.config).items() if name != "options"}  # a timm model has none
    state = hashlib.sha256(json.dumps(config).encode())
    for name, value in model.state_dict().items():
        state.update(name.encode())
        state.update(value.contiguous().numpy())
    return state.hexdigest()
