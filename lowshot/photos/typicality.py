"""Does an image look like the classes at all? How typical it is, compared with photos that are known to belong."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lowshot.classifiers.tasks import class_counts, class_sums
from lowshot.core.errors import InputError


@dataclass(frozen=True)
class Typicality:
    """`means` float32 (n_way, D) have unit length. `known` float32 (K,), ascending, are the similarities of known
    photos, each to the classes without itself."""

    means: Tensor
    known: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the share (Q,) float64 of known photos that are at most as similar to the classes as features (Q, D).

        The p-value of conformal prediction (Vovk et al., 2005): of images like the known photos, about a share r has a
        value of at most r, and of images of other classes more. Departs from it in that the means of the classes are
        fitted to the same photos, each without itself. Of classes with fewer photos than the others, more images have
        low values, and those of a single photo are not among the known. NaN if no photo is known.
        """
        n_lower = torch.searchsorted(self.known, self.similarity(features), right=True).double()
        return (1 + n_lower) / (1 + len(self.known)) if len(self.known) else torch.full_like(n_lower, torch.nan)

    @property
    def smallest(self) -> float:
        """The smallest value that an image can have."""
        return 1 / (1 + len(self.known))

    def check_rate(self, false_alarms: float) -> None:
        """Raise InputError unless there are enough known photos to tell so rare a value."""
        if false_alarms < self.smallest:
            least = f"at least {self.smallest:.3f}" if len(self.known) else "more photos: no class has two"
            raise InputError(
                f"--false_alarms {false_alarms:g}: the classifier has {len(self.known)} photos to compare with. Use "
                f"{least}, or leave it out"
            )

    def similarity(self, features: Tensor) -> Tensor:
        """Return the cosine (Q,) of features (Q, D) and the mean of the nearest class."""
        return (F.normalize(features, dim=-1) @ self.means.mT).amax(-1)


def typicality_of(features: Tensor, labels: Tensor, n_way: int) -> Typicality:
    """Return what is typical of the classes of features (S, D) with labels (S,).

    A photo is compared with its class without itself. Photos that are alone in their class tell nothing.
    """
    rows = F.normalize(features.double(), dim=-1)
    sums = class_sums(rows[None], labels[None], n_way)[0]
    means = F.normalize(sums, dim=-1)
    similar = rows @ means.mT
    without = F.normalize(sums[labels] - rows, dim=-1)
    similar[torch.arange(len(labels)), labels] = (rows * without).sum(-1)
    several = class_counts(labels[None], n_way)[0][labels] > 1
    return Typicality(means.float(), similar.amax(-1)[several].float().sort().values)
