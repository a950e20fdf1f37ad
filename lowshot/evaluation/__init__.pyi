"""The low-shot benchmark, few-shot episodes, selection of settings."""

from .episodes import evaluate_episodes as evaluate_episodes
from .episodes import make_pool as make_pool
from .episodes import tasks_digest as tasks_digest
from .ranks import ranks_in_chunks as ranks_in_chunks
from .ranks import true_class_ranks as true_class_ranks
from .runs import Keep as Keep
from .runs import rank_runs as rank_runs
