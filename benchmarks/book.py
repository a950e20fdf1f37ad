"""The results book: its numbers from results files, and its pages from the numbers.

    python benchmarks/book.py collect --name cifar100 --results outputs/cifar100/results_one_shot
    python benchmarks/book.py collect --name cifar_fs --episodes --results outputs/cifar_fs/results
    python benchmarks/book.py render

`collect` reads folders of results files and writes docs/results/NAME.csv (of the low-shot benchmark also
NAME-runs.csv).
`render` makes the pages of docs/templates/ from these. What the files hold: lowshot/report/book.py.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.core.cli import run_commands
from lowshot.report import read_files
from lowshot.report.book import collect, collect_episodes, pages, runs_path

ROOT = Path(__file__).resolve().parents[1]
NUMBERS, TEMPLATES = ROOT / "docs/results", ROOT / "docs/templates"


@dataclass
class CollectConfig:
    """Write the numbers of results files to docs/results/."""

    name: str
    """Name of the files to write, without an ending."""
    results: list[Path]
    """Folders of results files."""
    episodes: bool = False
    """The results are of episodes."""
    reference: str | None = None
    """System, method or extractor that episodes are compared with; the simplest system by default."""


@dataclass
class RenderConfig:
    """Make the pages from docs/templates/ and docs/results/."""


def collect_numbers(config: CollectConfig) -> None:
    files = {f"{folder}/{name}": content for folder in config.results for name, content in read_files(folder).items()}
    if config.episodes:
        write(NUMBERS / f"{config.name}.csv", collect_episodes(files, config.reference))
        return
    values, runs = collect(files)
    write(NUMBERS / f"{config.name}.csv", values)
    write(runs_path(NUMBERS / f"{config.name}.csv"), runs)


def write(path: Path, frame: pd.DataFrame) -> None:
    frame.to_csv(path, index=False, float_format="%.6g")
    print(f"book: {len(frame)} rows -> {path.relative_to(ROOT)}")


def render(config: RenderConfig) -> None:
    for name, text in pages(TEMPLATES, NUMBERS).items():
        (ROOT / name).write_text(text, encoding="utf-8")
        print(f"book: {name}")


COMMANDS = {"collect": (collect_numbers, CollectConfig), "render": (render, RenderConfig)}

if __name__ == "__main__":
    run_commands(COMMANDS, __doc__)
