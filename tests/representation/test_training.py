"""Training an extractor: resume, early stopping, several processes, non-finite losses, refused input."""

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused, run_process, run_script, settings, unfinished

import train_extractor
from lowshot.core import cli
from lowshot.core.cli import parse
from lowshot.core.errors import InputError
from lowshot.core.files import read_json
from lowshot.core.settings import flat
from lowshot.representation.extractor_training import ExtractorTrainer
from lowshot.representation.settings import Cosine, Steps


def config(data, out, **options):
    small = {"model": {"name": "Conv4", "width": 0.25}, "epochs": 3, "batch_size": 16, "accelerator": "cpu"}
    return settings(train_extractor.Config, data=data, out=out, **(small | {"loss": "sgm"} | options))


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path, data, monkeypatch):
    whole = weights(train_extractor.main(config(data, tmp_path / "whole")))
    train_epoch = ExtractorTrainer._train_epoch

    def killed_in_the_third(self, epoch, bar):
        if epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(self, epoch, bar)

    monkeypatch.setattr(ExtractorTrainer, "_train_epoch", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        train_extractor.main(config(data, tmp_path / "killed"))
    assert not (tmp_path / "killed").exists() and (tmp_path / ".lowshot" / "killed" / "checkpoint.pt").exists()
    monkeypatch.undo()
    resumed = weights(train_extractor.main(config(data, tmp_path / "killed")))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    assert not (tmp_path / "killed" / "checkpoint.pt").exists()


def test_dropped_blocks_do_not_keep_a_resumed_run_from_the_same_weights(tmp_path, data, monkeypatch):
    options = {"model": {"name": "ResNet12", "width": 0.1, "drop_rate": 0.3}, "epochs": 2}
    whole = weights(train_extractor.main(config(data, tmp_path / "whole", **options)))
    train_epoch = ExtractorTrainer._train_epoch
    monkeypatch.setattr(
        ExtractorTrainer, "_train_epoch", lambda self, e, bar: 1 / 0 if e else train_epoch(self, e, bar)
    )
    with pytest.raises(ZeroDivisionError):
        train_extractor.main(config(data, tmp_path / "killed", **options))
    monkeypatch.undo()
    resumed = weights(train_extractor.main(config(data, tmp_path / "killed", **options)))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_unfinished_run_with_other_settings_is_not_continued(tmp_path, data, extractor):
    shutil.copytree(extractor, tmp_path / "out")
    unfinished(tmp_path / "out")
    with pytest.raises(InputError, match="unfinished run"):
        train_extractor.main(config(data, tmp_path / "out"))


def test_non_finite_loss_stops_with_the_step_and_keeps_the_checkpoint(tmp_path, data, monkeypatch):
    step, calls = ExtractorTrainer._step, []

    def breaks_late(self, positions, *views):
        calls.append(1)
        return {"loss": torch.tensor(float("nan"))} if len(calls) == 6 else step(self, positions, *views)

    monkeypatch.setattr(ExtractorTrainer, "_step", breaks_late)
    with pytest.raises(InputError, match=r"loss is nan at step 5.*checkpoint\.pt"):
        train_extractor.main(config(data, tmp_path / "out"))
    assert (tmp_path / ".lowshot" / "out" / "checkpoint.pt").exists() and not (tmp_path / "out").exists()


def test_diverging_at_once_leaves_nothing(tmp_path, data):
    result = run_script("train_extractor.py", "--data", data, "--out", tmp_path / "out", "--model", "Conv4",
                        "--lr", "1e30", "--batch_size", 16, "--accelerator", "cpu")  # fmt: skip
    assert_refused(result, "loss is", "step", "no checkpoint yet")
    assert not list(tmp_path.iterdir())


def test_early_stopping_keeps_the_best_weights(tmp_path, data, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.5, 9.0])
    states = []

    def scripted(self):
        states.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return {"held_loss": next(losses)}

    monkeypatch.setattr(ExtractorTrainer, "_evaluate", scripted)
    out = train_extractor.main(config(data, tmp_path / "out", epochs=9, holdout=0.2, patience=2))
    assert len(states) == 4
    assert all(torch.equal(value, states[1][name]) for name, value in weights(out).items())


