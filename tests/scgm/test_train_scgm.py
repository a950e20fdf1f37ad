"""Training on superclasses: it does not use fine labels, and resumed and parallel runs end like a plain one."""

import json
import shutil
import signal

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused, run_process, run_script, settings

import save_features
import train_scgm
from lowshot.core.errors import InputError
from lowshot.core.files import read_json, write_json
from lowshot.core.seeds import stream
from lowshot.core.settings import flat
from lowshot.data.datasets.images import Images, read_images, write_images
from lowshot.data.features import read_features
from lowshot.report.mixture import read_means
from lowshot.representation.backbones import load_extractor
from lowshot.representation.operations import operations_per_image
from lowshot.scgm import model as scgm_model
from lowshot.scgm import training
from lowshot.scgm.model import ScgmModel
from lowshot.scgm.training import ScgmTrainer

METHODS = ["scgm_g", "scgm_a", "coarse", "ancor"]


# With 100 training images: three full batches and one of four.
OPTIONS = {"model": {"name": "Conv4", "width": 0.1}, "epochs": 3, "schedule": {"n_cycles": 1}, "batch_size": 32,
           "accelerator": "cpu"}  # fmt: skip
MIXTURE = {"n_subclasses": 10, "e_step_every": 2}


def config(data, out, method="scgm_g", **options):
    """Settings with a small mixture; `method` is its name, or a dict of its settings."""
    chosen = {"name": method} if isinstance(method, str) else method
    mixture = MIXTURE if chosen["name"].startswith("scgm") else {}
    return settings(train_scgm.Config, data=data, out=out, method={**mixture, **chosen}, **(OPTIONS | options))


def train(data, out, **options):
    return train_scgm.main(config(data, out, **options))


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


def mixture(folder):
    with h5py.File(folder / "mixture.h5") as file:
        return {name: values[:] for name, values in file.items()}


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same(one, other):
    """Check that network, means and assignments are identical."""
    a, b = weights(one) | mixture(one), weights(other) | mixture(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not np.array_equal(a[name], b[name])] == []


