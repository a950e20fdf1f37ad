"""The classifier that an extractor was trained with. It learns nothing from the rows of the benchmark."""

from pathlib import Path

import torch
from torch import nn

from lowshot.classifiers.problem import Problem, Scorer
from lowshot.classifiers.settings import OwnHead
from lowshot.core.errors import InputError
from lowshot.representation.backbones import load_head


def load_own_head(problem: Problem, options: OwnHead, seed: int, device: str) -> Scorer:
    """Return the scorer of the head in an extractor folder, the same for all runs. Raises as `own_classifier` does."""
    head = own_classifier(problem, options.extractor).to(device)

    @torch.inference_mode()
    def score(feats: torch.Tensor) -> torch.Tensor:
        return head(feats).expand(len(problem.runs), -1, -1)

    return score


def own_classifier(problem: Problem, folder: Path) -> nn.Module:
    """Return the classifier of the extractor in `folder`, in evaluation mode.

    Raises InputError if there is none, or if its dimensions or classes differ from the problem's.
    """
    classifier, dim, n_classes = load_head(folder)
    if (dim, n_classes) != (problem.dim, problem.n_classes):
        form = f"{n_classes} classes and {dim} dimensions"
        data = f"{problem.n_classes} classes and {problem.dim} dimensions"
        raise InputError(
            f"{folder}: the head has {form}, but the data has {data}. Use the split and the features of this extractor"
        )
    return classifier
