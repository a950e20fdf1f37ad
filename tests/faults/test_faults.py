"""A part of benchmarks/faults.py: stages that are killed, interrupted, run twice at once, or find the disk full; files
that are damaged.

One stage of each kind: a folder, a training, a file that is written block by block, results with scores, a choice of
settings, and a table with its record.
"""

import pytest
from hypothesis import HealthCheck, given, settings

from faults import faults, flips, fuzz, readers
from faults.harness import Server, compiled
from faults.stages import cases, make_images
from lowshot.core.errors import InputError

NAMES = ["preprocessing", "train_analogy_generator", "save_features", "low_shot --scores", "low_shot --select",
         "predict classify"]  # fmt: skip
_FAULTS = [faults.killed, faults.full, faults.interrupted, faults.raced, faults.beside]


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The server, and the cases by name, with their inputs made."""
    folder = tmp_path_factory.mktemp("faults")
    library = compiled(folder)
    if library is None:
        pytest.skip("needs Linux and a C compiler (cc)")
    made = cases(folder / "out", make_images(folder / "images"))
    with Server(library) as server:
        for case in made:
            if case.name in {*NAMES, *readers.NEEDED}:
                done = server.run(case.words, folder / "out")
                assert done.code == 0, done.error
        yield server, {case.name: case for case in made}


def test_odd_names_of_folders_work_in_every_stage(stages, tmp_path):
    folder = tmp_path / "--blank {brace} 'quote' \"quote\" $x *ä#"
    folder.mkdir()
    for case in cases(folder / "-out", make_images(folder / "-images")):
        done = stages[0].run(case.words, folder)
        assert done.code == 0, f"{case.name}: {done.error}"


@pytest.fixture(scope="module")
def honest(stages, tmp_path_factory):
    """The readers by name."""
    made = readers.readers(stages[1]["preprocessing"].out.parent, tmp_path_factory.mktemp("honest"))
    return {reader.name: reader for reader in made}


def spread(numbers, n):
    """Return about `n` of the numbers, the last one included."""
    return sorted({*numbers[:: max(1, len(numbers) // n)], *numbers[-1:]})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", _FAULTS)
def test_a_fault_costs_nothing(stages, name, fault):
    server, known = stages
    calls = faults.calls_of(server, known[name])
    numbers = faults.space(calls) if fault is faults.full else faults.chosen(calls, 4)
    assert numbers
    assert not any(fault(server, known[name], spread(numbers, 3)))


def test_two_processes_that_stand_anywhere(stages):
    server, known = stages
    case = known["low_shot --select"]
    calls = faults.calls_of(server, case)
    assert not any(faults.interleaved(server, case, [1, len(calls) // 2]))


@pytest.mark.parametrize("name", NAMES)
def test_a_kill_at_any_moment_costs_nothing(stages, name):
    server, known = stages
    assert not any(faults.killed_at_random(server, known[name], 2))


def test_an_old_output_survives_a_full_disk(stages):
    server, known = stages
    case = known["low_shot --scores"]
    assert not any(faults.full(server, case, spread(faults.space(faults.calls_of(server, case)), 4), overwriting=True))


def test_a_fault_that_costs_something_is_found(stages, monkeypatch):
    """The harness itself: a published file that is not complete, and a stray one, are violations."""
    server, known = stages
    monkeypatch.setattr(faults, "reference", lambda server, case: {"data/config.json": b"other"})
    violations = faults.killed(server, known["preprocessing"], [3])
    assert len(violations) == 1 and "other content of data/SHA256SUMS" in violations[0]


@pytest.mark.parametrize("name", readers.NAMES)
def test_damaged_files_are_one_line(honest, name):
    reader = honest[name]
    whole = fuzz.outcome(reader, reader.honest)
    assert not whole.violation

    @settings(max_examples=15, database=None, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(reader.damaged(reader.honest))
    def read(content):
        assert not fuzz.violation(fuzz.outcome(reader, content), whole)

    read()


def crashes(path):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSEGV)


def fails(path):
    raise KeyError("a traceback")


def hogs(path):
    bytearray(800 << 20)  # far more than the pages that a busy machine may take from this process meanwhile


def refuses(path):
    raise InputError("one line")


@pytest.mark.parametrize("read, word", [(crashes, "signal 11"), (fails, "a traceback"), (hogs, "MiB"), (refuses, "")])
def test_what_a_bad_reader_does_is_found(tmp_path, read, word):
    reader = fuzz.Reader("bad", tmp_path / "x", b"x", read, None)
    found = fuzz.violation(fuzz.outcome(reader, b"y"), fuzz.Outcome("", 0))
    assert word in found and bool(found) == bool(word)


@pytest.mark.parametrize("name", [*NAMES, "train_extractor", "build_graph complete test", "predict fit"])
def test_flipped_bits_are_noticed(stages, name, tmp_path):
    assert flips.unnoticed(stages[1][name].out, tmp_path, 40) == []


def test_a_bit_that_is_not_noticed_is_found(stages, tmp_path, monkeypatch):
    monkeypatch.setattr(flips, "verify", lambda path: None)
    assert len(flips.unnoticed(stages[1]["save_features"].out, tmp_path, 10)) == 10
