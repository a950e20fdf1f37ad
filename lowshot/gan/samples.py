"""Provenance of generated images, and their features as additions to a low-shot training set.

The recipe of a GAN records the data that it learned from. The recipe of its images (sample_gan.py) and of their
features repeats this record: `samples` in the config (k, trial, semi_supervised, shared_pool), `split` and `draws` in
the inputs.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lowshot.core.artifacts import read_recipe
from lowshot.core.errors import InputError
from lowshot.core.files import digest
from lowshot.data.additions import Run
from lowshot.data.datasets.images import Images, read_images
from lowshot.data.features import Features, check_same_space, read_features
from lowshot.data.lineage import Lineage, lineage_of
from lowshot.data.protocol import is_of_same_classes
from lowshot.evaluation.benchmark import Benchmark
from lowshot.evaluation.settings import BenchmarkConfig
from lowshot.gan.model import gan_recipe
from lowshot.gan.settings import Samples

_FACTS = ("k", "trial", "semi_supervised", "shared_pool")


def samples_recipe(gan: Path, split: Path) -> dict:
    """Return the recipe parts of samples from the folder `gan`. Raises the errors of `gan_recipe`."""
    made_from = gan_recipe(gan, split)
    inputs = {name: made_from["inputs"][name] for name in ("split", "draws") if name in made_from["inputs"]}
    facts = {name: made_from["config"].get(name) for name in _FACTS}
    return {"config": {"samples": facts}, "inputs": {"gan": digest(gan), **inputs}, "lineage": lineage_of(gan)}


def handed_on(images: Path | None) -> dict:
    """Return the recipe parts that features of an images file repeat. They are empty for real images, and for pictures
    that are in no images file (None)."""
    made_from = None if images is None else read_recipe(images)
    if made_from is None or made_from["stage"] != "sample_gan":
        return {"config": {}, "inputs": {}, "lineage": Lineage()}
    inputs = {name: value for name, value in made_from["inputs"].items() if name in ("split", "draws")}
    return {"config": {"samples": made_from["config"]["samples"]}, "inputs": inputs, "lineage": lineage_of(images)}


def read_sample_images(path: Path, split: Path, draws: Path, trial: int, k: int) -> Images:
    """Read images of sample_gan.py. Raise InputError unless the GAN was fine-tuned on these shots."""
    made_from = read_recipe(path)
    if made_from is None or made_from["stage"] != "sample_gan":
        raise InputError(f"{path}: not an images file of sample_gan.py")
    _check_files(path, made_from, split, draws)
    _check_shots(path, made_from, (trial, k))
    return read_images(path)


def read_samples(path: Path, train: Features, split: Path, draws: Path) -> tuple[Features, dict]:
    """Read features of samples and their recipe.

    Raises InputError if the file is not of images of sample_gan.py, or if its extractor, split or shots differ from
    those of the features `train` and the files `split` and `draws`.
    """
    samples, made_from = read_features(path), read_recipe(path)
    if made_from is None or "samples" not in made_from["config"]:
        raise InputError(f"{path}: not features of GAN samples (sample_gan.py, then save_features.py)")
    check_same_space(train, samples)
    _check_files(path, made_from, split, draws)
    return samples, made_from


def _check_files(path: Path, made_from: dict, split: Path, draws: Path) -> None:
    """Raise InputError if the GAN of the samples learned from another split or from shots of another file."""
    if not is_of_same_classes(made_from["inputs"].get("split"), split):
        raise InputError(f"{path}: the GAN was trained on another split than {split}")
    if "draws" in made_from["inputs"] and made_from["inputs"]["draws"] != digest(draws):
        raise InputError(f"{path}: the GAN was fine-tuned on shots of another file than {draws}")


def _check_shots(path: Path, made_from: dict, run: tuple[int, int]) -> None:
    """Raise InputError unless the GAN of the samples was fine-tuned on the shots of the run (trial, k)."""
    facts = made_from["config"]["samples"]
    if facts["k"] is None:
        raise InputError(f"{path}: the GAN was not fine-tuned on shots. Use train_gan.py finetune")
    if (facts["trial"], facts["k"]) != run:
        raise InputError(
            f"{path}: the GAN was fine-tuned on {facts['k']} shots of trial {facts['trial']}. "
            f"Use samples of a GAN with --k {run[1]} --trial {run[0]}"
        )


def sample_files(template: str, runs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Path]:
    """Return the file of each run (trial, n): the template with {trial} and {n_shot} filled in."""
    files = {(trial, n): Path(template.replace("{trial}", str(trial)).replace("{n_shot}", str(n))) for trial, n in runs}
    if any("{" in str(file) and not file.exists() for file in files.values()):
        raise InputError(f"{template}: not a template. Only {{trial}} and {{n_shot}} can be in braces")
    return files


class SampleRows:
    """Addition of GAN samples. The GAN of each run was fine-tuned on the shots of the run."""

    def __init__(
        self, settings: Samples, files: dict[tuple[int, int], Path], config: BenchmarkConfig, train: Features
    ) -> None:
        self.per_shot, self.files, self.rows = settings.per_shot, files, {}
        for run, path in files.items():
            self.rows[run], made_from = read_samples(path, train, config.split, config.draws)
            _check_shots(path, made_from, run)

    def extend(self, run: Run, benchmark: Benchmark, seed: int) -> Run:
        """Add the first samples of each class, `per_shot` per shot. Raise InputError if there are fewer."""
        samples, n = self.rows[run.key], self.per_shot * run.n_shot
        rows = [np.flatnonzero(samples.labels == c)[:n] for c in benchmark.novel_classes]
        for c, found in zip(benchmark.novel_classes, rows):
            if len(found) < n:
                few = f"{len(found)} samples of class {c}, but per_shot {self.per_shot} needs {n}"
                raise InputError(f"{self.files[run.key]}: {few}. Use sample_gan.py --n_per_class {n}")
        rows = np.concatenate(rows)
        return run.joined(samples.feats[rows], samples.labels[rows])
