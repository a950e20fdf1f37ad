"""Analogies between clusters of base classes, and generators of features trained on them."""

from .calibration import CalibratedRows as CalibratedRows
from .clustering import cluster_classes as cluster_classes
from .clustering import clustering_scores as clustering_scores
from .generators import Hallucinator as Hallucinator
from .generators import save_generator as save_generator
from .quadruplets import RULES as RULES
from .quadruplets import Quadruplets as Quadruplets
from .quadruplets import mine as mine
from .quadruplets import partner_classes as partner_classes
from .quadruplets import read_quadruplets as read_quadruplets
from .quadruplets import write_quadruplets as write_quadruplets
from .training import GeneratorTrainer as GeneratorTrainer
from .training import build_critic as build_critic
from .training import build_generator as build_generator
from .training import chosen_rule as chosen_rule
