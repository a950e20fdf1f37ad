"""The superclass-conditional Gaussian mixture on unit vectors (Ni et al., ICLR 2022, section 3).

Every superclass y has a mean, around which lie the means of subclasses z, around which lie embeddings v. With all of
them on the unit sphere and uniform priors, Bayes' rule gives two softmaxes over cosines (spec 2):

    p(z|v) = softmax_z(cos(v, mu_z) / tau)        p(y|z) = softmax_y(cos(mu_y, mu_z) / tau2)

and the model of a label, p(y|v) = sum_z p(z|v) p(y|z). Everything here is in logarithms.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Superclasses(nn.Module):
    """The superclass `means` (C, d), Glorot-uniform, and the classifier that they make."""

    def __init__(self, n_superclasses: int, dim: int) -> None:
        super().__init__()
        self.means = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_superclasses, dim)))

    def classifier_logits(self, embeddings: Tensor) -> Tensor:
        """Scores (N, C) of embeddings (N, d), directly: relu of unit embeddings times means, which are not normalised
        here; there is no temperature (spec 4.2)."""
        return F.normalize(embeddings).relu() @ self.means.T


class Mixture(Superclasses):
    """Superclasses and the `subclass_means` (K, d) among them, Glorot-uniform, used as unit vectors.

    `tau` is the temperature (variance) of subclasses, `tau2` that of superclasses.
    """

    def __init__(self, n_superclasses: int, n_subclasses: int, dim: int, tau: float = 0.1, tau2: float = 1.0) -> None:
        super().__init__(n_superclasses, dim)
        self.subclass_means = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_subclasses, dim)))
        self.tau, self.tau2 = tau, tau2

    def subclass_logits(self, embeddings: Tensor) -> Tensor:
        """The logits (N, K) of p(z|v), of embeddings (N, d)."""
        return F.normalize(embeddings) @ F.normalize(self.subclass_means).T / self.tau

    def superclass_of_subclass_logits(self) -> Tensor:
        """The logits (K, C) of p(y|z)."""
        return F.normalize(self.subclass_means) @ F.normalize(self.means).T / self.tau2

    def log_joint(self, embeddings: Tensor, superclasses: Tensor) -> Tensor:
        """log p(z|v) p(y|z) of embeddings (N, d) with superclasses y (N,): (N, K)."""
        given_subclass = self.superclass_of_subclass_logits().log_softmax(1)
        return self.subclass_logits(embeddings).log_softmax(1) + given_subclass.T[superclasses]

    def log_superclass(self, embeddings: Tensor) -> Tensor:
        """log p(y|v): (N, C)."""
        of_subclass = self.subclass_logits(embeddings).log_softmax(1)
        given_subclass = self.superclass_of_subclass_logits().log_softmax(1)
        # exp is safe: rows of both sum to 1, and a sum of products of them is no smaller than the largest product.
        return (of_subclass.exp() @ given_subclass.exp()).log()
