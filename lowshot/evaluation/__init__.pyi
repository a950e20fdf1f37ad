"""The low-shot benchmark, few-shot episodes, selection of settings, predictions."""

from .episodes import evaluate as evaluate
from .episodes import make_pool as make_pool
from .episodes import tasks_digest as tasks_digest
from .prediction import PhotoClassifier as PhotoClassifier
from .prediction import load_classifier as load_classifier
from .prediction import save_classifier as save_classifier
from .ranks import Keep as Keep
from .ranks import classifier_ranks as classifier_ranks
from .ranks import few_shot_ranks as few_shot_ranks
from .ranks import ranks_in_chunks as ranks_in_chunks
from .ranks import true_class_ranks as true_class_ranks
