"""A self-contained classifier of photos: an extractor, labelled support features and a few-shot method."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowshot.classifiers.methods import score_tasks
from lowshot.classifiers.settings import INDUCTIVE_METHODS, FeatureTransform
from lowshot.classifiers.tasks import Tasks
from lowshot.classifiers.transform import apply_transform
from lowshot.core.choices import code_file, is_own, named_class
from lowshot.core.errors import InputError
from lowshot.core.files import digest, read_json, write_json
from lowshot.core.settings import checked, stored_values
from lowshot.core.state_dicts import load_tensors, save_state
from lowshot.representation.backbones import Extractor, load_extractor, save_extractor
from lowshot.representation.extractors import embed

SCHEMA = "lowshot-classifier-1"


@dataclass(frozen=True)
class PhotoClassifier:
    """Extractor, support set and method of a classifier.

    `support_features` float32 (S, D) are already transformed. `support_labels` int64 (S,) are positions in
    `class_names`. `base_mean` float32 (D,) is the mean that the transform subtracts, None if it does not centre.
    """

    extractor: Extractor
    class_names: list[str]
    support_features: Tensor
    support_labels: Tensor
    method: Any
    transform: FeatureTransform
    base_mean: Tensor | None = None
    invert: bool = False

    @property
    def code(self) -> dict[str, Path | None]:
        """Files of the user's own classes that it uses, under their names in a recipe."""
        method = code_file(type(self.method)) if is_own(self.method) else None
        return {"code of extractor": self.extractor.code, "code of method": method}

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """Return the softmax of the method's scores, float32 (Q, classes), for untransformed features (Q, D)."""
        queries = apply_transform(self.transform, torch.from_numpy(features), self.base_mean)
        n_way = len(self.class_names)
        tasks = Tasks(self.support_features[None], self.support_labels[None], queries[None], n_way)
        scores = score_tasks(self.method, tasks, 0)[0]
        if not scores.isfinite().all():
            raise InputError(f"{INDUCTIVE_METHODS.name_of(self.method)}: the scores are NaN or infinite")
        return scores.softmax(dim=-1).numpy()

    def predict(self, images: Sequence[str | Path] | np.ndarray, **speed: int | None) -> list[str]:
        """Return the name of the most likely class of each image.

        See `embed` for the kinds of `images`. `speed` are its arguments batch_size and num_workers.
        """
        features = embed(self.extractor, images, invert=self.invert, **speed)
        return [self.class_names[c] for c in self.predict_proba(features).argmax(1)]


def save_classifier(folder: Path, classifier: PhotoClassifier, made_from: dict) -> None:
    """Write `model.pt` (support features and labels), `config.json` and a copy of the extractor into `folder`."""
    tensors = {"support_features": classifier.support_features, "support_labels": classifier.support_labels}
    if classifier.base_mean is not None:
        tensors["base_mean"] = classifier.base_mean
    save_state(tensors, folder / "model.pt")
    content = {
        **made_from,
        "schema": SCHEMA,
        "class_names": classifier.class_names,
        "method": INDUCTIVE_METHODS.name_of(classifier.method),
        "options": stored_values(classifier.method),
        "transform": asdict(classifier.transform),
        "invert": classifier.invert,
    }
    write_json(folder / "config.json", content)
    (folder / "extractor").mkdir()
    save_extractor(folder / "extractor", classifier.extractor, {"inputs": made_from["inputs"]})


@dataclass
class _Description:
    """The description of a classifier in its config.json."""

    class_names: list[str]
    method: str
    options: dict
    transform: dict
    invert: bool


def load_classifier(folder: str | Path, code: Sequence[str] = ()) -> PhotoClassifier:
    """Load a classifier that `predict.py fit` wrote.

    Args:
        code: classes of your own, ``file.py:Class``, that the classifier uses and that may be imported.

    Raises:
        InputError: if the folder is not a classifier, or its files do not match.
    """
    where = Path(folder) / "config.json"
    content = read_json(where)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"{where}: not a classifier (schema {SCHEMA}). Make one with predict.py fit")
    described = {name: content[name] for name in _Description.__dataclass_fields__ if name in content}
    description = checked(_Description, described, where)
    method = checked(named_class(INDUCTIVE_METHODS, description.method, code, where), description.options, where)
    if is_own(method) and digest(code_file(type(method))) != content.get("inputs", {}).get("code of method"):
        print(f"{folder}: {code_file(type(method))} has changed since the classifier was made")
    transform = checked(FeatureTransform, description.transform, where)
    extractor, tensors = load_extractor(Path(folder) / "extractor", code), load_tensors(Path(folder) / "model.pt")
    _check(Path(folder) / "model.pt", tensors, len(description.class_names), extractor.dim, transform.centre)
    rest = {"transform": transform, "invert": description.invert}
    return PhotoClassifier(extractor, class_names=description.class_names, method=method, **rest, **tensors)


def _check(path: Path, tensors: dict[str, Tensor], n_classes: int, dim: int, centred: bool) -> None:
    """Raise InputError unless the tensors have the names, shapes, dtypes and labels that config.json implies."""
    n_rows = tensors["support_labels"].numel() if "support_labels" in tensors else 0
    shapes = {"support_features": (n_rows, dim), "support_labels": (n_rows,)} | (
        {"base_mean": (dim,)} if centred else {}
    )
    if tensors.keys() != shapes.keys():
        raise InputError(f"{path}: must contain exactly {', '.join(sorted(shapes))}. Make the classifier again")
    labels = tensors["support_labels"]
    if (
        any(tensors[name].shape != shape for name, shape in shapes.items())
        or any(value.dtype != (torch.int64 if value is labels else torch.float32) for value in tensors.values())
        or not all(value.isfinite().all() for value in tensors.values())
        or not labels.unique().tolist() == list(range(n_classes)) != []
    ):
        raise InputError(f"{path}: does not match config.json and extractor/ in its folder. Make the classifier again")
