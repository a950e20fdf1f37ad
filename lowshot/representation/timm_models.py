"""Backbones of the timm library (Wightman, 2019): trunk, preprocessing and pretrained weights.

Names are `timm:` and timm's own name of model and weights, e.g. timm:resnet50.a1_in1k. Importing timm takes seconds, so
it is imported where it is used.
"""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from lowshot.core.choices import suggestion
from lowshot.core.errors import InputError
from lowshot.core.files import missing
from lowshot.core.progress import say
from lowshot.data.lineage import Lineage
from lowshot.representation.weight_sources import cached_weights, check_available, packaged_weights

PREFIX = "timm:"


def is_timm(name: str) -> bool:
    """Whether a name is that of a timm model."""
    return name.startswith(PREFIX)


def timm_preprocessing(name: str) -> dict:
    """Return timm's data settings of a model: `input_size` (C, H, W), `interpolation`, `crop_pct`, `crop_mode`, `mean`
    and `std`.

    Raises InputError for an unknown name.
    """
    from timm.data import resolve_data_config

    return resolve_data_config(pretrained_cfg=_published(name))


# Data sets in timm's names of weights. Their tags "in1k", "in12k", "in21k" and "in22k" are parts of ImageNet.
_IMAGENET, _WITHOUT_LABELS = re.compile(r"in\d+k"), re.compile(r"dino|mae|ijepa|mim|seer|swav|moco")


def timm_lineage(name: str) -> Lineage:
    """Return what timm's weights of a model have seen, by their tag: all of ImageNet with or without labels, or a data
    set that is called like the tag. Raises InputError for an unknown name.
    """
    tag = _bare(name).partition(".")[2] or _published(name).get("tag") or "timm"
    source = "imagenet/*" if _IMAGENET.search(tag) else f"{tag}/*"
    is_labelled = "ft" in tag.split("_") or not _WITHOUT_LABELS.search(tag)
    return Lineage(**{"labelled" if is_labelled else "unlabelled": frozenset({source})})


def timm_trunk(name: str, side: int) -> tuple[nn.Module, int]:
    """Build a timm model without classifier, with random weights, for RGB images of `side` px.

    Returns the model and its feature dimension. Raises InputError if the model cannot run at that size.
    """
    import timm

    native_side = timm_preprocessing(name)["input_size"][1]
    try:
        trunk = timm.create_model(_bare(name), num_classes=0, **_size(name, side))
        with torch.no_grad():
            features = trunk.eval()(torch.zeros(1, 3, side, side))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"{name}: cannot run on images of {side} px, its native size is {native_side} px ({_line(error)})"
        ) from None
    if features.ndim != 2:
        raise InputError(
            f"{name}: returns features of shape {tuple(features.shape[1:])} per image, not a vector. Use another model"
        )
    return trunk.train(), features.shape[1]


def timm_weights(name: str, side: int, file: Path | None) -> dict[str, Tensor]:
    """Return a state dict for `timm_trunk(name, side)`, from a local `file`, an installed package or the hub.

    The file is .safetensors, or a state dict that torch.load reads with weights_only. It may have a classifier of any
    number of classes. Its parameters have timm's names, or those of a release that timm converts. A state dict with
    other names fits if its entries have the order and the shapes of timm's (`_by_order`). timm adapts the weights to
    `side` by resampling position embeddings. Raises InputError if the download fails, the file is unreadable, or its
    parameters are not exactly those of the model.
    """
    file = file or packaged_weights(_bare(name)) or cached_weights(_published(name).get("hf_hub_id"))
    donor = _downloaded(name, side) if file is None else _loaded(name, side, file)
    donor.reset_classifier(0)
    return donor.state_dict()


def _downloaded(name: str, side: int) -> nn.Module:
    """Create the model with weights of the hub. One line is printed before, in place of the hub's own."""
    import timm
    from huggingface_hub.utils import logging

    check_available(_bare(name))
    say(f"{name}: downloading pretrained weights from the Hugging Face Hub, once")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return timm.create_model(_bare(name), pretrained=True, **_size(name, side))
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{name}: the weights could not be downloaded ({_line(error).partition('. ')[0]}). Use --timm.weights "
            "FILE (.safetensors or a state dict)"
        ) from None
    finally:
        logging.set_verbosity(before)


