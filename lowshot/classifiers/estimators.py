"""Few-shot methods and low-shot classifiers for your own arrays, as scikit-learn estimators."""

from __future__ import annotations

import math
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
    head_of,
    is_transductive,
    transform_of,
)
from lowshot.classifiers.tasks import Tasks
from lowshot.classifiers.transform import fitted_transform
from lowshot.core.choices import Registry
from lowshot.core.errors import Diverged, InputError
from lowshot.core.runtime import pick_device
from lowshot.core.settings import checked

Apply = Callable[[np.ndarray], np.ndarray]
# Benchmark classifiers that learn from rows.
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
    """Score the queries of E few-shot tasks of one shape.

    Args:
        method: the name of a method, its settings or a method of your own. A name is one of nearest_mean,
            logistic_regression, cosine, laplacian_shot, prototype_refinement, pt_map, bd_cspn, tim, alpha_tim and
            adaptive_transport; its settings are those of configs/few_shot/episodes-METHOD.yaml. Settings are e.g.
            ``lowshot.classifiers.CosineOptions(lr=0.1)``. For a method of your own see docs/extending.md.
        support_features: (E, S, D) floats, the labelled shots; (S, D) for a single task.
        support_labels: (E, S) integers in 0..n_way-1. Every task must contain every class.
        query_features: (E, Q, D) floats. laplacian_shot, prototype_refinement, pt_map, bd_cspn, tim, alpha_tim and
            adaptive_transport are transductive: they use all queries of a task together.
        base_features: (N, D) floats, features of base classes. A transform with ``centre=True`` subtracts their mean.
            Other transforms ignore them.
        feature_transform: transform of all features. Default: that of configs/few_shot/episodes-METHOD.yaml, or no
            transform for a method of your own.
        seed: seed of methods that draw at random.
        device: device to compute on. Default: a GPU if available.

    Returns:
        Scores float32 (E, Q, n_way), or (Q, n_way) for a single task. The highest score is the best. Scores of
        different queries are not comparable. The softmax of the scores ranks classes and is not calibrated.

    Raises:
        InputError: if the method is unknown, a setting is out of range, shapes do not match, features are not finite,
            or a class has no shot.
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
    """Return float32, contiguous and writable as torch requires. Raise InputError unless values are finite numbers."""
    array = _array(values)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name}: has dtype {array.dtype}, must be numbers")
    with np.errstate(over="ignore"):
        array = np.require(array, np.float32, ["C", "W"])
    if not np.isfinite(array).all():
        raise InputError(f"{name}: contains NaN, infinity or values too large for float32")
    return array


def _check_tasks(support: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> None:
    """Raise InputError unless the arrays (E, S, D), (E, S), (E, Q, D) are tasks in which every class has a shot."""
    shapes = f"support_features {support.shape}, support_labels {labels.shape}, query_features {queries.shape}"
    if support.ndim != 3 or queries.ndim != 3 or labels.shape != support.shape[:2]:
        raise InputError(f"{shapes}: must be (E, S, D), (E, S) and (E, Q, D), or the same without E")
    if (len(support), support.shape[2]) != (len(queries), queries.shape[2]):
        raise InputError(f"{shapes}: support and queries must have the same number of tasks and of dimensions")
    if 0 in (*support.shape, *queries.shape):
        raise InputError(f"{shapes}: no axis may have length 0")
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise InputError("support_labels: must be integers 0..n_way-1. Use np.unique(labels, return_inverse=True)[1]")
    n_way, n_shots = int(labels.max()) + 1, labels.shape[1]
    if n_way < 2:
        raise InputError("support_labels: a task needs at least two classes")
    classes = np.arange(min(n_way, n_shots + 1))  # with more classes than shots, one of the first is missing
    missing = np.argwhere((labels[:, :, None] != classes).all(1))
    if len(missing):
        raise InputError(f"support_labels: task {missing[0, 0]} has no shot of class {missing[0, 1]}")


def _chosen(method: Any, transform: FeatureTransform | None) -> Recommended:
    """Return the checked settings of a method and the transform: those given, or the recommended ones."""
    if isinstance(method, str):
        if method not in RECOMMENDED:
            raise InputError(f"method '{method}': unknown; available: {', '.join(RECOMMENDED)}")
        settings = RECOMMENDED[method].method
    else:
        settings = _checked(METHODS, method)
    return Recommended(settings, _transform(settings, transform))


def _checked(registry: Registry, given: Any) -> Any:
    """Return the settings of a choice. Raise InputError if they are of no choice of `registry` or out of range."""
    if type(given) in registry.classes.values():
        return checked(type(given), vars(given), Path(type(given).__name__))
    method = registry.method.partition("(")[0]
    if isinstance(given, type) or not callable(getattr(given, method, None)):
        known = ", ".join(one.__name__ for one in registry.classes.values())
        choices = f"a name, an instance of {known}, or your own object with {method}"
        raise InputError(f"{given!r}: is not a {registry.kind}. Use {choices}")
    return given


def _transform(classifier: Any, given: Any) -> FeatureTransform:
    """Return the transform that is given, checked, or that of the classifier."""
    if given is None:
        return transform_of(classifier, None)
    if not isinstance(given, FeatureTransform):
        raise InputError(f"feature_transform: must be a FeatureTransform, not {type(given).__name__}")
    return checked(FeatureTransform, asdict(given), Path("feature_transform"))


def _fitted(transform: FeatureTransform, base_features: np.ndarray | None, dim: int) -> Apply:
    """Return the transform as a function of features. Raise InputError if it centres but there are no base features."""
    if not transform.centre:
        return fitted_transform(transform, np.empty((0, dim), np.float32))
    if base_features is None:
        raise InputError(
            "base_features: missing, but the transform centres features on them. "
            "Give base_features or another transform, e.g. FeatureTransform(normalise=True)"
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
    """Return scores (E, Q, n_way) of checked and transformed tasks."""
    if is_transductive(method) and queries.shape[1] == 1:
        raise InputError("only one query: a transductive method compares queries with each other. Give several")
    arrays = support, np.ascontiguousarray(labels, np.int64), queries
    tensors = (torch.from_numpy(one).to(device or pick_device()) for one in arrays)
    return score_tasks(method, Tasks(*tensors, int(labels.max()) + 1), seed).cpu().numpy()


def _rows(name: str, values: Any, dim: int | None = None) -> np.ndarray:
    """Return features as float32 (N, D). Raise InputError unless they are finite numbers with `dim` dimensions."""
    rows = _floats(name, values)
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"{name}: has shape {rows.shape}, must be (rows, dimensions)")
    if dim not in (None, rows.shape[1]):
        raise InputError(f"{name}: has {rows.shape[1]} dimensions, must have {dim}")
    return rows


def _labels(name: str, values: Any, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted classes (C,) and the index of the class of each row (N,)."""
    labels = _array(values)
    if labels.shape != (n_rows,):
        raise InputError(f"{name}: has shape {labels.shape}, must be ({n_rows},)")
    try:
        return np.unique(labels, return_inverse=True)
    except TypeError:
        raise InputError(f"{name}: mixes types. Use integers or strings throughout") from None


