"""Where work runs: feature-space work on the GPU if there is one, networks where Lightning Fabric is told to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowshot.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_fabric(accelerator: str, precision: str, devices: int = 1) -> Fabric:
    """Fabric, or InputError in one line for an accelerator, precision or number of devices that is not there."""
    from lightning_fabric import Fabric  # takes seconds, and only networks need it

    try:
        return Fabric(accelerator=accelerator, devices=devices, precision=precision)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"accelerator {accelerator}, devices {devices}, precision {precision}: {error}") from None
