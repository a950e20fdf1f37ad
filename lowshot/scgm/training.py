"""Train on superclasses with the EM algorithm, and the two baselines without an E-step."""

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from sklearn.metrics import homogeneity_score, normalized_mutual_info_score
from torch import Tensor

from lowshot.core import health
from lowshot.core.errors import InputError
from lowshot.core.progress import Progress
from lowshot.core.seeds import stream
from lowshot.core.training import TrainingRun
from lowshot.data.datasets.images import Images
from lowshot.representation.backbones import Extractor
from lowshot.representation.image_training import Trainer
from lowshot.representation.loading import in_batches
from lowshot.representation.losses import topk_correct
from lowshot.representation.operations import PASSES_OF_A_STEP
from lowshot.scgm.assignment import assign_subclasses
from lowshot.scgm.contrast import ClassQueues
from lowshot.scgm.mixture import Mixture, Superclasses
from lowshot.scgm.model import ScgmModel
from lowshot.scgm.settings import ScgmSettings, has_contrast, has_mixture


def build_model(settings: ScgmSettings, extractor: Extractor, superclasses: np.ndarray) -> ScgmModel:
    """Build the model for training images with `superclasses` int64 (N,) in 0..C-1."""
    method, sizes = settings.method, torch.from_numpy(np.bincount(superclasses))
    form, queues, options = (len(sizes), settings.embedding), None, {"n_e_steps": 0}
    if has_mixture(settings):
        means = Mixture(form[0], method.n_subclasses, form[1], method.tau, method.tau2)
        options = {"n_e_steps": -(-settings.epochs // method.e_step_every), "detach_means": method.detach_means}
    else:
        means = Superclasses(*form)
    if has_contrast(settings):
        queues, options["contrast_tau"] = ClassQueues(sizes, form[1], method.queue_length), method.contrast_tau
    return ScgmModel(extractor, means, queues, len(superclasses), **options)


class ScgmTrainer(Trainer):
    """Trains a `ScgmModel`. Class labels are used for the log only.

    `superclass_of` int64 (n_classes,) has the superclass of each class, in 0..C-1.
    """

    def __init__(
        self,
        settings: ScgmSettings,
        fabric: Fabric,
        run: TrainingRun,
        model: ScgmModel,
        images: Images,
        train_rows: np.ndarray,
        held_rows: np.ndarray,
        superclass_of: np.ndarray,
    ) -> None:
        super().__init__(settings, fabric, run, model, images, train_rows, held_rows, settings.patience)
        self.method = settings.method
        self.n_views = 2 if has_contrast(settings) else 1
        self.superclass_of = superclass_of
        self.superclasses = torch.from_numpy(superclass_of[images.labels[train_rows]]).to(fabric.device)

    def _before_epoch(self, epoch: int) -> dict[str, float]:
        """Run the E-step, if it is due."""
        if not has_mixture(self.settings) or epoch % self.method.e_step_every:
            return {}
        method, model, number = self.method, self.model, epoch // self.method.e_step_every
        found = assign_subclasses(self._log_joint(epoch), method.exponent, method.residual, method.max_iterations)
        model.subclasses.copy_(found.labels)
        model.sizes[number] = found.labels.bincount(minlength=method.n_subclasses)
        sizes = model.sizes[number]
        record = {"residual": found.residual, "iterations": float(found.n_iterations)}
        record |= {"smallest_subclass": sizes.min().item(), "largest_subclass": sizes.max().item()}
        return record | _agreement("assigned", self.images.labels[self.train_rows], found.labels.cpu().numpy())

    def _log_joint(self, epoch: int) -> Tensor:
        """Return log P of all training images, float32 (N, K), equal in all processes."""
        n, rank = self.fabric.world_size, self.fabric.global_rank
        order = stream(self.settings.seed, "e_step", epoch).permutation(len(self.train_rows))
        # Parts of similar size: batch norm needs two images in every process, so the last part must not be too small.
        parts = np.array_split(order, max(1, len(order) // self.settings.batch_size))
        local = [part[rank::n] for part in parts]
        augmented = self.method.e_step_view == "augmented"
        self.network.train(augmented)
        rows = [self.train_rows[part] for part in local]
        if augmented:
            loaded = (images for (images,) in self._batches(epoch, local, [self.n_views]))
        else:
            loaded = self._unchanged(rows)
        scores = torch.zeros(len(order), self.method.n_subclasses, device=self.fabric.device)
        name, quiet = f"E-step of epoch {epoch + 1}", {"disable": rank > 0, "leave": False}
        for positions, batch in Progress(zip(local, loaded), name, len(local), unit="batch", **quiet):
            self._count(batch, n_passes=1)
            with self.fabric.autocast():
                scores[positions] = self.model.log_joint(batch, self.superclasses[positions])
        scores = self.fabric.all_reduce(scores, reduce_op="sum")
        finite = scores.isfinite().all(1).cpu().numpy()
        for i in [i for i, part in enumerate(parts) if not finite[part].all()][:1]:
            raise InputError(
                f"E-step of epoch {epoch + 1}: NaN in the scores of batch {i + 1} of {len(parts)}. Use a smaller --lr"
            )
        return scores

    def _step(self, positions: np.ndarray, *views: Tensor) -> dict[str, Tensor]:
        rows = torch.from_numpy(positions).to(self.fabric.device)
        superclasses, keys = self.superclasses[rows], None
        if has_contrast(self.settings):
            with self.fabric.autocast():
                keys = self.model.keys(views[1], self.method.key_momentum)
        losses, scores = self.network(views[0], rows, superclasses, keys)
        alpha = self.method.alpha if has_mixture(self.settings) else 0
        weights = {"superclass": 1, "contrast": 1, "subclass": alpha, "superclass_of_subclass": alpha}
        value = self._update(sum(weights[name] * loss for name, loss in losses.items()))
        if has_contrast(self.settings):
            gathered = [self.fabric.all_gather(one).flatten(0, -one.ndim) if self.fabric.world_size > 1 else one
                        for one in (keys, superclasses, rows)]  # fmt: skip
            self.model.queues.add(*gathered)
        record = {"loss": value, "top1": _top1(scores, superclasses)}
        return record | {f"loss_{name}": loss.detach() for name, loss in losses.items()}

    def _extractor(self) -> Extractor:
        return self.model.extractor

    def _passes(self, view: int) -> int:
        return PASSES_OF_A_STEP if view == 0 else 1  # keys have no gradient

    @torch.inference_mode()
    def _evaluate(self) -> dict[str, float]:
        """Evaluate the held-out images.

        Returns the loss of superclasses, their accuracy by the classifier and by the mixture, and the agreement of
        subclasses with classes.
        """
        self.network.eval()
        superclasses = torch.from_numpy(self.superclass_of[self.images.labels[self.held_rows]]).to(self.fabric.device)
        embeddings = self._embeddings(self.held_rows)
        scores = self.model.superclasses.classifier_logits(embeddings)
        record = {
            "held_loss": F.cross_entropy(scores, superclasses).item(),
            "held_top1": _top1(scores, superclasses).item(),
        }
        if has_mixture(self.settings):
            mixture = self.model.mixture
            record["held_top1_mixture"] = _top1(mixture.log_superclass(embeddings), superclasses)
            subclasses = mixture.subclass_logits(embeddings).argmax(1).cpu().numpy()
            record |= _agreement("held", self.images.labels[self.held_rows], subclasses)
        return {name: float(value) for name, value in record.items()}

    def _findings(self, record: dict[str, float]) -> list[str | None]:
        n_superclasses = len(self.superclasses.unique())
        remedy = "Use a smaller --lr, or more --epochs"
        found = [health.at_chance("the classifier of superclasses", record["top1"], n_superclasses, remedy)]
        if has_mixture(self.settings):
            n_used = int((self.model.subclasses.bincount() > 0).sum())
            found.append(health.subclasses(n_used, self.method.n_subclasses, n_superclasses))
        return found

    def _embeddings(self, rows: np.ndarray) -> Tensor:
        """Return embeddings float32 (N, d) of the images `rows` (N,), without augmentation."""
        embeddings = []
        for images in self._unchanged(in_batches(rows, self.settings.batch_size)):
            with self.fabric.autocast():
                embeddings.append(self.model.extractor.features(images).float())
        return torch.cat(embeddings)


def _top1(scores: Tensor, labels: Tensor) -> Tensor:
    return topk_correct(scores, labels, 1) / len(labels)


def _agreement(name: str, classes: np.ndarray, subclasses: np.ndarray) -> dict[str, float]:
    """Measure the agreement of subclasses with classes, which are not used for training."""
    return {
        f"{name}_nmi": float(normalized_mutual_info_score(classes, subclasses)),
        f"{name}_homogeneity": float(homogeneity_score(classes, subclasses)),
    }
