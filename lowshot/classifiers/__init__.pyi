"""Low-shot classifiers and few-shot methods."""

from .estimators import FewShotClassifier as FewShotClassifier
from .estimators import LowShotClassifier as LowShotClassifier
from .estimators import few_shot_scores as few_shot_scores
from .methods import CLASSIFIERS as CLASSIFIERS
from .methods import METHODS as METHODS
from .problem import Problem as Problem
from .problem import Run as Run
from .tasks import Tasks as Tasks
from .transform import apply_transform as apply_transform
from .transform import fit_transform as fit_transform
from .transform import transformed_mean as transformed_mean
