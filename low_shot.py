"""Train and evaluate a low-shot classifier: base and novel classes jointly, from n shots of every novel class.

Reads     train and test features (ours or the published HDF5 layout), split.json (or label_idx.json), draws.json (or
          the published splitfile_{trial}.json) and, if wanted, a generator folder, propagated rows, features of a GAN's
          samples, a grid of settings.
Writes    one results JSON with six accuracies for every trial and n; with a grid, the evidence of the choice beside it.

    python low_shot.py --train features/train.h5 --test features/test.h5 --split split.json --draws draws.json \
        --out results/linear_sgd.json [--generator generator/]

On a laptop, in seconds:

    python low_shot.py --train features/train.h5 --test features/test.h5 --split split.json --draws draws.json \
        --out results/nearest_mean.json --classifier nearest_mean --transform.centre true --transform.normalise true

Settings chosen on the validation setup, results on the test setup (grid.yaml: `sgd.lr: [0.1, 1.0]` and so on):

    python low_shot.py --train features/train.h5 --test features/test.h5 --split split.json --draws draws.json \
        --out results/linear_sgd.json --select grid.yaml
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np

from lowshot import classifiers, core, diffusion, evaluation, gan, hallucination
from lowshot.classifiers.settings import (
    ClassifierName,
    FeatureTransform,
    LogisticOptions,
    MethodOptions,
    MLPOptions,
    SGDOptions,
)
from lowshot.core.artifacts import Provenance, digest, is_done, read_recipe, recipe, writing
from lowshot.core.cli import run
from lowshot.core.errors import Diverged, InputError
from lowshot.core.imports import load
from lowshot.core.settings import PositiveInt
from lowshot.data.protocol import read_draws
from lowshot.evaluation.benchmark import (
    Benchmark,
    Ranks,
    Setting,
    check_settings,
    input_files,
    read_benchmark,
    write_results,
)
from lowshot.evaluation.selection import choose, joint_recipe
from lowshot.evaluation.settings import SelectionConfig
from lowshot.hallucination.settings import PairScope, PairSource

# Where the settings of a classifier of the benchmark stand; those of the others stand in `methods`, under their names.
_OPTIONS = {"linear_sgd": "sgd", "logistic_regression": "logistic", "mlp": "mlp", "own_head": "head"}


@dataclass(kw_only=True)
class Config(SelectionConfig):
    classifier: ClassifierName = "linear_sgd"
    """linear_sgd: as published; logistic_regression: the optimum of its loss; mlp: the CIFAR-100 analogy recipe's. All
    three have an output for every class of the data set, as published, and so has own_head, the classifier that the
    extractor was trained with. The others score the setup's classes only: a class without rows has no score there.
    laplacian_shot, prototype_refinement and pt_map are transductive: all test images together are their queries
    (pt_map takes them for equally many a class)."""
    head: Path | None = None
    """own_head: folder of that extractor."""
    transform: FeatureTransform = field(default_factory=FeatureTransform)
    """What is done to all features, generated ones too, before the classifier; the centre is that of the setup's base
    rows."""
    generator: Path | None = None
    """Generator folder: hallucinated rows fill every novel class up to max_per_label."""
    pairs: PairSource = "centroids"
    """What the generator takes its base-class pairs from."""
    pair_scope: PairScope = "all"
    """Base classes a pair may come from: all, or those of the shot's superclass."""
    repetition: bool = False
    """Fill every novel class up to max_per_label by repeating its shots: the control of a generator."""
    max_per_label: PositiveInt = 20
    """Rows of a novel class, shots included, that propagated rows, a generator or repetition fill up to."""
    samples: Path | None = None
    """Features of the images of sample_gan.py, by a name in which {trial} and {n_shot} stand for those of a run: each
    run takes samples of a GAN that was fine-tuned on its own shots."""
    samples_per_shot: PositiveInt = 3
    """Samples of a novel class for each of its shots."""
    propagated: Path | None = None
    """Rows that diffusion.py labelled: the surest ones fill up every novel class, before a generator does."""
    scores: Path | None = None
    """File to keep the log-probabilities of all test images in (.h5), for fusion in diffusion.py."""
    sgd: SGDOptions = field(default_factory=SGDOptions)
    """Settings of linear_sgd."""
    logistic: LogisticOptions = field(default_factory=LogisticOptions)
    """Settings of logistic_regression."""
    mlp: MLPOptions = field(default_factory=MLPOptions)
    """Settings of mlp."""
    methods: MethodOptions = field(default_factory=MethodOptions)
    """Settings of the other classifiers, by name; logistic_regression of few-shot tasks is none of this stage's."""


