"""Make a classifier from a few photos per class, see how good it is, and classify other photos with it.

fit       reads IMAGES/<class>/* and an extractor (a timm model, or one of train_extractor.py)
          writes OUT/: model.pt, config.json, extractor/ (everything that the other commands need)
evaluate  reads CLASSIFIER/ and IMAGES/<class>/* that the classifier has not learned from
          writes OUT/: metrics.json, predictions.csv, confusion.csv, report.html (with the worst mistakes as pictures)
classify  reads CLASSIFIER/ and image files or folders
          writes OUT (.csv: image, rank, class, score, typicality; or .json)
add       reads CLASSIFIER/ and IMAGES/<class>/* of new or known classes
          writes OUT/, a classifier that knows them too
export    reads CLASSIFIER/ and image files or folders to check the export on
          writes OUT/: model.onnx, config.json; they run without torch (examples/classify_onnx.py)

python predict.py fit --images photos --out classifier
python predict.py evaluate --classifier classifier --images test_photos --out evaluation
python predict.py classify --classifier classifier --images new_photos --out predictions.csv

`classify` and `export` accept several images or folders: --images a.jpg more. `classify` records its settings and
inputs in OUT, or in OUT.json if OUT is a .csv file.

A score is the probability of the class, calibrated on photos that were held out. Typicality is the share of the
classifier's own photos that look at most as much like the classes: close to 0 for an image of something else.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from lowshot import classifiers, photos, report, representation
from lowshot.classifiers.settings import INDUCTIVE_METHODS, FeatureTransform, is_transductive
from lowshot.core.artifacts import CONTENT, Recipe, recipe, stored_lineage
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
from lowshot.core.settings import NonNegativeInt, OpenUnitInterval, PositiveInt, RunOnly
from lowshot.data.datasets.content import image_digests, listing_digest
from lowshot.data.datasets.folder import find_images, ignored, rows_decodable
from lowshot.data.features import read_features
from lowshot.data.lineage import lineage_of
from lowshot.data.protocol import read_split
from lowshot.photos.labelled import read_labelled
from lowshot.representation.settings import PRETRAINED, ExtractorChoice
from lowshot.representation.weight_sources import check_choice

# The answer to an image that looks like no class.
NONE = "none of these"


@dataclass(kw_only=True)
class FitConfig(ExtractorChoice):
    """Make a classifier from a few photos per class.

    python predict.py fit --images photos --out classifier

    Without --timm and --extractor, the extractor is a small DINOv2 (87 MB, downloaded once).
    """

    images: Path
    """Folder of class folders with a few photos each. Superclass folders that contain class folders work too."""
    out: Path
    """Folder to write the classifier to."""
    method: Annotated[Any, INDUCTIVE_METHODS] | None = None
    """Few-shot method that classifies one image at a time. Default: nearest_mean or logistic_regression and its C,
    whichever does best on photos that are held out."""
    transform: FeatureTransform = field(default_factory=lambda: FeatureTransform(normalise=True))
    """Transform of all features before the method."""
    base_features: Path | None = None
    """Features of base classes from the same extractor (save_features.py). --transform.centre subtracts their mean."""
    split: Path | None = None
    """split.json that names the base classes of base_features."""
    invert: bool | None = None
    """Invert every image, such as dark ink on paper for an extractor of bright ink on black (omniglot, glyphs, emnist).
    Default: if the photos are the reverse of the images that the extractor was trained on."""
    skip_corrupt: bool = False
    """Leave out images that cannot be decoded, and name them."""
    batch_size: RunOnly[PositiveInt] = 32
    """Batch size of the extractor."""
    num_workers: RunOnly[NonNegativeInt | None] = None
    """Number of processes that decode images. Default: one per core, at most 8; none for few images."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""

    renamed = ExtractorChoice.renamed | {"method": "method.name", "methods": "method"}
    renamed |= {f"methods.{one}": "method" for one in INDUCTIVE_METHODS.classes}


