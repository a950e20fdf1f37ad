"""Trainings that end before their schedule, by --end_after or --patience, and what their recipes record."""

import json

import pytest
import torch
from conftest import run_process, run_script, settings

import save_features
import train_extractor
import train_scgm
from lowshot.core.artifacts import read_recipe
from lowshot.core.errors import InputError
from lowshot.core.training import TrainingRun
from lowshot.report.mixture import read_means
from lowshot.representation.backbones import load_extractor
from lowshot.representation.extractor_training import ExtractorTrainer

SMALL = {"model": {"name": "Conv4", "width": 0.25}, "epochs": 4, "batch_size": 16, "accelerator": "cpu",
         "schedule": {"name": "cosine"}}  # fmt: skip


def train(data, out, **options):
    return train_extractor.main(settings(train_extractor.Config, data=data, out=out, **(SMALL | options)))


def weights(path):
    return torch.load(path, weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def interrupt(monkeypatch, before):
    """Kill the training before this epoch, counted from 0."""
    train_epoch = ExtractorTrainer._train_epoch

    def killed(self, epoch, bar):
        if epoch == before:
            raise KeyboardInterrupt
        return train_epoch(self, epoch, bar)

    monkeypatch.setattr(ExtractorTrainer, "_train_epoch", killed)


@pytest.fixture(scope="module")
def ended(data, tmp_path_factory):
    """A training that ended after the second of four epochs."""
    return train(data, tmp_path_factory.mktemp("ended") / "out", end_after=2)


def test_the_schedule_stays_that_of_all_epochs(data, ended, tmp_path):
    whole = train(data, tmp_path / "whole")
    assert [one["lr"] for one in records(ended)[:2]] == [one["lr"] for one in records(whole)[:2]]
    assert records(ended)[-1]["ended_after"] == 2 == records(ended)[-1]["step"]
    assert read_recipe(ended)["config"]["ended_after"] == 2
    assert "ended_after" not in read_recipe(whole)["config"] and len(records(whole)) == 4
    assert not (ended / "checkpoint.pt").exists() and not (ended / "last.pt").exists()
    assert load_extractor(ended).dim == 16


@pytest.mark.parametrize("end_after", [None, 2, 3, 9])
def test_it_is_there_already_and_says_that_it_ended(data, ended, capsys, end_after):
    train(data, ended, end_after=end_after)
    said = capsys.readouterr().out
    assert "already exists, made from the same inputs and settings, but ended after epoch 2 of 4" in said
    assert "--overwrite trains again from the start" in said
    with pytest.raises(InputError, match=r"setting lr was 0\.1, now 0\.2"):
        train(data, ended, lr=0.2, end_after=2)


def test_an_unfinished_run_that_is_past_it_ends_at_once(data, ended, tmp_path, monkeypatch):
    interrupt(monkeypatch, before=3)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "out")
    checkpoint = weights(tmp_path / ".lowshot" / "out" / "checkpoint.pt")
    interrupt(monkeypatch, before=0)  # not a single epoch more
    out = train(data, tmp_path / "out", end_after=2)
    assert same(weights(out / "model.pt"), checkpoint["model"])
    assert read_recipe(out)["config"]["ended_after"] == 3 == records(out)[-1]["ended_after"]
    assert [one["step"] for one in records(out)] == [1, 2, 3, 3]
    assert not (tmp_path / ".lowshot" / "out").exists()


def test_an_unfinished_run_goes_on_to_it(data, ended, tmp_path, monkeypatch):
    interrupt(monkeypatch, before=1)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "out", end_after=2)
    monkeypatch.undo()
    out = train(data, tmp_path / "out", end_after=2)
    assert same(weights(out / "model.pt"), weights(ended / "model.pt"))


