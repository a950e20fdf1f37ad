"""Devices and processes: feature-space work uses a CUDA GPU if there is one, networks use Lightning Fabric."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from lowshot.core.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` as float64. A tensor on an Apple GPU, which has no float64, is moved to the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: with tensors this small, threads cost more than they save (ten times more on a busy machine)."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def pick_device() -> torch.device:
    """Return the CUDA GPU if there is one, else the CPU. Features need float64, which Apple GPUs lack."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_fabric(accelerator: str, precision: str, devices: int = 1) -> Fabric:
    """Return a Fabric. Raises InputError for an accelerator, precision or number of devices that is not available."""
    from lightning_fabric import Fabric  # takes seconds to import, and only networks need it
    from lightning_fabric.strategies import DDPStrategy

    try:
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # its successor is new in torch
        # Buffers are not broadcast at every step: `Trainer` does it after each epoch.
        strategy = DDPStrategy(broadcast_buffers=False) if devices > 1 else "auto"
        fabric = Fabric(accelerator=accelerator, strategy=strategy, devices=devices, precision=precision)
    except (RuntimeError, ValueError) as error:
        if "accelerator" in str(error).lower():
            raise InputError(f"--accelerator {accelerator}: not available here. Use --accelerator auto") from None
        given = f"--accelerator {accelerator} --devices {devices} --precision {precision}"
        raise InputError(f"{given}: not available here ({error})") from None
    if fabric.device.type == "cpu":
        _keep_freed_memory()
    return fabric


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory, which the next step needs again. By default it maps large activations and clears
    their pages at every step, a quarter of the step of Conv-4 (docs/LOG.md). Other C libraries have no such option.
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    if sys.platform == "linux":
        with suppress(AttributeError):
            for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
                ctypes.CDLL(None).mallopt(option, value)


class Processes(NamedTuple):
    """This process, `rank` of `size` started by `torchrun` (or the only one), and the `device` it computes on."""

    rank: int
    size: int
    device: torch.device

    def wait(self) -> None:
        """Wait until all processes reach this point."""
        if self.size > 1:
            torch.distributed.barrier()

    def total(self, array: np.ndarray) -> np.ndarray:
        """Return the sum of the arrays of all processes, in each process. On a CPU, `array` is overwritten."""
        if self.size == 1:
            return array
        tensor = torch.from_numpy(array).to(self.device)
        torch.distributed.all_reduce(tensor)
        return tensor.cpu().numpy()

    def largest(self, array: np.ndarray) -> np.ndarray:
        """Return the elementwise maximum over all processes. `array` is not changed."""
        if self.size == 1:
            return array
        tensor = torch.tensor(array, device=self.device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tensor.cpu().numpy()


@contextmanager
def open_processes() -> Iterator[Processes]:
    """Join the processes started by `torchrun`: with nccl on GPUs (one each), else with gloo."""
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
