"""Benchmarks that write tables of the documentation: no column hides another, and NaN is no agreement."""

import numpy as np
import pytest
from conftest import settings
from test_scripts import parsed

import episodes
from benchmarks import devices, gpu, leaderboard, training
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


@pytest.mark.parametrize("stage", gpu.STAGES, ids=lambda stage: stage.name)
def test_stages_accept_the_commands_of_the_comparison(stage):
    config = parsed([*stage.command.format(cpu="outputs").split(), "--out", "outputs/x"])
    assert str(config.out) == "outputs/x"


def test_tables_of_speed(capsys):
    training.main(training.Config(["Conv4"], [0.1], batch_size=4, rounds=1, n_steps=1))
    devices.main(devices.Config(size=0.005))
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()]
    speeds, operations = rows[:3], rows[3:]
    assert {len(row) for row in speeds} == {len(speeds[0])} and speeds[2][1].strip() == "Conv4 x 0.1"
    assert [row[1].strip() for row in operations[2:]] == list(devices.OPERATIONS)
    assert all(float(time) >= 0 for row in operations[2:] for time in row[2:-1])


def test_nan_on_a_gpu_is_outside_every_tolerance(tmp_path, monkeypatch, capsys):
    sides = {"cpu": 1.0, "gpu": np.nan}
    monkeypatch.setattr(gpu, "STAGES", [gpu.Stage("stage", "", lambda path: np.array([sides[path.parent.name]]), 0.1)])
    monkeypatch.setattr(gpu, "run", lambda *_: 0.0)
    assert gpu.main(tmp_path) == 1
    assert "OUTSIDE TOLERANCE: stage" in capsys.readouterr().out
    sides["gpu"] = 1.05
    assert gpu.main(tmp_path) == 0
