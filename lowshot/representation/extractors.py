"""Open a trained extractor or a pretrained timm model, and compute features with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lowshot.core.artifacts import stored_recipe
from lowshot.core.errors import CorruptImage, InputError
from lowshot.core.progress import Progress
from lowshot.core.runtime import pick_device
from lowshot.data.datasets.folder import check_decodable
from lowshot.data.datasets.images import Images
from lowshot.data.lineage import Lineage, lineage_of
from lowshot.representation.backbones import Extractor, ModelConfig, load_extractor, load_timm_weights, timm_config
from lowshot.representation.loading import ImageLoader, in_batches, to_unit, view
from lowshot.representation.settings import ExtractorChoice, TimmModel
from lowshot.representation.timm_models import PREFIX, is_timm, timm_lineage

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def open_extractor(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    image_size: int | None = None,
    code: Sequence[str] = (),
) -> Extractor:
    """Open an extractor in evaluation mode: a folder of a trained one, or ``"timm:NAME"``.

    Args:
        source: A folder of train_extractor.py or train_scgm.py, or a timm model such as "timm:resnet50.a1_in1k".
        weights: For timm: a .safetensors file or a state dict. By default the weights are downloaded.
        image_size: For timm: side of the network's input in pixels. By default the model's native size.
        code: Your own classes (``file.py:Class``) that the extractor was made with and that may be imported.

    Raises InputError for a folder without an extractor, an unknown timm name, or weights that do not fit.
    """
    if not is_timm(str(source)):
        if not Path(source).is_dir():
            raise InputError(f"{source}: no such folder. For a timm model, use timm:NAME")
        if weights or image_size:
            raise InputError(f"{source}: weights and image_size are for timm models only. Leave them out")
        return load_extractor(Path(source), code)
    return _timm_extractor(str(source), weights and Path(weights), image_size=image_size)


def _timm_extractor(name: str, weights: Path | None, **form: Any) -> Extractor:
    """Open a timm model; `form` are arguments of `timm_config`."""
    model = Extractor(timm_config(name, 0, **form))
    load_timm_weights(model, weights)
    return model.eval()


def chosen_extractor(choice: ExtractorChoice, images: Images | None = None) -> tuple[Extractor, dict[str, Path | str]]:
    """Open the chosen extractor in evaluation mode, for `images` or (None) for image files.

    Returns the extractor and its inputs of a recipe: files, or the digest of a timm model. Raises InputError if none
    or two extractors are chosen, or if stored images do not have its input size and channels (a timm model may resize
    them).
    """
    if (choice.extractor is None) == (choice.timm is None):
        raise InputError("exactly one extractor is needed. Use either --extractor FOLDER or --timm NAME")
    if choice.timm is not None:
        model = _chosen_timm(choice.timm, images)
        return model, {"extractor": fingerprint(model), "weights": choice.timm.weights}
    if is_timm(str(choice.extractor)):
        raise InputError(f"--extractor {choice.extractor}: is a timm model; use --timm {choice.extractor.name[5:]}")
    model = load_extractor(choice.extractor, choice.code)
    if images is not None:
        _check_form(model, images, choice.extractor)
    return model, {"extractor": choice.extractor, "code of extractor": model.code}


def _chosen_timm(choice: TimmModel, images: Images | None) -> Extractor:
    form = {"image_size": choice.image_size, "resize": getattr(choice, "resize", False)}
    if images is not None:
        form |= {"n_channels": images.n_channels, "stored_size": images.size}
    return _timm_extractor(PREFIX + choice.name, choice.weights, **form)


@torch.inference_mode()
def batch_features(model: Extractor, views: Iterable[Tensor], fabric: Fabric) -> np.ndarray:
    """Return features float32 (N, D), the means over `views` of N images, computed in the precision of `fabric`.

    A view is a batch (N, C, H, W) in [0, 1], the same images each time. The features are averaged as they are, without
    any normalisation before, as in EASY (Bendou et al., J. Imaging 2022).
    """
    with fabric.autocast():
        return torch.stack([model.features(one).float() for one in views]).mean(dim=0).cpu().numpy()


def embed(
    extractor: Extractor,
    images: str | Path | Iterable[str | Path] | np.ndarray,
    *,
    invert: bool = False,
    batch_size: int = 32,
    num_workers: int | None = 0,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """Compute features of images.

    Args:
        extractor: An extractor of `open_extractor`; it is set to evaluation mode.
        images: Image files, or an array uint8 (N, H, W, C) or (N, H, W). An array that has the extractor's input size
            and channels is used unchanged. Files and other arrays are resized, centre cropped, and converted to grey
            if the extractor was trained on grey images.
        invert: Invert the images: for dark ink on paper, if the extractor was trained on bright ink on black.
        batch_size: Number of images per batch; affects speed only.
        num_workers: Number of processes that decode files. None: one per core, at most 8, for a thousand files or more.
            A script that uses them needs ``if __name__ == "__main__":``.
        device: Device to compute on. Default: a GPU if available.

    Returns:
        float32 (N, D).

    Raises:
        InputError: If there are no images, the array has another shape or type, a file is missing or corrupt, or
            features are NaN or infinite.
    """
    options = {"invert": invert, "batch_size": batch_size, "num_workers": num_workers, "device": device}
    return np.concatenate(list(embed_batches(extractor, images, **options)))


@torch.inference_mode()
def embed_batches(
    extractor: Extractor,
    images: str | Path | Iterable[str | Path] | np.ndarray,
    *,
    invert: bool = False,
    batch_size: int = 32,
    num_workers: int | None = 0,
    device: str | torch.device | None = None,
) -> Iterator[np.ndarray]:
    """Yield the features of each batch of images, as `embed` computes them."""
    if not isinstance(extractor, Extractor):
        raise InputError(f"extractor: must be an extractor of open_extractor, not {type(extractor).__name__}")
    if batch_size < 1 or (num_workers or 0) < 0:
        raise InputError(f"batch_size {batch_size}, num_workers {num_workers}: must be at least 1 and 0")
    home, device = next(extractor.parameters()).device, torch.device(device or pick_device())
    pictures = _pictures(images, extractor.config)
    parts = in_batches(np.arange(len(pictures)), batch_size)
    loaded = ImageLoader(pictures, extractor.config, num_workers, device=device).whole(parts)
    network = extractor.eval().to(device)
    try:
        for pixels in Progress(loaded, "images", len(parts), unit="batch"):
            feats = network.features(to_unit(255 - pixels if invert else pixels, device)).float().cpu().numpy()
            if not np.isfinite(feats).all():
                raise InputError("the extractor computes features that are NaN or infinite. Check its weights")
            yield feats
    except CorruptImage:
        check_decodable([pictures.root / name for name in pictures.paths])  # to name all of them
        raise
    finally:
        extractor.to(home)


def _pictures(images: Iterable[str | Path] | np.ndarray, config: ModelConfig) -> Images:
    """Wrap files or an array as `Images`. Arrays are converted to the extractor's input size and channels."""
    if isinstance(images, (str, Path)):
        images = [images]
    is_array = isinstance(images, np.ndarray) and images.dtype.kind not in "OU"  # arrays of objects or str hold paths
    files = images if is_array else list(images)
    labels, is_test = np.zeros(len(files), np.int64), np.zeros(len(files), bool)
    if len(files) == 0:
        raise InputError("images: is empty")
    if is_array:
        return Images(labels, is_test, _pixels(images, config))
    strange = [file for file in files if not isinstance(file, (str, Path))]
    if strange:
        raise InputError(
            f"images: must be a list of paths or a uint8 array (N, H, W, C), not a list of {type(strange[0]).__name__}"
        )
    folders = [file for file in files if Path(file).is_dir()]
    if folders:
        raise InputError(f"{folders[0]}: is a folder. List its files instead")
    names = np.array([str(Path(file).absolute()) for file in files], object)
    return Images(labels, is_test, paths=names, root=Path("/"))


