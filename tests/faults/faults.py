"""What is done to a stage, and what must be true afterwards.

Each function returns, for each try, what went wrong in words, or nothing.
"""

import random
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults.harness import FULL, INTERRUPT, KILL, STOP, Outcome, Server, contents, scratch
from faults.stages import Case


@contextmanager
def _fresh(case: Case) -> Iterator[tuple[Case, Path]]:
    """Yield the stage with its outputs in a new folder, and the folder."""
    folder = scratch()
    yield case.into(folder), folder
    shutil.rmtree(folder)


def killed(server: Server, case: Case, at: Iterable[int]) -> list[str]:
    """Kill the stage at each of the calls `at`. One more run must make the same output, and leave nothing else."""
    expected, tries = reference(server, case), []
    for n in at:
        with _fresh(case) as (here, folder):
            first = server.run(here.words, folder, KILL, n)
            tries.append(_same_after(server, here, folder, expected, f"killed at call {n} ({_name(first)})"))
    return _in_words(tries)


def killed_at_random(server: Server, case: Case, n: int, seed: int = 0) -> list[str]:
    """Kill the stage `n` times at a random moment of its run. One more run must make the same output."""
    expected, tries, generator = reference(server, case), [], random.Random(seed)
    start = time.perf_counter()
    calls_of(server, case)
    seconds = time.perf_counter() - start
    for _ in range(n):
        with _fresh(case) as (here, folder):
            pid = server.start(here.words, folder)
            moment = generator.uniform(0, seconds)
            time.sleep(moment)
            server.kill(pid)
            server.wait(pid)
            tries.append(_same_after(server, here, folder, expected, f"killed after {moment:.3f} s"))
    return _in_words(tries)


def full(server: Server, case: Case, at: Iterable[int], overwriting: bool = False) -> list[str]:
    """Fill the disk from each of the calls `at` on. The stage must end with one line and exit code 2, and leave an
    existing output as it was; one more run must make the same output.
    """
    expected, tries = reference(server, case), []
    for n in at:
        with _fresh(case) as (here, folder):
            if overwriting:
                server.run(here.words, folder)
            before, wrong = contents(folder), []
            words = here.overwriting if overwriting else here.words
            done = server.run(words, folder, FULL, n)
            what = f"disk full from call {n} ({_name(done)})"
            if done.code != 0:
                wrong += _one_line(done, what)
                found = contents(folder)
                if any(found.get(name) not in (old, expected[name]) for name, old in before.items()):
                    wrong.append(f"{what}: the existing output has changed")
            tries.append(wrong + _same_after(server, here, folder, expected, what))
    return _in_words(tries)


def interrupted(server: Server, case: Case, at: Iterable[int]) -> list[str]:
    """Press Ctrl-C at each of the calls `at`. The stage must end with one line and exit code 130, or be complete."""
    expected, tries = reference(server, case), []
    for n in at:
        with _fresh(case) as (here, folder):
            done, wrong = server.run(here.words, folder, INTERRUPT, n), []
            what = f"interrupted at call {n} ({_name(done)})"
            if done.code not in (0, 130):
                wrong.append(f"{what}: exit code {done.code}: {done.error.strip()[-300:]}")
            elif done.code == 130 and (len(_lines(done)) != 1 or "stopped" not in done.error):
                wrong.append(f"{what}: not one line: {done.error.strip()[-300:]}")
            elif done.code == 0 and contents(folder) != expected:
                wrong.append(f"{what}: lost, and the output is not complete")
            tries.append(wrong + _same_after(server, here, folder, expected, what))
    return _in_words(tries)


def raced(server: Server, case: Case, at: Iterable[int]) -> list[str]:
    """Stop a first process at each of the calls `at`, run a second one, and let the first go on. The output must be
    that of one of them, and complete.
    """
    expected, tries = reference(server, case), []
    for n in at:
        with _fresh(case) as (here, folder):
            first, wrong = server.start(here.words, folder, STOP, n), []
            what = f"two processes, the first stands at call {n}"
            if server.until_stopped(first):
                second = server.run(here.words, folder)
                wrong += _won_or_refused(second, f"{what}: the second")
                server.resume(first)
            wrong += _won_or_refused(server.wait(first), f"{what}: the first")
            tries.append(wrong + _differences(folder, expected, what))
    return _in_words(tries)


def interleaved(server: Server, case: Case, at: Iterable[int]) -> list[str]:
    """Stop a first process at each of the calls `at`, and a second one at the calls 1, 2, 3, 5, 8, ... that it then
    makes. Let the first end, and then the second.
    """
    expected, tries = reference(server, case), []
    for n in at:
        for m in _widening():
            with _fresh(case) as (here, folder):
                what = f"two processes, the first stands at call {n}, the second at {m}"
                first = server.start(here.words, folder, STOP, n)
                first_stands = server.until_stopped(first)
                second = server.start(here.words, folder, STOP, m)
                second_stands = server.until_stopped(second)
                wrong = []
                for name, pid, stands in (("first", first, first_stands), ("second", second, second_stands)):
                    if stands:
                        server.resume(pid)
                    wrong += _won_or_refused(server.wait(pid), f"{what}: the {name}")
                tries.append(wrong + _differences(folder, expected, what))
            if not (first_stands and second_stands):
                break
    return _in_words(tries)


