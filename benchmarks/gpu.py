"""Compare every stage between the CPU and a GPU: its output within a tolerance, and its seconds.

    python benchmarks/gpu.py --out outputs/gpu/stages     two minutes on a GPU machine
    CUDA_VISIBLE_DEVICES= python benchmarks/gpu.py        without a GPU, both sides run on the CPU and must agree

Each stage runs as a subprocess on the embedded glyphs, once with CUDA_VISIBLE_DEVICES empty, once without. Both sides
read the outputs of the CPU side, so that differences do not add up. A training is compared by the losses of its log,
because weights drift apart with rounding. With --out, the same command continues a run that was stopped; for a stage
that was done, seconds are those of finding that out. Prints a Markdown row per stage; the exit status is 1 if one
differs by more than its tolerance.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Stage:
    """A command. {cpu} is the folder with the outputs of the CPU side, each under the `name` of its stage."""

    name: str
    command: str
    read: Callable[[Path], np.ndarray] | None = None
    """Returns the numbers to compare, from the output. None: the stage computes on the CPU only."""
    tolerance: float = 0.0
    """Largest difference, as a share of the largest number of the CPU side."""


def dataset(name: str, file: str = "") -> Callable[[Path], np.ndarray]:
    """Return a function that reads a dataset of an HDF5 file, or of `file` in a folder."""

    def read(path: Path) -> np.ndarray:
        with h5py.File(path / file if file else path) as opened:
            return opened[name][:].astype(np.float64)

    return read


def losses(folder: Path) -> np.ndarray:
    """Read the losses of a training's log; those of GANs are named after generator and discriminator."""
    records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    named = (item for record in records for item in record.items())
    return np.array([value for name, value in named if name.startswith(("loss", "mse", "cross_entropy", "g_", "d_"))])


def accuracies(path: Path) -> np.ndarray:
    """Read the mean accuracy for each number of shots from a results file: of novel classes, or of episodes."""
    content = json.loads(path.read_text())
    kind, metric = ("trials", "top1_novel") if "trials" in content else ("episodes", "accuracy")
    shots = sorted({one["n_shot"] for one in content[kind]})
    return np.array([np.mean([one[metric] for one in content[kind] if one["n_shot"] == n]) for n in shots])


SPLIT = "--split {cpu}/data/split.json"
INPUTS = "--train {cpu}/features/train.h5 --test {cpu}/features/test.h5 " + SPLIT
EPISODES = f"episodes.py --features {{cpu}}/features/train.h5 {SPLIT} --n_episodes 200 --method"
LOW_SHOT = f"low_shot.py {INPUTS} --draws {{cpu}}/data/draws.json --shots 1 5 --trials 2 --classifier"
GAN = "--data {cpu}/data --extractor {cpu}/extractor"
STAGES = [
    Stage("data", "preprocessing.py --dataset glyphs"),
    Stage("extractor", "train_extractor.py --data {cpu}/data --model Conv4 --loss sgm --loss.weight 0.005 --epochs 2 "
          "--lr 0.05", losses, 0.02),
    Stage("features", "save_features.py --extractor {cpu}/extractor --data {cpu}/data",
          dataset("all_feats", "train.h5"), 0.005),
    Stage("quadruplets.h5", f"make_quadruplet.py --features {{cpu}}/features/train.h5 {SPLIT} --n_clusters 10",
          dataset("quadruplets"), 0.01),
    Stage("generator", "train_analogy_generator.py --quadruplets {cpu}/quadruplets.h5 --extractor {cpu}/extractor "
          "--n_steps 500", losses, 0.02),
    Stage("linear_sgd.json", f"{LOW_SHOT} linear_sgd --classifier.n_steps 500", accuracies, 0.02),
    Stage("logistic.json", f"{LOW_SHOT} logistic_regression", accuracies, 0.02),
    Stage("pt_map.json", f"{EPISODES} pt_map", accuracies, 0.02),
    Stage("laplacian_shot.json", f"{EPISODES} laplacian_shot", accuracies, 0.02),
    Stage("graph.h5", f"build_graph.py complete {INPUTS} --setup test --unlabelled novel",
          dataset("similarities"), 0.005),
    Stage("diffusion.json", f"diffusion.py {INPUTS} --draws {{cpu}}/data/draws.json --graph {{cpu}}/graph.h5 "
          "--shots 1 5 --trials 2", accuracies, 0.02),
    Stage("matching", f"matching_network.py train --features {{cpu}}/features/train.h5 {SPLIT} --n_episodes 50 "
          "--n_way 10", losses, 0.02),
    Stage("matching.json", f"matching_network.py test --model {{cpu}}/matching {INPUTS} "
          "--draws {cpu}/data/draws.json --shots 1 5 --trials 2 --rows_per_class 50", accuracies, 0.02),
    Stage("scgm", "train_scgm.py --data {cpu}/data --model Conv4 --epochs 2 --schedule.n_cycles 1 "
          "--method.n_subclasses 40", losses, 0.02),
    Stage("gan", f"train_gan.py pretrain {GAN} --steps 20 --ngf 16 --ndf 4 --score_images 200", losses, 0.05),
]  # fmt: skip


def main(folder: Path) -> int:
    """Run all stages on both sides, and return the exit status."""
    failed = []
    sides = {"cpu": {"CUDA_VISIBLE_DEVICES": ""}, "gpu": {}}
    print("| stage | CPU, s | GPU, s | difference | tolerance |\n|---|---|---|---|---|")
    for stage in STAGES:
        seconds = {
            side: run(stage, folder, side, added) for side, added in sides.items() if stage.read or side == "cpu"
        }
        if stage.read is None:
            continue
        difference = largest_difference(*(stage.read(folder / side / stage.name) for side in sides))
        failed += [] if difference <= stage.tolerance else [stage.name]  # NaN fails, too
        row = [stage.name, *(f"{seconds[side]:.1f}" for side in sides), f"{difference:.2g}", f"{stage.tolerance:g}"]
        print(f"| {' | '.join(row)} |", flush=True)
    print(f"OUTSIDE TOLERANCE: {', '.join(failed)}" if failed else "all within tolerance")
    return int(bool(failed))


def run(stage: Stage, folder: Path, side: str, added: dict[str, str]) -> float:
    """Run a stage, and return its seconds."""
    words = [word.format(cpu=folder / "cpu") for word in stage.command.split()]
    start = time.perf_counter()
    subprocess.run([sys.executable, *words, "--out", folder / side / stage.name], cwd=ROOT, check=True,
                   env={**os.environ, **added}, stdout=subprocess.DEVNULL)  # fmt: skip
    return time.perf_counter() - start


def largest_difference(cpu: np.ndarray, gpu: np.ndarray) -> float:
    """Return the largest difference of the two sides, as a share of the largest number of the CPU side."""
    return float(np.abs(cpu - gpu).max() / np.abs(cpu).max()) if cpu.shape == gpu.shape else float("inf")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="folder of the outputs (default: a temporary folder)")
    given = parser.parse_args().out
    try:
        sys.exit(main(given.resolve() if given else Path(tempfile.mkdtemp(prefix="gpu-"))))
    except KeyboardInterrupt:
        sys.exit("gpu.py: stopped; with --out, the same command continues")
