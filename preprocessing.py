"""Bring a data set into the form that every later stage reads: images, split and draws.

Reads the data set below --root in its official form (downloads Omniglot, CIFAR-100 or EMNIST through torchvision where
neither the files nor --root are given; `glyphs` needs no files at all). Writes the folder --out: `images.h5` (pixels,
or paths of large images; labels; test marks), `split.json` (base and novel classes and their halves), `draws.json` (the
shots of every trial, as row numbers into the train features) and `config.json` (settings, digests of what was read).

    python preprocessing.py --dataset cifar100 --root data --novel_fraction 0.4 --out outputs/cifar100/data
    python preprocessing.py --dataset yfcc100m --root /datasets/yfcc100m --start 3000000 --count 1000000 \\
        --out outputs/yfcc100m/block03/data

The data sets, and what they expect below --root:
    glyphs     nothing: 144 characters of 12 scripts, rendered here, 50 + 20 images each (28x28x1)
    omniglot   omniglot-py/images_{background,evaluation}/<alphabet>/<character>/*.png; 20 drawings a class, 10 of them
               held out for test by default, so --max_shots 10 at most
    cifar100   cifar-100-python/{train,test,meta}
    emnist     emnist-<split>-{train,test}-*-ubyte.gz and emnist-<split>-mapping.txt
    folder     <class>/*.jpg or <superclass>/<class>/*.jpg: your own images
    imagenet   {train,val}/<wnid>/*.JPEG, with --protocol DIR holding label_idx.json and splitfile_{1..5}.json
    living17, nonliving26, entity13, entity30 (BREEDS)
               {train,val}/<wnid>/* of ImageNet and breeds/{class_hierarchy.txt,dataset_class_info.json,node_names.txt};
               train_scgm.py --holdout 0.1 keeps back the tenth of the train images that SCGM watches

Published few-shot splits (training, validation, test classes); all images of a class are one pool, for episodes.py:
    cifar_fs, fc100    as cifar100
    omniglot_vinyals   as omniglot; with the rotations as further classes
    mini_imagenet      mini-imagenet/{train,val,test}/<class>/*, or {train,val,test}.csv beside images/
    tiered_imagenet    tiered-imagenet/{train,val,test}/<class>/*, or the published {train,val,test}_*.pkl

Splits for few-shot GANs (Beckham et al., 2022), novel classes by --seed, the published shots as trial 1:
    emnist_fs, omniglot_fs, cifar100_fs
               as emnist (its balanced split, if that is there), omniglot and cifar100; train and test parts are one
               pool, of which the last fifth of each class is for test

Unlabelled images, without split and draws, for the graph of diffusion.py:
    yfcc100m   <2 digits>/<3 digits>.zip holding <3 digits>.jpg; images --start .. --start + --count - 1

Small run on a CPU (seconds):

    python preprocessing.py --dataset glyphs --out outputs/glyphs/data
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from lowshot.core.artifacts import is_done, recipe, write_json, writing
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.settings import ClosedUnitInterval, NonNegativeInt, OpenUnitInterval, PositiveInt, RunOnly
from lowshot.data.datasets import breeds
from lowshot.data.datasets.content import Content, Source, cap, validation_part
from lowshot.data.datasets.images import Images, write_images
from lowshot.data.datasets.registry import READERS, Reader
from lowshot.data.protocol import Halves, draws_to_json, make_draws, make_split, with_douze2018_draws

SCHEMA = "lowshot-data-1"


@dataclass
class Config:
    """Settings of preprocessing."""

    dataset: Literal[tuple(READERS)]
    """Data set to read."""
    out: Path
    """Folder to write."""
    root: Path | None = None
    """Folder of the data set's files; by default data/, with a download through torchvision where there is one."""
    seed: NonNegativeInt = 0
    """Seed of novel classes, halves, draws, held-out test images and caps (the glyphs themselves never change)."""
    novel_fraction: ClosedUnitInterval = 0.4
    """Share of the classes that become novel, where the data set does not fix them."""
    novel_per_superclass: NonNegativeInt = 0
    """If above 0: this many novel classes in every superclass, instead of novel_fraction."""
    halves: Halves = "classes"
    """What is dealt to the validation and the test setup: single classes or whole superclasses."""
    n_trials: PositiveInt = 5
    """Trials to draw shots for."""
    max_shots: PositiveInt = 20
    """Shots drawn for every trial and class; n-shot takes the first n of them."""
    draw_rule: Literal["streams", "douze2018"] = "streams"
    """How shots are drawn: each class from a stream of its own, or as the diffusion paper's release does."""
    test_per_class: PositiveInt | None = None
    """Images of a class held out for test where the set has no test part (default: omniglot 10, others a fifth)."""
    image_size: PositiveInt | None = None
    """omniglot: side of the stored images (default 28); folder: store square images of this side instead of paths."""
    max_per_class: PositiveInt | None = None
    """Keep at most this many random images of a class in the train part, and as many in the test part."""
    validation_share: OpenUnitInterval | None = None
    """If given, this share of every class's training images stands in place of the test images, which are left out: to
    choose settings on. Results then say "validation part" behind the data set's name."""
    protocol: Path | None = None
    """imagenet: folder with the published label_idx.json and splitfile_{1..5}.json."""
    start: NonNegativeInt = 0
    """yfcc100m: number of the first image to take."""
    count: PositiveInt | None = None
    """yfcc100m: how many images to take."""
    overwrite: RunOnly[bool] = False
    """Make it again even if the output stands."""


