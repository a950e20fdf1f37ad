"""Evaluate a few-shot method on N-way K-shot tasks (episodes) of novel classes or of all classes, or on given tasks.

Reads     one or more feature files (their images form the pool to draw from) and split.json (or label_idx.json), or a
          list of tasks.
Writes    one results JSON with the accuracy of every episode and number of shots.

    python episodes.py --features features/test.h5 --split split.json --out results/nearest_mean.json \\
        --method nearest_mean --n_way 5 --n_shots 1 5 --n_episodes 600

SimpleShot, which centres on the base images of the feature files:

    python episodes.py --features train.h5 test.h5 --split split.json --out results/cl2n.json \\
        --transform.centre --transform.normalise

Cross-granularity: the extractor was trained on superclasses (train_scgm.py), the tasks are of their classes:

    python episodes.py --features features/test.h5 --split split.json --out results/all-way.json --classes all \\
        --n_way all --method logistic_regression --transform.normalise --augmented_support --clustering 100

Given tasks, listed in a CSV file (a line for each image: task,part,class,image; the format is in docs/protocol.md):

    python save_features.py --extractor extractor/ --data pictures/tasks.csv --out features
    python episodes.py --tasks pictures/tasks.csv --features features/train.h5 --out results/tasks.json

On a laptop, in seconds: --n_episodes 50 --n_queries 5
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np

from lowshot import classifiers, core, evaluation, hallucination, report
from lowshot.classifiers.settings import METHODS, FeatureTransform, NearestMeanOptions, is_transductive, transform_of
from lowshot.core import health
from lowshot.core.artifacts import Provenance, recipe
from lowshot.core.cli import report_of, run
from lowshot.core.errors import InputError
from lowshot.core.files import check_suffix, digest, write_json
from lowshot.core.imports import load
from lowshot.core.publishing import is_done, open_journal, writing
from lowshot.core.settings import PositiveInt, RunOnly, TwoOrMore, defaults_of, values_of
from lowshot.data.features import Features, check_same_space, read_copies, read_features
from lowshot.data.lineage import Judged, Lineage, Tags, judge, lineage_of, lineage_of_method, merged
from lowshot.data.protocol import Setup, Split, read_split, setup_of
from lowshot.data.task_list import TaskList, read_task_list
from lowshot.evaluation.benchmark import extractor_name
from lowshot.evaluation.by_class import judged_classes
from lowshot.evaluation.older import EPISODES_NAMES, results_today
from lowshot.evaluation.settings import Sampling

if TYPE_CHECKING:
    import torch

_CLUSTERINGS = 5  # seeds of --clustering, counted from --seed
_NOT_CENTRED = "use a transform that does not centre, such as --transform.normalise"


@dataclass(kw_only=True)
class Config(Sampling):
    features: Path | list[Path]
    """Feature files with all images of the novel classes (and of base classes, for --transform.centre)."""
    out: Path
    """Results file to write (.json)."""
    split: Path | None = None
    """split.json, or the published label_idx.json. Tasks of pictures need none."""
    tasks: Path | None = None
    """CSV file of given tasks, instead of drawn ones. Its images are pictures, whose features are those of
    save_features.py --data with the same file, or rows of --features."""
    setup: Setup = "test"
    """Setup whose novel classes are evaluated. Choose hyper-parameters on validation only and report on test."""
    classes: Literal["novel", "all"] = "novel"
    """Classes to draw tasks from: the novel classes of the setup, or all classes of the split. For all, use features of
    test images only, since the extractor was trained on the training images of base classes."""
    augmented_support: bool = False
    """Replace every shot by its augmented copies (save_features.py --copies)."""
    method: Annotated[Any, METHODS] = field(default_factory=NearestMeanOptions)
    """Few-shot method. laplacian_shot and those after it are transductive: they use all queries of a task together."""
    n_episodes: PositiveInt = 600
    """Number of episodes to evaluate."""
    transform: FeatureTransform | None = None
    """Transform of all features before the method. Centres on the base-class rows of the feature files. Default: the
    one that the method was published with. A given part replaces it as a whole."""
    clustering: TwoOrMore | None = None
    """Also cluster the images of the pool into this number of clusters (k-means on the transformed features, five
    seeds), and report NMI, homogeneity and adjusted Rand index with respect to the classes."""
    name: str | None = None
    """Name of the method in the tables. Default: composed of its settings."""
    extractor: str | None = None
    """Name of the features in the tables. Default: the name of their folder."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""

    older = staticmethod(results_today)
    renamed = EPISODES_NAMES


