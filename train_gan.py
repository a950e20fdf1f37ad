"""Train a class-conditional GAN: `pretrain` it on the base classes, `finetune` it on a few shots of the novel classes.

pretrain  reads   DATA/images.h5, DATA/split.json, and an extractor trained on the same base classes. Its features give
                  the FID and, with --network.class_embedding features, the class embeddings.
finetune  reads   the same, DATA/draws.json, and the folder that `pretrain` wrote
both      write   OUT/model.pt, OUT/config.json (together they rebuild the networks), OUT/log.jsonl, OUT/tensorboard/

The weights with the best FID are kept. Pre-training compares with the training images of the base classes. Fine-tuning
compares with validation images of the novel classes, which are neither shots nor in the unlabelled pool. With class
embeddings by features, fine-tuning also scores the initial weights.

python train_gan.py pretrain --data outputs/emnist_fs/seed0/data --extractor outputs/emnist_fs/seed0/conv4/extractor \\
    --out outputs/emnist_fs/seed0/gan/pretrained
python train_gan.py finetune --data outputs/emnist_fs/seed0/data --extractor outputs/emnist_fs/seed0/conv4/extractor \\
    --gan outputs/emnist_fs/seed0/gan/pretrained --k 5 --out outputs/emnist_fs/seed0/gan/k5_trial1
On a CPU, in seconds:
python train_gan.py pretrain --data outputs/glyphs/data --extractor outputs/glyphs/conv4_sgm/extractor --steps 20 \\
    --ngf 16 --ndf 4 --score_images 200 --out outputs/glyphs/try/gan
With several processes: --devices 8, or
torchrun --nproc-per-node 8 train_gan.py pretrain ... --devices 8
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from lowshot import gan, representation
from lowshot.core.artifacts import Recipe, read_recipe, recipe
from lowshot.core.cli import run_commands
from lowshot.core.errors import InputError
from lowshot.core.files import digest, write_json
from lowshot.core.publishing import is_done
from lowshot.core.settings import NonNegativeInt, PositiveInt, RunOnly
from lowshot.data.datasets.images import Images, read_images, rows_of
from lowshot.data.lineage import Lineage, check_base_only, lineage_of, lineage_of_shots, trained_on
from lowshot.data.protocol import Split, read_split
from lowshot.gan.settings import (
    CHANGES,
    NETWORKS,
    FinetuneMode,
    FixedChanges,
    GanSettings,
    ModulatedNetwork,
    NetworkSizes,
    PublishedNetwork,
)
from lowshot.representation.settings import ExtractorChoice


@dataclass(kw_only=True)
class StageConfig(GanSettings, ExtractorChoice):
    data: Path
    """Folder with images.h5 and split.json."""
    out: Path
    """Folder to write the GAN to."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""

    renamed: ClassVar = ExtractorChoice.renamed | {"augment.mode": "augment.name"}


@dataclass(kw_only=True)
class PretrainConfig(StageConfig, NetworkSizes):
    """Train a GAN on the base classes."""

    network: Annotated[Any, NETWORKS] = field(default_factory=ModulatedNetwork)
    """Generator: the published one, or one with convolutions modulated by a style."""

    renamed: ClassVar = StageConfig.renamed | {
        "network": "network.name", "film": "network.film", "class_embedding": "network.class_embedding",
    }  # fmt: skip


@dataclass(kw_only=True)
class FinetuneConfig(StageConfig):
    """Fine-tune a GAN on the shots of the novel classes."""

    gan: Path
    """Folder of a GAN pre-trained on the base classes of the same split."""
    k: PositiveInt = 5
    """Number of shots per novel class."""
    trial: PositiveInt = 1
    """Trial of draws.json. Its first k shots are used."""
    g_mode: FinetuneMode = "all"
    """Trained parameters of the generator. embed: its class embeddings; linear: also the layers that noise and class
    pass through; all: everything."""
    d_mode: FinetuneMode = "all"
    """Trained parameters of the discriminator. embed: its class embeddings; linear: also its heads; all: everything."""
    semi_supervised: bool = False
    """Use the unlabelled pool of the novel classes in the unconditional loss (needs --alpha above 0)."""
    shared_pool: bool = False
    """Use all training images of the novel classes for both the unlabelled pool and validation, as in the released
    code."""
    augment: Annotated[Any, CHANGES] = field(default_factory=lambda: FixedChanges(0.4))
    """Augmentation of all images that the discriminator sees. adaptive does not detect overfitting to few shots."""
    steps: NonNegativeInt = 4000
    """Number of updates of the discriminator. With 0, the shots only define class embeddings by features."""
    score_every: PositiveInt = 500