def _pixels(images: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Convert an array to uint8 (N, S, S, n_channels), the input of the extractor of `config`."""
    if images.ndim == 3 and images.shape[2] in (1, 3, 4):
        raise InputError(f"images: has shape {images.shape}. For a single image, use images[None]")
    pixels = images[..., None] if images.ndim == 3 else images
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or 0 in pixels.shape:
        form = "uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
        raise InputError(f"images: must be {form}, not {images.dtype} {images.shape}")
    if pixels.shape[1:] == (config.image_size, config.image_size, config.n_channels):
        return np.ascontiguousarray(pixels)
    seen, colours = view(config), np.broadcast_to(pixels, (*pixels.shape[:3], 3))
    viewed = torch.stack([seen(Image.fromarray(np.ascontiguousarray(one))) for one in colours])
    return viewed.permute(0, 2, 3, 1).numpy()


def drop_projection(model: Extractor, choice: ExtractorChoice) -> None:
    """Remove the projection, so that the model returns the features of its trunk.

    Used for networks whose projection serves the training loss only. Raises InputError if there is no projection.
    """
    if not model.config.embedding:
        raise InputError(f"--layer trunk: {choice.extractor or choice.timm.name} has no projection. Leave --layer out")
    model.dim, model.projection = model.projection[0].in_features, torch.nn.Identity()
    model.config = replace(model.config, embedding=0)


def lineage_of_extractor(choice: ExtractorChoice) -> Lineage:
    """Return what the chosen extractor has seen."""
    return timm_lineage(choice.timm.name) if choice.timm else lineage_of(choice.extractor)


def handed_on(folder: Path) -> dict:
    """Return what features record about the training of the extractor in `folder`: `extractor_ended_after`, the epoch
    after which it was ended early (a list of its members' epochs if it is joined, None for those that were not).
    """
    config = stored_recipe(folder)["config"]
    ended = config.get("ended_after", config.get("extractor_ended_after"))
    return {} if ended is None else {"extractor_ended_after": ended}


def _check_form(model: Extractor, images: Images, folder: Path) -> None:
    size = model.config.image_size
    for what, stored, expected in (
        ("number of channels", images.n_channels, model.config.n_channels),
        ("image size in pixels", images.size or size, size),
    ):
        if stored != expected:
            raise InputError(
                f"images.h5: the {what} is {stored}, but {folder} was trained with {expected}. Use the preprocessing "
                f"settings of its training images"
            )


def fingerprint(model: Extractor) -> str:
    """Return the SHA-256 of an extractor's configuration and weights."""
    of_training = ("options", "resampling", "brightness")  # a timm model has none of them
    config = {name: value for name, value in asdict(model.config).items() if name not in of_training}
    state = hashlib.sha256(json.dumps(config).encode())
    for name, value in model.state_dict().items():
        state.update(name.encode())
        state.update(value.contiguous().numpy())
    return state.hexdigest()
