"""Train the analogy generator on mined quadruplets.

Reads   QUADRUPLETS (make_quadruplet.py) and, for the critic, EXTRACTOR/ (train_extractor.py)
Writes  OUT/model.pt, OUT/config.json, OUT/log.jsonl, OUT/tensorboard/

python train_analogy_generator.py --quadruplets outputs/cifar100/resnet10_sgm/quadruplets.h5 --extractor outputs/cifar100/resnet10_sgm/extractor
    --out outputs/cifar100/resnet10_sgm/generator --lr 1
python train_analogy_generator.py --quadruplets outputs/glyphs/try/quadruplets.h5 --out outputs/glyphs/try/generator --n_steps 200 (CPU, seconds)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from tqdm import tqdm

from lowshot.artifacts import is_done, open_h5, read_recipe, recipe, require_datasets
from lowshot.backbones import load_extractor
from lowshot.cli import run
from lowshot.errors import InputError
from lowshot.generators import AnalogyGenerator, save_generator
from lowshot.runtime import pick_device
from lowshot.seeds import stream
from lowshot.training import TrainingRun, training_run

Rule = Literal["hariharan2017", "ghosted2018"]


@dataclass
class Config:
    quadruplets: Path
    """file of centroids and quadruplets"""
    out: Path
    """folder to write the generator to"""
    extractor: Path | None = None
    """folder whose classifier judges the generated features; without it a linear one is fitted to the centroids"""
    rule: Rule = "hariharan2017"
    """what is predicted and how it is trained: ICCV 2017 (b from a, c, d; SGD) or the CIFAR system (d from c, a, b;
    Adam)"""
    lr: PositiveFloat | None = None
    """learning rate; published 0.1 (1 for SGM features) and 1e-4"""
    n_steps: PositiveInt | None = None
    """most steps of gradient descent; published 120000, and 500 passes with early stopping"""
    batch_size: PositiveInt | None = None
    """quadruplets a step; published 128 and 32"""
    mse_weight: NonNegativeFloat = 10.0
    """factor on the squared error beside the critic's cross-entropy"""
    hidden: PositiveInt = 512
    """width of the two hidden layers"""
    min_score: float = 0.0
    """leave out quadruplets whose cosine is not above this"""
    seed: int = 0
    """of initialisation and data order"""
    overwrite: bool = False
    """make it again even if it is there"""


@dataclass
class Recipe:
    """A paper's training: optimiser, sizes, and the columns of a quadruplet that are (seed, from, to) and target."""

    optimizer: str
    lr: float
    batch_size: int
    weight_decay: float
    columns: tuple[int, int, int, int]
    n_steps: int | None = None  # None: 500 passes
    n_plateaus: int = 1  # lr / 10 after each
    holdout: float = 0.0
    patience: int = 0  # passes without a better held-out loss


RECIPES = {
    "hariharan2017": Recipe("sgd", 0.1, 128, 1e-4, (0, 2, 3, 1), n_steps=120_000, n_plateaus=3),
    "ghosted2018": Recipe("adam", 1e-4, 32, 1e-3, (2, 0, 1, 3), holdout=0.2, patience=10),
}


def main(config: Config) -> Path:
    """Train and return the folder written."""
    centroids, labels, quadruplets = read_quadruplets(config)
    made_from = recipe(
        "train_analogy_generator", config, {"quadruplets": config.quadruplets, "critic": config.extractor}
    )
    mined_from = read_recipe(config.quadruplets)
    if mined_from and "extractor" in mined_from["inputs"]:
        made_from["inputs"]["extractor"] = mined_from["inputs"]["extractor"]
    check_critic(config, made_from)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    device = pick_device()
    torch.manual_seed(config.seed)
    critic = build_critic(config, centroids, labels).to(device).requires_grad_(False)
    model = build_generator(config, centroids, labels).to(device)
    with training_run(config.out, made_from, config.overwrite) as training:
        fit(config, training, model, critic, torch.from_numpy(quadruplets).to(device))
        save_generator(training.folder, model.cpu(), made_from)
    print(f"train_analogy_generator: wrote {config.out}")
    return config.out