def pretrain(config: PretrainConfig) -> Path:
    """Train a GAN on the base classes and return its folder."""
    where = config.data / "images.h5"
    images, split = _read(config)
    seen = trained_on(split, split.base_classes)
    extractor, made_from = _recipe("train_gan pretrain", config, images, split, {}, seen)
    described = _networks(config, images, split, extractor)
    gan.check_sizes(described, str(where))
    base = rows_of(images, split, split.base_classes, where)
    return _train(config, made_from, images, extractor, lambda: gan.Gan(described, config.ema), base, {"base": base})


def _networks(
    config: PretrainConfig, images: Images, split: Split, extractor: representation.Extractor
) -> gan.GanConfig:
    """Return the description of the networks that is stored in their folder."""
    chosen, sizes = config.network, {one.name: getattr(config, one.name) for one in fields(NetworkSizes)}
    by_features = isinstance(chosen, ModulatedNetwork) and chosen.class_embedding == "features"
    film = {"film": chosen.film} if isinstance(chosen, PublishedNetwork) else {}
    return gan.GanConfig(
        split.n_classes, images.n_channels, images.size, extractor.dim if by_features else 0,
        network=NETWORKS.name_of(chosen), **film, **sizes,
    )  # fmt: skip


def finetune(config: FinetuneConfig) -> Path:
    """Fine-tune a GAN on the shots of the novel classes and return its folder."""
    if config.semi_supervised and (config.d_mode == "embed" or not config.alpha):
        raise InputError(
            f"--semi_supervised: has no effect with --alpha {config.alpha:g} and --d_mode {config.d_mode}. "
            "Use --alpha above 0 and --d_mode linear or all"
        )
    if config.semi_supervised and not config.steps:
        raise InputError(
            "--steps 0: --semi_supervised has no effect. Use --steps above 0 or leave out --semi_supervised"
        )
    where, drawn_at = config.data / "images.h5", config.data / "draws.json"
    images, split = _read(config)
    rows = gan.read_few_shot_rows(images, split, config.data, config.k, config.trial, config.shared_pool)
    pretrained = _open_pretrained(config, images)
    seen = lineage_of(config.gan) | _lineage(config, split)
    files = {"draws": drawn_at, "gan": config.gan}
    extractor, made_from = _recipe("train_gan finetune", config, images, split, files, seen)
    if not config.steps and not pretrained.config.n_features:
        raise InputError(
            f"--steps 0: the class embeddings of {config.gan} must be learned. Use --steps above 0, or a GAN that was "
            "pre-trained with --network.class_embedding features"
        )
    known_by = read_recipe(config.gan)["inputs"]["extractor"] if pretrained.config.n_features else None
    if known_by not in (None, made_from["inputs"]["extractor"]):
        raise InputError(f"{config.gan}: embeds classes by features of another extractor. Use the same extractor")
    references = {"novel": rows.validation, "base": rows_of(images, split, split.base_classes, where)}
    pool, modes = rows.unlabelled if config.semi_supervised else None, (config.g_mode, config.d_mode)

    def start() -> gan.Gan:
        pretrained.begin_finetuning(config.ema)
        return pretrained

    return _train(config, made_from, images, extractor, start, rows.supports, references, pool, modes, rows)


