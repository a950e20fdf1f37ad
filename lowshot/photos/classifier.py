"""A self-contained classifier of photos: an extractor, a classifier of its features, and what makes scores credible."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowshot.classifiers.heads import Head
from lowshot.classifiers.methods import ScoreRows, fit_head
from lowshot.classifiers.settings import INDUCTIVE_METHODS, FeatureTransform
from lowshot.classifiers.transform import apply_transform
from lowshot.core.choices import code_file, is_own, named_class
from lowshot.core.errors import InputError
from lowshot.core.files import digest, read_json, write_json
from lowshot.core.settings import PositiveFloat, checked, stored_values
from lowshot.core.state_dicts import load_tensors, save_state
from lowshot.photos.typicality import Typicality, typicality_of
from lowshot.representation.backbones import Extractor, load_extractor, save_extractor
from lowshot.representation.extractors import embed

SCHEMA = "lowshot-classifier-1"


@dataclass(frozen=True)
class Support:
    """The photos that a classifier learns from, and how.

    Attributes:
        features: float32 (S, D), already transformed.
        labels: int64 (S,), positions in the class names.
        photos: The SHA-256 of the S files; empty if they are not known.
        method: Settings of the few-shot method; None if it is not chosen yet.
        is_chosen: Whether the method is the best one for these photos. It is chosen anew if photos join.
    """

    features: Tensor
    labels: Tensor
    photos: list[str]
    method: Any
    is_chosen: bool = False

    def extended(self, features: Tensor, labels: np.ndarray, photos: list[str]) -> "Support":
        """Return the support with more photos."""
        joined = torch.cat([self.features, features]), torch.cat([self.labels, torch.from_numpy(labels)])
        return Support(*joined, [*self.photos, *photos], self.method, self.is_chosen)


@dataclass(frozen=True)
class PhotoClassifier:
    """An extractor and a classifier of its features.

    `head` maps transformed features float32 (Q, D) to scores (Q, n_way). `base_mean` float32 (D,) is the mean that the
    transform subtracts, None if it does not centre. `support` is None if the classifier was not made from photos.
    `n_way` is the number of `class_names`. The probabilities are the softmax of the scores divided by `temperature`,
    which is None if it could not be measured.
    """

    extractor: Extractor
    class_names: list[str]
    head: ScoreRows
    typicality: Typicality
    transform: FeatureTransform
    base_mean: Tensor | None = None
    invert: bool = False
    temperature: float | None = None
    support: Support | None = None

    @property
    def code(self) -> dict[str, Path | None]:
        """Files of the user's own classes that it uses, under their names in a recipe."""
        has_own = self.support is not None and is_own(self.support.method)
        method = code_file(type(self.support.method)) if has_own else None
        return {"code of extractor": self.extractor.code, "code of method": method}

    @property
    def known_photos(self) -> dict[str, str]:
        """SHA-256 -> class of the photos that it has learned from, as far as they are known."""
        labels = [] if self.support is None else self.support.labels.tolist()
        photos = [] if self.support is None else self.support.photos
        return {photo: self.class_names[label] for photo, label in zip(photos, labels)}

    def transformed(self, features: np.ndarray) -> Tensor:
        """Return features (Q, D) of the extractor as the classifier takes them."""
        return apply_transform(self.transform, torch.from_numpy(features), self.base_mean)

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """Return the probabilities float64 (Q, n_way) of the classes for features (Q, D) of the extractor."""
        scores = self.head(self.transformed(features)).double()
        if not scores.isfinite().all():
            raise InputError("the scores of the classifier are NaN or infinite. Check its method")
        return (scores / (self.temperature or 1.0)).softmax(dim=-1).numpy()

    def typicality_of(self, features: np.ndarray) -> np.ndarray:
        """Return the typicality (Q,), in 0..1, of features (Q, D) of the extractor (see `Typicality`)."""
        return self.typicality(self.transformed(features)).numpy()

    def predict(self, images: Sequence[str | Path] | np.ndarray, **speed: int | None) -> list[str]:
        """Return the name of the most likely class of each image.

        See `embed` for the kinds of `images`. `speed` are its arguments batch_size and num_workers.
        """
        features = embed(self.extractor, images, invert=self.invert, **speed)
        return [self.class_names[c] for c in self.predict_proba(features).argmax(1)]


