"""Judge a few-shot method on N-way K-shot tasks of novel classes: hundreds of episodes at once.

Reads     features (one file or several, together the pool of images of every class) and split.json (or label_idx.json).
Writes    one results JSON with the accuracy of every episode and number of shots.

    python episodes.py --features features/test.h5 --split split.json --out results/nearest_mean.json \
        --method nearest_mean --n_way 5 --n_shots "[1,5]" --n_episodes 600

    python episodes.py --features '["train.h5", "test.h5"]' --split split.json --out results/cl2n.json \
        --transform.centre true --transform.normalise true       SimpleShot: base images in the pool give the centre

On a laptop, in seconds: --n_episodes 50 --n_queries 5
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jsonargparse.typing import PositiveInt

from lowshot.artifacts import Provenance, is_done, recipe, write_json, writing
from lowshot.benchmark import extractor_name
from lowshot.classifiers import METHODS, FeatureTransform, MethodOptions
from lowshot.cli import run
from lowshot.episodes import Sampling, judge, make_pool, tasks_digest
from lowshot.errors import InputError
from lowshot.features import Features, check_same_space, check_setup, read_features
from lowshot.protocol import Setup, Split, read_split
from lowshot.report.results import summarise
from lowshot.runtime import pick_device


@dataclass(kw_only=True)
class Config(Sampling):
    features: Path | list[Path]
    """Feature file, or a list of them, with all images of the novel classes (and base classes, to centre on)."""
    split: Path
    """split.json, or the published label_idx.json."""
    out: Path
    """The results file to write (.json)."""
    setup: Setup = "test"
    """Whose novel classes the tasks are made of; choose hyper-parameters on validation only, report on test."""
    method: Literal[
        "nearest_mean", "logistic_regression", "cosine", "laplacian_shot", "prototype_refinement", "pt_map"
    ] = "nearest_mean"
    """What learns from the shots; the last three are transductive: they see all queries of a task together."""
    n_episodes: PositiveInt = 600
    """Episodes to judge, counted from 0."""
    transform: FeatureTransform = field(default_factory=FeatureTransform)
    """What is done to every feature first; the centre is the mean of all base-class rows of the feature files."""
    methods: MethodOptions = field(default_factory=MethodOptions)
    """Settings of the methods, each under its name."""
    name: str | None = None
    """Name of the method in the tables; made up of the method and its settings if not given."""
    extractor: str | None = None
    """Name of the features in the tables; that of the folder which holds them if not given."""
    overwrite: bool = False
    """Make the results again though they stand."""


def main(config: Config) -> Path:
    """Judge the method on every episode and write the results file; returns its path."""
    _check(config)
    made_from = _recipe(config)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    provenance = Provenance()
    device = pick_device()

    split = read_split(config.split)
    features = [read_features(path, split.n_classes) for path in _files(config)]
    check_setup(features[0], config.setup)
    feats, labels = _novel_rows(config, features, split)
    source = ", ".join(map(str, _files(config)))
    pool = make_pool(labels, split, split.setup(config.setup)[1], config, source)
    method, options = METHODS[config.method], getattr(config.methods, config.method)
    episodes = judge(torch.from_numpy(feats).to(device), pool, config, config.n_episodes, method, options)

    content = {
        **made_from,
        "method": config.name or _method_name(config),
        "dataset": split.dataset,
        "extractor": config.extractor or extractor_name(_files(config)[0]),
        "protocol": {
            "setup": config.setup,
            "setting": "transductive" if method.transductive else "inductive",
            "split_digest": split.digest,
            "tasks_digest": tasks_digest(config, labels, [_images(one) for one in features]),
        },
        "provenance": provenance.record(device.type),
        "episodes": episodes,
    }
    with writing(config.out) as partial:
        write_json(partial, content)
    _print_means(content)
    print(f"episodes: {config.n_episodes} episodes -> {config.out}")
    return config.out


def _check(config: Config) -> None:
    if not config.n_shots or len(set(config.n_shots)) != len(config.n_shots):
        raise InputError(f"n_shots {config.n_shots}: must name one or more numbers, each once")
    if not _files(config) or len({path.resolve() for path in _files(config)}) != len(_files(config)):
        raise InputError(f"features {[str(path) for path in _files(config)]}: must name one or more files, each once")
    if config.out.suffix != ".json":
        raise InputError(f"{config.out}: results are a .json file")


def _files(config: Config) -> list[Path]:
    return config.features if isinstance(config.features, list) else [config.features]


def _recipe(config: Config) -> dict:
    """The recipe of the results: of all methods' settings only those of the one at work."""
    files = {f"features_{i}" if i else "features": path for i, path in enumerate(_files(config))}
    made_from = recipe("episodes", config, {**files, "split": config.split})
    made_from["config"]["methods"] = {config.method: made_from["config"]["methods"][config.method]}
    return made_from


def _images(features: Features) -> str:
    """Which images a feature file is of: those of its images file in its part; of a published file only it knows."""
    return f"{features.images}:{features.path.stem}" if features.images else str(features.path.resolve())


def _novel_rows(config: Config, features: list[Features], split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Transformed features (N, D) and labels (N,) of all images of the setup's novel classes, file after file."""
    for other in features[1:]:
        check_same_space(features[0], other)
    feats = np.concatenate([one.feats for one in features]) if len(features) > 1 else features[0].feats
    labels = np.concatenate([one.labels for one in features])
    source, novel_classes = ", ".join(map(str, _files(config))), split.setup(config.setup)[1]
    for c in novel_classes[~np.isin(novel_classes, labels)]:
        raise InputError(f"{source}: no image of novel class {c} ({split.class_names[c]}) of the {config.setup} setup")
    base = np.isin(labels, split.base_classes)
    if config.transform.centre and not base.any():
        raise InputError(
            f"{source}: no image of a base class, which transform.centre needs; add the file that has them"
        )
    novel = np.isin(labels, novel_classes)
    transform = config.transform.fit(feats[base] if config.transform.centre else feats[:0])
    return transform(feats[novel]), labels[novel]


def _method_name(config: Config) -> str:
    """The method, and in brackets the transform and settings that are not the default."""
    options = getattr(config.methods, config.method)
    defaults = asdict(type(options)())
    said = [f"{name}={value}" for name, value in asdict(options).items() if value != defaults[name]]
    brackets = ", ".join(config.transform.steps + said)
    return f"{config.method} ({brackets})" if brackets else config.method


def _print_means(content: dict) -> None:
    frame = pd.DataFrame(content["episodes"]).rename(columns={"accuracy": "value"})
    for cell in summarise(frame, ["n_shot"]).itertuples():
        interval = "?" if np.isnan(cell.interval) else f"{100 * cell.interval:.2f}"
        print(f"{content['method']}, {cell.n_shot}-shot: {100 * cell.mean:.2f} ± {interval} %")


if __name__ == "__main__":
    run(main, Config, __doc__)