def main(config: Config) -> Path:
    """Read a data set and write its images, split and draws; returns the folder written."""
    source = _source(config)
    found = READERS[config.dataset].find(source)
    made_from = recipe("preprocessing", config, {}) | {"inputs": found.digests}
    for name in {"start", "count"} - READERS[config.dataset].heeds:  # one data set's own, in no recipe of the others
        del made_from["config"][name]
    if config.draw_rule == "streams":
        del made_from["config"]["draw_rule"]
    if config.validation_share is None:
        del made_from["config"]["validation_share"]
    stays = {"folder", "imagenet", "mini_imagenet", "tiered_imagenet", "yfcc100m", *breeds.BENCHMARKS}
    if config.dataset in stays and config.image_size is None:
        made_from["config"]["root"] = str(source.root.resolve())  # the images stay there
    if is_done(config.out, made_from, config.overwrite):
        return config.out

    content = found.read()
    if config.max_per_class is not None and content.draws is None:  # who makes draws has capped
        content.images = cap(content.images, config.max_per_class, config.seed)
    if config.validation_share is not None:
        content.images = validation_part(content.images, config.validation_share, config.seed, content.class_names)
    protocol = _protocol(config, content) if READERS[config.dataset].labelled else {}
    with writing(config.out, made_from) as partial:
        partial.mkdir()
        write_images(partial / "images.h5", content.images, made_from)
        for name, part in {**protocol, "config.json": {"schema": SCHEMA, **made_from}}.items():
            write_json(partial / name, part)
    print(f"preprocessing: {_summary(content)} -> {config.out}")
    return config.out


def _protocol(config: Config, content: Content) -> dict[str, dict]:
    """split.json and draws.json of a labelled data set."""
    images = content.images
    _check_parts(images, content.class_names)
    name = config.dataset if config.validation_share is None else f"{config.dataset} (validation part)"
    split = content.split or make_split(
        name, content.class_names, content.superclass_names, content.superclass_of, config.seed,
        content.novel_classes, config.novel_fraction, config.novel_per_superclass, config.halves,
    )  # fmt: skip
    train_labels = images.labels[images.rows(test=False)]
    draws = content.draws or make_draws(
        train_labels, content.class_names, config.n_trials, config.max_shots, config.seed
    )
    if config.draw_rule == "douze2018":
        draws = with_douze2018_draws(draws, train_labels, split, config.max_shots)
    return {"split.json": split.to_json(), "draws.json": draws_to_json(draws, split, config.seed)}


def _source(config: Config) -> Source:
    """What the reader gets to know; refuses settings that this data set has no use for."""
    for name, cause in _useless(READERS[config.dataset]).items():
        if getattr(config, name) != getattr(Config, name):
            raise InputError(f"--{name}: {config.dataset} {cause}")
    taken = {f.name: getattr(config, f.name) for f in fields(Source) if hasattr(config, f.name)}
    return Source(**taken | {"root": config.root or Path("data"), "may_download": config.root is None})


def _useless(reader: Reader) -> dict[str, str]:
    """The settings that a data set does not heed, and why."""
    source_settings = {"root", "test_per_class", "image_size", "protocol", "max_per_class", "start", "count"}
    of_the_split = ("halves", "novel_fraction", "novel_per_superclass", "validation_share")
    causes = dict.fromkeys(sorted(source_settings - reader.heeds), "has no use for it")
    if reader.fixes_split:
        causes |= dict.fromkeys(of_the_split, "comes with a split of its own")
    if not reader.labelled:
        of_the_protocol = (*of_the_split, "seed", "n_trials", "max_shots")
        causes |= dict.fromkeys(of_the_protocol, "has no classes to split or draw from")
    return causes


def _check_parts(images: Images, class_names: list[str]) -> None:
    parts = [(False, "training "), (True, "test ")] if images.is_test.any() else [(False, "")]  # one pool
    for test, part in parts:
        counts = np.bincount(images.labels[images.rows(test)], minlength=len(class_names))
        for c in np.flatnonzero(counts == 0)[:1]:
            raise InputError(f"class {c} ({class_names[c]}) has no {part}image")


def _summary(content: Content) -> str:
    images = content.images
    if not content.class_names:
        return f"{len(images)} unlabelled images"
    n_train, n_test = len(images.rows(test=False)), len(images.rows(test=True))
    return f"{len(content.class_names)} classes, {n_train} train and {n_test} test images"


if __name__ == "__main__":
    run(main, Config, __doc__)
