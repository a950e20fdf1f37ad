"""Speed of the 25 benchmark runs: low_shot.py compared with a direct port of the published loop, and their accuracies.

Reads     nothing; makes clustered non-negative features in a temporary folder (39 base and 61 novel classes, the ratio
          of the ImageNet test setup; 500 training and 100 test rows per class; 512 dimensions).
Writes    JSON lines and a Markdown row on stdout.

    python benchmarks/low_shot.py                                       full: about 20 minutes on two cores
    python benchmarks/low_shot.py --n_steps 200                         quick: about two minutes

The port trains one run per process. Every step draws base rows with np.random.choice without replacement, reads them
from the HDF5 file by sorted fancy indexing, concatenates them with novel rows in memory, and uses autograd
cross-entropy and torch.optim.SGD. Test rows are read one at a time from a Dataset. The port runs in full for n = 1, 5
and 20 of `plain_trials` trials; the time of all 25 runs is 25 times the mean. Both sides include process start, reading
and scoring. Nothing else should run on the machine.

Ours is timed twice: with the published steps, and with `coarsen` times fewer steps that are `coarsen` times longer and
follow the same path of gradient descent. With dampening, momentum averages gradients and does not lengthen steps. It is
lowered so that the average covers the same part of the path, and the first gradient, which is not dampened, has the
same weight.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.core.cli import run
from lowshot.core.files import write_json
from lowshot.core.seeds import stream
from lowshot.core.settings import PositiveInt
from lowshot.data.features import write_features
from lowshot.data.protocol import Split, draws_to_json, make_draws, read_draws, read_split
from lowshot.evaluation.ranks import true_class_ranks

ROOT = Path(__file__).resolve().parents[1]
N_CLASSES, N_BASE, DIM, TRAIN_ROWS, TEST_ROWS = 100, 39, 512, 500, 100
SHOTS, N_TRIALS, BATCH, LR, MOMENTUM = [1, 2, 5, 10, 20], 5, 1000, 0.1, 0.9
PLAIN_SHOTS = [1, 5, 20]


@dataclass
class Config:
    n_steps: PositiveInt = 10_000
    """Number of steps per run."""
    coarsen: PositiveInt = 4  # below 10, where the momentum would reach 0
    """Number of published steps per step in the second timing of low_shot.py."""
    plain_trials: PositiveInt = 1
    """Number of trials that the port runs in full."""
    plain_job: list[str] | None = None
    """Internal: folder, trial and n of one run of the port."""


def main(config: Config) -> None:
    """Time both sides and compare their accuracies."""
    if config.plain_job is not None:
        folder, trial, n_shot = config.plain_job
        print(json.dumps(plain_run(Path(folder), int(trial), int(n_shot), config.n_steps)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        plain = time_plain(folder, config)
        exact = time_ours(folder, config.n_steps, 1)
        coarse = time_ours(folder, config.n_steps, config.coarsen)
    plain_s = N_TRIALS * len(SHOTS) * float(np.mean([one["wall_s"] for one in plain]))
    print(
        json.dumps({"plain_runs_in_full": len(plain), "plain_s_for_25_runs": round(plain_s), "n_steps": config.n_steps})
    )
    print_ours("as published", exact, plain, plain_s)
    print_ours(f"steps / {config.coarsen}, rate x {config.coarsen}", coarse, plain, plain_s)


@dataclass
class Ours:
    """One timing of low_shot.py: steps, wall and processor seconds, and the trials in its results file."""

    n_steps: int
    wall_s: float
    cpu_s: float
    trials: list[dict]


def print_ours(name: str, ours: Ours, plain: list[dict], plain_s: float) -> None:
    """Print a line of JSON, the differences of the accuracies for every n, and a row of a Markdown table."""
    tflop = flop_a_step() * ours.n_steps / 1e12
    seconds = {"wall_s": round(ours.wall_s, 1), "cpu_s": round(ours.cpu_s)}
    rate = {"tflop_estimate": round(tflop, 1), "gflop_per_s": round(1000 * tflop / ours.wall_s)}
    print(json.dumps({"ours": name, **seconds, **rate}))
    largest = 0.0
    for n_shot in PLAIN_SHOTS:
        differences = compare(n_shot, plain, ours.trials)
        largest = max(largest, *map(abs, differences.values()))
        print(json.dumps({"n_shot": n_shot, "ours_minus_plain_points": differences}))
    print(f"| 25 low-shot runs, {name} | {plain_s:.0f} s | {ours.wall_s:.0f} s | {plain_s / ours.wall_s:.1f}x | "
          f"{largest:.2f} points |")  # fmt: skip


def make_inputs(folder: Path) -> None:
    """Write features like those of a ReLU network: non-negative, clustered by class in 64 shared directions, with
    full-rank noise."""
    rng = stream(0, "features")
    mixing = rng.normal(size=(64, DIM)) / 8
    centres = rng.normal(size=(N_CLASSES, 64))
    made_from = {"stage": "save_features", "config": {}, "inputs": {}}
    for name, n_rows in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        labels = np.repeat(np.arange(N_CLASSES), n_rows)
        latent = centres[labels] + 1.5 * rng.normal(size=(len(labels), 64))
        feats = np.maximum(latent @ mixing + 0.5 * rng.normal(size=(len(labels), DIM)), 0).astype(np.float32)
        write_features(folder / f"{name}.h5", feats, labels, made_from)
        if name == "train":
            classes = [f"class {c}" for c in range(N_CLASSES)]
            draws = make_draws(labels, classes, N_TRIALS, max(SHOTS), seed=0)
    base, novel = list(range(N_BASE)), list(range(N_BASE, N_CLASSES))
    split = Split("synthetic", classes, [], [None] * N_CLASSES, base, novel, [], [], base, novel)
    write_json(folder / "split.json", split.to_json())
    write_json(folder / "draws.json", draws_to_json(draws, split, 0))


def timed(command: list) -> tuple[str, float, float]:
    """Run a process. Return its standard output, wall seconds and processor seconds."""
    start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return finished.stdout, time.perf_counter() - start, cpu_s


def time_ours(folder: Path, n_published: int, coarsen: int) -> Ours:
    """Time all 25 runs in one process of low_shot.py, with `coarsen` published steps in one."""
    n_steps, lr, momentum = n_published // coarsen, LR * coarsen, 1 - (1 - MOMENTUM) * coarsen
    files = {name: folder / f"{name}.h5" for name in ("train", "test")}
    files |= {"split": folder / "split.json", "draws": folder / "draws.json", "out": folder / f"{n_steps}.json"}
    arguments = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    arguments += [
        "--classifier=linear_sgd",
        f"--classifier.n_steps={n_steps}",
        f"--classifier.lr={lr}",
        f"--classifier.momentum={momentum}",
        f"--classifier.batch_size={BATCH}",
    ]
    _, wall_s, cpu_s = timed([sys.executable, ROOT / "low_shot.py", *arguments])
    return Ours(n_steps, wall_s, cpu_s, json.loads(files["out"].read_text())["trials"])


def time_plain(folder: Path, config: Config) -> list[dict]:
    """Run each run in its own process. Return the accuracies and times of each."""
    done = []
    for trial in range(1, config.plain_trials + 1):
        for n_shot in PLAIN_SHOTS:
            job = json.dumps([str(folder), str(trial), str(n_shot)])
            command = [sys.executable, __file__, f"--n_steps={config.n_steps}", f"--plain_job={job}"]
            answer, wall_s, cpu_s = timed(command)
            done.append({**json.loads(answer), "wall_s": round(wall_s, 1), "cpu_s": round(cpu_s, 1)})
            print(json.dumps(done[-1]), flush=True)
    return done


def compare(n_shot: int, plain: list[dict], trials: list[dict]) -> dict[str, float]:
    """Return ours minus plain in points, averaged over common trials. The two sides use different random numbers."""
    both = {one["trial"] for one in plain if one["n_shot"] == n_shot}

    def mean(rows: list[dict], key: str) -> float:
        return 100 * float(np.mean([row[key] for row in rows if row["n_shot"] == n_shot and row["trial"] in both]))

    keys = [key for key in trials[0] if key.startswith("top")]
    return {key: round(mean(trials, key) - mean(plain, key), 2) for key in keys}


def flop_a_step() -> float:
    """Count the operations of one step of all runs: two matrix products over the distinct rows of a batch."""
    n_base = round(N_BASE / N_CLASSES * BATCH)
    pools = [(N_CLASSES - N_BASE) * n for n in SHOTS]
    distinct = [pool * (1 - (1 - 1 / pool) ** (BATCH - n_base)) for pool in pools]
    return N_TRIALS * sum(4 * (n_base + rows) * (DIM + 1) * N_CLASSES for rows in distinct)


class _TestRows(Dataset):
    def __init__(self, path: Path) -> None:
        self.file = h5py.File(path, "r")

    def __len__(self) -> int:
        return int(self.file["count"][0])

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.tensor(self.file["all_feats"][i]), int(self.file["all_labels"][i])


def plain_run(folder: Path, trial: int, n_shot: int, n_steps: int) -> dict:
    """Train and score one run with the published loop."""
    split = read_split(folder / "split.json")
    base, novel = split.setup("test")
    with h5py.File(folder / "train.h5", "r") as file:
        labels = file["all_labels"][: file["count"][0]]
        draws = read_draws(folder / "draws.json", [trial])[trial]
        novel_rows = np.sort(np.concatenate([draws[c][:n_shot] for c in novel]))
        novel_feats, novel_labels = file["all_feats"][novel_rows], labels[novel_rows]
        base_rows = np.flatnonzero(np.isin(labels, base))
        n_base = round(len(base) / (len(base) + len(novel)) * BATCH)
        model = torch.nn.Linear(novel_feats.shape[1], split.n_classes)
        optimiser = torch.optim.SGD(
            model.parameters(), lr=LR, momentum=MOMENTUM, dampening=MOMENTUM, weight_decay=0.001
        )
        start = time.perf_counter()
        for _ in range(n_steps):
            rows = np.sort(np.random.choice(base_rows, n_base, replace=False))
            shots = np.random.choice(len(novel_feats), BATCH - n_base)
            feats = torch.tensor(np.concatenate([file["all_feats"][rows], novel_feats[shots]]))
            truth = torch.tensor(np.concatenate([labels[rows], novel_labels[shots]]), dtype=torch.int64)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(feats), truth).backward()
            optimiser.step()
        step_ms = (time.perf_counter() - start) / n_steps * 1000
    ranks, truths = [], []
    for feats, truth in DataLoader(_TestRows(folder / "test.h5"), batch_size=1000):
        ranks.append(true_class_ranks(model(feats).detach(), truth))
        truths.append(truth)
    rank, truth = torch.cat(ranks).numpy(), torch.cat(truths).numpy()
    groups = {"novel": novel, "base": base, "all": [*novel, *base]}
    six = {f"top{k}_{name}": (rank[np.isin(truth, of)] < k).mean() for name, of in groups.items() for k in (1, 5)}
    return {"trial": trial, "n_shot": n_shot, "step_ms": round(step_ms, 2), **six}


if __name__ == "__main__":
    run(main, Config, __doc__)
