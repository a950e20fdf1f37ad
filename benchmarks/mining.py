"""Time of mining analogies, compared with the direct method, and at the size of the ImageNet low-shot benchmark.

    python benchmarks/mining.py               # 10 classes, 100 clusters, 512 dimensions: the direct method and ours
    python benchmarks/mining.py --imagenet    # 389 classes: ours only, time and peak memory

Centroids are synthetic, non-negative and clustered by class. They follow two distributions: `even` (independent noise
of one size) and `skewed` (correlated dimensions, differences of very unequal length), which is harder to prune. Prints
a line of JSON and a row of a Markdown table for each. `estimate` figures are computed, the others are measured. The
clock starts after the search is compiled or loaded.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.core.artifacts import peak_memory_bytes
from lowshot.hallucination.quadruplets import RULES, mine

N_CLUSTERS, DIM, EPSILON = 100, 512, RULES["hariharan2017"].epsilon


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--imagenet", action="store_true", help="389 classes, without the direct method (which would take days)"
    )
    parser.add_argument("--kinds", nargs="+", default=["even", "skewed"], choices=["even", "skewed"])
    imagenet = (options := parser.parse_args()).imagenet
    mine(synthetic_centroids("even", 2, 4, 8), all_others(2), EPSILON, progress=False)
    for kind in options.kinds:
        report(measure_imagenet(kind) if imagenet else compare(kind))


def synthetic_centroids(kind: str, n_classes: int, n_clusters: int = N_CLUSTERS, dim: int = DIM) -> np.ndarray:
    """Return non-negative centroids like averages of features after a ReLU, float32 (n_classes, n_clusters, dim)."""
    random = np.random.default_rng(0)
    class_part = random.standard_normal((n_classes, 1, dim), np.float32)
    cluster_part = random.standard_normal((n_classes, n_clusters, dim), np.float32)
    if kind == "even":
        cluster_part *= 0.7
        cluster_part += class_part
        return np.maximum(cluster_part, 0, out=cluster_part)
    cluster_part *= random.gamma(2, 0.5, size=(n_classes, n_clusters, 1)).astype(np.float32)
    cluster_part += class_part
    axes = random.standard_normal((dim, dim), np.float32) * (3 / np.sqrt(dim * np.arange(1, dim + 1)))[:, None]
    return np.maximum(cluster_part @ axes.astype(np.float32), 0)


def all_others(n_classes: int) -> list[np.ndarray]:
    return [np.flatnonzero(np.arange(n_classes) != a) for a in range(n_classes)]


def mine_directly(centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The published method: all normalised differences of each class, and a dense product per ordered class pair."""
    n_classes, n_clusters, dim = centroids.shape
    differences = []
    for class_centroids in torch.from_numpy(centroids):
        pairs = (class_centroids[:, None] - class_centroids[None]).reshape(-1, dim)
        differences.append(pairs / (pairs.norm(dim=1, keepdim=True) + EPSILON))
    numbers, scores = [], []
    for a in range(n_classes):
        best, winner = torch.zeros(n_clusters**2), torch.full((n_clusters**2,), -1)
        for b in (b for b in range(n_classes) if b != a):
            top, pair = (differences[a] @ differences[b].T).max(1)
            better = top > best
            best[better], winner[better] = top[better], b * n_clusters**2 + pair[better]
        found = (best > 0).nonzero().flatten()
        source, target = a * n_clusters**2 + found, winner[found]
        ends = [part for pair in (source, target) for part in _pair_ends(pair, n_clusters)]
        numbers.append(torch.stack(ends, 1).numpy())
        scores.append(best[found].numpy())
    return np.concatenate(numbers), np.concatenate(scores)


def _pair_ends(pair: torch.Tensor, n_clusters: int) -> tuple[torch.Tensor, torch.Tensor]:
    first_row = pair // n_clusters**2 * n_clusters
    return first_row + pair % n_clusters**2 // n_clusters, first_row + pair % n_clusters


def compare(kind: str, n_classes: int = 10) -> dict:
    """Measure the seconds of the direct method and of ours (best of 3), and whether their results agree."""
    centroids = synthetic_centroids(kind, n_classes)
    ours = [timed(mine, centroids, all_others(n_classes), EPSILON, False) for _ in range(3)]
    seconds, cpu_seconds, (numbers, scores) = min(ours, key=lambda run: run[0])
    direct_seconds, direct_cpu_seconds, (direct_numbers, direct_scores) = timed(mine_directly, centroids)
    assert numbers.shape == direct_numbers.shape and (numbers[:, :2] == direct_numbers[:, :2]).all()
    return {
        "what": f"{kind}, {n_classes} x {N_CLUSTERS} x {DIM}",
        "direct_seconds": round(direct_seconds, 2),
        "seconds": round(seconds, 3),
        "ratio": round(direct_seconds / seconds),
        "direct_cpu_seconds": round(direct_cpu_seconds, 2),
        "cpu_seconds": round(cpu_seconds, 3),
        "cpu_ratio": round(direct_cpu_seconds / cpu_seconds),
        "n_quadruplets": len(numbers),
        "same_quadruplets": round(float((numbers == direct_numbers).all(1).mean()), 6),
        "largest_score_difference": float(np.abs(scores - direct_scores).max()),
        **estimates(n_classes, seconds),
    }


def measure_imagenet(kind: str) -> dict:
    """Measure the seconds and peak memory of ours, and estimate the operations of the direct method."""
    n_classes = 389
    centroids = synthetic_centroids(kind, n_classes)
    before = peak_memory_bytes()
    seconds, cpu_seconds, (numbers, _) = timed(mine, centroids, all_others(n_classes), EPSILON)
    return {
        "what": f"{kind}, {n_classes} x {N_CLUSTERS} x {DIM}",
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "n_quadruplets": len(numbers),
        "peak_gib": round(peak_memory_bytes() / 2**30, 3),
        "peak_before_mining_gib": round(before / 2**30, 3),
        **estimates(n_classes, seconds),
    }


def estimates(n_classes: int, seconds: float) -> dict:
    """Count comparisons of two pairs, operations of the products in both methods, and bytes of our largest arrays."""
    class_pairs, pairs = n_classes * (n_classes - 1), N_CLUSTERS * (N_CLUSTERS - 1) // 2
    arrays = n_classes * (2 * N_CLUSTERS * DIM * 4 + N_CLUSTERS**2 * (8 + 4 + 4))
    return {
        "estimate_comparisons": class_pairs // 2 * pairs**2,
        "comparisons_per_second": round(class_pairs // 2 * pairs**2 / seconds),
        "estimate_direct_flop": 2 * class_pairs * N_CLUSTERS**4 * DIM,
        "estimate_product_flop": 2 * n_classes**2 * N_CLUSTERS**2 * DIM,
        "estimate_gib": round(arrays / 2**30, 3),
    }


def timed(function: Callable, *arguments: object) -> tuple[float, float, Any]:
    """Return the wall seconds, the processor seconds (of all threads) and the result of a call."""
    start, cpu_start = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return time.perf_counter() - start, time.process_time() - cpu_start, result


def report(result: dict) -> None:
    print(json.dumps({**result, "threads": torch.get_num_threads()}))
    print(
        "| "
        + " | ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in result.values())
        + " |",
        flush=True,
    )


if __name__ == "__main__":
    main()
