"""Kill, interrupt and race every stage, and fill its disk: the table of docs/reliability.md.

    python benchmarks/faults.py                      # everything: about an hour
    python benchmarks/faults.py --names episodes "predict fit" --faults killed

Each stage runs on small data in forks of a process that has imported it (tests/faults). Kills and interrupts happen at
every create, rename, unlink, mkdir, truncate and fsync below the output's folder and at 30 of the writes; the disk is
full from every call on that needs space. Prints a row of Markdown for each stage as it goes: tried, survived.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from faults import faults  # noqa: E402
from faults.harness import Server, compiled  # noqa: E402
from faults.stages import cases, make_images  # noqa: E402

FAULTS = ["killed", "interrupted", "full", "raced"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="*", help="stages to try (default: all)")
    parser.add_argument("--faults", nargs="*", default=FAULTS, choices=FAULTS)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    library = compiled(folder)
    if library is None:
        raise SystemExit("benchmarks/faults.py: needs Linux and a C compiler (cc)")
    made = cases(folder / "out", make_images(folder / "images"))
    print(f"| stage | {' | '.join(options.faults)} | s |\n|---|{'---:|' * (len(options.faults) + 1)}")
    with Server(library) as server:
        for case in made:
            done = server.run(case.words, folder / "out")
            if done.code:
                raise SystemExit(f"{case.name}: {done.error}")
        for case in made:
            if not options.names or case.name in options.names:
                try_case(server, case, options.faults)


def try_case(server: Server, case: object, names: list[str]) -> None:
    start, row, found = time.perf_counter(), [], []
    calls = faults.calls_of(server, case)
    for name in names:
        at = faults.space(calls) if name == "full" else faults.chosen(calls, 30)
        violations = getattr(faults, name)(server, case, at)
        row.append(f"{len(at) - len(violations)} of {len(at)}")
        found += violations
    print(f"| {case.name} | {' | '.join(row)} | {time.perf_counter() - start:.0f} |", flush=True)
    for one in found:
        print(f"  {' '.join(one.split())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
