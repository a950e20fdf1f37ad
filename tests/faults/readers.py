"""The readers of files that fuzz.py damages, with honest files from the outputs of stages.py."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import low_shot
import preprocessing
import train_extractor
from faults.fuzz import Reader, damaged_h5, damaged_json, damaged_yaml
from lowshot.core.artifacts import Recipe, read_recipe
from lowshot.core.cli import parse
from lowshot.core.sealing import SealedFile
from lowshot.data.additions import FileRows, RowsOfFile
from lowshot.data.datasets.images import read_images
from lowshot.data.features import read_copies, read_features
from lowshot.data.protocol import check_draws, read_draws, read_split
from lowshot.data.rows import open_rows
from lowshot.diffusion.fusion import KeptScores
from lowshot.diffusion.graph import read_graph
from lowshot.diffusion.propagated import PropagatedRows
from lowshot.diffusion.settings import Propagated
from lowshot.evaluation.selection import read_grid
from lowshot.hallucination.generators import load_generator
from lowshot.hallucination.quadruplets import read_quadruplets
from lowshot.matching.network import load_matching
from lowshot.photos.classifier import load_classifier
from lowshot.representation.backbones import load_extractor

# The stages whose outputs are damaged.
NEEDED = ["preprocessing", "train_extractor", "save_features", "make_quadruplet", "train_analogy_generator",
          "build_graph complete test", "low_shot --scores", "diffusion --label", "matching_network train", "episodes",
          "predict fit", "predict classify"]  # fmt: skip


NAMES = ["split", "draws", "results of runs", "results of episodes", "features", "features by blocks", "graph",
         "quadruplets", "images", "scores", "propagated rows", "extractor", "generator", "classifier",
         "matching network", "settings of low_shot", "settings of train_extractor", "settings of preprocessing",
         "grid"]  # fmt: skip


def readers(root: Path, folder: Path) -> list[Reader]:
    """Copy the outputs below `root` into the empty `folder`, without their checksums, and return their readers."""
    features, results, graph = root / "first" / "features", root / "results", root / "graph-test.h5"
    data = root / "data"
    split = read_split(data / "split.json")

    def draws(path: Path) -> None:
        check_draws(read_draws(path), train.labels, split.setup("test")[1], 1, path, path)

    config = low_shot.Config(train=features / "train.h5", test=features / "test.h5", split=data / "split.json",
                             draws=data / "draws.json", shots=[1, 3], out=folder / "none.json")  # fmt: skip
    train = read_features(features / "train.h5")

    def rows(path: Path) -> None:
        FileRows(RowsOfFile(path), train)
        PropagatedRows(Propagated(path), config, train)

    def files(name: str, source: Path, read: Callable, *, h5: bool = True) -> Reader:
        content = _unsealed_h5(source) if h5 else _unsealed_json(source)
        path = folder / name.replace(" ", "_") / source.name
        path.parent.mkdir()
        return Reader(name, path, content, read, damaged_h5 if h5 else damaged_json)

    def models(name: str, source: Path, read: Callable) -> Reader:
        target = shutil.copytree(source, folder / name.replace(" ", "_"), ignore=shutil.ignore_patterns("SHA256SUMS"))
        content = _unsealed_json(source / "config.json")
        return Reader(name, Path(target) / "config.json", content, lambda path: read(path.parent), damaged_json)

    return [
        files("split", data / "split.json", lambda path: (read_split(path), _compared(path)), h5=False),
        files("draws", data / "draws.json", draws, h5=False),
        files("results of runs", results / "plain.json", _results, h5=False),
        files("results of episodes", results / "episodes.json", _results, h5=False),
        files("features", features / "train.h5", _features),
        files("features by blocks", features / "train.h5", lambda path: [open_rows(path)[:]]),
        files("graph", graph, _graph),
        files("quadruplets", root / "first" / "quadruplets.h5", read_quadruplets),
        files("images", data / "images.h5", read_images),
        files("scores", results / "scores.h5", lambda path: KeptScores(path, config, [(1, 1)]).of(1, 1)),
        files("propagated rows", results / "labelled.h5", rows),
        models("extractor", root / "first" / "extractor", load_extractor),
        models("generator", root / "first" / "generator", load_generator),
        models("classifier", root / "classifier", load_classifier),
        models("matching network", root / "matching", lambda path: load_matching(path, split, train)),
        _settings("settings of low_shot", folder, low_shot.Config, _LOW_SHOT),
        _settings("settings of train_extractor", folder, train_extractor.Config, _TRAINING),
        _settings("settings of preprocessing", folder, preprocessing.Config, _DATA),
        _grid(folder),
    ]  # fmt: skip


def _unsealed_h5(path: Path) -> bytes:
    with SealedFile(path) as file:
        return file.read()


def _unsealed_json(path: Path) -> bytes:
    content = json.loads(path.read_text(encoding="utf-8"))
    return json.dumps({key: value for key, value in content.items() if key not in ("checksum", "digest")}).encode()


def _compared(path: Path) -> str | None:
    """Compare the recipe of a file with another one, as a stage does that finds its output."""
    own = Recipe({"stage": "x", "config": {"a": {"b": 1}}, "inputs": {"c": "d"}}, {}, lambda stored: stored)
    return own.difference(read_recipe(path))


def _results(path: Path) -> None:
    from lowshot.report import judged, page, results
    from lowshot.report.files import read_files

    files = read_files(path.parent)
    for kind in (results.by_class, results.confusions, judged.judged_files):
        kind(files)
    for kind in (results.trials, results.episodes, results.history, results.clustering, results.scores):
        frame = kind(files)
        if len(frame) and "system" in frame:
            page.provenance(files, frame)
    _compared(path)


def _features(path: Path) -> None:
    features = read_features(path, 12)
    if "augmented_feats" in path.read_bytes().decode("latin-1"):
        read_copies(features)
    _compared(path)


def _graph(path: Path) -> None:
    graph = read_graph(path)
    for array in (graph.ids, graph.similarities, graph.vectors, graph.test_ids):
        np.asarray(array).sum()


_LOW_SHOT = {"train": "a.h5", "test": "b.h5", "split": "s.json", "draws": "d.json", "out": "r.json", "shots": [1, 5],
             "classifier": {"name": "linear_sgd", "lr": 0.1}, "transform": {"centre": True},
             "add": {"generator": {"generator": "g", "n": 3}}, "seed": 1}  # fmt: skip
_TRAINING = {"data": "data", "out": "o", "model": {"name": "Conv4", "width": 0.5}, "loss": {"name": "sgm"}, "epochs": 3,
             "batch_size": 8}  # fmt: skip
_DATA = {"dataset": {"name": "folder", "image_size": 16}, "root": "photos", "out": "data", "seed": 0}


def _settings(name: str, folder: Path, kind: type, content: dict) -> Reader:
    path = folder / f"{name.replace(' ', '_')}.yaml"
    honest = yaml.safe_dump(content).encode()
    return Reader(name, path, honest, lambda path: parse(kind, ["--config", str(path)]), damaged_yaml)


def _grid(folder: Path) -> Reader:
    values = {**_LOW_SHOT, "classifier": {"name": "cosine"}, "add": {}}

    def read(path: Path) -> Any:
        start = path.with_name("start.yaml")
        start.write_text(yaml.safe_dump(values))
        return read_grid(path, parse(low_shot.Config, ["--config", str(start)]))

    honest = yaml.safe_dump({"classifier": ["nearest_mean", "cosine"], "transform.centre": [True, False]}).encode()
    return Reader("grid", folder / "grid.yaml", honest, read, damaged_yaml)
