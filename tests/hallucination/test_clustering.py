"""k-means of each class: faiss and the published variant."""

from pathlib import Path

import numpy as np
import pytest

from lowshot.core.errors import InputError
from lowshot.core.seeds import stream
from lowshot.data.features import Features
from lowshot.hallucination.clustering import cluster_classes, faiss_kmeans, published_kmeans


class ScriptedRandom:
    """A fake generator that returns given start vectors, then the points to which re-seeded clusters move."""

    def __init__(self, start: list[list[float]], seeds: list[int]) -> None:
        self.start, self.seeds = np.array(start, float), list(seeds)

    def standard_normal(self, shape: tuple[int, int]) -> np.ndarray:
        assert shape == self.start.shape
        return self.start

    def integers(self, high: int, size: int) -> np.ndarray:
        drawn, self.seeds = self.seeds[:size], self.seeds[size:]
        return np.array(drawn, np.int64)


def features_of(*counts: int, dim: int = 5) -> Features:
    labels = np.repeat(np.arange(len(counts)), counts)
    feats = np.abs(np.random.default_rng(0).normal(size=(len(labels), dim))).astype(np.float32)
    mixed = np.random.default_rng(1).permutation(len(labels))
    return Features(feats[mixed], labels[mixed], Path("train.h5"))


def test_published_start_has_unit_length():
    random = ScriptedRandom([[3, 4], [0, -2]], seeds=[])
    assert published_kmeans(np.array([[9, 9]]), 2, 0, random) == pytest.approx(np.array([[0.6, 0.8], [0, -1]]))


def test_published_reseeds_what_never_had_members_in_every_step_including_the_last():
    points = np.array([[1.0, 0], [2, 0], [3, 0]])
    centroids = published_kmeans(points, 2, 1, ScriptedRandom([[1, 0], [-1, 0]], seeds=[2]))
    assert centroids.tolist() == [[2, 0], [3, 0]]


def test_published_never_reseeds_a_cluster_that_lost_its_members():
    # The third cluster has two members in the first step and none later (checked by hand), so it stays at their mean.
    points = np.array([[2.0, 3], [7, 4], [7, 3], [1, 4]])
    random = ScriptedRandom([[0, 1], [1, 0], [0.6, 0.8]], seeds=[])
    assert published_kmeans(points, 3, 4, random).tolist() == [[1.5, 3.5], [7, 3.5], [4.5, 3.5]]


def test_published_keeps_reseeding_a_cluster_that_never_wins_a_tie():
    # The third cluster moves to (0, 1), the position of the second, and ties go to the lower number.
    points = np.array([[4.0, 0], [6, 0], [0, 1]])
    random = ScriptedRandom([[1, 0], [0, 1], [-1, 0]], seeds=[2, 2, 0])
    assert published_kmeans(points, 3, 3, random).tolist() == [[5, 0], [0, 1], [4, 0]]
    assert random.seeds == []


def test_published_gives_every_cluster_members_on_nonnegative_points():
    points = np.abs(np.random.default_rng(0).normal(size=(1000, 64))).astype(np.float32)
    centroids = published_kmeans(points, 100, 20, stream(0, "kmeans", 3))
    nearest = ((points[:, None] - centroids) ** 2).sum(2).argmin(1)
    assert len(np.unique(nearest)) == 100 and len(np.unique(centroids, axis=0)) == 100


@pytest.mark.parametrize("kmeans", ["faiss", "published"])
def test_centroids_of_separated_groups(kmeans: str):
    centres = np.array([[10, 0, 0], [0, 10, 0], [0, 0, 10]], np.float32)
    points = np.repeat(centres, 4, axis=0) + np.tile(np.float32([[0.1], [-0.1], [0.2], [-0.2]]), (3, 3))
    found = {
        "faiss": lambda: faiss_kmeans(points, 3, 20, 10, stream(0, "test")),
        "published": lambda: published_kmeans(points, 3, 20, ScriptedRandom([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [])),
    }[kmeans]()
    assert found.dtype == np.float32
    assert sorted(found.round(4).tolist()) == sorted(centres.tolist())


@pytest.mark.parametrize("kmeans", ["faiss", "published"])
def test_a_class_is_clustered_alike_whatever_else_is_clustered(kmeans: str):
    features = features_of(30, 20, 25)
    together = cluster_classes(features, np.array([0, 1, 2]), 4, kmeans, 5, 2, seed=1)
    alone = cluster_classes(features, np.array([2]), 4, kmeans, 5, 2, seed=1)
    assert together.shape == (3, 4, 5) and together.dtype == np.float32
    assert np.array_equal(together[2], alone[0])
    assert not np.array_equal(alone, cluster_classes(features, np.array([2]), 4, kmeans, 5, 2, seed=2))


def test_as_many_clusters_as_rows_are_allowed_and_quiet(capfd: pytest.CaptureFixture):
    features = features_of(4, 9)
    centroids = cluster_classes(features, np.array([0]), 4, "faiss", 3, 1, seed=0)
    own = features.feats[features.labels == 0]
    assert sorted(centroids[0].tolist()) == sorted(own.tolist())
    assert "WARNING" not in "".join(capfd.readouterr())


def test_too_few_rows_names_the_class_and_the_counts():
    with pytest.raises(
        InputError, match=r"train.h5: base class 1 has 3 rows, fewer than the 4 clusters. Use at most --n_clusters 3"
    ):
        cluster_classes(features_of(9, 3), np.array([0, 1]), 4, "faiss", 3, 1, seed=0)
