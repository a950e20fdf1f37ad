"""Worker processes: how many, and the server that they are forked from."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext

# Estimate: with this number of megapixel images, two workers save what their server takes to start (docs/LOG.md).
FEWEST_ITEMS = 1000
_MOST_WORKERS = 8
# Slow to import, so the server does it once. A fork of the process itself would inherit the locks of its threads.
_PRELOADED = ["torchvision.transforms.v2", "timm.data"]


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def n_workers(chosen: int | None, n_items: int, n_processes: int = 1) -> int:
    """Return the chosen number of workers for `n_items`, none if there are no items.

    If None is chosen, there are none for few items, else one per core, at most 8. `n_processes` share the cores.
    """
    if chosen is not None:
        return chosen if n_items else 0
    n_cores = available_cores() // n_processes
    return min(_MOST_WORKERS, n_cores) if n_cores > 1 and n_items >= FEWEST_ITEMS else 0


def start_ahead(chosen: int | None, n_items: int, n_processes: int = 1) -> None:
    """Start the server of the workers, if there will be any, so that it imports torch while this process does."""
    if n_workers(chosen, n_items, n_processes):
        worker_context()


def worker_context() -> BaseContext:
    """Return the context in which workers are started, with its server running."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with _interrupts_blocked():
        forkserver.ensure_running()
    return context


def end_with_parent(*_: object) -> None:
    """Let this worker end when the process that uses it is killed. torch watches the worker's parent, but that is the
    server, which lives as long as its workers."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT. Processes started within the block inherit this: Ctrl-C is for the process that stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
