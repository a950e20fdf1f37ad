"""Train an extractor on class labels."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowshot.core import health
from lowshot.core.artifacts import Recipe
from lowshot.core.choices import is_own
from lowshot.core.errors import InputError
from lowshot.data.datasets.images import Images
from lowshot.representation.backbones import Extractor, save_extractor
from lowshot.representation.image_training import Trainer, image_training
from lowshot.representation.loading import in_batches
from lowshot.representation.losses import loss_of, topk_correct
from lowshot.representation.networks import build_network, check_network
from lowshot.representation.settings import LOSSES, SGM, BatchSGM, ExtractorStage, Plain

_N_TURNS = 4


def check_stage(config: ExtractorStage) -> None:
    """Raise InputError for settings that exclude each other."""
    check_network(config)
    loss = LOSSES.name_of(config.loss)
    if isinstance(config.loss, (SGM, BatchSGM)) and config.head != "linear":
        raise InputError(f"--loss {loss}: needs --head linear, whose gradient it computes, not --head {config.head}")
    if config.mixup is not None and not isinstance(config.loss, Plain):
        raise InputError(f"--mixup: needs --loss plain, not {loss}")
    if config.mixup is not None and config.rotation_weight:
        raise InputError("--mixup, --rotation_weight: exclude each other. Use one of them")
    if config.trained == []:
        raise InputError("--trained: is empty. Name at least one part of the network, or leave it out to train all")


def train_extractor(
    config: ExtractorStage,
    made_from: Recipe,
    images: Images,
    rows: tuple[np.ndarray, np.ndarray],
    n_classes: int,
    patience: int = 0,
) -> Path:
    """Train the network chosen in `config`, write it, and return its folder.

    `rows` are the rows of `images` to train on and the rows to validate on.
    """
    with image_training(config, config.out, made_from, config.overwrite) as (fabric, training):
        model = build_network(config, images, rows[0], config.data / "images.h5", n_classes, config.head)
        if config.trained is not None:
            freeze(model, config.trained)
        learner = WithTurns(model) if config.rotation_weight else model
        ExtractorTrainer(config, fabric, training, learner, images, *rows, patience).fit()
        if fabric.is_global_zero:
            save_extractor(training.folder, model, made_from)
    if fabric.is_global_zero:
        print(f"{made_from['stage']}: wrote {config.out} (D = {model.dim})")
    return config.out


class WithTurns(nn.Module):
    """An extractor with a second classifier, for the number of quarter turns of an image."""

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor, self.config = extractor, extractor.config
        self.turns = nn.Linear(extractor.dim, _N_TURNS)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores (N, n_classes), features (N, D) and scores of turns (N, 4) of images (N, C, H, W)."""
        scores, features = self.extractor(images)
        return scores, features, self.turns(features)


def turned(images: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a quarter of the images (N, C, H, W) by each number of quarter turns, and return the numbers (N,) too.

    The numbers follow from the positions, which are random already.
    """
    turns = torch.arange(len(images), device=images.device) * _N_TURNS // len(images)
    parts = images.split(turns.bincount(minlength=_N_TURNS).tolist())
    return torch.cat([part.rot90(n, (2, 3)) for n, part in enumerate(parts)]), turns


def mixup_shares(mixup: Any, n: int, device: torch.device) -> Tensor:
    """Draw the share (n,) of each image in its blend, from torch's global generator."""
    if is_own(mixup):
        return mixup.shares(n, device)
    if mixup.name == "uniform":
        return mixup.alpha * torch.rand(n, device=device)
    alpha = torch.full((n,), mixup.alpha, device=device)
    return torch.distributions.Beta(alpha, alpha).sample()


def freeze(model: nn.Module, trained: list[str]) -> None:
    """Freeze all parameters except those whose name has one of the prefixes in `trained`.

    Raises InputError for a prefix that no parameter has.
    """
    chosen = {
        part: [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")] for part in trained
    }
    for part in [part for part, names in chosen.items() if not names][:1]:
        tops = ", ".join(dict.fromkeys(name.split(".")[0] for name, _ in model.named_parameters()))
        raise InputError(f"--trained {part}: no parameter name begins with it (they begin with: {tops})")
    kept = {name for names in chosen.values() for name in names}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)


class ExtractorTrainer(Trainer):
    """Trains an extractor with the loss of `settings.loss`."""

    def _step(self, positions: np.ndarray, *views: Tensor) -> dict[str, Tensor]:
        labels = torch.from_numpy(self.images.labels[self.train_rows[positions]]).to(self.fabric.device)
        if self.settings.mixup is not None:
            return self._blended_step(*views, labels)
        images, turns = turned(*views) if self.settings.rotation_weight else (*views, None)
        scores, features, *of_turns = self.network(images)
        loss = loss_of(self.settings.loss)(scores.float(), features.float(), labels, self._extractor())
        if turns is not None:
            loss = loss + self.settings.rotation_weight * F.cross_entropy(of_turns[0].float(), turns)
        return {"loss": self._update(loss), "top1": topk_correct(scores.detach(), labels, 1) / len(labels)}

    def _extractor(self) -> Extractor:
        return self.model.extractor if self.settings.rotation_weight else self.model

    def _blended_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Train on blends of each image, by its own share, with another image of the batch (or itself)."""
        share = mixup_shares(self.settings.mixup, len(images), images.device)
        others = torch.randperm(len(images), device=images.device)
        scores, _ = self.network(images[others].lerp(images, share[:, None, None, None]))
        options = {"reduction": "none", "label_smoothing": self.settings.loss.label_smoothing}
        losses = (F.cross_entropy(scores, target, **options) for target in (labels[others], labels))
        loss = torch.lerp(*losses, share).mean()
        return {"loss": self._update(loss), "top1": topk_correct(scores.detach(), labels, 1) / len(labels)}

    def _findings(self, record: dict[str, float]) -> list[str | None]:
        if self.settings.mixup is not None:  # blends are not meant to be classified
            return []
        n_classes = len(np.unique(self.images.labels[self.train_rows]))
        remedy = "Use a smaller --lr, or more --epochs"
        return [health.at_chance("the extractor", record["top1"], n_classes, remedy)]

    def _train_mode(self) -> None:
        super()._train_mode()
        if self.settings.trained is not None:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    @torch.inference_mode()
    def _evaluate(self) -> dict[str, float]:
        """Return cross-entropy, top-1 and top-5 on the held-out images, without augmentation. Each process evaluates
        all images."""
        self.network.eval()
        sums = np.zeros(3)
        parts = in_batches(self.held_rows, self.settings.batch_size)
        for part, images in zip(parts, self._unchanged(parts)):
            scores = self.network(images)[0]
            labels = torch.from_numpy(self.images.labels[part]).to(self.fabric.device)
            loss = F.cross_entropy(scores.float(), labels, reduction="sum")
            sums += [loss.item(), topk_correct(scores, labels, 1).item(), topk_correct(scores, labels, 5).item()]
        return dict(zip(("held_loss", "held_top1", "held_top5"), (sums / len(self.held_rows)).tolist()))
