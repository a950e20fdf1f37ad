"""Build the network of a training stage from its settings."""

from pathlib import Path

import numpy as np
import torch

from lowshot.core.choices import is_own
from lowshot.core.errors import InputError
from lowshot.core.files import read_json
from lowshot.core.settings import stored_values
from lowshot.data.datasets.images import Images
from lowshot.data.lineage import Lineage, lineage_of
from lowshot.representation.airbench import start_as_identity
from lowshot.representation.backbones import Extractor, ModelConfig, load_timm_weights, load_weights, timm_config
from lowshot.representation.input_form import evenly_spaced, learn_form
from lowshot.representation.loading import ImageLoader, in_batches, to_unit
from lowshot.representation.settings import BACKBONES, IMAGE_SIZE, Airbench, HeadName, NetworkChoice, Timm
from lowshot.representation.timm_models import timm_lineage

# Number of images that the first layer of Airbench is fitted to.
_N_WHITENED = 5000


def check_network(choice: NetworkChoice) -> None:
    """Raise InputError for a network with two sources of initial weights."""
    if starts_pretrained(choice) and choice.weights:
        raise InputError("--model.pretrained and --weights: exclude each other. Use one of them")


def starts_pretrained(choice: NetworkChoice) -> bool:
    """Whether the network starts from downloaded pretrained weights."""
    return isinstance(choice.model, Timm) and choice.model.pretrained


def lineage_of_start(choice: NetworkChoice) -> Lineage:
    """Return what the initial weights have seen. Weights beside a config.json of ours have its lineage."""
    if starts_pretrained(choice):
        return timm_lineage(choice.model.name)
    if not choice.weights:
        return Lineage()
    config = choice.weights.parent / "config.json"
    if config.is_file() and str(read_json(config).get("schema")).startswith("lowshot-"):
        return lineage_of(config.parent)
    return Lineage(unknown=frozenset({str(choice.weights)}))


def build_network(
    choice: NetworkChoice,
    images: Images,
    rows: np.ndarray,
    where: Path,
    n_classes: int,
    head: HeadName = "linear",
    embedding: int = 0,
) -> Extractor:
    """Build the network for training on `rows` of `images`, from the file `where`, with random, given or pretrained
    weights."""
    own = choice.model if is_own(choice.model) else None
    config = _model_config(choice, images, where, n_classes, head, embedding)
    learn_form(config, images, rows)
    model = Extractor(config, own)
    if choice.weights:
        load_weights(model, choice.weights)
    elif starts_pretrained(choice):
        load_timm_weights(model, None)
    elif isinstance(choice.model, Airbench):
        whiten(model, images, rows, choice.model.whitening_eps)
        if choice.model.identity:
            start_as_identity(model.trunk)
    return model.to(memory_format=torch.channels_last)


def whiten(model: Extractor, images: Images, rows: np.ndarray, eps: float) -> None:
    """Fit the first layer of an Airbench network to at most 5000 of its training images (`rows` of `images`), evenly
    spaced. Airbench takes the first 5000, which here would be those of the first classes."""
    loaded = ImageLoader(images, model.config).whole(in_batches(evenly_spaced(rows, _N_WHITENED), 500))
    model.trunk[0].fit((model.normalise(to_unit(one, torch.device("cpu"))) for one in loaded), eps)


def _model_config(
    choice: NetworkChoice, images: Images, where: Path, n_classes: int, head: HeadName, embedding: int
) -> ModelConfig:
    """Return the network's configuration. Stored pixels are used whole; images on disk are cropped to their centre."""
    backbone, form = choice.model, (n_classes, images.n_channels)
    if isinstance(backbone, Timm):
        return timm_config(backbone.name, *form, images.size, backbone.image_size, backbone.resize, head, embedding)
    side = getattr(backbone, "image_size", IMAGE_SIZE)
    if images.size and side not in (IMAGE_SIZE, images.size):
        raise InputError(
            f"--model.image_size {side}: {where} has stored images of {images.size} px. Leave the setting out"
        )
    size, crop_pct = (images.size, 1.0) if images.size else (side, ModelConfig.crop_pct)
    options = {"crop_pct": crop_pct, "embedding": embedding, "head": head}
    if is_own(backbone):
        return ModelConfig(BACKBONES.name_of(backbone), *form, size, **options, options=stored_values(backbone))
    if isinstance(backbone, Airbench):
        options["options"] = {key: getattr(backbone, key) for key in ("widths", "depth", "pooling")}
    drop_rate = getattr(backbone, "drop_rate", 0.0)
    return ModelConfig(backbone.name, *form, size, backbone.width, drop_rate=drop_rate, **options)
