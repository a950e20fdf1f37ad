"""Which network a training stage trains, by its settings."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt

from lowshot.core.errors import InputError
from lowshot.data.datasets.images import Images
from lowshot.representation.backbones import (
    Extractor,
    HeadName,
    ModelConfig,
    ModelName,
    load_timm_weights,
    load_weights,
    timm_config,
)
from lowshot.representation.timm_models import is_timm


@dataclass(kw_only=True)
class NetworkChoice:
    """The settings by which a training stage is told its network."""

    model: ModelName = "ResNet10"
    """backbone; any of timm as timm:NAME, e.g. timm:resnet50.a1_in1k, with its own normalisation and preprocessing"""
    width: PositiveFloat = 1.0
    """factor on the number of channels, for small images"""
    drop_rate: ClosedUnitInterval = 0.0
    """DropBlock in the last two blocks of ResNet12 (0.1 in RFS and MetaOptNet); others have none"""
    image_size: PositiveInt | None = None
    """side in pixels that images on disk are cut to (224, or a timm model's own); stored pixels keep theirs, and a timm
    model that is to run at another size than its own must be told"""
    resize: bool = False
    """timm: stretch stored pixels to the side that the model runs at"""
    weights: Path | None = None
    """start from a model.pt, a released .tar checkpoint, torchvision's VGG-16, or a timm model's .safetensors or state
    dict; --epochs 0 only converts it"""
    pretrained: bool = False
    """timm: start from the weights of that name, downloaded"""


def check_network(choice: NetworkChoice) -> None:
    """InputError for settings that the chosen model has no use for."""
    timm = is_timm(choice.model)
    if choice.drop_rate and choice.model != "ResNet12":
        raise InputError(f"drop_rate {choice.drop_rate}: {choice.model} has no DropBlock, only ResNet12 has")
    if timm and choice.width != 1:
        raise InputError(f"width {choice.width}: {choice.model} has a width of its own")
    if not timm and (choice.pretrained or choice.resize):
        raise InputError(f"pretrained and resize are for timm models, {choice.model} is none")
    if choice.pretrained and choice.weights:
        raise InputError("pretrained and weights: give one of the two")


def settings_read(choice: NetworkChoice, made_from: dict) -> dict:
    """The recipe `made_from` with those settings only that the chosen network reads."""
    config = dict(made_from["config"])
    if not is_timm(choice.model):
        config["image_size"] = choice.image_size or 224
        del config["resize"], config["pretrained"]
    return {**made_from, "config": config}


def build_network(
    choice: NetworkChoice, images: Images, where: Path, n_classes: int, head: HeadName = "linear", embedding: int = 0
) -> Extractor:
    """The network for `images` of the file `where`, freshly initialised, or started from its weights or pretrained."""
    model = Extractor(_model_config(choice, images, where, n_classes, head, embedding))
    if choice.weights:
        load_weights(model, choice.weights)
    elif choice.pretrained:
        load_timm_weights(model, None)
    return model.to(memory_format=torch.channels_last)


def _model_config(
    choice: NetworkChoice, images: Images, where: Path, n_classes: int, head: HeadName, embedding: int
) -> ModelConfig:
    """What the network is to be. Stored pixels are whole pictures; of images on disk it sees the centre."""
    if is_timm(choice.model):
        form = n_classes, images.n_channels, images.size, choice.image_size, choice.resize
        return timm_config(choice.model, *form, head, embedding)
    if images.size and choice.image_size not in (None, images.size):
        raise InputError(f"image_size {choice.image_size}: {where} stores pixels of {images.size} px a side")
    size, crop_pct = (images.size, 1.0) if images.size else (choice.image_size or 224, 0.875)
    form = n_classes, images.n_channels, size, choice.width, head, choice.drop_rate
    return ModelConfig(choice.model, *form, crop_pct=crop_pct, embedding=embedding)
