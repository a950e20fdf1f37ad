"""Train an analogy generator on quadruplets, by the rules of both papers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowshot.core import health
from lowshot.core.errors import InputError
from lowshot.core.progress import Progress
from lowshot.core.seeds import stream
from lowshot.core.training import TrainingRun, last_step
from lowshot.hallucination.generators import AnalogyGenerator
from lowshot.hallucination.quadruplets import Quadruplets
from lowshot.hallucination.settings import RuleName
from lowshot.representation.backbones import load_extractor


@dataclass(frozen=True)
class TrainingRule:
    """How a paper trains its generator. `columns` are the columns (seed, from, to, target) of a quadruplet."""

    columns: tuple[int, int, int, int]
    optimizer: Literal["sgd", "adam"]
    lr: float
    batch_size: int
    weight_decay: float
    n_steps: int | None
    """Number of steps; None for 500 epochs."""
    n_plateaus: int = 1
    """Number of equal parts of the training; the learning rate is divided by 10 after each."""
    holdout: float = 0.0
    """Share of held-out quadruplets. They are the last ones and, as quadruplets are sorted, have other source classes.
    """
    patience: int = 0
    """Number of epochs without a lower held-out loss after which training stops and keeps the best weights."""


RULES = {
    "hariharan2017": TrainingRule((0, 2, 3, 1), "sgd", 0.1, 128, 1e-4, n_steps=120_000, n_plateaus=3),
    "ghosted2018": TrainingRule((2, 0, 1, 3), "adam", 1e-4, 32, 1e-3, n_steps=None, holdout=0.2, patience=10),
}


def chosen_rule(name: RuleName, lr: float | None, n_steps: int | None, batch_size: int | None) -> TrainingRule:
    """Return a paper's rule, with the given values instead of its own."""
    given = {"lr": lr, "n_steps": n_steps, "batch_size": batch_size}
    return replace(RULES[name], **{key: value for key, value in given.items() if value is not None})


