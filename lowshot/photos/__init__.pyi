"""Classifiers of photos: from a few photos per class to names, and how far they can be trusted."""

from .accuracy import Accuracy as Accuracy
from .classifier import PhotoClassifier as PhotoClassifier
from .classifier import Support as Support
from .classifier import load_classifier as load_classifier
from .classifier import save_classifier as save_classifier
from .judging import Judged as Judged
from .judging import judge as judge
from .keeping import check_kept as check_kept
from .keeping import extractor_of_features as extractor_of_features
from .keeping import learn_jointly as learn_jointly
from .learning import Learned as Learned
from .learning import learn as learn
from .learning import sizes_of as sizes_of
from .onnx import check_onnx as check_onnx
from .onnx import description_of as description_of
from .onnx import export_onnx as export_onnx
from .typicality import Typicality as Typicality
from .typicality import typicality_of as typicality_of
