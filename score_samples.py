"""Score generated images against real images of the same classes, by the features of an extractor.

Reads   SAMPLES (features of images of sample_gan.py), TRAIN and optionally TEST (features of real images), split.json,
        draws.json
Writes  one results JSON: FID, KID, precision, recall, density, coverage and class accuracy, for all classes together
        and for each. Class accuracy is the fraction of generated images that are nearest to the mean of their class.

--reference selects the real images:
  validation   training images of the novel classes that are neither shots nor in the unlabelled pool
  unlabelled   the unlabelled pool
  test         test images of the novel classes
  base         training images of the base classes (for sample_gan.py --classes base)

python score_samples.py --samples outputs/emnist_fs/seed0/gan/k5_trial1/features/train.h5 \\
    --train outputs/emnist_fs/seed0/conv4/features/train.h5 --split outputs/emnist_fs/seed0/data/split.json \\
    --draws outputs/emnist_fs/seed0/data/draws.json --out outputs/emnist_fs/results/seed0_k5_trial1.json
The same command takes seconds on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lowshot import core, gan
from lowshot.core.artifacts import Provenance, recipe
from lowshot.core.cli import report_of, run
from lowshot.core.errors import InputError
from lowshot.core.files import check_suffix, write_json
from lowshot.core.imports import load
from lowshot.core.publishing import is_done, writing
from lowshot.core.seeds import stream
from lowshot.core.settings import PositiveInt, RunOnly, Seed
from lowshot.data.features import Features, check_same_space, read_features
from lowshot.data.lineage import Judged, Lineage, Tags, judge, lineage_of, merged
from lowshot.data.protocol import Split, read_draws, read_split
from lowshot.evaluation.benchmark import extractor_name
from lowshot.gan.settings import SCORES


@dataclass(kw_only=True)
class Config:
    samples: Path
    """Features of generated images."""
    train: Path
    """Features of the training images."""
    split: Path
    """split.json."""
    draws: Path
    """draws.json."""
    out: Path
    """Results file to write (.json)."""
    test: Path | None = None
    """Features of the test images, for --reference test."""
    reference: Literal["validation", "unlabelled", "test", "base"] = "validation"
    """Real images to compare with."""
    n_images: PositiveInt = 5000
    """Maximum number of real images, drawn at random. As many generated images of the same classes are used."""
    n_neighbours: PositiveInt = 3
    """Number k of neighbours for precision, recall, density and coverage."""
    seed: Seed = 0
    """Seed of the draw of real images."""
    name: str | None = None
    """Name of the GAN in the tables. Default: the name of the folder of its features."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""


def main(config: Config) -> Path:
    """Score the samples and return the path of the results file."""
    check_suffix("--out", config.out, ".json")
    if config.reference == "test" and config.test is None:
        raise InputError("--reference test: needs the features of the test images. Use --test FILE")
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
            f"{config.samples}: the GAN was fine-tuned with --shared_pool, so its {config.reference} images include "
            "its shots. Use --reference test"
        )
    tags, seen = _tags(config, split, train, facts)
    real, classes = _real(config, split, train, facts["trial"] or 1)
    made = samples.feats[_samples_like(samples, classes, config.samples)]
    scores = gan.scores_by_class(real, made, classes, config.n_neighbours, device)
    content = {
        **made_from.but(lineage=seen.to_json()),
        "method": config.name or extractor_name(config.samples),
        "dataset": split.dataset,
        "extractor": extractor_name(config.train),
        "protocol": {"setup": "both", **tags.to_json(), "split_digest": split.digest},
        "provenance": provenance.record(device.type),
        "gan": facts,
        "scores": scores,
    }
    with writing(config.out, made_from) as partial:
        write_json(partial, content)
    shown = ", ".join(f"{name} {scores[0][name]:.4g}" for name in SCORES)
    print(f"score_samples: {content['method']} against {config.reference} images: {shown} -> {config.out}")
    return config.out


def _tags(config: Config, split: Split, train: Features, facts: dict) -> tuple[Tags, Lineage]:
    """Return the tags of the scores, and what GAN and extractor have seen. Neither may know the real images by class,
    except for the shots of the GAN.
    """
    novel = [] if config.reference == "base" else split.novel_classes
    runs = [(facts["trial"], facts["k"])] if facts["k"] else []
    draws = read_draws(config.draws, [facts["trial"]]) if runs else {}
    inputs = {str(path): lineage_of(path) for path in (config.samples, config.train)}
    return judge(inputs, Judged(split, "both", novel, runs, draws, train.images)), merged(inputs.values())


def _real(config: Config, split: Split, train: Features, trial: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, D) and classes (N,) of the real images to compare with, class after class."""
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
    """Return rows of the first samples of each class, as many as it occurs in the ascending `classes` (N,)."""
    rows = []
    for c, n in zip(*np.unique(classes, return_counts=True)):
        rows.append(np.flatnonzero(samples.labels == c)[:n])
        if len(rows[-1]) < n:
            raise InputError(
                f"{where}: {len(rows[-1])} samples of class {c}, but {n} real images to compare with. "
                f"Use sample_gan.py --n_per_class {n} or a smaller --n_images"
            )
    return np.concatenate(rows)


def next_step(config: Config) -> list:
    """Return the command that uses the output."""
    return report_of(config.out)


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
