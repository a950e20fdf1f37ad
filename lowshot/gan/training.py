"""Training of both networks of a GAN: pre-training on base classes, or fine-tuning on a few shots."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from lowshot.classifiers.tasks import class_means
from lowshot.core import health
from lowshot.core.errors import InputError
from lowshot.core.progress import Progress
from lowshot.core.seeds import stream, torch_stream
from lowshot.core.state_dicts import save_state
from lowshot.core.training import TrainingRun, last_step
from lowshot.gan.augmentation import DiscriminatorAugmentation
from lowshot.gan.data import Examples, Shuffled
from lowshot.gan.losses import discriminator_losses, generator_losses, mismatch_loss, weighted
from lowshot.gan.model import Gan, from_bytes, make_images
from lowshot.gan.networks import DiscriminatorOutput, choose_trained
from lowshot.gan.settings import FinetuneMode, GanSettings
from lowshot.representation.backbones import Extractor
from lowshot.representation.loading import to_unit

# Losses are read and checked after this number of steps, so that the GPU is not synchronised at every step.
_READ_EVERY = 20
_PENALTY_EVERY = 16


class Reference(NamedTuple):
    """Real images to compare generated images with: features (N, D) and classes int64 (N,)."""

    features: Tensor
    labels: Tensor


@torch.inference_mode()
def reference(extractor: Extractor, real: Examples, most: int, seed: int) -> Reference:
    """Return the reference of `most` random `real` images, or of all if there are fewer."""
    rows = stream(seed, "reference").permutation(len(real.labels))[:most]
    rows = torch.from_numpy(rows).to(real.labels.device)
    return Reference(features_of(extractor, real.pixels[rows].split(256)), real.labels[rows])


@torch.inference_mode()
def features_of(extractor: Extractor, batches: Iterable[Tensor]) -> Tensor:
    """Return features float32 (N, D) of batches of uint8 images."""
    device = next(extractor.parameters()).device
    return torch.cat([extractor.features(to_unit(pixels, device)).float() for pixels in batches])


class GanTrainer:
    """Trains `gan` on `labelled` images, and on `unlabelled` images in the unconditional loss.

    The step is the published one, with the update of the generator first. Unlike there, the discriminator sees all
    images of its update in one pass, and gets no gradients in the update of the generator. Noise, order and
    augmentation of a step depend on (seed, step) only, so a resumed run gives the same weights as an uninterrupted one.
    With several processes, each takes every n-th image, and gradients are averaged.

    The weights with the best FID of the averaged generator against the first of `references` are kept, and the last
    ones in last.pt if they are others. FID against the others is logged only. With `score_first`, the initial weights
    are scored too and can be the best.
    """

    def __init__(
        self,
        settings: GanSettings,
        fabric: Fabric,
        run: TrainingRun,
        gan: Gan,
        extractor: Extractor,
        references: dict[str, Reference],
        labelled: Examples,
        unlabelled: Examples | None = None,
        modes: tuple[FinetuneMode, FinetuneMode] = ("all", "all"),
        score_first: bool = False,
    ) -> None:
        s = settings
        self.settings, self.fabric, self.run, self.score_first = settings, fabric, run, score_first
        self.gan, self.extractor, self.references = fabric.to_device(gan), extractor, references
        self.labelled, self.unlabelled = labelled, unlabelled
        self.batches = Shuffled(len(labelled.labels), s.batch_size, s.seed, "order")
        if unlabelled is not None:
            self.unlabelled_batches = Shuffled(len(unlabelled.labels), s.batch_size, s.seed, "unlabelled order")
        self.trained = [choose_trained(net, mode) for net, mode in zip((gan.generator, gan.discriminator), modes)]
        self.optimizers = [
            torch.optim.AdamW(chosen, lr, (s.beta1, s.beta2), weight_decay=s.weight_decay)
            for chosen, lr in zip(self.trained, (s.lr, s.d_lr))
        ]
        self.progress = {"step": 0, "best_fid": float("inf"), "best_step": 0, "best_state": None}
        self.last_record: dict[str, float] = {}
        self.augment = DiscriminatorAugmentation(s.augment)
        self.p = torch.tensor(self.augment.first_p, device=fabric.device)

    def fit(self) -> Gan:
        """Train from the last checkpoint if there is one, and return the networks with the best FID."""
        if checkpoint := self.run.resume():
            self._restore(checkpoint)
        elif self.score_first:
            self.fabric.barrier()  # all processes have looked for a checkpoint before one is written
            self._record(0, {})
        s, first = self.settings, self.progress["step"]
        last = last_step(s.steps, s.end_after)
        others = not self.fabric.is_global_zero
        with Progress(total=last, initial=first, desc="gan", unit="step", disable=others, resumable=True) as bar:
            while (start := self.progress["step"]) < last:
                stop = min(last, (start // s.score_every + 1) * s.score_every)
                self._record(stop, self._train(range(start, stop), bar))
        if self.progress["step"] < s.steps:
            self.run.ended_after = self.progress["step"]
        if self.last_record and self.fabric.is_global_zero:
            health.warn(*_findings(self.last_record))
        if self.run.writes and self.progress["step"] > self.progress["best_step"]:
            save_state(self.gan.state_dict(), self.run.folder / "last.pt")
        self.gan.load_state_dict(self.progress["best_state"])
        return self.gan

    def _record(self, step: int, losses: dict[str, float]) -> None:
        """Score the networks after `step` steps, log the scores and save a checkpoint."""
        record = self.last_record = losses | self._score()
        self.progress["step"] = step
        self._keep_best(record)
        self.run.log(step, **record)
        self._save()

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.gan.load_state_dict(checkpoint["model"])
        for optimizer, state in zip(self.optimizers, checkpoint["optimizers"]):
            optimizer.load_state_dict(state)
        self.p.copy_(checkpoint["p"])
        self.progress = {name: checkpoint[name] for name in self.progress}

    def _save(self) -> None:
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        states = {"model": self.gan.state_dict(), "optimizers": optimizers, "p": self.p}
        self.run.save(self.progress["step"], {**self.progress, **states})

    def _keep_best(self, record: dict[str, float]) -> None:
        if not record["fid"] < self.progress["best_fid"]:
            return
        state = {name: value.detach().clone() for name, value in self.gan.state_dict().items()}
        self.progress |= {"best_fid": record["fid"], "best_step": self.progress["step"], "best_state": state}

    def _train(self, steps: range, bar: Progress) -> dict[str, float]:
        """Train these steps. Return the means of their losses."""
        self.gan.train()
        start = steps[0]
        losses = defaultdict(list)
        for step in steps:
            for name, loss in self._step(step).items():
                losses[name].append(loss)
            if (step + 1) % _READ_EVERY == 0 or step == steps[-1]:
                latest = torch.stack([values[-1] for values in losses.values()]).sum()  # NaN weights stay NaN
                self.run.check_finite(self.fabric.all_reduce(latest, reduce_op="sum").item(), step)
                bar.update(step + 1 - start)
                start = step + 1
        means = torch.stack([torch.stack(values).mean() for values in losses.values()])
        means = self.fabric.all_reduce(means, reduce_op="mean").tolist()
        return dict(zip(losses, means)) | {"augment_p": self.p.item()}

    def _step(self, step: int) -> dict[str, Tensor]:
        """Update each network (the generator every d_steps_per_g-th step). Return the losses."""
        s = self.settings
        local = slice(self.fabric.global_rank, None, self.fabric.world_size)
        batch = torch.from_numpy(self.batches.batch(step)).to(self.fabric.device)
        real, labels = from_bytes(self.labelled.pixels[batch[local]]), self.labelled.labels[batch[local]]
        others = self.labelled.labels[batch.roll(1)[local]]
        noise = torch_stream(s.seed, "noise", step)
        z = torch.randn(s.batch_size, self.gan.config.z_dim, generator=noise)[local].to(self.fabric.device)
        # For the generated images of the generator's update, then for real, generated and unlabelled images.
        uniforms = torch.rand(4, s.batch_size, self.augment.n_uniforms, generator=noise)
        uniforms = uniforms[:, local].to(self.fabric.device)
        with self.fabric.autocast():
            fake = self.gan.generator(z, labels)
        losses = self._generator_step(step, fake, labels, z, uniforms[0])
        extra = []
        if self.unlabelled is not None:
            rows = torch.from_numpy(self.unlabelled_batches.batch(step)[local]).to(self.fabric.device)
            extra = [from_bytes(self.unlabelled.pixels[rows])]
        images = torch.cat([real, fake.detach().float(), *extra])
        drawn = uniforms[1:].flatten(0, 1)[: len(images)]
        return losses | self._discriminator_step(step, images, labels, others, z, drawn)

    def _generator_step(
        self, step: int, fake: Tensor, labels: Tensor, z: Tensor, uniforms: Tensor
    ) -> dict[str, Tensor]:
        s = self.settings
        if step % s.d_steps_per_g:
            return {}
        with _frozen(self.trained[1]):
            seen = self.augment(fake.float(), uniforms, self.p)
            with self.fabric.autocast():
                outputs = self.gan.discriminator(seen, labels)
            losses = generator_losses(_in_float32(outputs), z)
            self._update(0, weighted(losses, s.gamma, s.alpha))
        self.gan.averaged.update_parameters(self.gan.generator)
        return {f"g_{name}": loss.detach() for name, loss in losses.items()}

    def _discriminator_step(
        self, step: int, images: Tensor, labels: Tensor, others: Tensor, z: Tensor, uniforms: Tensor
    ) -> dict[str, Tensor]:
        """Update the discriminator and return its losses.

        `images` are real images of `labels`, generated images of `labels`, and optionally unlabelled images. The
        mismatch loss pairs the real images with the classes `others`.
        """
        s, n = self.settings, len(labels)
        # Unlabelled images get arbitrary classes: their conditional logits are in no loss.
        classes, seen = labels.repeat(len(images) // n), self.augment(images, uniforms, self.p)
        with self.fabric.autocast():
            outputs = _in_float32(self.gan.discriminator(seen, classes))
        real, fake, *extra = (DiscriminatorOutput(*parts) for parts in zip(*(part.split(n) for part in outputs)))
        losses = discriminator_losses(real, fake, extra[0] if extra else real, z)
        if s.mismatch:
            logits = real.unconditional + self.gan.discriminator.match(real.hidden, others)
            losses["mismatch"] = mismatch_loss(logits, others != labels)
        loss = weighted(losses, s.gamma, s.alpha, s.mismatch or 0)
        if s.r1 and step % _PENALTY_EVERY == 0:
            losses["penalty"] = self._gradient_penalty(seen[:n], labels)
            loss = loss + _PENALTY_EVERY * s.r1 / 2 * losses["penalty"]
        self._update(1, loss)
        if self.augment.adapts:
            self.p = self.augment.adapted(self.p, self.fabric.all_gather(real.conditional.detach()), s.batch_size)
        return {f"d_{name}": loss.detach() for name, loss in losses.items()}

    def _gradient_penalty(self, real: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared norm of the gradient of the conditional logits by the augmented images."""
        real = real.detach().requires_grad_(True)
        logits = self.gan.discriminator(real, labels).conditional
        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        return gradient.square().sum((1, 2, 3)).mean()

    def _update(self, which: int, loss: Tensor) -> None:
        """Update the generator (0) or the discriminator (1) with gradients averaged over processes."""
        self.optimizers[which].zero_grad()
        if loss.requires_grad:  # false if the loss depends on no trained weight
            self.fabric.backward(loss)
        gradients = [p.grad for p in self.trained[which] if p.grad is not None]
        if self.fabric.world_size > 1 and gradients:
            whole = self.fabric.all_reduce(torch.cat([one.reshape(-1) for one in gradients]), reduce_op="mean")
            for one, mean in zip(gradients, whole.split([one.numel() for one in gradients])):
                one.copy_(mean.view(one.shape))
        self.optimizers[which].step()

    @torch.inference_mode()
    def _score(self) -> dict[str, float]:
        """Return the FID of the averaged generator against each reference, always with the same noise."""
        from lowshot.gan.scores import frechet_distance  # torchmetrics takes seconds to import

        self.gan.eval()
        record, first = {}, next(iter(self.references))
        for name, (real, labels) in self.references.items():
            noise = torch_stream(self.settings.seed, "score")
            z = torch.randn(len(labels), self.gan.config.z_dim, generator=noise).to(labels.device)
            fake = features_of(self.extractor, make_images(self.gan.averaged.module, z, labels))
            if not fake.isfinite().all():
                raise InputError(f"features of generated images ({name} classes) are NaN or infinite")
            record["fid" if name == first else f"fid_{name}"] = frechet_distance(real, fake)
            if name == first:
                of_real = _spread(real, labels)
                record["spread"] = _spread(fake, labels) / of_real if of_real else 1.0
        self.run.check_finite(sum(record.values()), self.progress["step"])
        return record


def _spread(features: Tensor, labels: Tensor) -> float:
    """Return the root mean squared distance of features (N, D) from the means of their classes."""
    _, classes = labels.unique(return_inverse=True)
    means = class_means(features[None], classes[None], int(classes.max()) + 1)[0]
    return (features - means[classes]).square().sum(1).mean().sqrt().item()


def _findings(record: dict[str, float]) -> list[str | None]:
    """Return what is wrong with a GAN, from its last record."""
    found = [health.one_image_a_class(record["spread"])]
    if "d_adversarial" in record:
        found.append(health.discriminator(record["d_adversarial"], record.get("g_adversarial", 0.0)))
    return found


def _in_float32(outputs: DiscriminatorOutput) -> DiscriminatorOutput:
    return DiscriminatorOutput(*(part.float() for part in outputs))


@contextmanager
def _frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(False)
    yield
    for parameter in parameters:
        parameter.requires_grad_(True)