def test_a_run_killed_as_it_ends_can_go_on_to_the_end(data, tmp_path, monkeypatch):
    """Neither its log nor its recipe records that it was to end early."""
    say = TrainingRun.say_ended_early
    monkeypatch.setattr(TrainingRun, "say_ended_early", lambda self: say(self) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(data, tmp_path / "out", end_after=2)
    assert read_recipe(tmp_path / ".lowshot" / "out")["config"]["ended_after"] == 2
    monkeypatch.undo()
    out, whole = train(data, tmp_path / "out"), train(data, tmp_path / "whole")
    assert same(weights(out / "model.pt"), weights(whole / "model.pt"))
    assert [one["step"] for one in records(out)] == [1, 2, 3, 4] and read_recipe(out) == read_recipe(whole)


def test_beyond_the_last_epoch_nothing_is_said(data, tmp_path):
    out = train(data, tmp_path / "out", epochs=1, end_after=5)
    assert "ended_after" not in read_recipe(out)["config"] and len(records(out)) == 1


def test_features_and_extractors_made_from_it_say_so(data, ended, tmp_path):
    options = {"extractor": ended, "data": data, "out": tmp_path, "accelerator": "cpu", "part": "test"}
    save_features.main(settings(save_features.Config, **options))
    assert read_recipe(tmp_path / "test.h5")["config"]["extractor_ended_after"] == 2


def test_the_command_line(data, tmp_path):
    words = ["--data", data, "--model", "Conv4", "--model.width", 0.25, "--epochs", 3, "--batch_size", 16,
             "--accelerator", "cpu", "--holdout", 0.2]  # fmt: skip
    done = run_script("train_extractor.py", *words, "--out", tmp_path / "out", "--end_after", 1)
    assert done.returncode == 0, done.stderr
    record = records(tmp_path / "out")[0]
    assert f"epoch 1/3: held_loss {record['held_loss']:.3f}, held_top1 {record['held_top1']:.3f}" in done.stderr
    assert 0 <= record["held_top1"] <= record["held_top5"] <= 1


def test_two_files_of_weights_with_patience(data, tmp_path, monkeypatch):
    losses, states = iter([3.0, 1.0, 2.0, 2.5, 9.0]), []

    def scripted(self):
        states.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return {"held_loss": next(losses)}

    monkeypatch.setattr(ExtractorTrainer, "_evaluate", scripted)
    out = train(data, tmp_path / "out", epochs=9, holdout=0.2, patience=2)
    assert same(weights(out / "model.pt"), states[1]) and same(weights(out / "last.pt"), states[3])
    assert records(out)[-1] | {"time": 0} == {"step": 4, "time": 0, "model_epoch": 2, "last_epoch": 4}
    assert "ended_after" not in read_recipe(out)["config"]  # its own rule has ended it
    monkeypatch.undo()
    again = train(data, tmp_path / "again", weights=out / "last.pt", epochs=0)
    assert same(weights(again / "model.pt"), states[3])


def test_both_together(data, tmp_path, monkeypatch):
    losses = iter([1.0, 3.0])
    monkeypatch.setattr(ExtractorTrainer, "_evaluate", lambda self: {"held_loss": next(losses)})
    out = train(data, tmp_path / "out", holdout=0.2, patience=5, end_after=2)
    assert not same(weights(out / "model.pt"), weights(out / "last.pt"))
    assert [one.get("model_epoch") for one in records(out)[2:]] == [1, None]
    assert records(out)[-1]["ended_after"] == 2


def test_two_processes_end_together(data, tmp_path):
    words = ["--data", data, "--model", "Conv4", "--model.width", 0.25, "--epochs", 3, "--batch_size", 20,
             "--accelerator", "cpu", "--devices", 2, "--end_after", 1, "--out", tmp_path / "out"]  # fmt: skip
    done = run_process("train_extractor.py", *words)
    assert done.returncode == 0, done.stderr
    assert read_recipe(tmp_path / "out")["config"]["ended_after"] == 1
    assert [one["step"] for one in records(tmp_path / "out")] == [1, 1]


def test_superclasses(data, tmp_path):
    """Only the network of the model is kept, and pictures show the epochs that were trained."""
    options = {"model": {"name": "Conv4", "width": 0.1}, "epochs": 6, "schedule": {"n_cycles": 1}, "batch_size": 32,
               "method": {"name": "scgm_g", "n_subclasses": 10, "e_step_every": 2}, "accelerator": "cpu",
               "holdout": 0.1, "patience": 6, "end_after": 3}  # fmt: skip
    out = train_scgm.main(settings(train_scgm.Config, data=data, out=tmp_path / "out", **options))
    assert weights(out / "last.pt").keys() == weights(out / "model.pt").keys()
    assert read_recipe(out)["config"]["ended_after"] == 3
    means = read_means(out)
    assert means.n_epochs == 3 and means.epochs.tolist() == [0, 2]
