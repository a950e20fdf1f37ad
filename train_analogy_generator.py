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
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from lowshot.core.artifacts import is_done, recipe
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.runtime import pick_device
from lowshot.core.training import training_run
from lowshot.hallucination.generators import AnalogyGenerator, save_generator
from lowshot.hallucination.quadruplets import Quadruplets, read_quadruplets
from lowshot.hallucination.settings import RuleName
from lowshot.hallucination.training import GeneratorTrainer, chosen_rule, fit_critic
from lowshot.representation.backbones import load_extractor


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
    seed: NonNegativeInt = 0
    """of initialisation and data order"""
    overwrite: bool = False
    """make it again even if it is there"""


def main(config: Config) -> Path:
    """Train and return the folder written."""
    mined = read_quadruplets(config.quadruplets)
    chosen = torch.from_numpy(choose_quadruplets(config, mined))
    inputs = {"quadruplets": config.quadruplets, "critic": config.extractor}
    made_from = recipe("train_analogy_generator", config, inputs)
    if mined.extractor:
        made_from["inputs"]["extractor"] = mined.extractor
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    torch.manual_seed(config.seed)
    critic = build_critic(config, made_from["inputs"], mined)
    device = pick_device()
    rule = chosen_rule(config.rule, config.lr, config.n_steps, config.batch_size)
    model = build_generator(config, mined).to(device)
    with training_run(config.out, made_from, config.overwrite) as training:
        trainer = GeneratorTrainer(
            rule, config.mse_weight, config.seed, training, model, critic.to(device), chosen.to(device)
        )
        save_generator(training.folder, trainer.fit().cpu(), made_from)
    print(f"train_analogy_generator: wrote {config.out}")
    return config.out


def choose_quadruplets(config: Config, mined: Quadruplets) -> np.ndarray:
    """The quadruplets int64 (M, 4) that score above `min_score`."""
    chosen = mined.numbers[mined.scores > config.min_score].astype(np.int64)
    if len(chosen) == 0:
        raise InputError(f"{config.quadruplets}: no quadruplet scores above {config.min_score}")
    return chosen


def build_critic(config: Config, inputs: dict[str, str], mined: Quadruplets) -> nn.Module:
    """The frozen classifier (N, D) -> (N, classes): the extractor's own, or one fitted to the centroids.

    Raises InputError if the extractor (digests in `inputs`) is not the one that the features come from.
    """
    n_clusters, dim = mined.centroids.shape[1:]
    if config.extractor is None:
        labels = torch.from_numpy(mined.labels).repeat_interleave(n_clusters)
        return fit_critic(torch.from_numpy(mined.centroids.reshape(-1, dim)), labels).requires_grad_(False)
    extractor = load_extractor(config.extractor)
    if extractor.dim != dim:
        raise InputError(
            f"{config.extractor}: makes features of {extractor.dim} dimensions, but {config.quadruplets} has {dim}"
        )
    if inputs["critic"] != inputs.get("extractor", inputs["critic"]):
        raise InputError(f"{config.extractor}: not the extractor that the features of {config.quadruplets} come from")
    if extractor.config.n_classes <= mined.labels.max():
        raise InputError(f"{config.extractor}: has no output for class {mined.labels.max()} of {config.quadruplets}")
    return extractor.classifier.requires_grad_(False)


def build_generator(config: Config, mined: Quadruplets) -> AnalogyGenerator:
    """A generator with fresh weights (the CIFAR system: N(0, 0.02), bias 0) that carries its centroids."""
    n_classes, n_clusters, dim = mined.centroids.shape
    model = AnalogyGenerator(dim, config.hidden, n_classes, n_clusters)
    model.centroids.copy_(torch.from_numpy(mined.centroids))
    model.centroid_labels.copy_(torch.from_numpy(mined.labels))
    if config.rule == "ghosted2018":
        for layer in model.layers[::2]:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return model


if __name__ == "__main__":
    run(main, Config, __doc__)
