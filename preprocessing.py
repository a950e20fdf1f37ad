"""Convert a data set to the files that all later stages read: images, split and draws.

Reads the data set in its official form from --root. Without --root, files are expected in data/; Omniglot, CIFAR-100
and EMNIST are downloaded there through torchvision if they are missing. `glyphs` needs no files. Your own images need
--root.

Writes the folder --out:
    images.h5    pixels (or paths of large images), labels, test flags
    split.json   base and novel classes, and their halves for the validation and the test setup
    whole.json   the same classes without halves: a test setup of all classes, to compare with papers that judge them
                 all
    draws.json   the shots of every trial, as row numbers of the train features
    config.json  settings, and digests of the files that were read

    python preprocessing.py --dataset cifar100 --root data --dataset.novel_fraction 0.4 --out outputs/cifar100/data
    python preprocessing.py --dataset yfcc100m --root /datasets/yfcc100m --dataset.start 3000000 \\
        --dataset.count 1000000 --out outputs/yfcc100m/block03/data
    python preprocessing.py --dataset my_sets.py:Stripes --dataset.n_images 20 --out outputs/stripes/data

`--dataset NAME --help` shows the settings of a data set. To add your own, write a class with settings and a method
`read(source)`; see lowshot/data/datasets/own.py.

Data sets, and the files that they expect in --root:
    glyphs     none: 144 characters of 12 scripts are rendered, 50 train and 20 test images each (28x28x1)
    omniglot   omniglot-py/images_{background,evaluation}/<alphabet>/<character>/*.png; 20 drawings per class, of which
               10 are held out for test by default, so --dataset.max_shots can be at most 10
    cifar100   cifar-100-python/{train,test,meta}
    emnist     emnist-<split>-{train,test}-*-ubyte.gz and emnist-<split>-mapping.txt
    folder     your own images: <class>/*.jpg or <superclass>/<class>/*.jpg, or either of them in {train,val,test}/
               (test images are those of test/, or else of val/; without parts, a fifth of each class is held out)
    features   --root is a feature file (train.h5) instead of a folder; writes its split and draws, and no images
    imagenet   {train,val}/<wnid>/*.JPEG; --dataset.protocol names a folder with label_idx.json and
               splitfile_{1..5}.json
    living17, nonliving26, entity13, entity30 (BREEDS)
               {train,val}/<wnid>/* of ImageNet and breeds/{class_hierarchy.txt,dataset_class_info.json,node_names.txt};
               use train_scgm.py --holdout 0.1 to hold out the 10 % of the train images that SCGM validates on

Published few-shot splits for episodes.py (training, validation, test classes; no test images, all images of a class
form one pool):
    cifar_fs, fc100    as cifar100
    omniglot_vinyals   as omniglot; rotated characters are additional classes
    mini_imagenet      mini-imagenet/{train,val,test}/<class>/*, or {train,val,test}.csv beside images/
    tiered_imagenet    tiered-imagenet/{train,val,test}/<class>/*, or the published {train,val,test}_*.pkl

Splits for few-shot GANs (Beckham et al., 2022); --seed selects the novel classes, trial 1 has the published shots:
    emnist_fs, omniglot_fs, cifar100_fs
               as emnist (the balanced split if present), omniglot and cifar100; the train and test images of a class
               are pooled and shuffled, and the last fifth becomes its test images

Unlabelled images for the graph of diffusion.py (no split, no draws):
    yfcc100m   <2 digits>/<3 digits>.zip with members <3 digits>.jpg; reads images start to start + count - 1

Small example (seconds on a CPU):

    python preprocessing.py --dataset glyphs --out outputs/glyphs/data
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from lowshot.core.artifacts import recipe
from lowshot.core.choices import is_own
from lowshot.core.cli import run
from lowshot.core.errors import InputError, listed
from lowshot.core.files import write_json
from lowshot.core.publishing import is_done, writing
from lowshot.core.settings import RunOnly, Seed
from lowshot.data.datasets import registry
from lowshot.data.datasets.content import Content, Found, Source, cap, validation_part
from lowshot.data.datasets.images import Images, write_images
from lowshot.data.datasets.rotation import rotated
from lowshot.data.datasets.settings import (
    DATASETS,
    Capped,
    DrawnSplit,
    FeatureFile,
    Folder,
    HalvedSplit,
    Shots,
    part_of,
)
from lowshot.data.protocol import (
    VALIDATION_PART,
    Split,
    check_draws,
    draws_to_json,
    make_draws,
    make_split,
    origins,
    with_douze2018_draws,
)

SCHEMA = "lowshot-data-1"
# Settings of data sets that were top-level settings in older revisions.
_MOVED = ("novel_fraction", "novel_per_superclass", "halves", "validation_share", "n_trials", "max_shots", "draw_rule",
          "max_per_class", "test_per_class", "image_size", "protocol", "start", "count")  # fmt: skip


_LAYOUTS = "preprocessing.py --help lists the files that each data set expects in --root"


@dataclass
class Config:
    """Settings of preprocessing."""

    dataset: Annotated[Any, DATASETS]
    """Data set to read."""
    out: Path
    """Folder to write the data to."""
    root: Path | None = None
    """Folder with the data set's files. Default: data/, where torchvision downloads missing files if it can."""
    rotations: bool = False
    """Add all classes turned by 90, 180 and 270 degrees as classes of their own. They are base or novel with the class
    itself."""
    seed: Seed = 0
    """Seed of novel classes, halves, draws, held-out test images and caps (the glyph images are always the same)."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""

    renamed: ClassVar = {"dataset": "dataset.name", **{name: f"dataset.{name}" for name in _MOVED}}


def main(config: Config) -> Path:
    """Read a data set, write its images, split and draws, and return the output folder."""
    source = Source(config.root, config.seed)
    found = _found(config, source)
    stays = {"root": str(source.folder.resolve())} if found.stays else {}
    made_from = recipe("preprocessing", config, found.digests, **stays)
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    content = found.read()
    content.images = _chosen_images(config, content)
    if content.class_names:
        content.split = _split(config, content)
    if config.rotations:
        content = rotated(content)
    protocol = _protocol(config, content) if content.class_names else {}
    with writing(config.out, made_from) as partial:
        partial.mkdir()
        if content.images.has_content:
            write_images(partial / "images.h5", content.images, made_from)
        for name, part in {**protocol, "config.json": {"schema": SCHEMA, **made_from}}.items():
            write_json(partial / name, part)
    print(f"preprocessing: {_summary(content)} -> {config.out}")
    if protocol:
        print(f"preprocessing: {_setups(protocol['split.json'])}")
        if few := _few(content):
            print(f"preprocessing: {few}")
    return config.out


def _found(config: Config, source: Source) -> Found:
    """Find the data set. If files are missing, the error says how to name their folder, or where they are described."""
    try:
        return registry.find(config.dataset, source)
    except InputError as error:
        root = (str(source.folder), str(source.folder.resolve()))
        of_files = str(error).startswith(root) and "no such" in str(error)
        if not of_files or (config.root is not None and not config.root.exists()):
            raise
        way_out = "Use --root to name the folder of the data set" if config.root is None else _LAYOUTS
        raise InputError(f"{error}. {way_out}") from None


def _chosen_images(config: Config, content: Content) -> Images:
    """Return the images to keep, with their final test flags."""
    images, max_per_class = content.images, part_of(config.dataset, Capped).max_per_class
    share = part_of(config.dataset, HalvedSplit).validation_share
    if max_per_class is not None:
        images = cap(images, max_per_class, config.seed)
    return images if share is None else validation_part(images, share, config.seed, content.class_names)


def _split(config: Config, content: Content) -> Split:
    """Return the split that the data set prescribes, or draw one."""
    _check_parts(content.images, content.class_names)
    split = content.split or _drawn_split(config, content)
    if not isinstance(config.dataset, Folder):
        return split
    source = f"folder:{config.root.resolve().name}"  # never the name of a published data set
    return replace(split, origins=origins(source, content.class_names))


def _protocol(config: Config, content: Content) -> dict[str, dict]:
    """Return the content of split.json, whole.json and draws.json, by file name."""
    split = content.split
    shots, labels = part_of(config.dataset, Shots), content.images.labels[content.images.rows(test=False)]
    draws = content.draws or make_draws(
        labels, content.class_names, shots.n_trials, shots.max_shots, config.seed, split.novel_classes
    )
    check_draws(draws, labels, np.arange(len(content.class_names)), 1, f"draws of {split.dataset}", "the train part")
    if shots.draw_rule == "douze2018":
        draws = with_douze2018_draws(draws, labels, split, shots.max_shots)
    splits = {"split.json": split.to_json(), "whole.json": split.whole().to_json()}
    return {**splits, "draws.json": draws_to_json(draws, split, config.seed)}


def _drawn_split(config: Config, content: Content) -> Split:
    """Draw the split of a data set that has no published one."""
    name = _name(config)
    halved, drawn = part_of(config.dataset, HalvedSplit), part_of(config.dataset, DrawnSplit)
    return make_split(
        name if halved.validation_share is None else f"{name}{VALIDATION_PART}",
        content.class_names, content.superclass_names, content.superclass_of, config.seed,
        content.novel_classes, drawn.novel_fraction, drawn.novel_per_superclass, halved.halves,
    )  # fmt: skip


def _name(config: Config) -> str:
    """Return the name of the data set: that of the user's class, of the folder of photos, or of our data set."""
    if is_own(config.dataset):
        return type(config.dataset).__name__
    name = DATASETS.name_of(config.dataset)
    if not isinstance(config.dataset, Folder):
        return name
    folder = config.root.resolve().name or name  # a whole drive has no name
    return f"{folder} (folder)" if folder in DATASETS.classes else folder  # published figures are found by the name


