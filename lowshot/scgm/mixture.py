"""The superclass-conditional Gaussian mixture on unit vectors (Ni et al., ICLR 2022, section 3).

The means of subclasses z are distributed around the means of superclasses y, and embeddings v around the means of
subclasses. With unit vectors and uniform priors, Bayes' rule gives two softmax functions over cosines:

    p(z|v) = softmax_z(cos(v, mu_z) / tau)        p(y|z) = softmax_y(cos(mu_y, mu_z) / tau2)

The probability of a label is p(y|v) = sum_z p(z|v) p(y|z). All functions return logarithms.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Superclasses(nn.Module):
    """The `means` (C, d) of superclasses, with Glorot-uniform initialisation, and the classifier with these weights."""

    def __init__(self, n_superclasses: int, dim: int) -> None:
        super().__init__()
        self.means = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_superclasses, dim)))

    def classifier_logits(self, embeddings: Tensor) -> Tensor:
        """Return scores (N, C) of embeddings (N, d): relu of the unit embeddings times the means.

        The means are not normalised here, and there is no temperature.
        """
        return F.normalize(embeddings).relu() @ self.means.T


class Mixture(Superclasses):
    """Superclasses with `subclass_means` (K, d), Glorot-uniform, used as unit vectors.

    `tau` is the temperature (variance) of subclasses, `tau2` the temperature of superclasses.
    """

    def __init__(self, n_superclasses: int, n_subclasses: int, dim: int, tau: float = 0.1, tau2: float = 1.0) -> None:
        super().__init__(n_superclasses, dim)
        self.subclass_means = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_subclasses, dim)))
        self.tau, self.tau2 = tau, tau2

    def subclass_logits(self, embeddings: Tensor) -> Tensor:
        """Return the logits (N, K) of p(z|v) for embeddings (N, d)."""
        return F.normalize(embeddings) @ F.normalize(self.subclass_means).T / self.tau

    def superclass_of_subclass_logits(self) -> Tensor:
        """Return the logits (K, C) of p(y|z)."""
        return F.normalize(self.subclass_means) @ F.normalize(self.means).T / self.tau2

    def log_joint(self, embeddings: Tensor, superclasses: Tensor) -> Tensor:
        """Return log p(z|v) p(y|z), (N, K), for embeddings (N, d) with superclasses y (N,)."""
        given_subclass = self.superclass_of_subclass_logits().log_softmax(1)
        return self.subclass_logits(embeddings).log_softmax(1) + given_subclass.T[superclasses]

    def log_superclass(self, embeddings: Tensor) -> Tensor:
        """Return log p(y|v), (N, C), for embeddings (N, d)."""
        of_subclass = self.subclass_logits(embeddings).log_softmax(1)
        given_subclass = self.superclass_of_subclass_logits().log_softmax(1)
        # exp is safe: the rows of both sum to 1, and a sum of their products is at least the largest product.
        return (of_subclass.exp() @ given_subclass.exp()).log()
