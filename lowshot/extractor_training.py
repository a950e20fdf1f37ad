"""Training an image network on labelled images: one loop for every loss, optimiser and number of processes."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from lowshot.augmentation import Augmentation
from lowshot.backbones import Extractor
from lowshot.datasets.images import Images
from lowshot.loading import batches, in_batches, to_unit
from lowshot.losses import LossName, topk_correct, total_loss
from lowshot.seeds import stream
from lowshot.training import TrainingRun, learning_rate


@dataclass(kw_only=True)
class TrainingSettings:
    """How an extractor is trained; the stages that train one add their files to these."""

    loss: LossName = "plain"
    """plain cross-entropy, or with a shrinking term: sgm, batchsgm, l2"""
    loss_weight: NonNegativeFloat = 0.02
    """factor on the shrinking term (published: sgm 0.02 or 0.005, batchsgm 5, l2 0.03); unused by plain"""
    epochs: NonNegativeInt = 90
    """passes over the training images"""
    batch_size: PositiveInt = 256
    """images a step, over all processes together"""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd with momentum, or adam with beta1 0.5 (the CIFAR system)"""
    lr: PositiveFloat = 0.1
    """learning rate"""
    momentum: NonNegativeFloat = 0.9
    """of sgd"""
    weight_decay: NonNegativeFloat = 1e-4
    """L2 on every parameter for sgd; on all but batch norm for adam, as each paper has it"""
    schedule: Literal["step", "cosine"] = "step"
    """step: times lr_decay every step_epochs; cosine: down to zero"""
    step_epochs: PositiveInt = 30
    """length of a step of the step schedule"""
    lr_decay: PositiveFloat = 0.1
    """factor at each step of the step schedule"""
    warmup_epochs: NonNegativeInt = 0
    """first epochs, at the constant rate warmup_lr"""
    warmup_lr: PositiveFloat = 0.01
    """rate of the warm-up"""
    holdout: ClosedUnitInterval = 0.0
    """share of the training images kept back to watch, and to stop early on with --patience"""
    patience: NonNegativeInt = 0
    """stop after this many epochs without a better held-out loss and keep the best weights; 0 trains to the end"""
    augment: Augmentation = field(default_factory=Augmentation)
    """random changes of the training images"""
    seed: NonNegativeInt = 0
    """of initialisation, data order and augmentation"""
    num_workers: NonNegativeInt = 4
    """processes that decode images on disk; stored pixels need none"""