@dataclass(kw_only=True)
class _OfClassifier:
    """Settings of the commands that use a classifier."""

    classifier: Path
    """Folder of the classifier, written by `fit`, `add` or low_shot.py --classifier_out."""
    skip_corrupt: bool = False
    """Leave out images that cannot be decoded, and name them."""
    batch_size: RunOnly[PositiveInt] = 32
    """Batch size of the extractor."""
    num_workers: RunOnly[NonNegativeInt | None] = None
    """Number of processes that decode images. Default: one per core, at most 8; none for few images."""
    code: RunOnly[list[str]] = field(default_factory=list)
    """Classes of your own (file.py:Class) that the classifier uses and that this command may import."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""


@dataclass(kw_only=True)
class EvaluateConfig(_OfClassifier):
    """Measure how good a classifier is, on photos that it has not learned from.

    python predict.py evaluate --classifier classifier --images test_photos --out evaluation

    Photos in folders that are none of the classes show how well they are told apart.
    """

    images: Path
    """Folder of class folders, called as in `fit`."""
    out: Path
    """Folder to write metrics.json, predictions.csv, confusion.csv and report.html to."""
    false_alarms: OpenUnitInterval = 0.05
    """Share of images of the classes that may be called "none of these"."""


@dataclass(kw_only=True)
class ClassifyConfig(_OfClassifier):
    """Classify photos.

    python predict.py classify --classifier classifier --images new_photos --out predictions.csv
    """

    images: Path | list[Path]
    """Image files or folders. Folders are searched at any depth."""
    out: Path
    """File to write the predictions to (.csv or .json)."""
    top_k: PositiveInt = 5
    """Number of classes to list for each image, best first."""
    false_alarms: OpenUnitInterval | None = None
    """Call an image "none of these" if it is less typical than all but this share of the classifier's own photos.
    Default: every image gets a class."""


@dataclass(kw_only=True)
class AddConfig(_OfClassifier):
    """Add photos or classes to a classifier, without its first photos.

    python predict.py add --classifier classifier --images more_photos --out classifier2
    """

    images: Path
    """Folder of class folders. A name that the classifier knows adds photos to that class."""
    out: Path
    """Folder to write the new classifier to."""


@dataclass(kw_only=True)
class ExportConfig(_OfClassifier):
    """Export a classifier to ONNX, and check it on photos. Needs onnx, onnxscript and onnxruntime.

    python predict.py export --classifier classifier --images photos --out exported
    """

    images: Path | list[Path]
    """Image files or folders on which both must agree. Folders are searched at any depth."""
    out: Path
    """Folder to write model.onnx and config.json to."""


def fit(config: FitConfig) -> Path:
    """Save a classifier and return its folder."""
    if config.extractor is None and config.timm is None:
        config = replace(config, timm=PRETRAINED)
    _check(config)
    labelled = read_labelled(config.images, skip_corrupt=config.skip_corrupt)
    if len(labelled.names) < 2:
        raise InputError(f"{config.images}: contains only one class ({labelled.names[0]}). Add a second class folder")
    import torch

    extractor, chosen = representation.chosen_extractor(config)
    seen = representation.polarity_of_files(extractor.config, labelled.files)
    config = replace(config, invert=representation.inverts(config.invert, seen, "predict"))
    read = {"base_features": config.base_features, "split": config.split}
    seen = representation.lineage_of_extractor(config) | labelled.lineage
    made_from = recipe("predict", config, {**read, **chosen, **labelled.digests}, seen.to_json())
    if is_done(config.out, made_from, config.overwrite):
        return config.out

    mean = base_mean(config, extractor.dim, made_from["inputs"]["extractor"])
    feats = representation.embed(extractor, labelled.files, **_speed(config), invert=config.invert)
    feats = classifiers.apply_transform(config.transform, torch.from_numpy(feats), mean)
    labels, is_chosen = torch.from_numpy(labelled.labels), config.method is None
    support = photos.Support(feats, labels, labelled.photos, config.method, is_chosen)
    facts = {"transform": config.transform, "base_mean": mean, "invert": config.invert}
    return _learn(config.out, made_from, extractor, labelled.names, support, **facts)


def add(config: AddConfig) -> Path:
    """Save a classifier that has learned from more photos, and return its folder."""
    classifier = photos.load_classifier(config.classifier, config.code)
    labelled = read_labelled(config.images, skip_corrupt=config.skip_corrupt)
    if classifier.support is None:
        raise InputError(
            f"{config.classifier}: was not made from photos, so none can be added. Train it again with the new images"
        )
    inputs = {"classifier": config.classifier, **classifier.code, **labelled.digests}
    seen = lineage_of(config.classifier) | labelled.lineage
    made_from = recipe("predict", config, inputs, seen.to_json())
    if is_done(config.out, made_from, config.overwrite):
        return config.out

    labelled = labelled.without(classifier.known_photos)
    names = list(dict.fromkeys([*classifier.class_names, *labelled.names]))
    n_new = len(names) - len(classifier.class_names)
    print(f"predict: adding {len(labelled.files)} photos; {n_new} of {len(labelled.names)} classes are new")
    feats = representation.embed(classifier.extractor, labelled.files, **_speed(config), invert=classifier.invert)
    numbers = np.array([names.index(name) for name in labelled.names])
    support = classifier.support.extended(classifier.transformed(feats), numbers[labelled.labels], labelled.photos)
    facts = {"transform": classifier.transform, "base_mean": classifier.base_mean, "invert": classifier.invert}
    return _learn(config.out, made_from, classifier.extractor, names, support, **facts)


def _learn(
    out: Path,
    made_from: Recipe,
    extractor: representation.Extractor,
    names: list[str],
    support: photos.Support,
    **facts: Any,
) -> Path:
    """Learn from the photos, say how good the classifier is, and save it. `facts` are fields of a classifier."""
    for line in photos.sizes_of(support.labels, names):
        print(f"predict: {line}", flush=True)
    learned = photos.learn(support, names)
    parts = {"support": learned.support, "temperature": learned.temperature, **facts}
    classifier = photos.PhotoClassifier(extractor, names, learned.head, learned.typicality, **parts)
    with writing(out, made_from) as partial:
        partial.mkdir()
        photos.save_classifier(partial, classifier, made_from, **learned.evidence())
    for line in learned.lines():
        print(f"predict: {line}")
    print(f"predict: classifier of {len(names)} classes from {len(support.labels)} images -> {out}")
    return out


def _speed(config: FitConfig | _OfClassifier) -> dict[str, int | None]:
    return {"batch_size": config.batch_size, "num_workers": config.num_workers}


def _check(config: FitConfig) -> None:
    """Raise InputError if a setting would be ignored or needs another one, or if the weights cannot be had."""
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
    check_choice(config)


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
    if base.views:
        raise InputError(
            f"{config.base_features}: averaged over views of an image, which the photos are not. Use features without "
            "--views (save_features.py)"
        )
    rows = np.isin(base.labels, split.base_classes)
    if not rows.any():
        raise InputError(
            f"{config.base_features}: contains no image of a base class of {config.split}. "
            "Use the features of the training images (train.h5)"
        )
    return classifiers.transformed_mean(config.transform, base.feats[rows])


def evaluate(config: EvaluateConfig) -> Path:
    """Write how good a classifier is on labelled photos, and return the folder."""
    classifier = photos.load_classifier(config.classifier, config.code)
    labelled = read_labelled(config.images, test=True, skip_corrupt=config.skip_corrupt)
    known = [name for name in labelled.names if name in classifier.class_names]
    if not known:
        raise InputError(
            f"{config.images}: no folder is called like a class of {config.classifier} ({classifier.class_names[0]}, "
            "...). Name folders as in predict.py fit"
        )
    inputs = {"classifier": config.classifier, **classifier.code, **labelled.digests}
    made_from = recipe("predict", config, inputs)
    if is_done(config.out, made_from, config.overwrite):
        return config.out

    if n_known := len(set(labelled.photos) & set(classifier.known_photos)):
        print(f"predict: the classifier has learned from {n_known} of these photos: the accuracy is too high")
    _say_reversed(classifier, labelled.files)
    feats = representation.embed(classifier.extractor, labelled.files, **_speed(config), invert=classifier.invert)
    names = [labelled.names[c] for c in labelled.labels]
    judged = photos.judge(classifier, feats, names, config.false_alarms)
    with writing(config.out, made_from) as partial:
        partial.mkdir()
        write_json(partial / "config.json", made_from)
        write_json(partial / "metrics.json", judged.to_json())
        judged.table(labelled.paths).to_csv(partial / "predictions.csv", index=False)
        judged.confusion().to_csv(partial / "confusion.csv")
        report.write_mistakes(partial / "report.html", judged, labelled.files)
    for line in judged.lines():
        print(f"predict: {line}")
    print(f"predict: {len(labelled.files)} photos judged -> {config.out / 'report.html'}")
    return config.out


def classify(config: ClassifyConfig) -> Path:
    """Write the best classes of every image and return the path of the file."""
    if config.out.suffix not in (".csv", ".json"):
        raise InputError(f"{config.out}: predictions must be a .csv or .json file")
    classifier = photos.load_classifier(config.classifier, config.code)
    if config.false_alarms is not None:
        classifier.typicality.check_rate(config.false_alarms)
    files = choose_files(config.images, config.skip_corrupt)
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
        predictions = list(chain.from_iterable(done))
        (write_table if is_table else write_document)(partial, list(files), predictions, made_from)
        if is_table:
            write_record(config.out, partial, made_from)
    n_none = sum(one["classes"][0][0] == NONE for one in predictions)
    others = f", {n_none} of them {NONE}" if config.false_alarms is not None else ""
    print(f"predict: classes of {len(files)} images{others} -> {config.out}")
    return config.out


def _say_reversed(classifier: photos.PhotoClassifier, paths: list[Path]) -> None:
    """Say if the pictures are the reverse of those that the classifier was made from."""
    found = representation.polarity_of_files(classifier.extractor.config, paths).is_reversed
    if found is not None and found != classifier.invert:
        made = "inverted" if classifier.invert else "took as they are"
        print(f"predict: these pictures look like the reverse of the photos of the classifier, which it {made}. Make "
              "another classifier from such photos, or invert the pictures")  # fmt: skip


_BLOCK = 256  # images that are classified at once


def _predictions(
    config: ClassifyConfig, classifier: photos.PhotoClassifier, files: list[Path]
) -> Iterator[list[dict[str, Any]]]:
    """Yield the best classes of each image, with their scores, and its typicality, block by block."""
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


def _best(config: ClassifyConfig, classifier: photos.PhotoClassifier, feats: np.ndarray) -> list[dict[str, Any]]:
    probabilities = classifier.predict_proba(feats)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : config.top_k]
    scores = np.take_along_axis(probabilities, order, 1)
    rows = []
    for best, row, typical in zip(order.tolist(), scores.tolist(), classifier.typicality_of(feats).tolist()):
        listed = [(classifier.class_names[c], round(score, 6)) for c, score in zip(best, row)]
        if config.false_alarms is not None and typical <= config.false_alarms:
            listed = [(NONE, round(1 - typical, 6)), *listed][: config.top_k]
        rows.append({"classes": listed, "typicality": None if np.isnan(typical) else round(typical, 6)})
    return rows


def export(config: ExportConfig) -> Path:
    """Write a classifier as ONNX, after checking that it gives the same answers, and return the folder."""
    classifier = photos.load_classifier(config.classifier, config.code)
    files = choose_files(config.images, config.skip_corrupt)
    paths = [file.absolute() for file in files.values()]
    inputs = {"classifier": config.classifier, **classifier.code, **image_digests(Path("/"), paths)}
    made_from = recipe("predict", config, inputs, stored_lineage(config.classifier))
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    with writing(config.out, made_from) as partial:
        partial.mkdir()
        photos.export_onnx(classifier, partial / "model.onnx")
        checked = photos.check_onnx(classifier, partial / "model.onnx", paths)
        write_json(partial / "config.json", {**made_from, **photos.description_of(classifier), "checked": checked})
    print(f"predict: {checked['n_same_class']} of {checked['n_images']} images have the same class, probabilities "
          f"differ by at most {checked['largest_difference']:.1e} -> {config.out}")  # fmt: skip
    return config.out


def choose_files(images: Path | list[Path], skip_corrupt: bool) -> dict[str, Path]:
    """Return the image files to classify, by their names in the output."""
    files = {}
    for path in images if isinstance(images, list) else [images]:
        if path.is_dir():
            if left_out := ignored(path):  # phones write formats that cannot be read here
                print(f"predict: {left_out}")
            found = find_images(path)
            if not found:
                raise InputError(f"{path}: contains no images")
            files |= {(file.relative_to(path).as_posix() if path == images else str(file)): file for file in found}
        elif path.is_file():
            files[str(path)] = path
        else:
            raise missing(path, "no such file or folder")
    if skip_corrupt:
        names = list(files)
        files = {names[row]: files[names[row]] for row in rows_decodable(list(files.values()), "predict")}
    if not files:
        raise InputError("--images: no image is left. Name at least one image or folder")
    return files


def write_table(path: Path, names: list[str], predictions: list[dict[str, Any]], made_from: dict) -> None:
    """Write one row per image and rank."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "rank", "class", "score", "typicality"])
        for name, one in zip(names, predictions):
            cells = ((plain_cell(label), score, one["typicality"]) for label, score in one["classes"])
            writer.writerows([plain_cell(name), rank, *cell] for rank, cell in enumerate(cells, start=1))


def write_document(path: Path, names: list[str], predictions: list[dict[str, Any]], made_from: dict) -> None:
    """Write the recipe and the classes of each image, best first."""
    rows = [
        {
            "image": name,
            "classes": [{"class": label, "score": score} for label, score in one["classes"]],
            "typicality": one["typicality"],
        }
        for name, one in zip(names, predictions)
    ]
    write_json(path, {**made_from, "schema": "lowshot-predictions-1", "predictions": rows})


def after_fit(config: FitConfig | AddConfig) -> list:
    """Return the command that uses the output. Capitals stand for a path that only the user knows."""
    predictions = config.out.parent / "predictions.csv"
    return ["predict.py", "classify", "--classifier", config.out, "--images", "NEW_PHOTOS", "--out", predictions]


COMMANDS = {
    "fit": (fit, FitConfig, after_fit),
    "evaluate": (evaluate, EvaluateConfig),
    "classify": (classify, ClassifyConfig),
    "add": (add, AddConfig, after_fit),
    "export": (export, ExportConfig),
}

if __name__ == "__main__":
    run_commands(COMMANDS, __doc__)
