"""The training loop of image networks, for all losses, optimisers and numbers of processes."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms.v2.functional import resize

from lowshot.core import health
from lowshot.core.artifacts import Recipe, recipe
from lowshot.core.choices import is_own
from lowshot.core.errors import InputError
from lowshot.core.progress import Progress, say
from lowshot.core.runtime import open_fabric
from lowshot.core.seeds import stream, torch_stream
from lowshot.core.state_dicts import save_state
from lowshot.core.training import TrainingRun, last_step, refuse_other_run, training_run
from lowshot.data.datasets.images import Images
from lowshot.data.lineage import Lineage
from lowshot.representation.augmentation import augmentation_of
from lowshot.representation.loading import ImageLoader, in_batches, to_unit
from lowshot.representation.operations import PASSES_OF_A_STEP, operations_per_image
from lowshot.representation.settings import (
    SGD,
    Adam,
    Cosine,
    HoldoutSettings,
    LaunchSettings,
    ProgressiveResizing,
    StandardAugmentation,
    TrainingSettings,
)


def training_recipe(stage: str, config: TrainingSettings, inputs: dict[str, Path | None], seen: Lineage) -> Recipe:
    """Return the recipe of a trained network that has `seen` images. It includes the number of processes, as each has
    its own batch norm.
    """
    return recipe(stage, config, inputs, seen.to_json(), **({"devices": config.devices} if config.devices > 1 else {}))


def check_training(config: TrainingSettings, images: Images, n_rows: int) -> None:
    """Raise InputError for settings that do not allow training on `n_rows` of the images."""
    schedule, augment = config.schedule, config.augment
    if isinstance(schedule, Cosine) and schedule.n_cycles:
        n_annealed = config.epochs - schedule.warmup_epochs
        if n_annealed % schedule.n_cycles:
            enough = config.epochs - n_annealed % schedule.n_cycles + schedule.n_cycles
            raise InputError(
                f"--schedule.n_cycles {schedule.n_cycles}: {n_annealed} epochs (without warm-up) cannot be divided "
                f"into {schedule.n_cycles} equal cycles. Use --epochs {enough}, or --schedule.n_cycles 1"
            )
    if min(config.batch_size, n_rows) < 2 * config.devices:
        raise InputError(
            f"--batch_size {config.batch_size}, --devices {config.devices}: each process needs at least two images per "
            f"step, and there are {n_rows} images. Use a larger batch, fewer devices or more images"
        )
    if isinstance(augment, StandardAugmentation) and augment.resized_crop and images.pixels is not None:
        raise InputError(
            "--augment.resized_crop: works with images on disk only, and these are stored pixels. Use "
            "--augment.crop_area 0.08"
        )


def _check_resizing(choice: ProgressiveResizing, model: nn.Module) -> None:
    """Raise InputError for sizes of early images that `model` cannot use."""
    sizes, until, config = choice.sizes, choice.until, model.config
    if len(sizes) != len(until):
        raise InputError(
            f"--progressive_resizing: {len(sizes)} sizes and {len(until)} shares of the training. Give one share for "
            f"each size"
        )
    if any(later <= earlier for earlier, later in pairwise(until)):
        raise InputError(f"--progressive_resizing.until {until}: must increase, as each size follows the one before")
    if config.input_size:
        raise InputError("--progressive_resizing: --model.resize resizes all images. Use one of them")
    for size in [size for size in sizes if size >= config.image_size][:1]:
        raise InputError(
            f"--progressive_resizing.sizes {size}: the images have {config.image_size} px. Use smaller sizes"
        )
    for size in sizes:
        try:
            operations_per_image(model, size)
        except (RuntimeError, AssertionError) as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"--progressive_resizing.sizes {size}: not possible with this network ({first})") from None


def hold_out(config: HoldoutSettings, images: Images, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide the training `rows` into rows to train on and held-out rows, both ascending.

    Raises InputError for settings that do not fit the number of rows.
    """
    if config.patience and not config.holdout:
        raise InputError("--patience: early stopping needs held-out images. Use --holdout 0.1, for example")
    rows = stream(config.seed, "holdout").permutation(rows)
    n_held = round(config.holdout * len(rows))
    if config.patience and n_held == 0:
        raise InputError(
            f"--holdout {config.holdout}: holds out none of the {len(rows)} images, but --patience needs some. Use at "
            f"least --holdout {1 / len(rows):.2g}"
        )
    check_training(config, images, len(rows) - n_held)
    return np.sort(rows[n_held:]), np.sort(rows[:n_held])


