"""Matching networks with full context embeddings (Vinyals et al., NIPS 2016) on features: a bidirectional LSTM over the
support, an attention LSTM over each query, a softmax over support rows. In the form of the code released for
Hariharan & Girshick (ICCV 2017)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowshot.classifiers.tasks import numbered
from lowshot.core.artifacts import read_json, write_json
from lowshot.core.errors import InputError
from lowshot.core.seeds import stream
from lowshot.core.state_dicts import fill
from lowshot.data.features import Features, check_classes
from lowshot.data.protocol import Split

_NONE = np.iinfo(np.int64).max
_MOST_VALUES = 2**26  # of one tensor while scoring: 256 MB, of which a few are alive at a time


class MatchingNetwork(nn.Module):
    """Scores queries against a support that is read as one sequence, in the order given.

    Shapes: R runs side by side, each with its own support of S rows; Q queries that all runs share; D = `dim`.
    Scores are a query's cosines with the support rows times its own length, as released (Vinyals et al. have cosines
    alone): the length is the temperature of the softmax. Without it the loss stayed near that of chance.
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
        """(R, S, D), int64 (R, S) in 0..n_way-1 and (Q, D) to log-probabilities float32 (R, Q, n_way)."""
        return self.match(self.encode_support(support_features), support_labels, query_features, n_way)

    def encode_support(self, support_features: Tensor) -> Tensor:
        """G = S + forward output + backward output, (R, S, D) -> (R, S, D)."""
        forward, backward = self.encoder(support_features)[0].chunk(2, dim=-1)
        return support_features + forward + backward

    def match(self, support: Tensor, support_labels: Tensor, query_features: Tensor, n_way: int) -> Tensor:
        """The same with a `support` that is encoded already; a class without support gets -inf."""
        similarities = _unit_rows(support) @ self.embed_queries(query_features, support).mT
        return class_log_probabilities(similarities.float(), support_labels, n_way)

    def embed_queries(self, query_features: Tensor, support: Tensor) -> Tensor:
        """(Q, D) -> (R, Q, D): each read attends over the support (not normalised) and feeds the LSTM cell; the skip
        connection to the feature is part of the state that the next step starts from."""
        feature = query_features.expand(len(support), -1, -1)
        hidden, memory = feature, torch.zeros_like(feature)
        for _ in range(self.n_reads):
            read = F.scaled_dot_product_attention(hidden, support, support, scale=1.0)
            state = hidden.flatten(0, 1), memory.flatten(0, 1)
            hidden, memory = self.cell(torch.cat([feature, read], dim=-1).flatten(0, 1), state)
            hidden, memory = hidden.view_as(feature) + feature, memory.view_as(feature)
        return hidden


def _unit_rows(vectors: Tensor) -> Tensor:
    """Each row over its own length (the release, run on a torch of today, takes the wrong axis or stops here)."""
    return vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-5)


def class_log_probabilities(similarities: Tensor, labels: Tensor, n_way: int) -> Tensor:
    """Log of the softmax over support rows, summed by class: (R, S, Q) and int64 (R, S) -> (R, Q, n_way).

    Logsumexp by class minus that of all: no class with support underflows. Rows of a class may lie anywhere.
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
    """Write `model.pt` and the `config.json` that rebuilds it."""
    torch.save(model.state_dict(), folder / "model.pt")
    shape = {"dim": model.dim, "n_reads": model.n_reads}
    content = {**made_from, "schema": "lowshot-matching-1", "model": shape, "base_classes": base_classes}
    write_json(folder / "config.json", content)


def load_matching(folder: Path, split: Split, train: Features) -> MatchingNetwork:
    """The network of `folder` in evaluation mode.

    Raises InputError if it does not fit the features `train` (dimension, extractor) or was trained on other base
    classes than those of `split`.
    """
    content = read_json(Path(folder) / "config.json")
    try:
        model, base_classes = MatchingNetwork(**content["model"]), content["base_classes"]
        extractor = content["inputs"].get("extractor")
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}/config.json: does not describe a matching network ({error})") from None
    if model.dim != train.dim:
        raise InputError(f"{folder}: made for features of {model.dim} dimensions, but {train.path} has {train.dim}")
    if extractor and train.extractor and extractor != train.extractor:
        raise InputError(f"{folder}: trained on features of another extractor than {train.path}")
    if other := set(base_classes) ^ set(split.base_classes):
        raise InputError(f"{folder}: trained on another split: class {min(other)} is a base class of one of them only")
    fill(model, Path(folder) / "model.pt")
    return model.eval()


class ClassRows:
    """The rows of `features` by class: class i of `classes` (C,) owns rows[starts[i]:][: counts[i]], ascending.

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
        """`sizes` (m,) distinct rows of the classes at `positions` (m,), class after class, ascending in each."""
        offsets = draw_subsets(rng, self.counts[positions], sizes)
        return self.rows[np.repeat(self.starts[positions], sizes) + offsets]


def draw_subsets(rng: np.random.Generator, populations: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """For each i in turn, sizes[i] distinct numbers below populations[i], ascending: int64 (sum of sizes,).

    Floyd's algorithm (Bentley & Floyd 1987), a round for all i at once; every subset is equally likely.
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
    """Rows of the support (S,) with episode labels (S,) in 0..n_way-1, and a query row of each class (n_way,)."""

    support_rows: np.ndarray
    support_labels: np.ndarray
    query_rows: np.ndarray


def draw_episode(base: ClassRows, n_way: int, max_shots: int, seed: int, number: int) -> Episode:
    """Episode `number`: n_way classes in random order, 1..max_shots rows of each (uniform, or as many as it has) and
    one query row that may be among them, as published."""
    rng = stream(seed, "episode", number)
    positions = rng.permutation(len(base.classes))[:n_way]
    sizes = rng.integers(1, np.minimum(max_shots, base.counts[positions]), endpoint=True)
    support = base.draw(rng, positions, sizes)
    queries = base.draw(rng, positions, np.ones_like(sizes))
    return Episode(support, np.repeat(np.arange(n_way), sizes), queries)


def support_rows(base: ClassRows, shot_rows: np.ndarray, rows_per_class: int, seed: int, trial: int) -> np.ndarray:
    """The support of a run: `rows_per_class` random rows of every base class, then all shots (classes, n), sorted by
    row and repeated as a whole until each novel class has that many rows or more.

    The base rows hang on (seed, trial): runs of a trial share them, whatever their n.
    """
    positions = np.arange(len(base.classes))
    base_rows = base.draw(stream(seed, "support", trial), positions, np.full(len(positions), rows_per_class))
    n_repeats = -(-rows_per_class // shot_rows.shape[1])
    return np.concatenate([base_rows, np.tile(np.sort(shot_rows, axis=None), n_repeats)])


def runs_at_once(n_rows: int, dim: int) -> int:
    """How many supports of (n_rows, dim) go through the LSTM side by side."""
    return max(1, _MOST_VALUES // (n_rows * dim))


@torch.inference_mode()
def matching_scorer(
    model: MatchingNetwork, support_features: Tensor, support_labels: Tensor, n_classes: int
) -> tuple[Callable[[Tensor], Tensor], int]:
    """(scorer of (Q, D) queries -> (R, Q, n_classes), the most queries it should be given at a time).

    The supports (R, S, D) with labels int64 (R, S) are encoded here, once.
    """
    support = model.encode_support(support_features)

    def score(query_features: Tensor) -> Tensor:
        with torch.inference_mode():
            return model.match(support, support_labels, query_features, n_classes)

    return score, max(1, _MOST_VALUES // support_labels.numel())
