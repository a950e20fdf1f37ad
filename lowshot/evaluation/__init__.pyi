"""The low-shot benchmark, few-shot episodes, selection of settings."""

from .episodes import evaluate_episodes as evaluate_episodes
from .episodes import make_pool as make_pool
from .episodes import tasks_digest as tasks_digest
from .given import evaluate_given as evaluate_given
from .outcomes import Outcomes as Outcomes
from .ranks import outcomes_in_chunks as outcomes_in_chunks
from .ranks import outcomes_of as outcomes_of
from .runs import Keep as Keep
from .runs import evaluate_runs as evaluate_runs
from .unlabelled import PoolRows as PoolRows
