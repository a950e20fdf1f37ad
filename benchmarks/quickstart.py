"""Compare the time of the quick start between revisions.

    python benchmarks/quickstart.py bdbca8d HEAD          # bdbca8d: before checksums, locks and journals

Runs scripts/quickstart.sh of each revision in a folder of its own, in turn, in the active environment. Prints wall and
processor seconds of each run, and the median ratio of the last revision to the first over the rounds.
"""

import argparse
import os
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revisions", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="quickstart-"))
    trees = [_checked_out(revision, folder / str(i)) for i, revision in enumerate(options.revisions)]
    rounds = []
    for _ in range(options.rounds):
        rounds.append([_seconds(tree) for tree in trees])
        for revision, (wall, processor) in zip(options.revisions, rounds[-1]):
            print(f"{revision}: {wall:.1f} s, {processor:.1f} s of processors", flush=True)
    for i, name in enumerate(("wall", "processor")):
        print(f"{name} seconds: ratio {median(times[-1][i] / times[0][i] for times in rounds):.3f}")
    for tree in trees:
        subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


def _checked_out(revision: str, tree: Path) -> Path:
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, revision], cwd=ROOT, check=True)
    return tree


def _seconds(tree: Path) -> tuple[float, float]:
    shutil.rmtree(tree / "outputs", ignore_errors=True)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    subprocess.run(["bash", "scripts/quickstart.sh"], cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, processor


if __name__ == "__main__":
    main()