def test_held_out_images_are_not_trained_on(tmp_path, data):
    chosen = config(data, tmp_path / "out", holdout=0.25)
    images, split = train_extractor.read_images(data / "images.h5"), train_extractor.read_split(data / "split.json")
    train_rows, held_rows = train_extractor.choose_rows(chosen, images, split)
    assert not set(train_rows) & set(held_rows)
    assert len(held_rows) == round(0.25 * (len(train_rows) + len(held_rows)))
    both = np.concatenate([train_rows, held_rows])
    assert set(images.labels[both]) == set(split.base_classes) and not images.is_test[both].any()


WORKER = """
import sys, numpy as np, torch
from pathlib import Path
from lightning_fabric import Fabric
from lowshot.representation.backbones import Extractor, ModelConfig
from lowshot.data.datasets.images import read_images
from lowshot.representation.extractor_training import ExtractorTrainer
from lowshot.representation.settings import BatchSGM, ExtractorSettings
from lowshot.core.training import TrainingRun

fabric = Fabric(accelerator="cpu", devices=int(sys.argv[2]))
fabric.launch()
torch.manual_seed(0)
model = Extractor(ModelConfig("Conv4", 10, 3, 16, width=0.25))
for i, layer in enumerate(model.trunk):
    if isinstance(layer, torch.nn.BatchNorm2d):
        model.trunk[i] = torch.nn.Identity()
images, out = read_images(Path(sys.argv[1]) / "images.h5"), Path(sys.argv[3])
out.mkdir(exist_ok=True)
settings = ExtractorSettings(loss=BatchSGM(1.0), epochs=2, batch_size=20, lr=0.005)
run = TrainingRun(out, fabric.is_global_zero, {})
ExtractorTrainer(settings, fabric, run, model, images, images.rows(False), np.empty(0, int)).fit()
if fabric.is_global_zero:
    torch.save(model.state_dict(), out / "model.pt")
"""


def test_two_processes_train_as_one(tmp_path, data):
    """Batch-SGM is not a mean over examples: its gradient must be averaged over processes before taking the norm.

    Without batch norm, whose statistics differ between processes, the weights agree up to rounding.
    """
    (tmp_path / "worker.py").write_text(WORKER)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for n in (1, 2):
        command = [sys.executable, tmp_path / "worker.py", data, str(n), tmp_path / f"{n}"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    one, two = (weights(tmp_path / n) for n in ("1", "2"))
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def test_two_processes_from_the_command_line(tmp_path, data):
    options = ["--model", "Conv4", "--model.width", 0.25, "--epochs", 2, "--batch_size", 20, "--accelerator", "cpu"]
    result = run_process("train_extractor.py", "--data", data, *options, "--out", tmp_path / "two", "--devices", 2)
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "two" / "log.jsonl").read_text().splitlines()) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["two"]
    assert read_json(tmp_path / "two" / "config.json")["config"]["devices"] == 2


