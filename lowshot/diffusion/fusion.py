"""A classifier's scores kept in a file, and their late fusion with those of diffusion (Douze et al., CVPR 2018).

scores.h5: `log_probabilities` float32 (runs, N, classes) of the test images, in their order, over the setup's
`classes` (ascending); `trials`, `n_shots` int64 (runs,).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from lowshot.core.artifacts import Recipe, open_h5, require_datasets, write_recipe, writing
from lowshot.core.errors import InputError
from lowshot.evaluation.benchmark import Benchmark, check_made_for, input_files
from lowshot.evaluation.runs import Keep
from lowshot.evaluation.settings import BenchmarkConfig

SCHEMA = "lowshot-scores-1"
_DATASETS = ("log_probabilities", "classes", "trials", "n_shots")
# Share of the uniform distribution in that of diffusion: a class that no label has reached is unlikely, not impossible.
_UNIFORM = 0.01


@contextmanager
def keeping_scores(path: Path, made_from: Recipe, config: BenchmarkConfig, benchmark: Benchmark) -> Iterator[Keep]:
    """What is given the scores of some test images of a run, over the setup's classes or over all of the data set, and
    keeps their log-probabilities in the file `path`."""
    runs = {run: i for i, run in enumerate(benchmark.runs(config.shots))}
    with writing(path) as partial, h5py.File(partial, "w") as file:
        shape = len(runs), len(benchmark.test_labels), len(benchmark.classes)
        kept = file.create_dataset("log_probabilities", shape, np.float32)
        file["classes"] = benchmark.classes
        file["trials"], file["n_shots"] = np.array(list(runs)).T
        write_recipe(file, SCHEMA, made_from)

        def keep(run: tuple[int, int], rows: slice, scores: Tensor) -> None:
            if scores.shape[1] != len(benchmark.classes):
                scores = scores[:, torch.from_numpy(benchmark.classes).to(scores.device)]
            kept[runs[run], rows] = torch.log_softmax(scores.float(), 1).cpu().numpy()

        yield keep


class KeptScores:
    """scores.h5 of the same images, split, shots and setup as `config`; runs are read one by one.

    Raises InputError if it was made from others, or lacks one of `runs`, pairs (trial, n).
    """

    def __init__(self, path: Path, config: BenchmarkConfig, runs: list[tuple[int, int]]) -> None:
        self.file = open_h5(path)
        require_datasets(self.file, list(_DATASETS))
        check_made_for(path, config, input_files(config))
        self.runs = {run: i for i, run in enumerate(zip(self.file["trials"][:], self.file["n_shots"][:]))}
        for trial, n in runs:
            if (trial, n) not in self.runs:
                raise InputError(f"{path}: has no scores of trial {trial}, n = {n}")

    def of(self, trial: int, n_shot: int) -> np.ndarray:
        """Log-probabilities float32 (N, classes) of a run."""
        return self.file["log_probabilities"][self.runs[trial, n_shot]]


def fuse(diffused: np.ndarray, log_probabilities: np.ndarray, weight: float) -> np.ndarray:
    """weight log p_diffusion + (1 - weight) log p_classifier, both (N, classes).

    p_diffusion is the scores' row divided by its sum, with a hundredth of the uniform distribution mixed in; an image
    that no label has reached gets the uniform one. The paper does not say how it turns scores into probabilities.
    """
    totals = diffused.sum(1, keepdims=True)
    uniform = np.float32(1 / diffused.shape[1])
    shares = np.divide(diffused, totals, out=np.full_like(diffused, uniform), where=totals > 0)
    return weight * np.log((1 - _UNIFORM) * shares + _UNIFORM * uniform) + (1 - weight) * log_probabilities
