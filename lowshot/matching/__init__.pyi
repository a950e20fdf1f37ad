"""Matching networks."""

from .network import ClassRows as ClassRows
from .network import MatchingNetwork as MatchingNetwork
from .network import load_matching as load_matching
from .network import matching_scorer as matching_scorer
from .network import runs_at_once as runs_at_once
from .network import save_matching as save_matching
from .network import support_rows as support_rows
from .training import MatchingTrainer as MatchingTrainer
