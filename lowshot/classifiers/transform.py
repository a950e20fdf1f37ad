"""What is done to every feature before any classifier sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from jsonargparse.typing import NonNegativeFloat
from torch.nn import functional as F

Array = TypeVar("Array", np.ndarray, torch.Tensor)

# Keeps the power transform's slope finite at 0, as in the paper.
_EPSILON = 1e-6


@dataclass
class FeatureTransform:
    """SimpleShot (Wang et al., 2019, section 3) centres on the base classes, then normalises; PT-MAP (Hu et al., ICANN
    2021, section 3.2) takes the power 0.5 first."""

    power: NonNegativeFloat = 0.0
    """Raise every entry (size plus 1e-6; the sign is kept) to this power, then divide by the length; 0 leaves features
    as they are."""
    centre: bool = False
    """Subtract the mean of the base classes' training features."""
    normalise: bool = False
    """Divide every feature by its Euclidean length."""

    @property
    def steps(self) -> list[str]:
        """What is done, in words for the tables; CL2N and L2N are SimpleShot's names."""
        names = {(True, True): ["CL2N"], (False, True): ["L2N"], (True, False): ["centred"], (False, False): []}
        return ([f"power {self.power:g}"] if self.power else []) + names[self.centre, self.normalise]

    def fit(self, base_features: Array) -> Callable[[Array], Array]:
        """The transform as a function, its centre taken from `base_features` (N, D), numpy or torch.

        The function maps numpy or torch (..., D) to the same kind, float32, on the same device. The paper's features
        follow a ReLU; those of a leaky ReLU have small negative entries, whose sign stays.
        """
        return partial(self.apply, mean=self.base_mean(base_features))

    def base_mean(self, base_features: Array) -> torch.Tensor | None:
        """What is subtracted, float32 (D,), or None: all that must be kept to `apply` the transform later."""
        if not self.centre:
            return None
        return self._powered(torch.as_tensor(base_features)).mean(0, dtype=torch.float64).float()

    def apply(self, features: Array, mean: torch.Tensor | None) -> Array:
        """The transform with the `mean` of `base_mean`."""
        transformed = self._powered(torch.as_tensor(features))
        if mean is not None:
            transformed = transformed - mean.to(transformed.device)
        if self.normalise:
            transformed = F.normalize(transformed, dim=-1)
        return transformed.numpy() if isinstance(features, np.ndarray) else transformed

    def _powered(self, features: torch.Tensor) -> torch.Tensor:
        features = features.float()
        if not self.power:
            return features
        powered = torch.copysign((features.abs() + _EPSILON) ** self.power, features)
        return F.normalize(powered, dim=-1)
