"""Low-shot classifiers and few-shot methods."""

from .estimators import FewShotClassifier as FewShotClassifier
from .estimators import LowShotClassifier as LowShotClassifier
from .estimators import few_shot_scores as few_shot_scores
from .heads import Head as Head
from .methods import fit_classifier as fit_classifier
from .methods import fit_head as fit_head
from .methods import is_joint as is_joint
from .methods import score_tasks as score_tasks
from .problem import Problem as Problem
from .problem import Run as Run
from .settings import CosineOptions as CosineOptions
from .settings import FeatureTransform as FeatureTransform
from .settings import LaplacianShotOptions as LaplacianShotOptions
from .settings import LogisticOptions as LogisticOptions
from .settings import MLPOptions as MLPOptions
from .settings import NearestMeanOptions as NearestMeanOptions
from .settings import PTMapOptions as PTMapOptions
from .settings import RefinementOptions as RefinementOptions
from .settings import SGDOptions as SGDOptions
from .settings import SupportLogisticOptions as SupportLogisticOptions
from .tasks import Tasks as Tasks
from .transform import apply_transform as apply_transform
from .transform import fitted_transform as fitted_transform
from .transform import transformed_mean as transformed_mean