def _check_parts(images: Images, class_names: list[str]) -> None:
    parts = [(False, "training "), (True, "test ")] if images.is_test.any() else [(False, "")]  # one pool
    for test, part in parts:
        counts = np.bincount(images.labels[images.rows(test)], minlength=len(class_names))
        if lacking := [class_names[c] for c in np.flatnonzero(counts == 0)]:
            raise InputError(f"no {part}images in these classes: {listed(lacking)}. Add some, or remove the classes")


def _summary(content: Content) -> str:
    images = content.images
    if not content.class_names:
        return f"{len(images)} unlabelled images"
    if not images.has_content:
        return f"{len(content.class_names)} classes of {len(images)} rows"
    n_train, n_test = len(images.rows(test=False)), len(images.rows(test=True))
    return f"{len(content.class_names)} classes, {n_train} train and {n_test} test images"


def _setups(split: dict) -> str:
    """Say how many classes each setup evaluates: with few of them, scores and chosen settings mean little."""
    sizes = {name: [len(split[f"{kind}_classes_{half}"]) for kind in ("base", "novel")]
             for name, half in (("test", 2), ("validation", 1))}  # fmt: skip
    return "; ".join(f"{name} setup: {base} base and {novel} novel classes" for name, (base, novel) in sizes.items())


