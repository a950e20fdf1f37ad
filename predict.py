"""Make a classifier from a few photos a class, and let it name the classes of other photos.

fit       reads IMAGES/<class>/* and an extractor (train_extractor.py, or any model of timm)
          writes OUT/: model.pt, config.json, extractor/ (all that `classify` needs)
classify  reads CLASSIFIER/ and image files or a folder of them
          writes OUT (.csv: image, rank, class, score; or .json)

python predict.py fit --timm resnet50.a1_in1k --images photos --out classifier
python predict.py classify --classifier classifier --images new_photos --out predictions.csv

Several images or folders: --images '["a.jpg", "more"]'. Beside a .csv stands what made it, OUT.csv.json.

A score is the softmax of the method's scores over the classes of the classifier: it ranks them for one image. It is not
calibrated, and an image of none of the classes gets one of them all the same.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
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
from lowshot.core.artifacts import is_done, recipe, write_json, writing
from lowshot.core.cli import run_commands
from lowshot.core.errors import InputError
from lowshot.core.settings import NonNegativeInt, PositiveInt, RunOnly
from lowshot.data.datasets.content import listing_digest
from lowshot.data.datasets.folder import find_classes, find_images, ignored
from lowshot.data.features import read_features
from lowshot.data.protocol import read_split
from lowshot.representation.settings import ExtractorChoice


@dataclass(kw_only=True)
class FitConfig(ExtractorChoice):
    """Make a classifier from a few photos a class."""

    images: Path
    """folder of class folders (or superclass folders with class folders inside) with a few photos each"""
    out: Path
    """folder to write the classifier to"""
    method: Annotated[Any, INDUCTIVE_METHODS] = field(default_factory=SupportLogisticOptions)
    """what compares a new image with the photos; methods that need many new images at once are left out"""
    transform: FeatureTransform = field(default_factory=lambda: FeatureTransform(normalise=True))
    """what is done to every feature first"""
    base_features: Path | None = None
    """features that the same extractor made (save_features.py), for transform.centre: the mean of their base classes is
    subtracted"""
    split: Path | None = None
    """split.json, which says what the base classes of base_features are"""
    invert: bool = False
    """take the negative of every image: for dark ink on paper and an extractor that learned bright ink on black
    (omniglot, glyphs, emnist)"""
    batch_size: RunOnly[PositiveInt] = 32
    """images at once; changes the speed only"""
    num_workers: RunOnly[NonNegativeInt] = 0
    """processes that decode images; worth their start with some hundred photos"""
    overwrite: RunOnly[bool] = False
    """make it again even if it is there"""

    renamed = ExtractorChoice.renamed | {"method": "method.name", "methods": "method"}
    renamed |= {f"methods.{one}": "method" for one in INDUCTIVE_METHODS.classes}


@dataclass(kw_only=True)
class ClassifyConfig:
    """Name the classes of photos."""

    classifier: Path
    """folder written by fit"""
    images: Path | list[Path]
    """an image file, a folder, searched at any depth, or a list of them: '["a.jpg", "more"]' """
    out: Path
    """file to write, .csv or .json"""
    top_k: PositiveInt = 5
    """classes to name for each image, best first"""
    batch_size: RunOnly[PositiveInt] = 32
    """images at once; changes the speed only"""
    num_workers: RunOnly[NonNegativeInt] = 0
    """processes that decode images; worth their start with some hundred photos"""
    code: RunOnly[list[str]] = field(default_factory=list)
    """classes of your own, file.py:Class, that the classifier was made with and that this command may import"""
    overwrite: RunOnly[bool] = False
    """replace what stands under that name"""


def fit(config: FitConfig) -> Path:
    """Save a classifier and return its folder."""
    import torch

    root = config.images.resolve()
    classes = find_classes(root)
    names = [folder.relative_to(root).as_posix() for folder in classes]
    if len(names) < 2:
        raise InputError(f"{config.images}: holds one class, {names[0]}; a classifier needs two")
    _check(config)
    extractor, chosen = representation.chosen_extractor(config)
    files = [file for part in classes.values() for file in part]
    read = {"base_features": config.base_features, "split": config.split}
    made_from = recipe("predict", config, {**read, **chosen, "images": listing_digest(root, files)})
    if is_done(config.out, made_from, config.overwrite):
        return config.out

    _say_left_out(root)
    mean = base_mean(config, extractor.dim, chosen["extractor"])
    feats = torch.from_numpy(representation.embed(extractor, files, **_speed(config), invert=config.invert))
    labels = torch.arange(len(names)).repeat_interleave(torch.tensor([len(part) for part in classes.values()]))
    classifier = classifiers.PhotoClassifier(
        extractor, names, classifiers.apply_transform(config.transform, feats, mean), labels, config.method,
        config.transform, mean, config.invert,
    )  # fmt: skip
    with writing(config.out, made_from) as partial:
        partial.mkdir()
        classifiers.save_classifier(partial, classifier, made_from)
    print(f"predict: a classifier of {len(names)} classes from {len(files)} images -> {config.out}")
    return config.out


def _speed(config: FitConfig | ClassifyConfig) -> dict[str, int]:
    return {"batch_size": config.batch_size, "num_workers": config.num_workers}


def _check(config: FitConfig) -> None:
    """InputError for settings that would be ignored, or that lack others."""
    if len({config.transform.centre, config.base_features is not None, config.split is not None}) == 2:
        raise InputError("transform.centre, base_features and split need each other: a mean of base classes")
    if is_transductive(config.method):
        raise InputError("method: is transductive; a classifier of photos names one at a time")


def base_mean(config: FitConfig, dim: int, extractor: str) -> Any:
    """What the transform subtracts (D,), or None: the mean over the images of base classes.

    Raises InputError if the features are known to be of another extractor than the one with this digest, or hold none.
    """
    if config.base_features is None:
        return None
    split = read_split(config.split)
    base = read_features(config.base_features, split.n_classes)
    if base.dim != dim:
        raise InputError(f"{config.base_features}: {base.dim} dimensions, but the extractor makes {dim}")
    if base.extractor not in (None, extractor):
        raise InputError(f"{config.base_features}: made by another extractor")
    rows = np.isin(base.labels, split.base_classes)
    if not rows.any():
        raise InputError(f"{config.base_features}: no image of a base class of {config.split}")
    return classifiers.transformed_mean(config.transform, base.feats[rows])


def _say_left_out(folder: Path) -> None:
    """Say which files are ignored: phones write formats that cannot be read here."""
    if left_out := ignored(folder):
        print(f"predict: {left_out}")


def classify(config: ClassifyConfig) -> Path:
    """Write the best classes of every image and return the file."""
    import torch

    if config.out.suffix not in (".csv", ".json"):
        raise InputError(f"{config.out}: predictions are a .csv or a .json file")
    classifier = classifiers.load_classifier(config.classifier, config.code)
    files = choose_files(config.images)
    listed = listing_digest(Path("/"), [file.absolute() for file in files.values()])
    made_from = recipe("predict", config, {"classifier": config.classifier, **classifier.code, "images": listed})
    is_table = config.out.suffix == ".csv"
    record = config.out.with_name(config.out.name + ".json") if is_table else config.out
    if config.out.exists() and not config.overwrite and not record.exists():
        raise InputError(f"{config.out}: already exists. Use another name, or --overwrite")
    if config.out.exists() and is_done(record, made_from, config.overwrite):
        return config.out

    feats = representation.embed(classifier.extractor, list(files.values()), **_speed(config), invert=classifier.invert)
    scores, best = torch.from_numpy(classifier.predict_proba(feats)).topk(
        min(config.top_k, len(classifier.class_names))
    )
    named = [
        [(classifier.class_names[c], round(score, 6)) for c, score in zip(*row)]
        for row in zip(best.tolist(), scores.tolist())
    ]
    if is_table:
        record.unlink(missing_ok=True)  # so that a killed run leaves no record beside a table that it did not make
    with writing(config.out) as partial:
        (write_table if is_table else write_document)(partial, list(files), named, made_from)
    if is_table:
        write_json(record, made_from)
    print(f"predict: classes of {len(files)} images -> {config.out}")
    return config.out


def choose_files(images: Path | list[Path]) -> dict[str, Path]:
    """The image files to classify under the names that they get in the output."""
    files = {}
    for path in images if isinstance(images, list) else [images]:
        if path.is_dir():
            _say_left_out(path)
            found = find_images(path)
            if not found:
                raise InputError(f"{path}: holds no image")
            files |= {(file.relative_to(path).as_posix() if path == images else str(file)): file for file in found}
        elif path.is_file():
            files[str(path)] = path
        else:
            raise InputError(f"{path}: no such file or folder")
    if not files:
        raise InputError("images: an empty list")
    return files


def write_table(path: Path, names: list[str], predictions: list[list[tuple[str, float]]], made_from: dict) -> None:
    """A row for every image and rank."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "rank", "class", "score"])
        for name, row in zip(names, predictions):
            writer.writerows([name, rank, label, score] for rank, (label, score) in enumerate(row, start=1))


def write_document(path: Path, names: list[str], predictions: list[list[tuple[str, float]]], made_from: dict) -> None:
    """The recipe, and for every image its classes, best first."""
    rows = [
        {"image": name, "classes": [{"class": label, "score": score} for label, score in row]}
        for name, row in zip(names, predictions)
    ]
    write_json(path, {**made_from, "schema": "lowshot-predictions-1", "predictions": rows})


def after_fit(config: FitConfig) -> list:
    """The command that takes the output, with capitals for what is not known here."""
    predictions = config.out.parent / "predictions.csv"
    return ["predict.py", "classify", "--classifier", config.out, "--images", "NEW_PHOTOS", "--out", predictions]


COMMANDS = {"fit": (fit, FitConfig, after_fit), "classify": (classify, ClassifyConfig)}

if __name__ == "__main__":
    run_commands(COMMANDS, __doc__)
