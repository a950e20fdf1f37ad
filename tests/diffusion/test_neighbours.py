"""Search, merging and projection, compared with direct computation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import lowshot.data.rows as rows_room
import lowshot.diffusion.neighbours as neighbours
import lowshot.diffusion.projection as projection_room
from lowshot.diffusion.neighbours import Index, exact_search, merge, recall, with_self
from lowshot.diffusion.projection import Projection, fit_projection
from lowshot.diffusion.settings import AutoIndex, ExactIndex, InvertedFile


def unit_vectors(n: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def brute_force(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(products, order, axis=1)


def assert_same(lists: tuple, expected: tuple) -> None:
    assert lists[0].dtype == np.int32 and lists[1].dtype == np.float32
    np.testing.assert_array_equal(lists[0], expected[0])
    np.testing.assert_allclose(lists[1], expected[1], atol=1e-6)


def in_torch(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple:
    return neighbours._search_in_torch(queries, vectors, k, "cpu")


def test_search_of_four_vectors():
    vectors = np.array([[1, 0], [0, 1], [-1, 0], [0.6, 0.8]], np.float32)
    ids, similarities = exact_search(vectors[:1], vectors, 4)
    assert ids.tolist() == [[0, 3, 1, 2]]
    np.testing.assert_allclose(similarities, [[1, 0.6, 0, -1]])


@pytest.mark.parametrize("search", [exact_search, in_torch], ids=["faiss", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_search_equals_brute_force_whatever_the_blocks(search, dtype, monkeypatch, tmp_path):
    unit_vectors(300, 24).astype(dtype).tofile(tmp_path / "vectors.raw")
    vectors = np.memmap(tmp_path / "vectors.raw", dtype, "r", shape=(300, 24))
    expected = brute_force(vectors[:50], vectors, 7)
    for at_once, block in ((2**15, 16384), (37, 16), (5, 1)):
        monkeypatch.setattr(neighbours, "VECTORS_AT_ONCE", at_once)
        monkeypatch.setattr(rows_room, "BLOCK", block)
        assert_same(search(vectors[:50], vectors, 7), expected)


@pytest.mark.parametrize("search", [exact_search, in_torch], ids=["faiss", "torch"])
def test_fewer_vectors_than_k_leave_places_empty(search):
    vectors = unit_vectors(3, 4)
    ids, similarities = search(vectors[:2], vectors, 5)
    assert (ids[:, 3:] == -1).all() and (similarities[:, 3:] == -np.inf).all()
    assert_same((ids[:, :3], similarities[:, :3]), brute_force(vectors[:2], vectors, 3))


def test_nothing_to_search_for_or_in():
    vectors = unit_vectors(3, 4)
    assert exact_search(vectors[:0], vectors, 2)[0].shape == (0, 2)
    ids, similarities = exact_search(vectors, vectors[:0], 2)
    assert (ids == -1).all() and (similarities == -np.inf).all()


@pytest.mark.parametrize("kind", [ExactIndex(), InvertedFile()], ids=["exact", "ivf"])
def test_zero_vectors_neither_have_nor_are_neighbours(kind):
    vectors = np.concatenate([np.zeros((1, 2)), [[1, 0], [-1, 0], [0, 1]]]).astype(np.float32)
    ids, similarities = Index(vectors, kind, "cpu").search(vectors, 4)
    assert ids[:3].tolist() == [[-1] * 4, [1, 3, 2, -1], [2, 3, 1, -1]]
    assert sorted(ids[3].tolist()) == [-1, 1, 2, 3]
    assert similarities[1].tolist() == [1, 0, -1, -np.inf]  # orthogonal non-zero vectors are neighbours


def test_inverted_file_that_probes_all_lists_is_exact_and_fewer_find_less():
    vectors = unit_vectors(3000, 16)
    queries = vectors[:200]
    assert_same(Index(vectors, InvertedFile(1000), "cpu").search(queries, 10), brute_force(queries, vectors, 10))
    few, again = (Index(vectors, InvertedFile(2), "cpu", seed=1).search(vectors, 10) for _ in range(2))
    np.testing.assert_array_equal(few[0], again[0])
    assert 0.1 < recall(few[0], vectors, "cpu", seed=0) < 0.9


def test_inverted_file_of_float16_vectors():
    vectors = unit_vectors(2000, 16).astype(np.float16)
    found = Index(vectors, InvertedFile(1000), "cpu").search(vectors[:100], 10)[0]
    assert (found == brute_force(vectors[:100], vectors, 10)[0]).mean() > 0.99


def test_recall_counts_true_neighbours():
    vectors = unit_vectors(40, 8)
    ids = brute_force(vectors, vectors, 4)[0]
    assert recall(ids, vectors, "cpu", seed=0) == 1
    worst = np.argsort(vectors @ vectors.T, axis=1)[:, :2]
    assert recall(np.column_stack([ids[:, :2], worst]), vectors, "cpu", seed=0) == 0.5
    assert recall(np.column_stack([ids[:, :3], np.full(40, -1)]), vectors, "cpu", seed=0) == 0.75


def test_recall_takes_any_of_equal_vectors():
    vectors = np.repeat(unit_vectors(2, 8), 20, axis=0)
    own = np.arange(40) // 20 * 20
    assert recall(own[:, None] + [3, 11, 17], vectors, "cpu", seed=0) == 1


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "first, second, ids, similarities",
    [
        (([1, 2], [0.9, 0.1]), ([7, 8], [0.5, 0.4]), [1, 7, 8], [0.9, 0.5, 0.4]),
        (([1, 2], [0.5, 0.4]), ([7, 8], [0.5, 0.4]), [7, 1, 8], [0.5, 0.5, 0.4]),  # ties go to the second list
        (([1, 2], [-0.2, -0.9]), ([7, 8], [-0.1, -0.5]), [7, 1, 8], [-0.1, -0.2, -0.5]),  # the released code drops them
        (([1, -1], [0.5, -INF]), ([-1, 8], [NAN, 0.9]), [8, 1, -1], [0.9, 0.5, -INF]),
        (([1, 2], [NAN, 0.3]), ([7, -1], [0.1, 5]), [2, 7, -1], [0.3, 0.1, -INF]),
        (([1, 2], [0.0, -0.5]), ([7, 8], [-0.0, -0.5]), [7, 1, 8], [0, 0, -0.5]),  # 0.0 equals -0.0
        (([-1, -1], [1, 1]), ([-1, -1], [1, 1]), [-1, -1, -1], [-INF, -INF, -INF]),
    ],
)
def test_merge_of_one_row(first, second, ids, similarities):
    pair = [(np.array([i], np.int32), np.array([s], np.float32)) for i, s in (first, second)]
    merged = merge(*pair, k=3)
    assert merged[0].tolist() == [ids]
    np.testing.assert_allclose(merged[1], [similarities])


LISTS = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 12), st.integers(1, 5))
SIMILARITIES = st.sampled_from([-1, -0.5, -0.0, 0.0, 0.25, 0.5, 1, NAN]) | st.floats(-1, 1, width=32)


@settings(max_examples=60, deadline=None)
@given(LISTS, st.data())
def test_merge_equals_sorting(shape, data):
    n_first, n_second, k, n_rows = shape
    pairs = []
    for start, width in ((0, n_first), (100, n_second)):
        similarities = data.draw(arrays_of.arrays(np.float32, (n_rows, width), elements=SIMILARITIES))
        there = data.draw(arrays_of.arrays(bool, (n_rows, width)))
        pairs.append((np.where(there, np.arange(start, start + width), -1).astype(np.int32), similarities))
    ids, similarities = merge(*pairs, k=k)
    for row in range(n_rows):
        entries = [(i, s) for one in reversed(pairs) for i, s in zip(one[0][row], one[1][row])]
        best = sorted(((i, s) for i, s in entries if i >= 0 and s == s), key=lambda entry: -entry[1])[:k]
        best += [(-1, -INF)] * (k - len(best))
        assert list(zip(ids[row], similarities[row])) == best


def test_merge_of_many_rows_in_blocks(monkeypatch):
    monkeypatch.setattr(rows_room, "BLOCK", 7)
    vectors = unit_vectors(60, 8)
    one, two = exact_search(vectors, vectors[:25], 6), exact_search(vectors, vectors[25:], 6)
    assert_same(merge(one, neighbours.shifted(two, 25), 6), brute_force(vectors, vectors, 6))


def test_every_node_is_in_its_own_list():
    vectors = np.repeat(unit_vectors(2, 8), [10, 1], axis=0)  # ten duplicates, more than fit into a list of 3
    lists = with_self(exact_search(vectors, vectors, 3), np.arange(11), vectors)
    assert (lists[0] == np.arange(11)[:, None]).any(axis=1).all()
    assert (np.diff(lists[1]) <= 0).all()
    assert all(len(set(row)) == 3 for row in lists[0].tolist())
    np.testing.assert_allclose(lists[1][:10], 1, atol=1e-6)


def test_own_entry_of_a_zero_vector():
    vectors = np.eye(3, dtype=np.float32)
    vectors[1] = 0
    ids, similarities = with_self(exact_search(vectors, vectors, 2), np.arange(3), vectors)
    assert ids[1].tolist() == [1, -1] and similarities[1].tolist() == [0, -INF]


def test_projection_is_the_pca_then_unit_length(monkeypatch):
    feats = np.random.default_rng(0).standard_normal((200, 12)).astype(np.float32) * np.arange(1, 13)
    projection = fit_projection(feats, 5, seed=0)
    centred = feats - feats.mean(axis=0)
    axes = np.linalg.svd(centred.astype(np.float64), full_matrices=False)[2][:5]
    expected = centred @ axes.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(projection(feats) @ projection(feats).T, expected @ expected.T, atol=1e-5)
    whole = projection(feats)
    monkeypatch.setattr(rows_room, "BLOCK", 9)
    np.testing.assert_allclose(projection(feats), whole, atol=1e-6)


@pytest.mark.parametrize("dim", [None, 12, 20])
def test_features_of_few_dimensions_are_only_normalised(dim):
    feats = np.random.default_rng(0).standard_normal((20, 12)).astype(np.float32)
    feats[3] = 0
    projection = fit_projection(feats, dim, seed=0)
    assert projection == Projection()
    lengths = np.linalg.norm(projection(feats), axis=1)
    np.testing.assert_allclose(lengths, np.arange(20) != 3, atol=1e-6)  # the zero row stays zero


def test_pca_of_a_sample_depends_on_the_seed_only(monkeypatch):
    feats = np.random.default_rng(0).standard_normal((500, 6)).astype(np.float32)
    monkeypatch.setattr(projection_room, "N_SAMPLE", 50)
    one = fit_projection(feats, 3, seed=0)
    monkeypatch.setattr(rows_room, "BLOCK", 33)
    np.testing.assert_array_equal(fit_projection(feats, 3, seed=0).components, one.components)
    assert not np.allclose(fit_projection(feats, 3, seed=1).components, one.components)


def test_an_automatic_index_is_exact_where_that_is_quick(monkeypatch):
    vectors = np.eye(50, dtype=np.float32)
    assert Index(vectors, AutoIndex(), "cpu").inverted_file is None
    monkeypatch.setattr(neighbours, "EXACT_BELOW", 50)
    assert Index(vectors, AutoIndex(1), "cpu").inverted_file.nprobe == 1