class GeneratorTrainer:
    """Trains `model` against the frozen `critic` (N, D) -> (N, classes) on `quadruplets` int64 (M, 4).

    The loss is mse_weight * mean squared error + the critic's cross-entropy for the class of seed and target. Each
    epoch has its own order of quadruplets (the first paper permutes once). A checkpoint is saved every epoch, or every
    tenth of the steps. A resumed run gives the weights of an uninterrupted one.
    """

    def __init__(
        self,
        rule: TrainingRule,
        mse_weight: float,
        seed: int,
        run: TrainingRun,
        model: AnalogyGenerator,
        critic: nn.Module,
        quadruplets: Tensor,
        end_after: int | None = None,
    ) -> None:
        self.rule, self.mse_weight, self.seed, self.run = rule, mse_weight, seed, run
        self.model, self.critic = model, critic
        n_train = len(quadruplets) - round(rule.holdout * len(quadruplets))
        self.train, self.held = quadruplets[:n_train], quadruplets[n_train:]
        self.steps_a_pass = -(-n_train // rule.batch_size)
        self.n_steps = rule.n_steps or 500 * self.steps_a_pass
        self.last_step = last_step(self.n_steps, end_after)
        self.optimizer = self._build_optimizer()
        self.progress = {"step": 0, "best_loss": float("inf"), "best_step": 0, "best_state": None}

    def _build_optimizer(self) -> torch.optim.Optimizer:
        """Build Adam with beta1 = 0.5, or SGD with dampening equal to momentum, which averages gradients."""
        rule, parameters = self.rule, self.model.parameters()
        if rule.optimizer == "adam":
            return torch.optim.Adam(parameters, rule.lr, betas=(0.5, 0.999), weight_decay=rule.weight_decay)
        return torch.optim.SGD(parameters, rule.lr, momentum=0.9, dampening=0.9, weight_decay=rule.weight_decay)

    def fit(self) -> AnalogyGenerator:
        """Train all steps, or the remaining ones after a checkpoint. Returns the final network (with patience: the best
        one)."""
        if checkpoint := self.run.resume():
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.progress = {name: checkpoint[name] for name in self.progress}
        interval = self.steps_a_pass if self.rule.patience else max(1, min(2000, self.n_steps // 10))
        first, last = self.progress["step"], max(self.progress["step"], self.last_step)
        bar = Progress(initial=first, total=last, desc="generator", unit="step", resumable=True)
        while self.progress["step"] < self.last_step and not self._out_of_patience():
            stop = min(self.last_step, self.progress["step"] + interval)
            record = self._train_steps(self.progress["step"], stop)
            bar.update(stop - self.progress["step"])
            self.progress["step"] = stop
            if len(self.held):
                self._keep_best(record)
            self.run.log(stop, **record)
            states = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            self.run.save(stop, {**self.progress, **states})
        bar.close()
        if self.progress["step"] < self.n_steps and not self._out_of_patience():
            self.run.ended_after = self.progress["step"]
        if self.progress["best_state"] is not None:
            self.model.load_state_dict(self.progress["best_state"])
        if last > first:
            health.warn(self._finding())
        return self.model

    @torch.no_grad()
    def _finding(self) -> str | None:
        """Return what is wrong with the generator, from at most 2048 quadruplets."""
        some = self.train[:: max(1, len(self.train) // 2048)]
        generated, targets, _ = self._generated(some)
        variance, spread = (rows.var(0, correction=0).mean().item() for rows in (targets, generated))
        return health.generator(spread, F.mse_loss(generated, targets).item(), variance)

    def _out_of_patience(self) -> bool:
        waited = self.progress["step"] - self.progress["best_step"]
        return bool(self.rule.patience) and waited >= self.rule.patience * self.steps_a_pass

    @torch.no_grad()
    def _keep_best(self, record: dict[str, float]) -> None:
        mse, cross_entropy = self.losses(self.held)
        record["held_loss"] = (self.mse_weight * mse + cross_entropy).item()
        if record["held_loss"] < self.progress["best_loss"]:
            state = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.progress |= {
                "best_loss": record["held_loss"],
                "best_step": self.progress["step"],
                "best_state": state,
            }

    def _train_steps(self, start: int, stop: int) -> dict[str, float]:
        """Train from step `start` to `stop` - 1, and return the average losses."""
        sums = torch.zeros(2)
        for step in range(start, stop):
            position = step % self.steps_a_pass
            if position == 0 or step == start:
                rng = stream(self.seed, "order", step // self.steps_a_pass)
                order = torch.from_numpy(rng.permutation(len(self.train)))
            chosen = order[position * self.rule.batch_size :][: self.rule.batch_size]
            for group in self.optimizer.param_groups:
                group["lr"] = self.rule.lr * 0.1 ** (step * self.rule.n_plateaus // self.n_steps)
            mse, cross_entropy = self.losses(self.train[chosen.to(self.train.device)])
            loss = self.mse_weight * mse + cross_entropy
            self.run.check_finite(loss.item(), step)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            sums += torch.stack([mse, cross_entropy]).detach().cpu()
        mse, cross_entropy = (sums / (stop - start)).tolist()
        return {"mse": mse, "cross_entropy": cross_entropy}

    def losses(self, quadruplets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean squared error and the critic's cross-entropy of predictions for `quadruplets` (N, 4)."""
        generated, targets, labels = self._generated(quadruplets)
        return F.mse_loss(generated, targets), F.cross_entropy(self.critic(generated), labels)

    def _generated(self, quadruplets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return generated features (N, D), their targets (N, D) and the classes of the targets (N,)."""
        flat = self.model.centroids.flatten(0, 1)
        seed, start, end, target = (quadruplets[:, column] for column in self.rule.columns)
        labels = self.model.centroid_labels[target // self.model.centroids.shape[1]]
        return self.model(flat[seed], flat[start], flat[end]), flat[target], labels


def fit_critic(centroids: Tensor, labels: Tensor) -> nn.Linear:
    """Fit a linear classifier to the centroids (N, D) with class labels (N,), to the optimum, with L2 penalty 1e-4.

    Departs from the first paper, which runs SGD on all base features if there is no extractor: a quadruplets file has
    no features.
    """
    critic = nn.Linear(centroids.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.LBFGS(critic.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = sum(p.square().sum() for p in critic.parameters())
        loss = F.cross_entropy(critic(centroids), labels) + 1e-4 / 2 * penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    return critic


def build_critic(
    mined: Quadruplets, where: Path, extractor: Path | None, inputs: dict[str, str], code: Sequence[str] = ()
) -> nn.Module:
    """Return the frozen classifier (N, D) -> (N, classes): the extractor's own, or one fitted to the centroids.

    `code` lists the user's own classes that may be imported for the extractor. Raises InputError if the extractor
    (digests in `inputs`) is not the one behind the quadruplets of the file `where`.
    """
    n_clusters, dim = mined.centroids.shape[1:]
    labels = torch.from_numpy(mined.labels).repeat_interleave(n_clusters)
    centroids = torch.from_numpy(mined.centroids.reshape(-1, dim))
    if extractor is None:
        remedy = "The centroids do not tell the classes apart: use another extractor"
        return _checked(fit_critic(centroids, labels), centroids, labels, remedy)
    model = load_extractor(extractor, code)
    if model.dim != dim:
        raise InputError(
            f"{extractor}: computes features of {model.dim} dimensions, but {where} has {dim}. Use the extractor of "
            f"these features"
        )
    if inputs["critic"] != inputs.get("extractor", inputs["critic"]):
        raise InputError(
            f"--extractor {extractor}: did not make the features of {where}. Name the extractor that did, or leave "
            f"--extractor out"
        )
    if model.config.n_classes <= mined.labels.max():
        raise InputError(
            f"{extractor}: has no classifier output for class {mined.labels.max()} of {where}. Leave --extractor out"
        )
    remedy = "Use an --extractor that was trained on these classes, or leave --extractor out"
    return _checked(model.classifier, centroids, labels, remedy)


@torch.no_grad()
def _checked(critic: nn.Module, centroids: Tensor, labels: Tensor, remedy: str) -> nn.Module:
    """Freeze the critic, and say if it is at chance on the centroids."""
    top1 = (critic(centroids).argmax(1) == labels).double().mean().item()
    health.warn(health.at_chance("the critic", top1, len(labels.unique()), remedy))
    return critic.requires_grad_(False)


def build_generator(mined: Quadruplets, hidden: int, rule: RuleName) -> AnalogyGenerator:
    """Build a generator with random weights (for ghosted2018 N(0, 0.02), bias 0) and the mined centroids."""
    n_classes, n_clusters, dim = mined.centroids.shape
    model = AnalogyGenerator(dim, hidden, n_classes, n_clusters)
    model.centroids.copy_(torch.from_numpy(mined.centroids))
    model.centroid_labels.copy_(torch.from_numpy(mined.labels))
    if rule == "ghosted2018":
        for layer in model.layers[::2]:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return model