def save_classifier(folder: Path, classifier: PhotoClassifier, made_from: dict, **more: Any) -> None:
    """Write `model.pt`, `config.json` and a copy of the extractor into `folder`. `more` are entries of config.json."""
    head, support, typical = classifier.head, classifier.support, classifier.typicality
    tensors = {"known_similarities": typical.known, "class_means": typical.means}
    if isinstance(head, Head):
        tensors |= {f"head.{name}": value for name, value in head.state_dict().items()}
        more["unit_length"] = head.unit_length
    if support is not None:
        tensors |= {"support_features": support.features, "support_labels": support.labels}
        more |= {"method": INDUCTIVE_METHODS.name_of(support.method), "options": stored_values(support.method)}
        more["photos"] = support.photos
    if classifier.base_mean is not None:
        tensors["base_mean"] = classifier.base_mean
    save_state(tensors, folder / "model.pt")
    content = {
        **made_from,
        "schema": SCHEMA,
        "class_names": classifier.class_names,
        "transform": asdict(classifier.transform),
        "invert": classifier.invert,
        "temperature": classifier.temperature,
        **more,
    }
    write_json(folder / "config.json", content)
    (folder / "extractor").mkdir()
    save_extractor(folder / "extractor", classifier.extractor, {"inputs": made_from["inputs"]})


@dataclass
class _Description:
    """The description of a classifier in its config.json. Older ones have no temperature."""

    class_names: list[str]
    transform: dict
    invert: bool
    method: str | None = None
    options: dict | None = None
    temperature: PositiveFloat | None = None
    unit_length: bool = False
    photos: list[str] = field(default_factory=list)
    candidates: list[dict] = field(default_factory=list)


def load_classifier(folder: str | Path, code: Sequence[str] = ()) -> PhotoClassifier:
    """Load a classifier that `predict.py fit` or `low_shot.py --classifier_out` wrote.

    Args:
        code: classes of your own, ``file.py:Class``, that the classifier uses and that may be imported.

    Raises:
        InputError: if the folder is not a classifier, or its files do not match.
    """
    where, model = Path(folder) / "config.json", Path(folder) / "model.pt"
    content = read_json(where)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"{where}: not a classifier (schema {SCHEMA}). Make one with predict.py fit")
    described = {name: content[name] for name in _Description.__dataclass_fields__ if name in content}
    description = checked(_Description, described, where)
    method = _method(folder, content, description, code)
    transform = checked(FeatureTransform, description.transform, where)
    extractor, tensors = load_extractor(Path(folder) / "extractor", code), load_tensors(model)
    n_way = len(description.class_names)
    _check(model, tensors, n_way, extractor.dim, transform.centre, method is not None)
    support, learned = None, None
    if method is not None:
        learned = tensors["support_features"], tensors["support_labels"]
        support = Support(*learned, description.photos, method, bool(description.candidates))
    layers = {name.removeprefix("head."): value for name, value in tensors.items() if name.startswith("head.")}
    known = (tensors["class_means"], tensors["known_similarities"]) if "class_means" in tensors else None
    return PhotoClassifier(
        extractor, description.class_names,
        Head.of_state(layers, description.unit_length) if layers else fit_head(method, *learned, n_way),
        Typicality(*known) if known else typicality_of(*learned, n_way),
        transform, tensors.get("base_mean"), description.invert, description.temperature, support,
    )  # fmt: skip


def _method(folder: str | Path, content: dict, description: _Description, code: Sequence[str]) -> Any:
    """Return the settings of the method that learned from the photos, or None without photos."""
    if description.method is None:
        return None
    where = Path(folder) / "config.json"
    method = checked(named_class(INDUCTIVE_METHODS, description.method, code, where), description.options, where)
    if is_own(method) and digest(code_file(type(method))) != content.get("inputs", {}).get("code of method"):
        print(f"{folder}: {code_file(type(method))} has changed since the classifier was made")
    return method


def _check(path: Path, tensors: dict[str, Tensor], n_way: int, dim: int, centred: bool, has_support: bool) -> None:
    """Raise InputError unless the tensors have the names, shapes, dtypes and labels that config.json implies."""
    labels, known = (tensors.get(name) for name in ("support_labels", "known_similarities"))
    n_rows, n_known = (0 if one is None else one.numel() for one in (labels, known))
    shapes: dict[str, tuple[int, ...]] = {"base_mean": (dim,)} if centred else {}
    if has_support:
        shapes |= {"support_features": (n_rows, dim), "support_labels": (n_rows,)}
    if "class_means" in tensors or not has_support:
        shapes |= {"class_means": (n_way, dim), "known_similarities": (n_known,)}
    layers = {name for name in tensors if name.startswith("head.")}
    if tensors.keys() - layers != shapes.keys() or not (layers or has_support):
        raise InputError(f"{path}: must contain exactly {', '.join(sorted(shapes))}. Make the classifier again")
    if (
        any(tensors[name].shape != shape for name, shape in shapes.items())
        or any(value.dtype != (torch.int64 if value is labels else torch.float32) for value in tensors.values())
        or not all(value.isfinite().all() for value in tensors.values())
        or not (labels is None or labels.unique().tolist() == list(range(n_way)) != [])
        or not (not layers or Head.fits({name.removeprefix("head."): tensors[name] for name in layers}, dim, n_way))
    ):
        raise InputError(f"{path}: does not match config.json and extractor/ in its folder. Make the classifier again")
