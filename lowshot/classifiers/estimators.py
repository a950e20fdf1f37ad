"""Few-shot methods and low-shot classifiers on one's own arrays, as scikit-learn estimators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from lowshot.classifiers.methods import fit_classifier, score_tasks
from lowshot.classifiers.problem import Problem, Run
from lowshot.classifiers.settings import (
    CLASSIFIERS,
    METHODS,
    RECOMMENDED,
    FeatureTransform,
    OwnHead,
    Recommended,
    is_transductive,
)
from lowshot.classifiers.tasks import Tasks
from lowshot.classifiers.transform import fitted_transform
from lowshot.core.choices import Registry
from lowshot.core.errors import Diverged, InputError
from lowshot.core.runtime import pick_device
from lowshot.core.settings import checked

Apply = Callable[[np.ndarray], np.ndarray]
# The classifiers of the benchmark that learn from rows.
_LEARNED = Registry(
    CLASSIFIERS.kind,
    {name: one for name, one in CLASSIFIERS.classes.items() if one is not OwnHead},
    CLASSIFIERS.method,
)


def few_shot_scores(
    method: Any,
    support_features: np.ndarray,
    support_labels: np.ndarray,
    query_features: np.ndarray,
    *,
    base_features: np.ndarray | None = None,
    feature_transform: FeatureTransform | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """Scores of the queries of E few-shot tasks of one shape, best = highest.

    Args:
        method: nearest_mean, logistic_regression, cosine, laplacian_shot, prototype_refinement or pt_map, with the
            settings of configs/few_shot/episodes-METHOD.yaml; or settings, e.g.
            ``lowshot.classifiers.CosineOptions(lr=0.1)``; or a method of your own, see docs/extending.md.
        support_features: (E, S, D) floats, the labelled shots; (S, D) is one task.
        support_labels: (E, S) integers in 0..n_way-1; every class must be in every task.
        query_features: (E, Q, D) floats. The last three methods are transductive: they look at all queries of a task
            together.
        base_features: (N, D) floats, features of base classes. Their mean is the centre of a transform that centres;
            other transforms do not use them.
        feature_transform: what is done to all features first; if not given, that of
            configs/few_shot/episodes-METHOD.yaml, and nothing for a method of your own.
        seed: of methods that draw at random.
        device: where to compute; a GPU if there is one.

    Returns:
        float32 (E, Q, n_way), or (Q, n_way) of one task. Scores of different queries are not comparable. Their softmax
        ranks classes and is not calibrated.

    Raises:
        InputError: for an unknown method, settings of another one, shapes that do not agree, NaN, or a class without
            support.
    """
    labels = _array(support_labels)
    support, queries = _floats("support_features", support_features), _floats("query_features", query_features)
    single = labels.ndim == 1
    if single:
        support, labels, queries = support[None], labels[None], queries[None]
    _check_tasks(support, labels, queries)
    chosen = _chosen(method, feature_transform)
    apply = _fitted(chosen.transform, base_features, support.shape[-1])
    scores = _scores(chosen.method, apply(support), labels, apply(queries), seed, device)
    return scores[0] if single else scores


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)


def _floats(name: str, values: Any) -> np.ndarray:
    """float32, contiguous and writable as torch wants it; InputError for other things than finite numbers."""
    array = _array(values)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name}: holds {array.dtype}, not numbers")
    with np.errstate(over="ignore"):
        array = np.require(array, np.float32, ["C", "W"])
    if not np.isfinite(array).all():
        raise InputError(f"{name}: holds NaN, infinity or numbers beyond float32")
    return array


def _check_tasks(support: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> None:
    """InputError unless the arrays (E, S, D), (E, S), (E, Q, D) are tasks in which every class has a shot."""
    shapes = f"support_features {support.shape}, support_labels {labels.shape}, query_features {queries.shape}"
    if support.ndim != 3 or queries.ndim != 3 or labels.shape != support.shape[:2]:
        raise InputError(f"{shapes}: must be (E, S, D), (E, S) and (E, Q, D), or the same without E")
    if (len(support), support.shape[2]) != (len(queries), queries.shape[2]):
        raise InputError(f"{shapes}: support and queries need the same number of tasks and of dimensions")
    if 0 in (*support.shape, *queries.shape):
        raise InputError(f"{shapes}: an axis of length 0")
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise InputError(
            "support_labels: must be integers 0..n_way-1; np.unique(labels, return_inverse=True)[1] makes them"
        )
    n_way, n_shots = int(labels.max()) + 1, labels.shape[1]
    if n_way < 2:
        raise InputError("support_labels: a task needs two classes")
    classes = np.arange(min(n_way, n_shots + 1))  # of more classes than shots, one of the first is missing
    missing = np.argwhere((labels[:, :, None] != classes).all(1))
    if len(missing):
        raise InputError(f"support_labels: task {missing[0, 0]} has no shot of class {missing[0, 1]}")


def _chosen(method: Any, transform: FeatureTransform | None) -> Recommended:
    """The settings of a method, with values in range, and the transform: what was given, or what is recommended."""
    if isinstance(method, str):
        if method not in RECOMMENDED:
            raise InputError(f"method '{method}': there are {', '.join(RECOMMENDED)}")
        chosen = RECOMMENDED[method]
    else:
        settings = _checked(METHODS, method)
        same = [one for one in RECOMMENDED.values() if type(one.method) is type(settings)]
        chosen = Recommended(settings, same[0].transform if same else FeatureTransform())
    return chosen if transform is None else chosen._replace(transform=_checked_transform(transform))


def _checked(registry: Registry, given: Any) -> Any:
    """Settings of a choice, with values in range; InputError for anything else."""
    if type(given) in registry.classes.values():
        return checked(type(given), vars(given), Path(type(given).__name__))
    method = registry.method.partition("(")[0]
    if isinstance(given, type) or not callable(getattr(given, method, None)):
        known = ", ".join(one.__name__ for one in registry.classes.values())
        raise InputError(f"{given!r}: is no {registry.kind}; give a name, one of {known}, or your own with {method}")
    return given


def _checked_transform(given: Any) -> FeatureTransform:
    if not isinstance(given, FeatureTransform):
        raise InputError(f"feature_transform: must be FeatureTransform, not {type(given).__name__}")
    return checked(FeatureTransform, asdict(given), Path("feature_transform"))


def _fitted(transform: FeatureTransform, base_features: np.ndarray | None, dim: int) -> Apply:
    """The transform as a function of features; InputError if it centres and there is nothing to centre on."""
    if not transform.centre:
        return fitted_transform(transform, np.empty((0, dim), np.float32))
    if base_features is None:
        raise InputError(
            "features are centred on base classes; give base_features, "
            "or another transform, e.g. FeatureTransform(normalise=True)"
        )
    return fitted_transform(transform, _rows("base_features", base_features, dim))


def _scores(
    method: Any,
    support: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    seed: int,
    device: str | torch.device | None,
) -> np.ndarray:
    """Scores (E, Q, n_way) of checked and transformed tasks."""
    if is_transductive(method) and queries.shape[1] == 1:
        raise InputError("one query: a transductive method compares queries with each other; give several at once")
    arrays = support, np.ascontiguousarray(labels, np.int64), queries
    tensors = (torch.from_numpy(one).to(device or pick_device()) for one in arrays)
    return score_tasks(method, Tasks(*tensors, int(labels.max()) + 1), seed).cpu().numpy()


def _rows(name: str, values: Any, dim: int | None = None) -> np.ndarray:
    """Features as float32 (N, D); InputError unless they are finite numbers (N, D) of `dim` dimensions."""
    rows = _floats(name, values)
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"{name}: has shape {rows.shape}, must be (rows, dimensions)")
    if dim not in (None, rows.shape[1]):
        raise InputError(f"{name}: {rows.shape[1]} dimensions, {dim} are needed")
    return rows


def _labels(name: str, values: Any, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The sorted classes (C,) and the number of each row's class among them (N,)."""
    labels = _array(values)
    if labels.shape != (n_rows,):
        raise InputError(f"{name}: has shape {labels.shape} for {n_rows} rows")
    try:
        return np.unique(labels, return_inverse=True)
    except TypeError:
        raise InputError(f"{name}: labels of several kinds; give integers or strings") from None


