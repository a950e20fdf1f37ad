"""The 25 benchmark runs: low_shot.py against a plain port of the published loop, and whether accuracies agree.

Reads     nothing; makes clustered non-negative features in a temporary folder (39 base and 61 novel classes, the ratio
          of the ImageNet test setup; 500 training and 100 test rows a class; 512 dimensions).
Writes    JSON lines and a Markdown row on stdout.

    python benchmarks/low_shot.py                                       full: about half an hour on two cores
    python benchmarks/low_shot.py --n_steps 200 --plain_trials 1        a quick look: about a minute

The plain port trains one run in one process: at every step np.random.choice without replacement over the base rows,
sorted fancy indexing of the HDF5 file, concatenation with novel rows in memory, autograd cross-entropy,
torch.optim.SGD; test rows come one by one from a Dataset. It runs in full for the smallest and the largest n of
`plain_trials` trials; the time of all 25 runs is that of the mean run, times 25. Both sides count process start,
reading and scoring. Nothing else should run on the machine.
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
from jsonargparse.typing import PositiveInt
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lowshot.artifacts import write_json  # noqa: E402
from lowshot.cli import run  # noqa: E402
from lowshot.features import write_features  # noqa: E402
from lowshot.metrics import six_accuracies, true_class_ranks  # noqa: E402
from lowshot.protocol import Split, draws_to_json, make_draws, read_draws, read_split  # noqa: E402
from lowshot.seeds import stream  # noqa: E402

N_CLASSES, N_BASE, DIM, TRAIN_ROWS, TEST_ROWS = 100, 39, 512, 500, 100
SHOTS, N_TRIALS, BATCH = [1, 2, 5, 10, 20], 5, 1000


@dataclass
class Config:
    n_steps: PositiveInt = 10_000
    """Steps of every run."""
    batch_size: PositiveInt = BATCH
    """Rows of a batch of low_shot.py; the plain port keeps 1000, so any other value compares two recipes."""
    plain_trials: PositiveInt = 1
    """Trials that the plain port runs in full, for the smallest and the largest n."""
    plain_job: list[str] | None = None
    """For the benchmark's own processes: folder, trial, n of one run of the plain port."""


def main(config: Config) -> None:
    """Time both, compare accuracies, print."""
    if config.plain_job is not None:
        folder, trial, n_shot = config.plain_job
        print(json.dumps(plain_run(Path(folder), int(trial), int(n_shot), config.n_steps)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        (ours_s, ours_cpu_s), trials = time_ours(folder, config)
        plain = time_plain(folder, config)
    plain_s = len(trials) * float(np.mean([one["wall_s"] for one in plain]))
    plain_cpu_s = len(trials) * float(np.mean([one["cpu_s"] for one in plain]))
    flop = ours_flop(config.batch_size) * config.n_steps
    report = {
        "runs": len(trials),
        "n_steps": config.n_steps,
        "batch_size": config.batch_size,
        "threads": torch.get_num_threads(),
        "ours_s": round(ours_s, 1),
        "ours_cpu_s": round(ours_cpu_s),
        "plain_runs_in_full": len(plain),
        "plain_extrapolated_s": round(plain_s),
        "plain_extrapolated_cpu_s": round(plain_cpu_s),
        "speedup": round(plain_s / ours_s, 1),
        "ours_tflop": round(flop / 1e12, 1),
        "ours_gflop_per_s": round(flop / ours_s / 1e9),
    }
    print(json.dumps(report))
    for n_shot in sorted({one["n_shot"] for one in plain}):
        print(json.dumps(compare(n_shot, plain, trials)))
    print(
        f"| 25 low-shot runs | {plain_s:.0f} s ({len(plain)} runs in full) | {ours_s:.0f} s | {plain_s / ours_s:.1f}x |"
    )


def make_inputs(folder: Path) -> None:
    """Like features of a ReLU network: class clusters in 64 shared directions, full-rank noise, non-negative."""
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
    """(standard output, wall seconds, processor seconds) of a process."""
    start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return finished.stdout, time.perf_counter() - start, cpu_s


def time_ours(folder: Path, config: Config) -> tuple[tuple[float, float], list[dict]]:
    """((wall, processor) seconds, trials of the results file) of low_shot.py."""
    files = {name: folder / f"{name}.h5" for name in ("train", "test")}
    files |= {"split": folder / "split.json", "draws": folder / "draws.json", "out": folder / "results.json"}
    arguments = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    arguments += [f"--sgd.n_steps={config.n_steps}", f"--sgd.batch_size={config.batch_size}"]
    _, *seconds = timed([sys.executable, ROOT / "low_shot.py", *arguments])
    return tuple(seconds), json.loads(files["out"].read_text())["trials"]


def time_plain(folder: Path, config: Config) -> list[dict]:
    """One process a run; each with its accuracies and times."""
    done = []
    for trial in range(1, config.plain_trials + 1):
        for n_shot in (SHOTS[0], SHOTS[-1]):
            job = json.dumps([str(folder), str(trial), str(n_shot)])
            command = [sys.executable, __file__, f"--n_steps={config.n_steps}", f"--plain_job={job}"]
            answer, wall_s, cpu_s = timed(command)
            done.append({**json.loads(answer), "wall_s": round(wall_s, 1), "cpu_s": round(cpu_s, 1)})
            print(json.dumps(done[-1]), flush=True)
    return done


def compare(n_shot: int, plain: list[dict], trials: list[dict]) -> dict:
    """Mean accuracies in points of the trials that both ran, and the largest difference."""
    both = [one["trial"] for one in plain if one["n_shot"] == n_shot]
    sides = {}
    for side, rows in (("plain", plain), ("ours", trials)):
        rows = [row for row in rows if row["n_shot"] == n_shot and row["trial"] in both]
        sides[side] = {
            key: float(np.mean([100 * row[key] for row in rows])) for key in rows[0] if key.startswith("top")
        }
    differences = {key: round(sides["ours"][key] - sides["plain"][key], 2) for key in sides["ours"]}
    return {"n_shot": n_shot, "trials": both, "plain": sides["plain"], "ours_minus_plain": differences}


def ours_flop(batch_size: int) -> float:
    """Floating-point operations of one step of all runs: two matrix products over the distinct rows of a batch."""
    n_base = round(N_BASE / N_CLASSES * batch_size)
    pools = [(N_CLASSES - N_BASE) * n for n in SHOTS]
    distinct = [pool * (1 - (1 - 1 / pool) ** (batch_size - n_base)) for pool in pools]
    return N_TRIALS * sum(4 * (n_base + rows) * (DIM + 1) * N_CLASSES for rows in distinct)


class _TestRows(Dataset):
    def __init__(self, path: Path) -> None:
        self.file = h5py.File(path, "r")

    def __len__(self) -> int:
        return int(self.file["count"][0])

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.tensor(self.file["all_feats"][i]), int(self.file["all_labels"][i])


def plain_run(folder: Path, trial: int, n_shot: int, n_steps: int) -> dict:
    """The published loop, one run."""
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
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.9, weight_decay=0.001)
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
    six = six_accuracies(torch.cat(ranks).numpy(), torch.cat(truths).numpy(), base, novel)
    return {"trial": trial, "n_shot": n_shot, "step_ms": round(step_ms, 2), **six}


if __name__ == "__main__":
    run(main, Config, __doc__)
