"""The low-shot benchmark that stages share: what they are told, the rows of a setup, and the results file.

Base and novel classes of a setup are judged jointly: a method learns from the base classes' training rows and from n
shots of every novel class, and is judged on the test images of both by six accuracies (`lowshot.metrics`).
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt

from lowshot.artifacts import Provenance, write_json, writing
from lowshot.errors import InputError
from lowshot.features import Features, check_same_space, read_features
from lowshot.metrics import six_accuracies
from lowshot.protocol import Setup, Split, check_draws, draws_inputs, read_draws, read_split


@dataclass(kw_only=True)
class BenchmarkConfig:
    """What every stage of the benchmark is told; each adds its own settings."""

    train: Path
    """Features of the training images; the rows that draws name."""
    test: Path
    """Features of the test images."""
    split: Path
    """split.json, or the published label_idx.json."""
    draws: Path
    """draws.json, or a template of the published files such as splitfile_{trial}.json."""
    out: Path
    """The results file to write (.json)."""
    setup: Setup = "test"
    """Halves of the classes to judge on; choose hyper-parameters on validation only, report on test."""
    shots: list[PositiveInt] = field(default_factory=lambda: [1, 2, 5, 10, 20])
    """Numbers of shots n."""
    trials: list[PositiveInt] | None = None
    """Trials to run; all of the draws file if not given. Run in parts, they give the numbers of one whole run."""
    method: str | None = None
    """Name in the tables; made up of the settings if not given."""
    extractor: str | None = None
    """Name of the features in the tables; that of the folder which holds them if not given."""
    seed: NonNegativeInt = 0
    """Seed of all that is random."""
    overwrite: bool = False
    """Make the results again though they stand."""


def check(config: BenchmarkConfig) -> None:
    """InputError for settings that no benchmark can be run with."""
    for name, numbers in (("shots", config.shots), ("trials", config.trials)):
        if numbers is not None and (not numbers or len(set(numbers)) != len(numbers)):
            raise InputError(f"{name} {numbers}: must name one or more numbers, each once")
    if config.out.suffix != ".json":
        raise InputError(f"{config.out}: results are a .json file")


def inputs(config: BenchmarkConfig) -> dict[str, Path]:
    """The files that `read_benchmark` reads, named for a recipe."""
    files = {name: getattr(config, name) for name in ("train", "test", "split")}
    return {**files, **draws_inputs(config.draws, config.trials)}


@dataclass(frozen=True)
class Benchmark:
    """One setup of a split, with checked features and draws. `draws`: trial -> class -> rows of `train`."""

    split: Split
    setup: Setup
    train: Features
    test: Features
    draws: dict[int, list[np.ndarray]]

    @cached_property
    def base_classes(self) -> np.ndarray:
        """(B,) int64."""
        return self.split.setup(self.setup)[0]

    @cached_property
    def novel_classes(self) -> np.ndarray:
        """(V,) int64."""
        return self.split.setup(self.setup)[1]

    @cached_property
    def classes(self) -> np.ndarray:
        """(B + V,) int64, ascending: all classes that are judged."""
        return np.sort(np.concatenate([self.base_classes, self.novel_classes]))

    @cached_property
    def base_rows(self) -> np.ndarray:
        """(N,) int64: the rows of `train` of the base classes, in the order of the file."""
        return np.flatnonzero(np.isin(self.train.labels, self.base_classes))

    def novel_rows(self, trial: int, n_shot: int) -> np.ndarray:
        """(V, n_shot) int64: the rows of `train` that are the shots of every novel class."""
        return np.stack([self.draws[trial][c][:n_shot] for c in self.novel_classes])

    @cached_property
    def test_rows(self) -> np.ndarray:
        """(Q,) int64: the rows of `test` that are judged, in the order of the file."""
        return np.flatnonzero(np.isin(self.test.labels, self.classes))

    @cached_property
    def test_feats(self) -> np.ndarray:
        """(Q, D) float32."""
        return self.test.feats[self.test_rows]

    @cached_property
    def test_labels(self) -> np.ndarray:
        """(Q,) int64, class numbers of the split."""
        return self.test.labels[self.test_rows]

    def accuracies(self, ranks: np.ndarray) -> dict[str, float]:
        """The six accuracies of one run; ranks (Q,) of the true classes of `test_rows`, see `true_class_ranks`."""
        return six_accuracies(ranks, self.test_labels, self.base_classes, self.novel_classes)


def read_benchmark(config: BenchmarkConfig) -> Benchmark:
    """Read and check split, features and draws.

    Raises InputError, naming file and class, where a class of the setup lacks base rows, shots or test images, or the
    two feature files do not belong together.
    """
    split = read_split(config.split)
    train, test = (read_features(path, split.n_classes) for path in (config.train, config.test))
    check_same_space(train, test)
    draws = read_draws(config.draws, config.trials)
    benchmark = Benchmark(split, config.setup, train, test, draws)
    check_draws(draws, train.labels, benchmark.novel_classes, max(config.shots), config.draws, config.train)
    for c in benchmark.base_classes[~np.isin(benchmark.base_classes, train.labels)]:
        raise InputError(f"{train.path}: no row of base class {c} ({split.class_names[c]}), which the setup needs")
    for c in benchmark.classes[~np.isin(benchmark.classes, test.labels)]:
        raise InputError(f"{test.path}: no image of class {c} ({split.class_names[c]}), which the setup judges")
    return benchmark


def write_results(
    config: BenchmarkConfig,
    made_from: dict,
    benchmark: Benchmark,
    trials: list[dict],
    *,
    method: str,
    setting: Literal["inductive", "transductive", "semi_supervised"],
    provenance: Provenance,
    device: str,
    **more: object,
) -> Path:
    """Write the results file `config.out` and say so; returns its path.

    Args:
        made_from: the recipe of the results.
        trials: for every run `trial`, `n_shot` and the six accuracies.
        method: name in the tables, where `config` gives none.
        setting: what a method may see of the test images: each alone, all together unlabelled, or others besides.
        more: further entries of the file.
    """
    content = {
        **made_from,
        "method": config.method or method,
        "dataset": benchmark.split.dataset,
        "extractor": config.extractor or _extractor_name(config.train),
        "protocol": {"setup": benchmark.setup, "setting": setting, "split_digest": benchmark.split.digest},
        "provenance": provenance.record(device),
        **more,
        "trials": trials,
    }
    with writing(config.out) as partial:
        write_json(partial, content)
    print(f"{made_from['stage']}: {len(trials)} runs of {content['method']} -> {config.out}")
    return config.out


def _extractor_name(train: Path) -> str:
    """The folder that holds the features; one that is only called features is named by the folder above it."""
    folder = train.resolve().parent
    return folder.parent.name if folder.name == "features" else folder.name
