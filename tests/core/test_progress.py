"""Progress: a line per minute in a log file, nothing for short work, and a notice before hours."""

import pytest

from lowshot.core import progress
from lowshot.core.progress import Progress, duration


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.tqdm, "monitor_interval", 0)
        monkeypatch.setattr("tqdm.std.time", lambda: self.now)

    def __call__(self, bar, seconds, n=1):
        self.now += seconds
        bar.update(n)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_short_work_is_silent_in_a_log(clock, capsys):
    with Progress(total=10, desc="work", unit="step") as bar:
        for _ in range(10):
            clock(bar, 5)
    assert capsys.readouterr().err == ""


def test_long_work_has_a_line_a_minute_in_a_log(clock, capsys):
    with Progress(total=40, unit="step") as bar:
        bar.set_description("epoch 1/2", refresh=False)
        bar.set_postfix(loss="0.5", refresh=False)
        for _ in range(40):
            clock(bar, 5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "epoch 1/2: 12 of 40 steps (30%), about 2 min left, loss=0.5"
    assert len(lines) == 3


def test_work_before_an_epoch_counts_for_all_its_steps(clock, capsys):
    with Progress(total=100, desc="training", unit="step") as bar:
        for _ in range(2):
            clock.now += 50  # such as an E-step; 10 s a step with it, 5 s without
            bar.spread(50, n=10)
            for _ in range(10):
                clock(bar, 5)
    assert capsys.readouterr().err.splitlines() == [
        "training: 2 of 100 steps (2%), about 16 min left",
        "training: 11 of 100 steps (11%), about 15 min left",
    ]


def test_tqdm_monitor_prints_no_lines_of_its_own(clock):
    with Progress(total=40, unit="step") as bar:
        for _ in range(40):
            clock(bar, 5)
            assert bar.miniters == 1  # the monitor refreshes bars with more


def test_work_without_a_known_length(clock, capsys):
    for _ in Progress(clock_in_steps(clock, 3, 50), "reading", unit="batch"):
        pass
    assert capsys.readouterr().err == "reading: 3 batches\n"


def clock_in_steps(clock, n, seconds):
    for i in range(n):
        clock.now += seconds * (i > 0)
        yield i


@pytest.mark.parametrize("resumable", [True, False])
def test_hours_are_announced_once(clock, capsys, resumable):
    with Progress(total=1000, initial=400, desc="epoch 1/9", unit="step", resumable=resumable) as bar:
        for _ in range(10):
            clock(bar, 30)
    lines = capsys.readouterr().err.splitlines()
    stop = "; Ctrl-C stops it, and the same command continues later" if resumable else ""
    assert lines[0] == f"epoch 1/9: about 4 h 59 min to go{stop}"
    assert [line for line in lines if "to go" in line] == lines[:1]


def test_on_a_terminal_it_is_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress(total=4, desc="work", unit="step") as bar:
        for _ in range(4):
            clock(bar, 1)
    assert "100%|" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5300, "88 min"), (5400, "1 h 30 min")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words
