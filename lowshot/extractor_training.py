"""Training an extractor on class labels."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse.typing import NonNegativeFloat
from torch import Tensor

from lowshot.image_training import Trainer, TrainingSettings
from lowshot.loading import in_batches
from lowshot.losses import LossName, topk_correct, total_loss


@dataclass(kw_only=True)
class ExtractorSettings(TrainingSettings):
    """How an extractor is trained; the stage adds its files to these."""

    loss: LossName = "plain"
    """plain cross-entropy, or with a shrinking term: sgm, batchsgm, l2"""
    loss_weight: NonNegativeFloat = 0.02
    """factor on the shrinking term (published: sgm 0.02 or 0.005, batchsgm 5, l2 0.03); unused by plain"""


class ExtractorTrainer(Trainer):
    """Cross-entropy on the classes, with a shrinking term if `settings.loss` names one."""

    def _step(self, positions: np.ndarray, *views: Tensor) -> dict[str, Tensor]:
        labels = torch.from_numpy(self.images.labels[self.train_rows[positions]]).to(self.fabric.device)
        scores, features = self.network(*views)
        s = self.settings
        loss = total_loss(s.loss, s.loss_weight, scores, features, labels, self._average_over_processes)
        return {"loss": self._update(loss), "top1": topk_correct(scores.detach(), labels, 1) / len(labels)}

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
