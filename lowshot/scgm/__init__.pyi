"""Extractors that learn classes from superclasses."""

from .model import ScgmModel as ScgmModel
from .training import ScgmTrainer as ScgmTrainer
from .training import build_model as build_model
