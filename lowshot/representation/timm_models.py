"""Backbones of the timm library (Wightman, 2019), by name: the trunk, its own preprocessing, its weights.

A name is timm's behind `timm:`, e.g. timm:resnet50.a1_in1k (model, then which weights). timm takes seconds to import,
so it is imported where it is used.
"""

import re
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lowshot.core.errors import InputError

PREFIX = "timm:"


def is_timm(name: str) -> bool:
    """Whether a model's name means one of timm."""
    return name.startswith(PREFIX)


def timm_preprocessing(name: str) -> dict:
    """timm's data settings of a model: `input_size` (C, H, W), `interpolation`, `crop_pct`, `crop_mode`, `mean`, `std`.

    Raises InputError for a name that timm does not have.
    """
    from timm.data import resolve_data_config

    return resolve_data_config(pretrained_cfg=_published(name))


def timm_trunk(name: str, side: int) -> tuple[nn.Module, int]:
    """A model of timm without its classifier, freshly initialised, for RGB images of `side` px; its feature dimension.

    Raises InputError if it cannot run at that size.
    """
    import timm

    native_side = timm_preprocessing(name)["input_size"][1]
    try:
        trunk = timm.create_model(_bare(name), num_classes=0, **_size(name, side))
        with torch.no_grad():
            features = trunk.eval()(torch.zeros(1, 3, side, side))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"{name}: cannot run on images of {side} px, its own size is {native_side} ({_line(error)})"
        ) from None
    if features.ndim != 2:
        raise InputError(f"{name}: makes features of shape {tuple(features.shape[1:])}, not one vector an image")
    return trunk.train(), features.shape[1]


def timm_weights(name: str, side: int, file: Path | None) -> dict[str, Tensor]:
    """State dict for `timm_trunk(name, side)`: downloaded by name, or from a local `file` (.safetensors, or a state
    dict that torch.load reads with weights_only) with timm's classifier, of any number of classes, or none.

    timm fits the weights to `side` (position embeddings are resampled). Raises InputError if the download fails, or if
    the file is unreadable or does not hold exactly the parameters of the model.
    """
    import timm

    create = partial(timm.create_model, _bare(name), pretrained=True, **_size(name, side))
    if file is None:
        try:
            donor = create()
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{name}: no weights could be downloaded ({_line(error)}); give a local file as weights"
            ) from None
    else:
        state = _read(file)
        try:
            n_classes = _n_classes(name, state)
            # Told of its true number of classes, timm loads strictly: a file of another model cannot pass unnoticed.
            source = {"state_dict": state, "num_classes": n_classes, "label_offset": 0, "custom_load": False}
            donor = create(pretrained_cfg_overlay={**source, "source": ""}, num_classes=n_classes)
        except InputError:
            raise
        except (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{file}: does not fit {name} ({_line(error)})") from None
    donor.reset_classifier(0)
    return donor.state_dict()


def _bare(name: str) -> str:
    return name.removeprefix(PREFIX)


def _published(name: str) -> dict:
    """What timm publishes with a model name; InputError for a name it does not have."""
    import timm

    bare = _bare(name)
    if not timm.is_model(bare):
        raise InputError(f"{name}: timm {timm.__version__} has no such model (timm.list_models() lists them)")
    try:
        published = timm.get_pretrained_cfg(bare, allow_unregistered=False)
    except RuntimeError as error:
        raise InputError(f"{name}: {_line(error)}") from None
    return published.to_dict()


def _size(name: str, side: int) -> dict[str, int]:
    """Arguments that build a model of a fixed input size for another one; the others take any size as they are."""
    published = _published(name)
    other = side != timm_preprocessing(name)["input_size"][1]
    return {"img_size": side} if other and published.get("fixed_input_size") else {}


def _read(file: Path) -> dict[str, Tensor]:
    from timm.models import load_state_dict

    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        state = dict(load_state_dict(str(file), weights_only=True))
    except Exception as error:  # safetensors and torch raise half a dozen kinds for a damaged or pickled file
        raise InputError(f"{file}: not a readable safetensors file or state dict ({_line(error)})") from None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        # Of an empty state dict timm would think that none was given, and download one.
        raise InputError(f"{file}: not a state dict, it holds no tensors or other things than tensors")
    return state


def _n_classes(name: str, state: dict[str, Tensor]) -> int:
    """How many classes the classifier in a state dict has; 0 if it has none."""
    layers = _published(name).get("classifier") or ()
    layer = layers if isinstance(layers, str) else next(iter(layers), "")
    weight = state.get(f"{layer}.weight")
    return 0 if weight is None else len(weight)


def _line(error: Exception) -> str:
    """The first sentence or two of an error, on one line."""
    return re.sub(r"\s+", " ", str(error))[:200] or type(error).__name__
