"""Train and evaluate a low-shot classifier of base and novel classes, from n shots of every novel class.

Reads     train and test features (ours or the published HDF5 layout), split.json (or label_idx.json), draws.json (or
          the published splitfile_{trial}.json). Optional: a generator folder, propagated rows, features of GAN samples,
          rows of your own, a grid of settings.
Writes    one results JSON with the accuracies of every trial and n. With a grid, also the evidence of the choice.

    python low_shot.py --train features/train.h5 --test features/test.h5 --split split.json --draws draws.json \\
        --out results/imprinting.json

The published linear classifier, with hallucinated features:

    python low_shot.py --train features/train.h5 --test features/test.h5 --split split.json --draws draws.json \\
        --out results/linear_sgd_generated.json --classifier linear_sgd --add.generator generator/

Select settings on the validation setup and evaluate on the test setup (grid.yaml: `classifier.lr: [0.1, 1.0]`):

    python low_shot.py --train features/train.h5 --test features/test.h5 --split split.json --draws draws.json \\
        --out results/imprinting.json --select grid.yaml

Add training rows. With several additions (`--add repetition my_rows.py:Noise`), the first named is applied first:

    python low_shot.py --train features/train.h5 --test features/test.h5 --split split.json --draws draws.json \\
        --out results/linear_sgd_repeated.json --classifier linear_sgd --add repetition

Keep the classifier, with the rows that were added, and name images with it:

    python low_shot.py --train features/train.h5 --test features/test.h5 --split split.json --draws draws.json \\
        --out results/imprinting.json --classifier_out classifier
    python predict.py classify --classifier classifier --images new_photos --out predictions.csv
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_args

from lowshot import classifiers, core, diffusion, evaluation, gan, hallucination, photos
from lowshot.classifiers.settings import (
    BENCHMARK_CLASSIFIERS,
    FeatureTransform,
    ImprintingOptions,
    OwnHead,
    head_of,
    is_transductive,
    transform_of,
)
from lowshot.core.artifacts import Provenance, Recipe, recipe, stored_recipe
from lowshot.core.choices import Registry, Several, is_own
from lowshot.core.cli import report_of, run
from lowshot.core.errors import Diverged, InputError
from lowshot.core.files import check_suffix, digest
from lowshot.core.imports import load
from lowshot.core.publishing import is_done, writing
from lowshot.core.settings import Seed, paths_of
from lowshot.data.additions import Addition, CopiesOfShots, FileRows, Repetition, RowsOfFile, Run, check_extended
from lowshot.data.lineage import Lineage, Setting, Tags, lineage_of_method
from lowshot.data.protocol import read_draws
from lowshot.diffusion.settings import Propagated
from lowshot.evaluation.benchmark import (
    Benchmark,
    Evaluated,
    check_settings,
    input_files,
    read_benchmark,
    writing_results,
)
from lowshot.evaluation.older import LOW_SHOT_NAMES, results_today
from lowshot.evaluation.selection import choose, evidence_path, joint_recipe
from lowshot.evaluation.settings import Pool, SelectionConfig
from lowshot.gan.settings import Samples
from lowshot.hallucination.settings import Calibrated, Generator

ADDITIONS = Registry(
    "addition",
    {
        "propagated": Propagated,
        "pool": Pool,
        "generator": Generator,
        "calibrated": Calibrated,
        "samples": Samples,
        "copies": CopiesOfShots,
        "repetition": Repetition,
        "rows": RowsOfFile,
    },
    "extend(run, benchmark, seed)",
)


@dataclass(kw_only=True)
class Config(SelectionConfig):
    classifier: Annotated[Any, BENCHMARK_CLASSIFIERS] = field(default_factory=ImprintingOptions)
    """Classifier. linear_sgd: the published linear classifier; logistic_regression: the same loss, minimised exactly;
    mlp: from the CIFAR-100 analogy recipe; own_head: the extractor's own classifier. These four score all classes of
    the data set. imprinting and attention (cosine classifiers), balanced_sgd (the logistic regression of the diffusion
    paper), logit_adjusted (logistic regression with logit adjustment), nearest_mean, cosine and the transductive
    laplacian_shot, prototype_refinement, pt_map, bd_cspn, tim, alpha_tim and adaptive_transport score the classes of
    the setup. Transductive: all test images are classified together; pt_map, bd_cspn and tim assume equally many per
    class."""
    transform: FeatureTransform | None = None
    """Transform of all features before the classifier, additional rows included. Default: centre and normalise for
    imprinting and attention (not with an extractor's weights), the one that a few-shot method was published with, none
    for other classifiers. A given part replaces it as a whole: --transform.normalise false is no transform."""
    add: Annotated[dict, Several(ADDITIONS)] = field(default_factory=dict)
    """Additional training rows, applied in this order. propagated: rows labelled by diffusion.py; pool: unlabelled
    training images, labelled by a few-shot method; generator: an analogy generator; calibrated: rows drawn with the
    covariance of base classes; samples: GAN samples; copies: augmented copies of the shots; repetition: repeated shots
    (the control of the others); rows: a file of rows."""
    novel_bias: float = 0.0
    """Number to add to the scores of all novel classes of the setup (calibrated stacking). Its unit is that of the
    scores. Positive values give more images to novel classes. Choose it for each n: --select.per_shot with a grid
    `novel_bias: [0, 1, 2]`, which fits every classifier once."""
    scores: Path | None = None
    """File to write the log-probabilities of all test images to (.h5), for fusion in diffusion.py."""
    classifier_out: Path | None = None
    """Folder to write the classifier of the first trial and the largest n to, for predict.py. This fits it again."""
    classifier_extractor: Path | None = None
    """Folder of the extractor of the features, for --classifier_out. Default: extractor/ beside their folder."""
    classifier_weights: Path | None = None
    """Weights of the timm model of the features, for --classifier_out. Default: download them."""
    seed: Seed = 0
    """Seed of all random draws."""

    older = staticmethod(results_today)
    renamed = LOW_SHOT_NAMES | {"criterion": "select.criterion", "select_per_shot": "select.per_shot"}


def main(config: Config) -> Path:
    """Evaluate every trial and n of `config`, write the results file, and keep a classifier if `config.classifier_out`.

    Returns the path of the results, or of the evidence if settings are only selected.
    """
    _check_kept(config)
    out = _evaluated_all(config)
    if config.classifier_out is not None:
        _keep_classifier(config)
    return out


def _check_kept(config: Config) -> None:
    """Raise InputError if a setting of the kept classifier would be ignored, or if it is not clear which to keep."""
    if config.classifier_out is None and (config.classifier_extractor or config.classifier_weights):
        raise InputError("--classifier_extractor, --classifier_weights: are for --classifier_out. Leave them out")
    if config.classifier_out is not None and config.select is not None:
        raise InputError("--classifier_out: not with --select. Use the chosen settings in a run of their own")
    if config.classifier_out is not None:
        photos.check_kept(config.classifier, config.train, config.classifier_extractor)


def _keep_classifier(config: Config) -> None:
    """Write the classifier of the first trial and the largest n as a classifier of images."""
    trial = min(config.trials or read_draws(config.draws))
    config = replace(config, shots=[max(config.shots)], trials=[trial])
    made_from = _recipe(config)
    if is_done(config.classifier_out, made_from, config.overwrite):
        return
    model, invert = photos.extractor_of_features(config.train, config.classifier_extractor, config.classifier_weights)
    benchmark, device = read_benchmark(config), core.pick_device().type
    problem = _problem(config, benchmark)
    transform, seed, bias = _transform(config), config.seed, config.novel_bias
    mean = classifiers.transformed_mean(transform, problem.base_feats)
    problem = problem.transformed(lambda features: classifiers.apply_transform(transform, features, mean))
    learned = photos.learn_jointly(config.classifier, problem, benchmark.classes, seed, device, bias)
    names = [benchmark.split.class_names[c] for c in benchmark.classes]
    classifier = photos.PhotoClassifier(model, names, *learned, transform, mean, invert)
    shots = Lineage(frozenset(benchmark.split.origins[c] for c in benchmark.novel_classes))
    made_from = made_from.but(lineage=(_tags([config], benchmark)[1] | shots).to_json())
    with writing(config.classifier_out, made_from) as partial:
        partial.mkdir()
        photos.save_classifier(partial, classifier, made_from)
    print(f"low_shot: classifier of {len(names)} classes, n = {config.shots[0]} -> {config.classifier_out}")


def _evaluated_all(config: Config) -> Path:
    """Write the results of every trial and n. Select settings first if `config.select`."""
    check_settings(config)
    if config.scores is not None:
        check_suffix("--scores", config.scores, ".h5")
    outputs = _outputs(config)
    if config.overwrite or not all(out.exists() for out in outputs):
        _load(config)
    configs, chosen = [config], {}
    if config.select is not None:
        configs, evidence, record = choose(config, _recipe, _evaluate, core.pick_device().type)
        if config.setup == "validation":
            return evidence
        chosen = {"selection": record}
    made_from = joint_recipe([(one.shots, _recipe(one)) for one in configs])
    digests = {name: record["digest"] for name, record in chosen.items()}
    made_from = made_from.but(inputs={**made_from["inputs"], **digests})
    done = [is_done(out, made_from, config.overwrite) for out in outputs]
    if all(done):
        return config.out
    device, provenance = core.pick_device().type, Provenance()
    benchmark = read_benchmark(config)
    name, (tags, seen) = _joint_name(configs), _tags(configs, benchmark)
    made_from = made_from.but(lineage=seen.to_json())
    with (
        writing_results(configs, made_from, benchmark, name, tags, provenance, device, **chosen) as results,
        _keeping(config, made_from, benchmark) as (keep, stored),
    ):
        kept = results.entries.keys() if stored is None else results.entries.keys() & stored
        for one in configs:
            for [part] in _evaluated([one], benchmark, device, kept, keep):
                results.add(part)
    return config.out


def _keeping(config: Config, made_from: Recipe, benchmark: Benchmark) -> AbstractContextManager:
    """Open the file of scores: what stores the scores of a run, and the runs that are stored. None and None without."""
    if config.scores is None:
        return nullcontext((None, None))
    return diffusion.keeping_scores(config.scores, made_from, config, benchmark)


def _outputs(config: Config) -> list[Path]:
    """Return the files to write: scores (optional) and results, or the evidence if settings are only selected."""
    if config.select is not None and config.setup == "validation":
        return [evidence_path(config.out)]
    return [out for out in (config.scores, config.out) if out is not None]


def _load(config: Config) -> None:
    """Import the modules that the classifier and the additions need."""
    load(classifiers, "fitted_transform")
    load(evaluation, "evaluate_runs")
    used = {type(one) for one in config.add.values()}
    for kind, room, name in (
        (Generator, hallucination, "Hallucinator"),
        (Calibrated, hallucination, "CalibratedRows"),
        (Pool, evaluation, "PoolRows"),
        (Propagated, diffusion, "PropagatedRows"),
        (Samples, gan, "SampleRows"),
    ):
        if kind in used:
            load(room, name)
    if config.scores is not None:
        load(diffusion, "keeping_scores")


def _evaluate(configs: list[Config], benchmark: Benchmark, device: str) -> Iterator[Evaluated | Diverged]:
    """Yield the outcomes of each of `configs`, or the error if it diverged.

    Those that differ only in their novel bias are evaluated from the same scores. Raises InputError if nothing may be
    chosen with what they read.
    """
    _tags(configs, benchmark)
    ahead: dict[int, Evaluated | Diverged] = {}
    for i, config in enumerate(configs):
        if i not in ahead:
            alike = [j for j in range(i, len(configs)) if replace(configs[j], novel_bias=config.novel_bias) == config]
            ahead |= zip(alike, _evaluated_together([configs[j] for j in alike], benchmark, device))
        yield ahead.pop(i)


def _evaluated_together(configs: list[Config], benchmark: Benchmark, device: str) -> list[Evaluated | Diverged]:
    """Return the outcomes of each of `configs`, which differ only in their novel bias, or the error if it diverged."""
    try:
        parts = list(_evaluated(configs, benchmark, device))
    except Diverged as error:
        return [error for _ in configs]
    return [{run: one for part in of_bias for run, one in part.items()} for of_bias in zip(*parts)]


def _recipe(config: Config) -> Recipe:
    """Return the recipe of the results."""
    _check_own_head(config)
    _check_additions(config)
    samples = {f"samples_{trial}_{n}": path for (trial, n), path in _sample_files(config).items()}
    resolved = replace(config, transform=_transform(config))
    return recipe("low_shot", resolved, {**input_files(config), **samples})


def _transform(config: Config) -> FeatureTransform:
    """Return the transform that is given, or that of the classifier."""
    return transform_of(config.classifier, config.transform)


def _sample_files(config: Config) -> dict[tuple[int, int], Path]:
    """Return the feature file of the samples of each run (trial, n). Empty without samples."""
    samples = [one for one in config.add.values() if isinstance(one, Samples)]
    runs = product(read_draws(config.draws, config.trials), config.shots) if samples else ()
    return gan.sample_files(samples[0].files, runs) if samples else {}


def _check_own_head(config: Config) -> None:
    """Raise InputError if the head of an extractor is combined with a transform, or with rows if it does not learn, or
    if its extractor did not make the features."""
    head = head_of(config.classifier)
    if head is None:
        return
    if isinstance(config.classifier, OwnHead) and (config.add or _transform(config).steps):
        raise InputError("own_head: does not learn. Leave out --transform and --add")
    if _transform(config).steps:
        raise InputError(
            f"{head}: has weights of features without a transform. Leave out --transform or this extractor"
        )
    if stored_recipe(config.train)["inputs"].get("extractor") != digest(head):
        raise InputError(f"{head}: {config.train} has features of another extractor. Use its own features")


def _check_additions(config: Config) -> None:
    """Raise InputError if an addition has a `setting` that results do not allow."""
    for name, one in config.add.items():
        if (seen := _seen(one)) not in get_args(Setting):
            raise InputError(f"add.{name}: its 'setting' is '{seen}', must be one of {', '.join(get_args(Setting))}")


def _seen(addition: Any) -> str:
    """Return the data that an addition uses besides labelled training images. Default: none (inductive)."""
    return getattr(addition, "setting", "inductive")


def _evaluated(
    configs: list[Config],
    benchmark: Benchmark,
    device: str,
    done: Set[tuple[int, int]] = frozenset(),
    keep: evaluation.Keep | None = None,
) -> Iterator[list[Evaluated]]:
    """Return the outcomes of the runs that are not `done`, part by part, for each of `configs`.

    They differ only in their novel bias.
    """
    config, biases = configs[0], [one.novel_bias for one in configs]
    if done >= set(benchmark.runs(config.shots)):
        return iter(())
    problem = _problem(config, benchmark)
    transform = classifiers.fitted_transform(_transform(config), problem.base_feats)
    problem, queries = problem.transformed(transform), transform(benchmark.test_features)
    return evaluation.evaluate_runs(
        config.classifier, problem, benchmark, queries, config.seed, device, done, keep, biases
    )


def _problem(config: Config, benchmark: Benchmark) -> classifiers.Problem:
    """Return the base rows, and the novel rows of every run in the order of trials and shots."""
    train, base = benchmark.train, benchmark.base_rows
    additions = {name: _opened(one, config, benchmark) for name, one in config.add.items()}
    runs = [_extended(run, additions, benchmark, config.seed) for run in benchmark.shots_of_runs(config.shots)]
    sizes = len(benchmark.base_classes), len(benchmark.novel_classes), benchmark.split.n_classes
    return classifiers.Problem(train.feats[base], train.labels[base], runs, *sizes)


def _opened(settings: Any, config: Config, benchmark: Benchmark) -> Addition:
    """Read and check the files of an addition and return its implementation. A class of the user's own is its own."""
    train = benchmark.train
    if type(settings) is Generator:
        return hallucination.Hallucinator(settings, benchmark.split, train)
    if type(settings) is Pool:
        return evaluation.PoolRows(settings, benchmark)
    if type(settings) is Calibrated:
        return hallucination.CalibratedRows(settings, train, benchmark.base_rows)
    if type(settings) is Propagated:
        return diffusion.PropagatedRows(settings, config, train)
    if type(settings) is Samples:
        return gan.SampleRows(settings, _sample_files(config), config, train)
    return FileRows(settings, train) if type(settings) is RowsOfFile else settings


def _extended(run: Run, additions: dict[str, Addition], benchmark: Benchmark, seed: int) -> Run:
    """Apply all additions to the run, one after the other."""
    for name, addition in additions.items():
        run = check_extended(f"add.{name}", run, addition.extend(run, benchmark, seed))
    return run


def _tags(configs: list[Config], benchmark: Benchmark) -> tuple[Tags, Lineage]:
    """Return the tags of the results, and what classifier, additions and features have seen."""
    declared = {f"add.{name}": lineage_of_method(_seen(one)) for one in configs for name, one in one.add.items()}
    if any(is_transductive(one.classifier) for one in configs):
        declared["classifier"] = lineage_of_method("transductive")
    files = dict.fromkeys(path for one in configs for path in _files_of_methods(one))
    of_runs = {run: path for one in configs for run, path in _sample_files(one).items()}
    return benchmark.tags(files, declared, of_runs)


def _files_of_methods(config: Config) -> list[Path]:
    """Return the artifacts that the classifier and the additions read. What a file of rows has seen, its user says."""
    parts = [config.classifier, *(one for one in config.add.values() if type(one) is not RowsOfFile)]
    return [path for one in parts if not is_own(one) for path in paths_of(one).values()]


def _joint_name(configs: list[Config]) -> str:
    """Return the name of the method in the tables. With settings selected per n, it is the part they share."""
    names = list(dict.fromkeys(_method_name(one) for one in configs))
    shared = dict.fromkeys(BENCHMARK_CLASSIFIERS.name_of(one.classifier) for one in configs)
    name = names[0] if len(names) == 1 else f"{', '.join(shared)} (settings by n)"
    biases = {one.novel_bias for one in configs}
    if biases == {0}:
        return name
    return f"{name}, novel bias {biases.pop():g}" if len(biases) == 1 else f"{name}, novel bias by n"


def _method_name(config: Config) -> str:
    """Return the names of classifier, transform and additions."""
    steps, name = _transform(config).steps, BENCHMARK_CLASSIFIERS.name_of(config.classifier)
    parts = [f"{name} ({', '.join(steps)})" if steps else name]
    return " + ".join(parts + [getattr(one, "label", key) for key, one in config.add.items()])


def next_step(config: Config) -> list | None:
    """Return the command that uses the output. Settings that are only chosen give no results to report."""
    return None if config.select and config.setup == "validation" else report_of(config.out)


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
