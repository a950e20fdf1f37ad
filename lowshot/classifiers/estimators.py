"""Few-shot methods and low-shot classifiers on one's own arrays, as scikit-learn estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_array, check_is_fitted, check_X_y

from lowshot.classifiers.methods import CLASSIFIERS, METHODS, Method
from lowshot.classifiers.problem import Problem, Run
from lowshot.classifiers.settings import FeatureTransform, LogisticOptions, MLPOptions, SGDOptions
from lowshot.classifiers.tasks import Tasks
from lowshot.classifiers.transform import Array, fit_transform
from lowshot.core.errors import InputError
from lowshot.core.runtime import pick_device

_OPTIONS = {"linear_sgd": SGDOptions, "logistic_regression": LogisticOptions, "mlp": MLPOptions}


def few_shot_scores(
    method: str,
    support_features: Array,
    support_labels: Array,
    query_features: Array,
    *,
    base_features: Array | None = None,
    transform: FeatureTransform | None = None,
    options: Any = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """Scores of the queries of E few-shot tasks of one shape, best = highest.

    Args:
        method: one of `METHODS`, e.g. "nearest_mean", "logistic_regression", "pt_map".
        support_features: (E, S, D) floats, the labelled shots; (S, D) is one task.
        support_labels: (E, S) integers in 0..n_way-1; every class must be in every task.
        query_features: (E, Q, D) floats. A transductive method looks at all queries of a task together.
        base_features: (N, D) floats, features of base classes; their mean is the centre of a transform that centres.
        transform: what is done to all features first; the one that the method was published with if not given.
        options: the method's settings, e.g. ``CosineOptions(lr=0.1)``; those that go with its transform if not given.
        seed: of methods that draw at random.
        device: where to compute; a GPU if there is one.

    Returns:
        float32 (E, Q, n_way), or (Q, n_way) of one task. Scores of different queries are not comparable; their softmax
        ranks classes and is not calibrated.

    Raises:
        InputError: for an unknown method, shapes that do not agree, NaN, or a class without support.
    """
    chosen = _method(method)
    transform, options = transform or chosen.transform, options or chosen.options
    single = np.ndim(support_labels) == 1
    arrays = [np.asarray(one) for one in (support_features, support_labels, query_features)]
    support, labels, queries = (one[None] if single else one for one in arrays)
    n_way = _check_tasks(support, labels, queries)
    apply = _transform(transform, base_features, support.shape[-1], method)
    device = device or pick_device()
    tasks = Tasks(*(torch.from_numpy(one).to(device) for one in (apply(support), labels, apply(queries))), n_way)
    scores = chosen.score(tasks, options, seed).cpu().numpy()
    return scores[0] if single else scores


def _method(name: str) -> Method:
    if name not in METHODS:
        raise InputError(f"method '{name}': there are {', '.join(METHODS)}")
    return METHODS[name]


def _check_tasks(support: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> int:
    """n_way; InputError unless the arrays (E, S, D), (E, S), (E, Q, D) are tasks in which every class has a shot."""
    shapes = f"support_features {support.shape}, support_labels {labels.shape}, query_features {queries.shape}"
    if support.ndim != 3 or queries.ndim != 3 or labels.shape != support.shape[:2]:
        raise InputError(f"{shapes}: must be (E, S, D), (E, S) and (E, Q, D), or the same without E")
    if (len(support), support.shape[2]) != (len(queries), queries.shape[2]):
        raise InputError(f"{shapes}: as many tasks E and dimensions D are needed on both sides")
    if 0 in (*support.shape, *queries.shape):
        raise InputError(f"{shapes}: an empty side")
    for name, values in (("support_features", support), ("query_features", queries)):
        if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise InputError(f"{name}: must be finite numbers")
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise InputError("support_labels: must be integers 0..n_way-1")
    n_way = int(labels.max()) + 1
    if n_way < 2:
        raise InputError("support_labels: a task needs two classes")
    first = np.arange(min(n_way, labels.shape[1] + 1))  # of more classes than shots one is missing among the first
    missing = (labels[:, :, None] != first).all(1)
    for task, c in np.argwhere(missing)[:1]:
        raise InputError(f"support_labels: task {task} has no shot of class {c}")
    return n_way


def _transform(transform: FeatureTransform, base_features: Array | None, dim: int, method: str) -> Any:
    """The transform as a function of features; InputError if it centres and there is nothing to centre on."""
    if transform.centre and base_features is None:
        raise InputError(
            f"{method}: its features are centred on base classes; give base_features, "
            "or another transform, e.g. FeatureTransform(normalise=True)"
        )
    if base_features is not None:
        base_features = check_array(base_features, dtype=np.float32, input_name="base_features")
        if base_features.shape[1] != dim:
            raise InputError(f"base_features: {base_features.shape[1]} dimensions, but the features have {dim}")
    return fit_transform(transform, base_features if transform.centre else np.empty((0, dim), np.float32))


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """A few-shot method with the transform and the settings that it was published with.

    Args:
        method: nearest_mean, logistic_regression, cosine, laplacian_shot, prototype_refinement or pt_map; the last
            three are transductive: what is predicted together is seen together.
        transform, options, seed, device: see `few_shot_scores`.

    Attributes:
        classes_: (n_way,) the sorted labels.

    Example:
        >>> classifier = FewShotClassifier("nearest_mean").fit(support_features, support_labels)
        >>> classifier.predict(query_features)
    """

    def __init__(
        self,
        method: str = "nearest_mean",
        *,
        transform: FeatureTransform | None = None,
        options: Any = None,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        self.method, self.transform, self.options, self.seed, self.device = method, transform, options, seed, device

    def fit(self, X: np.ndarray, y: np.ndarray, base_features: np.ndarray | None = None) -> FewShotClassifier:
        """Keep the shots.

        Args:
            X: (S, D) floats, features of the labelled shots.
            y: (S,) labels of any kind, of two classes or more.
            base_features: (N, D) floats, for a transform that centres.
        """
        X, y = check_X_y(X, y, dtype=np.float32)
        transform = self.transform or _method(self.method).transform
        _transform(transform, base_features, X.shape[1], self.method)
        self.classes_, self.support_labels_ = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"y: holds one class, {self.classes_[0]!r}; a classifier needs two")
        self.support_features_, self.base_features_, self.n_features_in_ = X, base_features, X.shape[1]
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Scores float32 (Q, n_way) of the queries (Q, D), best = highest."""
        check_is_fitted(self)
        return few_shot_scores(
            self.method, self.support_features_, self.support_labels_, _queries(X, self.n_features_in_),
            base_features=self.base_features_, transform=self.transform, options=self.options, seed=self.seed,
            device=self.device,
        )  # fmt: skip

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Softmax float32 (Q, n_way) of the scores: ranks classes, is not calibrated."""
        return _softmax(self.decision_function(X))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Labels (Q,) of the queries (Q, D)."""
        return self.classes_[self.decision_function(X).argmax(1)]


