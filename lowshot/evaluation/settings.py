"""Settings of the low-shot benchmark, of the selection of settings and of few-shot tasks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Gt, Le

from lowshot.classifiers.settings import METHODS, RefinementOptions
from lowshot.core.settings import PositiveFloat, PositiveInt, RunOnly, Seed
from lowshot.data.protocol import Setup

Ties = Literal["against", "lowest_class"]


SHOTS = (1, 2, 5, 10, 20)  # of the published benchmarks


@dataclass(kw_only=True)
class BenchmarkConfig:
    """Settings shared by all stages of the benchmark. Each stage adds those of its method."""

    train: Path
    """Features of the training images. The draws are rows of this file."""
    test: Path
    """Features of the test images."""
    split: Path
    """split.json, or the published label_idx.json."""
    draws: Path
    """draws.json, or a template of the published files such as splitfile_{trial}.json."""
    out: Path
    """Results file to write (.json)."""
    setup: Setup = "test"
    """Half of the classes to evaluate on. Choose hyper-parameters on validation only and report on test."""
    shots: list[PositiveInt] = field(default_factory=lambda: list(SHOTS))
    """Numbers of shots n. The draws must have as many."""
    trials: list[PositiveInt] | None = None
    """Numbers of the trials to run, such as 1 2 for the first two. Default: all trials of the draws file."""
    name: str | None = None
    """Name of the method in the tables. Default: composed of its settings."""
    extractor: str | None = None
    """Name of the features in the tables. Default: the name of their folder."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""


SixAccuracies = Literal["top1_novel", "top1_base", "top1_all", "top5_novel", "top5_base", "top5_all"]
# All numbers of a run (`lowshot.evaluation.metrics`).
Metric = Literal[
    SixAccuracies,
    "top1_novel_among_novel", "top5_novel_among_novel", "top1_base_among_base", "top5_base_among_base",
    "top1_harmonic_mean", "top5_harmonic_mean", "ausuc",
    "top1_novel_class_mean", "top1_base_class_mean", "top1_all_class_mean",
    "top5_novel_class_mean", "top5_base_class_mean", "top5_all_class_mean",
    "top1_all_with_prior", "top5_all_with_prior",
]  # fmt: skip
# A metric, or the mean of two metrics.
Criterion = Literal[Metric, "top1_novel_base", "top5_novel_base"]


@dataclass
class Selection:
    """Selection of settings on the validation setup."""

    grid: Path
    """YAML file with lines `setting: [values]`. The best combination on the validation setup is evaluated on the test
    setup. With `--setup validation` nothing is evaluated on the test setup. On the test setup, --select and --trials
    exclude each other."""
    criterion: Criterion = "top5_novel_base"
    """Metric to maximise, averaged over trials and n. top1_novel_base and top5_novel_base are the mean of novel and
    base accuracy."""
    per_shot: bool = False
    """Select the best combination for each n separately."""


@dataclass(kw_only=True)
class SelectionConfig(BenchmarkConfig):
    """Settings of a benchmark stage that can select its settings."""

    select: Selection | None = None
    """Grid file of settings to select on the validation setup first."""


@dataclass(kw_only=True)
class Sampling:
    """Settings of how tasks are drawn."""

    n_way: PositiveInt | Literal["all"] = 5
    """Number of classes per task. all: every class to evaluate, see --classes (with --within_superclass, every class of
    the superclass)."""
    n_shots: list[PositiveInt] = field(default_factory=lambda: [1, 5])
    """Numbers of labelled images (shots) per class. All are evaluated on the same episodes."""
    n_queries: PositiveInt = 15
    """Number of query images per class (with --dirichlet, on average)."""
    dirichlet: PositiveFloat | None = None
    """Draw the class proportions of the n_way x n_queries queries of a task from a symmetric Dirichlet distribution
    with this parameter (2 in Veilleux et al., 2021). Default: the same number of queries for every class."""
    n_present: PositiveInt | None = None
    """Number of classes of a task that have queries. They share the n_way x n_queries queries of the task. Default: all
    classes."""
    within_superclass: bool = False
    """Draw all classes of a task from one superclass. Superclasses with enough classes are drawn uniformly."""
    seed: Seed = 0
    """Seed of the episodes and of methods that draw at random."""


@dataclass
class Pool:
    """Unlabelled training images of the novel classes, labelled by a few-shot method."""

    setting: ClassVar[str] = "semi_supervised"

    method: Annotated[Any, METHODS] = field(default_factory=lambda: RefinementOptions(n_steps=10, scale=10))
    """Few-shot method that labels the images, with the shots of the run as support. The features have the transform
    that the method was published with."""
    images: Literal["others", "gan"] = "others"
    """Images of the pool. others: all training images that are no shots of the run; gan: the unlabelled half that
    train_gan.py finetune --semi_supervised learns from, for a comparison with its samples."""
    share: Annotated[float, Gt(0), Le(1)] = 1.0
    """Part of the images of each class to add, the most confident first."""

    @property
    def label(self) -> str:
        return f"pool ({METHODS.name_of(self.method)})"
