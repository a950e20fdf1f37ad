"""State dicts on disk, read without pickled objects."""

import io
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lowshot.core.errors import InputError
from lowshot.core.files import missing
from lowshot.core.sealing import verify_file

_SAVE = "Save one with torch.save(model.state_dict(), FILE)"


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a state dict. A full disk is an OSError, which torch would hide if it wrote the file itself."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getbuffer())


def load_state(path: Path) -> dict[str, Any]:
    """Load a .safetensors file, or any other one with `torch.load(weights_only=True)`, on the CPU. Raises InputError if
    it is not a readable state dict.
    """
    verify_file(Path(path))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise missing(path) from None
    except Exception:  # torch and safetensors raise many types of errors, and torch advises to load pickled objects
        raise InputError(
            f"{path}: not a readable state dict: damaged, cut off, or with pickled objects. {_SAVE}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{path}: not a state dict, it holds no tensors by name. {_SAVE}")
    return state


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file, or the one inside a released checkpoint {epoch, state}."""
    state = load_state(path)
    state = state.get("state", state)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise InputError(f"{path}: not a state dict, it holds other things than tensors by name. {_SAVE}")
    return state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def fill(model: nn.Module, path: Path) -> None:
    """Load a state dict that must fit the model exactly. Raises InputError otherwise."""
    try:
        model.load_state_dict(load_state(path))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: does not fit the config.json beside it ({_first_line(error)})") from None