def test_a_launcher_that_starts_too_few_processes(tmp_path, data, monkeypatch):
    """As with one SLURM task, where Fabric ignores `devices`."""
    slurm = {"NTASKS": "1", "JOB_NAME": "x", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_ID": "1"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    options = ["--model", "Conv4", "--accelerator", "cpu", "--devices", 2]
    assert_refused(run_script("train_extractor.py", "--data", data, "--out", tmp_path / "out", *options), "1 process")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", ["config.json", "log.jsonl"])
def test_leftovers_that_were_cut_off_do_not_block(tmp_path, data, monkeypatch, cut):
    monkeypatch.setattr(ExtractorTrainer, "_keep_best", lambda self, record: self.progress["epoch"] and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_extractor.main(config(data, tmp_path / "out"))
    monkeypatch.undo()
    leftover = tmp_path / ".lowshot" / "out" / cut
    leftover.write_text(
        leftover.read_text()[:-20] if cut == "config.json" else leftover.read_text() + '{"step": 2, "lo'
    )
    train_extractor.main(config(data, tmp_path / "out"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_weights_that_diverge_in_the_last_step_are_not_kept(tmp_path, data, monkeypatch):
    step = ExtractorTrainer._step

    def spoils(self, positions, *views):
        record = step(self, positions, *views)
        if self.progress["epoch"] == 1:
            self.model.classifier.weight.data[0] = float("inf")
        return record | {"loss": torch.tensor(1.0)}

    monkeypatch.setattr(ExtractorTrainer, "_step", spoils)
    with pytest.raises(InputError, match="last good checkpoint"):
        train_extractor.main(config(data, tmp_path / "out"))
    state = torch.load(tmp_path / ".lowshot" / "out" / "checkpoint.pt", weights_only=True)
    assert state["epoch"] == 1 and state["model"]["classifier.weight"].isfinite().all()


def test_a_model_of_the_folder_rebuilds_it(extractor):
    content = read_json(extractor / "config.json")
    assert content["schema"] == "lowshot-extractor-1" and content["model"]["name"] == "Conv4"
    assert set(content) == {"stage", "config", "inputs", "lineage", "schema", "model", "checksum"}


def test_schedules():
    published = [Steps(warmup_epochs=1).rate(e, 90, 0.1) for e in (0, 1, 29, 30, 89)]
    assert published == pytest.approx([0.01, 0.1, 0.1, 0.01, 0.001])
    cosine = [Cosine().rate(e, 10, 0.2) for e in (0, 5, 10)]
    assert cosine == pytest.approx([0.2, 0.1, 0.0])
    warmed = [Cosine(warmup_epochs=2, warmup_lr=0.05).rate(e, 12, 0.2) for e in (0, 1.9, 2, 7, 12)]
    assert warmed == pytest.approx([0.05, 0.05, 0.2, 0.1, 0.0])
    cycles = [Cosine(n_cycles=2).rate(e, 8, 0.2) for e in (0, 2.9, 4, 6)]
    assert cycles == pytest.approx([0.2, 0.1, 0.2, 0.1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--modle", "Conv4"], ["no such setting", "modle", "did you mean 'model'"]),
        (["--lr", "-1"], ["lr"]),
        (["--model", "ResNet11"], ["model"]),
        (["--patience", "3"], ["patience", "holdout"]),
        (["--seed", "-1"], ["seed"]),
        (["--batch_size", "1"], ["batch_size 1", "two"]),
        (["--augment.resized_crop", "true"], ["resized_crop", "stored pixels"]),
        (["--loss", "sgm", "--head", "cosine"], ["--loss sgm", "needs --head linear"]),
        (["--loss", "l2", "--mixup", "beta"], ["mixup", "not l2"]),
        (["--schedule", "cosine", "--schedule.decay", "2"], ["schedule.decay", "no setting of cosine", "step"]),
        (["--schedule.n_cycles", "2"], ["schedule.n_cycles", "no setting of step", "cosine"]),
        (["--width", "0.5"], ["--width: is called model.width now"]),
        (["--loss_weight", "0.5"], ["--loss_weight: is called loss.weight now"]),
        (["--warmup_epochs", "1"], ["--warmup_epochs: is called schedule.warmup_epochs now"]),
        (["--shots", "5"], ["--shots: is a setting of finetune_extractor.py now"]),
    ],
)
def test_bad_settings_are_one_line(tmp_path, data, arguments, words):
    assert_refused(run_script("train_extractor.py", "--data", data, "--out", tmp_path / "out", *arguments), *words)
    assert not list(tmp_path.iterdir())


def test_unknown_key_in_a_config_file(tmp_path, data):
    (tmp_path / "c.yaml").write_text("epochs: 1\nlearning_rate: 0.1\n")
    result = run_script("train_extractor.py", "--config", tmp_path / "c.yaml", "--data", data, "--out", tmp_path / "x")
    assert_refused(result, "learning_rate")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_on_disk_train_and_a_corrupt_one_is_named(tmp_path, image_folder, num_workers):
    import preprocessing

    root = tmp_path / "photos"
    shutil.copytree(image_folder, root)
    photos = {"name": "folder", "test_per_class": 4, "max_shots": 5}
    data = preprocessing.main(settings(preprocessing.Config, dataset=photos, root=root, out=tmp_path / "data"))
    options = {"epochs": 1, "num_workers": num_workers, "augment": {"resized_crop": True}}
    options["model"] = {"name": "Conv4", "width": 0.25, "image_size": 16}
    train_extractor.main(config(data, tmp_path / "whole", **options))
    for image in sorted(root.rglob("*.png"))[::2]:
        image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(InputError, match=r"^\S+class\d/\d+\.png: corrupt image"):
        train_extractor.main(config(data, tmp_path / "broken", **options))
    assert not list(tmp_path.glob("broken*"))


def test_mixed_precision_trains(tmp_path, data):
    out = train_extractor.main(config(data, tmp_path / "out", precision="bf16-mixed", epochs=1))
    assert all(value.dtype != torch.bfloat16 for value in weights(out).values())


def test_settings_from_the_command_line_are_of_plain_types(tmp_path, monkeypatch):
    """The checkpoint contains the optimiser's learning rates, and is read with weights_only."""
    seen = []
    arguments = [
        "--data",
        "d",
        "--out",
        "o",
        "--lr",
        "0.1",
        "--weight_decay",
        "0.2",
        "--epochs",
        "2",
        "--model",
        "Conv4",
    ]
    monkeypatch.setattr("sys.argv", ["train_extractor.py", *arguments, "--augment.blur_sigma", "0.5"])
    cli.run(seen.append, train_extractor.Config, None)
    values = list(flat(dataclasses.asdict(seen[0])).values())
    assert {type(value) for value in values} <= {int, float, str, bool, type(None), list, type(tmp_path)}
    assert [seen[0].lr, seen[0].epochs, seen[0].model.name, seen[0].augment.blur_sigma] == [0.1, 2, "Conv4", 0.5]


def completed(config_class, file):
    """Return the settings of a file, completed by the required settings that it lacks."""
    words = ["--config", str(file)]
    while True:
        try:
            return parse(config_class, words)
        except InputError as error:
            names, _, cause = str(error).partition(": ")
            assert cause.startswith(("is required", "are required")) and not set(names.split(", ")) & set(words), error
            words += [word for name in names.split(", ") for word in (name, "1")]


def test_every_recipe_config_is_accepted():
    """A file in configs/ has only settings of its stage, with valid values."""
    files = sorted((ROOT / "configs").glob("*/*.yaml"))
    assert files
    for file in files:
        name, *variant = file.stem.split("-")
        stage = importlib.import_module(name)
        assert completed(stage.COMMANDS[variant[-1]][1] if hasattr(stage, "COMMANDS") else stage.Config, file)


def test_a_training_that_learns_nothing_says_so(data, tmp_path, capfd):
    options = {"data": data, "model": {"name": "Conv4", "width": 0.25}, "epochs": 1, "batch_size": 16, "lr": 1e-9}
    stuck = settings(train_extractor.Config, **options, out=tmp_path / "stuck", accelerator="cpu")
    train_extractor.main(stuck)
    assert "CHECK: the extractor is at chance" in capfd.readouterr().err


def test_the_log_is_a_table_too(extractor):
    lines = (extractor / "log.csv").read_text().splitlines()
    records = [json.loads(line) for line in (extractor / "log.jsonl").read_text().splitlines()]
    assert lines[0].split(",") == list(records[0]) and len(lines) == 1 + len(records)
    assert [float(cell) for cell in lines[1].split(",")] == list(records[0].values())
