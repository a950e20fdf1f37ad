"""Estimated memory and time (diffusion.py --dry_run) compared with measurements of the same commands.

Reads     nothing; makes features and graphs of 20,000, 200,000 and a million nodes in a temporary folder (1 GB), with
          synthetic clustered neighbour lists.
Writes    JSON lines and Markdown rows on stdout: estimated and measured peak memory and seconds, and their ratio.

    python benchmarks/estimates.py                        all sizes, float32 and bfloat16, slices of 16 and 64 classes
    python benchmarks/estimates.py --sizes "[20000]"      one size, half a minute

Requirement: within 25 %. On a shared machine, times vary as much between runs. The dry run is therefore made right
before the run, and `cpu_seconds` shows how much of the wall time was work. Takes a quarter of an hour.
"""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.core.cli import run
from lowshot.core.files import digest, write_json
from lowshot.core.settings import PositiveInt
from lowshot.data.features import write_features
from lowshot.data.protocol import draws_to_json, make_draws, make_split
from lowshot.diffusion.graph import create_graph, map_graph
from lowshot.diffusion.projection import Projection

K, DIM, MAX_SHOTS = 32, 64, 5
MADE_UP = {"stage": "estimates", "config": {}, "inputs": {}}
# Settings of diffusion.py that memory and time depend on.
VARIANTS = [
    ["--precision", "float32", "--slice_width", "64"],
    ["--precision", "float32", "--slice_width", "16"],
    ["--precision", "bfloat16", "--slice_width", "64"],
    ["--precision", "bfloat16", "--slice_width", "16"],
    ["--edges.weight", "gaussian", "--history", "3"],
]


@dataclass
class Config:
    sizes: list[PositiveInt] = field(default_factory=lambda: [20_000, 200_000, 1_000_000])
    """Numbers of nodes."""
    keep: Path | None = None
    """Folder for the input files; a temporary folder by default."""


def main(config: Config) -> None:
    with TemporaryDirectory() as temporary:
        for n_nodes in config.sizes:
            folder = (config.keep or Path(temporary)) / str(n_nodes)
            inputs = make_files(folder, n_nodes)
            for variant in VARIANTS:
                compare(f"{n_nodes} nodes, {' '.join(variant)}", [*inputs, *variant], folder / "results.json")


def make_files(folder: Path, n_nodes: int) -> list[str]:
    """Write features, split, draws and graph of a test setup. Return the flags that name them."""
    n_classes = {20_000: 100, 200_000: 200}.get(n_nodes, 500)
    n_test, rows_of_class = min(10_000, 50 * n_classes), 100
    flags = {name: folder / f"{name}.json" for name in ("split", "draws")}
    flags |= {name: folder / f"{name}.h5" for name in ("train", "test", "graph")}
    if not flags["graph"].exists():
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        names = [str(c) for c in range(n_classes)]
        split = make_split("made_up", names, [], [None] * n_classes, 0, list(range(0, n_classes, 2)))
        labels = {"train": np.repeat(np.arange(n_classes), rows_of_class), "test": np.arange(n_test) % n_classes}
        draws = make_draws(labels["train"], names, 2, MAX_SHOTS, 0)
        write_json(flags["split"], split.to_json())
        write_json(flags["draws"], draws_to_json(draws, split, 0))
        for name, of in labels.items():
            write_features(flags[name], random.standard_normal((len(of), DIM), np.float32), of, MADE_UP)
        base, novel = split.setup("test")
        train_rows = np.flatnonzero(np.isin(labels["train"], base))
        n_test_rows = int(np.isin(labels["test"], np.concatenate([base, novel])).sum())
        made_from = {**MADE_UP, "config": {"setup": "test", "unlabelled": "none"}}
        made_from["inputs"] = {name: digest(flags[name]) for name in ("train", "test", "split")}
        create_graph(flags["graph"], made_from, n_nodes, K, DIM, "float32", Projection(), train_rows, n_test_rows)
        fill_graph(flags["graph"], random)
    return [word for name, path in flags.items() for word in (f"--{name}", str(path))]


def fill_graph(path: Path, random: np.random.Generator) -> None:
    """Write lists of neighbours within about a hundred nodes, which are scattered over the graph; each node comes first
    in its own list."""
    arrays = map_graph(path)
    n_nodes = len(arrays["ids"])
    at_place = random.permutation(n_nodes).astype(np.int32)
    place = np.argsort(at_place)
    for first in range(0, n_nodes, 2**17):
        rows = slice(first, min(first + 2**17, n_nodes))
        n = rows.stop - first
        near = np.round(random.laplace(0, 30, (n, K))).astype(np.int64)
        arrays["ids"][rows] = at_place[(place[rows, None] + near) % n_nodes]
        arrays["ids"][rows, 0] = np.arange(first, rows.stop)
        arrays["similarities"][rows] = np.linspace(1, 0.8, K)
        arrays["vectors"][rows] = unit(random, n)
    n_test = len(arrays["test_ids"])
    arrays["test_ids"][:] = arrays["ids"][random.integers(n_nodes, size=n_test)]
    arrays["test_similarities"][:] = np.linspace(1, 0.8, K)
    arrays["test_vectors"][:] = unit(random, n_test)
    for array in arrays.values():
        array.flush()


def unit(random: np.random.Generator, n_rows: int) -> np.ndarray:
    vectors = random.standard_normal((n_rows, DIM), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def compare(what: str, flags: list[str], out: Path) -> None:
    """Print the estimate of a command, and then the measurement."""
    command = ["--out", str(out), "--shots", "[1,5]", "--trials", "[1]", "--overwrite", "true", *flags]
    printed, _ = measured([*command, "--dry_run", "true"])
    estimated = {name: float(re.search(rf"^{name}: ([\d.]+)", printed, re.M)[1]) for name in ("memory", "time")}
    _, taken = measured(command)
    ratios = {
        "memory": round(estimated["memory"] / taken["peak_gib"], 2),
        "time": round(estimated["time"] / taken["seconds"], 2),
    }
    record = {"benchmark": "estimates", "what": what, **taken, "estimated": estimated, "ratio": ratios}
    print(json.dumps({**record, "threads": os.environ.get("OMP_NUM_THREADS", os.cpu_count())}))
    print(
        f"| {what} | {estimated['memory']:.2f} GiB | {taken['peak_gib']:.2f} GiB | {ratios['memory']:.2f} "
        f"| {estimated['time']:.1f} s | {taken['seconds']:.1f} s | {ratios['time']:.2f} |",
        flush=True,
    )


def measured(flags: list[str]) -> tuple[str, dict[str, float]]:
    """Run diffusion.py. Return its output, and its seconds and peak memory."""
    start = time.perf_counter()
    script = Path(__file__).resolve().parents[1] / "diffusion.py"
    process = subprocess.Popen([sys.executable, script, *flags], stdout=subprocess.PIPE, text=True)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"diffusion.py ended with status {status}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
    cpu = usage.ru_utime + usage.ru_stime
    seconds = time.perf_counter() - start
    return printed, {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_gib": round(peak, 2)}


if __name__ == "__main__":
    run(main, Config, __doc__)