def _widening() -> Iterator[int]:
    n, following = 1, 2
    while True:
        yield n
        n, following = following, n + following


def _won_or_refused(done: Outcome, what: str) -> list[str]:
    if done.code == 0 or (done.code == 2 and "is being written by" in done.error):
        return []
    return [f"{what} ends with {done.code}: {done.error.strip()[-300:]}"]


def _in_words(tries: list[list[str]]) -> list[str]:
    """Return what went wrong in each try; empty if nothing did."""
    return ["; ".join(wrong) for wrong in tries]


# What users call their files beside an output, and what the stages have called theirs.
_ENDS = (".old", ".partial", ".lock", ".holder", ".journal", ".new", ".writing", ".tmp", ".bak", "~", ".json", ".h5")


def beside(server: Server, case: Case, at: Iterable[int]) -> list[str]:
    """Put files, folders and links of a user beside the output, with names that a stage might use for its own files.
    Kill the stage at each of the calls `at`, run it again, and make the output once more. All must still be there.
    """
    tries = []
    for i, n in enumerate(at):
        with _fresh(case) as (here, folder):
            before = {path: _content(path) for path in _put_files(folder, here, i)}
            server.run(here.words, folder, KILL, n)
            runs = [server.run(words, folder) for words in (here.words, here.overwriting)]
            wrong = [f"killed at call {n}: {done.error.strip()[-300:]}" for done in runs if done.code != 0]
            touched = [path.name for path, content in before.items() if _content(path) != content]
            tries.append(wrong + [f"killed at call {n}: {name} of the user was touched" for name in touched])
    return _in_words(tries)


def _content(path: Path) -> Any:
    return path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None


def _put_files(folder: Path, case: Case, kind: int) -> list[Path]:
    """Create files of the user, as files, in folders, or as links to a file elsewhere."""
    theirs, outputs = [], {case.out.name, *case.beside}
    aim = folder / "aim.txt"
    aim.write_text("the user's")
    names = {f"{name}{end}" for name in outputs for end in _ENDS}
    names |= {f"{Path(name).stem}.partial.h5" for name in outputs}
    for i, name in enumerate(sorted(names - outputs)):
        path = case.out.parent / name
        if (i + kind) % 3 == 0:
            path.mkdir()
            path = path / "notes.txt"
        if (i + kind) % 3 == 1:
            path.symlink_to(aim)
        else:
            path.write_text(f"the user's {name}")
        theirs.append(path)
    return [aim, *theirs]


_REFERENCES: dict[tuple, dict[str, bytes]] = {}


def reference(server: Server, case: Case) -> dict[str, bytes]:
    """Return the output of an undisturbed run."""
    key = case.name, str(case.out)
    if key not in _REFERENCES:
        with _fresh(case) as (here, folder):
            done = server.run(here.words, folder)
            assert done.code == 0, done.error
            _REFERENCES[key] = contents(folder)
    return _REFERENCES[key]


def calls_of(server: Server, case: Case) -> list[str]:
    """Return the names of the system calls of an undisturbed run."""
    with _fresh(case) as (here, folder):
        done = server.run(here.words, folder)
    assert done.code == 0, done.error
    return done.calls


def chosen(calls: list[str], n_writes: int) -> list[int]:
    """Return the numbers of all calls but writes, and of `n_writes` writes evenly spread."""
    writes = [n for n, name in enumerate(calls, start=1) if name == "write"]
    step = max(1, len(writes) // n_writes) if n_writes else len(writes) + 1
    return sorted({*(n for n, name in enumerate(calls, start=1) if name != "write"), *writes[::step]})


def space(calls: list[str]) -> list[int]:
    """Return the numbers of the calls that need disk space."""
    return [n for n, name in enumerate(calls, start=1) if name in ("write", "create", "allocate", "mkdir")]


def _same_after(server: Server, case: Case, folder: Path, expected: dict[str, bytes], what: str) -> list[str]:
    again = server.run(case.words, folder)
    if again.code != 0:
        return [f"{what}: the next run ends with {again.code}: {again.error.strip()[-300:]}"]
    return _differences(folder, expected, what)


def _differences(folder: Path, expected: dict[str, bytes], what: str) -> list[str]:
    found = contents(folder)
    names = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
    return [f"{what}: other content of {', '.join(names)}"] if names else []


def _one_line(done: Outcome, what: str) -> list[str]:
    if done.code == 2 and len(_lines(done)) == 1:
        return []
    return [f"{what}: exit code {done.code}, {len(_lines(done))} lines: {done.error.strip()[-300:]}"]


def _lines(done: Outcome) -> list[str]:
    lines = done.error.replace("\r", "\n").splitlines()
    beside = ("epoch ", "CHECK: ")  # a training's progress and health
    return [line for line in lines if line.strip() and not line.startswith(beside)]


def _name(done: Outcome) -> str:
    return done.calls[-1] if done.calls else "none"
