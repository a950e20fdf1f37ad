"""Stopping on request. SIGTERM, which clusters send, stops a stage like Ctrl-C.

Interrupted work records what it keeps as a note on the exception (`BaseException.add_note`); `core.cli` prints it.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """SIGTERM. `code` is the exit code that shells expect."""

    code = 128 + signal.SIGTERM


@contextmanager
def stopping() -> Iterator[None]:
    """Within the block, SIGTERM raises `Terminated`."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> None:
    raise Terminated