@pytest.fixture(scope="module")
def changed(data, tmp_path_factory):
    """A function that copies `data` with changed labels or a changed split."""

    def change(labels=None, **entries):
        folder = tmp_path_factory.mktemp("changed")
        images, split = read_images(data / "images.h5"), read_json(data / "split.json")
        if labels is not None:
            images = Images(labels(images.labels.copy()), images.is_test, images.pixels)
        made_from = {"stage": "preprocessing", "config": {}, "inputs": {}}
        write_images(folder / "images.h5", images, made_from)
        split |= entries
        split.pop("digest")
        write_json(folder / "split.json", split)
        return folder

    return change


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """scgm_a, which has all parts, trained for three epochs with assignments before the first and the third."""
    return train(data, tmp_path_factory.mktemp("trained") / "out", method="scgm_a")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_without_the_fine_labels(tmp_path, data, changed, method):
    """With labels shuffled within superclasses, all weights, means and assignments are equal; the log differs."""

    def shuffled(labels):
        for superclass in (0, 1):
            rows = np.flatnonzero(labels // 5 == superclass)
            labels[rows] = np.random.default_rng(superclass).permutation(labels[rows])
        return labels

    chosen = {"method": method, "holdout": 0.1, "lr": 0.3, "epochs": 8}
    out = train(data, tmp_path / "out", **chosen)
    other = train(changed(shuffled), tmp_path / "shuffled", **chosen)
    assert_same(out, other)
    first, last = records(out)[0], records(out)[-1]
    assert last["loss_superclass"] < first["loss_superclass"]  # the contrast's grows with its queues
    assert last["top1"] > 0.8 and last["held_top1"] > 0.7
    terms = {"loss_superclass", *(["loss_contrast"] if method in ("scgm_a", "ancor") else [])}
    if method.startswith("scgm"):
        terms |= {"loss_subclass", "loss_superclass_of_subclass"}
        assert last["held_top1_mixture"] > 0.7
        assert last["held_nmi"] > 0.7  # of a mixture that has seen two superclasses only
        assert first["assigned_nmi"] != records(other)[0]["assigned_nmi"]
    assert {name for name in first if name.startswith("loss_")} == terms


def test_means_are_kept_with_the_assignments(trained, data):
    images, split = read_images(data / "images.h5"), read_json(data / "split.json")
    content = mixture(trained)
    assert content["superclasses"].tolist() == [0, 1] and len(split["superclass_names"]) == 2
    assert content["superclass_means"].shape == (2, 128) and content["subclass_means"].shape == (10, 128)
    assert content["rows"].tolist() == np.flatnonzero(~images.is_test).tolist()
    assert content["sizes"].shape == (2, 10) and content["sizes"].sum(1).tolist() == [100, 100]
    assert np.bincount(content["subclasses"], minlength=10).tolist() == content["sizes"][-1].tolist()
    assert content["sizes"].min() >= 8 and content["sizes"].max() <= 12
    assert sorted(p.name for p in trained.iterdir()) == [
        "SHA256SUMS", "config.json", "log.csv", "log.jsonl", "mixture.h5", "model.pt", "tensorboard"
    ]  # fmt: skip


def test_operations_are_of_queries_keys_and_e_steps(data, trained):
    """A step of two views costs 3 + 1 forward passes of the encoder, an E-step one."""
    forward = operations_per_image(load_extractor(trained), 16)
    assert records(trained)[-1]["operations"] == forward * 100 * (3 * 4 + 2)


def test_a_baseline_has_means_of_superclasses_only(tmp_path, data):
    content = mixture(train(data, tmp_path / "out", method="coarse", epochs=1))
    assert content.keys() == {"superclasses", "superclass_means"}


def test_the_embedding_is_what_features_are(tmp_path, data, trained):
    chosen = {"extractor": trained, "data": data, "out": tmp_path, "accelerator": "cpu"}
    out = save_features.main(settings(save_features.Config, **chosen))
    for name, n_rows in (("train", 100), ("test", 40)):
        features = read_features(out / f"{name}.h5", 10)
        assert features.feats.shape == (n_rows, 128) and features.feats.min() < 0


def killed(tmp_path, data, monkeypatch, owner, name, at, *options):
    """Train scgm_a in a process that is killed (SIGKILL) when it calls a function for the `at`-th time."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    worker = tmp_path / "killed.py"
    worker.write_text(
        "import os, signal, train_scgm\n"
        "from lowshot.core.cli import run\n"
        "from lowshot.scgm import training\n"
        f"function, calls = {owner}.{name}, []\n"
        "def killed(*arguments):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == {at}:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return function(*arguments)\n"
        f"{owner}.{name} = killed\n"
        "run(train_scgm.main, train_scgm.Config, '')\n"
    )
    values = flat(OPTIONS | {"method": {"name": "scgm_a", **MIXTURE}})
    words = [item for key, value in values.items() for item in (f"--{key}", value)]
    return run_process(worker, "--data", data, "--out", tmp_path / "out", *words, *options)


def test_a_process_killed_in_the_e_step_ends_the_same(tmp_path, data, trained, monkeypatch):
    """Killed between the scores and the labels of the second assignment; a plain run continues from there."""
    result = killed(tmp_path, data, monkeypatch, "training", "assign_subclasses", 2)
    assert result.returncode == -signal.SIGKILL
    assert (tmp_path / ".lowshot" / "out" / "checkpoint.pt").exists() and not (tmp_path / "out").exists()
    assert len(records(tmp_path / ".lowshot" / "out")) == 2  # epochs before the assignment
    assert_same(train(data, tmp_path / "out", method="scgm_a"), trained)


def interrupt(monkeypatch, at):
    """Interrupt the training before this step, counted from 1."""
    step, calls = ScgmTrainer._step, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(ScgmTrainer, "_step", interrupted)


@pytest.mark.parametrize("at", [6, 10])
def test_a_run_killed_in_an_epoch_ends_the_same(tmp_path, data, trained, monkeypatch, at):
    """In an epoch that uses the last assignment, and in one with a new assignment; four steps each."""
    interrupt(monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "out", method="scgm_a")
    monkeypatch.undo()
    assert_same(train(data, tmp_path / "out", method="scgm_a"), trained)
    assert [record["step"] for record in records(tmp_path / "out")] == [1, 2, 3]


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path, data, trained, monkeypatch):
    """Killed in the second epoch, with checkpoints by time: the log has each epoch once."""
    result = killed(tmp_path, data, monkeypatch, "training.ScgmTrainer", "_step", 6, "--checkpoint_minutes", 60)
    assert result.returncode == -signal.SIGKILL and len(records(tmp_path / ".lowshot" / "out")) == 1
    assert_same(train(data, tmp_path / "out", method="scgm_a"), trained)
    assert [record["step"] for record in records(tmp_path / "out")] == [1, 2, 3]


def test_checkpoints_by_time_change_nothing(tmp_path, data, trained, monkeypatch):
    """If none is due before the end, a killed run starts again."""
    interrupt(monkeypatch, 10)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "out", method="scgm_a", checkpoint_minutes=60)
    assert not (tmp_path / ".lowshot" / "out" / "checkpoint.pt").exists()
    monkeypatch.undo()
    assert_same(train(data, tmp_path / "out", method="scgm_a", checkpoint_minutes=60), trained)


def test_a_run_killed_in_the_first_e_step_leaves_nothing(tmp_path, data, monkeypatch):
    monkeypatch.setattr(training, "assign_subclasses", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(data, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_second_run_skips_and_other_settings_are_refused(data, trained, capsys):
    train(data, trained, method="scgm_a")
    assert "already exists" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"setting method\.tau was 0\.1, now 0\.2"):
        train(data, trained, method={"name": "scgm_a", "tau": 0.2})


def test_an_unfinished_run_with_other_settings_is_not_continued(tmp_path, data, trained):
    shutil.copytree(trained, tmp_path / ".lowshot" / "out")
    with pytest.raises(InputError, match="unfinished run"):
        train(data, tmp_path / "out", method={"name": "scgm_a", "alpha": 0.25})


def test_assignments_come_as_often_as_asked(tmp_path, data):
    """Also in every epoch, for which the released code never makes one. Epochs in between keep the last assignment."""
    every = [[1, 2, 3], [1, 3], [1]]
    for n, expected in zip((1, 2, 5), every):
        out = train(data, tmp_path / str(n), method={"name": "scgm_g", "e_step_every": n})
        log = records(out)
        assert [record["step"] for record in log if "residual" in record] == expected
        assert len(mixture(out)["sizes"]) == len(expected)
        assert all(record["largest_subclass"] <= 12 for record in log if "residual" in record)


def test_a_clean_view_leaves_the_network_as_it_is(tmp_path, data, monkeypatch):
    """Clean images are assigned without augmentation and batch statistics, so twice gives the same result. Augmented
    views differ."""
    kept = {}

    def twice(self, epoch):
        before = {name: value.clone() for name, value in self.model.extractor.state_dict().items()}
        kept["scores"] = log_joint(self, epoch), log_joint(self, epoch + 1)
        kept["same"] = all(torch.equal(v, before[name]) for name, v in self.model.extractor.state_dict().items())
        return kept["scores"][0]

    log_joint = ScgmTrainer._log_joint
    monkeypatch.setattr(ScgmTrainer, "_log_joint", twice)
    for view, same in (("clean", True), ("augmented", False)):
        method, augment = {"name": "scgm_g", "e_step_view": view}, {"flip": True, "shift_pixels": 2}
        train(data, tmp_path / view, method=method, epochs=1, augment=augment)
        assert torch.allclose(*kept["scores"], atol=1e-5) == kept["same"] == same


def test_half_precision_is_the_network_s_only(tmp_path, data, monkeypatch):
    """Scores and losses are float32, because the exponent amplifies rounding errors."""
    seen, assign = [], training.assign_subclasses
    monkeypatch.setattr(
        training, "assign_subclasses", lambda scores, *more: seen.append(scores) or assign(scores, *more)
    )
    train(data, tmp_path / "out", method="scgm_a", precision="bf16-mixed", epochs=1)
    assert seen[0].dtype == torch.float32
    rounded = (seen[0] == seen[0].bfloat16().float()).float().mean()
    assert rounded < 0.1 and all(value.dtype != torch.bfloat16 for value in weights(tmp_path / "out").values())


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_the_weighted_sum_of_its_terms(tmp_path, data, method):
    weighted = {"name": method} | ({"alpha": 0.125} if method.startswith("scgm") else {})
    for record in records(train(data, tmp_path / "out", method=weighted)):
        terms = {name: value for name, value in record.items() if name.startswith("loss_")}
        weights_of = {name: 0.125 if "subclass" in name else 1 for name in terms}
        assert record["loss"] == pytest.approx(sum(weights_of[name] * value for name, value in terms.items()), rel=1e-5)


def test_settings_and_views_reach_their_places(tmp_path, data, monkeypatch):
    """Query, key and E-step use three different views, and temperature, momentum and assignment the given settings."""
    seen = {"momentum": set(), "tau": set(), "assign": set(), "views": {}}
    forward, keys, log_joint = ScgmModel.forward, ScgmModel.keys, ScgmModel.log_joint
    logits, assign = scgm_model.angular_logits, training.assign_subclasses

    def kept(name, images):
        seen["views"].setdefault(name, images.mean(dim=(1, 2, 3)))  # the first batch of 32; means identify images

    monkeypatch.setattr(ScgmModel, "forward", lambda self, *a: kept("query", a[0]) or forward(self, *a))
    monkeypatch.setattr(
        ScgmModel, "keys", lambda self, *a: kept("key", a[0]) or seen["momentum"].add(a[1]) or keys(self, *a)
    )
    monkeypatch.setattr(ScgmModel, "log_joint", lambda self, *a: kept("e_step", a[0]) or log_joint(self, *a))
    monkeypatch.setattr(scgm_model, "angular_logits", lambda *a: seen["tau"].add(a[-1]) or logits(*a))
    monkeypatch.setattr(training, "assign_subclasses", lambda *a: seen["assign"].add(a[1:]) or assign(*a))
    monkeypatch.setattr(training, "stream", lambda *_: stream(0, "order", 0))  # the E-step in the epoch's order
    method = {"name": "scgm_a", "contrast_tau": 0.3, "key_momentum": 0.9, "exponent": 20, "residual": 0.05,
              "max_iterations": 301}  # fmt: skip
    train(data, tmp_path / "out", method=method, epochs=1, augment={"shift_pixels": 3, "border": "border"})
    assert seen["tau"] == {0.3} and seen["momentum"] == {0.9} and seen["assign"] == {(20, 0.05, 301)}
    views = [view[:32] for view in seen["views"].values()]
    assert len(views) == 3
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(views[one], views[other], atol=1e-4)
        assert torch.corrcoef(torch.stack([views[one], views[other]]))[0, 1] > 0.5  # of the same images


def test_two_processes_agree_on_everything(tmp_path, data, monkeypatch):
    """Both processes write their final state: means, queues and assignments are equal."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    worker = tmp_path / "train_two.py"
    worker.write_text(
        "import torch, train_scgm\n"
        "from lowshot import scgm\n"
        "from lowshot.core.cli import run\n"
        "from lowshot.scgm.training import ScgmTrainer\n"
        "class Told(ScgmTrainer):\n"
        "    def fit(self):\n"
        "        trained = super().fit()\n"
        f"        torch.save(trained.state_dict(), f'{tmp_path}/rank{{self.fabric.global_rank}}.pt')\n"
        "        return trained\n"
        "scgm.ScgmTrainer = Told\n"
        "run(train_scgm.main, train_scgm.Config, '')\n"
    )
    options = ["--model", "Conv4", "--model.width", 0.1, "--accelerator", "cpu", "--epochs", 2, "--batch_size", 32,
               "--schedule.n_cycles", 1, "--method", "scgm_a", "--method.n_subclasses", 10, "--method.e_step_every", 1,
               "--method.queue_length", 9, "--devices", 2, "--holdout", 0.2, "--patience", 2]  # fmt: skip
    result = run_process(worker, "--data", data, "--out", tmp_path / "out", *options)
    assert result.returncode == 0 and "D = 128" in result.stdout, result.stderr
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    superclasses = read_images(data / "images.h5").labels[mixture(tmp_path / "out")["rows"]] // 5
    assert [set(superclasses[images]) for images in one["queues.images"].numpy()] == [{0}, {1}]
    assert one["queues.images"].min() >= 0 and one["sizes"].sum(1).tolist() == [80, 80]
    assert read_json(tmp_path / "out" / "config.json")["config"]["devices"] == 2
    assert np.array_equal(mixture(tmp_path / "out")["subclass_means"], one["superclasses.subclass_means"])


def test_scores_that_are_nan_name_the_batch(tmp_path, data, monkeypatch):
    log_joint, calls = ScgmModel.log_joint, []

    def spoilt(self, images, superclasses):
        calls.append(1)
        return log_joint(self, images, superclasses) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(ScgmModel, "log_joint", spoilt)
    with pytest.raises(InputError, match="E-step of epoch 1: NaN in the scores of batch 2 of 3"):
        train(data, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_last_image_alone_is_no_batch(tmp_path, data):
    """With 99 images and batches of two, neither step uses it: batch norm over one pixel per image needs two images."""
    out = train(data, tmp_path / "out", model={"name": "VGG16BN", "width": 0.1}, batch_size=2, epochs=1, holdout=0.01)
    assert mixture(out)["sizes"].sum() == 99


def test_a_superclass_with_a_single_class_works(tmp_path, data, changed):
    superclass_of = [0, 0, 0, 0, 0, 1, 1, 1, 1, 2]
    folder = changed(superclass_of=superclass_of, superclass_names=["a", "b", "c"])
    out = train(folder, tmp_path / "out", method={"name": "scgm_a", "n_subclasses": 3}, epochs=1)
    assert mixture(out)["superclasses"].tolist() == [0, 1, 2]
    assert mixture(out)["superclass_means"].shape == (3, 128)


def test_base_classes_only(tmp_path, data):
    split = read_json(data / "split.json")
    out = train(data, tmp_path / "out", classes="base", method={"name": "scgm_g", "n_subclasses": 4}, epochs=1)
    labels = read_images(data / "images.h5").labels[mixture(out)["rows"]]
    assert sorted(set(labels.tolist())) == sorted(split["base_classes"])


def subclasses(n):
    return {"method": {"name": "scgm_g", "n_subclasses": n}}


def refused_folder(name, data, changed):
    return {
        "no superclass": lambda: changed(superclass_of=[0] * 5 + [None] + [1] * 4),
        "no superclasses": lambda: changed(superclass_of=[None] * 10, superclass_names=[]),
        "no image": lambda: changed(lambda labels: np.where(labels >= 5, labels - 5, labels)),
        "one superclass": lambda: changed(superclass_of=[0] * 10),
    }.get(name, lambda: data)()


@pytest.mark.parametrize(
    ("what", "options", "words"),
    [
        ("no superclass", {}, r"split\.json: class 5 \(\S+\) has no superclass"),
        ("no superclasses", {}, r"split\.json: the split of \S+ has no superclasses to train on"),
        ("no image", {}, r"images\.h5: has no training images of superclass 1 \(super1\)"),
        ("one superclass", {}, "has a single superclass"),
        ("", subclasses(1), "n_subclasses 1: must be between 2 "),
        ("", subclasses(101), "n_subclasses 101: must be between .* and 100 "),
        ("", {**subclasses(91), "holdout": 0.1}, "n_subclasses 91: must be between .* and 90 "),
        ("", {"patience": 2}, "--patience: early stopping needs held-out images. Use --holdout 0.1"),
        (
            "",
            {"epochs": 8, "schedule": {"n_cycles": 3}},
            "n_cycles 3: 8 epochs .without warm-up. cannot be divided into 3 equal cycles. Use",
        ),
        ("", {"batch_size": 2, "devices": 2}, "each process needs at least two images"),
    ],
)
def test_bad_input_is_named(tmp_path, data, changed, what, options, words):
    with pytest.raises(InputError, match=words):
        train(refused_folder(what, data, changed), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_early_stopping_leaves_only_assignments_that_the_kept_network_has_seen(tmp_path, data):
    """Without improvement, patience ends the training. `sizes` has no rows for assignments that were never made."""
    method = {"name": "scgm_g", "e_step_every": 1}
    out = train(data, tmp_path / "out", method=method, epochs=8, holdout=0.2, patience=1, lr=1e-30)
    sizes, means = mixture(out)["sizes"], read_means(out)
    assert 1 <= len(sizes) <= len(records(out)) < 8 and set(sizes.sum(1).tolist()) == {80}
    assert means.epochs.tolist() == list(range(len(sizes))) and means.n_epochs == len(sizes)


def test_a_baseline_has_no_subclasses(tmp_path, data):
    result = run_script("train_scgm.py", "--data", data, "--out", tmp_path / "out", "--method", "coarse",
                        "--method.n_subclasses", 4)  # fmt: skip
    assert_refused(result, "method.n_subclasses", "no setting of coarse", "scgm_g, scgm_a")


def test_the_command_line_refuses_in_one_line(tmp_path, data):
    result = run_script("train_scgm.py", "--data", data, "--out", tmp_path / "out", "--method.n_subclasses", 1)
    assert_refused(result, "--method.n_subclasses 1: must be between 2 (the number of superclasses)")
    assert not list(tmp_path.iterdir())
