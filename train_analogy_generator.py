"""Train the analogy generator on mined quadruplets.

Reads   QUADRUPLETS (make_quadruplet.py) and, for the critic, EXTRACTOR/ (train_extractor.py)
Writes  OUT/model.pt, OUT/config.json, OUT/log.jsonl, OUT/tensorboard/

python train_analogy_generator.py --quadruplets outputs/cifar100/resnet10_sgm/quadruplets.h5 \\
    --extractor outputs/cifar100/resnet10_sgm/extractor --out outputs/cifar100/resnet10_sgm/generator --lr 1
CPU, seconds:
python train_analogy_generator.py --quadruplets outputs/glyphs/conv4_sgm/quadruplets.h5 \\
    --out outputs/glyphs/try/generator --n_steps 200
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lowshot import core, hallucination
from lowshot.core.artifacts import is_done, recipe
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.settings import NonNegativeFloat, PositiveFloat, PositiveInt, RunOnly, Seed
from lowshot.hallucination.settings import RuleName


@dataclass
class Config:
    quadruplets: Path
    """file of centroids and quadruplets"""
    out: Path
    """folder to write the generator to"""
    extractor: Path | None = None
    """folder whose classifier scores the generated features; without it a linear one is fitted to the centroids"""
    code: RunOnly[list[str]] = field(default_factory=list)
    """classes of your own, file.py:Class, that the extractor was made with and that this command may import"""
    rule: RuleName = "hariharan2017"
    """what is predicted, and how trained: ICCV 2017 (b from a, c, d; SGD) or the CIFAR system (d from c, a, b; Adam)"""
    lr: PositiveFloat | None = None
    """learning rate; the rule's own is 0.1 (published: 1 for SGM features) or 1e-4"""
    n_steps: PositiveInt | None = None
    """most steps of gradient descent; the rule's own is 120000, or 500 passes with early stopping"""
    end_after: RunOnly[PositiveInt | None] = None
    """end behind this step; an unfinished run that is past it ends at once, its last checkpoint kept as the model"""
    batch_size: PositiveInt | None = None
    """quadruplets a step; the rule's own is 128 or 32"""
    mse_weight: NonNegativeFloat = 10.0
    """factor on the squared error beside the critic's cross-entropy"""
    hidden: PositiveInt = 512
    """width of the two hidden layers"""
    min_score: float = 0.0
    """leave out quadruplets whose cosine is not above this"""
    seed: Seed = 0
    """of initialisation and data order"""
    overwrite: RunOnly[bool] = False
    """make it again even if it is there"""


def main(config: Config) -> Path:
    """Train and return the folder written."""
    import torch

    mined = hallucination.read_quadruplets(config.quadruplets)
    chosen = mined.numbers[mined.scores > config.min_score].astype(np.int64)
    if len(chosen) == 0:
        raise InputError(f"{config.quadruplets}: no quadruplet scores above {config.min_score}")
    inputs = {"quadruplets": config.quadruplets, "critic": config.extractor, "extractor": mined.extractor}
    made_from = recipe("train_analogy_generator", config, inputs)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    torch.manual_seed(config.seed)
    critic = hallucination.build_critic(mined, config.quadruplets, config.extractor, made_from["inputs"], config.code)
    device = core.pick_device()
    rule = hallucination.chosen_rule(config.rule, config.lr, config.n_steps, config.batch_size)
    model = hallucination.build_generator(mined, config.hidden, config.rule).to(device)
    with core.training_run(config.out, made_from, config.overwrite) as training:
        trainer = hallucination.GeneratorTrainer(
            rule,
            config.mse_weight,
            config.seed,
            training,
            model,
            critic.to(device),
            torch.from_numpy(chosen).to(device),
            config.end_after,
        )
        hallucination.save_generator(training.folder, trainer.fit().cpu(), made_from)
    print(f"train_analogy_generator: wrote {config.out}")
    return config.out


def next_step(config: Config) -> list:
    """The command that takes the output, with capitals for what is not known here."""
    inputs = ["--train", "TRAIN.h5", "--test", "TEST.h5", "--split", "SPLIT.json", "--draws", "DRAWS.json"]
    return [
        "low_shot.py",
        *inputs,
        "--add.generator",
        config.out,
        "--out",
        config.out.parent / "results/generated.json",
    ]


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
