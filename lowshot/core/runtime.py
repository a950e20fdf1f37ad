"""Where work runs: feature-space work on the GPU if there is one, networks where Lightning Fabric is told to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from lowshot.core.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` as float64; on the CPU if it was on an Apple GPU, which has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def pick_device() -> torch.device:
    """The CUDA GPU if there is one, else the CPU: feature-space work needs float64, which Apple's GPUs lack."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_fabric(accelerator: str, precision: str, devices: int = 1) -> Fabric:
    """Fabric, or InputError in one line for an accelerator, precision or number of devices that is not there."""
    from lightning_fabric import Fabric  # takes seconds, and only networks need it
    from lightning_fabric.strategies import DDPStrategy

    try:
        # Buffers are not sent around at every step: `Trainer` gives all processes the first one's after each epoch.
        strategy = DDPStrategy(broadcast_buffers=False) if devices > 1 else "auto"
        return Fabric(accelerator=accelerator, strategy=strategy, devices=devices, precision=precision)
    except (RuntimeError, ValueError) as error:
        given = f"--accelerator {accelerator} --devices {devices} --precision {precision}"
        raise InputError(f"{given}: not available here ({error}); --accelerator auto takes what there is") from None


class Processes(NamedTuple):
    """This process, `rank` of `size` that `torchrun` started, or the only one; `device` is where it computes."""

    rank: int
    size: int
    device: torch.device

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    def total(self, array: np.ndarray) -> np.ndarray:
        """The sum of the arrays of all processes, to each of them; on a CPU it takes the place of `array`."""
        if self.size == 1:
            return array
        tensor = torch.from_numpy(array).to(self.device)
        torch.distributed.all_reduce(tensor)
        return tensor.cpu().numpy()

    def largest(self, array: np.ndarray) -> np.ndarray:
        """The same for the largest entries; `array` stays as it is."""
        if self.size == 1:
            return array
        tensor = torch.tensor(array, device=self.device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tensor.cpu().numpy()


@contextmanager
def open_processes() -> Iterator[Processes]:
    """Join the processes that `torchrun` started: over nccl with a GPU each, over gloo without."""
    if "WORLD_SIZE" not in os.environ:
        yield Processes(0, 1, pick_device())
        return
    device = pick_device()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    finally:
        torch.distributed.destroy_process_group()
