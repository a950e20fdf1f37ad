"""Train the analogy generator on mined quadruplets.

Reads   QUADRUPLETS (make_quadruplet.py) and, for the critic, EXTRACTOR/ (train_extractor.py)
Writes  OUT/model.pt, OUT/config.json, OUT/log.jsonl, OUT/tensorboard/

python train_analogy_generator.py --quadruplets outputs/cifar100/resnet10_sgm/quadruplets.h5 \\
    --extractor outputs/cifar100/resnet10_sgm/extractor --out outputs/cifar100/resnet10_sgm/generator --lr 1
Small example (seconds on a CPU):
python train_analogy_generator.py --quadruplets outputs/glyphs/conv4_sgm/quadruplets.h5 \\
    --out outputs/glyphs/try/generator --n_steps 200
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from lowshot import core, hallucination
from lowshot.core.artifacts import recipe
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.publishing import is_done
from lowshot.core.settings import NonNegativeFloat, PositiveFloat, PositiveInt, RunOnly, Seed
from lowshot.data.lineage import Lineage, lineage_of
from lowshot.hallucination.settings import RuleName


@dataclass
class Config:
    quadruplets: Path
    """Quadruplets file of make_quadruplet.py."""
    out: Path
    """Folder to write the generator to."""
    extractor: Path | None = None
    """Folder of the extractor whose classifier is the critic (default: a linear classifier fitted to the centroids)."""
    code: RunOnly[list[str]] = field(default_factory=list)
    """Your own classes (file.py:Class) that the extractor was made with; allows this command to import them."""
    rule: RuleName = "hariharan2017"
    """Training rule: hariharan2017 (predicts b from a, c, d; SGD) or ghosted2018 (predicts d from c, a, b; Adam)."""
    lr: PositiveFloat | None = None
    """Learning rate (default: 0.1 or 1e-4, by the rule; published: 1 for SGM features)."""
    n_steps: PositiveInt | None = None
    """Maximum number of steps (default: 120000, or 500 epochs with early stopping, by the rule)."""
    end_after: RunOnly[PositiveInt | None] = None
    """End training after this step. A run that is resumed after this step trains no further and saves its last
    checkpoint as the model."""
    batch_size: PositiveInt | None = None
    """Batch size (default: 128 or 32, by the rule)."""
    mse_weight: NonNegativeFloat = 10.0
    """Weight of the mean squared error; the critic's cross-entropy has weight 1."""
    critic_mode: Literal["evaluation", "training"] = "evaluation"
    """Whether batch norm of the critic uses its running averages or those of the generated batch (training), as in the
    release of ghosted2018, where the generator learns more slowly. Without effect for a critic without batch norm."""
    hidden: PositiveInt = 512
    """Width of the two hidden layers."""
    min_score: float = 0.0
    """Use only quadruplets with a score (cosine) above this value."""
    seed: Seed = 0
    """Seed of initialisation and data order."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""


def main(config: Config) -> Path:
    """Train the generator, and return its folder."""
    import torch

    mined = hallucination.read_quadruplets(config.quadruplets)
    chosen = mined.numbers[mined.scores > config.min_score].astype(np.int64)
    if len(chosen) == 0:
        raise InputError(
            f"--min_score {config.min_score}: the best score in {config.quadruplets} is {mined.scores.max():.3g}. Use "
            f"a smaller value"
        )
    inputs = {"quadruplets": config.quadruplets, "critic": config.extractor, "extractor": mined.extractor}
    seen = lineage_of(config.quadruplets) | (lineage_of(config.extractor) if config.extractor else Lineage())
    made_from = recipe("train_analogy_generator", config, inputs, seen.to_json())
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
            critic.to(device).train(config.critic_mode == "training"),
            torch.from_numpy(chosen).to(device),
            config.end_after,
        )
        hallucination.save_generator(training.folder, trainer.fit().cpu(), made_from)
    print(f"train_analogy_generator: wrote {config.out}")
    return config.out


def next_step(config: Config) -> list:
    """Return the command that reads the output, with unknown paths in capitals."""
    inputs = ["--train", "TRAIN.h5", "--test", "TEST.h5", "--split", "SPLIT.json", "--draws", "DRAWS.json"]
    return [
        "low_shot.py",
        *inputs,
        "--classifier",
        "linear_sgd",
        "--add.generator",
        config.out,
        "--out",
        config.out.parent / "results/generated.json",
    ]


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
