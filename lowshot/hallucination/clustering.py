"""k-means centroids of each class, from which analogies are mined (Hariharan & Girshick, ICCV 2017, section 4.1), and
the agreement of k-means clusters with classes."""

from collections.abc import Callable
from functools import partial

import faiss
import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score, homogeneity_score, normalized_mutual_info_score
from threadpoolctl import threadpool_limits

from lowshot.core.errors import InputError
from lowshot.core.progress import Progress
from lowshot.core.seeds import stream
from lowshot.data.features import Features
from lowshot.hallucination.settings import KMeans

_SCORES = {
    "nmi": normalized_mutual_info_score,
    "homogeneity": homogeneity_score,
    "adjusted_rand": adjusted_rand_score,
}


def cluster_classes(
    features: Features, classes: np.ndarray, n_clusters: int, kmeans: KMeans, n_iterations: int, n_redo: int, seed: int
) -> np.ndarray:
    """Return the centroids float32 (B, n_clusters, D) of `classes` (B,), in that order.

    Each class has its own random stream and is clustered by a single thread. Its centroids therefore depend neither on
    other classes nor on the number of threads. Raises InputError for a class with fewer rows than clusters.
    """
    rows_of = _rows_by_class(features.labels, classes)
    for label, rows in zip(classes, rows_of):
        if len(rows) == 0:
            raise InputError(f"{features.path}: has no rows of base class {label}. Use the split of these features")
        if len(rows) < n_clusters:
            raise InputError(
                f"{features.path}: base class {label} has {len(rows)} rows, fewer than the {n_clusters} clusters. "
                f"Use at most --n_clusters {min(map(len, rows_of))}"
            )
    fit: Callable = partial(faiss_kmeans, n_redo=n_redo) if kmeans == "faiss" else published_kmeans
    centroids = np.empty((len(classes), n_clusters, features.dim), np.float32)
    with threadpool_limits(1):
        for at, label in enumerate(Progress(classes, "k-means", unit="class")):
            random = stream(seed, "kmeans", int(label))
            centroids[at] = fit(features.feats[rows_of[at]], n_clusters, n_iterations=n_iterations, random=random)
    return centroids


def _rows_by_class(labels: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    starts, ends = (np.searchsorted(labels[order], classes, side=side) for side in ("left", "right"))
    return [order[start:end] for start, end in zip(starts, ends)]


def faiss_kmeans(
    points: np.ndarray, n_clusters: int, n_iterations: int, n_redo: int, random: np.random.Generator
) -> np.ndarray:
    """Cluster `points` float32 (n, D) with faiss into centroids float32 (n_clusters, D), the best of `n_redo` runs."""
    kmeans = faiss.Kmeans(
        points.shape[1],
        n_clusters,
        niter=n_iterations,
        nredo=n_redo,
        seed=int(random.integers(2**31)),
        min_points_per_centroid=1,  # disables faiss's warning: few points per cluster are normal here
        max_points_per_centroid=len(points),  # disables subsampling
    )
    kmeans.train(np.ascontiguousarray(points))
    return kmeans.centroids


def published_kmeans(points: np.ndarray, n_clusters: int, n_iterations: int, random: np.random.Generator) -> np.ndarray:
    """Cluster with the k-means of the published code, whose authors found that the variant mattered.

    Maps `points` float32 (n, D) to centroids float32 (n_clusters, D), in float64. Starts from random unit vectors.
    After each step, a centroid that has not had a member in *any* step so far moves to a random point. These points are
    drawn independently, so two may coincide. A centroid that lost its members does not move. There is no convergence
    test and no restart. Ties go to the lowest cluster number.
    """
    data = torch.from_numpy(np.asarray(points, np.float64))
    start = random.standard_normal((n_clusters, data.shape[1]))
    centroids = torch.from_numpy(start / np.linalg.norm(start, axis=1, keepdims=True))
    members_so_far = torch.zeros(n_clusters, dtype=torch.int64)
    for _ in range(n_iterations):
        nearest = (data @ centroids.T - centroids.square().sum(1) / 2).argmax(1)
        members = torch.bincount(nearest, minlength=n_clusters)
        members_so_far += members
        sums = torch.zeros_like(centroids).index_add_(0, nearest, data)
        centroids = torch.where(members[:, None] > 0, sums / members.clamp(min=1)[:, None], centroids)
        never = (members_so_far == 0).nonzero().flatten()
        centroids[never] = data[torch.from_numpy(random.integers(len(data), size=len(never)))]
    return centroids.numpy().astype(np.float32)


def clustering_scores(feats: np.ndarray, labels: np.ndarray, n_clusters: int, seed: int) -> dict[str, int | float]:
    """Measure the agreement of a k-means clustering of features float32 (N, D) with their classes `labels` (N,).

    Runs k-means once, with `seed` and one thread. Returns seed, n_clusters, and scikit-learn's scores: nmi (normalised
    by the arithmetic mean of the entropies) and homogeneity in 0..1, and adjusted_rand in -1..1 (0 is chance level).
    """
    with threadpool_limits(1):
        options = {"n_iterations": 50, "n_redo": 1, "random": stream(seed, "clustering")}
        centroids = faiss_kmeans(feats, n_clusters, **options)
        clusters = faiss.knn(np.ascontiguousarray(feats), centroids, 1)[1][:, 0]
    # Rounding errors can exceed 1 for perfect agreement.
    scores = {name: min(1.0, float(score(labels, clusters))) for name, score in _SCORES.items()}
    return {"seed": seed, "n_clusters": n_clusters, **scores}
