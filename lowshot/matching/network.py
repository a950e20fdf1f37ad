"""Matching networks with full context embeddings (Vinyals et al., NIPS 2016) on features.

A bidirectional LSTM encodes the support, an attention LSTM encodes each query, and a softmax over support rows
classifies it. Follows the code released for Hariharan & Girshick (ICCV 2017).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowshot.classifiers.tasks import numbered
from lowshot.core.artifacts import stored_recipe
from lowshot.core.errors import InputError
from lowshot.core.files import read_json, write_json
from lowshot.core.seeds import stream
from lowshot.core.state_dicts import fill, save_state
from lowshot.data.features import Features, check_classes
from lowshot.data.protocol import Split

_RETRAIN = "Train a network on the same features and split"
_NONE = np.iinfo(np.int64).max
_MOST_VALUES = 2**26  # maximum size of a tensor while scoring: 256 MB; a few such tensors exist at a time


class MatchingNetwork(nn.Module):
    """Scores queries against a support set that is read as one sequence, in the given order.

    Shapes: R batched runs, each with its own support of S rows; Q queries, shared by all runs; D = `dim`.

    A score is the cosine of a query and a support row, times the length of the query as in the released code (Vinyals
    et al. use the cosine only). The length acts as the inverse temperature of the softmax. Without it the loss stayed
    near chance level.
    """

    def __init__(self, dim: int, n_reads: int = 5) -> None:
        super().__init__()
        self.n_reads = n_reads
        self.encoder = nn.LSTM(dim, dim, bidirectional=True, batch_first=True)
        self.cell = nn.LSTMCell(2 * dim, dim)

    @property
    def dim(self) -> int:
        return self.cell.hidden_size

    def forward(self, support_features: Tensor, support_labels: Tensor, query_features: Tensor, n_way: int) -> Tensor:
        """Return log-probabilities float32 (R, Q, n_way).

        Args:
            support_features: (R, S, D).
            support_labels: int64 (R, S) in 0..n_way-1.
            query_features: (Q, D).
        """
        return self.match(self.encode_support(support_features), support_labels, query_features, n_way)

    def encode_support(self, support_features: Tensor) -> Tensor:
        """Return G = S + forward output + backward output, (R, S, D) -> (R, S, D)."""
        forward, backward = self.encoder(support_features)[0].chunk(2, dim=-1)
        return support_features + forward + backward

    def match(self, support: Tensor, support_labels: Tensor, query_features: Tensor, n_way: int) -> Tensor:
        """Like `forward`, for an encoded `support`. A class without support rows gets -inf."""
        similarities = _unit_rows(support) @ self.embed_queries(query_features, support).mT
        return class_log_probabilities(similarities.float(), support_labels, n_way)

    def embed_queries(self, query_features: Tensor, support: Tensor) -> Tensor:
        """Return the encoded queries, (Q, D) -> (R, Q, D).

        Each read attends over the support (not normalised) and feeds the LSTM cell. The skip connection to the feature
        is part of the state that the next step starts from.
        """
        feature = query_features.expand(len(support), -1, -1)
        hidden, memory = feature, torch.zeros_like(feature)
        for _ in range(self.n_reads):
            read = F.scaled_dot_product_attention(hidden, support, support, scale=1.0)
            state = hidden.flatten(0, 1), memory.flatten(0, 1)
            hidden, memory = self.cell(torch.cat([feature, read], dim=-1).flatten(0, 1), state)
            hidden, memory = hidden.view_as(feature) + feature, memory.view_as(feature)
        return hidden


def _unit_rows(vectors: Tensor) -> Tensor:
    """Divide each row by its length. With current torch, the released code uses the wrong axis or fails here."""
    return vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-5)


def class_log_probabilities(similarities: Tensor, labels: Tensor, n_way: int) -> Tensor:
    """Return the log of the softmax over support rows, summed per class: (R, S, Q), int64 (R, S) -> (R, Q, n_way).

    Computed as logsumexp per class minus logsumexp of all classes, so that no class with support underflows. The rows
    of a class need not be adjacent.
    """
    n_runs, _, n_query = similarities.shape
    cells = numbered(labels, n_way)
    rows = similarities.flatten(0, 1)
    with torch.no_grad():  # the shift cancels
        nothing = rows.new_full((n_runs * n_way, n_query), -torch.inf)
        peaks = nothing.scatter_reduce(0, cells[:, None].expand(-1, n_query), rows, "amax")
    sums = torch.zeros_like(peaks).index_add(0, cells, (rows - peaks[cells]).exp())
    by_class = (peaks + sums.log()).view(n_runs, n_way, n_query).mT
    return by_class - by_class.logsumexp(dim=-1, keepdim=True)


def save_matching(folder: Path, model: MatchingNetwork, base_classes: list[int], made_from: dict) -> None:
    """Write `model.pt` and the `config.json` that rebuilds the network."""
    save_state(model.state_dict(), folder / "model.pt")
    shape = {"dim": model.dim, "n_reads": model.n_reads}
    content = {**made_from, "schema": "lowshot-matching-1", "model": shape, "base_classes": base_classes}
    write_json(folder / "config.json", content)


def load_matching(folder: Path, split: Split, train: Features) -> MatchingNetwork:
    """Load the network of `folder`, in evaluation mode.

    Raises InputError if it was trained on features of another dimension or extractor than `train`, or on other base
    classes than those of `split`.
    """
    content = read_json(Path(folder) / "config.json")
    try:
        model, base_classes = MatchingNetwork(**content["model"]), {int(c) for c in content["base_classes"]}
        extractor = stored_recipe(folder)["inputs"].get("extractor")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}/config.json: not a matching network ({error}). Train one with matching_network.py train"
        ) from None
    if model.dim != train.dim:
        raise InputError(
            f"{folder}: trained on features of {model.dim} dimensions, but {train.path} has {train.dim}. {_RETRAIN}"
        )
    if extractor and train.extractor and extractor != train.extractor:
        raise InputError(f"{folder}: trained on features of another extractor than {train.path}. {_RETRAIN}")
    if other := base_classes ^ set(split.base_classes):
        raise InputError(
            f"{folder}: trained on another split (class {min(other)} is a base class in only one of them). {_RETRAIN}"
        )
    fill(model, Path(folder) / "model.pt")
    return model.eval()


class ClassRows:
    """Rows of `features` by class. Class i of `classes` (C,) has rows[starts[i]:][: counts[i]], in ascending order.

    Raises InputError for a class without rows.
    """

    def __init__(self, features: Features, classes: np.ndarray, split: Split) -> None:
        self.classes = np.asarray(classes)
        check_classes(features, self.classes, split.class_names)
        self.rows = np.argsort(features.labels, kind="stable")
        labels = features.labels[self.rows]
        self.starts = np.searchsorted(labels, self.classes)
        self.counts = np.searchsorted(labels, self.classes, side="right") - self.starts

    def draw(self, rng: np.random.Generator, positions: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Draw `sizes` (m,) distinct rows of the classes at `positions` (m,), class after class, each ascending."""
        offsets = draw_subsets(rng, self.counts[positions], sizes)
        return self.rows[np.repeat(self.starts[positions], sizes) + offsets]


