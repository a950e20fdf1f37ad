"""Keep a classifier of the low-shot benchmark, which has learned from features, as one that can name images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowshot.classifiers.heads import Head
from lowshot.classifiers.methods import fit_classifier, fit_head, is_joint
from lowshot.classifiers.problem import Problem
from lowshot.classifiers.settings import (
    BENCHMARK_CLASSIFIERS,
    AttentionOptions,
    BalancedSGDOptions,
    CosineOptions,
    ImprintingOptions,
    LogisticOptions,
    LogitAdjustedOptions,
    MLPOptions,
    NearestMeanOptions,
    SGDOptions,
)
from lowshot.core.artifacts import stored_recipe
from lowshot.core.errors import InputError
from lowshot.core.files import digest
from lowshot.data.features import views_of
from lowshot.evaluation.runs import seed_of_run
from lowshot.photos.typicality import Typicality, typicality_of
from lowshot.representation.backbones import Extractor
from lowshot.representation.extractors import drop_projection, fingerprint, open_extractor
from lowshot.representation.settings import ExtractorChoice
from lowshot.representation.timm_models import PREFIX

_KEPT = (SGDOptions, BalancedSGDOptions, LogisticOptions, LogitAdjustedOptions, ImprintingOptions, AttentionOptions,
         MLPOptions, NearestMeanOptions, CosineOptions)  # fmt: skip


def check_kept(classifier: Any, features: Path, folder: Path | None) -> None:
    """Raise InputError if a classifier cannot be kept, or the extractor of the features cannot be found."""
    if type(classifier) not in _KEPT:
        name = BENCHMARK_CLASSIFIERS.name_of(classifier)
        raise InputError(f"--classifier_out: {name} cannot be kept. Use linear_sgd, logistic_regression, mlp, "
                         "balanced_sgd, logit_adjusted, imprinting, attention, nearest_mean or cosine")  # fmt: skip
    made_from = stored_recipe(features)
    config, known = made_from["config"], made_from["inputs"].get("extractor")
    if known is None:
        raise InputError(f"{features}: does not say which extractor made it. Use features of save_features.py")
    if views_of(config):
        raise InputError(f"{features}: averaged over views. Use features without --views (save_features.py)")
    timm = config.get("timm")
    if timm and timm.get("resize"):
        raise InputError(f"{features}: made of stretched pixels. Use features of images on disk (save_features.py)")
    place = _folder(features, folder)
    if not timm and (not place.is_dir() or digest(place) != known):
        raise InputError(f"{place}: is not the extractor of {features}. Name its folder: --classifier_extractor")


def _folder(features: Path, folder: Path | None) -> Path:
    return folder or features.resolve().parent.with_name("extractor")


def extractor_of_features(features: Path, folder: Path | None, weights: Path | None) -> tuple[Extractor, bool]:
    """Open the extractor that made a feature file, and return it and whether it saw inverted images.

    It is the one in `folder`, by default in `extractor` beside the folder of the features, or a timm model, by default
    with the weights that timm downloads. `check_kept` has approved it. Raises InputError for other weights.
    """
    made_from = stored_recipe(features)
    config = made_from["config"]
    if timm := config.get("timm"):
        model = open_extractor(f"{PREFIX}{timm['name']}", weights=weights, image_size=timm.get("image_size"))
        if fingerprint(model) != made_from["inputs"]["extractor"]:
            raise InputError(f"{features}: made with other weights of {timm['name']}. Name them: --classifier_weights")
    else:
        model = open_extractor(_folder(features, folder))
    if config.get("layer") == "trunk":
        drop_projection(model, ExtractorChoice(extractor=folder))
    return model, bool(config.get("invert"))


def learn_jointly(
    classifier: Any, problem: Problem, classes: np.ndarray, seed: int, device: str, novel_bias: float = 0.0
) -> tuple[Head, Typicality]:
    """Fit a classifier of the benchmark to the only run of `problem`.

    Returns it with outputs for `classes` (C,), ascending, and what is typical of them. It is the same as in
    `evaluate_runs`. `novel_bias` is added to the outputs of novel classes.
    """
    features = torch.from_numpy(np.concatenate([problem.base_feats, problem.runs[0].feats]))
    labels = np.searchsorted(classes, np.concatenate([problem.base_labels, problem.runs[0].labels]))
    labels = torch.from_numpy(labels.astype(np.int64))
    if is_joint(classifier):
        head = fit_classifier(classifier, problem, seed, device).head(0).of_classes(classes)
    else:
        head = fit_head(classifier, features, labels, len(classes), seed_of_run(seed, classifier, problem.runs[0]))
    is_novel = torch.from_numpy(np.isin(classes, problem.runs[0].labels))
    return head.shifted(novel_bias * is_novel), typicality_of(features, labels, len(classes))
