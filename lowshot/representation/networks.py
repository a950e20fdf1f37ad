"""Which network a training stage trains, by its settings."""

from pathlib import Path

import torch

from lowshot.core.errors import InputError
from lowshot.data.datasets.images import Images
from lowshot.representation.backbones import Extractor, ModelConfig, load_timm_weights, load_weights, timm_config
from lowshot.representation.settings import HeadName, NetworkChoice
from lowshot.representation.timm_models import is_timm


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
