"""Label propagation: comparison with the published iteration in float64, and invariances of the result."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_adjacency import by_scipy, random_lists

from lowshot.diffusion import adjacency as adjacency_room
from lowshot.diffusion import propagation as room
from lowshot.diffusion.adjacency import symmetrise
from lowshot.diffusion.propagation import Labels, Spread, Work, assign, propagate
from lowshot.diffusion.settings import StepOptions

OPTIONS = [StepOptions(), StepOptions(restart=0.3), StepOptions(clamp=True), StepOptions(restart=0.3, clamp=True)]
NAMES = ["published", "restart", "clamp", "both"]


def labelled(n_nodes: int, n_columns: int, n_labelled: int, seed: int = 0) -> Labels:
    """Random labels in which every column has a labelled node."""
    rng = np.random.default_rng(seed)
    nodes = np.sort(rng.choice(n_nodes, n_labelled, replace=False)).astype(np.int64)
    columns = rng.permutation(np.arange(n_labelled) % n_columns).astype(np.int64)
    return Labels(nodes, columns, n_columns)


def one_hot(labels: Labels, n_nodes: int) -> np.ndarray:
    dense = np.zeros((n_nodes, labels.n_columns))
    dense[labels.nodes, labels.columns] = 1
    return dense


def walk(ids, weights=None, how="sum"):
    """W = D^-1 S in float64; rows of nodes without neighbours are zero."""
    s = by_scipy(ids, weights, how).astype(np.float64)
    degrees = np.asarray(s.sum(1))[:, 0]
    return s.multiply(np.divide(1, degrees, out=np.zeros_like(degrees), where=degrees > 0)[:, None]).tocsr()


def normalised(states: np.ndarray) -> np.ndarray:
    sums = states.sum(0)
    return states / np.where(sums > 0, sums, 1)


def iterate(w, initial: np.ndarray, n_steps: int, options: StepOptions) -> np.ndarray:
    """Unscaled states after every step."""
    states, clamped = [initial], initial.any(1)
    for _ in range(n_steps):
        state = (1 - options.restart) * (w @ states[-1]) + options.restart * initial
        if options.clamp:
            state[clamped] = initial[clamped]
        states.append(state)
    return states


def neighbour_sums(state: np.ndarray, test_ids: np.ndarray) -> np.ndarray:
    padded = np.concatenate([state, np.zeros((1, state.shape[1]))])  # id -1 selects the zero row
    return padded[test_ids].sum(1)


@pytest.fixture(scope="module")
def graph():
    """(ids, weights, labels of 11 columns, test_ids) of 700 nodes, with missing neighbours."""
    ids, weights = random_lists(700, 8, 0.05)
    ids[:, 0] = np.arange(700)
    rng = np.random.default_rng(2)
    test_ids = rng.integers(-1, 700, (40, 8)).astype(np.int32)
    test_ids[5] = -1
    return ids, weights, labelled(700, 11, 60), test_ids


# --- the published iteration ---


def test_one_scaling_at_the_end_is_the_published_iteration():
    """2000 nodes in float64: scaling the columns at every step, at the end, by sums of a vector, and in our code."""
    ids, _ = random_lists(2000, 12)
    labels, n_steps = labelled(2000, 20, 90), 4
    initial, w = one_hot(labels, 2000), walk(ids)
    every_step = normalised(initial)
    unscaled, u = initial, np.ones(2000)
    for _ in range(n_steps):
        every_step = normalised(w @ every_step)
        unscaled, u = w @ unscaled, w.T @ u
    sums = u @ initial
    assert np.abs(normalised(unscaled) - every_step).max() < 1e-12
    assert np.abs(unscaled / sums - every_step).max() < 1e-12

    test_ids = np.random.default_rng(1).integers(0, 2000, (100, 12)).astype(np.int32)
    ours = propagate(symmetrise(ids), labels, test_ids, [n_steps])[n_steps]
    expected = neighbour_sums(every_step, test_ids)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=1e-12)
    own_sums = Spread(symmetrise(ids), labels, labels.nodes, StepOptions(), "cpu").column_sums(n_steps)
    np.testing.assert_allclose(own_sums[n_steps], sums, rtol=1e-6)
    np.testing.assert_array_equal(own_sums[0], initial.sum(0))


@pytest.mark.parametrize("how", ["sum", "max", "mutual"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_every_option_equals_a_dense_iteration(graph, options, weighted, how):
    ids, weights, labels, test_ids = graph
    weights = weights if weighted else None
    states = iterate(walk(ids, weights, how), one_hot(labels, 700), 4, options)
    ours = propagate(symmetrise(ids, weights, how), labels, test_ids, [0, 1, 3, 4], options)
    assert sorted(ours) == [0, 1, 3, 4]
    for step, scores in ours.items():
        np.testing.assert_allclose(scores, neighbour_sums(normalised(states[step]), test_ids), rtol=1e-5, atol=1e-9)
        assert (scores[5] == 0).all()  # an image without neighbours


def test_clamped_nodes_keep_their_labels(graph):
    ids, _, labels, _ = graph
    spread = Spread(symmetrise(ids), labels, np.arange(700), StepOptions(clamp=True), "cpu")
    for _, state in spread.columns(0, 11, [1, 2, 3], "float32"):
        np.testing.assert_array_equal(state[labels.nodes].numpy(), one_hot(labels, 700)[labels.nodes])


def test_full_restart_is_no_step(graph):
    ids, _, labels, test_ids = graph
    scores = propagate(symmetrise(ids), labels, test_ids, [0, 3], StepOptions(restart=1.0))
    np.testing.assert_array_equal(scores[0], scores[3])


def test_three_nodes_by_hand():
    """A chain 0 - 1 - 2 with self-loops, so S has 2 on the diagonal. Node 0 has class 0, node 2 has class 1."""
    ids = np.int32([[0, 1, -1], [1, 0, 2], [2, 1, -1]])
    scores = propagate(
        symmetrise(ids), Labels(np.int64([0, 2]), np.int64([0, 1]), 2), np.int32([[0], [1], [2]]), [1, 2]
    )
    # W = [[1/2, 1/2, 0], [1/3, 1/3, 1/3], [0, 1/2, 1/2]]; W e_0 = (1/2, 1/3, 0), sum 5/6
    np.testing.assert_allclose(scores[1][:, 0], [0.6, 0.4, 0], rtol=1e-6)
    np.testing.assert_allclose(scores[1][:, 1], [0, 0.4, 0.6], rtol=1e-6)
    # W (1/2, 1/3, 0) = (5/12, 5/18, 1/6), sum 31/36
    np.testing.assert_allclose(scores[2][:, 0], np.array([15, 10, 6]) / 31, rtol=1e-6)


# --- invariances, to the last bit ---

KINDS = [("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True)]


@pytest.mark.parametrize("n_steps", [1, 2, 3])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]], ids=["published", "both"])
@pytest.mark.parametrize(("precision", "weighted"), KINDS)
def test_rows_that_are_needed_are_those_of_the_whole(graph, monkeypatch, precision, weighted, options, n_steps):
    monkeypatch.setattr(adjacency_room, "_ENTRIES_PER_RANGE", 2000)
    ids, weights, labels, test_ids = graph
    matrix = symmetrise(ids, weights if weighted else None)
    needed = np.unique(test_ids[test_ids >= 0]).astype(np.int64)
    assert len(needed) < 700
    whole = Spread(matrix, labels, np.arange(700), options, "cpu")
    part = Spread(matrix, labels, needed, options, "cpu")
    (_, every), (_, some) = (next(one.columns(2, 9, [n_steps], precision)) for one in (whole, part))
    assert torch.equal(every[needed], some) and some.any()


@pytest.mark.parametrize(("precision", "weighted"), KINDS)
def test_slices_and_processes_change_no_bit(graph, precision, weighted):
    ids, weights, labels, test_ids = graph
    matrix, options = symmetrise(ids, weights if weighted else None), StepOptions(restart=0.1)
    steps = [0, 1, 2, 3]
    expected = propagate(matrix, labels, test_ids, steps, options, precision, Work(slice_width=11))
    assigned = assign(matrix, labels, 3, options, precision, Work(slice_width=11))
    for width in (1, 7, 64):
        scores = propagate(matrix, labels, test_ids, steps, options, precision, Work(slice_width=width))
        for step in steps:
            np.testing.assert_array_equal(scores[step], expected[step])
        shares = [
            propagate(matrix, labels, test_ids, steps, options, precision, Work("cpu", width, i, 3)) for i in range(3)
        ]
        for step in steps:
            np.testing.assert_array_equal(sum(share[step] for share in shares), expected[step])
        columns, values = assign(matrix, labels, 3, options, precision, Work(slice_width=width))
        np.testing.assert_array_equal(columns, assigned[0])
        np.testing.assert_array_equal(values, assigned[1])


@pytest.mark.parametrize("constant", ["_BLOCK_ROWS", "_FEW_COLUMNS"])
@pytest.mark.parametrize("size", [1, 5, 700])
def test_block_sizes_change_no_bit(graph, monkeypatch, constant, size):
    ids, weights, labels, test_ids = graph
    expected = propagate(symmetrise(ids, weights), labels, test_ids, [3])[3]
    monkeypatch.setattr(room, constant, size)
    monkeypatch.setattr(adjacency_room, "_ENTRIES_PER_RANGE", 2000)
    np.testing.assert_array_equal(propagate(symmetrise(ids, weights), labels, test_ids, [3])[3], expected)


@pytest.mark.parametrize("block_rows", [1, 5, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_product_equals_scipy(monkeypatch, weighted, block_rows):
    """100 nodes with 30 neighbours, and 60 columns in which 70 % of the entries are zero."""
    monkeypatch.setattr(room, "_BLOCK_ROWS", block_rows)
    monkeypatch.setattr(adjacency_room, "_ENTRIES_PER_RANGE", 2000)
    ids, weights = random_lists(100, 30)
    weights = weights if weighted else None
    matrix = symmetrise(ids, weights)
    rng = np.random.default_rng(123)
    state = np.where(rng.random((100, 60)) < 0.7, 0, rng.random((100, 60))).astype(np.float32)
    spread = Spread(matrix, Labels(np.int64([0]), np.int64([0]), 1), np.int64([0]), StepOptions(), "cpu")
    product = room._product(spread.all_rows, torch.from_numpy(state)).numpy()
    expected = walk(ids, weights) @ state.astype(np.float64)
    assert np.abs(product - expected).sum() / np.abs(expected).sum() < 1e-6


def test_steps_requested_together_equal_steps_requested_alone(graph):
    ids, _, labels, test_ids = graph
    matrix = symmetrise(ids)
    together = propagate(matrix, labels, test_ids, [0, 1, 2, 3, 4])
    for step, scores in together.items():
        np.testing.assert_array_equal(propagate(matrix, labels, test_ids, [step])[step], scores)


def test_threads_change_no_bit(graph):
    ids, weights, labels, test_ids = graph
    matrix = symmetrise(ids, weights)
    expected = propagate(matrix, labels, test_ids, [3])[3]
    torch.set_num_threads(3)
    try:
        np.testing.assert_array_equal(propagate(matrix, labels, test_ids, [3])[3], expected)
    finally:
        torch.set_num_threads(1)


@settings(max_examples=20, deadline=None)
@given(st.permutations(list(range(11))))
def test_classes_may_have_any_numbers(graph_of_numbers, numbers):
    matrix, labels, test_ids, expected = graph_of_numbers
    renumbered = replace(labels, columns=np.array(numbers)[labels.columns])
    np.testing.assert_array_equal(propagate(matrix, renumbered, test_ids, [2])[2][:, numbers], expected)


@pytest.fixture(scope="module")
def graph_of_numbers(graph):
    ids, _, labels, test_ids = graph
    matrix = symmetrise(ids)
    return matrix, labels, test_ids, propagate(matrix, labels, test_ids, [2])[2]


# --- precision ---


def test_bfloat16_is_close(graph):
    ids, weights, labels, test_ids = graph
    for own in (None, weights):
        exact, rough = (
            propagate(symmetrise(ids, own), labels, test_ids, [3], None, p)[3] for p in ("float32", "bfloat16")
        )
        assert rough.dtype == np.float32 and not np.array_equal(exact, rough)
        np.testing.assert_allclose(rough, exact, rtol=0.03, atol=0.01 * exact.max())


def test_bfloat16_counts_a_hub(graph):
    """1000 labelled images list one node. A count in bfloat16 would stop at 256."""
    ids = np.stack([np.arange(1001), np.full(1001, 1000)], 1).astype(np.int32)
    ids[1000, 1] = -1
    labels = Labels(np.arange(1000), np.zeros(1000, np.int64), 1)
    (_, state), *_ = Spread(symmetrise(ids), labels, np.arange(1001), StepOptions(), "cpu").columns(
        0, 1, [1], "bfloat16"
    )
    assert state[1000].item() == pytest.approx(1000 / 1002, rel=0.004)


def test_scaled_columns_of_ten_million_nodes_sum_to_one():
    """A ring in which every node lists the next. A sequential float32 sum of such a column is off by 6 %."""
    n = 10_000_000
    matrix = symmetrise(np.roll(np.arange(n, dtype=np.int32), -1)[:, None])
    labels = Labels(np.arange(0, n, 20), np.zeros(n // 20, np.int64), 1)
    scale = room._inverse(Spread(matrix, labels, np.int64([0]), StepOptions(), "cpu").column_sums(2))[2]
    for _, state in Spread(matrix, labels, np.arange(n), StepOptions(), "cpu").columns(0, 1, [2], "float32"):
        assert (state.numpy() * scale).sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)


# --- unusual graphs ---


def test_a_node_without_neighbours(graph):
    """It has no neighbours to average: its row is zero after a step, and so is a column with no other labelled node."""
    ids, _, _, _ = graph
    ids = np.where(ids == 9, -1, ids)
    ids[9] = -1
    labels = Labels(np.int64([9, 20]), np.int64([1, 0]), 2)
    scores = propagate(symmetrise(ids), labels, np.int32([[9, -1], [20, 9]]), [0, 1, 3])
    assert scores[0].tolist() == [[0, 1], [1, 1]]
    for step in (1, 3):
        assert np.isfinite(scores[step]).all() and (scores[step][:, 1] == 0).all() and scores[step][1, 0] > 0
    kept = propagate(symmetrise(ids), labels, np.int32([[9, -1]]), [3], StepOptions(clamp=True))[3]
    assert kept.tolist() == [[0, 1]]


def test_a_class_without_labelled_nodes_scores_zero(graph):
    ids, _, labels, test_ids = graph
    wider = replace(labels, n_columns=13)
    scores = propagate(symmetrise(ids), wider, test_ids, [2])[2]
    np.testing.assert_array_equal(scores[:, :11], propagate(symmetrise(ids), labels, test_ids, [2])[2])
    assert (scores[:, 11:] == 0).all()


@pytest.mark.parametrize("steps", [[0], [1], [2], [0, 1, 2]])
def test_images_without_any_neighbour(graph, steps):
    ids, _, labels, _ = graph
    scores = propagate(symmetrise(ids), labels, np.full((3, 4), -1, np.int32), steps)
    for step in steps:
        assert scores[step].shape == (3, 11) and not scores[step].any()


def test_every_node_is_needed(graph):
    ids, _, labels, _ = graph
    everyone = np.arange(700, dtype=np.int32)[:, None]
    state = iterate(walk(ids), one_hot(labels, 700), 2, StepOptions())[2]
    scores = propagate(symmetrise(ids), labels, everyone, [2])[2]
    np.testing.assert_allclose(scores, normalised(state), rtol=1e-5, atol=1e-10)


# --- labels for unlabelled nodes ---


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_nodes_are_assigned_the_class_of_their_highest_entry(graph, options):
    ids, _, labels, _ = graph
    state = normalised(iterate(walk(ids), one_hot(labels, 700), 2, options)[2])
    columns, values = assign(symmetrise(ids), labels, 2, options, "float32", Work(slice_width=4))
    np.testing.assert_allclose(values, state.max(1), rtol=1e-5)
    clear = np.diff(np.sort(state, 1)[:, -2:], axis=1)[:, 0] > 1e-6
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(columns[clear], state.argmax(1)[clear])


@pytest.mark.parametrize("width", [1, 2, 64])
def test_of_equal_entries_the_lowest_class_is_assigned(width):
    """Node 1 is between two labelled nodes; no label reaches node 3."""
    ids = np.int32([[0, 1], [1, 2], [2, -1], [3, -1]])
    matrix = symmetrise(np.int32([[0, 1, -1], [1, 0, 2], [2, 1, -1], [3, -1, -1]]))
    columns, values = assign(matrix, Labels(np.int64([0, 2]), np.int64([2, 1]), 3), 1, work=Work(slice_width=width))
    assert columns.tolist() == [2, 1, 1, 0] and values[3] == 0 and values[1] > 0
    assert len(ids) == len(values)