class _Classifier(ClassifierMixin, BaseEstimator):
    """What both classifiers make of scores (Q, n_classes)."""

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Scores float32 (Q, n_classes) of rows (Q, D), best = highest; of two classes (Q,), above 0 for the second."""
        scores = self._score(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Softmax float32 (Q, n_classes) of the scores: ranks classes, is not calibrated."""
        return torch.from_numpy(self._score(X)).softmax(1).numpy()

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Labels (Q,) of rows (Q, D)."""
        best = self._score(X).argmax(1)
        return self.classes_[best]


class FewShotClassifier(_Classifier):
    """A few-shot method: learns from some labelled shots, tells their classes apart.

    Args:
        method: a name, or settings, as in `few_shot_scores`. laplacian_shot, prototype_refinement and pt_map are
            transductive: what is predicted together is seen together, and pt_map assumes that each class has the same
            number of queries.
        feature_transform, seed, device: see `few_shot_scores`.

    Attributes:
        classes_: (n_way,) the sorted labels.

    Example:
        >>> classifier = FewShotClassifier("nearest_mean").fit(support_features, support_labels)
        >>> classifier.predict(query_features)
    """

    def __init__(
        self,
        method: Any = "nearest_mean",
        *,
        feature_transform: FeatureTransform | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        self.method, self.feature_transform, self.seed, self.device = method, feature_transform, seed, device

    def fit(self, X: np.ndarray, y: np.ndarray, base_features: np.ndarray | None = None) -> FewShotClassifier:
        """Keep the shots.

        Args:
            X: (S, D) floats, features of the labelled shots.
            y: (S,) integers or strings, of two classes or more.
            base_features: (N, D) floats, for a transform that centres.
        """
        rows = _rows("X", X)
        classes, labels = _labels("y", y, len(rows))
        if len(classes) < 2:
            raise InputError(f"y: holds one class, {classes[0]}; a classifier needs two")
        method, transform = _chosen(self.method, self.feature_transform)
        apply = _fitted(transform, base_features, rows.shape[1])
        self._method, self._apply = method, apply
        self._support, self._labels = apply(rows).copy(), labels
        self.classes_, self.n_features_in_ = classes, rows.shape[1]
        return self

    def _score(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        queries = self._apply(_rows("X", X, self.n_features_in_))
        arrays = self._support[None], self._labels[None], queries[None]
        return _scores(self._method, *arrays, self.seed, self.device)[0]


def _known_classifier(classifier: Any) -> Any:
    """The settings of a classifier that learns from rows, by its name or given."""
    if not isinstance(classifier, str):
        return _checked(_LEARNED, classifier)
    if classifier not in _LEARNED.classes:
        raise InputError(f"classifier '{classifier}': there are {', '.join(_LEARNED.classes)}")
    return _LEARNED.classes[classifier]()


class LowShotClassifier(_Classifier):
    """Base classes with many rows and novel classes with few, learned together and told apart from each other.

    Args:
        classifier: logistic_regression (the optimum of the published loss: base and novel rows weigh as much as there
            are classes of each), linear_sgd (Hariharan & Girshick, ICCV 2017) or mlp (of the CIFAR-100 system, whose
            published learning rate of 1e-6 needs many rows; ``MLPOptions(lr=1e-4)`` learns from few); or settings, e.g.
            ``lowshot.classifiers.SGDOptions(n_steps=1000, batch_size=200)``; or your own, see docs/extending.md.
        feature_transform: what is done to all features first; nothing if not given. It centres on the base rows.
        seed: of initialisation and draws.
        device: where to compute; a GPU if there is one.

    Attributes:
        classes_: (n_classes,) the sorted labels of base and novel classes.
        novel_classes_: (n_novel,) those of the novel ones.
    """

    def __init__(
        self,
        classifier: Any = "logistic_regression",
        *,
        feature_transform: FeatureTransform | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        self.classifier, self.feature_transform, self.seed, self.device = classifier, feature_transform, seed, device

    def fit(
        self, base_features: np.ndarray, base_labels: np.ndarray, novel_features: np.ndarray, novel_labels: np.ndarray
    ) -> LowShotClassifier:
        """Learn from rows (N, D) of base classes with labels (N,) and shots (S, D) of novel classes with labels (S,).

        Raises InputError for a class that is on both sides, or for rows of different dimensions.
        """
        classifier = _known_classifier(self.classifier)
        transform = _checked_transform(self.feature_transform or FeatureTransform())
        base = _rows("base_features", base_features)
        novel = _rows("novel_features", novel_features, base.shape[1])
        base_classes, _ = _labels("base_labels", base_labels, len(base))
        novel_classes, _ = _labels("novel_labels", novel_labels, len(novel))
        if base_classes.dtype.kind != novel_classes.dtype.kind:
            raise InputError(f"base_labels are {base_classes.dtype}, novel_labels {novel_classes.dtype}: give one kind")
        both = np.intersect1d(base_classes, novel_classes)
        if len(both):
            raise InputError(f"class {both[0]}: has base and novel rows")
        joined = np.concatenate([_array(base_labels), _array(novel_labels)])
        classes, numbers = _labels("base_labels and novel_labels", joined, len(base) + len(novel))
        base_numbers, novel_numbers = np.split(numbers, [len(base)])
        apply, device = fitted_transform(transform, base), str(self.device or pick_device())
        run = Run(1, int(np.bincount(novel_numbers).max()), apply(novel), novel_numbers)
        problem = Problem(apply(base), base_numbers, [run], len(base_classes), len(novel_classes), len(classes))
        self._scorer, self._apply, self._device = fit_classifier(classifier, problem, self.seed, device), apply, device
        self.classes_, self.novel_classes_, self.n_features_in_ = classes, novel_classes, base.shape[1]
        return self

    def _score(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        queries = self._apply(_rows("X", X, self.n_features_in_))
        scores = self._scorer(torch.from_numpy(queries).to(self._device))[0].cpu().numpy()
        if not np.isfinite(scores).all():
            raise Diverged(f"{self.classifier}: the scores are not finite, training diverged; lower the learning rate")
        return scores
