"""The symmetric matrix of neighbour lists: comparison with scipy, block sizes, missing entries, hubs, lone nodes."""

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowshot.diffusion import adjacency as room
from lowshot.diffusion.adjacency import symmetrise
from lowshot.diffusion.run_graphs import edge_weights
from lowshot.diffusion.settings import EdgeOptions, GaussianWeight, SimilarityWeight

HOWS = ("sum", "max", "mutual")


def random_lists(n_nodes: int, k: int, missing: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lists of the node itself and k - 1 random others: ids (n_nodes, k), and edge weights in 0..1."""
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((n_nodes, n_nodes)) - 9 * np.eye(n_nodes), axis=1)[:, :k].astype(np.int32)
    ids[rng.random(ids.shape) < missing] = -1
    return ids, rng.random(ids.shape, np.float32)


def to_scipy(made: room.Adjacency) -> scipy.sparse.csr_matrix:
    """S as a scipy matrix, with one entry per edge."""
    rows = [
        scipy.sparse.csr_matrix(
            (np.ones(len(b.columns), np.float32) if b.weights is None else b.weights, b.columns, b.offsets),
            (b.n_rows, len(made)),
        )
        for b in made.blocks
    ]
    whole = scipy.sparse.vstack(rows, "csr")
    whole.sum_duplicates()
    return whole


def by_scipy(ids: np.ndarray, weights: np.ndarray | None, how: str) -> scipy.sparse.csr_matrix:
    """A + A^T, or the elementwise maximum or minimum of A and A^T."""
    there = ids >= 0
    values = np.ones(ids.shape) if weights is None else weights.astype(np.float64)
    rows = np.nonzero(there)[0]
    a = scipy.sparse.csr_matrix((values[there], (rows, ids[there])), (len(ids), len(ids)))
    combined = {"sum": lambda: a + a.T, "max": lambda: a.maximum(a.T), "mutual": lambda: a.minimum(a.T)}[how]()
    combined = combined.tocsr()
    combined.eliminate_zeros()
    combined.sort_indices()
    return combined


def assert_same(made: room.Adjacency, expected: scipy.sparse.csr_matrix) -> None:
    whole = to_scipy(made)
    np.testing.assert_array_equal(whole.indptr, expected.indptr)
    np.testing.assert_array_equal(whole.indices, expected.indices)
    np.testing.assert_allclose(whole.data, expected.data, rtol=2e-7)
    np.testing.assert_allclose(made.degrees, np.asarray(expected.sum(1))[:, 0], rtol=1e-6)


@pytest.fixture(params=[2**22, 500])
def block_entries(request, monkeypatch) -> int:
    """All rows in one block, and in many blocks."""
    monkeypatch.setattr(room, "_ENTRIES_PER_RANGE", request.param)
    return request.param


# --- against scipy ---


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("how", HOWS)
def test_a_thousand_nodes_equal_scipy(how, weighted, missing, block_entries):
    ids, weights = random_lists(1000, 40, missing)
    made = symmetrise(ids, weights if weighted else None, how)
    assert len(made.blocks) == (1 if block_entries == 2**22 else room._MOST_RANGES)
    expected = by_scipy(ids, weights if weighted else None, how)
    assert_same(made, expected)
    there = made.degrees > 0
    normalised = to_scipy(made).toarray()[there] / made.degrees[there, None]
    reference = expected.toarray()[there] / expected.toarray()[there].sum(1, keepdims=True)
    assert np.abs(normalised - reference).sum() / np.abs(reference).sum() < 1e-6


def test_the_published_sum_has_multiplicities_of_one_and_two(block_entries):
    n, k = 1000, 40
    ids, _ = random_lists(n, k)
    made = symmetrise(ids)
    whole = to_scipy(made)
    assert set(whole.data) == {1, 2} and (whole.diagonal() == 2).all() and (whole != whole.T).nnz == 0
    assert whole.sum() == made.n_entries == made.degrees.sum() == 2 * k * n
    assert k * n <= whole.nnz < 2 * k * n
    np.testing.assert_array_equal(made.degrees, k + np.bincount(ids.ravel(), minlength=n))


@pytest.mark.parametrize("how", HOWS)
def test_the_matrix_is_symmetric_to_the_last_bit(how, block_entries):
    """Also if the weights of the two directions of an edge differ slightly."""
    made = to_scipy(symmetrise(*random_lists(300, 12, 0.2), how))
    assert (made != made.T).nnz == 0


@st.composite
def lists(draw):
    n_nodes = draw(st.integers(1, 9))
    k = draw(st.integers(1, n_nodes))
    rows = st.lists(st.integers(0, n_nodes - 1), min_size=k, max_size=k, unique=True)
    ids = np.array([draw(rows) for _ in range(n_nodes)], np.int32)
    gaps = draw(st.lists(st.booleans(), min_size=ids.size, max_size=ids.size))
    weights = draw(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=ids.size, max_size=ids.size))
    return np.where(np.reshape(gaps, ids.shape), -1, ids).astype(np.int32), np.float32(weights).reshape(ids.shape)


@settings(max_examples=60, deadline=None)
@given(lists(), st.sampled_from(HOWS), st.booleans())
def test_any_lists_equal_a_dense_matrix(drawn, how, weighted):
    ids, weights = drawn
    values = weights if weighted else np.ones_like(weights)
    dense = np.zeros((len(ids), len(ids)))
    for i, row in enumerate(ids):
        for j, value in zip(row, values[i]):
            if j >= 0:
                dense[i, j] = value
    expected = {"sum": np.add, "max": np.maximum, "mutual": np.minimum}[how](dense, dense.T)
    made = symmetrise(ids, weights if weighted else None, how)
    np.testing.assert_array_equal(to_scipy(made).toarray(), expected)
    np.testing.assert_array_equal(made.degrees, expected.sum(1))
    assert (to_scipy(made).data != 0).all()


# --- small and unusual graphs ---


def test_three_nodes_by_hand():
    """Node 0 lists 1, node 1 lists 0 and 2, node 2 lists only itself."""
    ids = np.int32([[0, 1, -1], [1, 0, 2], [2, -1, -1]])
    assert to_scipy(symmetrise(ids)).toarray().tolist() == [[2, 2, 0], [2, 2, 1], [0, 1, 2]]
    assert to_scipy(symmetrise(ids, how="max")).toarray().tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    assert to_scipy(symmetrise(ids, how="mutual")).toarray().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    block = symmetrise(ids).blocks[0]  # a mutual edge is stored twice
    assert block.columns.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 1, 2, 2] and block.offsets.tolist() == [0, 4, 9, 12]


def test_a_node_without_neighbours_has_no_row(block_entries):
    ids, weights = random_lists(200, 10)
    ids[7] = -1
    ids[ids == 7] = -1
    for how in HOWS:
        made = symmetrise(ids, weights, how)
        assert made.degrees[7] == 0 and to_scipy(made)[7].nnz == 0
        assert_same(made, by_scipy(ids, weights, how))


def test_a_node_in_every_list(block_entries):
    """Black placeholder images cause this: one row has an entry for every node."""
    ids, weights = random_lists(600, 8)
    ids[:, 1:][ids[:, 1:] == 3] = -1
    ids[:, 7] = np.where(np.arange(600) == 3, -1, 3)
    for how in HOWS:
        made = symmetrise(ids, weights, how)
        assert_same(made, by_scipy(ids, weights, how))
    assert np.diff(to_scipy(symmetrise(ids)).indptr)[3] == 600


def test_nothing_but_missing_neighbours():
    made = symmetrise(np.full((5, 3), -1, np.int32))
    assert made.degrees.tolist() == [0] * 5 and made.n_entries == 0 and to_scipy(made).nnz == 0


def test_a_share_is_the_first_rows(monkeypatch):
    monkeypatch.setattr(room, "_ENTRIES_PER_RANGE", 500)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    ids, weights = random_lists(1000, 40)
    whole, part = (symmetrise(ids, weights, share=share) for share in (1, 0.3))
    assert (len(whole.blocks), len(part.blocks)) == (16, 6)  # 4.8, rounded up to a multiple of two threads
    for block, expected in zip(part.blocks, whole.blocks):
        np.testing.assert_array_equal(block.columns, expected.columns)
    np.testing.assert_array_equal(part.degrees, whole.degrees[: len(part)])


def test_the_lists_are_not_changed():
    """The published code sorts the lists of the caller in place."""
    ids, weights = random_lists(100, 10)
    before = ids.copy(), weights.copy()
    symmetrise(ids, weights)
    np.testing.assert_array_equal(ids, before[0])
    np.testing.assert_array_equal(weights, before[1])


def test_the_first_columns_of_lists_on_disk(tmp_path):
    ids, _ = random_lists(100, 12)
    ids.tofile(tmp_path / "ids.int12")
    mapped = np.memmap(tmp_path / "ids.int12", np.int32, "r", shape=ids.shape)
    assert_same(symmetrise(mapped[:, :5]), by_scipy(ids[:, :5], None, "sum"))


def test_threads_change_nothing(monkeypatch):
    monkeypatch.setattr(room, "_ENTRIES_PER_RANGE", 500)
    ids, weights = random_lists(400, 10)
    one = symmetrise(ids, weights)
    torch.set_num_threads(3)
    try:
        other = symmetrise(ids, weights)
        product = other.times(np.arange(400.0))
    finally:
        torch.set_num_threads(1)
    for mine, theirs in zip(one.blocks, other.blocks):
        np.testing.assert_array_equal(mine.columns, theirs.columns)
        np.testing.assert_array_equal(mine.weights, theirs.weights)
    np.testing.assert_array_equal(one.times(np.arange(400.0)), product)


def test_a_block_has_fewer_than_two_to_the_31_entries():
    for counts in (np.full(100, 2**29, np.int32), np.int32([2**30, *[7] * 9_999]), np.int32([2**29, 0] * 50)):
        ranges = room._ranges(counts, 30)
        assert [first for first, _ in ranges] == [0, *(last for _, last in ranges[:-1])] and ranges[-1][1] == len(
            counts
        )
        assert max(counts[first:last].sum(dtype=np.int64) + 30 * (last - first) for first, last in ranges) < 2**31


# --- rows and products ---


@pytest.mark.parametrize("weighted", [False, True])
def test_some_rows_are_those_of_the_whole(weighted, block_entries):
    ids, weights = random_lists(500, 9, 0.1)
    made = symmetrise(ids, weights if weighted else None)
    whole = by_scipy(ids, weights if weighted else None, "sum")
    for nodes in (np.arange(500), np.int64([0, 3, 4, 250, 499]), np.int64([])):
        rows = made.rows(nodes)
        values = np.ones(len(rows.columns), np.float32) if rows.weights is None else rows.weights
        got = scipy.sparse.csr_matrix((values, rows.columns, rows.offsets), (len(nodes), 500)).toarray()
        np.testing.assert_allclose(got, whole[nodes].toarray(), rtol=1e-6)
        assert rows.n_rows == len(nodes) and (rows.weights is None) == (not weighted)


@pytest.mark.parametrize("weighted", [False, True])
def test_product_with_a_vector(weighted, block_entries):
    ids, weights = random_lists(500, 9, 0.1)
    vector = np.random.default_rng(1).standard_normal(500)
    made = symmetrise(ids, weights if weighted else None).times(vector)
    expected = by_scipy(ids, weights if weighted else None, "sum") @ vector
    assert made.dtype == np.float64
    np.testing.assert_allclose(made, expected, rtol=1e-6 if weighted else 1e-13, atol=1e-6 if weighted else 1e-13)


# --- weights of edges ---


def test_weights_of_edges_by_hand():
    similarities = np.float32([[1, 0.5, -0.25, -np.inf]])
    assert edge_weights(similarities, EdgeOptions()) is None
    assert edge_weights(similarities, EdgeOptions(weight=SimilarityWeight())).tolist() == [[1, 0.5, 0, 0]]
    vectors = np.array([[1, 0], [0.6, 0.8]], np.float32)
    squared_distance = ((vectors[0] - vectors[1]) ** 2).sum()
    gaussian = edge_weights(np.float32([[1, vectors[0] @ vectors[1]]]), EdgeOptions(weight=GaussianWeight(0.7)))
    np.testing.assert_allclose(gaussian, [[1, np.exp(-squared_distance / (2 * 0.7**2))]], rtol=1e-6)
    assert gaussian.dtype == np.float32
    assert edge_weights(np.float32([[-np.inf]]), EdgeOptions(weight=GaussianWeight())).item() == 0