class _Classifier(ClassifierMixin, BaseEstimator):
    """Predictions from scores (Q, n_classes), shared by both classifiers."""

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Return scores (Q, n_classes) of rows (Q, D), float32, with a novel bias float64. The highest is the best.

        For two classes the shape is (Q,), and a score above 0 means the second class.
        """
        scores = self._score(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return the softmax (Q, n_classes) of the scores. It ranks classes and is not calibrated."""
        return torch.from_numpy(self._score(X)).softmax(1).numpy()

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict labels (Q,) of rows (Q, D)."""
        best = self._score(X).argmax(1)
        return self.classes_[best]


class FewShotClassifier(_Classifier):
    """Few-shot classifier: learns classes from a few labelled shots.

    Args:
        method: a name or settings, as in `few_shot_scores`. laplacian_shot, prototype_refinement, pt_map, bd_cspn, tim,
            alpha_tim and adaptive_transport are transductive: a prediction depends on the other rows of the same call.
            pt_map, bd_cspn and tim also assume that each class has the same number of queries.
        feature_transform, seed, device: see `few_shot_scores`.

    Attributes:
        classes_: sorted labels (n_way,).

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
        """Store the shots.

        Args:
            X: (S, D) floats, features of the labelled shots.
            y: (S,) integers or strings, at least two classes.
            base_features: (N, D) floats, required by a transform with ``centre=True``.
        """
        rows = _rows("X", X)
        classes, labels = _labels("y", y, len(rows))
        if len(classes) < 2:
            raise InputError(f"y: contains only one class ({classes[0]}), must contain at least two")
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
    """Return the settings of a classifier that learns from rows, given its name or settings."""
    if not isinstance(classifier, str):
        known = _checked(_LEARNED, classifier)
        if head_of(known):  # its weights are in the order of the extractor's classes, which labels here need not have
            raise InputError(f"{known}: the weights of an extractor need the classes of a split. Use low_shot.py")
        return known
    if classifier not in _LEARNED.classes:
        raise InputError(f"classifier '{classifier}': unknown; available: {', '.join(_LEARNED.classes)}")
    return _LEARNED.classes[classifier]()


