"""The classifier that an extractor was trained with: nothing is learned from the benchmark's rows."""

import torch

from lowshot.classifiers.problem import Problem, Scorer
from lowshot.classifiers.settings import OwnHead
from lowshot.core.errors import InputError
from lowshot.representation.backbones import load_head


def load_own_head(problem: Problem, options: OwnHead, seed: int, device: str) -> Scorer:
    """Scores of the head in the folder of an extractor, the same for all runs.

    Raises InputError if it has none, or one for other features or classes than the problem's.
    """
    classifier, dim, n_classes = load_head(options.extractor)
    if (dim, n_classes) != (problem.dim, problem.n_classes):
        needed = f"{problem.n_classes} from {problem.dim}"
        form = f"{n_classes} classes from {dim} dimensions"
        raise InputError(f"{options.extractor}: its head is for {form}, not for {needed}")
    head = classifier.to(device)

    @torch.inference_mode()
    def score(feats: torch.Tensor) -> torch.Tensor:
        return head(feats).expand(len(problem.runs), -1, -1)

    return score
