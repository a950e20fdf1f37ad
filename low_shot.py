"""Train and judge the low-shot classifier: base and novel classes jointly, from n shots of every novel class.

Reads     train and test features (ours or the published HDF5 layout), split.json (or label_idx.json), draws.json (or
          the published splitfile_{trial}.json) and, if wanted, a generator folder.
Writes    one results JSON with six accuracies for every trial and n.

    python low_shot.py --train features/train.h5 --test features/test.h5 --split split.json --draws draws.json \
        --out results/linear_sgd.json [--generator generator/]

On a laptop, in seconds:

    python low_shot.py --train features/train.h5 --test features/test.h5 --split split.json --draws draws.json \
        --out results/tiny.json --shots "[1,5]" --trials "[1]" --sgd.n_steps 200
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse.typing import PositiveInt

from lowshot.artifacts import Provenance, is_done, recipe
from lowshot.benchmark import Benchmark, BenchmarkConfig, check, inputs, read_benchmark, write_results
from lowshot.classifiers import CLASSIFIERS, LogisticOptions, MLPOptions, Problem, Run, SGDOptions
from lowshot.cli import run
from lowshot.errors import InputError
from lowshot.generators import Hallucinator
from lowshot.metrics import ranks_in_chunks
from lowshot.runtime import pick_device


@dataclass(kw_only=True)
class Config(BenchmarkConfig):
    classifier: Literal["linear_sgd", "logistic_regression", "mlp"] = "linear_sgd"
    """linear_sgd: as published; logistic_regression: the optimum of its loss; mlp: the CIFAR-100 analogy recipe's."""
    generator: Path | None = None
    """Generator folder: hallucinated rows fill every novel class up to max_per_label."""
    pairs: Literal["centroids", "features"] = "centroids"
    """What the generator takes its base-class pairs from."""
    pair_scope: Literal["all", "superclass"] = "all"
    """Base classes a pair may come from: all, or those of the shot's superclass."""
    repetition: bool = False
    """Fill every novel class up to max_per_label by repeating its shots: the control of a generator."""
    max_per_label: PositiveInt = 20
    """Rows of a novel class, shots included, that a generator or repetition fills up to."""
    sgd: SGDOptions = field(default_factory=SGDOptions)
    """Settings of linear_sgd."""
    logistic: LogisticOptions = field(default_factory=LogisticOptions)
    """Settings of logistic_regression."""
    mlp: MLPOptions = field(default_factory=MLPOptions)
    """Settings of mlp."""


def main(config: Config) -> Path:
    """Run every trial and n of `config` and write the results file; returns its path."""
    _check(config)
    made_from = recipe("low_shot", config, {**inputs(config), "generator": config.generator})
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    provenance = Provenance()
    device = pick_device().type
    benchmark = read_benchmark(config)
    trials = _judge(config, benchmark, device)
    return write_results(
        config,
        made_from,
        benchmark,
        trials,
        method=_method_name(config),
        setting="inductive",
        provenance=provenance,
        device=device,
    )


def _check(config: Config) -> None:
    check(config)
    if config.generator is not None and config.repetition:
        raise InputError("repetition is the control of a generator: give one of the two")


def _judge(config: Config, benchmark: Benchmark, device: str) -> list[dict]:
    """The six accuracies of every trial and n."""
    problem = _problem(config, benchmark)
    options = {"linear_sgd": config.sgd, "logistic_regression": config.logistic, "mlp": config.mlp}[config.classifier]
    score = CLASSIFIERS[config.classifier](problem, options, config.seed, device)
    ranks = ranks_in_chunks(score, benchmark.test_feats, benchmark.test_labels, device)
    return [
        {"trial": trained.trial, "n_shot": trained.n_shot, **benchmark.accuracies(row)}
        for trained, row in zip(problem.runs, ranks)
    ]


def _problem(config: Config, benchmark: Benchmark) -> Problem:
    """The base rows, and the novel rows of every run in the order of trials and shots."""
    scope = config.pairs, config.pair_scope
    generator = (
        Hallucinator(config.generator, benchmark.split, benchmark.train, *scope)
        if config.generator is not None
        else None
    )
    runs = [_run(config, benchmark, generator, trial, n) for trial in benchmark.draws for n in config.shots]
    train, base = benchmark.train, benchmark.base_rows
    sizes = len(benchmark.base_classes), len(benchmark.novel_classes), benchmark.split.n_classes
    return Problem(train.feats[base], train.labels[base], runs, *sizes)


def _run(config: Config, benchmark: Benchmark, generator: Hallucinator | None, trial: int, n_shot: int) -> Run:
    """The shots of one run and what the augmentation adds to them."""
    rows = benchmark.novel_rows(trial, n_shot)
    if config.repetition:
        rows = rows[:, np.arange(max(n_shot, config.max_per_label)) % n_shot]
    labels = np.repeat(benchmark.novel_classes, rows.shape[1])
    feats = benchmark.train.feats[rows.ravel()]
    if generator is not None:
        new_feats, new_labels = generator.extend(feats, labels, config.max_per_label, config.seed, trial)
        feats, labels = np.concatenate([feats, new_feats]), np.concatenate([labels, new_labels])
    return Run(trial, n_shot, feats, labels)


def _method_name(config: Config) -> str:
    if config.generator is not None:
        return f"{config.classifier} + generator ({config.pairs}, {config.pair_scope})"
    return f"{config.classifier} + repetition" if config.repetition else config.classifier


if __name__ == "__main__":
    run(main, Config, __doc__)
