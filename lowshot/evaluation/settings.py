"""The settings of the low-shot benchmark, of a choice of settings, and of few-shot tasks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lowshot.core.settings import PositiveFloat, PositiveInt, RunOnly, Seed
from lowshot.data.protocol import Setup

Ties = Literal["against", "lowest_class"]


@dataclass(kw_only=True)
class BenchmarkConfig:
    """The settings that all of these stages have; each adds those of its method."""

    train: Path
    """Features of the training images; the rows that draws name."""
    test: Path
    """Features of the test images."""
    split: Path
    """split.json, or the published label_idx.json."""
    draws: Path
    """draws.json, or a template of the published files such as splitfile_{trial}.json."""
    out: Path
    """Results file to write (.json)."""
    setup: Setup = "test"
    """Halves of the classes to evaluate on; choose hyper-parameters on validation only, report on test."""
    shots: list[PositiveInt] = field(default_factory=lambda: [1, 2, 5, 10, 20])
    """Numbers of shots n."""
    trials: list[PositiveInt] | None = None
    """Trials to run; all of the draws file if not given. Run in parts, they give the numbers of one whole run."""
    name: str | None = None
    """Name of the method in the tables; made up by the stage if not given."""
    extractor: str | None = None
    """Name of the features in the tables; that of the folder which holds them if not given."""
    overwrite: RunOnly[bool] = False
    """Make the results again though they stand."""


Metric = Literal["top1_novel", "top1_base", "top1_all", "top5_novel", "top5_base", "top5_all"]
# A metric, or the mean of two.
Criterion = Literal[Metric, "top1_novel_base", "top5_novel_base"]


@dataclass
class Selection:
    """How settings are chosen."""

    grid: Path
    """Grid file (setting: [values]): its best cell on the validation setup is reported on the test setup; with `--setup
    validation` it is chosen and nothing reported. Parts of a run (`trials`) on the test setup take no grid, as each
    would choose for itself: choose on the validation setup first, and give them the choice."""
    criterion: Criterion = "top5_novel_base"
    """What the best cell is best in: a mean over trials, n and, where two are named, groups of classes."""
    per_shot: bool = False
    """Take the best cell for every n by itself."""


@dataclass(kw_only=True)
class SelectionConfig(BenchmarkConfig):
    """The settings of a stage of the benchmark that can choose its own."""

    select: Selection | None = None
    """Choose settings first."""


@dataclass(kw_only=True)
class Sampling:
    """How tasks are drawn."""

    n_way: PositiveInt | Literal["all"] = 5
    """Classes of a task; all: every novel class of the setup (or of the task's superclass). See also classes."""
    n_shots: list[PositiveInt] = field(default_factory=lambda: [1, 5])
    """Numbers of labelled images (shots) of each class; every one is evaluated on the same episodes."""
    n_queries: PositiveInt = 15
    """Images to recognise: so many of every class, or on average so many with dirichlet."""
    dirichlet: PositiveFloat | None = None
    """Draw the classes' shares of a task's n_way x n_queries queries from a symmetric Dirichlet distribution of this
    parameter (2 in Veilleux et al., 2021); balanced queries if not given."""
    within_superclass: bool = False
    """All classes of a task come from one superclass, drawn evenly among those that have enough (two at least)."""
    seed: Seed = 0
    """Seed of the episodes and of methods that draw at random."""
