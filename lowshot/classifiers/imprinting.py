"""Weight imprinting: the weight of a novel class is the direction of its shots, beside learned weights of base classes.

Source: Qi, Brown & Lowe, CVPR 2018. Scores are a scale times the cosine of feature and weight.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lowshot.classifiers.cosine import trained_weights
from lowshot.classifiers.own_head import own_classifier
from lowshot.classifiers.problem import Problem, Run, Scorer, as_one_task, cosine_scorer
from lowshot.classifiers.settings import ImprintingOptions
from lowshot.classifiers.tasks import class_means
from lowshot.core.errors import InputError
from lowshot.representation.backbones import CosineHead


def fit_imprinting(problem: Problem, options: ImprintingOptions, seed: int, device: str) -> Scorer:
    """Imprint the novel classes of each run, rows that were added included.

    The weight of a novel class is the mean of its unit-length rows, at unit length. Classes outside the setup score
    minus infinity. Departs from the paper in three points:

    - The features are given. The weights of base classes are those of the extractor's own cosine head
      (`options.extractor`), or are trained as in `score_cosine`, once for all runs.
    - The scale of trained weights is a setting.
    - There is no fine-tuning after imprinting.

    Raises InputError if the extractor has no cosine head, or its dimensions or classes differ from the problem's.
    """
    base, scale = _base_weights(problem, options, seed, device)
    weights = [torch.cat([base.to(device), _imprinted(run, device)]) for run in problem.runs]
    return cosine_scorer(problem, [scale * F.normalize(one, dim=-1) for one in weights])


def _base_weights(problem: Problem, options: ImprintingOptions, seed: int, device: str) -> tuple[Tensor, float]:
    """Return the weights of the base classes (n_base_classes, D), in the order of the classes, and the scale."""
    if options.extractor is None:
        rows, labels, n_way = as_one_task(problem.base_feats, problem.base_labels, device)
        return trained_weights(rows, labels, n_way, options, seed)[0], options.scale
    head = own_classifier(problem, options.extractor)
    if not isinstance(head, CosineHead):
        raise InputError(f"{options.extractor}: has no cosine head. Leave it out: base weights are then trained")
    return head.weight.detach()[torch.from_numpy(np.unique(problem.base_labels))], head.scale.item()


def _imprinted(run: Run, device: str) -> Tensor:
    """Return the mean unit-length row of each class of a run, (n_novel_classes, D), in the order of the classes."""
    rows, labels, n_way = as_one_task(run.feats, run.labels, device)
    return class_means(F.normalize(rows, dim=-1), labels, n_way)[0]