def read_quadruplets(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(centroids (B, K, D), their class labels (B,), quadruplets (M, 4) of flat centroid numbers above `min_score`),
    checked."""
    with open_h5(config.quadruplets) as file:
        require_datasets(file, ["centroids", "centroid_labels", "quadruplets", "scores"])
        centroids, labels, quadruplets, scores = (
            file[n][:] for n in ("centroids", "centroid_labels", "quadruplets", "scores")
        )
    quadruplets = quadruplets[scores > config.min_score].astype(np.int64)
    if len(quadruplets) == 0:
        raise InputError(f"{config.quadruplets}: no quadruplet scores above {config.min_score}")
    if not np.isfinite(centroids).all():
        raise InputError(f"{config.quadruplets}: centroids hold NaN or infinity")
    if quadruplets.min() < 0 or quadruplets.max() >= centroids.shape[0] * centroids.shape[1]:
        raise InputError(f"{config.quadruplets}: a quadruplet names a centroid that is not there")
    return centroids, labels.astype(np.int64), quadruplets


def check_critic(config: Config, made_from: dict) -> None:
    """InputError if the critic is of another extractor than the features."""
    inputs = made_from["inputs"]
    if config.extractor and "extractor" in inputs and inputs["critic"] != inputs["extractor"]:
        raise InputError(f"{config.extractor}: not the extractor that the features of {config.quadruplets} come from")


def build_critic(config: Config, centroids: np.ndarray, labels: np.ndarray) -> nn.Module:
    """The frozen classifier (N, D) -> (N, classes): the extractor's head, or a linear layer fitted to the labelled
    centroids.

    The fit departs from the papers (the first trains one on all features, SGD): the quadruplets file has the centroids
    only.
    """
    dim = centroids.shape[2]
    if config.extractor:
        extractor = load_extractor(config.extractor)
        if extractor.dim != dim:
            raise InputError(
                f"{config.extractor}: makes features of {extractor.dim} dimensions, but {config.quadruplets} has {dim}"
            )
        return extractor.classifier
    critic = nn.Linear(dim, int(labels.max()) + 1)
    x, y = torch.from_numpy(centroids.reshape(-1, dim)), torch.from_numpy(labels).repeat_interleave(centroids.shape[1])
    optimizer = torch.optim.LBFGS(critic.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(critic(x), y) + 1e-4 / 2 * sum(p.square().sum() for p in critic.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    return critic


def build_generator(config: Config, centroids: np.ndarray, labels: np.ndarray) -> AnalogyGenerator:
    """A generator with fresh weights (the CIFAR system: N(0, 0.02), bias 0) that carries its centroids."""
    n_classes, n_clusters, dim = centroids.shape
    model = AnalogyGenerator(dim, config.hidden, n_classes, n_clusters)
    model.centroids.copy_(torch.from_numpy(centroids))
    model.centroid_labels.copy_(torch.from_numpy(labels))
    if config.rule == "ghosted2018":
        for layer in model.layers[::2]:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return model


def fit(config: Config, training: TrainingRun, model: AnalogyGenerator, critic: nn.Module, quadruplets: Tensor) -> None:
    """All passes over the quadruplets, from the last checkpoint if there is one; leaves the final (or best held-out)
    weights."""
    preset = RECIPES[config.rule]
    train, held = hold_out(preset, quadruplets)
    batch_size = min(config.batch_size or preset.batch_size, len(train))
    per_pass = -(-len(train) // batch_size)
    n_steps = config.n_steps or preset.n_steps or 500 * per_pass
    optimizer = build_optimizer(config, preset, model)
    state = {"step": 0, "best_loss": float("inf"), "best_step": 0, "best": None}
    if checkpoint := training.resume():
        model.load_state_dict(checkpoint.pop("model"))
        optimizer.load_state_dict(checkpoint.pop("optimizer"))
        state = checkpoint
    interval = per_pass if preset.patience else max(1, min(2000, n_steps // 10))
    bar = tqdm(initial=state["step"], total=n_steps, desc="generator", unit="step")
    while state["step"] < n_steps and not (
        preset.patience and state["step"] - state["best_step"] >= preset.patience * per_pass
    ):
        stop = min(n_steps, state["step"] + interval)
        record = train_steps(
            config, preset, model, critic, optimizer, train, batch_size, state["step"], stop, n_steps, training
        )
        bar.update(stop - state["step"])
        state["step"] = stop
        if len(held):
            record["held_loss"] = sum(held_losses(config, preset, model, critic, held))
            if record["held_loss"] < state["best_loss"]:
                best = {name: value.clone() for name, value in model.state_dict().items()}
                state |= {"best_loss": record["held_loss"], "best_step": stop, "best": best}
        training.log(stop, **record)
        training.save(stop, {**state, "model": model.state_dict(), "optimizer": optimizer.state_dict()})
    bar.close()
    if state["best"] is not None:
        model.load_state_dict(state["best"])


def hold_out(preset: Recipe, quadruplets: Tensor) -> tuple[Tensor, Tensor]:
    """(to train on, held out): the last of the quadruplets, which stand by source class, so that the two share no
    source class much."""
    n_train = len(quadruplets) - round(preset.holdout * len(quadruplets))
    return quadruplets[:n_train], quadruplets[n_train:]


def build_optimizer(config: Config, preset: Recipe, model: AnalogyGenerator) -> torch.optim.Optimizer:
    """SGD with dampening equal to its momentum (an average of gradients: steps are of size lr), or Adam with beta1 0.5."""
    lr = config.lr or preset.lr
    if preset.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr, betas=(0.5, 0.999), weight_decay=preset.weight_decay)
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9, dampening=0.9, weight_decay=preset.weight_decay)


def train_steps(config: Config, preset: Recipe, model: AnalogyGenerator, critic: nn.Module, optimizer: torch.optim.Optimizer,
                quadruplets: Tensor, batch_size: int, start: int, stop: int, n_steps: int, training: TrainingRun) -> dict:  # fmt: skip
    """Steps start..stop-1; each pass over the quadruplets has an order of its own. Returns the average losses."""
    per_pass = -(-len(quadruplets) // batch_size)
    sums = torch.zeros(2)
    order_of, order = -1, None
    for step in range(start, stop):
        if step // per_pass != order_of:
            order_of = step // per_pass
            order = torch.from_numpy(stream(config.seed, "order", order_of).permutation(len(quadruplets)))
        chosen = order[step % per_pass * batch_size :][:batch_size]
        for group in optimizer.param_groups:
            group["lr"] = (config.lr or preset.lr) * 0.1 ** (step * preset.n_plateaus // n_steps)
        mse, cross_entropy = losses(preset, model, critic, quadruplets[chosen])
        loss = config.mse_weight * mse + cross_entropy
        training.check_finite(loss.item(), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sums += torch.stack([mse, cross_entropy]).detach().cpu()
    mse, cross_entropy = (sums / (stop - start)).tolist()
    return {"mse": mse, "cross_entropy": cross_entropy}


def losses(preset: Recipe, model: AnalogyGenerator, critic: nn.Module, quadruplets: Tensor) -> tuple[Tensor, Tensor]:
    """(mean squared error, critic's cross-entropy) of the predicted fourth member; the class is that of seed and
    target."""
    flat = model.centroids.flatten(0, 1)
    seed, start, end, target = (quadruplets[:, column] for column in preset.columns)
    generated = model(flat[seed], flat[start], flat[end])
    labels = model.centroid_labels[target // model.centroids.shape[1]]
    return F.mse_loss(generated, flat[target]), F.cross_entropy(critic(generated), labels)


@torch.inference_mode()
def held_losses(
    config: Config, preset: Recipe, model: AnalogyGenerator, critic: nn.Module, held: Tensor
) -> tuple[float, float]:
    """The two parts of the loss over all held-out quadruplets."""
    mse, cross_entropy = losses(preset, model, critic, held)
    return config.mse_weight * mse.item(), cross_entropy.item()


if __name__ == "__main__":
    run(main, Config, __doc__)
