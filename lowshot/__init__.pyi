"""Low-shot visual recognition: one pipeline, one split and one evaluator."""

from . import classifiers as classifiers
from . import core as core
from . import data as data
from . import diffusion as diffusion
from . import evaluation as evaluation
from . import gan as gan
from . import hallucination as hallucination
from . import matching as matching
from . import photos as photos
from . import report as report
from . import representation as representation
from . import scgm as scgm
from .classifiers.estimators import FewShotClassifier as FewShotClassifier
from .classifiers.estimators import LowShotClassifier as LowShotClassifier
from .classifiers.estimators import few_shot_scores as few_shot_scores
from .classifiers.settings import FeatureTransform as FeatureTransform
from .core.errors import InputError as InputError
from .data.datasets.images import read_images as read_images
from .data.features import read_features as read_features
from .data.protocol import read_split as read_split
from .photos.classifier import load_classifier as load_classifier
from .report.results import read_results as read_results
from .representation.extractors import embed as embed
from .representation.extractors import open_extractor as open_extractor

__version__: str