def main(config: Config) -> Path:
    """Run every trial and n of `config` and write the results file, with settings chosen first if it says `select`.

    Returns the path of what was written last: the results, or the evidence if only a choice was asked for.
    """
    check_settings(config)
    if config.methods.logistic_regression != MethodOptions().logistic_regression:
        raise InputError("methods.logistic_regression: not read here; this stage's logistic_regression reads logistic")
    if config.scores is not None and config.scores.suffix != ".h5":
        raise InputError(f"{config.scores}: scores are a .h5 file")
    configs, chosen = [config], {}
    if config.select is not None:
        _load(config)
        configs, evidence, record = choose(config, _inputs(config), _recipe, _evaluate, core.pick_device().type)
        if config.setup == "validation":
            return evidence
        chosen = {"selection": record}
    made_from = joint_recipe([(one.shots, _recipe(one, _inputs(one))) for one in configs])
    made_from["inputs"] |= {name: record["digest"] for name, record in chosen.items()}
    outputs = [out for out in (config.scores, config.out) if out is not None]
    done = [is_done(out, made_from, config.overwrite) for out in outputs]
    if all(done):
        return config.out
    _load(config)
    device, provenance = core.pick_device().type, Provenance()
    benchmark = read_benchmark(config)
    with _keeping(config, made_from, benchmark) as keep:
        parts = [_ranks(one, benchmark, device, keep) for one in configs]
    ranks = {key: row for part in parts for key, row in part.items()}
    names = list(dict.fromkeys(_method_name(one) for one in configs))
    chosen_classifiers = ", ".join(dict.fromkeys(one.classifier for one in configs))
    method = names[0] if len(names) == 1 else f"{chosen_classifiers} (settings by n)"
    write_results(
        config, made_from, benchmark, method, _setting(configs, benchmark), ranks, provenance, device, **chosen
    )
    return config.out


def _load(config: Config) -> None:
    """Import what the classifier and the augmentation at work need."""
    load(classifiers, "fitted_transform")
    load(evaluation, "rank_runs")
    if config.generator is not None:
        load(hallucination, "Hallucinator")
    if config.propagated is not None:
        load(diffusion, "PropagatedRows")
    if config.samples is not None:
        load(gan, "SampleRows")
    if config.scores is not None:
        load(diffusion, "ScoreFile")


@contextmanager
def _keeping(config: Config, made_from: dict, benchmark: Benchmark) -> Iterator[evaluation.Keep | None]:
    """What keeps the scores of a run, if they are wanted."""
    if config.scores is None:
        yield None
        return
    with writing(config.scores) as partial, diffusion.ScoreFile(partial, made_from, config, benchmark) as file:
        yield file.put


def _evaluate(configs: list[Config], benchmark: Benchmark, device: str) -> Iterator[Ranks | Diverged]:
    """The runs of each of `configs`, one after another."""
    for config in configs:
        try:
            yield _ranks(config, benchmark, device)
        except Diverged as error:
            yield error


def _inputs(config: Config) -> dict[str, Path | None]:
    files = {f"samples_{trial}_{n}": path for (trial, n), path in _sample_files(config).items()}
    optional = {name: getattr(config, name) for name in ("generator", "propagated", "head")}
    return {**input_files(config), **optional, **files}


def _sample_files(config: Config) -> dict[tuple[int, int], Path]:
    """The feature file of the samples of each run (trial, n); none without samples."""
    if config.samples is None:
        return {}
    return gan.sample_files(config.samples, product(read_draws(config.draws, config.trials), config.shots))


def _recipe(config: Config, inputs: dict[str, Path | None]) -> dict:
    """The recipe of the results: only the settings that the classifier and the augmentation at work read."""
    augmented = config.generator or config.propagated or config.samples
    if config.repetition and augmented:
        raise InputError("repetition is the control of generated or propagated rows: give one of the two")
    _check_head(config, bool(augmented or config.repetition))
    made_from = recipe("low_shot", config, inputs)
    settings = made_from["config"]
    methods = settings.pop("methods")
    options = {name: value for name, value in methods.items() if name == config.classifier not in _OPTIONS}
    unread = {"criterion", "select_per_shot", *_OPTIONS.values()} - {_OPTIONS.get(config.classifier)}
    if config.generator is None:
        unread |= {"pairs", "pair_scope"}
    if config.samples is None:
        unread |= {"samples_per_shot"}
    if not (config.generator or config.propagated or config.repetition):
        unread |= {"max_per_label"}
    kept = {name: value for name, value in settings.items() if name not in unread}
    return {**made_from, "config": {**kept, "methods": options} if options else kept}