@contextmanager
def image_training(
    config: LaunchSettings, out: Path, made_from: dict, overwrite: bool
) -> Iterator[tuple[Fabric, TrainingRun]]:
    """Start and seed the processes, and open a run that writes `out` when the block ends without an error."""
    if not overwrite:
        refuse_other_run(out, made_from)
    fabric = open_fabric(config.accelerator, config.precision, config.devices)
    fabric.launch()
    if fabric.world_size < config.devices:
        raise InputError(
            f"--devices {config.devices}: the launcher started only {fabric.world_size} process. With SLURM, set "
            f"ntasks to the number of devices"
        )
    fabric.seed_everything(config.seed, verbose=False)
    with training_run(out, made_from, overwrite, writes=fabric.is_global_zero) as run:
        fabric.barrier()
        yield fabric, run
        fabric.barrier()


class Trainer:
    """Trains `model`, which has a `config` (ModelConfig), on `images[train_rows]` and validates on `images[held_rows]`.

    With `patience`, training stops after that many epochs without a lower held-out loss. Subclasses implement the step
    and the evaluation.

    The order, augmentation and dropped blocks of an epoch depend on (seed, epoch) only, and checkpoints are saved
    between epochs, so that a resumed run gives the weights of an uninterrupted one. With n processes, each uses every
    n-th image of a batch. Batch norm sees the images of its own process, and the running statistics of the first
    process are kept.
    """

    n_views = 1

    def __init__(
        self,
        settings: TrainingSettings,
        fabric: Fabric,
        run: TrainingRun,
        model: nn.Module,
        images: Images,
        train_rows: np.ndarray,
        held_rows: np.ndarray,
        patience: int = 0,
    ) -> None:
        self.settings, self.fabric, self.run, self.model, self.images = settings, fabric, run, model, images
        self.train_rows, self.held_rows, self.patience = train_rows, held_rows, patience
        self.augment = augmentation_of(settings.augment)
        if settings.progressive_resizing is not None:
            _check_resizing(settings.progressive_resizing, self._extractor())
        n_loaded, area = settings.epochs * len(train_rows), self.augment.smallest_area
        self.loader = ImageLoader(images, model.config, settings.num_workers, n_loaded, area, fabric.device)
        self.network, self.optimizer = fabric.setup(model, build_optimizer(settings, model))
        self.saved_at = time.monotonic()
        self.last_record: dict[str, float] = {}
        self.operations_per_image: dict[int, int] = {}
        self.progress = {"epoch": 0, "best_loss": float("inf"), "best_epoch": -1, "best_state": None}
        self.progress |= {"operations": 0, "seconds": 0.0}

    def fit(self) -> nn.Module:
        """Train all epochs, or the remaining ones after a checkpoint, and return the network.

        With patience, this is the best network; the last weights are saved too.
        """
        if checkpoint := self.run.resume():
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.fabric.strategy.precision.load_state_dict(checkpoint["precision"])
            self.progress |= {name: checkpoint[name] for name in self.progress if name in checkpoint}
        with self._progress_bar() as bar:
            while not self._has_ended():
                self._run_epoch(self.progress["epoch"], bar)
        if self.progress["epoch"] < self.settings.epochs and not self._is_out_of_patience():
            self.run.ended_after = self.progress["epoch"]
        if self.last_record and self.fabric.is_global_zero:
            health.warn(*self._findings(self.last_record))
        if self.progress["best_state"] is not None:
            self._change_to_best()
        return self.model

    def _progress_bar(self) -> Progress:
        """Open a progress bar for all epochs, in steps."""
        n_steps, first = self.n_steps, self.progress["epoch"]
        last = max(first, last_step(self.settings.epochs, self.settings.end_after))
        quiet = not self.fabric.is_global_zero
        return Progress(total=last * n_steps, initial=first * n_steps, unit="step", disable=quiet, resumable=True)

    def _run_epoch(self, epoch: int, bar: Progress) -> None:
        self._seed_layers(epoch)
        start = time.monotonic()
        record = self._before_epoch(epoch)
        bar.spread(time.monotonic() - start, self.n_steps)
        record |= self._train_epoch(epoch, bar)
        self.progress["seconds"] += time.monotonic() - start
        record |= {"operations": self.progress["operations"], "seconds": round(self.progress["seconds"], 1)}
        self._share_buffers()
        if len(self.held_rows):
            record |= self._evaluate()
        self._keep_best(record)
        self.last_record = record
        self.progress["epoch"] += 1
        self._tell(record)
        if self._checkpoint_is_due():
            self._save()

    def _has_ended(self) -> bool:
        """Whether all epochs are done, `end_after` is reached, or patience is exhausted."""
        last = last_step(self.settings.epochs, self.settings.end_after)
        return self.progress["epoch"] >= last or self._is_out_of_patience()

    def _is_out_of_patience(self) -> bool:
        waited = self.progress["epoch"] - 1 - self.progress["best_epoch"]
        return bool(self.patience) and waited >= self.patience

    def _tell(self, record: dict[str, float]) -> None:
        """Log an epoch, and print its held-out scores."""
        epoch = self.progress["epoch"]
        self.run.log(epoch, **record)
        watched = ", ".join(f"{name} {record[name]:.3f}" for name in ("held_loss", "held_top1") if name in record)
        if watched and self.fabric.is_global_zero:
            say(f"epoch {epoch}/{self.settings.epochs}: {watched}")

    def _change_to_best(self) -> None:
        """Save the last weights to last.pt, and load the best ones into the model."""
        if self.run.writes:
            save_state(self._extractor().state_dict(), self.run.folder / "last.pt")
        self.run.log(
            self.progress["epoch"], model_epoch=self.progress["best_epoch"] + 1, last_epoch=self.progress["epoch"]
        )
        self.model.load_state_dict(self.progress["best_state"])

    def _extractor(self) -> nn.Module:
        """Return the part of the model that is kept."""
        return self.model

    def _checkpoint_is_due(self) -> bool:
        """Whether to save now, by the clock of the first process. The end of training always saves."""
        waited = time.monotonic() - self.saved_at >= 60 * self.settings.checkpoint_minutes
        return self._has_ended() or self.fabric.broadcast(waited)

    def _save(self) -> None:
        states = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),  # the loss scale of 16-mixed
        }
        self.run.save(self.progress["epoch"], {**self.progress, **states})
        self.saved_at = time.monotonic()

    def _keep_best(self, record: dict[str, float]) -> None:
        if not self.patience or record["held_loss"] >= self.progress["best_loss"]:
            return
        state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.progress |= {"best_loss": record["held_loss"], "best_epoch": self.progress["epoch"], "best_state": state}

    def _seed_layers(self, epoch: int) -> None:
        """Seed torch's global generator, from which dropout layers draw; checkpoints do not contain its state."""
        torch.manual_seed(torch_stream(self.settings.seed, "layers", epoch, self.fabric.global_rank).initial_seed())

    def _share_buffers(self) -> None:
        """Copy the buffers of the first process to all processes, so that their evaluations agree."""
        if self.fabric.world_size > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _before_epoch(self, epoch: int) -> dict[str, float]:
        """Hook that runs before an epoch. Returns values to log."""
        return {}

    def _train_mode(self) -> None:
        self.network.train()

    def _train_epoch(self, epoch: int, bar: Progress) -> dict[str, float]:
        """Train one epoch, and return averages over its steps."""
        self._train_mode()
        steps, records = self._steps(epoch), []
        loaded = self._batches(epoch, steps, range(self.n_views))
        bar.set_description(f"epoch {epoch + 1}/{self.settings.epochs}", refresh=False)
        for i, (step, views) in enumerate(zip(steps, loaded)):
            rate = self._set_rate(epoch + i / len(steps))
            views = [self._at_size(images, epoch + i / len(steps)) for images in views]
            for view, images in enumerate(views):
                self._count(images, self._passes(view))
            records.append(_numbers(self._step(step, *views)))
            loss = records[-1]["loss"]
            self.run.check_finite(loss, epoch * len(steps) + i)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
        return {**{name: float(np.mean([one[name] for one in records])) for name in records[0]}, "lr": rate}

    def _passes(self, view: int) -> int:
        """Return the cost of a step for a view, in forward passes of the extractor."""
        return PASSES_OF_A_STEP

    def _count(self, images: Tensor, n_passes: int) -> None:
        """Add the operations of passes of the extractor for images (N, C, H, W), in all processes."""
        size = images.shape[-1]
        if size not in self.operations_per_image:
            self.operations_per_image[size] = operations_per_image(self._extractor(), size)
        n_images = len(images) * self.fabric.world_size
        self.progress["operations"] += n_passes * n_images * self.operations_per_image[size]

    def _batches(self, epoch: int, steps: list[np.ndarray], views: Sequence[int]) -> Iterator[list[Tensor]]:
        """Yield the augmented images of each step (positions in `train_rows`), once for each of the views, which differ
        in their augmentation."""
        seed, device = self.settings.seed, self.fabric.device
        uniforms = [self.augment.uniforms(len(self.train_rows), seed, epoch, view) for view in views]
        # The decoder crops images on disk, the augmentation crops stored pixels.
        augment = self.augment.without_crop() if self.images.pixels is None else self.augment
        rows, keys = [self.train_rows[step] for step in steps], [(seed, epoch, view) for view in views]
        for step, loaded in zip(steps, self.loader.views(rows, keys)):
            yield [augment(to_unit(one, device), u[step].to(device)) for one, u in zip(loaded, uniforms)]

    def _at_size(self, images: Tensor, epoch: float) -> Tensor:
        """Resize images to the size that is due at `epoch`, a fraction after its first step."""
        resizing = self.settings.progressive_resizing
        full = images.shape[-1]
        size = full if resizing is None else resizing.at(epoch / self.settings.epochs, full)
        return images if size == full else resize(images, [size, size], antialias=True)

    def _unchanged(self, row_batches: list[np.ndarray]) -> Iterator[Tensor]:
        """Yield the images of each batch of rows without augmentation, as in feature extraction."""
        return (to_unit(pixels, self.fabric.device) for pixels in self.loader.whole(row_batches))

    @cached_property
    def n_steps(self) -> int:
        """Number of steps of an epoch."""
        return len(self._steps(0))

    def _steps(self, epoch: int) -> list[np.ndarray]:
        """Return this process's part of each batch of the epoch, as positions in `train_rows`. All processes get equal
        parts."""
        n, rank = self.fabric.world_size, self.fabric.global_rank
        order = stream(self.settings.seed, "order", epoch).permutation(len(self.train_rows))
        whole = [batch[: len(batch) // n * n] for batch in in_batches(order, self.settings.batch_size)]
        return [batch[rank::n] for batch in whole if len(batch) > n]  # batch norm needs two images

    def _set_rate(self, epoch: float) -> float:
        rate = self.settings.schedule.rate(epoch, self.settings.epochs, self.settings.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _step(self, positions: np.ndarray, *views: Tensor) -> dict[str, Tensor]:
        """Run forward, backward and update for the images at `positions` of `train_rows`.

        `views` are their augmented images (B, C, H, W), one tensor per view. Returns scalar tensors to log, among them
        "loss".
        """
        raise NotImplementedError

    def _update(self, loss: Tensor) -> Tensor:
        """Run backward and update, and return the mean loss over all processes. They must agree on it: a process that
        stopped alone for a bad loss would leave the others waiting."""
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.optimizer.step()
        return self.fabric.all_reduce(loss.detach(), reduce_op="mean")

    def _findings(self, record: dict[str, float]) -> list[str | None]:
        """Return what is wrong with the training, from the record of its last epoch (`lowshot.core.health`)."""
        return []

    def _evaluate(self) -> dict[str, float]:
        """Evaluate the held-out images and return values to log. Early stopping uses "held_loss"."""
        raise NotImplementedError


def _numbers(record: dict[str, Tensor]) -> dict[str, float]:
    """Read all values in one transfer, so that each step waits for the GPU only once."""
    return dict(zip(record, torch.stack([value.float() for value in record.values()]).tolist()))


def build_optimizer(settings: TrainingSettings, model: nn.Module) -> torch.optim.Optimizer:
    """Build the chosen optimiser for all parameters that are trained."""
    choice = settings.optimizer
    if is_own(choice):
        return choice.build(model, settings.lr, settings.weight_decay)
    if isinstance(choice, SGD) and choice.nesterov and not choice.momentum:
        raise InputError("--optimizer.nesterov: needs momentum. Use --optimizer.momentum 0.9, for example")
    return _OPTIMIZERS[type(choice)](choice, model, settings.lr, settings.weight_decay)


def _sgd(choice: SGD, model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Apply weight decay to all parameters."""
    options = {"nesterov": choice.nesterov, "weight_decay": weight_decay}
    return torch.optim.SGD(_trained(model), lr, choice.momentum, **options)


def _adam(choice: Adam, model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Apply weight decay to all parameters except those of batch norm, as the CIFAR system does."""
    norms = [p for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters()]
    chosen = {id(p) for p in norms}
    decayed = [p for p in _trained(model) if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.Adam(groups, lr, betas=(0.5, 0.999))


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


_OPTIMIZERS: dict[type, Any] = {SGD: _sgd, Adam: _adam}
