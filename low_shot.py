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
from jsonargparse.typing import NonNegativeInt, PositiveInt

from lowshot.artifacts import Provenance, is_done, recipe, write_json, writing
from lowshot.classifiers import CLASSIFIERS, LogisticOptions, MLPOptions, Problem, Run, SGDOptions
from lowshot.cli import run
from lowshot.errors import InputError
from lowshot.features import Features, check_same_space, read_features
from lowshot.generators import Hallucinator
from lowshot.metrics import ranks_in_chunks, six_accuracies
from lowshot.protocol import Split, check_draws, draws_inputs, read_draws, read_split
from lowshot.runtime import pick_device


@dataclass
class Config:
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
    setup: Literal["validation", "test"] = "test"
    """Halves of the classes to judge on; choose hyper-parameters on validation only, report on test."""
    classifier: Literal["linear_sgd", "logistic_regression", "mlp"] = "linear_sgd"
    """linear_sgd: as published; logistic_regression: the optimum of its loss; mlp: the CIFAR-100 analogy recipe's."""
    shots: list[PositiveInt] = field(default_factory=lambda: [1, 2, 5, 10, 20])
    """Numbers of shots n."""
    trials: list[PositiveInt] | None = None
    """Trials to run; all of the draws file if not given. Run in parts, they give the numbers of one whole run."""
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
    method: str | None = None
    """Name in the tables; made up of classifier and augmentation if not given."""
    extractor: str | None = None
    """Name of the features in the tables; that of the folder which holds them if not given."""
    seed: NonNegativeInt = 0
    """Seed of weights, batches and generated rows."""
    overwrite: bool = False
    """Make the results again though they stand."""


def main(config: Config) -> Path:
    """Run every trial and n of `config` and write the results file; returns its path."""
    _check(config)
    inputs = {name: getattr(config, name) for name in ("train", "test", "split", "generator")}
    made_from = recipe("low_shot", config, {**inputs, **draws_inputs(config.draws, config.trials)})
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    provenance = Provenance()
    device = pick_device().type

    split = read_split(config.split)
    train, test = (read_features(path, split.n_classes) for path in (config.train, config.test))
    check_same_space(train, test)
    base_classes, novel_classes = split.setup(config.setup)
    draws = read_draws(config.draws, config.trials)
    check_draws(draws, train.labels, novel_classes, max(config.shots), config.draws, config.train)

    scope = config.pairs, config.pair_scope
    generator = Hallucinator(config.generator, split, train, *scope) if config.generator is not None else None
    runs = [
        _novel_rows(config, generator, train, novel_classes, rows_of, (trial, n))
        for trial, rows_of in draws.items()
        for n in config.shots
    ]
    problem = _problem(runs, train, split, base_classes, novel_classes)
    judged = _test_rows(test, split, base_classes, novel_classes)
    options = {"linear_sgd": config.sgd, "logistic_regression": config.logistic, "mlp": config.mlp}[config.classifier]
    score = CLASSIFIERS[config.classifier](problem, options, config.seed, device)
    ranks = ranks_in_chunks(score, test.feats[judged], test.labels[judged], device)
    accuracies = [six_accuracies(row, test.labels[judged], base_classes, novel_classes) for row in ranks]

    content = {
        **made_from,
        "method": config.method or _method_name(config),
        "dataset": split.dataset,
        "extractor": config.extractor or _extractor_name(config.train),
        "protocol": {"setup": config.setup, "setting": "inductive", "split_digest": split.digest},
        "provenance": provenance.record(device),
        "trials": [{"trial": trained.trial, "n_shot": trained.n_shot, **six} for trained, six in zip(runs, accuracies)],
    }
    with writing(config.out) as partial:
        write_json(partial, content)
    print(f"low_shot: {len(runs)} runs of {content['method']} -> {config.out}")
    return config.out


def _check(config: Config) -> None:
    for name, numbers in (("shots", config.shots), ("trials", config.trials)):
        if numbers is not None and (not numbers or len(set(numbers)) != len(numbers)):
            raise InputError(f"{name} {numbers}: must name one or more numbers, each once")
    if config.generator is not None and config.repetition:
        raise InputError("repetition is the control of a generator: give one of the two")
    if config.out.suffix != ".json":
        raise InputError(f"{config.out}: results are a .json file")


def _novel_rows(
    config: Config,
    generator: Hallucinator | None,
    train: Features,
    novel_classes: np.ndarray,
    rows_of: list[np.ndarray],
    key: tuple[int, int],
) -> Run:
    """The shots of one run, `key` = (trial, n), and what the augmentation adds to them."""
    trial, n_shot = key
    rows = np.stack([rows_of[c][:n_shot] for c in novel_classes])
    if config.repetition:
        rows = rows[:, np.arange(max(n_shot, config.max_per_label)) % n_shot]
    labels = np.repeat(novel_classes, rows.shape[1])
    feats = train.feats[rows.ravel()]
    if generator is not None:
        new_feats, new_labels = generator.extend(feats, labels, config.max_per_label, config.seed, trial)
        feats, labels = np.concatenate([feats, new_feats]), np.concatenate([labels, new_labels])
    return Run(trial, n_shot, feats, labels)


def _problem(
    runs: list[Run], train: Features, split: Split, base_classes: np.ndarray, novel_classes: np.ndarray
) -> Problem:
    for c in base_classes[~np.isin(base_classes, train.labels)]:
        raise InputError(f"{train.path}: no row of base class {c} ({split.class_names[c]}), which the setup needs")
    inside = np.isin(train.labels, base_classes)
    sizes = len(base_classes), len(novel_classes), split.n_classes
    return Problem(train.feats[inside], train.labels[inside], runs, *sizes)


def _test_rows(test: Features, split: Split, base_classes: np.ndarray, novel_classes: np.ndarray) -> np.ndarray:
    """Mask (N,) of the test images of the setup's classes."""
    for c in (classes := np.concatenate([base_classes, novel_classes]))[~np.isin(classes, test.labels)]:
        raise InputError(f"{test.path}: no image of class {c} ({split.class_names[c]}), which the setup judges")
    return np.isin(test.labels, classes)


def _method_name(config: Config) -> str:
    if config.generator is not None:
        return f"{config.classifier} + generator ({config.pairs}, {config.pair_scope})"
    return f"{config.classifier} + repetition" if config.repetition else config.classifier


def _extractor_name(train: Path) -> str:
    """The folder that holds the features; one that is only called features is named by the folder above it."""
    folder = train.resolve().parent
    return folder.parent.name if folder.name == "features" else folder.name


if __name__ == "__main__":
    run(main, Config, __doc__)
