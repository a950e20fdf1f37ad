"""A classifier of features that was learned once and can be saved."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = tuple[Tensor, Tensor]  # weight (outputs, inputs) and bias (outputs,)


class Head(nn.Module):
    """Linear layers with ReLUs between them: features float32 (N, D) to scores float32 (N, n_classes).

    A linear classifier has one layer. With `unit_length`, it first divides features by their length.
    """

    def __init__(self, layers: Sequence[Layer], unit_length: bool = False) -> None:
        super().__init__()
        self.unit_length = unit_length
        self.weights = nn.ParameterList(nn.Parameter(weight.float(), requires_grad=False) for weight, _ in layers)
        self.biases = nn.ParameterList(nn.Parameter(bias.float(), requires_grad=False) for _, bias in layers)

    def forward(self, features: Tensor) -> Tensor:
        rows = F.normalize(features, dim=-1) if self.unit_length else features
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            rows = F.linear(rows.relu() if i else rows, weight, bias)
        return rows

    @property
    def layers(self) -> list[Layer]:
        """Weight and bias of each layer."""
        return [(weight.data, bias.data) for weight, bias in zip(self.weights, self.biases)]

    def of_classes(self, classes: Sequence[int]) -> "Head":
        """Return the classifier of some of the classes."""
        *inner, (weight, bias) = self.layers
        chosen = torch.as_tensor(classes)
        return Head([*inner, (weight[chosen], bias[chosen])], self.unit_length)

    def shifted(self, shift: Tensor) -> "Head":
        """Return the classifier with `shift` (n_classes,) added to its scores."""
        *inner, (weight, bias) = self.layers
        return Head([*inner, (weight, bias + shift)], self.unit_length)

    @staticmethod
    def of_state(state: dict[str, Tensor], unit_length: bool) -> "Head":
        """Return the classifier with the state dict `state`, which `fits` has approved."""
        return Head([(state[f"weights.{i}"], state[f"biases.{i}"]) for i in range(len(state) // 2)], unit_length)

    @staticmethod
    def fits(state: dict[str, Tensor], dim: int, n_classes: int) -> bool:
        """Whether a state dict is that of a classifier of features (N, dim) with `n_classes` classes."""
        n_layers, width = len(state) // 2, dim
        if state.keys() != {f"{part}.{i}" for part in ("weights", "biases") for i in range(n_layers)}:
            return False
        for i in range(n_layers):
            weight, bias = state[f"weights.{i}"], state[f"biases.{i}"]
            if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                return False
            width = len(weight)
        return width == n_classes
