"""Trainings of all kinds that the user ends before their schedule does; those of images have tests of their own."""

import json

import pytest
from conftest import run_script

from lowshot.core.artifacts import read_recipe
from lowshot.core.training import last_step


def test_where_a_training_ends():
    assert [last_step(9, end) for end in (None, 4, 9, 20)] == [9, 4, 9, 9]


@pytest.fixture(scope="module")
def commands(data, features, extractor, tmp_path_factory):
    """A training of 40 steps of each kind: its words, and the folder that it writes."""
    folder = tmp_path_factory.mktemp("trainings")
    mined = run_script("make_quadruplet.py", "--features", features / "train.h5", "--split", data / "split.json",
                       "--n_clusters", 4, "--out", folder / "quadruplets.h5")  # fmt: skip
    assert mined.returncode == 0, mined.stderr
    words = {
        "matching": ["matching_network.py", "train", "--features", features / "train.h5", "--split",
                     data / "split.json", "--n_episodes", 40, "--max_shots", 3, "--accelerator", "cpu"],
        "generator": ["train_analogy_generator.py", "--quadruplets", folder / "quadruplets.h5", "--hidden", 8,
                      "--n_steps", 40],
        "gan": ["train_gan.py", "pretrain", "--data", data, "--extractor", extractor, "--batch_size", 8, "--steps", 40,
                "--score_every", 5, "--ngf", 16, "--ndf", 2, "--z_dim", 4, "--accelerator", "cpu"],
    }  # fmt: skip
    return {name: ([*command, "--out", folder / name], folder / name) for name, command in words.items()}


@pytest.mark.parametrize("name", ["matching", "generator", "gan"])
def test_a_training_ends_and_says_so(commands, name):
    words, out = commands[name]
    done = run_script(*words, "--end_after", 10)
    assert done.returncode == 0, done.stderr
    assert read_recipe(out)["config"]["ended_after"] == 10
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert log[-1]["ended_after"] == 10 and max(record["step"] for record in log) == 10
    assert not (out / "checkpoint.pt").exists()
    unit = "episode" if name == "matching" else "step"
    for more in ([], ["--end_after", 10]):
        again = run_script(*words, *more)
        assert (
            f"already exists, made from the same inputs and settings, but ended after {unit} 10 of 40" in again.stdout
        )
    whole = run_script(*words, "--overwrite")
    assert whole.returncode == 0 and "ended_after" not in read_recipe(out)["config"], whole.stderr