class LowShotClassifier(ClassifierMixin, BaseEstimator):
    """Base classes with many rows and novel classes with few, learned together and told apart from each other.

    Args:
        classifier: logistic_regression (the optimum of the published loss: base and novel rows weigh as much as there
            are classes of each), linear_sgd (Hariharan & Girshick, ICCV 2017) or mlp (of the CIFAR-100 system).
        transform: what is done to all features first; nothing if not given.
        options: the classifier's settings, e.g. ``SGDOptions(n_steps=1000, batch_size=200)``.
        seed: of initialisation and draws.
        device: where to compute; a GPU if there is one.

    Attributes:
        classes_: (n_classes,) the sorted labels of base and novel classes.
        novel_classes_: (n_novel,) those of the novel ones.
    """

    def __init__(
        self,
        classifier: str = "logistic_regression",
        *,
        transform: FeatureTransform | None = None,
        options: Any = None,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        self.classifier, self.transform, self.options = classifier, transform, options
        self.seed, self.device = seed, device

    def fit(
        self, base_features: np.ndarray, base_labels: np.ndarray, novel_features: np.ndarray, novel_labels: np.ndarray
    ) -> LowShotClassifier:
        """Learn from rows (N, D) of base classes with labels (N,) and shots (S, D) of novel classes with labels (S,).

        Raises InputError for a class that is on both sides, or for rows of different dimensions.
        """
        if self.classifier not in _OPTIONS:
            raise InputError(f"classifier '{self.classifier}': there are {', '.join(_OPTIONS)}")
        base, base_labels = check_X_y(base_features, base_labels, dtype=np.float32)
        novel, novel_labels = check_X_y(novel_features, novel_labels, dtype=np.float32)
        if base.shape[1] != novel.shape[1]:
            raise InputError(f"base rows have {base.shape[1]} dimensions, novel ones {novel.shape[1]}")
        base_classes, self.novel_classes_ = np.unique(base_labels), np.unique(novel_labels)
        if both := set(base_classes.tolist()) & set(self.novel_classes_.tolist()):
            raise InputError(f"class {min(both)!r}: has base and novel rows")
        self.classes_, numbers = np.unique(np.concatenate([base_labels, novel_labels]), return_inverse=True)
        base_numbers, novel_numbers = np.split(numbers, [len(base)])
        self.transform_ = fit_transform(self.transform or FeatureTransform(), base)
        run = Run(1, int(np.bincount(novel_numbers).max()), self.transform_(novel), novel_numbers)
        sizes = len(base_classes), len(self.novel_classes_), len(self.classes_)
        problem = Problem(self.transform_(base), base_numbers, [run], *sizes)
        options, device = self.options or _OPTIONS[self.classifier](), str(self.device or pick_device())
        self.score_, self.device_ = CLASSIFIERS[self.classifier](problem, options, self.seed, device), device
        self.n_features_in_ = base.shape[1]
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Scores float32 (Q, n_classes) of rows (Q, D)."""
        check_is_fitted(self)
        queries = torch.from_numpy(self.transform_(_queries(X, self.n_features_in_))).to(self.device_)
        return self.score_(queries)[0].cpu().numpy()

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Softmax float32 (Q, n_classes) of the scores."""
        return _softmax(self.decision_function(X))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Labels (Q,) of rows (Q, D)."""
        return self.classes_[self.decision_function(X).argmax(1)]


def _queries(X: np.ndarray, dim: int) -> np.ndarray:
    X = check_array(X, dtype=np.float32)
    if X.shape[1] != dim:
        raise InputError(f"X: {X.shape[1]} dimensions, but the classifier was fitted on {dim}")
    return X


def _softmax(scores: np.ndarray) -> np.ndarray:
    return torch.from_numpy(scores).softmax(1).numpy()
