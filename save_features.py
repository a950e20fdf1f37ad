"""Compute the features of all images with a trained extractor or a pretrained timm model.

Reads   EXTRACTOR/ (train_extractor.py) or a timm model, DATA/images.h5 (or another images file, or the pictures of a
        list of tasks), or a folder of IMAGES, which needs no split
Writes  OUT/train.h5 and, if there are test images, OUT/test.h5 in the published layout: all_feats, all_labels, count.
        For a folder of images OUT/features.h5, with labels of -1 and the names of the files in `paths`.
        With --npz, the same as .npz files with the arrays feats, labels, paths and is_blank

With --views the features are means over several views of each image: its mirror image too, or random crops and shifts.
With --copies the files also contain augmented_feats float32 (N, copies, D), the features of randomly augmented copies
of each image, for episodes.py --augmented_support and low_shot.py --add copies.

Unlabelled images (yfcc100m, --images) that cannot be decoded or are entirely black get features of zeros, and are
marked in the dataset is_blank. A corrupt image with a label is an error.

python save_features.py --extractor outputs/cifar100/resnet10_sgm/extractor --data outputs/cifar100/data \\
    --out outputs/cifar100/resnet10_sgm/features
python save_features.py --timm resnet50.a1_in1k --data outputs/photos/data --out outputs/photos/resnet50/features
python save_features.py --timm resnet50.a1_in1k --images photos --npz --out outputs/photos/features
python save_features.py --extractor outputs/cifar100/scgm_g/extractor --data outputs/cifar100/data --copies 5 \\
    --copies.augment.flip --out outputs/cifar100/scgm_g/features
python save_features.py --extractor outputs/cifar_fs/airbench/extractor --data outputs/cifar_fs/data --views random \\
    --views.n 10 --views.augment.shift_pixels 2 --views.augment.flip --out outputs/cifar_fs/airbench/features
Small example (seconds on a CPU):
python save_features.py --extractor outputs/glyphs/conv4_sgm/extractor --data outputs/glyphs/data \\
    --out outputs/glyphs/try/features
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from lowshot import core, gan, representation
from lowshot.core import health
from lowshot.core.artifacts import Recipe, recipe
from lowshot.core.cli import run
from lowshot.core.errors import InputError, listed
from lowshot.core.h5 import update_h5
from lowshot.core.ownership import check_out, check_record, is_recorded, record_path
from lowshot.core.publishing import building, is_done, write_record, writing
from lowshot.core.settings import NetworkPrecision, NonNegativeInt, PositiveInt, RunOnly, Seed
from lowshot.core.workers import start_ahead
from lowshot.data.datasets.content import image_digests
from lowshot.data.datasets.folder import find_images, ignored
from lowshot.data.datasets.images import Images, images_file, read_images
from lowshot.data.features import constant_features, create_features, export_npz
from lowshot.data.protocol import read_draws, read_split
from lowshot.data.task_list import read_task_list
from lowshot.evaluation.settings import SHOTS
from lowshot.representation.settings import (
    AUGMENTATIONS,
    VIEWS,
    ExtractorChoice,
    RandomViews,
    StandardAugmentation,
    StretchingTimmModel,
)
from lowshot.representation.weight_sources import check_choice

if TYPE_CHECKING:
    import torch

# Numbers of the views of an image (see `Augmentation.uniforms`), of copies and of --views; training uses 0 and the next
# few.
_SUPPORT, _AVERAGED = 100, 200


@dataclass
class Copies:
    """Augmented copies of each image, whose features are saved too."""

    n: PositiveInt
    """Number of copies (5 in Ni et al., 2022)."""
    augment: Annotated[Any, AUGMENTATIONS] = field(default_factory=StandardAugmentation)
    """Random changes of the copies. Images on disk are resized and cropped first."""
    seed: Seed = 0
    """Seed of the random changes."""


@dataclass(kw_only=True)
class Config(ExtractorChoice):
    data: Path | None = None
    """Folder with images.h5, another images file such as samples.h5 of sample_gan.py, or a list of tasks with pictures
    (.csv, see episodes.py --tasks). Either --data or --images is required."""
    images: Path | None = None
    """Folder of image files, at any depth, in place of --data."""
    out: Path
    """Folder to write train.h5 and test.h5, or features.h5, to."""
    npz: RunOnly[bool] = False
    """Write .npz files, too."""
    timm: StretchingTimmModel | None = None
    """Pretrained timm model to use instead of --extractor."""
    invert: bool | None = None
    """Invert every image. Default: if the images are the reverse of those that the extractor was trained on, such as
    dark ink on paper for an extractor of bright ink on black."""
    views: Annotated[Any, VIEWS] | None = None
    """Save the mean of the features of several views of each image (and of each copy). mirror: the image and its mirror
    image; random: n randomly augmented images. Takes as many times as long. Default: the image itself."""
    layer: Literal["trunk"] | None = None
    """Layer to save: trunk for the features before the projection of train_scgm.py (default: after it)."""
    copies: Copies | None = None
    """Number of augmented copies of each image, whose features are saved too."""
    part: RunOnly[Literal["train", "test"] | None] = None
    """The only file to write (default: both)."""
    batch_size: RunOnly[PositiveInt] = 256
    """Batch size; affects speed only."""
    accelerator: RunOnly[str] = "auto"
    """Device type to compute on: auto, cpu, cuda, ..."""
    precision: NetworkPrecision = "32-true"
    """Precision of the network; features are stored as float32."""
    num_workers: RunOnly[NonNegativeInt | None] = None
    """Number of processes that decode images on disk. Default: one per core, at most 8; none for stored pixels and for
    few images."""
    overwrite: RunOnly[bool] = False
    """Replace existing outputs."""

    renamed: ClassVar = ExtractorChoice.renamed | {
        "support": "copies.augment",
        "copies": "copies.n",
        "seed": "copies.seed",
        "mirror": "views.name",
    }

    @classmethod
    def older(cls, stored: dict) -> dict:
        """Update a recipe of an older revision, whose config said what the extractor had seen of novel classes, and
        whether views were mirrored."""
        seen = ("validation_classes", "saw_shots", "saw_samples", "mirror")
        config = {name: value for name, value in stored["config"].items() if name not in seen}
        views = {"views": {"name": "mirror"}} if stored["config"].get("mirror") else {}
        return super().older({**stored, "config": {**config, **views}})


def main(config: Config) -> Path:
    """Write the feature files, and return their folder."""
    check_choice(config)
    source = _source(config)
    start_ahead(config.num_workers, source.images.n_encoded)
    # Pictures become what the extractor takes; stored images must be that already.
    model, chosen = representation.chosen_extractor(config, None if source.where is None else source.images)
    if config.layer == "trunk":
        representation.drop_projection(model, config)
    if config.copies:
        _check_changes("copies", config.copies)
    if isinstance(config.views, RandomViews):
        _check_changes("views", config.views)
    of_samples = gan.handed_on(source.where)
    if not of_samples["inputs"]:  # generated images are what their GAN has learned from, whatever their brightness
        config = replace(config, invert=_inverts(config, model, source) or None)
    facts = representation.handed_on(config.extractor) if config.extractor else {}
    inputs = {**source.digests, **chosen, **of_samples["inputs"]}
    seen = representation.lineage_of_extractor(config) | of_samples["lineage"]
    made_from = recipe("save_features", config, inputs, seen.to_json(), **of_samples["config"], **facts)
    fabric = core.open_fabric(config.accelerator, config.precision)
    network = fabric.to_device(model)
    loader = representation.ImageLoader(source.images, model.config, config.num_workers, device=fabric.device)
    for name, rows in source.parts(config.part).items():
        out = config.out / f"{name}.h5"
        if not is_done(out, made_from, config.overwrite):
            with building(out, made_from) as partial:
                extract(config, fabric, network, loader, rows, partial, made_from)
            print(f"save_features: wrote {out}")
            health.warn(constant_features(out))
        if config.npz:
            _save_npz(out, made_from, config.overwrite)
    return config.out


@dataclass(frozen=True)
class _Source:
    """The images, their digests in a recipe, and the file `where` they are stored; None for pictures."""

    images: Images
    digests: dict[str, Path | str]
    where: Path | None = None
    has_split: bool = True

    def parts(self, chosen: str | None) -> dict[str, np.ndarray]:
        """Return the rows of each feature file, by its name. Raises InputError if the `chosen` part has no images."""
        if not self.has_split:
            return {"features": np.arange(len(self.images))}
        rows = {"train": self.images.rows(test=False), "test": self.images.rows(test=True)}
        if chosen and len(rows[chosen]) == 0:
            raise InputError(f"{self.where}: has no {chosen} images. Leave --part out")
        # published few-shot splits have no test images
        return {name: some for name, some in rows.items() if chosen in (None, name) and len(some)}


def _source(config: Config) -> _Source:
    """Find the images. Raises InputError unless exactly one of --data and --images is given."""
    if (config.data is None) == (config.images is None):
        raise InputError("exactly one source of images is needed. Use either --data or --images")
    if config.images is not None:
        return _folder(config)
    where = images_file(config.data)
    if not _lists_tasks(where):
        return _Source(read_images(where), {"images": where}, where)
    listed = read_task_list(where)
    return _Source(listed.images(), image_digests(listed.root, listed.files))


def _folder(config: Config) -> _Source:
    """Find the images in a folder. Without labels, none of them can be wrong."""
    root = config.images.resolve()
    files = find_images(root)
    if left_out := ignored(config.images):
        print(f"save_features: {left_out}")
    if not files:
        raise InputError(f"{config.images}: contains no images")
    if config.part:
        raise InputError("--part: a folder of images has no parts. Leave it out")
    names = np.array([file.relative_to(root).as_posix() for file in files], object)
    images = Images(np.full(len(files), -1), np.zeros(len(files), bool), paths=names, root=root)
    return _Source(images, image_digests(root, files), has_split=False)


def _inverts(config: Config, model: representation.Extractor, source: _Source) -> bool:
    rows = np.arange(len(source.images)) if not source.has_split else np.flatnonzero(source.images.labels >= 0)
    seen = representation.polarity(model.config, source.images, rows)
    return representation.inverts(config.invert, seen, "save_features")


def _save_npz(path: Path, made_from: Recipe, overwrite: bool) -> None:
    """Write the features of a complete feature file as .npz."""
    out = path.with_suffix(".npz")
    check_out(out)
    check_record(out)
    if is_recorded(out) and is_done(record_path(out), made_from, overwrite):
        return
    with writing(out, made_from) as partial:
        export_npz(path, partial)
        write_record(out, partial, made_from)
    print(f"save_features: wrote {out}")


def _lists_tasks(where: Path) -> bool:
    return where.suffix == ".csv"


def _check_changes(name: str, drawn: Copies | RandomViews) -> None:
    """Raise InputError for copies or views that are all equal, or that need another crop of the file on disk."""
    if drawn.augment == StandardAugmentation():
        raise InputError(
            f"--{name}: all {drawn.n} would equal the image; add a random change, e.g. --{name}.augment.flip"
        )
    if isinstance(drawn.augment, StandardAugmentation) and drawn.augment.resized_crop:
        raise InputError(
            f"--{name}.augment.resized_crop: not available here, as images are loaded only once. Use "
            f"--{name}.augment.crop_area 0.08"
        )


class _Changes:
    """The random changes of copies or views: `n` of each of `n_images` images.

    They depend only on (seed, number of the copy or view, index of the image in images.h5).
    """

    def __init__(self, drawn: Copies | RandomViews, n_images: int, seed: int, view: int) -> None:
        self.augment = representation.augmentation_of(drawn.augment)
        self.uniforms = [self.augment.uniforms(n_images, seed, i + 1, view) for i in range(drawn.n)]

    def of(self, images: torch.Tensor, rows: np.ndarray) -> Iterator[torch.Tensor]:
        """Yield the `images` (B, C, H, W) of `rows` (B,) with each change in turn."""
        for uniforms in self.uniforms:
            yield self.augment(images, uniforms[rows].to(images.device))


def _views(choice: Any, n_images: int) -> Callable[[torch.Tensor, np.ndarray], Iterable[torch.Tensor]]:
    """Return what maps images (B, C, H, W) of rows (B,) to their views."""
    if isinstance(choice, RandomViews):
        return _Changes(choice, n_images, 0, _AVERAGED).of
    return lambda images, rows: [images] if choice is None else [images, images.flip(-1)]


def extract(
    config: Config,
    fabric: Any,
    network: representation.Extractor,
    loader: representation.ImageLoader,
    rows: np.ndarray,
    path: Path,
    made_from: dict,
) -> None:
    """Write the features of `rows` batch by batch. In the file of a killed run, continue after `count` rows.

    Departs from Douze et al. (2018) for images that cannot be decoded. There they get the features of a black picture,
    and a hundred thousand equal vectors become hubs of the graph. Here they get zeros, which have no neighbours.
    """
    images, n_copies, copies_of = loader.images, 0, lambda *batch: []
    if copies := config.copies:
        n_copies, copies_of = copies.n, _Changes(copies, len(images), copies.seed, _SUPPORT).of
    views_of = _views(config.views, len(images))
    if not path.exists():
        paths = None if config.images is None else images.paths[rows]
        create_features(path, len(rows), network.dim, images.labels[rows], made_from, n_copies, paths)

    def features(unit: torch.Tensor, part: np.ndarray) -> np.ndarray:
        feats = representation.batch_features(network, views_of(unit, part), fabric)
        if not np.isfinite(feats).all():
            raise InputError(
                f"{config.extractor or config.timm.name}: computes features that are NaN or infinite. Use other "
                f"weights, or --precision 32-true"
            )
        return feats

    with update_h5(path) as file:
        done = int(file["count"][0])
        if 0 < done < len(rows):
            print(f"save_features: continuing after {done} of {len(rows)} images", flush=True)
        unlabelled = images.labels[rows] < 0
        is_blank = file.get("is_blank")
        parts = representation.in_batches(rows[done:], config.batch_size)
        loaded, name = loader.whole(parts), path.stem
        for part, pixels in core.Progress(zip(parts, loaded), name, len(parts), unit="batch", resumable=True):
            pixels = 255 - pixels if config.invert else pixels
            unit, block = representation.to_unit(pixels, fabric.device), slice(done, done + len(part))
            feats = np.stack([features(one, part) for one in (unit, *copies_of(unit, part))], axis=1)
            if is_blank is not None:
                is_blank[block] = blank = unlabelled[block] & (pixels.flatten(1).amax(1) == 0).numpy()
                feats[blank] = 0
            file["all_feats"][block] = feats[:, 0]
            if n_copies:
                file["augmented_feats"][block] = feats[:, 1:]
            done = block.stop
            file["count"][0] = done
            file.flush()
        if is_blank is not None:
            named = f": {listed(images.paths[rows][is_blank[:]], 20)}" if config.images and np.any(is_blank) else ""
            print(f"save_features: {np.sum(is_blank)} of {len(rows)} images are blank or corrupt and have features of "
                  f"zeros{named}")  # fmt: skip


def next_step(config: Config) -> list | None:
    """Return the command that reads the output: low_shot.py with the shots that were drawn, or episodes.py if there are
    no test images. The features of a folder are for programs of the user.
    """
    if config.data is None:
        return None
    if _lists_tasks(config.data):
        tasks = ["--tasks", config.data, "--features", config.out / "train.h5"]
        return ["episodes.py", *tasks, "--out", config.out.parent / "results" / "tasks.json"]
    split, draws = config.data / "split.json", config.data / "draws.json"
    train, test, results = config.out / "train.h5", config.out / "test.h5", config.out.parent / "results"
    if not (split.exists() and train.exists()):
        return None
    if not test.exists():
        return ["episodes.py", "--features", train, "--split", split, "--out", results / "episodes.json"]
    inputs = ["--train", train, "--test", test, "--split", split, "--draws", draws]
    return ["low_shot.py", *inputs, *_shots_of(split, draws), "--out", results / "imprinting.json"]


def _shots_of(split: Path, draws: Path) -> list:
    """Return the option --shots if the draws have fewer shots of novel classes than the benchmark's default."""
    try:
        novel = read_split(split).novel_classes
        most = min(len(rows[c]) for rows in read_draws(draws).values() for c in novel)
    except InputError:
        return []
    return [] if most >= max(SHOTS) else ["--shots", *(n for n in SHOTS if n <= most)]


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