class LowShotClassifier(_Classifier):
    """Low-shot classifier: learns base classes with many rows and novel classes with few rows together.

    Args:
        classifier: a name, settings or a classifier of your own (see docs/extending.md). The names are:

            - imprinting: a cosine classifier of base classes, with the mean directions of the shots as the weights of
              novel classes (Qi et al., CVPR 2018).
            - attention: the same, with weights of novel classes from a generator that is trained on the base classes
              (Gidaris & Komodakis, CVPR 2018).
            - logistic_regression: the optimum of the published loss, in which base and novel rows are weighted by the
              number of base and novel classes.
            - linear_sgd: SGD on the same loss (Hariharan & Girshick, ICCV 2017).
            - logit_adjusted: logistic regression on all rows alike, with logit adjustment (Menon et al., ICLR 2021).
            - balanced_sgd: the logistic regression of Douze et al. (CVPR 2018).
            - mlp: the classifier of the CIFAR-100 system. Its published learning rate of 1e-6 needs many rows. Use
              ``MLPOptions(lr=1e-4)`` for few.

            Settings are e.g. ``lowshot.classifiers.SGDOptions(n_steps=1000, batch_size=200)``.
        feature_transform: transform of all features, centred on the base rows. Default: centred and at unit length for
            imprinting and attention, no transform for other classifiers.
        novel_bias: number to add to the scores of novel classes (Chao et al., ECCV 2016), in the unit of the scores.
            Positive values predict novel classes more often.
        seed: seed of initialisation and draws.
        device: device to compute on. Default: a GPU if available.

    Attributes:
        classes_: sorted labels (n_classes,) of base and novel classes.
        novel_classes_: sorted labels (n_novel,) of the novel classes.
    """

    def __init__(
        self,
        classifier: Any = "imprinting",
        *,
        feature_transform: FeatureTransform | None = None,
        novel_bias: float = 0.0,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        self.classifier, self.feature_transform, self.novel_bias = classifier, feature_transform, novel_bias
        self.seed, self.device = seed, device

    def fit(
        self, base_features: np.ndarray, base_labels: np.ndarray, novel_features: np.ndarray, novel_labels: np.ndarray
    ) -> LowShotClassifier:
        """Fit rows (N, D) of base classes with labels (N,) and shots (S, D) of novel classes with labels (S,).

        Raises InputError if a class is both base and novel, or if base and novel rows differ in dimensions.
        """
        classifier = _known_classifier(self.classifier)
        if not isinstance(self.novel_bias, int | float) or not math.isfinite(self.novel_bias):
            raise InputError(f"novel_bias: {self.novel_bias!r}: must be a finite number")
        transform = _transform(classifier, self.feature_transform)
        base = _rows("base_features", base_features)
        novel = _rows("novel_features", novel_features, base.shape[1])
        base_classes, _ = _labels("base_labels", base_labels, len(base))
        novel_classes, _ = _labels("novel_labels", novel_labels, len(novel))
        if base_classes.dtype.kind != novel_classes.dtype.kind:
            dtypes = f"base_labels are {base_classes.dtype}, novel_labels are {novel_classes.dtype}"
            raise InputError(f"{dtypes}: both must be integers or both strings")
        both = np.intersect1d(base_classes, novel_classes)
        if len(both):
            raise InputError(f"class {both[0]}: is in both base_labels and novel_labels")
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
            raise Diverged(f"{self.classifier}: training diverged (NaN or infinite scores). Use a lower learning rate.")
        if not self.novel_bias:
            return scores
        # In float64, so that a large bias keeps the order within a group.
        return scores + np.float64(self.novel_bias) * np.isin(self.classes_, self.novel_classes_)
