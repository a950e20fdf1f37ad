"""What every stage does: artifacts, command line, errors, seeds, devices, checkpoints."""

from .progress import Progress as Progress
from .runtime import Processes as Processes
from .runtime import open_fabric as open_fabric
from .runtime import open_processes as open_processes
from .runtime import pick_device as pick_device
from .training import refuse_other_run as refuse_other_run
from .training import training_run as training_run
