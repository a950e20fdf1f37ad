"""Train a feature extractor on the base classes.

Reads   DATA/images.h5, DATA/split.json (preprocessing.py)
Writes  OUT/model.pt, OUT/config.json (together they rebuild the network), OUT/log.jsonl, OUT/tensorboard/

python train_extractor.py --data outputs/cifar100/data --out outputs/cifar100/resnet10_sgm/extractor --model ResNet10 --loss sgm
    --loss_weight 0.02
python train_extractor.py --data outputs/glyphs/data --out outputs/glyphs/try/extractor --model Conv4 --epochs 1        (CPU, seconds)
torchrun --nproc-per-node 8 train_extractor.py ...  or  --devices 8                                       (several processes)
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from lowshot.artifacts import is_done, recipe
from lowshot.augmentation import Augmentation
from lowshot.backbones import Extractor, ModelConfig, ModelName, load_extractor, load_weights, save_extractor
from lowshot.cli import run
from lowshot.datasets.images import Images, read_images
from lowshot.errors import InputError
from lowshot.loading import batches, in_batches, to_unit
from lowshot.losses import LossName, topk_correct, total_loss
from lowshot.protocol import Split, read_split
from lowshot.seeds import stream
from lowshot.training import TrainingRun, learning_rate, training_run


@dataclass
class Config:
    data: Path
    """folder with images.h5 and split.json"""
    out: Path
    """folder to write the extractor to"""
    model: ModelName = "ResNet10"
    """backbone"""
    width: PositiveFloat = 1.0
    """factor on the number of channels, for small images"""
    head: Literal["linear", "mlp"] = "linear"
    """classifier on top: linear without bias (Hariharan & Girshick), or the MLP of the CIFAR system"""
    image_size: PositiveInt = 224
    """side in pixels that images on disk are cut to; stored pixels keep theirs"""
    weights: Path | None = None
    """start from this file: a model.pt, a released .tar checkpoint, or torchvision's VGG-16; with --epochs 0 it is only
    converted"""
    loss: LossName = "plain"
    """plain cross-entropy, or with a shrinking term: sgm, batchsgm, l2"""
    loss_weight: NonNegativeFloat = 0.02
    """factor on the shrinking term (published: sgm 0.02 or 0.005, batchsgm 5, l2 0.03); unused by plain"""
    epochs: NonNegativeInt = 90
    """passes over the base classes' training images"""
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
    seed: int = 0
    """of initialisation, data order and augmentation"""
    accelerator: str = "auto"
    """where to train: auto, cpu, cuda, ..."""
    devices: PositiveInt = 1
    """processes on this machine, one a device"""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    """of the network; losses are always float32"""
    num_workers: NonNegativeInt = 4
    """processes that decode images on disk; stored pixels need none"""
    overwrite: bool = False
    """make it again even if it is there"""


def main(config: Config) -> Path:
    """Train and return the folder written."""
    images, split = read_images(config.data / "images.h5"), read_split(config.data / "split.json")
    train_rows, held_rows = choose_rows(config, images, split)
    inputs = {"images": config.data / "images.h5", "split": config.data / "split.json", "weights": config.weights}
    made_from = recipe("train_extractor", config, inputs)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    fabric = Fabric(accelerator=config.accelerator, devices=config.devices, precision=config.precision)
    fabric.launch()
    fabric.seed_everything(config.seed, verbose=False)
    model = build_model(config, images, split)
    with training_run(config.out, made_from, config.overwrite, writes=fabric.is_global_zero) as training:
        trained = fit(config, fabric, training, model, images, train_rows, held_rows)
        if fabric.is_global_zero:
            save_extractor(training.folder, trained, made_from)
    fabric.barrier()
    if fabric.is_global_zero:
        print(f"train_extractor: wrote {config.out} (D = {load_extractor(config.out).dim})")
    return config.out


def choose_rows(config: Config, images: Images, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows held out) among the base classes' training images."""
    rows = images.rows(test=False)
    if images.labels.max() >= split.n_classes:
        raise InputError(
            f"{config.data}/images.h5: label {images.labels.max()} is outside the split's {split.n_classes} classes"
        )
    rows = rows[np.isin(images.labels[rows], split.base_classes)]
    if len(rows) == 0:
        raise InputError(f"{config.data}/images.h5: no training image of a base class")
    if config.patience and not config.holdout:
        raise InputError("patience needs a holdout above 0: early stopping watches the held-out loss")
    rows = stream(config.seed, "holdout").permutation(rows)
    n_held = round(config.holdout * len(rows))
    return np.sort(rows[n_held:]), np.sort(rows[:n_held])


def build_model(config: Config, images: Images, split: Split) -> Extractor:
    """The network, freshly initialised or started from --weights."""
    size = images.size or config.image_size
    model = Extractor(ModelConfig(config.model, split.n_classes, images.n_channels, size, config.width, config.head))
    if config.weights:
        load_weights(model, config.weights)
    return model.to(memory_format=torch.channels_last)


