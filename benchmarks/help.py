"""Processor seconds until a stage answers: --help, a setting that does not exist, a value that is wrong.

    python benchmarks/help.py

Every stage and sub-command is run as a process of its own, three times each; the median counts. A table of the slowest
and the maximum of each column are printed. Bar: 1.0 s.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMANDS = {"predict": ["fit", "evaluate", "classify", "add", "export"], "train_gan": ["pretrain", "finetune"],
            "build_graph": ["background", "complete"], "matching_network": ["train", "test"]}  # fmt: skip
QUESTIONS = {"--help": ["--help"], "typo": ["--overwritte"], "wrong value": ["--overwrite", "maybe"]}
REPEATS = 3


def stages() -> list[list[str]]:
    """Every stage, with the first word of each of its commands."""
    names = sorted(path.stem for path in ROOT.glob("*.py"))
    return [[f"{name}.py", *command] for name in names for command in ([], *([one] for one in COMMANDS.get(name, [])))]


def processor_seconds(words: list[str]) -> float:
    """User and system time of a process that answers and does nothing else."""
    before = os.times()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True)
    after = os.times()
    assert done.returncode in (0, 2), done.stderr
    return sum(after[2:4]) - sum(before[2:4])


def main() -> None:
    rows = []
    for stage in stages():
        seconds = {
            name: statistics.median(processor_seconds([*stage, *words]) for _ in range(REPEATS))
            for name, words in QUESTIONS.items()
        }
        rows.append((max(seconds.values()), " ".join(stage), seconds))
    print(f"| stage | {' | '.join(QUESTIONS)} |\n| --- |{' ---: |' * len(QUESTIONS)}")
    for _, stage, seconds in sorted(rows, reverse=True):
        print(f"| `{stage}` | {' | '.join(f'{value:.2f}' for value in seconds.values())} |")
    worst = {name: max(seconds[name] for _, _, seconds in rows) for name in QUESTIONS}
    print(f"| **maximum of {len(rows)}** | {' | '.join(f'**{value:.2f}**' for value in worst.values())} |")


if __name__ == "__main__":
    main()
