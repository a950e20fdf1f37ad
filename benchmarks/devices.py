"""Seconds of the operations that a GPU can do, on each device of the machine.

Reads     nothing; makes random vectors, graphs and tasks.
Writes    a Markdown row per operation on stdout, with a column per device.

    python benchmarks/devices.py               a minute, half of it on the CPU
    python benchmarks/devices.py --size 0.01   a quick run

Operations at size 1: neighbours of 50,000 among 50,000 vectors of 256 dimensions, exact and by an inverted file; a step
of diffusion, 500,000 nodes with 32 neighbours and 64 classes, in float32 and bfloat16 (embedding_bag, with int64 row
numbers on a GPU); 1000 5-way 1-shot tasks of 512 dimensions. The E-step of SCGM is computed on the CPU only.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.training import now
from lowshot.classifiers.methods import score_tasks
from lowshot.classifiers.settings import LaplacianShotOptions, PTMapOptions
from lowshot.classifiers.tasks import Tasks
from lowshot.core.cli import run
from lowshot.core.settings import PositiveFloat
from lowshot.diffusion.neighbours import Index, exact_search
from lowshot.diffusion.propagation import _bag_sums
from lowshot.diffusion.settings import InvertedFile


@dataclass
class Config:
    size: PositiveFloat = 1.0
    """Factor of the number of vectors, nodes and tasks."""


def main(config: Config) -> None:
    """Time all operations on all devices."""
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    print(f"| operation | {' | '.join(map(str, devices))} |\n|---|{'---|' * len(devices)}")
    for name, make in OPERATIONS.items():
        times = [seconds(make(config.size, device)) for device in devices]
        print(f"| {name} | {' | '.join(f'{one:.4f}' for one in times)} |", flush=True)


def exact(size: float, device: torch.device) -> Callable[[], object]:
    vectors = unit_vectors(size)
    return lambda: exact_search(vectors, vectors, 32, device)


def inverted_file(size: float, device: torch.device) -> Callable[[], object]:
    vectors = unit_vectors(size)
    index = Index(vectors, InvertedFile(), device)
    return lambda: index.search(vectors, 32)


def unit_vectors(size: float) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((int(50_000 * size), 256), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def diffusion_step(dtype: torch.dtype) -> Callable[[float, torch.device], Callable[[], object]]:
    def make(size: float, device: torch.device) -> Callable[[], object]:
        n, k = int(500_000 * size), 32
        state = torch.rand(n, 64, dtype=dtype, device=device)
        rows = torch.randint(n, (n * k,), dtype=torch.int32).to(device)
        weights, offsets = torch.rand(n * k, dtype=dtype, device=device), np.arange(n + 1) * k
        return lambda: _bag_sums(state, rows, offsets, weights)

    return make


def tasks(method: object) -> Callable[[float, torch.device], Callable[[], object]]:
    def make(size: float, device: torch.device) -> Callable[[], object]:
        n = int(1000 * size)
        shots, queries = (F.normalize(torch.rand(n, rows, 512, device=device), dim=-1) for rows in (5, 75))
        drawn = Tasks(shots, torch.arange(5, device=device).expand(n, 5), queries, 5)
        return lambda: score_tasks(method, drawn, 0)

    return make


OPERATIONS = {
    "exact neighbours": exact,
    "neighbours by an inverted file": inverted_file,
    "step of diffusion, float32": diffusion_step(torch.float32),
    "step of diffusion, bfloat16": diffusion_step(torch.bfloat16),
    "pt_map": tasks(PTMapOptions()),
    "laplacian_shot": tasks(LaplacianShotOptions()),
}


@torch.inference_mode()
def seconds(operation: Callable[[], object], repeats: int = 3) -> float:
    """Return the least seconds of a call after a first one."""
    times = []
    for _ in range(1 + repeats):
        start = now()
        operation()
        times.append(now() - start)
    return min(times[1:])


if __name__ == "__main__":
    run(main, Config, __doc__)
