"""Training an extractor on class labels."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowshot.core.errors import InputError
from lowshot.representation.image_training import Trainer
from lowshot.representation.loading import in_batches
from lowshot.representation.losses import topk_correct, total_loss
from lowshot.representation.settings import Mixup


def mixup_shares(mixup: Mixup, n: int, device: torch.device) -> Tensor:
    """Each image's own share in a blend (n,), from torch's own generator."""
    if mixup.distribution == "uniform":
        return mixup.alpha * torch.rand(n, device=device)
    alpha = torch.full((n,), mixup.alpha, device=device)
    return torch.distributions.Beta(alpha, alpha).sample()


def freeze(model: nn.Module, trained: list[str]) -> None:
    """Freeze all parameters whose names begin otherwise; InputError for a beginning that none has."""
    chosen = {
        part: [name for name, _ in model.named_parameters() if f"{name}.".startswith(f"{part}.")] for part in trained
    }
    for part in [part for part, names in chosen.items() if not names][:1]:
        tops = ", ".join(dict.fromkeys(name.split(".")[0] for name, _ in model.named_parameters()))
        raise InputError(f"trained: no parameter's name begins with '{part}' (they begin with {tops})")
    kept = {name for names in chosen.values() for name in names}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)


class ExtractorTrainer(Trainer):
    """Cross-entropy on the classes, with a shrinking term if `settings.loss` names one."""

    def _step(self, positions: np.ndarray, *views: Tensor) -> dict[str, Tensor]:
        labels = torch.from_numpy(self.images.labels[self.train_rows[positions]]).to(self.fabric.device)
        s = self.settings
        if s.mixup.alpha:
            return self._blended_step(*views, labels)
        scores, features = self.network(*views)
        loss = total_loss(s.loss, s.loss_weight, scores, features, labels, self._average_over_processes)
        return {"loss": self._update(loss), "top1": topk_correct(scores.detach(), labels, 1) / len(labels)}

    def _blended_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Each image has a share of its own, and the rest is another of the batch (or itself)."""
        share = mixup_shares(self.settings.mixup, len(images), images.device)
        others = torch.randperm(len(images), device=images.device)
        scores, _ = self.network(images[others].lerp(images, share[:, None, None, None]))
        losses = (F.cross_entropy(scores, target, reduction="none") for target in (labels[others], labels))
        loss = torch.lerp(*losses, share).mean()
        return {"loss": self._update(loss), "top1": topk_correct(scores.detach(), labels, 1) / len(labels)}

    def _train_mode(self) -> None:
        super()._train_mode()
        if self.settings.trained is not None:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

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
        for part, images in zip(parts, self._unchanged(parts)):
            scores, _ = self.network(images)
            labels = torch.from_numpy(self.images.labels[part]).to(self.fabric.device)
            loss = F.cross_entropy(scores.float(), labels, reduction="sum")
            sums += [loss.item(), topk_correct(scores, labels, 1).item(), topk_correct(scores, labels, 5).item()]
        return dict(zip(("held_loss", "held_top1", "held_top5"), (sums / len(self.held_rows)).tolist()))
