"""Cosine classifier with an attention-based generator of the weights of novel classes.

Source: Gidaris & Komodakis, CVPR 2018, in the form that they evaluate on ImageNet: features are computed once, and
dropout works on them. Departs from the paper in these points:

- The features are those that are given. The paper trains them with the cosine classifier, and without the last ReLU of
  the extractor. `--transform.centre` makes features negative, too.
- The generator learns from the base classes of the setup. The paper uses those of both setups.
- Numbers of steps, episodes and fake novel classes are fitted to 40 to 80 base classes.
- Every fake novel class of an episode has the same number of queries.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowshot.classifiers.problem import Problem, Run, Scorer, as_one_task, cosine_scorer
from lowshot.classifiers.settings import AttentionOptions
from lowshot.classifiers.tasks import class_means
from lowshot.core.errors import Diverged, InputError
from lowshot.core.progress import Progress
from lowshot.core.seeds import torch_stream

_MOMENTUM, _WEIGHT_DECAY = 0.9, 5e-4
# The rate of each part of a stage, relative to the first: .1, .006, .0012 and .00024, as in the paper.
_PARTS = ((1 / 3, 1.0), (2 / 3, 0.06), (5 / 6, 0.012), (1.0, 0.0024))
# Queries of a fake novel class. An episode has as many of base classes as of all fake novel classes, as in the paper.
_N_QUERIES = 3


class WeightGenerator(nn.Module):
    """Weights of B base classes, and what makes weights of novel classes from their shots (section 3.2).

    A shot z asks for the base classes that are like it: attention = softmax over base classes b of attention_scale *
    cosine(query z, key of b). The weight of a novel class is average * the mean of its unit-length shots + attended *
    the mean over its shots of the attention times the unit-length base weights, element by element.
    """

    def __init__(self, n_base: int, dim: int, scale: float, attention_scale: float, random: torch.Generator) -> None:
        super().__init__()
        base, keys = ((2 / dim) ** 0.5 * torch.randn(n_base, dim, generator=random) for _ in range(2))
        self.base, self.keys = nn.Parameter(base), nn.Parameter(keys)
        self.scale = nn.Parameter(torch.tensor(scale))
        self.attention_scale = nn.Parameter(torch.tensor(attention_scale))
        self.query = nn.Parameter(torch.eye(dim) + 0.001 * torch.randn(dim, dim, generator=random))
        self.query_bias = nn.Parameter(torch.zeros(dim))
        self.average, self.attended = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def attention(self, shots: Tensor, absent: Tensor) -> Tensor:
        """Return the attention (E, S, B) of unit-length shots (E, S, D). `absent` bool (E, B) marks classes without."""
        queries = F.normalize(shots @ self.query.T + self.query_bias, dim=-1)
        likeness = self.attention_scale * queries @ F.normalize(self.keys, dim=-1).T
        return likeness.masked_fill(absent[:, None], -torch.inf).softmax(-1)

    def novel_weights(self, shots: Tensor, labels: Tensor, n_way: int, absent: Tensor) -> Tensor:
        """Return weights (E, n_way, D) from shots (E, S, D) with labels (E, S) in 0..n_way-1."""
        shots = F.normalize(shots, dim=-1)
        of_base = self.attention(shots, absent) @ F.normalize(self.base, dim=-1)
        return class_means(self.average * shots + self.attended * of_base, labels, n_way)

    def forward(self, rows: Tensor, novel: Tensor, absent: Tensor) -> Tensor:
        """Return scores (E, Q, B + n_way) of rows (E, Q, D): base classes, of which `absent` score minus infinity, and
        novel classes with weights (E, n_way, D)."""
        weights = torch.cat([self.base.expand(len(novel), -1, -1), novel], 1)
        scores = self.scale * F.normalize(rows, dim=-1) @ F.normalize(weights, dim=-1).mT
        return scores.masked_fill(F.pad(absent, (0, novel.shape[1]))[:, None], -torch.inf)


class Episodes(NamedTuple):
    """E episodes: classes `absent` bool (E, B) from the base classes, `shots` (E, F * n, D) of these F fake novel
    classes, class after class, and `queries` (E, Q, D) with `targets` (E, Q): base class, or B + fake novel class."""

    absent: Tensor
    shots: Tensor
    queries: Tensor
    targets: Tensor


class _BaseRows:
    """Rows of the base classes: `feats` (N, D), `labels` (N,), and a `table` int64 (B, M) of the rows of each class, of
    which the first `counts` (B,) are rows."""

    def __init__(self, problem: Problem, device: str) -> None:
        labels = torch.from_numpy(np.unique(problem.base_labels, return_inverse=True)[1])
        self.feats, self.labels = torch.from_numpy(problem.base_feats).to(device), labels.to(device)
        self.counts = labels.bincount()
        order = labels.argsort(stable=True).split(self.counts.tolist())
        self.table = nn.utils.rnn.pad_sequence(order, batch_first=True)

    def draw(self, n_shot: int, n_fake: int, n_episodes: int, dropout: float, random: torch.Generator) -> Episodes:
        """Draw episodes. Shots and queries of an episode are different rows."""
        n_base, width = self.table.shape
        n_queries = min(_N_QUERIES, int(self.counts.min()) - n_shot)
        classes = torch.rand(n_episodes, n_base, generator=random).argsort(-1)
        fake, rest = classes[:, :n_fake], classes[:, n_fake:]
        keys = torch.rand(n_episodes, n_fake, width, generator=random)
        keys = keys.masked_fill(torch.arange(width) >= self.counts[fake, None], -1)
        rows = self.table[fake].gather(-1, keys.topk(n_shot + n_queries).indices)
        shots, novel = rows.split([n_shot, n_queries], -1)
        shape = n_episodes, n_fake * n_queries
        base = rest.gather(1, torch.randint(n_base - n_fake, shape, generator=random))
        places = (torch.rand(shape, generator=random, dtype=torch.float64) * self.counts[base]).long()
        queries = torch.cat([novel.flatten(1), self.table[base, places]], 1)
        numbers = n_base + torch.arange(n_fake).repeat_interleave(n_queries).expand(n_episodes, -1)
        absent = torch.zeros(n_episodes, n_base, dtype=torch.bool).scatter_(1, fake, True)
        shots, queries = (self._dropped(one, dropout, random) for one in (shots.flatten(1), queries))
        device = self.feats.device
        return Episodes(absent.to(device), shots, queries, torch.cat([numbers, base], 1).to(device))

    def _dropped(self, rows: Tensor, dropout: float, random: torch.Generator) -> Tensor:
        """Return features of `rows` with values set to zero. The others are not scaled: only directions count."""
        feats = self.feats[rows.to(self.feats.device)]
        return feats * (torch.rand(feats.shape, generator=random) >= dropout).to(feats.device)


def fit_attention(problem: Problem, options: AttentionOptions, seed: int, device: str) -> Scorer:
    """Train the base weights, and from them a generator for each n, which all runs of this n share.

    Stage 1 trains base weights and scale on all base rows. Stage 2 trains them further, with the generator, on
    episodes in which some base classes are absent and play novel classes. The loss is the cross-entropy over the other
    base classes and these. Novel classes of the runs are compared with all base classes. Rows that were added count as
    shots. Classes outside the setup score minus infinity.

    Raises InputError if there is only one base class, or one has no more rows than there are shots, and Diverged if the
    weights are not finite.
    """
    rows = _BaseRows(problem, device)
    _check_rows(rows, max(run.n_shot for run in problem.runs))
    first = _base_trained(rows, options, seed)
    models = {
        n: _generator_trained(copy.deepcopy(first), rows, n, options, seed)
        for n in dict.fromkeys(run.n_shot for run in problem.runs)
    }
    return cosine_scorer(problem, [_weights(models[run.n_shot], run) for run in problem.runs])


def _check_rows(rows: _BaseRows, n_shot: int) -> None:
    if len(rows.counts) < 2:
        raise InputError("attention: has one base class, and needs a second one. Use another --classifier")
    if n_shot >= (least := int(rows.counts.min())):
        raise InputError(
            f"attention: learns from {n_shot} shots and other rows of base classes, but one has only {least} rows. "
            f"Use --shots below {least} or another --classifier"
        )


def _base_trained(rows: _BaseRows, options: AttentionOptions, seed: int) -> WeightGenerator:
    """Return a new model with trained base weights and scale (stage 1)."""
    random, device = torch_stream(seed, "attention"), rows.feats.device
    sizes = len(rows.counts), rows.feats.shape[1]
    model = WeightGenerator(*sizes, options.scale, options.attention_scale, random).to(device)

    def loss() -> Tensor:
        drawn = torch.randint(len(rows.labels), (options.batch_size,), generator=random).to(device)
        scores = F.normalize(rows.feats[drawn], dim=-1) @ F.normalize(model.base, dim=-1).T
        return F.cross_entropy(model.scale * scores, rows.labels[drawn])

    _minimise([model.base, model.scale], loss, options, "base weights")
    return model


def _generator_trained(
    model: WeightGenerator, rows: _BaseRows, n_shot: int, options: AttentionOptions, seed: int
) -> WeightGenerator:
    """Train all of `model` on episodes with `n_shot` shots (stage 2)."""
    random = torch_stream(seed, "attention", n_shot)
    n_fake = min(options.n_fake_novel, len(rows.counts) // 2)
    labels = torch.arange(n_fake, device=rows.feats.device).repeat_interleave(n_shot).expand(options.n_episodes, -1)

    def loss() -> Tensor:
        drawn = rows.draw(n_shot, n_fake, options.n_episodes, options.dropout, random)
        novel = model.novel_weights(drawn.shots, labels, n_fake, drawn.absent)
        return F.cross_entropy(model(drawn.queries, novel, drawn.absent).flatten(0, 1), drawn.targets.flatten())

    _minimise(list(model.parameters()), loss, options, f"generator, n = {n_shot}")
    return model


def _minimise(parameters: list[nn.Parameter], loss: Callable[[], Tensor], options: AttentionOptions, what: str) -> None:
    """Take all steps of a stage: SGD with Nesterov momentum, and the rates of `_PARTS`."""
    optimizer = torch.optim.SGD(parameters, options.lr, momentum=_MOMENTUM, nesterov=True, weight_decay=_WEIGHT_DECAY)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: next(rate for end, rate in _PARTS if step <= end * options.n_steps)
    )
    for _ in Progress(range(options.n_steps), f"attention, {what}", unit="step"):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        rates.step()
    if not all(one.isfinite().all() for one in parameters):
        raise Diverged(f"attention.lr {options.lr:g}: the weights are not finite. Use a smaller one")


@torch.no_grad()
def _weights(model: WeightGenerator, run: Run) -> Tensor:
    """Return weights (C, D) of all base classes and the novel classes of a run; their length is the scale."""
    shots, labels, n_way = as_one_task(run.feats, run.labels, model.base.device)
    nobody = torch.zeros(1, len(model.base), dtype=torch.bool, device=model.base.device)
    novel = model.novel_weights(shots, labels, n_way, nobody)[0]
    return model.scale * F.normalize(torch.cat([model.base, novel]), dim=-1)