def main(config: Config) -> Path:
    """Evaluate the method on every episode, write the results file and return its path."""
    import torch

    config = replace(config, transform=transform_of(config.method, config.transform))
    _check(config)
    files = {f"features_{i}" if i else "features": path for i, path in enumerate(_files(config))}
    made_from = recipe("episodes", config, {**files, "split": config.split, "tasks": config.tasks})
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    load(classifiers, "fitted_transform")
    load(evaluation, "evaluate_episodes")
    device, provenance = core.pick_device(), Provenance()
    tasks = _drawn(config) if config.tasks is None else _given(config)
    made_from = made_from.but(lineage=tasks.seen.to_json())
    feats, copies = (None if one is None else torch.from_numpy(one).to(device) for one in (tasks.feats, tasks.copies))
    with writing(config.out, made_from) as partial:
        episodes = tasks.evaluate(feats, copies, open_journal(partial, made_from))
        split, digests = tasks.split, {"split_digest": tasks.split.digest, "tasks_digest": tasks.digest}
        content = {
            **made_from,
            "method": config.name or _method_name(config, 0 if tasks.copies is None else tasks.copies.shape[1]),
            "dataset": split.dataset,
            "extractor": config.extractor or extractor_name(_files(config)[0]),
            "protocol": {"setup": config.setup, **tasks.tags.to_json(), **digests},
            "provenance": provenance.record(device.type),
            "episodes": episodes,
            "classes": judged_classes(split, tasks.labels, tasks.novel_classes),
        }
        if config.clustering:
            content["clustering"] = _clusterings(config, tasks.feats, tasks.labels)
        write_json(partial, content)
    _print_means(content)
    print(f"episodes: {tasks.words} -> {config.out}")
    return config.out


class _Tasks(NamedTuple):
    """Tasks to evaluate, drawn or given.

    `feats` float32 (N, D) and `copies` (N, A, D) or None are transformed, `labels` (n,) are those of the images that
    can be in a task. `evaluate` maps both as tensors, and the parts that are done, to the entries of a results file.
    """

    split: Split
    novel_classes: Sequence[int]
    tags: Tags
    seen: Lineage
    feats: np.ndarray
    copies: np.ndarray | None
    labels: np.ndarray
    digest: str
    words: str
    evaluate: Callable[[torch.Tensor, torch.Tensor | None, list], list[dict]]


def _drawn(config: Config) -> _Tasks:
    """Return the tasks that are drawn from the features."""
    split = read_split(config.split)
    features = [read_features(path, split.n_classes) for path in _files(config)]
    tags, seen = _tags(config, split)
    classes = np.arange(split.n_classes) if config.classes == "all" else setup_of(split, config.setup, config.split)[1]
    feats, copies, labels = _pool_rows(config, features, split, classes)
    if config.clustering and config.clustering > len(feats):
        raise InputError(f"--clustering {config.clustering}: there are only {len(feats)} images. Use fewer clusters")
    pool = evaluation.make_pool(labels, split, classes, config, _source(config))
    _print_left_out(config, split, classes, len(pool.group_sizes))

    def evaluate(rows: torch.Tensor, of_copies: torch.Tensor | None, parts: list) -> list[dict]:
        if n_done := sum(map(len, parts)) // len(config.n_shots):
            print(f"episodes: continuing after {n_done} of {config.n_episodes} episodes", flush=True)
        return evaluation.evaluate_episodes(rows, pool, config, config.n_episodes, config.method, of_copies, parts)

    digest_of_tasks = evaluation.tasks_digest(config, labels, [_images(one) for one in features])
    words = f"{config.n_episodes} episodes"
    return _Tasks(split, split.novel_classes, tags, seen, feats, copies, labels, digest_of_tasks, words, evaluate)


