"""Row of docs/leaderboard.md for a trained extractor, or for several that were joined.

Reads     extractors (train_extractor.py, train_scgm.py), results of episodes.py on their features, and the data
Writes    a Markdown row on stdout

    python benchmarks/leaderboard.py --name cifar_fs --extractors outputs/cifar_fs/airbench/extractor \\
        --results outputs/cifar_fs/results/airbench_5way_balanced_nearest_mean_cl2n.json
    python benchmarks/leaderboard.py --name plain --extractors outputs/cifar100/airbench_plain/extractor \\
        --data outputs/cifar100/data

Columns: name, date of the training, commit and machine (of this command: run it where the extractor was trained),
precision, minutes and operations of the training steps, start of the digest of the weights, top-1 on held-out training
images if there were any, top-1 on the test images of the base classes with the extractor's own classifier, and a column
for each kind of task, method and number of shots of the results. Minutes and operations of several extractors are
added up.
"""

import json
import sys
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.core.artifacts import commit
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.files import digest, read_json
from lowshot.core.machine import machine
from lowshot.core.runtime import open_fabric
from lowshot.data.datasets.images import read_images
from lowshot.data.protocol import read_split
from lowshot.report.files import read_file
from lowshot.report.results import episodes, summarise
from lowshot.representation.backbones import load_extractor
from lowshot.representation.loading import ImageLoader, in_batches, to_unit


@dataclass
class Config:
    name: str
    """What the row is called."""
    extractors: list[Path]
    """Folders of the extractors."""
    data: Path | None = None
    """Folder with images.h5 and split.json, for the accuracy on base classes."""
    results: list[Path] = field(default_factory=list)
    """Results files of episodes.py."""


def main(config: Config) -> None:
    """Print the header and the row."""
    row = {"extractor": config.name} | training_of(config.extractors)
    if config.data is not None:
        row["base top-1"] = ", ".join(f"{100 * base_accuracy(one, config.data):.1f}" for one in config.extractors)
    for path in config.results:
        row |= accuracies_of(path)
    for cells in (row, ["---"] * len(row), row.values()):
        print(f"| {' | '.join(cells)} |")


def training_of(extractors: list[Path]) -> dict[str, str]:
    """Return when, where and at what cost the extractors were trained, and their accuracy on held-out images if there
    were any, from their logs and recipes."""
    last = [last_epoch(folder / "log.jsonl") for folder in extractors]
    configs = [read_json(folder / "config.json")["config"] for folder in extractors]
    held = [f"{100 * record['held_top1']:.1f}" for record in last if "held_top1" in record]
    row = {
        "date": datetime.fromtimestamp(max(record["time"] for record in last)).date().isoformat(),
        "commit": short_commit(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else machine(),
        "precision": ", ".join(sorted({config["precision"] for config in configs})),
        "minutes": f"{sum(record['seconds'] for record in last) / 60:.0f}",
        "operations": f"{sum(record['operations'] for record in last):.2g}".replace("e+", "e"),
        "digest": " ".join(digest(folder / "model.pt")[:8] for folder in extractors),
    }
    return row | ({"held-out top-1": ", ".join(held)} if held else {})


def short_commit() -> str:
    """Return the start of the commit of this code; "+changes" remains if files differ from it."""
    head, plus, changes = (commit() or "unknown").partition("+")
    return head[:7] + plus + changes


def last_epoch(log: Path) -> dict:
    """Return the last record of a training's log that counts operations."""
    records = map(json.loads, log.read_text().splitlines()) if log.is_file() else ()
    counted = [record for record in records if "operations" in record]
    if not counted:
        raise InputError(f"{log}: no log that counts operations. Train the extractor again")
    return counted[-1]


@torch.inference_mode()
def base_accuracy(folder: Path, data: Path) -> float:
    """Return the top-1 accuracy on the test images of base classes, among the base classes."""
    model, images = load_extractor(folder), read_images(data / "images.h5")
    base = np.array(read_split(data / "split.json").base_classes)
    rows = images.rows(test=True)
    rows = rows[np.isin(images.labels[rows], base)]
    if not len(rows):
        raise InputError(f"{data}/images.h5: has no test images of base classes. Leave --data out")
    fabric = open_fabric("auto", "32-true")
    network, hits = fabric.to_device(model), 0
    parts = in_batches(rows, 256)
    for part, pixels in zip(parts, ImageLoader(images, model.config).whole(parts)):
        scores = network(to_unit(pixels, fabric.device))[0][:, base]
        hits += (base[scores.argmax(1).cpu().numpy()] == images.labels[part]).sum()
    return hits / len(rows)


def accuracies_of(path: Path) -> dict[str, str]:
    """Return the mean accuracy in percent with its 95 % interval, for each number of shots."""
    summary = summarise(episodes({path.name: read_file(path)}), ["task", "method", "n_shot"])
    return {
        f"{one.task}: {one.method}, {one.n_shot} shot": f"{100 * one.mean:.2f} ± {100 * one.interval:.2f}"
        for one in summary.itertuples()
    }


if __name__ == "__main__":
    run(main, Config, __doc__)