def build_optimizer(config: Config, model: Extractor) -> torch.optim.Optimizer:
    """SGD on everything alike, or Adam that leaves batch norm undecayed (analogy_cifar spec 2.3)."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    norms = [p for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for p in m.parameters()]
    chosen = {id(p) for p in norms}
    decayed = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.Adam(groups, config.lr, betas=(0.5, 0.999))


def fit(config: Config, fabric: Fabric, training: TrainingRun, model: Extractor, images: Images,
        train_rows: np.ndarray, held_rows: np.ndarray) -> Extractor:  # fmt: skip
    """All epochs, from the last checkpoint if there is one; returns the final (or with patience the best) network."""
    network, optimizer = fabric.setup(model, build_optimizer(config, model))
    epoch, best_loss, best_epoch, best_state = 0, float("inf"), -1, None
    if checkpoint := training.resume():
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        epoch, best_loss, best_epoch, best_state = (
            checkpoint[k] for k in ("epoch", "best_loss", "best_epoch", "best_state")
        )
    while epoch < config.epochs and not (config.patience and epoch - best_epoch > config.patience):
        record = train_epoch(config, fabric, training, network, optimizer, images, train_rows, epoch)
        if len(held_rows):
            record |= evaluate(config, fabric, network, images, held_rows)
        if record.get("held_loss", float("inf")) < best_loss:
            best_loss, best_epoch = record["held_loss"], epoch
            best_state = (
                {name: value.detach().clone() for name, value in model.state_dict().items()}
                if config.patience
                else None
            )
        epoch += 1
        training.log(epoch, **record)
        training.save(epoch, {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                              "best_loss": best_loss, "best_epoch": best_epoch, "best_state": best_state})  # fmt: skip
    if best_state is not None:
        model.load_state_dict(best_state)
    return model


def train_epoch(config: Config, fabric: Fabric, training: TrainingRun, network: torch.nn.Module, optimizer: torch.optim.Optimizer,
                images: Images, rows: np.ndarray, epoch: int) -> dict[str, float]:  # fmt: skip
    """One pass in an order of its own; each process takes every n-th image of a batch. Returns the epoch's averages."""
    network.train()
    order = stream(config.seed, "order", epoch).permutation(len(rows))
    steps = [
        batch[: len(batch) // fabric.world_size * fabric.world_size] for batch in in_batches(order, config.batch_size)
    ]
    mine = [batch[fabric.global_rank :: fabric.world_size] for batch in steps if len(batch) > fabric.world_size]
    uniforms = config.augment.uniforms(len(rows), config.seed, epoch)
    crop = (config.seed, epoch) if config.augment.resized_crop else None
    loaded = batches(images, [rows[part] for part in mine], config.image_size, crop, config.num_workers)
    total = {"loss": 0.0, "top1": 0.0}
    bar = tqdm(loaded, f"epoch {epoch + 1}/{config.epochs}", len(mine), disable=not fabric.is_global_zero, unit="step")
    for i, pixels in enumerate(bar):
        rate = learning_rate(epoch + i / len(mine), config.epochs, config.lr, config.schedule, config.step_epochs,
                             config.lr_decay, config.warmup_epochs, config.warmup_lr)  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = config.augment(to_unit(pixels, fabric.device), uniforms[mine[i]].to(fabric.device))
        labels = torch.from_numpy(images.labels[rows[mine[i]]]).to(fabric.device)
        loss, scores = train_step(config, fabric, network, optimizer, batch, labels)
        training.check_finite(loss, epoch * len(mine) + i)
        total["loss"] += loss / len(mine)
        total["top1"] += topk_correct(scores, labels, 1).item() / len(labels) / len(mine)
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    return {**total, "lr": rate}


def train_step(config: Config, fabric: Fabric, network: torch.nn.Module, optimizer: torch.optim.Optimizer,
               batch: Tensor, labels: Tensor) -> tuple[float, Tensor]:  # fmt: skip
    """Forward, backward, update; returns the loss and the scores."""

    def average(gradient: Tensor) -> Tensor:
        return fabric.all_gather(gradient, sync_grads=True).mean(dim=0) if fabric.world_size > 1 else gradient

    scores, features = network(batch)
    loss = total_loss(config.loss, config.loss_weight, scores, features, labels, average)
    value = loss.item()
    if np.isfinite(value):
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
    return value, scores.detach()


@torch.inference_mode()
def evaluate(
    config: Config, fabric: Fabric, network: torch.nn.Module, images: Images, rows: np.ndarray
) -> dict[str, float]:
    """Cross-entropy, top-1 and top-5 on held-out images, without augmentation; every process does all of it."""
    network.eval()
    sums = np.zeros(3)
    parts = in_batches(rows, config.batch_size)
    for part, pixels in zip(parts, batches(images, parts, config.image_size, None, config.num_workers)):
        scores, _ = network(to_unit(pixels, fabric.device))
        labels = torch.from_numpy(images.labels[part]).to(fabric.device)
        loss = torch.nn.functional.cross_entropy(scores.float(), labels, reduction="sum")
        sums += [loss.item(), topk_correct(scores, labels, 1).item(), topk_correct(scores, labels, 5).item()]
    return dict(zip(("held_loss", "held_top1", "held_top5"), (sums / len(rows)).tolist()))


if __name__ == "__main__":
    run(main, Config, __doc__)
