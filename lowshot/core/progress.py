"""Progress of long work: a bar on a terminal, a line per minute in a log file, a notice before hours of work."""

import sys
from typing import Any

from tqdm import tqdm

_LINE_SECONDS = 60  # between two lines of a log file
_STEADY_SECONDS = 20  # of work, before its length is estimated
_LONG_SECONDS = 1800  # left, from which on a notice is printed


class Progress(tqdm):
    """tqdm for every loop that may take long.

    In a log file, work of less than a minute prints nothing. `resumable` means that the same command continues after an
    interruption. All other arguments are those of tqdm.
    """

    def __init__(
        self,
        iterable: Any = None,
        desc: str | None = None,
        total: float | None = None,
        *,
        resumable: bool = False,
        **options: Any,
    ) -> None:
        self.on_terminal, self.resumable, self.announced = sys.stderr.isatty(), resumable, False
        self.prelude = (0.0, 0, 1)  # seconds, and the first iteration and number of iterations that they served
        if not self.on_terminal:
            # With one iteration as the least between two lines, tqdm's monitor thread does not print lines of its own.
            options |= {"mininterval": _LINE_SECONDS, "miniters": 1, "leave": False}
        super().__init__(iterable, desc, total, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Called by tqdm whenever the state should be shown."""
        if not self.announced and (notice := self._notice()):
            self.announced = True
            say(notice)
        if self.on_terminal:
            return super().display(msg, pos)
        if msg is None and self._elapsed() >= _LINE_SECONDS:
            print(self._line(), file=sys.stderr, flush=True)
        return False

    def spread(self, seconds: float, n: int) -> None:
        """Spread `seconds` that were spent on the next `n` iterations over them, in estimates of the time left."""
        self.prelude = (seconds, self.n, n)

    def _elapsed(self) -> float:
        return self._time() - self.start_t if hasattr(self, "start_t") else 0.0  # tqdm calls display before it starts

    def _seconds_left(self) -> float | None:
        """Return None if it is unknown."""
        if not self.total or self.n <= self.initial:
            return None
        seconds, first, n = self.prelude
        unused = seconds * max(0, 1 - (self.n - first) / n)
        return (self.total - self.n) * (self._elapsed() - unused) / (self.n - self.initial)

    def _notice(self) -> str | None:
        left = self._seconds_left()
        if left is None or left < _LONG_SECONDS or self._elapsed() < _STEADY_SECONDS:
            return None
        stop = "; Ctrl-C stops it, and the same command continues later" if self.resumable else ""
        return f"{self._name()}: about {duration(left)} to go{stop}"

    def _line(self) -> str:
        left, share = self._seconds_left(), f" ({self.n / self.total:.0%})" if self.total else ""
        of = f" of {self.total}" if self.total else ""
        parts = [f"{self.n}{of} {_plural(self.unit)}{share}", left and f"about {duration(left)} left", self.postfix]
        return f"{self._name()}: {', '.join(filter(None, parts))}"

    def _name(self) -> str:
        return (self.desc or "progress").removesuffix(": ")  # added by tqdm


def say(text: str) -> None:
    """Print a line on stderr, above the bars of a terminal."""
    if sys.stderr.isatty():
        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


def _plural(unit: str) -> str:
    return unit + ("es" if unit.endswith(("s", "ch")) else "s")


def duration(seconds: float) -> str:
    """Return a duration in words: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if 60 * hours + minutes < 90:
        return f"{60 * hours + minutes} min"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
