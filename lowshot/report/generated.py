"""Pictures of a GAN: sheets of generated images (Beckham et al., arXiv 2203.16662; spec 5), and training curves."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, MaxNLocator
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import make_grid

from lowshot.core.errors import InputError
from lowshot.core.files import digest
from lowshot.core.seeds import stream
from lowshot.data.datasets.images import Images, rows_of
from lowshot.data.protocol import Split
from lowshot.gan.data import read_few_shot_rows
from lowshot.gan.model import Gan, gan_recipe, load_gan, sample_noise, to_bytes
from lowshot.report.figures import OKABE_ITO, figure_at
from lowshot.representation.loading import to_tensor

_COLUMNS, _GUTTER = 16, 2
_MOST_ROWS = 60
_CROSSOVER = ("x1", "x2", "", "y1, z1", "y1, z2", "y1, 0", "y2, z1", "y2, z2")
_LOSSES = {
    "g_adversarial": ("generator", OKABE_ITO[1], "-"),
    "d_adversarial": ("discriminator", OKABE_ITO[0], "-"),
    "g_unconditional": ("generator, unconditional", OKABE_ITO[1], ":"),
    "d_unconditional": ("discriminator, unconditional", OKABE_ITO[0], ":"),
    "d_mismatch": ("discriminator, wrong class", OKABE_ITO[2], ":"),
    "d_noise": ("noise regression", OKABE_ITO[6], "--"),
}
_FIDS = {"fid": ("classes trained on", OKABE_ITO[1], "-"), "fid_base": ("base classes", OKABE_ITO[0], "--")}


@dataclass(frozen=True)
class TrainedGan:
    """A trained GAN with the inputs of its pictures.

    `weights` are those of its loss terms, `classes` the classes of its last training, `rows` their real images in
    images.h5 that it was trained on, `log` the records of the training log.
    """

    gan: Gan
    weights: dict[str, float]
    classes: list[int]
    rows: np.ndarray
    log: list[dict]


def read_gan(folder: Path, data: Path, images: Images, split: Split) -> TrainedGan:
    """Read the GAN in `folder`, trained on the folder `data`. Raises InputError if it was trained on another split."""
    made_from = gan_recipe(folder, data / "split.json")
    if made_from["inputs"].get("draws") not in (None, digest(data / "draws.json")):
        raise InputError(
            f"{folder}: fine-tuned on different shots than {data}/draws.json. Give --data the folder it was trained on"
        )
    if made_from["stage"] == "train_gan finetune":
        shots = (made_from["config"][name] for name in ("k", "trial", "shared_pool"))
        classes, rows = split.novel_classes, read_few_shot_rows(images, split, data, *shots).supports
    else:
        classes, rows = split.base_classes, rows_of(images, split, split.base_classes, data / "images.h5")
    lines = (folder / "log.jsonl").read_text().splitlines()
    log = [
        record for record in map(json.loads, lines) if "fid" in record
    ]  # the last record may only state an early end
    config = made_from["config"]
    weights = {"adversarial": 1.0, "noise": config["gamma"], "unconditional": config["alpha"]}
    weights["mismatch"] = config.get("mismatch") or 0  # absent from older GANs
    return TrainedGan(load_gan(folder).eval(), weights, sorted(classes), rows, log)


@torch.inference_mode()
def samples_sheet(path: Path, trained: TrainedGan) -> None:
    """Draw a row of random samples for each class, or for 60 evenly spaced classes if there are more."""
    classes = trained.classes
    if len(classes) > _MOST_ROWS:
        classes = [classes[i] for i in np.linspace(0, len(classes) - 1, _MOST_ROWS).round().astype(int)]
    labels = np.repeat(classes, _COLUMNS)
    z = sample_noise(0, labels, np.tile(np.arange(_COLUMNS), len(classes)), trained.gan.config.z_dim)
    _sheet(to_bytes(trained.gan.averaged.module(z, torch.from_numpy(labels)))).save(path)


@torch.inference_mode()
def crossover_sheet(path: Path, trained: TrainedGan, images: Images) -> None:
    """Draw two real images in each column, and below them images of their classes with two noise vectors and with none.

    Departs from the released code, in which the first image of every column is the same.
    """
    generator, rows = trained.gan.averaged.module, _pairs(trained, images)
    real = [to_tensor(images.pixels[part]) for part in rows]
    y1, y2 = (torch.from_numpy(images.labels[part]) for part in rows)
    z1, z2 = _noise(trained.gan, "crossover, 1"), _noise(trained.gan, "crossover, 2")
    made = [generator(z, y) for z, y in ((z1, y1), (z2, y1), (0 * z1, y1), (z1, y2), (z2, y2))]
    spacer = torch.full_like(real[0], 128)
    _named(_sheet(torch.cat([*real, spacer, *map(to_bytes, made)])), _CROSSOVER, images.size).save(path)


@torch.inference_mode()
def between_sheet(path: Path, trained: TrainedGan, images: Images) -> None:
    """Interpolate in each column from one class (top, 0.00) to another (bottom, 1.00), with the same noise.

    The README of the released code has the opposite direction.
    """
    generator, rows = trained.gan.averaged.module, _pairs(trained, images)
    y1, y2 = (torch.from_numpy(images.labels[part]) for part in rows)
    z, shares = _noise(trained.gan, "between"), torch.linspace(0, 1, 16)
    made = [generator.between(z, y1, y2, share.expand(_COLUMNS, 1)) for share in shares]
    names = [f"{share:.2f}" for share in shares]
    _named(_sheet(torch.cat([to_bytes(one) for one in made])), names, images.size).save(path)


def training_curves(path: Path, trained: TrainedGan) -> None:
    """Plot losses and FID over the steps, and mark the step whose weights were kept."""
    best = min(trained.log, key=lambda record: record["fid"])
    with figure_at(path, 10, 4.4) as figure:
        losses, fid = figure.subplots(1, 2)
        _lines(losses, trained.log, {key: how for key, how in _LOSSES.items() if trained.weights[key.split("_")[1]]})
        losses.set(xlabel="steps", ylabel="loss")
        _lines(fid, trained.log, _FIDS)
        fid.plot(best["step"], best["fid"], "o", color=OKABE_ITO[1], markersize=7, markeredgecolor="white")
        fid.set(xlabel="steps", ylabel="FID", yscale="log")
        for ticks in (fid.yaxis.set_major_formatter, fid.yaxis.set_minor_formatter):
            ticks(LogFormatter(minor_thresholds=(2, 0.5)))  # the default formatter writes powers as formulas
        for axes, title in ((losses, "Losses"), (fid, f"FID, kept: {best['fid']:.3g} at step {best['step']}")):
            axes.set_title(title, loc="left", fontweight="bold", fontsize=10.5)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if axes.has_data():  # a GAN fine-tuned with 0 steps has no losses
                axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _lines(axes: Axes, log: list[dict], named: dict[str, tuple[str, str, str]]) -> None:
    for key, (label, color, style) in named.items():
        points = [(record["step"], record[key]) for record in log if key in record]
        if points:
            axes.plot(*zip(*points), style, color=color, label=label, linewidth=1.7, marker=".")


def _pairs(trained: TrainedGan, images: Images) -> list[np.ndarray]:
    """Draw rows of two real images of different classes for each column."""
    rows = stream(0, "pairs").permutation(trained.rows)
    first = np.resize(rows, _COLUMNS)
    others = [rows[images.labels[rows] != images.labels[row]] for row in first]
    return [first, np.array([other[i % len(other)] for i, other in enumerate(others)])]


def _noise(gan: Gan, name: str) -> Tensor:
    drawn = stream(0, name).standard_normal((_COLUMNS, gan.config.z_dim), "float32")
    return torch.from_numpy(drawn)


def _sheet(images: Tensor) -> Image.Image:
    """Arrange images, uint8 (16 R, C, S, S), in R rows, two white pixels apart."""
    grid = make_grid(images, _COLUMNS, _GUTTER, pad_value=255)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def _named(sheet: Image.Image, names: list[str], size: int) -> Image.Image:
    """Write the name of each row in its upper left corner, blue on white."""
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        place = (0, row * (size + _GUTTER))
        if name:
            draw.rectangle(draw.textbbox(place, name), fill="white")
            draw.text(place, name, fill=(0, 0, 255))
    return sheet
