"""The classifier of the CIFAR-100 analogy recipe: a three-layer MLP over base and novel features, all runs batched.

Follows the released TensorFlow code (github.com/ckghosted/few_shot_learning), with these departures:

- Rows are split into training and validation before novel rows are repeated, so that no copy is in both. Copies that
  an addition has made (`--add repetition`) stay together. With fewer than five different rows of each novel class,
  validation rows are of base classes only.
- The split is made within each class, so that no class loses its only shot to validation.
- The first epoch counts for early stopping.
- The validation loss is a mean over rows, not over batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lowshot.classifiers.heads import Head
from lowshot.classifiers.problem import Problem, Run, Scorer
from lowshot.classifiers.settings import MLPOptions
from lowshot.core.errors import InputError
from lowshot.core.progress import Progress
from lowshot.core.seeds import stream, torch_stream

_VALIDATION_SHARE = 0.2
_CHUNK_ROWS = 1000


@dataclass(frozen=True)
class _Rows:
    """Training and validation rows of a group of runs, as positions (n_runs, rows) in one pool of features."""

    pool: torch.Tensor
    labels: torch.Tensor
    train: torch.Tensor
    validation: torch.Tensor


def fit_mlp(problem: Problem, options: MLPOptions, seed: int, device: str) -> Scorer:
    """Train all runs. Runs with the same number of rows are batched. Each has its own random streams and early stop."""
    groups: dict[tuple[int, int], list[int]] = {}
    parts = [_split_and_repeat(problem, run, seed) for run in problem.runs]
    for i, (train, validation) in enumerate(parts):
        if len(validation) == 0:
            raise InputError(
                "mlp: early stopping holds out one row in five of each class, and no class has five training rows. "
                "Use another --classifier"
            )
        groups.setdefault((len(train), len(validation)), []).append(i)
    models = [
        _fit_group(problem, [problem.runs[i] for i in group], [parts[i] for i in group], options, seed, device)
        for group in groups.values()
    ]
    order = torch.tensor(np.argsort(np.concatenate(list(groups.values()))), device=device)
    return MLPScorer(models, order)


def shots_at_once(problem: Problem, device: str) -> list[list[int]]:
    """Return the positions of the runs to train at once: those of the same n, which have equally many rows."""
    numbers = dict.fromkeys(run.n_shot for run in problem.runs)
    return [[i for i, run in enumerate(problem.runs) if run.n_shot == n] for n in numbers]


class MLPScorer:
    """The scorer of `models`, each of several runs; `order` (n_runs,) are their places in the order of the problem."""

    def __init__(self, models: list[MLPs], order: torch.Tensor) -> None:
        self.models, self.order = models, order

    @torch.no_grad()
    def __call__(self, feats: torch.Tensor) -> torch.Tensor:
        return torch.cat([model(feats.expand(model.n_runs, -1, -1)) for model in self.models])[self.order]

    def head(self, run: int) -> Head:
        """Return the classifier of a run."""
        place = int(self.order[run])
        for model in self.models:
            if place < model.n_runs:
                return model.head(place)
            place -= model.n_runs
        raise IndexError(run)


def _split_and_repeat(problem: Problem, run: Run, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (training, validation) rows: base rows, then the run's novel rows, repeated to balance the classes."""
    rng = stream(seed, "mlp split", *run.key)
    per_base_class = len(problem.base_labels) // problem.n_base_classes
    n_repeats = max(1, per_base_class * problem.n_novel_classes // len(run.labels))
    base_held = _held_out(problem.base_labels, rng)
    originals = _originals(run)
    kept = np.unique(originals)
    novel_held = _held_out(run.labels[kept], rng)[np.searchsorted(kept, originals)]
    return tuple(
        np.concatenate([np.flatnonzero(base), len(base) + np.tile(np.flatnonzero(novel), n_repeats)])
        for base, novel in ((~base_held, ~novel_held), (base_held, novel_held))
    )


def _originals(run: Run) -> np.ndarray:
    """Return for each row of a run the first row (m,) that is equal, of the same class: the row that it repeats."""
    rows = np.column_stack([run.labels, np.ascontiguousarray(run.feats, np.float32).view(np.int32)])
    _, first, place = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first[place.ravel()]


def _held_out(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the mask (n,) of the validation rows: a fifth of each class, rounded down."""
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(len(labels)) - np.repeat(starts, sizes)
    held = np.zeros(len(labels), bool)
    held[order] = place < np.repeat(np.floor(_VALIDATION_SHARE * sizes), sizes)
    return held


class MLPs(nn.Module):
    """`n_runs` independent networks in batched tensors: D -> hidden -> hidden -> n_classes, batch norm and ReLU."""

    def __init__(self, n_runs: int, dim: int, hidden: int, n_classes: int) -> None:
        super().__init__()
        self.n_runs = n_runs
        widths = [(dim, hidden), (hidden, hidden), (hidden, n_classes)]
        self.matrices = nn.ParameterList([nn.Parameter(torch.empty(n_runs, *width)) for width in widths])
        self.norms = nn.ModuleList([nn.BatchNorm1d(n_runs * hidden) for _ in range(2)])
        self.bias = nn.Parameter(torch.zeros(n_runs, 1, n_classes))

    def forward(self, feats: torch.Tensor) -> torch.Tensor:
        """(n_runs, rows, D) -> (n_runs, rows, n_classes)."""
        for matrix, norm in zip(self.matrices, self.norms):
            hidden = torch.bmm(feats, matrix).transpose(0, 1)
            channels = norm(hidden.reshape(len(hidden), -1)).relu()
            feats = channels.view(hidden.shape).transpose(0, 1)
        return torch.baddbmm(self.bias, feats, self.matrices[2])

    def head(self, run: int) -> Head:
        """Return the network of a run with batch norm, as it is in evaluation mode, merged into the linear layers."""
        layers = []
        for matrix, norm in zip(self.matrices, self.norms):
            mean, variance, weight, bias = (
                one.detach().view(self.n_runs, -1)[run].cpu()
                for one in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            )
            scale = weight / (variance + norm.eps).sqrt()
            layers.append(((matrix.detach()[run].cpu() * scale).T, bias - mean * scale))
        return Head([*layers, (self.matrices[2].detach()[run].cpu().T, self.bias.detach()[run, 0].cpu())])

    def initialise(self, runs: list[Run], seed: int) -> None:
        """Draw weights from N(0, 0.02), each run from its own stream."""
        generators = [torch_stream(seed, "mlp", *run.key) for run in runs]
        for matrix in self.matrices:
            for weights, generator in zip(matrix.data, generators):
                weights.normal_(0, 0.02, generator=generator)

    def by_run(self) -> Iterator[torch.Tensor]:
        """Yield every parameter and running statistic, viewed as (n_runs, ...)."""
        for tensor in self.state_dict().values():
            if tensor.ndim > 0:
                yield tensor.view(self.n_runs, -1)


def _fit_group(problem: Problem, runs: list[Run], parts: list, options: MLPOptions, seed: int, device: str) -> MLPs:
    """Train runs of one size together, with early stopping. Return them with their best weights, in evaluation mode."""
    rows = _gather(problem, runs, parts, device)
    model = MLPs(len(runs), problem.dim, options.hidden, problem.n_classes)
    model.initialise(runs, seed)
    model.to(device)
    decayed = [*model.matrices, model.bias]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": list(model.norms.parameters())}]
    optimiser = torch.optim.Adam(groups, lr=options.lr, betas=(0.5, 0.999))
    best = [tensor.clone() for tensor in model.by_run()]
    best_loss = torch.full((len(runs),), torch.inf, device=device)
    n_worse = torch.zeros(len(runs), dtype=torch.int64, device=device)
    for epoch in Progress(range(options.max_epochs), f"mlp, {len(runs)} runs", unit="epoch"):
        _train_epoch(model, optimiser, rows, _orders(runs, seed, epoch, rows.train).to(device), options.batch_size)
        loss = _validation_loss(model, rows)
        improved = (loss < best_loss) & (n_worse < options.patience)
        for kept, now in zip(best, model.by_run()):
            kept[improved] = now[improved]
        best_loss = torch.where(improved, loss, best_loss)
        # a run that has reached its patience stays stopped
        n_worse = torch.where(improved, 0, n_worse + 1)
        if (n_worse >= options.patience).all():
            break
    for kept, now in zip(best, model.by_run()):
        now.copy_(kept)
    return model.eval()


def _gather(problem: Problem, runs: list[Run], parts: list, device: str) -> _Rows:
    """Return one pool of base rows and the novel rows of all runs, and the parts of the runs as positions in it."""
    n_base = len(problem.base_labels)
    pool = np.concatenate([problem.base_feats, *(run.feats for run in runs)])
    labels = np.concatenate([problem.base_labels, *(run.labels for run in runs)])
    offsets = np.cumsum([0, *(len(run.labels) for run in runs[:-1])])
    shifted = [[np.where(rows < n_base, rows, rows + shift) for rows in part] for part, shift in zip(parts, offsets)]
    train, validation = (torch.from_numpy(np.stack(rows)).to(device) for rows in zip(*shifted))
    return _Rows(torch.from_numpy(pool).to(device), torch.from_numpy(labels).to(device), train, validation)


def _orders(runs: list[Run], seed: int, epoch: int, train: torch.Tensor) -> torch.Tensor:
    """Return the order (n_runs, rows) in which each run sees its training rows in this epoch."""
    n_rows = train.shape[1]
    return torch.from_numpy(np.stack([stream(seed, "mlp order", *run.key, epoch).permutation(n_rows) for run in runs]))


def _train_epoch(model: MLPs, optimiser: torch.optim.Adam, rows: _Rows, orders: torch.Tensor, batch_size: int) -> None:
    model.train()
    shuffled = rows.train.gather(1, orders)
    for batch in shuffled.split(batch_size, dim=1):
        if batch.shape[1] == 1:  # batch norm needs two rows; the row is used in other epochs
            continue
        logits = model(rows.pool[batch])
        # The sum over runs of each run's mean: no run's gradient depends on the others.
        loss = F.cross_entropy(logits.flatten(0, 1), rows.labels[batch].flatten()) * len(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@torch.no_grad()
def _validation_loss(model: MLPs, rows: _Rows) -> torch.Tensor:
    """Return the mean cross-entropy (n_runs,) of the validation rows."""
    model.eval()
    total = torch.zeros(model.n_runs, device=rows.pool.device)
    for chunk in rows.validation.split(_CHUNK_ROWS, dim=1):
        losses = F.cross_entropy(model(rows.pool[chunk]).flatten(0, 1), rows.labels[chunk].flatten(), reduction="none")
        total += losses.view(chunk.shape).sum(1)
    return total / rows.validation.shape[1]
