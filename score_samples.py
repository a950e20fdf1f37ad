"""Score generated images against real ones of the same classes, by the features that an extractor has of both.

Reads   SAMPLES (features of sample_gan.py's images, by save_features.py), TRAIN and maybe TEST (features of real
        images), split.json, draws.json
Writes  one results JSON: FID, KID, precision, recall, density and coverage of all classes together and of each, and how
        many generated images are nearest to their own class's mean

--reference says which real images: `validation`, those training images of the novel classes that are neither shots nor
in the unlabelled pool; `unlabelled`, that pool; `test`, the test images of the novel classes; `base`, the training
images of the base classes (sample_gan.py --classes base).

python score_samples.py --samples outputs/emnist_fs/seed0/gan/k5_trial1/features/train.h5 \\
    --train outputs/emnist_fs/seed0/conv4/features/train.h5 --split outputs/emnist_fs/seed0/data/split.json \\
    --draws outputs/emnist_fs/seed0/data/draws.json --out outputs/emnist_fs/results/seed0_k5_trial1.json
CPU, seconds: the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lowshot import core, gan
from lowshot.core.artifacts import Provenance, is_done, recipe, write_json, writing
from lowshot.core.cli import report_of, run
from lowshot.core.errors import InputError
from lowshot.core.imports import load
from lowshot.core.seeds import stream
from lowshot.core.settings import PositiveInt, RunOnly, Seed
from lowshot.data.features import Features, check_same_space, read_features
from lowshot.data.protocol import Split, read_draws, read_split
from lowshot.evaluation.benchmark import extractor_name
from lowshot.gan.settings import SCORES


@dataclass(kw_only=True)
class Config:
    samples: Path
    """features of generated images"""
    train: Path
    """features of the training images"""
    split: Path
    """split.json"""
    draws: Path
    """draws.json"""
    out: Path
    """results file to write (.json)"""
    test: Path | None = None
    """features of the test images, for the reference test"""
    reference: Literal["validation", "unlabelled", "test", "base"] = "validation"
    """which real images"""
    n_images: PositiveInt = 5000
    """most real images, drawn at random, that as many generated ones of the same classes are compared with"""
    n_neighbours: PositiveInt = 3
    """the neighbour that the balls of precision, recall, density and coverage reach to"""
    seed: Seed = 0
    """of which real images are taken"""
    name: str | None = None
    """name of the GAN in the tables; the folder that holds the features if not given"""
    overwrite: RunOnly[bool] = False
    """make it again even if it is there"""


def main(config: Config) -> Path:
    """Score and return the path of the results file."""
    if config.out.suffix != ".json":
        raise InputError(f"{config.out}: results are a .json file")
    if config.reference == "test" and config.test is None:
        raise InputError("reference test: give --test, the features of the test images")
    inputs = {name: getattr(config, name) for name in ("samples", "train", "test", "split", "draws")}
    made_from = recipe("score_samples", config, inputs)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    load(gan, "few_shot_rows", "read_samples", "scores_by_class")
    device, provenance, split = core.pick_device(), Provenance(), read_split(config.split)
    train = read_features(config.train, split.n_classes)
    samples, of_gan = gan.read_samples(config.samples, train, config.split, config.draws)
    facts = of_gan["config"]["samples"]
    if facts["shared_pool"] and config.reference in ("validation", "unlabelled"):
        raise InputError(
            f"{config.samples}: of a GAN with a shared pool; its {config.reference} images hold its own shots"
        )
    real, classes = _real(config, split, train, facts["trial"] or 1)
    made = samples.feats[_samples_like(samples, classes, config.samples)]
    scores = gan.scores_by_class(real, made, classes, config.n_neighbours, device)
    content = {
        **made_from,
        "method": config.name or extractor_name(config.samples),
        "dataset": split.dataset,
        "extractor": extractor_name(config.train),
        "protocol": {
            "setup": "both",
            "setting": "inductive" if facts["k"] is None else "semi_supervised",
            "split_digest": split.digest,
        },
        "provenance": provenance.record(device.type),
        "gan": facts,
        "scores": scores,
    }
    with writing(config.out) as partial:
        write_json(partial, content)
    shown = ", ".join(f"{name} {scores[0][name]:.4g}" for name in SCORES)
    print(f"score_samples: {content['method']} against {config.reference} images: {shown} -> {config.out}")
    return config.out


def _real(config: Config, split: Split, train: Features, trial: int) -> tuple[np.ndarray, np.ndarray]:
    """The real images that are compared with, class after class: features (N, D), classes (N,)."""
    source = train if config.reference != "test" else read_features(config.test, split.n_classes)
    check_same_space(train, source)
    if config.reference in ("base", "test"):
        classes = split.base_classes if config.reference == "base" else split.novel_classes
        rows = np.flatnonzero(np.isin(source.labels, classes))
    else:
        draws = read_draws(config.draws, [trial])[trial]
        rows = getattr(gan.few_shot_rows(train.labels, split, draws, 1, config.draws), config.reference)
    rows = stream(config.seed, "reference").permutation(rows)[: config.n_images]
    rows = rows[np.argsort(source.labels[rows], kind="stable")]
    return source.feats[rows], source.labels[rows]


def _samples_like(samples: Features, classes: np.ndarray, where: Path) -> np.ndarray:
    """Rows of the first samples of each of `classes` (N,), ascending: as many as it stands there."""
    rows = []
    for c, n in zip(*np.unique(classes, return_counts=True)):
        rows.append(np.flatnonzero(samples.labels == c)[:n])
        if len(rows[-1]) < n:
            raise InputError(
                f"{where}: {len(rows[-1])} samples of class {c}, but it has {n} real images to compare with"
            )
    return np.concatenate(rows)


def next_step(config: Config) -> list:
    """The command that takes the output."""
    return report_of(config.out)


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
