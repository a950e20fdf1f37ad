"""Random streams that depend on their purpose, never on batch size, worker count or number of processes."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _entropy(seed: int, key: tuple[int | str, ...]) -> np.random.SeedSequence:
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in key]
    return np.random.SeedSequence([int(seed), *words])


def stream(seed: int, *key: int | str) -> np.random.Generator:
    """Return the NumPy generator for `key`, e.g. ``stream(seed, "draws", trial, class_id)``."""
    return np.random.default_rng(_entropy(seed, key))


def torch_stream(seed: int, *key: int | str) -> torch.Generator:
    """Return the CPU torch generator for `key`."""
    import torch  # takes a second to import, and most streams do not need it

    state = _entropy(seed, key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state & np.uint64(2**63 - 1)))