def _loaded(name: str, side: int, file: Path) -> nn.Module:
    """Create the model with the weights of a file."""
    state = _read(file)
    try:
        return _filled(name, side, state)
    except _DO_NOT_FIT as error:
        renamed = None if file.suffix == ".safetensors" else _by_order(name, state)
        if renamed is None:
            raise InputError(f"{file}: does not fit {name} ({_line(error)})") from None
    first = f"{next(iter(state))} = {next(iter(renamed))}"
    say(f"{file.name}: its parameters have other names than timm's, but the same order and shapes ({first} ...)")
    return _filled(name, side, renamed)


_DO_NOT_FIT = (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError)


def _filled(name: str, side: int, state: dict[str, Tensor]) -> nn.Module:
    """Create the model with a state dict. With the true number of classes timm loads strictly, so that the weights of
    another model are refused."""
    import timm

    n_classes = _n_classes(name, state)
    source = {"state_dict": state, "num_classes": n_classes, "label_offset": 0, "custom_load": False, "source": ""}
    return timm.create_model(
        _bare(name), pretrained=True, pretrained_cfg_overlay=source, num_classes=n_classes, **_size(name, side)
    )


def _by_order(name: str, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Return a state dict with timm's names for one with other names, entry by entry; None if that is not certain.

    It is certain if both have the same length, and all pairs the same shape and role (weight, bias, running_mean ...).
    If entries are sorted by name, their order is not that of the layers.
    """
    import timm

    last = list(state.values())[-1]
    for n_classes in (0, len(last) if last.ndim else 0):
        own = timm.create_model(_bare(name), num_classes=n_classes).state_dict()
        pairs = zip(own.items(), state.items())
        alike = (_role(one) == _role(other) and a.shape == b.shape for (one, a), (other, b) in pairs)
        if len(own) == len(state) and own.keys().isdisjoint(state) and list(state) != sorted(state) and all(alike):
            return dict(zip(own, state.values()))
    return None


def _role(parameter: str) -> str:
    return re.split(r"[._]", parameter)[-1]


def _bare(name: str) -> str:
    return name.removeprefix(PREFIX)


def _published(name: str) -> dict:
    """Return timm's pretrained configuration of a model. Raises InputError for an unknown name."""
    import timm

    bare = _bare(name)
    if not timm.is_model(bare):
        hint = suggestion(bare.partition(".")[0], timm.list_models()) or ". timm.list_models() lists all models"
        raise InputError(f"{name}: timm {timm.__version__} has no such model{hint}")
    try:
        published = timm.get_pretrained_cfg(bare, allow_unregistered=False)
    except RuntimeError as error:
        raise InputError(f"{name}: {_line(error)}") from None
    return published.to_dict()


def _size(name: str, side: int) -> dict[str, int]:
    """Return the arguments that build a model of fixed input size for `side`. Other models run at any size."""
    published = _published(name)
    other = side != timm_preprocessing(name)["input_size"][1]
    return {"img_size": side} if other and published.get("fixed_input_size") else {}


def _read(file: Path) -> dict[str, Tensor]:
    from timm.models import load_state_dict

    if not file.is_file():
        raise missing(file)
    try:
        state = dict(load_state_dict(str(file), weights_only=True))
    except Exception as error:  # safetensors and torch raise many kinds of errors for damaged files
        raise InputError(f"{file}: not a readable safetensors file or state dict ({_line(error)})") from None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        # timm would treat an empty state dict as none, and download the weights.
        raise InputError(f"{file}: not a state dict, as it is empty or contains other objects than tensors")
    return state


def _n_classes(name: str, state: dict[str, Tensor]) -> int:
    """Return the number of classes of the classifier in a state dict; 0 if there is none.

    timm makes the projection of a CLIP model of open_clip, whose image tower is `visual`, its classifier.
    """
    layers = _published(name).get("classifier") or ()
    layer = layers if isinstance(layers, str) else next(iter(layers), "")
    if f"{layer}.weight" in state:
        return len(state[f"{layer}.weight"])
    return state["visual.proj"].shape[1] if "visual.proj" in state else 0


def _line(error: Exception) -> str:
    """Return the first 200 characters of an error message, on one line."""
    return re.sub(r"\s+", " ", str(error))[:200] or type(error).__name__
