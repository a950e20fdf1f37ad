"""What transductive methods gain and lose with the queries of a task: how many classes they are of, and how unevenly.

Reads     feature files and splits, such as those of scripts/few_shot
Writes    a CSV file, after each cell, and Markdown tables on stdout; the same command continues a stopped run

    python benchmarks/transduction.py --folders outputs/cifar_fs/airbench_released outputs/fc100/airbench \\
        outputs/omniglot/airbench_plain_released --out outputs/transduction.csv

A folder has features/train.h5 (and test.h5, whose images are in the tasks as well), and data/split.json lies beside it.
Tasks are 5-way with 1 and 5 shots and 75 queries in all (15 if a class has fewer than 100 images), of 1, 2 or 5 of the
classes, equally many each or in proportions from Dirichlet distributions. A method has one setting for all cells, its
default, and the transform that belongs to it. All methods see the same tasks. Differences are to the inductive start of
a method: nearest means of features with the same transform; for PT-MAP, which itself centres on the queries, those of
`adaptive_transport`.

--setup validation is for choosing settings. Two to three hours on two cores, most of it for TIM and alpha-TIM.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.classifiers.settings import RECOMMENDED, FeatureTransform, LaplacianShotOptions, NearestMeanOptions
from lowshot.classifiers.transform import fitted_transform
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.files import digest
from lowshot.core.settings import PositiveInt
from lowshot.data.features import read_features
from lowshot.data.protocol import Setup, read_split, setup_of
from lowshot.evaluation.episodes import evaluate_episodes, make_pool
from lowshot.evaluation.settings import Sampling
from lowshot.report.book import Measured
from lowshot.report.results import summarise

N_SHOTS, PRESENT, ALPHAS = [1, 5], (1, 2, 5), (0.1, 0.5, 2.0, None)
_CELLS = [(present, alpha) for present, alpha in product(PRESENT, ALPHAS) if present > 1 or alpha is None]
_POWER_CL2N = RECOMMENDED["adaptive_transport"].transform
_CL2N, _L2N = FeatureTransform(centre=True, normalise=True), FeatureTransform(normalise=True)

_KEYS = ["features", "setup", "n_present", "dirichlet", "trials", "n_shot", "system", "settings", "minus"]


class Compared(NamedTuple):
    """A method, the transform of its features, and the name of its inductive start."""

    method: object
    transform: FeatureTransform
    start: str


_STARTS = {"nearest_mean (CL2N)": _CL2N, "nearest_mean (L2N)": _L2N, "nearest_mean (power 0.5, CL2N)": _POWER_CL2N}
_PUBLISHED = LaplacianShotOptions(rectification="published", shift=True)
METHODS = {name: Compared(NearestMeanOptions(), transform, name) for name, transform in _STARTS.items()}
METHODS |= {
    name: Compared(*RECOMMENDED[name], start)
    for start, names in {
        "nearest_mean (CL2N)": ("prototype_refinement", "laplacian_shot", "bd_cspn"),
        "nearest_mean (L2N)": ("tim", "alpha_tim"),
        "nearest_mean (power 0.5, CL2N)": ("pt_map", "adaptive_transport"),
    }.items()
    for name in names
}
METHODS["laplacian_shot (published)"] = Compared(_PUBLISHED, _CL2N, "nearest_mean (CL2N)")


@dataclass
class Config:
    folders: list[Path]
    """Folders of representations, with features/train.h5."""
    out: Path
    """CSV file to write."""
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """Methods to evaluate, besides the inductive starts."""
    n_episodes: PositiveInt = 1000
    """Number of tasks of a cell."""
    setup: Setup = "test"
    """Half of the novel classes to draw tasks from."""


def main(config: Config) -> Path:
    """Evaluate all cells, write them, and print a table for each data set and number of shots.

    Its columns are the cells: the number of classes present, and the proportions of their queries.
    """
    for name in config.methods:
        if name not in METHODS:
            raise InputError(f"--methods {name}: unknown; available: {', '.join(METHODS)}")
    names = [*_STARTS, *(name for name in config.methods if name not in _STARTS)]
    cells = pd.read_csv(config.out, keep_default_na=False) if config.out.is_file() else pd.DataFrame()
    for folder in config.folders:
        for cell in evaluated(folder, names, config, cells):
            cells = pd.concat([cells, cell]).drop_duplicates(_KEYS, keep="last", ignore_index=True)
            partial = config.out.with_suffix(".partial")
            cells.to_csv(partial, index=False)
            partial.replace(config.out)
    numbers = Measured.read(config.out)
    for dataset, n_shot in product(cells.dataset.unique(), N_SHOTS):
        print(f"\n{dataset}, {n_shot}-shot\n")
        print(numbers.where(dataset=dataset, n_shot=n_shot).table(["system", "minus"], ["n_present", "dirichlet"]))
    return config.out


def evaluated(folder: Path, names: list[str], config: Config, there: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the cells of a data set that are not there yet: means, differences to the inductive start, intervals."""
    split = read_split(folder.parent / "data/split.json")
    paths = sorted((folder / "features").glob("*.h5"), reverse=True)
    parts, digests = [read_features(path, split.n_classes) for path in paths], [digest(path)[:12] for path in paths]
    feats, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("feats", "labels"))
    base_classes, classes = setup_of(split, config.setup, folder)
    base = parts[0].feats[np.isin(parts[0].labels, base_classes)]  # of the training images
    n_queries = 15 if np.bincount(labels).max() >= 100 else 3
    transforms = {str(METHODS[name].transform): METHODS[name].transform for name in names}
    spaces = {how: torch.from_numpy(fitted_transform(transform, base)(feats)) for how, transform in transforms.items()}
    for present, alpha in _CELLS:
        cell = {"features": " ".join(digests), "setup": config.setup, "n_present": present,
                "dirichlet": str(alpha or "balanced"), "trials": config.n_episodes}  # fmt: skip
        done = there[(there[list(cell)] == pd.Series(cell)).all(axis=1)] if len(there) else there
        settings = {name: f"{METHODS[name].method} {METHODS[name].transform}" for name in names}
        if len(done) and settings.items() <= dict(zip(done.system, done.settings)).items():
            continue
        sampling = Sampling(n_shots=N_SHOTS, n_queries=n_queries, n_present=present, dirichlet=alpha)
        pool, frames = make_pool(labels, split, classes, sampling, str(folder)), []
        for name in names:
            entries = evaluate_episodes(
                spaces[str(METHODS[name].transform)], pool, sampling, config.n_episodes, METHODS[name].method
            )
            frames.append(pd.DataFrame(entries).assign(system=name, minus=METHODS[name].start))
        frame = pd.concat(frames)
        of_start = frame[["episode", "n_shot", "system", "accuracy"]]
        frame = frame.merge(of_start.rename(columns={"system": "minus", "accuracy": "of_start"}), how="left")
        means = summarise(frame.assign(value=frame.accuracy, minus=""), ["n_shot", "system", "minus"])
        gains = summarise(frame.assign(value=frame.accuracy - frame.of_start), ["n_shot", "system", "minus"])
        numbers = pd.concat([means, gains[gains.system != gains.minus]])
        about = {"dataset": split.dataset, "split_digest": split.digest[:12], "n_queries": 5 * n_queries}
        yield numbers.assign(settings=numbers.system.map(settings), **about, **cell)
        print(f"{split.dataset}: {present} classes present, {alpha or 'balanced'}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main, Config, __doc__)
