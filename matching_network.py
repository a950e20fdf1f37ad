"""Matching networks: `train` a network on episodes of the base classes, `test` it on the low-shot benchmark.

train  reads   FEATURES (train.h5 of save_features.py), SPLIT
       writes  OUT/model.pt, OUT/config.json, OUT/log.jsonl, OUT/tensorboard/
test   reads   MODEL/, train and test features, split, draws
       writes  one results JSON in the format of low_shot.py

python matching_network.py train --features features/train.h5 --split split.json --out matching/
python matching_network.py test --model matching/ --train features/train.h5 --test features/test.h5 \\
    --split split.json --draws draws.json --out results/matching_network.json
On a CPU, in seconds:
python matching_network.py train --features features/train.h5 --split split.json --out try/ --n_episodes 100 --n_way 10
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from lowshot import core, evaluation, matching
from lowshot.core.artifacts import Provenance, recipe, stored_recipe
from lowshot.core.cli import report_of, run_commands
from lowshot.core.errors import InputError
from lowshot.core.imports import load
from lowshot.core.publishing import is_done
from lowshot.core.settings import NetworkPrecision, PositiveInt, RunOnly, Seed
from lowshot.data.features import read_features
from lowshot.data.lineage import lineage_of, trained_on
from lowshot.data.protocol import read_split
from lowshot.evaluation.benchmark import Benchmark, check_settings, input_files, read_benchmark, writing_results
from lowshot.evaluation.settings import BenchmarkConfig
from lowshot.matching.settings import MatchingSettings


@dataclass(kw_only=True)
class TrainConfig(MatchingSettings):
    """Train a matching network on episodes of the base classes."""

    features: Path
    """Features of the training images."""
    split: Path
    """split.json, or the published label_idx.json. Training uses the base classes of both setups."""
    out: Path
    """Folder to write the network to."""
    accelerator: RunOnly[str] = "auto"
    """Device type to train on: auto, cpu, cuda, ..."""
    precision: NetworkPrecision = "32-true"
    """Precision of the network. The loss is always float32."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""


@dataclass(kw_only=True)
class TestConfig(BenchmarkConfig):
    """Evaluate a trained network on the low-shot benchmark."""

    model: Path
    """Folder written by `train`."""
    rows_per_class: PositiveInt = 100
    """Number of support rows per base class. The shots of a novel class are repeated up to this number."""
    seed: Seed = 0
    """Seed of the support rows of base classes."""


def train(config: TrainConfig) -> Path:
    """Train a network and return its folder."""
    import torch

    split = read_split(config.split)
    features = read_features(config.features, split.n_classes)
    base = matching.ClassRows(features, split.base_classes, split)
    if not 2 <= (config.n_way or len(base.classes)) <= len(base.classes):
        raise InputError(
            f"--n_way {config.n_way}: must be between 2 and the number of base classes of {config.split}, "
            f"{len(base.classes)}"
        )
    inputs = {"features": config.features, "split": config.split, "extractor": features.extractor}
    seen = lineage_of(config.features) | trained_on(split, split.base_classes)
    made_from = recipe("matching_network train", config, inputs, seen.to_json())
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    if not config.overwrite:
        core.refuse_other_run(config.out, made_from)
    fabric = core.open_fabric(config.accelerator, config.precision)
    fabric.seed_everything(config.seed, verbose=False)
    model = matching.MatchingNetwork(features.dim, config.n_reads)
    with core.training_run(config.out, made_from, config.overwrite) as run:
        trained = matching.MatchingTrainer(config, fabric, run, model, torch.from_numpy(features.feats), base).fit()
        matching.save_matching(run.folder, trained.cpu(), split.base_classes, made_from)
    print(f"matching_network: wrote {config.out}")
    return config.out


def test(config: TestConfig) -> Path:
    """Evaluate every trial and n, write the results file and return its path."""
    check_settings(config)
    ended = stored_recipe(config.model)["config"].get("ended_after")
    handed_on = {} if ended is None else {"model_ended_after": ended}
    made_from = recipe("matching_network test", config, {"model": config.model, **input_files(config)}, **handed_on)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    load(matching)
    load(evaluation, "outcomes_in_chunks")
    device, provenance = core.pick_device().type, Provenance()
    benchmark = read_benchmark(config)
    model = matching.load_matching(config.model, benchmark.split, benchmark.train).to(device)
    supports = build_supports(benchmark, config)
    tags, seen = benchmark.tags([config.model])
    made_from = made_from.but(lineage=seen.to_json())
    with writing_results([config], made_from, benchmark, "matching_network", tags, provenance, device) as results:
        for runs in batches_of_runs(supports, model.dim):
            if not results.entries.keys() >= set(runs):
                found = _outcomes(model, benchmark, np.stack([supports[run] for run in runs]), device)
                results.add({run: found[i] for i, run in enumerate(runs)})
    return config.out


def build_supports(benchmark: Benchmark, config: TestConfig) -> dict[tuple[int, int], np.ndarray]:
    """Return the support of every run: (trial, n) -> rows of the train features (S,)."""
    base = matching.ClassRows(benchmark.train, benchmark.base_classes, benchmark.split)
    for c in base.classes[base.counts < config.rows_per_class]:
        few = f"class {c} ({benchmark.split.class_names[c]}) has {(benchmark.train.labels == c).sum()} training rows"
        raise InputError(f"--rows_per_class {config.rows_per_class}: {few}. Use --rows_per_class {base.counts.min()}")
    return {
        (trial, n): matching.support_rows(
            base, benchmark.shot_rows(trial, n), config.rows_per_class, config.seed, trial
        )
        for trial, n in product(benchmark.draws, config.shots)
    }


def batches_of_runs(supports: dict[tuple[int, int], np.ndarray], dim: int) -> list[list[tuple[int, int]]]:
    """Group runs whose supports have the same length into batches that fit in memory."""
    batches = []
    for length in sorted({len(rows) for rows in supports.values()}):
        runs = [run for run, rows in supports.items() if len(rows) == length]
        batches += [
            runs[i : i + matching.runs_at_once(length, dim)]
            for i in range(0, len(runs), matching.runs_at_once(length, dim))
        ]
    return batches


def _outcomes(
    model: matching.MatchingNetwork, benchmark: Benchmark, rows: np.ndarray, device: str
) -> evaluation.Outcomes:
    """Return the outcomes (R, N) of all test images for the supports `rows` (R, S)."""
    import torch

    features, labels = (
        torch.from_numpy(table[rows]).to(device) for table in (benchmark.train.feats, benchmark.train.labels)
    )
    score, n_query = matching.matching_scorer(model, features, labels, benchmark.split.n_classes)
    columns = benchmark.columns(of_setup=False)
    return evaluation.outcomes_in_chunks(
        score, benchmark.test_features, benchmark.test_labels, columns, device, n_query
    )


def after_training(config: TrainConfig) -> list:
    """Return the command that uses the output. Capitals stand for paths that only the user knows."""
    inputs = ["--train", config.features, "--test", "TEST.h5", "--split", config.split, "--draws", "DRAWS.json"]
    results = config.out.parent / "results/matching_network.json"
    return ["matching_network.py", "test", "--model", config.out, *inputs, "--out", results]


def after_test(config: TestConfig) -> list:
    """Return the command that uses the output."""
    return report_of(config.out)


COMMANDS = {"train": (train, TrainConfig, after_training), "test": (test, TestConfig, after_test)}

if __name__ == "__main__":
    run_commands(COMMANDS, __doc__)
