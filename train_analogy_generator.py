"""Train the analogy generator on mined quadruplets.

Reads   QUADRUPLETS (make_quadruplet.py) and, for the critic, EXTRACTOR/ (train_extractor.py)
Writes  OUT/model.pt, OUT/config.json, OUT/log.jsonl, OUT/tensorboard/

python train_analogy_generator.py --quadruplets outputs/cifar100/resnet10_sgm/quadruplets.h5 \\
    --extractor outputs/cifar100/resnet10_sgm/extractor --out outputs/cifar100/resnet10_sgm/generator --lr 1
CPU, seconds:
python train_analogy_generator.py --quadruplets outputs/glyphs/conv4_sgm/quadruplets.h5 \\
    --out outputs/glyphs/try/generator --n_steps 200
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from lowshot.artifacts import is_done, open_h5, read_recipe, recipe, require_datasets
from lowshot.backbones import load_extractor
from lowshot.cli import run
from lowshot.errors import InputError
from lowshot.generator_training import GeneratorTrainer, RuleName, chosen_rule, fit_critic
from lowshot.generators import AnalogyGenerator, save_generator
from lowshot.runtime import pick_device
from lowshot.training import training_run


@dataclass
class Config:
    quadruplets: Path
    """file of centroids and quadruplets"""
    out: Path
    """folder to write the generator to"""
    extractor: Path | None = None
    """folder whose classifier judges the generated features; without it a linear one is fitted to the centroids"""
    rule: RuleName = "hariharan2017"
    """what is predicted, and how trained: ICCV 2017 (b from a, c, d; SGD) or the CIFAR system (d from c, a, b; Adam)"""
    lr: PositiveFloat | None = None
    """learning rate; the rule's own is 0.1 (published: 1 for SGM features) or 1e-4"""
    n_steps: PositiveInt | None = None
    """most steps of gradient descent; the rule's own is 120000, or 500 passes with early stopping"""
    batch_size: PositiveInt | None = None
    """quadruplets a step; the rule's own is 128 or 32"""
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


def main(config: Config) -> Path:
    """Train and return the folder written."""
    centroids, labels, quadruplets = read_quadruplets(config)
    made_from = recipe(
        "train_analogy_generator", config, {"quadruplets": config.quadruplets, "critic": config.extractor}
    )
    mined_from = read_recipe(config.quadruplets)
    if mined_from and "extractor" in mined_from["inputs"]:
        made_from["inputs"]["extractor"] = mined_from["inputs"]["extractor"]
    torch.manual_seed(config.seed)
    critic = build_critic(config, made_from["inputs"], centroids, labels)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    device = pick_device()
    rule = chosen_rule(config.rule, config.lr, config.n_steps, config.batch_size)
    model = build_generator(config, centroids, labels).to(device)
    chosen = torch.from_numpy(quadruplets).to(device)
    with training_run(config.out, made_from, config.overwrite) as training:
        trainer = GeneratorTrainer(rule, config.mse_weight, config.seed, training, model, critic.to(device), chosen)
        save_generator(training.folder, trainer.fit().cpu(), made_from)
    print(f"train_analogy_generator: wrote {config.out}")
    return config.out


def read_quadruplets(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(centroids (B, K, D), their classes (B,), quadruplets (M, 4) of flat centroid numbers above `min_score`)."""
    where = config.quadruplets
    with open_h5(where) as file:
        names = ["centroids", "centroid_labels", "quadruplets", "scores"]
        require_datasets(file, names)
        centroids, labels, quadruplets, scores = (file[name][:] for name in names)
    quadruplets = quadruplets[scores > config.min_score].astype(np.int64)
    if len(quadruplets) == 0:
        raise InputError(f"{where}: no quadruplet scores above {config.min_score}")
    if not np.isfinite(centroids).all():
        raise InputError(f"{where}: centroids hold NaN or infinity")
    if quadruplets.min() < 0 or quadruplets.max() >= centroids.shape[0] * centroids.shape[1]:
        raise InputError(f"{where}: a quadruplet names a centroid that is not there")
    return centroids, labels.astype(np.int64), quadruplets


def build_critic(config: Config, inputs: dict[str, str], centroids: np.ndarray, labels: np.ndarray) -> nn.Module:
    """The frozen classifier (N, D) -> (N, classes): the extractor's own, or one fitted to the centroids.

    Raises InputError if the extractor (digests in `inputs`) is not the one that the features come from.
    """
    n_clusters, dim = centroids.shape[1:]
    if config.extractor is None:
        flat = torch.from_numpy(centroids.reshape(-1, dim))
        return fit_critic(flat, torch.from_numpy(labels).repeat_interleave(n_clusters)).requires_grad_(False)
    extractor = load_extractor(config.extractor)
    if extractor.dim != dim:
        raise InputError(
            f"{config.extractor}: makes features of {extractor.dim} dimensions, but {config.quadruplets} has {dim}"
        )
    if inputs["critic"] != inputs.get("extractor", inputs["critic"]):
        raise InputError(f"{config.extractor}: not the extractor that the features of {config.quadruplets} come from")
    return extractor.classifier.requires_grad_(False)


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


if __name__ == "__main__":
    run(main, Config, __doc__)
