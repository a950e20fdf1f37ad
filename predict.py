"""Make a classifier from a few photos per class, and classify other photos with it.

fit       reads IMAGES/<class>/* and an extractor (from train_extractor.py, or any timm model)
          writes OUT/: model.pt, config.json, extractor/ (everything that `classify` needs)
classify  reads CLASSIFIER/ and image files or folders
          writes OUT (.csv: image, rank, class, score; or .json)

python predict.py fit --timm resnet50.a1_in1k --images photos --out classifier
python predict.py classify --classifier classifier --images new_photos --out predictions.csv

`classify` accepts several images or folders: --images a.jpg more. It records its settings and inputs in OUT, or in
OUT.json if OUT is a .csv file.

A score is the softmax of the method's scores over the classes of the classifier. It ranks the classes of one image. It
is not calibrated, and an image of none of the classes is still assigned to one of them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from lowshot import classifiers, representation
from lowshot.classifiers.settings import (
    INDUCTIVE_METHODS,
    FeatureTransform,
    SupportLogisticOptions,
    is_transductive,
)
from lowshot.core.artifacts import CONTENT, recipe
from lowshot.core.cli import run_commands
from lowshot.core.errors import InputError
from lowshot.core.files import content_digest, missing, plain_cell, write_json
from lowshot.core.ownership import check_out, check_record, is_recorded, record_path
from lowshot.core.publishing import (
    clear,
    is_done,
    open_journal,
    write_record,
    writing,
)
from lowshot.core.settings import NonNegativeInt, PositiveInt, RunOnly
from lowshot.data.datasets.content import image_digests, listing_digest
from lowshot.data.datasets.folder import find_classes, find_images, ignored
from lowshot.data.features import read_features
from lowshot.data.lineage import Lineage
from lowshot.data.protocol import origins, read_split
from lowshot.representation.settings import ExtractorChoice


@dataclass(kw_only=True)
class FitConfig(ExtractorChoice):
    """Make a classifier from a few photos per class.

    python predict.py fit --timm resnet50.a1_in1k --images photos --out classifier
    """

    images: Path
    """Folder of class folders with a few photos each. Superclass folders that contain class folders work too."""
    out: Path
    """Folder to write the classifier to."""
    method: Annotated[Any, INDUCTIVE_METHODS] = field(default_factory=SupportLogisticOptions)
    """Few-shot method. Only methods that classify one image at a time are available."""
    transform: FeatureTransform = field(default_factory=lambda: FeatureTransform(normalise=True))
    """Transform of all features before the method."""
    base_features: Path | None = None
    """Features of base classes from the same extractor (save_features.py). --transform.centre subtracts their mean."""
    split: Path | None = None
    """split.json that names the base classes of base_features."""
    invert: bool | None = None
    """Invert every image, such as dark ink on paper for an extractor of bright ink on black (omniglot, glyphs, emnist).
    Default: if the photos are the reverse of the images that the extractor was trained on."""
    batch_size: RunOnly[PositiveInt] = 32
    """Batch size of the extractor."""
    num_workers: RunOnly[NonNegativeInt | None] = None
    """Number of processes that decode images. Default: one per core, at most 8; none for few images."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""

    renamed = ExtractorChoice.renamed | {"method": "method.name", "methods": "method"}
    renamed |= {f"methods.{one}": "method" for one in INDUCTIVE_METHODS.classes}


