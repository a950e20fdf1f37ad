"""Matching networks: speed of the test in batches and one query at a time, equality of scores, speed of training.

Reads     nothing; makes random non-negative features.
Writes    JSON lines on stdout.

    python benchmarks/matching.py                                                     full: a few minutes on two cores
    python benchmarks/matching.py --n_classes 50 --dim 128 --n_runs 25 --n_test 5000  the CIFAR-100 recipe's size

Both sides encode each support once. The plain side encodes one run at a time and then scores one query at a time with
the published operations (attention, cell, scores, softmax, product with the one-hot labels). Its time for all queries
is extrapolated from `n_timed` queries. The batched side runs in full. Features are in memory on both sides.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.functional import one_hot

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.core.cli import run
from lowshot.core.settings import PositiveInt
from lowshot.core.training import TrainingRun
from lowshot.data.features import Features
from lowshot.data.protocol import make_split
from lowshot.matching.network import ClassRows, MatchingNetwork, matching_scorer, runs_at_once
from lowshot.matching.settings import MatchingSettings
from lowshot.matching.training import MatchingTrainer


@dataclass
class Config:
    dim: PositiveInt = 512
    """Number of feature dimensions."""
    n_classes: PositiveInt = 100
    """Number of classes in the support (ImageNet: 507)."""
    rows_per_class: PositiveInt = 100
    """Number of support rows per class."""
    n_runs: PositiveInt = 2
    """Number of runs (trials times shots). Each has its own support."""
    n_test: PositiveInt = 5000
    """Number of queries (50 per class, as in ImageNet)."""
    n_timed: PositiveInt = 100
    """Number of queries to time the plain side on."""
    n_episodes: PositiveInt = 20
    """Number of training episodes to time."""
    way_of_training: PositiveInt = 80
    """Number of classes in a training episode (ImageNet: 389), with 1 to 10 support rows each."""


def main(config: Config) -> None:
    """Time both sides of the test, then training at 128 and 512 dimensions."""
    torch.manual_seed(0)
    model = MatchingNetwork(config.dim).eval()
    labels = torch.arange(config.n_classes).repeat_interleave(config.rows_per_class)
    supports = 0.4 * torch.rand(config.n_runs, len(labels), config.dim)
    queries = 0.4 * torch.rand(config.n_test, config.dim)
    _report("size", **vars(config), threads=torch.get_num_threads(), torch=torch.__version__)

    start = time.perf_counter()
    batched = torch.cat([_batched(model, part, labels, queries, config.n_classes)
                         for part in supports.split(runs_at_once(len(labels), config.dim))])  # fmt: skip
    batched_s = time.perf_counter() - start
    plain, plain_s = _plain(model, supports, labels, queries, config)
    gap = (plain - batched[:, : len(plain[0])]).abs().max().item()
    times = {
        "batched_s": round(batched_s, 2),
        "plain_s": round(plain_s, 2),
        "times_faster": round(plain_s / batched_s, 1),
    }
    same_first = (plain.argmax(-1) == batched[:, : len(plain[0])].argmax(-1)).float().mean().item()
    _report("test", **times, largest_difference=gap, same_first_class=same_first)
    for dim in (128, 512):
        rate = config.n_episodes / _training_s(dim, config)
        _report("training", dim=dim, n_way=config.way_of_training, episodes_per_s=round(rate, 2))


def _report(what: str, **values: object) -> None:
    print(json.dumps({"what": what, **values}), flush=True)


def _batched(model: MatchingNetwork, supports: Tensor, labels: Tensor, queries: Tensor, n_classes: int) -> Tensor:
    """Return log-probabilities (R, Q, n_classes), as matching_network.py does."""
    score, n_query = matching_scorer(model, supports, labels.expand(len(supports), -1), n_classes)
    return torch.cat([score(part) for part in queries.split(n_query)], dim=1)


@torch.inference_mode()
def _plain(
    model: MatchingNetwork, supports: Tensor, labels: Tensor, queries: Tensor, config: Config
) -> tuple[Tensor, float]:
    """Return the log-probabilities of the first n_timed queries, and the seconds for all queries."""
    n_timed = min(config.n_timed, config.n_test)
    members, scores, seconds = one_hot(labels).float(), [], 0.0
    for rows in supports:
        start = time.perf_counter()
        support = model.encode_support(rows[None])[0]
        normed = support / (support.norm(dim=1, keepdim=True) + 1e-5)
        encoded = time.perf_counter()
        scores.append(
            torch.cat([_single(model, support, normed, members, query) for query in queries[:n_timed].split(1)])
        )
        seconds += encoded - start + (time.perf_counter() - encoded) * config.n_test / n_timed
    return torch.stack(scores), seconds


def _single(model: MatchingNetwork, support: Tensor, normed: Tensor, members: Tensor, query: Tensor) -> Tensor:
    """Return the log-probabilities (1, n_classes) of one query (1, D)."""
    hidden, memory = query, torch.zeros_like(query)
    for _ in range(model.n_reads):
        read = torch.softmax(hidden @ support.T, 1) @ support
        hidden, memory = model.cell(torch.cat([query, read], 1), (hidden, memory))
        hidden = hidden + query
    return (torch.softmax(hidden @ normed.T, 1) @ members).log()


def _training_s(dim: int, config: Config) -> float:
    """Return the seconds of `n_episodes` episodes, after a warm-up episode."""
    n_way = config.way_of_training
    split = make_split("random", [f"{c}" for c in range(n_way + 2)], [], [None] * (n_way + 2), 0, [n_way, n_way + 1])
    labels = np.repeat(np.arange(n_way), 20)
    feats = 0.4 * np.random.default_rng(0).random((len(labels), dim), np.float32)
    base = ClassRows(Features(feats, labels, Path("random")), split.base_classes, split)
    fabric = Fabric(accelerator="auto", devices=1)
    unwritten = TrainingRun(Path(), writes=False)
    trainer = MatchingTrainer(
        MatchingSettings(), fabric, unwritten, MatchingNetwork(dim), torch.from_numpy(feats), base
    )
    trainer._train_episode(0)
    start = time.perf_counter()
    for number in range(1, config.n_episodes + 1):
        trainer._train_episode(number)
    return time.perf_counter() - start


if __name__ == "__main__":
    run(main, Config, __doc__)