def draw_subsets(rng: np.random.Generator, populations: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Draw for each i sizes[i] distinct integers below populations[i], in ascending order: int64 (sum of sizes,).

    Floyd's algorithm (Bentley & Floyd 1987), vectorised over i. Every subset is equally likely.
    """
    uniforms = rng.random((len(sizes), sizes.max()))
    drawn = np.full(uniforms.shape, _NONE)
    for j in range(drawn.shape[1]):
        last = populations - sizes + j
        pick = (uniforms[:, j] * (last + 1)).astype(np.int64)
        pick = np.where((drawn == pick[:, None]).any(axis=1), last, pick)
        drawn[:, j] = np.where(j < sizes, pick, _NONE)
    drawn.sort(axis=1)
    return drawn[drawn != _NONE]


@dataclass(frozen=True)
class Episode:
    """Support rows (S,) with episode labels (S,) in 0..n_way-1, and one query row per class (n_way,)."""

    support_rows: np.ndarray
    support_labels: np.ndarray
    query_rows: np.ndarray


def draw_episode(base: ClassRows, n_way: int, max_shots: int, seed: int, number: int) -> Episode:
    """Draw episode `number`: n_way classes in random order, with 1..max_shots support rows and one query row each.

    The number of support rows is uniform and limited by the rows of the class. As published, the query may be one of
    the support rows.
    """
    rng = stream(seed, "episode", number)
    positions = rng.permutation(len(base.classes))[:n_way]
    sizes = rng.integers(1, np.minimum(max_shots, base.counts[positions]), endpoint=True)
    support = base.draw(rng, positions, sizes)
    queries = base.draw(rng, positions, np.ones_like(sizes))
    return Episode(support, np.repeat(np.arange(n_way), sizes), queries)


def support_rows(base: ClassRows, shot_rows: np.ndarray, rows_per_class: int, seed: int, trial: int) -> np.ndarray:
    """Return the support of a run: `rows_per_class` random rows of every base class, then all shots (classes, n).

    The shots are sorted by row and repeated as a whole until each novel class has at least `rows_per_class` rows. The
    base rows depend on (seed, trial) only, so the runs of a trial share them for all n.
    """
    positions = np.arange(len(base.classes))
    base_rows = base.draw(stream(seed, "support", trial), positions, np.full(len(positions), rows_per_class))
    n_repeats = -(-rows_per_class // shot_rows.shape[1])
    return np.concatenate([base_rows, np.tile(np.sort(shot_rows, axis=None), n_repeats)])


def runs_at_once(n_rows: int, dim: int) -> int:
    """Return how many supports of shape (n_rows, dim) to encode in one batch."""
    return max(1, _MOST_VALUES // (n_rows * dim))


@torch.inference_mode()
def matching_scorer(
    model: MatchingNetwork, support_features: Tensor, support_labels: Tensor, n_classes: int
) -> tuple[Callable[[Tensor], Tensor], int]:
    """Return a scorer of queries, (Q, D) -> (R, Q, n_classes), and the maximum number of queries per call.

    Encodes the supports (R, S, D) with labels int64 (R, S) once.
    """
    support = model.encode_support(support_features)

    def score(query_features: Tensor) -> Tensor:
        with torch.inference_mode():
            return model.match(support, support_labels, query_features, n_classes)

    return score, max(1, _MOST_VALUES // support_labels.numel())
