"""The network that learns from superclasses: an extractor, the means, and the state of its losses."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lowshot.representation.backbones import Extractor, ModelConfig
from lowshot.scgm.contrast import ClassQueues, angular_logits
from lowshot.scgm.mixture import Mixture, Superclasses


class ScgmModel(nn.Module):
    """Computes embeddings of images and their losses. Its state dict contains its whole state.

    Args:
        extractor: The network that is trained.
        superclasses: The means of superclasses; a Mixture for methods with subclasses.
        queues: Keys of the momentum encoder; None for methods without one.
        n_images: Number of training images. Their subclasses are in `subclasses` int64 (n_images,), initially -1.
        n_e_steps: Number of assignments. Their subclass sizes are in `sizes` int64 (n_e_steps, K).
        contrast_tau: Temperature of the contrastive loss.
        detach_means: Whether only the cross-entropy of superclasses updates the means, as in the released SCGM-A.
    """

    def __init__(
        self,
        extractor: Extractor,
        superclasses: Superclasses,
        queues: ClassQueues | None,
        n_images: int,
        n_e_steps: int,
        contrast_tau: float = 0.2,
        detach_means: bool = False,
    ) -> None:
        super().__init__()
        self.extractor, self.superclasses, self.queues = extractor, superclasses, queues
        self.key_extractor = deepcopy(extractor).requires_grad_(False) if queues is not None else None
        self.contrast_tau, self.detach_means = contrast_tau, detach_means
        if self.mixture is not None:
            n_subclasses = len(self.mixture.subclass_means)
            self.mixture.subclass_means.requires_grad_(not detach_means)
            self.register_buffer("subclasses", torch.full((n_images,), -1))
            self.register_buffer("sizes", torch.zeros(n_e_steps, n_subclasses, dtype=torch.int64))

    @property
    def config(self) -> ModelConfig:
        return self.extractor.config

    @property
    def mixture(self) -> Mixture | None:
        return self.superclasses if isinstance(self.superclasses, Mixture) else None

    def forward(
        self, images: Tensor, rows: Tensor, superclasses: Tensor, keys: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the terms of the loss (float32) by name, and the scores (B, C) of the classifier.

        Args:
            images: (B, channels, H, W) in [0, 1].
            rows: Their indices among the training images, int64 (B,).
            superclasses: int64 (B,).
            keys: Embeddings (B, d) of another view, for the contrastive loss.
        """
        embeddings = self.extractor.features(images)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            scores = self.superclasses.classifier_logits(embeddings)
            losses = {"superclass": F.cross_entropy(scores, superclasses)}
            if self.queues is not None:
                means = self.superclasses.means
                logits = angular_logits(embeddings, keys, superclasses, rows, self.queues, means, self.contrast_tau)
                losses["contrast"] = F.cross_entropy(logits, torch.zeros_like(superclasses))
            if self.mixture is not None:
                losses |= self._mixture_losses(embeddings, superclasses, self.subclasses[rows])
        return losses, scores.detach()

    def _mixture_losses(self, embeddings: Tensor, superclasses: Tensor, subclasses: Tensor) -> dict[str, Tensor]:
        of_subclass = self.mixture.superclass_of_subclass_logits()[subclasses]
        of_subclass = of_subclass.detach() if self.detach_means else of_subclass
        return {
            "subclass": F.cross_entropy(self.mixture.subclass_logits(embeddings), subclasses),
            "superclass_of_subclass": F.cross_entropy(of_subclass, superclasses),
        }

    @torch.no_grad()
    def log_joint(self, images: Tensor, superclasses: Tensor) -> Tensor:
        """Return log p(z|v) p(y|z) of images with `superclasses` y (B,): float32 (B, K)."""
        embeddings = self.extractor.features(images)
        with torch.autocast(embeddings.device.type, enabled=False):  # the exponent amplifies rounding errors
            return self.mixture.log_joint(embeddings.float(), superclasses)

    @torch.no_grad()
    def keys(self, images: Tensor, momentum: float) -> Tensor:
        """Update the key extractor, key <- m key + (1 - m) query, and return its embeddings (B, d) of images.

        The update includes the running statistics of batch norm.
        """
        keys, queries = self.key_extractor.state_dict().values(), self.extractor.state_dict().values()
        floating = [(key, query) for key, query in zip(keys, queries) if key.is_floating_point()]
        get_ema_multi_avg_fn(momentum)(*map(list, zip(*floating)), None)
        return self.key_extractor.features(images).float()
