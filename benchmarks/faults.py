"""Kill, interrupt and race every stage, fill its disk, damage what it reads: the tables of docs/reliability.md.

    python benchmarks/faults.py                      # everything: hours
    python benchmarks/faults.py --parts stages --names episodes "predict fit" --faults killed
    python benchmarks/faults.py --parts readers --names split draws --mutations 500

Stages run on small data in forks of a process that has imported them (tests/faults). Kills and interrupts happen at
every create, rename, unlink, mkdir, truncate and fsync below the output's folder and at 30 of the writes; the disk is
full from every call on that needs space. Prints a row of Markdown for each stage, reader and output as it goes. What
went wrong is on stderr.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from faults import faults, flips, fuzz, readers  # noqa: E402
from faults.harness import Server, compiled  # noqa: E402
from faults.stages import Case, cases, make_images  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402

PARTS = ["stages", "readers", "bits"]
FAULTS = {
    "killed": faults.killed,
    "moments": faults.killed_at_random,
    "interrupted": faults.interrupted,
    "full": faults.full,
    "replacing": partial(faults.full, overwriting=True),
    "raced": faults.raced,
    "interleaved": faults.interleaved,
    "beside": faults.beside,
}
_MOMENTS, _PLACES = 20, 5  # random moments; calls at which two processes, or files of the user, are tried in depth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--names", nargs="*", help="stages, readers or outputs to try (default: all)")
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=FAULTS)
    parser.add_argument("--mutations", type=int, default=5000, help="damaged files for each reader")
    parser.add_argument("--flips", type=int, default=1000, help="flipped bits for each kind of output")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    library = compiled(folder)
    if library is None:
        raise SystemExit("benchmarks/faults.py: needs Linux and a C compiler (cc)")
    made = cases(folder / "out", make_images(folder / "images"))
    with Server(library) as server:
        for case in made:
            done = server.run(case.words, folder / "out")
            if done.code:
                raise SystemExit(f"{case.name}: {done.error}")
        if "stages" in options.parts:
            _head(["stage", *options.faults])
            for case in _chosen(made, options.names):
                _try_stage(server, case, options.faults)
    if "readers" in options.parts:
        (folder / "read").mkdir()
        _head(["reader", "mutations", "one line or accepted", "largest memory, MiB"])
        for reader in _chosen(readers.readers(folder / "out", folder / "read"), options.names):
            _try_reader(reader, options.mutations)
    if "bits" in options.parts:
        _head(["output", "flipped bits", "noticed or without effect"])
        for case in _chosen(made, options.names):
            _try_bits(case, options.flips)


def _chosen(things: list, names: list[str] | None) -> list:
    return [one for one in things if not names or one.name in names]


def _head(columns: list[str]) -> None:
    print(f"\n| {' | '.join(columns)} | s |\n|---|{'---:|' * len(columns)}")


def _row(name: str, cells: list[object], start: float, violations: list[str]) -> None:
    print(f"| {name} | {' | '.join(map(str, cells))} | {time.perf_counter() - start:.0f} |", flush=True)
    for one in violations:
        print(f"  {name}: {' '.join(one.split())}", file=sys.stderr, flush=True)


def _try_stage(server: Server, case: Case, names: list[str]) -> None:
    start, row, found = time.perf_counter(), [], []
    calls = faults.calls_of(server, case)
    systematic = faults.chosen(calls, 30)
    spread = systematic[:: max(1, len(systematic) // _PLACES)]
    needing = faults.space(calls)
    places = {"full": needing, "replacing": needing, "moments": _MOMENTS, "interleaved": spread, "beside": spread}
    for name in names:
        tries = FAULTS[name](server, case, places.get(name, systematic))
        row.append(f"{tries.count('')} of {len(tries)}")
        found += filter(None, tries)
    _row(case.name, row, start, found)


def _try_reader(reader: fuzz.Reader, n: int) -> None:
    start, found, taken = time.perf_counter(), [], []
    honest = fuzz.outcome(reader, reader.honest)
    if honest.violation:
        raise SystemExit(f"{reader.name}: {honest.violation}")

    def read(content: bytes) -> None:
        done = fuzz.outcome(reader, content)
        taken.append(done.taken)
        if wrong := fuzz.violation(done, honest):
            found.append(wrong)

    warnings.simplefilter("ignore")  # hypothesis warns of large arguments
    _every(read, reader, n)
    _row(reader.name, [n, n - len(found), max(taken) >> 20], start, found)


def _every(read: Callable[[bytes], None], reader: fuzz.Reader, n: int) -> None:
    checks = list(HealthCheck)
    how = settings(max_examples=n, database=None, deadline=None, suppress_health_check=checks, phases=[Phase.generate])
    how(given(reader.damaged(reader.honest))(read))()


def _try_bits(case: Case, n: int) -> None:
    start, violations, outputs = time.perf_counter(), [], [case.out, *(case.out.parent / name for name in case.beside)]
    outputs = [out for out in outputs if not out.name.endswith(".csv.json")]  # belongs to its table
    for out in outputs:
        with tempfile.TemporaryDirectory() as folder:
            violations += flips.unnoticed(out, Path(folder), n)
    tried = n * len(outputs)
    _row(case.name, [tried, tried - len(violations)], start, violations)


if __name__ == "__main__":
    main()
