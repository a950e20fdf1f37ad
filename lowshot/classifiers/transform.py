"""What is done to every feature before any classifier sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jsonargparse.typing import NonNegativeFloat
from torch.nn import functional as F

from lowshot.errors import InputError

Array = TypeVar("Array", np.ndarray, torch.Tensor)

# Keeps the power transform's slope finite at 0, as in the paper.
_EPSILON = 1e-6


@dataclass
class FeatureTransform:
    """SimpleShot (Wang et al., 2019, section 3) centres on the base classes, then normalises; PT-MAP (Hu et al., ICANN
    2021, section 3.2) takes the power 0.5 first."""

    power: NonNegativeFloat = 0.0
    """Raise every entry (plus 1e-6) to this power, then divide by the length; 0 leaves features as they are."""
    centre: bool = False
    """Subtract the mean of the base classes' training features."""
    normalise: bool = False
    """Divide every feature by its Euclidean length."""

    def fit(self, base_features: Array) -> Callable[[Array], Array]:
        """The transform as a function, its centre taken from `base_features` (N, D), numpy or torch.

        The function maps numpy or torch (..., D) to the same kind, float32, on the same device. It raises InputError if
        a power is to be taken of a negative entry (features after a ReLU have none).
        """
        mean = (
            self._powered(torch.as_tensor(base_features)).mean(0, dtype=torch.float64).float() if self.centre else None
        )

        def transform(features: Array) -> Array:
            transformed = self._powered(torch.as_tensor(features))
            if mean is not None:
                transformed = transformed - mean.to(transformed.device)
            if self.normalise:
                transformed = F.normalize(transformed, dim=-1)
            return transformed.numpy() if isinstance(features, np.ndarray) else transformed

        return transform

    def _powered(self, features: torch.Tensor) -> torch.Tensor:
        features = features.float()
        if not self.power:
            return features
        if features.numel() and (lowest := features.min().item()) < 0:
            raise InputError(f"power {self.power}: needs features without negative entries, but one is {lowest:.3g}")
        return F.normalize((features + _EPSILON) ** self.power, dim=-1)