@dataclass(kw_only=True)
class ClassifyConfig:
    """Classify photos.

    python predict.py classify --classifier classifier --images new_photos --out predictions.csv
    """

    classifier: Path
    """Folder of the classifier, written by `fit`."""
    images: Path | list[Path]
    """Image files or folders. Folders are searched at any depth."""
    out: Path
    """File to write the predictions to (.csv or .json)."""
    top_k: PositiveInt = 5
    """Number of classes to list for each image, best first."""
    batch_size: RunOnly[PositiveInt] = 32
    """Batch size of the extractor."""
    num_workers: RunOnly[NonNegativeInt | None] = None
    """Number of processes that decode images. Default: one per core, at most 8; none for few images."""
    code: RunOnly[list[str]] = field(default_factory=list)
    """Classes of your own (file.py:Class) that the classifier uses and that this command may import."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""


def fit(config: FitConfig) -> Path:
    """Save a classifier and return its folder."""
    import torch

    root = config.images.resolve()
    classes = find_classes(root)
    names = [folder.relative_to(root).as_posix() for folder in classes]
    if len(names) < 2:
        raise InputError(f"{config.images}: contains only one class ({names[0]}). Add a second class folder")
    _check(config)
    extractor, chosen = representation.chosen_extractor(config)
    files = [file for part in classes.values() for file in part]
    seen = representation.polarity_of_files(extractor.config, files)
    config = replace(config, invert=representation.inverts(config.invert, seen, "predict"))
    read = {"base_features": config.base_features, "split": config.split}
    seen = representation.lineage_of_extractor(config) | Lineage(frozenset(origins(f"folder:{root.name}", names)))
    made_from = recipe("predict", config, {**read, **chosen, **image_digests(root, files)}, seen.to_json())
    if is_done(config.out, made_from, config.overwrite):
        return config.out

    _say_left_out(root)
    mean = base_mean(config, extractor.dim, made_from["inputs"]["extractor"])
    feats = torch.from_numpy(representation.embed(extractor, files, **_speed(config), invert=config.invert))
    labels = torch.arange(len(names)).repeat_interleave(torch.tensor([len(part) for part in classes.values()]))
    classifier = classifiers.PhotoClassifier(
        extractor, names, classifiers.apply_transform(config.transform, feats, mean), labels, config.method,
        config.transform, mean, config.invert,
    )  # fmt: skip
    with writing(config.out, made_from) as partial:
        partial.mkdir()
        classifiers.save_classifier(partial, classifier, made_from)
    print(f"predict: classifier of {len(names)} classes from {len(files)} images -> {config.out}")
    return config.out


def _speed(config: FitConfig | ClassifyConfig) -> dict[str, int | None]:
    return {"batch_size": config.batch_size, "num_workers": config.num_workers}


def _check(config: FitConfig) -> None:
    """Raise InputError if a setting would be ignored or needs another one."""
    if len({config.transform.centre, config.base_features is not None, config.split is not None}) == 2:
        raise InputError(
            "--transform.centre: centres on the mean of base classes. "
            "Use --transform.centre, --base_features and --split together, or none of them"
        )
    if is_transductive(config.method):
        raise InputError(
            "--method: is transductive, which classifies all images together, but photos are classified one at a time. "
            f"Use one of {', '.join(INDUCTIVE_METHODS.classes)}"
        )


def base_mean(config: FitConfig, dim: int, extractor: str) -> Any:
    """Return the mean (D,) over the images of base classes that the transform subtracts, or None.

    Raises InputError if another extractor made the features, or if they contain no base class. `extractor` is the
    digest of the extractor.
    """
    if config.base_features is None:
        return None
    split = read_split(config.split)
    base = read_features(config.base_features, split.n_classes)
    if base.dim != dim:
        raise InputError(
            f"{config.base_features}: has {base.dim} dimensions, but the extractor makes {dim}. "
            "Use features of this extractor (save_features.py)"
        )
    if base.extractor not in (None, extractor):
        raise InputError(
            f"{config.base_features}: made by another extractor. Use features of this extractor (save_features.py)"
        )
    if base.mirror:
        raise InputError(
            f"{config.base_features}: averaged over mirror images, which the photos are not. Use features without "
            "--mirror (save_features.py)"
        )
    rows = np.isin(base.labels, split.base_classes)
    if not rows.any():
        raise InputError(
            f"{config.base_features}: contains no image of a base class of {config.split}. "
            "Use the features of the training images (train.h5)"
        )
    return classifiers.transformed_mean(config.transform, base.feats[rows])


def _say_left_out(folder: Path) -> None:
    """Say which files are ignored: phones write formats that cannot be read here."""
    if left_out := ignored(folder):
        print(f"predict: {left_out}")


def classify(config: ClassifyConfig) -> Path:
    """Write the best classes of every image and return the path of the file."""
    if config.out.suffix not in (".csv", ".json"):
        raise InputError(f"{config.out}: predictions must be a .csv or .json file")
    classifier = classifiers.load_classifier(config.classifier, config.code)
    files = choose_files(config.images)
    paths = [file.absolute() for file in files.values()]
    listed = {"images": listing_digest(Path("/"), paths), CONTENT: content_digest(paths, files)}
    made_from = recipe("predict", config, {"classifier": config.classifier, **classifier.code, **listed})
    is_table = config.out.suffix == ".csv"
    record = record_path(config.out) if is_table else config.out
    check_out(config.out)
    if is_table:
        check_record(config.out)
    if is_recorded(config.out) and is_done(record, made_from, config.overwrite):
        clear(config.out, made_from)
        return config.out

    _say_reversed(classifier, paths)
    with writing(config.out, made_from) as partial:
        done = open_journal(partial, made_from)
        if n_done := sum(map(len, done)):
            print(f"predict: continuing after {n_done} of {len(files)} images", flush=True)
        for block in _predictions(config, classifier, list(files.values())[n_done:]):
            made_from.sources.check(paths[n_done : n_done + len(block)])
            done.append(block)
            n_done += len(block)
        (write_table if is_table else write_document)(partial, list(files), list(chain.from_iterable(done)), made_from)
        if is_table:
            write_record(config.out, partial, made_from)
    print(f"predict: classes of {len(files)} images -> {config.out}")
    return config.out


def _say_reversed(classifier: classifiers.PhotoClassifier, paths: list[Path]) -> None:
    """Say if the pictures are the reverse of those that the classifier was made from."""
    found = representation.polarity_of_files(classifier.extractor.config, paths).is_reversed
    if found is not None and found != classifier.invert:
        made = "inverted" if classifier.invert else "took as they are"
        print(f"predict: these pictures look like the reverse of the photos of the classifier, which it {made}. Make "
              "another classifier from such photos, or invert the pictures")  # fmt: skip


_BLOCK = 256  # images that are classified at once


def _predictions(
    config: ClassifyConfig, classifier: classifiers.PhotoClassifier, files: list[Path]
) -> Iterator[list[list[tuple[str, float]]]]:
    """Yield the best classes of each image, with their scores, block by block."""
    if not files:
        return
    feats: list[np.ndarray] = []
    for batch in representation.embed_batches(classifier.extractor, files, **_speed(config), invert=classifier.invert):
        feats.append(batch)
        if sum(map(len, feats)) >= _BLOCK:
            yield _best(config, classifier, np.concatenate(feats))
            feats = []
    if feats:
        yield _best(config, classifier, np.concatenate(feats))


def _best(
    config: ClassifyConfig, classifier: classifiers.PhotoClassifier, feats: np.ndarray
) -> list[list[tuple[str, float]]]:
    import torch

    n_classes = min(config.top_k, len(classifier.class_names))
    scores, best = torch.from_numpy(classifier.predict_proba(feats)).topk(n_classes)
    return [
        [(classifier.class_names[c], round(score, 6)) for c, score in zip(*row)]
        for row in zip(best.tolist(), scores.tolist())
    ]


def choose_files(images: Path | list[Path]) -> dict[str, Path]:
    """Return the image files to classify, by their names in the output."""
    files = {}
    for path in images if isinstance(images, list) else [images]:
        if path.is_dir():
            _say_left_out(path)
            found = find_images(path)
            if not found:
                raise InputError(f"{path}: contains no images")
            files |= {(file.relative_to(path).as_posix() if path == images else str(file)): file for file in found}
        elif path.is_file():
            files[str(path)] = path
        else:
            raise missing(path, "no such file or folder")
    if not files:
        raise InputError("--images: the list is empty. Name at least one image or folder")
    return files


def write_table(path: Path, names: list[str], predictions: list[list[tuple[str, float]]], made_from: dict) -> None:
    """Write one row per image and rank."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "rank", "class", "score"])
        for name, row in zip(names, predictions):
            cells = ((plain_cell(label), score) for label, score in row)
            writer.writerows([plain_cell(name), rank, *cell] for rank, cell in enumerate(cells, start=1))


def write_document(path: Path, names: list[str], predictions: list[list[tuple[str, float]]], made_from: dict) -> None:
    """Write the recipe and the classes of each image, best first."""
    rows = [
        {"image": name, "classes": [{"class": label, "score": score} for label, score in row]}
        for name, row in zip(names, predictions)
    ]
    write_json(path, {**made_from, "schema": "lowshot-predictions-1", "predictions": rows})


def after_fit(config: FitConfig) -> list:
    """Return the command that uses the output. Capitals stand for a path that only the user knows."""
    predictions = config.out.parent / "predictions.csv"
    return ["predict.py", "classify", "--classifier", config.out, "--images", "NEW_PHOTOS", "--out", predictions]


COMMANDS = {"fit": (fit, FitConfig, after_fit), "classify": (classify, ClassifyConfig)}

if __name__ == "__main__":
    run_commands(COMMANDS, __doc__)