_FEW = 5  # novel classes, or test images of a class: with fewer, a single one changes scores by 20 % and more


def _few(content: Content) -> str | None:
    """Say if the test setup has so few novel classes or test images that scores mean little."""
    base, novel = content.split.setup("test")
    tested = content.images.labels[content.images.is_test]
    n_test = np.bincount(tested, minlength=content.split.n_classes)[np.concatenate([base, novel])].min(initial=_FEW)
    few = [f"only {len(novel)} novel classes"] if len(novel) < _FEW else []
    few += [f"only {n_test} test images of a class"] if n_test < _FEW and len(tested) else []
    if not few:
        return None
    both = ", or judge those of both setups (--split whole.json)" if len(novel) < _FEW else ""
    return (
        f"the test setup has {' and '.join(few)}, so its numbers will mean little. Add images and classes{both}. "
        "To classify photos, predict.py needs no setups"
    )


def next_step(config: Config) -> list | None:
    """Return the command that reads the output; none for unlabelled images, which train no extractor.

    The classes of a feature file go to the benchmark, with the test features beside it.
    """
    if not (config.out / "split.json").exists():
        return None
    if isinstance(config.dataset, FeatureFile):
        split, draws = config.out / "split.json", config.out / "draws.json"
        test = config.root.with_name(f"test{config.root.suffix}")
        files = ["--train", config.root, "--test", test, "--split", split, "--draws", draws]
        return ["low_shot.py", *files, "--out", config.out.parent / "results" / "imprinting.json"]
    return ["train_extractor.py", "--data", config.out, "--out", config.out.parent / "extractor"]


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
