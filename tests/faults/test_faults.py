"""A part of benchmarks/faults.py: stages that are killed, interrupted, run twice at once, or find the disk full.

One stage of each kind: a folder, a training, a file that is written block by block, results with scores, a choice of
settings, and a table with its record.
"""

import pytest

from faults import faults
from faults.harness import Server, compiled
from faults.stages import cases, make_images

NAMES = ["preprocessing", "train_analogy_generator", "save_features", "low_shot --scores", "low_shot --select",
         "predict classify"]  # fmt: skip


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
            if case.name in {*NAMES, "train_extractor", "make_quadruplet", "predict fit"}:
                done = server.run(case.words, folder / "out")
                assert done.code == 0, done.error
        yield server, {case.name: case for case in made}


def spread(numbers, n):
    """Return about `n` of the numbers, the last one included."""
    return sorted({*numbers[:: max(1, len(numbers) // n)], *numbers[-1:]})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", [faults.killed, faults.full, faults.interrupted, faults.raced])
def test_a_fault_costs_nothing(stages, name, fault):
    server, known = stages
    calls = faults.calls_of(server, known[name])
    numbers = faults.space(calls) if fault is faults.full else faults.chosen(calls, 4)
    assert fault(server, known[name], spread(numbers, 5)) == []


def test_an_old_output_survives_a_full_disk(stages):
    server, known = stages
    case = known["low_shot --scores"]
    assert faults.full(server, case, spread(faults.space(faults.calls_of(server, case)), 6), overwriting=True) == []


def test_a_fault_that_costs_something_is_found(stages, monkeypatch):
    """The harness itself: a published file that is not complete, and a stray one, are violations."""
    server, known = stages
    monkeypatch.setattr(faults, "reference", lambda server, case: {"data/config.json": b"other"})
    violations = faults.killed(server, known["preprocessing"], [3])
    assert len(violations) == 1 and "other content of data/SHA256SUMS" in violations[0]
