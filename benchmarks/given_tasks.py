"""Time from a list of picture files to results: two commands, with their starts.

Reads     a folder of pictures, CLASS/*.png at any depth, such as omniglot-py/images_evaluation; and an extractor.
Writes    a JSON line on stdout; the list and the outputs in a temporary folder.

    python benchmarks/given_tasks.py --pictures data/omniglot-py/images_evaluation \\
        --extractor outputs/glyphs/conv4_sgm/extractor

12 tasks of 8 ways, with one support picture and five queries a class. Estimate: 576 pictures, a few of them in several
tasks, take a millisecond each to decode; the rest is the start of Python and torch, twice 3 to 5 s.
"""

import csv
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.core.cli import run
from lowshot.core.settings import PositiveInt
from lowshot.data.datasets.content import IMAGE_SUFFIXES

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Config:
    pictures: Path
    """Folder of pictures."""
    extractor: Path
    """Folder of an extractor (train_extractor.py)."""
    n_tasks: PositiveInt = 12
    """Number of tasks."""
    n_way: PositiveInt = 8
    """Number of classes of a task."""
    n_queries: PositiveInt = 5
    """Number of query pictures of a class."""


def main(config: Config) -> None:
    """Make the list, run both commands and print their times."""
    classes = sorted({path.parent for path in config.pictures.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES})
    with tempfile.TemporaryDirectory() as folder:
        tasks = write_tasks(config, classes, Path(folder))
        features, results = Path(folder) / "features", Path(folder) / "results" / "tasks.json"
        commands = [
            ["save_features.py", "--extractor", config.extractor, "--data", tasks, "--out", features],
            ["episodes.py", "--tasks", tasks, "--features", features / "train.h5", "--out", results],
        ]
        seconds = [run_timed(command) for command in commands]
        accuracy = np.mean([one["accuracy"] for one in json.loads(results.read_text())["episodes"]])
    print(json.dumps({"seconds": seconds, "together": round(sum(seconds), 1), "accuracy": round(accuracy, 4)}))


def write_tasks(config: Config, classes: list[Path], folder: Path) -> Path:
    """Write the list beside links to the pictures, and return its path."""
    rng, tasks = np.random.default_rng(0), folder / "pictures" / "tasks.csv"
    tasks.parent.mkdir()
    (tasks.parent / "all").symlink_to(config.pictures.resolve())
    with tasks.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "part", "class", "image"])
        for task in range(config.n_tasks):
            for place in rng.permutation(len(classes))[: config.n_way]:
                pictures = sorted(path for path in classes[place].iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
                for i, picture in enumerate(rng.permutation(pictures)[: 1 + config.n_queries]):
                    name = "all" / picture.relative_to(config.pictures)
                    writer.writerow([task, "query" if i else "support", name.parent.as_posix(), name.as_posix()])
    return tasks


def run_timed(command: list) -> float:
    """Run a stage as a process and return its seconds."""
    start = time.perf_counter()
    words = [sys.executable, ROOT / command[0], *command[1:]]
    subprocess.run(list(map(str, words)), check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - start, 1)


if __name__ == "__main__":
    run(main, Config, __doc__)
