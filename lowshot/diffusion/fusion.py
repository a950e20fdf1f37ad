"""Store the scores of a classifier, and fuse them with the scores of diffusion (Douze et al., CVPR 2018).

scores.h5: `log_probabilities` float32 (runs, N, classes) of the test images, in file order, over the `classes` of the
setup (ascending); `trials` and `n_shots` int64 (runs,).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowshot.core.artifacts import Recipe
from lowshot.core.errors import InputError
from lowshot.core.h5 import create_array, creating_h5, open_h5, require_datasets, reserve_space, update_h5, write_recipe
from lowshot.core.publishing import building
from lowshot.data.rows import mapped
from lowshot.evaluation.benchmark import Benchmark, check_made_for, input_files
from lowshot.evaluation.runs import Keep
from lowshot.evaluation.settings import BenchmarkConfig

SCHEMA = "lowshot-scores-1"
_DATASETS = {"log_probabilities": ("floats", 3), "classes": ("integers", 1), "trials": ("integers", 1),
             "n_shots": ("integers", 1)}  # fmt: skip
# Share of the uniform distribution mixed into the distribution from diffusion: a class whose labels have not reached an
# image is unlikely, not impossible.
_UNIFORM = 0.01


@contextmanager
def keeping_scores(
    path: Path, made_from: Recipe, config: BenchmarkConfig, benchmark: Benchmark
) -> Iterator[tuple[Keep, set[tuple[int, int]]]]:
    """Yield a function that stores the scores of a run as log-probabilities in the file `path`, and the runs that an
    interrupted process has stored there.

    The function accepts the scores of some test images, over the classes of the setup or over all classes of the data
    set.
    """
    runs = {run: i for i, run in enumerate(benchmark.runs(config.shots))}
    with building(path, made_from) as partial:
        if is_new := not partial.exists():
            _create(partial, list(runs), made_from, benchmark)
        with update_h5(partial) as file:
            # Logarithms of probabilities that sum to 1 are not all zero, as they are where nothing was stored.
            known = {} if is_new else runs
            stored = {run for run, i in known.items() if file["log_probabilities"][i].any(axis=1).all()}

            def keep(run: tuple[int, int], rows: slice, scores: Tensor) -> None:
                if scores.shape[1] != len(benchmark.classes):
                    scores = scores[:, torch.from_numpy(benchmark.classes).to(scores.device)]
                log_probabilities = torch.log_softmax(scores.float(), 1).cpu().numpy()
                file["log_probabilities"][runs[run], rows] = log_probabilities
                file.flush()

            yield keep, stored


def _create(path: Path, runs: list[tuple[int, int]], made_from: Recipe, benchmark: Benchmark) -> None:
    with creating_h5(path) as file:
        create_array(file, "log_probabilities", (len(runs), len(benchmark.test_labels), len(benchmark.classes)), "f4")
        file["classes"] = benchmark.classes
        file["trials"], file["n_shots"] = np.array(runs).T
        write_recipe(file, SCHEMA, made_from)
        reserve_space(file)


class KeptScores:
    """Reader of scores.h5, one run at a time.

    Raises InputError if the file was made from different images, split, shots or setup than `config`, or if it lacks
    one of `runs`, pairs (trial, n).
    """

    def __init__(self, path: Path, config: BenchmarkConfig, runs: list[tuple[int, int]]) -> None:
        with open_h5(path) as file:
            require_datasets(file, _DATASETS)
            self.log_probabilities = mapped(path, file["log_probabilities"])
            numbers = file["trials"][:].tolist(), file["n_shots"][:].tolist()
        if not isinstance(self.log_probabilities, np.ndarray) or not len(self.log_probabilities) == len(numbers[0]):
            raise InputError(f"{path}: 'log_probabilities' must be contiguous, with a row for each of the 'trials'")
        check_made_for(path, config, input_files(config))
        self.runs = {run: i for i, run in enumerate(zip(*numbers))}
        for trial, n in runs:
            if (trial, n) not in self.runs:
                raise InputError(
                    f"{path}: has no scores of trial {trial}, n = {n}. "
                    "Run low_shot.py --scores with these --trials and --shots"
                )

    def of(self, trial: int, n_shot: int) -> np.ndarray:
        """Return the log-probabilities of a run, float32 (N, classes)."""
        return np.asarray(self.log_probabilities[self.runs[trial, n_shot]])


def fuse(diffused: np.ndarray, log_probabilities: np.ndarray, weight: float) -> np.ndarray:
    """Return weight log p_diffusion + (1 - weight) log p_classifier, (N, classes).

    p_diffusion is a row of scores divided by its sum, mixed with 1 % of the uniform distribution. It is uniform for an
    image that no label has reached. The paper does not say how it converts scores to probabilities.
    """
    totals = diffused.sum(1, keepdims=True)
    uniform = np.float32(1 / diffused.shape[1])
    shares = np.divide(diffused, totals, out=np.full_like(diffused, uniform), where=totals > 0)
    return weight * np.log((1 - _UNIFORM) * shares + _UNIFORM * uniform) + (1 - weight) * log_probabilities