def _train(
    config: PretrainConfig | FinetuneConfig,
    made_from: Recipe,
    images: Images,
    extractor: representation.Extractor,
    start: Callable[[], gan.Gan],
    labelled: np.ndarray,
    references: dict[str, np.ndarray],
    unlabelled: np.ndarray | None = None,
    modes: tuple[FinetuneMode, FinetuneMode] = ("all", "all"),
    few_shot: gan.FewShotRows | None = None,
) -> Path:
    """Train the GAN that `start` returns on rows of `images`, and write it, with the `few_shot` rows in rows.json."""
    if config.batch_size % config.devices:
        raise InputError(
            f"--batch_size {config.batch_size}: must be divisible by the number of processes, {config.devices}"
        )
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    with representation.image_training(config, config.out, made_from, config.overwrite) as (fabric, run):
        on_device = partial(gan.examples, images, device=fabric.device)
        extractor = fabric.to_device(extractor)
        real = {
            name: gan.reference(extractor, on_device(rows), config.score_images, config.seed)
            for name, rows in references.items()
        }
        known, pool = on_device(labelled), None if unlabelled is None else on_device(unlabelled)
        networks = fabric.to_device(start())
        if networks.config.n_features:
            networks.describe(gan.features_of(extractor, known.pixels.split(256)), known.labels)
        score_first = bool(networks.config.n_features) and isinstance(config, FinetuneConfig)
        trained = gan.GanTrainer(config, fabric, run, networks, extractor, real, known, pool, modes, score_first).fit()
        if fabric.is_global_zero:
            gan.save_gan(run.folder, trained, made_from)
            if few_shot is not None:
                parts = {name: part.tolist() for name, part in few_shot._asdict().items()}
                write_json(run.folder / "rows.json", parts)
    if fabric.is_global_zero:
        print(f"{made_from['stage']}: wrote {config.out}")
    return config.out


def _read(config: PretrainConfig | FinetuneConfig) -> tuple[Images, Split]:
    where = config.data / "images.h5"
    images = read_images(where)
    if images.pixels is None:
        raise InputError(
            f"{where}: has paths of images, but a GAN needs stored pixels. Use preprocessing.py --dataset.image_size"
        )
    return images, read_split(config.data / "split.json")


def _recipe(
    stage: str,
    config: PretrainConfig | FinetuneConfig,
    images: Images,
    split: Split,
    inputs: dict[str, Path],
    seen: Lineage,
) -> tuple[representation.Extractor, Recipe]:
    """Return the extractor and the recipe of the GAN, which has `seen` images.

    Raises InputError if the extractor has seen images of novel classes, since it scores generated ones.
    """
    extractor, chosen = representation.chosen_extractor(config, images)
    of_extractor = representation.lineage_of_extractor(config)
    check_base_only(str(config.extractor or config.timm.name), of_extractor, split)
    files = {"images": config.data / "images.h5", "split": config.data / "split.json"}
    return extractor, recipe(stage, config, {**files, **inputs, **chosen}, (seen | of_extractor).to_json())


def _lineage(config: FinetuneConfig, split: Split) -> Lineage:
    """Return what fine-tuning sees: shots, and images of novel classes without label, which choose the checkpoint."""
    data = config.data
    shots = lineage_of_shots(split, data / "draws.json", config.trial, config.k, digest(data / "images.h5"))
    return shots | Lineage(unlabelled=frozenset(split.origins[c] for c in split.novel_classes))


def _open_pretrained(config: FinetuneConfig, images: Images) -> gan.Gan:
    """Load the pre-trained GAN. Raise InputError if its split or image size differs, or if it is already fine-tuned."""
    made_from = gan.gan_recipe(config.gan, config.data / "split.json")
    if made_from["stage"] != "train_gan pretrain":
        raise InputError(f"{config.gan}: already fine-tuned. Use a GAN of train_gan.py pretrain")
    pretrained = gan.load_gan(config.gan)
    n_channels, size = pretrained.config.n_channels, pretrained.config.image_size
    if (images.n_channels, images.size) != (n_channels, size):
        raise InputError(
            f"{config.gan}: makes images with {n_channels} channels and {size} px, but those of {config.data} have "
            f"{images.n_channels} channels and {images.size} px"
        )
    return pretrained


def after_pretraining(config: PretrainConfig) -> list:
    """Return the command that uses the output."""
    extractor = ["--extractor", config.extractor] if config.extractor else ["--timm", config.timm.name]
    inputs = ["--data", config.data, *extractor, "--gan", config.out]
    return ["train_gan.py", "finetune", *inputs, "--k", 5, "--out", config.out.parent / "finetuned"]


def after_finetuning(config: FinetuneConfig) -> list:
    """Return the command that uses the output."""
    samples = config.out.parent / "samples/samples.h5"
    inputs = ["--gan", config.out, "--split", config.data / "split.json", "--n_per_class", 100]
    return ["sample_gan.py", *inputs, "--out", samples]


COMMANDS = {
    "pretrain": (pretrain, PretrainConfig, after_pretraining),
    "finetune": (finetune, FinetuneConfig, after_finetuning),
}

if __name__ == "__main__":
    run_commands(COMMANDS, __doc__)