def _check_head(config: Config, augmented: bool) -> None:
    """InputError for a head that is not asked for or missing, or that is to learn something."""
    if (config.classifier == "own_head") != (config.head is not None):
        raise InputError("own_head and head: give both (the classifier of an extractor, and its folder) or none")
    if config.head is None:
        return
    if augmented or config.transform.steps:
        raise InputError("own_head: learns nothing, so neither a transform nor further rows are of use to it")
    if (read_recipe(config.train) or {"inputs": {}})["inputs"].get("extractor") != digest(config.head):
        raise InputError(f"{config.head}: {config.train} holds features of another extractor")


def _ranks(config: Config, benchmark: Benchmark, device: str, keep: evaluation.Keep | None = None) -> Ranks:
    """The true classes' ranks of every run; `keep` is given all scores: (run, rows, scores)."""
    problem = _problem(config, benchmark)
    transform = classifiers.fitted_transform(config.transform, problem.base_feats)
    problem, queries = problem.transformed(transform), transform(benchmark.test_features)
    settings = config if config.classifier in _OPTIONS else config.methods
    options = getattr(settings, _OPTIONS.get(config.classifier, config.classifier))
    return evaluation.rank_runs(config.classifier, options, problem, benchmark, queries, config.seed, device, keep)


def _problem(config: Config, benchmark: Benchmark) -> classifiers.Problem:
    """The base rows, and the novel rows of every run in the order of trials and shots."""
    train, base = benchmark.train, benchmark.base_rows
    scope = config.pairs, config.pair_scope
    generator = (
        hallucination.Hallucinator(config.generator, benchmark.split, train, *scope)
        if config.generator is not None
        else None
    )
    propagated = diffusion.PropagatedRows(config.propagated, config, train) if config.propagated is not None else None
    samples = gan.SampleRows(_sample_files(config), config, train) if config.samples is not None else None
    runs = [_run(config, benchmark, propagated, samples, generator, *run) for run in benchmark.runs(config.shots)]
    sizes = len(benchmark.base_classes), len(benchmark.novel_classes), benchmark.split.n_classes
    return classifiers.Problem(train.feats[base], train.labels[base], runs, *sizes)


def _run(
    config: Config,
    benchmark: Benchmark,
    propagated: diffusion.PropagatedRows | None,
    samples: gan.SampleRows | None,
    generator: hallucination.Hallucinator | None,
    trial: int,
    n_shot: int,
) -> classifiers.Run:
    """The shots of one run and what the augmentation adds to them."""
    rows = benchmark.shot_rows(trial, n_shot)
    if config.repetition:
        rows = rows[:, np.arange(max(n_shot, config.max_per_label)) % n_shot]
    labels = np.repeat(benchmark.novel_classes, rows.shape[1])
    feats, most = benchmark.train.feats[rows.ravel()], config.max_per_label
    if propagated is not None:
        feats, labels = _joined(feats, labels, *propagated.of(trial, n_shot, most - n_shot))
    if generator is not None:
        feats, labels = _joined(feats, labels, *generator.extend(feats, labels, most, config.seed, trial))
    if samples is not None:
        n = config.samples_per_shot * n_shot
        feats, labels = _joined(feats, labels, *samples.first((trial, n_shot), benchmark.novel_classes, n))
    return classifiers.Run(trial, n_shot, feats, labels)


def _joined(
    feats: np.ndarray, labels: np.ndarray, new_feats: np.ndarray, new_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([feats, new_feats]), np.concatenate([labels, new_labels])


def _setting(configs: list[Config], benchmark: Benchmark) -> Setting:
    """What the method saw beside labelled training rows: test images, unlabelled training rows (a GAN's checkpoint is
    chosen by such), or nothing."""
    if any(one.classifier not in _OPTIONS and classifiers.METHODS[one.classifier].transductive for one in configs):
        return "transductive"
    given = configs[0].propagated, configs[0].samples
    unlabelled = benchmark.train.saw_samples or any(one is not None for one in given)
    return "semi_supervised" if unlabelled else "inductive"


def _method_name(config: Config) -> str:
    """Classifier, transform and augmentation."""
    steps = config.transform.steps
    name = f"{config.classifier} ({', '.join(steps)})" if steps else config.classifier
    if config.propagated is not None:
        name = f"{name} + propagated labels"
    if config.samples is not None:
        name = f"{name} + samples"
    if config.generator is not None:
        return f"{name} + generator ({config.pairs}, {config.pair_scope})"
    return f"{name} + repetition" if config.repetition else name


if __name__ == "__main__":
    run(main, Config, __doc__)