class ExtractorTrainer:
    """Trains `model` on `images[train_rows]` and watches `images[held_rows]`.

    Each epoch's order and augmentation depend on (seed, epoch) only, and a checkpoint is kept after each epoch: a
    killed run ends up with the weights of an uninterrupted one. With several processes each takes every n-th image of a
    batch; batch norm sees the process's own images.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        fabric: Fabric,
        run: TrainingRun,
        model: Extractor,
        images: Images,
        train_rows: np.ndarray,
        held_rows: np.ndarray,
    ) -> None:
        self.settings, self.fabric, self.run, self.model, self.images = settings, fabric, run, model, images
        self.train_rows, self.held_rows = train_rows, held_rows
        self.network, self.optimizer = fabric.setup(model, build_optimizer(settings, model))
        self.progress = {"epoch": 0, "best_loss": float("inf"), "best_epoch": -1, "best_state": None}

    def fit(self) -> Extractor:
        """All epochs, from the last checkpoint if there is one; returns the final (with patience: best) network."""
        if checkpoint := self.run.resume():
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.fabric.strategy.precision.load_state_dict(checkpoint["precision"])
            self.progress = {name: checkpoint[name] for name in self.progress}
        while self.progress["epoch"] < self.settings.epochs and not self._out_of_patience():
            record = self._train_epoch(self.progress["epoch"])
            if len(self.held_rows):
                record |= self._evaluate()
            self._keep_best(record)
            self.progress["epoch"] += 1
            self.run.log(self.progress["epoch"], **record)
            states = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),  # the loss scale of 16-mixed
            }
            self.run.save(self.progress["epoch"], {**self.progress, **states})
        if self.progress["best_state"] is not None:
            self.model.load_state_dict(self.progress["best_state"])
        return self.model

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return bool(patience) and self.progress["epoch"] - 1 - self.progress["best_epoch"] >= patience

    def _keep_best(self, record: dict[str, float]) -> None:
        if not self.settings.patience or record["held_loss"] >= self.progress["best_loss"]:
            return
        state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.progress |= {"best_loss": record["held_loss"], "best_epoch": self.progress["epoch"], "best_state": state}

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the training images; returns the averages over its steps."""
        self.network.train()
        settings, device = self.settings, self.fabric.device
        steps = self._steps(epoch)
        uniforms = settings.augment.uniforms(len(self.train_rows), settings.seed, epoch)
        crop = (settings.seed, epoch) if settings.augment.resized_crop else None
        rows = [self.train_rows[step] for step in steps]
        loaded = batches(self.images, rows, self.model.config, crop, settings.num_workers)
        name = f"epoch {epoch + 1}/{settings.epochs}"
        bar = tqdm(loaded, name, len(steps), disable=not self.fabric.is_global_zero, unit="step")
        losses, hits = [], []
        for i, pixels in enumerate(bar):
            rate = self._set_rate(epoch + i / len(steps))
            batch = settings.augment(to_unit(pixels, device), uniforms[steps[i]].to(device))
            labels = torch.from_numpy(self.images.labels[rows[i]]).to(device)
            loss, scores = self._step(batch, labels)
            self.run.check_finite(loss, epoch * len(steps) + i)
            losses.append(loss)
            hits.append(topk_correct(scores, labels, 1).item() / len(labels))
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        return {"loss": float(np.mean(losses)), "top1": float(np.mean(hits)), "lr": rate}

    def _steps(self, epoch: int) -> list[np.ndarray]:
        """This process's share of every batch of the epoch, as positions in `train_rows`; all processes get as many."""
        n, rank = self.fabric.world_size, self.fabric.global_rank
        order = stream(self.settings.seed, "order", epoch).permutation(len(self.train_rows))
        whole = [batch[: len(batch) // n * n] for batch in in_batches(order, self.settings.batch_size)]
        return [batch[rank::n] for batch in whole if len(batch) > n]  # batch norm needs two images

    def _set_rate(self, epoch: float) -> float:
        s = self.settings
        rate = learning_rate(epoch, s.epochs, s.lr, s.schedule, s.step_epochs, s.lr_decay, s.warmup_epochs, s.warmup_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _step(self, batch: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        """Forward, backward, update (none for a loss that is not finite); returns the loss and the scores."""
        scores, features = self.network(batch)
        loss = total_loss(
            self.settings.loss, self.settings.loss_weight, scores, features, labels, self._average_over_processes
        )
        # Over all processes: one that stopped alone would leave the others waiting.
        value = self.fabric.all_reduce(loss.detach(), reduce_op="mean").item()
        if np.isfinite(value):
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
            self.optimizer.step()
        return value, scores.detach()

    def _average_over_processes(self, gradient: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return gradient
        return self.fabric.all_gather(gradient, sync_grads=True).mean(dim=0)

    @torch.inference_mode()
    def _evaluate(self) -> dict[str, float]:
        """Cross-entropy, top-1 and top-5 on the held-out images, without augmentation; every process does all of it."""
        self.network.eval()
        sums = np.zeros(3)
        parts = in_batches(self.held_rows, self.settings.batch_size)
        loaded = batches(self.images, parts, self.model.config, None, self.settings.num_workers)
        for part, pixels in zip(parts, loaded):
            scores, _ = self.network(to_unit(pixels, self.fabric.device))
            labels = torch.from_numpy(self.images.labels[part]).to(self.fabric.device)
            loss = F.cross_entropy(scores.float(), labels, reduction="sum")
            sums += [loss.item(), topk_correct(scores, labels, 1).item(), topk_correct(scores, labels, 5).item()]
        return dict(zip(("held_loss", "held_top1", "held_top5"), (sums / len(self.held_rows)).tolist()))


def build_optimizer(settings: TrainingSettings, model: Extractor) -> torch.optim.Optimizer:
    """SGD on everything alike, or Adam that leaves batch norm undecayed (analogy_cifar spec 2.3)."""
    if settings.optimizer == "sgd":
        momentum, decay = settings.momentum, settings.weight_decay
        return torch.optim.SGD(model.parameters(), settings.lr, momentum, weight_decay=decay)
    norms = [p for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters()]
    chosen = {id(p) for p in norms}
    decayed = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.Adam(groups, settings.lr, betas=(0.5, 0.999))