def _given(config: Config) -> _Tasks:
    """Return the tasks of a list."""
    given = read_task_list(config.tasks)
    split = given.as_split() if config.split is None else read_split(config.split)
    features = [read_features(path, config.split and split.n_classes) for path in _files(config)]
    feats, copies, labels = _given_rows(config, given, features, split)
    inputs = {str(path): lineage_of(path) for path in _files(config)} | _of_method(config)
    if config.split is None and not given.states_sources:
        inputs |= {str(config.tasks): Lineage(unknown=frozenset({str(config.tasks)}))}
    classes = split.novel_classes if config.split is None else np.unique(labels)
    tags = judge(inputs, Judged(split, "both", classes))

    def evaluate(rows: torch.Tensor, of_copies: torch.Tensor | None, entries: list) -> list[dict]:
        evaluation.evaluate_given(rows, given.tasks, config.method, config.seed, of_copies, entries)
        return list(entries)

    seen, words = merged(inputs.values()), f"{len(given.tasks)} given tasks"
    return _Tasks(split, classes, tags, seen, feats, copies, labels, digest(config.tasks), words, evaluate)


def _given_rows(
    config: Config, given: TaskList, features: list[Features], split: Split
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return transformed features (N, D) and copies (N, A, D) of all rows, and labels (n,) of the images of the tasks.

    Raises InputError if the features are not of the tasks' images.
    """
    for other in features[1:]:
        check_same_space(features[0], other)
    feats, labels = (_joined([getattr(one, name) for one in features]) for name in ("feats", "labels"))
    if given.pictures is not None:
        if config.split is not None:
            raise InputError("--split: only for tasks of rows of a feature file. Leave it out for tasks of pictures")
        if len(features) > 1 or features[0].images != given.images_digest:
            raise InputError(
                f"{_source(config)}: not the features of the pictures in {config.tasks}. Make them with "
                f"save_features.py --data {config.tasks}"
            )
    elif given.rows.max() >= len(feats):
        raise InputError(
            f"{config.tasks}: row {given.rows.max()} is outside the {len(feats)} rows of {_source(config)}"
        )
    of_tasks = given.image_classes if config.split is None else labels[given.rows]
    base = feats[np.isin(labels, split.base_classes)]
    if config.transform.centre and (config.split is None or not len(base)):
        raise InputError(
            f"--transform.centre: needs --split, and rows of its base classes in --features. Or {_NOT_CENTRED}"
        )
    transform = classifiers.fitted_transform(config.transform, base)
    copies = transform(_copies(features)) if config.augmented_support else None
    return transform(feats), copies, of_tasks


def _clusterings(config: Config, feats: np.ndarray, labels: np.ndarray) -> list[dict]:
    seeds = range(config.seed, config.seed + _CLUSTERINGS)
    return [hallucination.clustering_scores(feats, labels, config.clustering, seed) for seed in seeds]


def _check(config: Config) -> None:
    if not config.n_shots or len(set(config.n_shots)) != len(config.n_shots):
        raise InputError(f"--n_shots {config.n_shots}: must be one or more numbers without duplicates")
    if not _files(config) or len({path.resolve() for path in _files(config)}) != len(_files(config)):
        raise InputError(
            f"--features {[str(one) for one in _files(config)]}: must be one or more files without duplicates"
        )
    check_suffix("--out", config.out, ".json")
    if config.tasks is not None:
        _check_given(config)
    elif config.split is None:
        raise InputError("--split: needed to draw tasks (or give the tasks with --tasks)")
    if config.classes == "all" and config.setup == "validation":
        raise InputError("--classes all: includes the classes of the test setup. Use --classes novel for validation")
    if config.classes == "all" and config.transform.centre:
        raise InputError(
            "--transform.centre: with --classes all, the base images that define the centre are evaluated themselves; "
            f"{_NOT_CENTRED}"
        )


# Settings of drawn tasks, which given tasks have none of.
_OF_DRAWN = (*(f.name for f in fields(Sampling) if f.name != "seed"), "n_episodes", "classes", "setup", "clustering")


def _check_given(config: Config) -> None:
    defaults = defaults_of(config)
    for name in _OF_DRAWN:
        if getattr(config, name) != defaults.get(name):
            raise InputError(f"--{name}: only for tasks that are drawn. Leave it out with --tasks")


def _tags(config: Config, split: Split) -> tuple[Tags, Lineage]:
    """Return the tags of the results, and what the features and the method have seen.

    With all classes, base classes are judged, too, on test images: only the novel ones must not have been seen.
    """
    novel = split.novel_classes if config.classes == "all" else split.setup(config.setup)[1]
    inputs = {str(path): lineage_of(path) for path in _files(config)}
    inputs |= _of_method(config)
    return judge(inputs, Judged(split, config.setup, novel)), merged(inputs.values())


def _of_method(config: Config) -> dict[str, Lineage]:
    return {"method": lineage_of_method("transductive")} if is_transductive(config.method) else {}


def _files(config: Config) -> list[Path]:
    return config.features if isinstance(config.features, list) else [config.features]


def _source(config: Config) -> str:
    return ", ".join(map(str, _files(config)))


def _images(features: Features) -> str:
    """Return an identifier of the images of a feature file: images file and part, or the path of a published file."""
    return f"{features.images}:{features.path.stem}" if features.images else str(features.path.resolve())


def _pool_rows(
    config: Config, features: list[Features], split: Split, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return transformed features (N, D), copies (N, A, D) and labels (N,) of all images of `classes`.

    The copies are None without --augmented_support.
    """
    for other in features[1:]:
        check_same_space(features[0], other)
    feats, source = _joined([one.feats for one in features]), _source(config)
    labels = np.concatenate([one.labels for one in features])
    for c in classes[~np.isin(classes, labels)]:
        what = "class" if config.classes == "all" else "novel class"
        raise InputError(f"{source}: no image of {what} {c} ({split.class_names[c]}) of the {config.setup} setup")
    base = np.isin(labels, split.base_classes)
    if config.transform.centre and not base.any():
        raise InputError(
            f"{source}: no image of a base class, but transform.centre needs them. "
            f"Add the feature file with base images to --features. Or {_NOT_CENTRED}"
        )
    in_pool = np.isin(labels, classes)
    transform = classifiers.fitted_transform(config.transform, feats[base] if config.transform.centre else feats[:0])
    copies = transform(_copies(features)[in_pool]) if config.augmented_support else None
    return transform(feats[in_pool]), copies, labels[in_pool]


def _print_left_out(config: Config, split: Split, classes: np.ndarray, n_kept: int) -> None:
    """Print how many superclasses have too few classes for a task."""
    known = {split.superclass_of[c] for c in classes} - {None}
    if config.within_superclass and n_kept < len(known):
        print(f"episodes: skipped {len(known) - n_kept} of {len(known)} superclasses with too few classes")


def _copies(features: list[Features]) -> np.ndarray:
    """Return the augmented copies of all rows, file after file, float32 (N, A, D)."""
    copies = [read_copies(one) for one in features]
    for one, stored in zip(features, copies):
        if stored.shape[1] != copies[0].shape[1]:
            numbers = f"{stored.shape[1]} augmented copies per image, but {features[0].path} has {copies[0].shape[1]}"
            raise InputError(f"{one.path}: has {numbers}. Save both with the same --copies")
    return _joined(copies)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _method_name(config: Config, n_copies: int) -> str:
    """Return the method and, in parentheses, the transform, the augmented copies and the non-default settings."""
    name, defaults = METHODS.name_of(config.method), defaults_of(config.method)
    changed = [f"{key}={value}" for key, value in values_of(config.method).items() if value != defaults.get(key)]
    copied = [f"{n_copies} augmented copies"] if n_copies else []
    brackets = ", ".join(config.transform.steps + copied + changed)
    return f"{name} ({brackets})" if brackets else name


def _print_means(content: dict) -> None:
    import pandas as pd

    frame = pd.DataFrame(content["episodes"]).rename(columns={"accuracy": "value"})
    chance = (1 / frame["n_way"]).mean()
    for cell in report.summarise(frame, ["n_shot"]).itertuples():
        interval = "?" if np.isnan(cell.interval) else f"{100 * cell.interval:.2f}"
        print(f"{content['method']}, {cell.n_shot}-shot: {100 * cell.mean:.2f} ± {interval} %")
        if cell.mean <= chance and cell.trials >= 30:  # fewer are at chance by chance
            health.warn(
                f"{cell.n_shot}-shot accuracy is not above chance ({100 * chance:.2f} %). Use another extractor"
            )


def next_step(config: Config) -> list:
    """Return the command that uses the output."""
    return report_of(config.out)


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
