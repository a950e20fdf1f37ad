"""Neighbour search: time of exact search, recall and time of the inverted file, and the cost of one more trial.

Reads     nothing; makes clustered unit vectors: 100,000 of 256 dimensions, or a million background rows of 64.
Writes    JSON lines and Markdown rows on stdout.

    python benchmarks/knn.py exact     compare all vectors with all, k = 32; a minute on two cores
    python benchmarks/knn.py ivf       recall@30 and query time over n_probe; three minutes
    python benchmarks/knn.py trial     add 500 shots to a completed graph, or complete it again; eight minutes

`trial` completes a background with 50,000 base images (251,000 in the ImageNet benchmark, where the difference is
larger). The released code repeats this for each trial: it searches base images among themselves, in the background and
vice versa, and test images in both. Not included are its search for the shots, and the search within the background,
which both sides keep. Here the background lists are made with n_probe 2; with true lists, whose neighbours are nearer,
shots would change fewer rows. Multiply-adds of exact searches are computed from their sizes, those of the inverted file
are counted by faiss.

Estimate: 100,000 x 100,000 x 256 are 2.6e12 multiply-adds, 40 to 55 s on two cores at 50 to 65 G per second.
500 shots x 1M x 64 are 3.2e10, twice (shots to nodes, nodes to shots): 64 times less than one search of 50,000 base
images in the background.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.core.artifacts import peak_memory_bytes
from lowshot.core.cli import run_commands
from lowshot.core.settings import PositiveInt
from lowshot.diffusion.graph import Graph, add_nodes
from lowshot.diffusion.neighbours import Index, Lists, exact_search, merge, recall, shifted
from lowshot.diffusion.projection import Projection
from lowshot.diffusion.settings import InvertedFile


@dataclass
class ExactConfig:
    n_vectors: PositiveInt = 100_000
    """Number of vectors. All of them are queries."""
    dim: PositiveInt = 256
    """Number of dimensions."""


@dataclass
class IvfConfig(ExactConfig):
    n_queries: PositiveInt = 10_000
    """Number of queries."""


@dataclass
class TrialConfig:
    n_background: PositiveInt = 1_000_000
    """Number of unlabelled rows."""
    n_base: PositiveInt = 50_000
    """Number of images of base classes."""
    n_test: PositiveInt = 10_000
    """Number of test images."""
    n_new: PositiveInt = 500
    """Number of shots (2 for each of 250 classes)."""
    dim: PositiveInt = 64
    """Number of dimensions."""


def clustered(n_rows: int, dim: int, seed: int) -> np.ndarray:
    """Return unit vectors around 1000 centres, float32 (n_rows, dim). Variances decrease as after a PCA."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((1000, dim), np.float32)
    vectors = random.standard_normal((n_rows, dim), np.float32)
    vectors += centres[random.integers(1000, size=n_rows)]
    vectors /= np.sqrt(np.arange(1, dim + 1, dtype=np.float32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def exact(config: ExactConfig) -> None:
    vectors = clustered(config.n_vectors, config.dim, 1)
    _, seconds, cpu_seconds = timed(lambda: exact_search(vectors, vectors, 32))
    speed = config.n_vectors**2 * config.dim / seconds / 1e9
    report("exact", f"exact, {config.n_vectors} x {config.dim}, k = 32", seconds, cpu_seconds, speed_g=round(speed, 1))


def ivf(config: IvfConfig) -> None:
    vectors = clustered(config.n_vectors, config.dim, 1)
    index, *build = timed(lambda: Index(vectors, InvertedFile(), "cpu"))
    report("ivf", f"inverted file of {index.inverted_file.nlist} lists built", *build)
    true, *spent = timed(lambda: exact_search(vectors[: config.n_queries], vectors, 30))
    report("ivf", f"exact, {config.n_queries} queries", *spent, recall=1.0)
    for n_probe in (1, 4, 16, 64, 256):
        index.inverted_file.nprobe = n_probe
        found, *spent = timed(lambda: index.search(vectors[: config.n_queries], 30))
        share = float((found[1] >= true[1][:, -1:] - 1e-5).mean())
        report("ivf", f"n_probe {n_probe}, {config.n_queries} queries", *spent, recall=round(share, 4))


def trial(config: TrialConfig) -> None:
    background, base, tests, new = (
        clustered(n, config.dim, seed)
        for seed, n in enumerate((config.n_background, config.n_base, config.n_test, config.n_new), start=1)
    )
    index, *spent = timed(lambda: Index(background, InvertedFile(), "cpu"))
    report("trial", "inverted file of the background built (kept)", *spent)
    index.inverted_file.nprobe = 2
    background_lists, *spent = timed(lambda: index.search(background, 32))
    report("trial", "background among itself, n_probe 2 (kept)", *spent)
    print(f"  recall@32 {recall(background_lists[0], background, 'cpu', 0):.3f}", flush=True)
    index.inverted_file.nprobe = 256

    (nodes, test, all_of_it), *spent_all = timed(lambda: complete(index, background, background_lists, base, tests))
    report("trial", "completed from scratch", *spent_all, multiply_adds=all_of_it)
    vectors = np.concatenate([base, background])
    graph = Graph(Path("memory"), *nodes, vectors, Projection(), np.arange(config.n_base), *test, tests)
    (*_, few), *spent_few = timed(lambda: add_nodes(graph, new, 32))
    report("trial", f"{config.n_new} shots added", *spent_few, multiply_adds=few)
    ratios = {"work_ratio": round(all_of_it / few, 1), "time_ratio": round(spent_all[0] / spent_few[0], 1)}
    print(json.dumps({"benchmark": "knn trial", **ratios}))
    print(f"| work | {ratios['work_ratio']}x less | {ratios['time_ratio']}x faster |")


def complete(
    index: Index, background: np.ndarray, background_lists: Lists, near: np.ndarray, tests: np.ndarray
) -> tuple[Lists, Lists, int]:
    """Return the lists of all nodes and of the test images, and the multiply-adds of the search."""
    faiss.cvar.indexIVF_stats.reset()
    n_exact, lists = 0, []
    for queries in (near, tests):
        far = shifted(index.search(queries, 32), len(near))
        lists.append(merge(exact_search(queries, near, 32), far, 32))
        n_exact += len(queries) * (len(near) + index.inverted_file.nlist)
    far = merge(exact_search(background, near, 32), shifted(background_lists, len(near)), 32)
    n_exact += len(background) * len(near)
    nodes = tuple(np.concatenate(pair) for pair in zip(lists[0], far))
    return nodes, lists[1], (n_exact + faiss.cvar.indexIVF_stats.ndis) * near.shape[1]


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result of `work`, its wall seconds and its processor seconds."""
    start, cpu_start = time.perf_counter(), time.process_time()
    return work(), time.perf_counter() - start, time.process_time() - cpu_start


def report(part: str, what: str, seconds: float, cpu_seconds: float, **more: float) -> None:
    peak = peak_memory_bytes() / 2**30
    record = {"what": what, "seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2), **more}
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    print(json.dumps({"benchmark": f"knn {part}", **record, "threads": threads, "peak_gib": round(peak, 2)}))
    extra = "".join(f" {name} {value:.4g} |" for name, value in more.items())
    print(f"| {what} | {seconds:.1f} s | {cpu_seconds:.1f} s CPU |{extra}", flush=True)


if __name__ == "__main__":
    run_commands({"exact": (exact, ExactConfig), "ivf": (ivf, IvfConfig), "trial": (trial, TrialConfig)}, __doc__)
