"""Where feature-space work runs. (Image training gets its device, precision and processes from Lightning Fabric.)"""

import torch


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
