"""Benchmarks that write tables of the documentation: no column hides another, and NaN is no agreement."""

import numpy as np
import pytest
from conftest import settings

import episodes
from benchmarks import gpu, leaderboard
from lowshot.core.errors import InputError


def test_a_row_has_a_column_for_each_kind_of_task(tmp_path, extractor, features, data, capsys):
    results = []
    for n_way in (2, 10):
        results.append(tmp_path / f"{n_way}.json")
        options = {"features": [features / "train.h5"], "split": data / "split.json", "out": results[-1]}
        options |= {
            "n_way": n_way,
            "classes": "all",
            "n_shots": [1, 2],
            "n_queries": 2,
            "n_episodes": 5,
            "method": "nearest_mean",
        }
        episodes.main(settings(episodes.Config, **options))
    capsys.readouterr()
    config = leaderboard.Config("tiny", [extractor, extractor], data, results)
    leaderboard.main(config)
    header, _, row = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    cells = dict(zip(header, row, strict=True))
    accuracies = [name for name in header if "nearest_mean" in name]
    assert len(set(accuracies)) == 4 and all("±" in cells[name] for name in accuracies)
    assert len(cells["digest"].split()) == len(cells["base top-1"].split(", ")) == 2


def test_an_extractor_without_operations_has_no_row(tmp_path):
    with pytest.raises(InputError, match=r"log\.jsonl: no log that counts operations"):
        leaderboard.main(leaderboard.Config("tiny", [tmp_path]))


def test_nan_on_a_gpu_is_outside_every_tolerance(tmp_path, monkeypatch, capsys):
    sides = {"cpu": 1.0, "gpu": np.nan}
    monkeypatch.setattr(gpu, "STAGES", [gpu.Stage("stage", "", lambda path: np.array([sides[path.parent.name]]), 0.1)])
    monkeypatch.setattr(gpu, "run", lambda *_: 0.0)
    assert gpu.main(tmp_path) == 1
    assert "OUTSIDE TOLERANCE: stage" in capsys.readouterr().out
    sides["gpu"] = 1.05
    assert gpu.main(tmp_path) == 0
