"""Which extractor a stage uses: the folder of a trained one, or a model of timm with its own weights."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from lowshot.core.artifacts import digest, read_recipe
from lowshot.core.errors import InputError
from lowshot.data.datasets.images import Images
from lowshot.representation.backbones import Extractor, load_extractor, load_timm_weights, timm_config
from lowshot.representation.settings import ExtractorChoice
from lowshot.representation.timm_models import PREFIX


def open_extractor(
    choice: ExtractorChoice, images: Images | None = None, resize: bool = False
) -> tuple[Extractor, dict[str, str]]:
    """The extractor in evaluation mode, for `images` (None: for pictures on disk); its inputs for a recipe.

    Raises InputError if none or two are chosen, or if stored images have another form than it takes; to a timm model's
    size they can be stretched (`resize`).
    """
    if (choice.extractor is None) == (choice.timm is None):
        raise InputError("give either --extractor FOLDER or --timm NAME")
    if choice.extractor is not None:
        if choice.weights or choice.image_size or resize:
            raise InputError("weights, image_size and resize belong to --timm; an extractor's folder has its own")
        model = load_extractor(choice.extractor)
        if images is not None:
            _check_form(model, images, choice.extractor)
        return model, {"extractor": digest(choice.extractor)}
    form = {} if images is None else {"n_channels": images.n_channels, "stored_size": images.size}
    model = Extractor(timm_config(PREFIX + choice.timm, 0, image_size=choice.image_size, resize=resize, **form))
    load_timm_weights(model, choice.weights)
    return model.eval(), {"extractor": fingerprint(model)}


@torch.inference_mode()
def numpy_features(model: Extractor, images: Tensor, fabric: Fabric) -> np.ndarray:
    """Features float32 (N, D) of images in [0, 1] (N, C, H, W), computed in the precision of `fabric`."""
    with fabric.autocast():
        return model.features(images).float().cpu().numpy()


def drop_projection(model: Extractor, choice: ExtractorChoice) -> None:
    """Let `model` end with its trunk: the features of a network whose embeddings serve its training loss only.

    Raises InputError if it has no projection.
    """
    if not model.config.embedding:
        raise InputError(f"layer trunk: {choice.extractor or choice.timm} has no projection to leave out")
    model.dim, model.projection = model.projection[0].in_features, torch.nn.Identity()


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
    state = hashlib.sha256(json.dumps(asdict(model.config)).encode())
    for name, value in model.state_dict().items():
        state.update(name.encode())
        state.update(value.contiguous().numpy())
    return state.hexdigest()
