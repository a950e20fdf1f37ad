"""The transform of features that precedes every classifier."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from lowshot.classifiers.settings import FeatureTransform

Array = TypeVar("Array", np.ndarray, torch.Tensor)

# Keeps the power transform's slope finite at 0, as in the paper.
_EPSILON = 1e-6


def fitted_transform(transform: FeatureTransform, base_features: Array) -> Callable[[Array], Array]:
    """Return the transform as a function, with the centre computed from `base_features` (N, D), numpy or torch.

    The function maps numpy or torch (..., D) to the same kind of array, float32, on the same device. The power keeps
    the sign of an entry: the paper's features follow a ReLU, but those of a leaky ReLU have small negative entries.
    """
    return partial(apply_transform, transform, mean=transformed_mean(transform, base_features))


def transformed_mean(transform: FeatureTransform, base_features: Array) -> torch.Tensor | None:
    """Return the mean to subtract, float32 (D,), or None. `apply_transform` needs nothing else."""
    if not transform.centre:
        return None
    return _powered(torch.as_tensor(base_features), transform.power).mean(0, dtype=torch.float64).float()


def apply_transform(transform: FeatureTransform, features: Array, mean: torch.Tensor | None) -> Array:
    """Apply the transform with the `mean` from `transformed_mean`."""
    transformed = _powered(torch.as_tensor(features), transform.power)
    if mean is not None:
        transformed = transformed - mean.to(transformed.device)
    if transform.normalise:
        transformed = F.normalize(transformed, dim=-1)
    return transformed.numpy() if isinstance(features, np.ndarray) else transformed


def _powered(features: torch.Tensor, power: float) -> torch.Tensor:
    features = features.float()
    if not power:
        return features
    powered = torch.copysign((features.abs() + _EPSILON) ** power, features)
    return F.normalize(powered, dim=-1)
