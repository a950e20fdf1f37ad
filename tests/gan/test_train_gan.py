"""GANs: pre-training, fine-tuning, errors, and samples in the benchmark."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, assert_refused, copy_to_edit, run_process, run_script, settings
from lightning_fabric import Fabric
from safetensors.torch import save_file

import low_shot
import sample_gan
import save_features
import score_samples
import train_gan
from lowshot.core.artifacts import recipe
from lowshot.core.errors import InputError
from lowshot.core.files import read_json, write_json
from lowshot.core.seeds import torch_stream
from lowshot.data.datasets.images import read_images
from lowshot.data.features import read_features
from lowshot.data.protocol import read_draws, read_split
from lowshot.gan import data as gan_data
from lowshot.gan import training
from lowshot.gan.augmentation import DiscriminatorAugmentation
from lowshot.gan.data import few_shot_rows
from lowshot.gan.losses import generator_losses, weighted
from lowshot.gan.model import Gan, from_bytes, load_gan, mixtures, sample_noise, to_bytes
from lowshot.gan.networks import GanConfig
from lowshot.gan.scores import image_scores
from lowshot.gan.settings import FixedChanges
from lowshot.representation.backbones import load_extractor
from lowshot.representation.loading import to_tensor

# At least four channels per block: modulation normalises away a single channel, and its gradient is rounding error.
SMALL = {"batch_size": 8, "ngf": 16, "blocks_per_res": [1, 0], "ndf": 2, "z_dim": 4, "score_every": 4,
         "score_images": 40, "accelerator": "cpu"}  # fmt: skip
FEW = {name: value for name, value in SMALL.items() if name not in ("ngf", "blocks_per_res", "ndf", "z_dim")}


def pretrain(data, extractor, out, **changes):
    options = {"steps": 10, "data": data, "extractor": extractor, "out": out}
    return train_gan.pretrain(settings(train_gan.PretrainConfig, **SMALL | options | changes))


def finetune(data, extractor, gan, out, **changes):
    options = {"steps": 6, "data": data, "extractor": extractor, "gan": gan, "out": out, "k": 3}
    return train_gan.finetune(settings(train_gan.FinetuneConfig, **FEW | options | changes))


@pytest.fixture(scope="module")
def gans(tmp_path_factory, data, extractor):
    folder = tmp_path_factory.mktemp("gans")
    pretrained = pretrain(data, extractor, folder / "pretrained")
    return SimpleNamespace(folder=folder, pretrained=pretrained, data=data, extractor=extractor,
                           finetuned=finetune(data, extractor, pretrained, folder / "k3"))  # fmt: skip


@pytest.fixture(scope="module")
def by_features(gans):
    """A GAN that embeds classes by features: fine-tuned on three shots of trial 1, and only given their embeddings."""
    options = {"network": {"class_embedding": "features"}, "mismatch": 1.0, "steps": 2}
    before = pretrain(gans.data, gans.extractor, gans.folder / "by_features", **options)
    return SimpleNamespace(
        pretrained=before,
        told=finetune(gans.data, gans.extractor, before, gans.folder / "told", steps=0),
        finetuned=finetune(gans.data, gans.extractor, before, gans.folder / "more", mismatch=1.0),
    )


@pytest.fixture(scope="module")
def sampled(gans, features):
    """Features of samples of the GAN that was fine-tuned on three shots of trial 1."""
    split = gans.data / "split.json"
    samples = sample_gan.main(sample_gan.Config(gan=gans.finetuned, split=split, n_per_class=12,
                                                out=gans.folder / "samples" / "samples.h5"))  # fmt: skip
    out = gans.folder / "samples" / "trial1_k3"
    save_features.main(save_features.Config(extractor=gans.extractor, data=samples, out=out, accelerator="cpu"))
    return SimpleNamespace(images=samples, features=out / "train.h5")


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def differing(one, other) -> list[str]:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def stop_and_go_on(monkeypatch, step, train):
    """Train, stop at the beginning of `step`, and train again."""
    plain = training.GanTrainer._step

    def stopping(self, at):
        if at == step:
            raise KeyboardInterrupt
        return plain(self, at)

    monkeypatch.setattr(training.GanTrainer, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train()
    monkeypatch.setattr(training.GanTrainer, "_step", plain)
    train()


def test_the_folder_rebuilds_the_gan_of_the_best_fid(gans):
    for folder, against in ((gans.pretrained, {"fid"}), (gans.finetuned, {"fid", "fid_base"})):
        own = {"rows.json"} if "fid_base" in against else set()
        names = {p.name for p in folder.iterdir()} - {"last.pt"}  # there if the last weights are not the best
        assert names == own | {"SHA256SUMS", "config.json", "log.csv", "log.jsonl", "model.pt", "tensorboard"}
        for record in records(folder):
            assert against <= set(record) and all(math.isfinite(value) for value in record.values())
    assert [record["step"] for record in records(gans.pretrained)] == [4, 8, 10]
    gan = load_gan(gans.pretrained)
    kept = min(records(gans.pretrained), key=lambda record: record["fid"])["step"]
    assert int(gan.averaged.n_averaged) == kept  # number of updates of the generator
    assert read_json(gans.pretrained / "config.json")["config"].keys() >= {"network", "ngf", "augment", "ema"}


def test_a_second_run_is_skipped_and_other_settings_are_refused(gans, capsys):
    pretrain(gans.data, gans.extractor, gans.pretrained)
    finetune(gans.data, gans.extractor, gans.pretrained, gans.finetuned)
    assert capsys.readouterr().out.count("already exists") == 2
    with pytest.raises(InputError, match="setting lr was"):
        pretrain(gans.data, gans.extractor, gans.pretrained, lr=0.1)
    with pytest.raises(InputError, match="setting k was 3, now 2"):
        finetune(gans.data, gans.extractor, gans.pretrained, gans.finetuned, k=2)


@pytest.mark.parametrize("step", [3, 5, 9])
def test_a_stopped_training_ends_with_the_same_weights(gans, tmp_path, monkeypatch, step):
    """Interrupted before the first checkpoint, after it, and after the second."""
    train = partial(pretrain, gans.data, gans.extractor, tmp_path / "gan")
    stop_and_go_on(monkeypatch, step, train)
    assert differing(tmp_path / "gan", gans.pretrained) == []
    same = [{**record, "time": 0} for folder in (tmp_path / "gan", gans.pretrained) for record in records(folder)]
    assert same[:3] == same[3:]


def test_a_killed_finetuning_ends_with_the_same_weights(gans, tmp_path):
    """SIGKILL to a separate process, after its first checkpoint."""
    arguments = [f"--{name}={value}" for name, value in FEW.items()]
    arguments += ["--steps=40", f"--data={gans.data}", f"--extractor={gans.extractor}", f"--gan={gans.pretrained}"]
    arguments += ["--k=3", "--semi_supervised=true", "--alpha=1", "--d_mode=all", "--lr=0.001", "--beta1=0.1"]
    command = [sys.executable, str(ROOT / "train_gan.py"), "finetune", *arguments]
    checkpoint = tmp_path / ".lowshot" / "killed" / "checkpoint.pt"
    process = subprocess.Popen([*command, f"--out={tmp_path}/killed"], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    result = subprocess.run([*command, f"--out={tmp_path}/killed"], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    options = {"steps": 40, "semi_supervised": True, "alpha": 1.0, "d_mode": "all", "lr": 0.001, "beta1": 0.1}
    whole = finetune(gans.data, gans.extractor, gans.pretrained, tmp_path / "whole", **options)
    assert differing(tmp_path / "killed", whole) == []


@pytest.mark.slow
def test_two_processes_train_as_one(gans, tmp_path):
    """There is no batch norm, so results differ only by the order of summation."""
    arguments = [f"--{name}={value}".replace(" ", "") for name, value in SMALL.items()]
    result = run_process("train_gan.py", "pretrain", *arguments, "--steps=4", "--mismatch=1", f"--data={gans.data}",
                        f"--extractor={gans.extractor}", f"--out={tmp_path}/two", "--devices=2")  # fmt: skip
    assert result.returncode == 0, result.stderr
    one = pretrain(gans.data, gans.extractor, tmp_path / "one", steps=4, mismatch=1.0)
    a, b = weights(one), weights(tmp_path / "two")
    for name in a:
        assert torch.allclose(a[name], b[name], atol=5e-5), name
    assert read_json(one / "config.json") == read_json(tmp_path / "two" / "config.json")


@pytest.mark.slow
def test_two_processes_fine_tune_as_one(gans, by_features, tmp_path):
    """Includes a first record of step 0, which is a checkpoint already."""
    arguments = [f"--{name}={value}" for name, value in FEW.items()]
    result = run_process("train_gan.py", "finetune", *arguments, "--steps=6", "--k=3", "--mismatch=1", "--devices=2",
                        f"--data={gans.data}", f"--extractor={gans.extractor}", f"--gan={by_features.pretrained}",
                        f"--out={tmp_path}/two")  # fmt: skip
    assert result.returncode == 0, result.stderr
    for one, two in zip(records(by_features.finetuned), records(tmp_path / "two"), strict=True):
        assert one | {"time": 0} == pytest.approx(two | {"time": 0}, rel=1e-3, abs=1e-4)  # the first record is best


@pytest.mark.parametrize("network", ["published", "modulated"])
def test_fine_tuning_leaves_the_rest_as_it_was(gans, tmp_path, network):
    """The weights are frozen. The vectors of spectral norm still change."""
    before = pretrain(gans.data, gans.extractor, tmp_path / "base", network=network, steps=2)
    after = finetune(gans.data, gans.extractor, before, tmp_path / "few", steps=4, g_mode="linear", d_mode="embed")
    gan = Gan(GanConfig(**read_json(before / "config.json")["model"]))
    names = {f"{part}.{name}" for part in ("generator", "discriminator")
             for name, _ in getattr(gan, part).named_parameters()}  # fmt: skip
    old, new = load_gan(before), load_gan(after)
    old.begin_finetuning(0)
    a, b = old.state_dict(), new.state_dict()
    moved = {name for name in names if not torch.equal(a[name], b[name])}
    linear = {"published": {"table", "film"}, "modulated": {"table", "mapping", "style"}}[network]
    expected = {name for name in names if name.startswith("generator") and linear & set(name.split("."))}
    assert moved <= expected | {"discriminator.table.weight"} and "discriminator.table.weight" in moved
    assert {name.split(".")[-2] for name in moved if name.startswith("gen")} >= {"table"}
    table, rows = "discriminator.table.weight", read_split(gans.data / "split.json").base_classes
    assert torch.equal(a[table][rows], b[table][rows])  # base classes are not used


def test_the_average_forgets_its_first_weights_and_then_follows_slowly():
    gan = Gan(GanConfig(n_classes=2, n_channels=1, image_size=16, ngf=16, ndf=1, z_dim=2), ema=0.9)
    parameter, average = gan.generator.image.bias, gan.averaged.module.image.bias
    expected = parameter.item()
    for n in range(200):
        with torch.no_grad():
            parameter.fill_(float(n))
        gan.averaged.update_parameters(gan.generator)
        share = min(0.9, n / (n + 10))
        expected = share * expected + (1 - share) * n if n else 0.0
        assert average.item() == pytest.approx(expected, abs=1e-3), n
    gan.begin_finetuning(0.0)
    assert parameter.item() == pytest.approx(expected, abs=1e-3)


def test_classes_known_by_their_features(gans, by_features):
    """Base classes are embedded by all their training images, novel classes by their shots. No weight changes."""
    old, new = load_gan(by_features.pretrained), load_gan(by_features.told)
    for name, value in old.averaged.module.named_parameters():
        assert torch.equal(value, new.state_dict()[f"generator.{name}"])
    images, split = read_images(gans.data / "images.h5"), read_split(gans.data / "split.json")
    train, draws = images.rows(test=False), read_draws(gans.data / "draws.json")[1]
    extractor = load_extractor(gans.extractor)
    for gan, classes, rows in ((old, split.base_classes, None), (new, split.novel_classes, draws)):
        for c in classes:
            own = train[rows[c][:3]] if rows else train[images.labels[train] == c]
            mean = training.features_of(extractor, [to_tensor(images.pixels[own])]).mean(0)
            for part in (gan.generator, gan.averaged.module, gan.discriminator):
                assert torch.allclose(part.table.means[c], (mean - old.centre) / old.spread, atol=1e-3)
    z, labels = torch.ones(4, 4), torch.tensor(split.novel_classes[:4])
    made = new.averaged.module(z, labels).flatten(1)
    assert torch.cdist(made, made).fill_diagonal_(1).min() > 1e-3


def test_a_gan_that_knows_classes_by_features_may_stay_as_it_was(gans, by_features, capsys):
    first, *others = records(by_features.finetuned)
    assert (first["step"], [record["step"] for record in others]) == (0, [4, 6]) and "d_adversarial" not in first
    assert [record["step"] for record in records(by_features.told)] == [0]
    assert records(by_features.told)[0]["fid"] == first["fid"]
    finetune(gans.data, gans.extractor, by_features.pretrained, by_features.told, steps=0)
    assert "already exists" in capsys.readouterr().out


def test_fine_tuning_by_features_is_resumed_behind_its_first_record(gans, by_features, tmp_path, monkeypatch):
    train = partial(finetune, gans.data, gans.extractor, by_features.pretrained, tmp_path / "gan", mismatch=1.0)
    stop_and_go_on(monkeypatch, 3, train)
    assert differing(tmp_path / "gan", by_features.finetuned) == []
    for one, two in zip(records(by_features.finetuned), records(tmp_path / "gan"), strict=True):
        assert one | {"time": 0} == two | {"time": 0}


def test_what_cannot_be_known_by_features_is_refused(gans, by_features, tmp_path):
    options = {"split": gans.data / "split.json", "n_per_class": 2, "gan": by_features.pretrained}
    with pytest.raises(InputError, match=r"by_features: has no embedding of class \d+\. Fine-tune the GAN on shots"):
        sample_gan.main(sample_gan.Config(out=tmp_path / "x.h5", **options))
    sample_gan.main(sample_gan.Config(out=tmp_path / "b.h5", classes="base", **options))
    published = {"name": "published", "class_embedding": "features"}
    with pytest.raises(
        InputError, match=r"network\.class_embedding: no setting of published \(it is one of modulated\)"
    ):
        pretrain(gans.data, gans.extractor, tmp_path / "x", network=published)
    with pytest.raises(InputError, match=r"steps 0: the class embeddings of .*pretrained must be learned"):
        finetune(gans.data, gans.extractor, gans.pretrained, tmp_path / "x", steps=0)
    with pytest.raises(InputError, match="steps 0: --semi_supervised has no effect"):
        finetune(gans.data, gans.extractor, by_features.pretrained, tmp_path / "x", steps=0, semi_supervised=True,
                 alpha=1.0)  # fmt: skip
    scorer = tmp_path / "scorer"
    copy_to_edit(gans.extractor, scorer)
    state = torch.load(scorer / "model.pt", weights_only=True)
    state["trunk.0.weight"] *= 1.1
    torch.save(state, scorer / "model.pt")
    with pytest.raises(InputError, match="by_features: embeds classes by features of another extractor"):
        finetune(gans.data, scorer, by_features.pretrained, tmp_path / "x")


def test_what_a_finetuning_learns_from_and_is_evaluated_by(gans, tmp_path, monkeypatch):
    """Supports, pool and validation images are those of `few_shot_rows` and do not overlap."""
    seen = {}
    plain = training.GanTrainer.__init__

    def noted(self, *arguments):
        seen["references"], seen["labelled"], seen["pool"] = arguments[5:8]
        plain(self, *arguments)

    monkeypatch.setattr(training.GanTrainer, "__init__", noted)
    options = {"semi_supervised": True, "alpha": 0.5, "d_mode": "linear", "steps": 2}
    finetune(gans.data, gans.extractor, gans.pretrained, tmp_path / "semi", **options)
    images, split = read_images(gans.data / "images.h5"), read_split(gans.data / "split.json")
    train, draws = images.rows(test=False), read_draws(gans.data / "draws.json")[1]
    rows = few_shot_rows(images.labels[train], split, draws, 3, "draws.json")
    for part, chosen in (("labelled", rows.supports), ("pool", rows.unlabelled)):
        assert (seen[part].pixels.permute(0, 2, 3, 1).numpy() == images.pixels[train[chosen]]).all()
        assert (seen[part].labels.numpy() == images.labels[train[chosen]]).all()
    extractor = load_extractor(gans.extractor)
    validation = training.features_of(extractor, [to_tensor(images.pixels[train[rows.validation]])])
    own = seen["references"]["novel"].features
    assert torch.cdist(own, validation).argmin(1).unique().numel() == len(own) == len(rows.validation)
    assert torch.cdist(own, validation).amin(1).max() < 1e-3
    assert list(seen["references"]) == ["novel", "base"]


def one_step(gans, p: float = 0.5, **changes):
    """A trainer of a GAN with unlabelled images and every loss term, and a copy of the initial GAN."""
    images = read_images(gans.data / "images.h5")
    known = gan_data.examples(images, images.rows(test=False), torch.device("cpu"))
    options = {"batch_size": 8, "alpha": 0.5, "gamma": 2.0, "lr": 1e-3, "d_lr": 3e-3, "ema": 0.9, "r1": 0.7,
               "augment": FixedChanges(p)}  # fmt: skip
    gan_settings = training.GanSettings(**options | changes)
    gan = load_gan(gans.pretrained)
    fabric = Fabric(accelerator="cpu")
    return training.GanTrainer(gan_settings, fabric, None, gan, None, {}, known, known), deepcopy(gan), known


@pytest.mark.parametrize("mismatch", [None, 0.6])
def test_one_step_by_hand(gans, mismatch):
    """The generator is updated first, against a fixed discriminator.

    The discriminator then sees the images from before that update, in one pass, with other random changes. It has its
    own learning rate.
    """
    trainer, gan, known = one_step(gans, mismatch=mismatch)
    trainer._step(16)
    s, augment = trainer.settings, DiscriminatorAugmentation(trainer.settings.augment)
    g_optimizer, d_optimizer = (torch.optim.AdamW(net.parameters(), lr, (s.beta1, s.beta2), weight_decay=s.weight_decay)
                                for net, lr in ((gan.generator, 1e-3), (gan.discriminator, 3e-3)))  # fmt: skip
    rows, pool = (gan_data.Shuffled(len(known.labels), 8, 0, name).batch(16) for name in ("order", "unlabelled order"))
    noise = torch_stream(0, "noise", 16)
    z, uniforms = torch.randn(8, 4, generator=noise), torch.rand(4, 8, 9, generator=noise)
    labels, p = known.labels[rows], torch.tensor(0.5)
    gan.train()
    fake = gan.generator(z, labels)
    losses = generator_losses(gan.discriminator(augment(fake, uniforms[0], p), labels), z)
    weighted(losses, 2.0, 0.5).backward(inputs=list(gan.generator.parameters()))
    g_optimizer.step()
    real, other = from_bytes(known.pixels[rows]), from_bytes(known.pixels[pool])
    seen = [augment(one, u, p) for one, u in zip((real, fake.detach(), other), uniforms[1:])]
    evaluated = [gan.discriminator(one, labels) for one in seen]
    image = seen[0].requires_grad_(True)
    (slope,) = torch.autograd.grad(gan.discriminator(image, labels).conditional.sum(), image, create_graph=True)
    penalty = slope.square().sum((1, 2, 3)).mean()
    others = labels.roll(1)  # classes that real images are paired with
    wrong = gan.discriminator(seen[0], others).conditional[others != labels]
    assert 0 < len(wrong) < 8
    misnamed = (mismatch or 0) * torch.nn.functional.softplus(wrong).sum() / 8 / 2
    (weighted(training.discriminator_losses(*evaluated, z), 2.0, 0.5) + misnamed + 16 * 0.7 / 2 * penalty).backward()
    d_optimizer.step()
    for part in ("generator", "discriminator"):
        expected, found = getattr(gan, part).state_dict(), getattr(trainer.gan, part).state_dict()
        for name in expected:
            assert torch.allclose(found[name], expected[name], atol=2e-5), (part, name)


def test_the_probability_of_changes_is_adapted_and_resumed(gans, tmp_path, monkeypatch):
    augment = {"name": "adaptive", "target": 0.0, "n_images": 100}
    whole = pretrain(gans.data, gans.extractor, tmp_path / "whole", augment=augment)
    values = [record["augment_p"] for record in records(whole)]
    assert len(set(values)) > 1 and 0 < max(values) <= 0.8
    train = partial(pretrain, gans.data, gans.extractor, tmp_path / "gan", augment=augment)
    stop_and_go_on(monkeypatch, 9, train)
    assert [record["augment_p"] for record in records(tmp_path / "gan")] == values


def test_samples_are_those_of_the_averaged_generator(gans, sampled):
    gan, images = load_gan(gans.finetuned), read_images(sampled.images)
    c = int(images.labels[0])
    z = sample_noise(0, [c, c], [0, 1], gan.config.z_dim)
    with torch.inference_mode():
        expected = to_bytes(gan.averaged.module(z, torch.tensor([c, c]))).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(expected - images.pixels[:2]).max() <= 1


def test_the_generator_rests_between_its_steps(gans, tmp_path):
    rarely = pretrain(gans.data, gans.extractor, tmp_path / "rarely", steps=4, d_steps_per_g=4)
    assert int(load_gan(rarely).averaged.n_averaged) == 1


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(gans, tmp_path, monkeypatch):
    plain = training.GanTrainer._step

    def broken(self, step):
        losses = plain(self, step)
        return losses | {"d_adversarial": torch.tensor(math.nan)} if step >= 6 else losses

    monkeypatch.setattr(training.GanTrainer, "_step", broken)
    with pytest.raises(
        InputError,
        match=r"loss is nan at step 7: the training diverged \(the last good checkpoint is .*\). Use a smaller",
    ):
        pretrain(gans.data, gans.extractor, tmp_path / "gan")
    kept = torch.load(tmp_path / ".lowshot" / "gan" / "checkpoint.pt", weights_only=True)
    assert kept["step"] == 4 and not (tmp_path / "gan").exists()
    assert all(value.isfinite().all() for value in kept["model"].values())


def test_bad_input_is_one_line(gans, tmp_path):
    some = [f"--data={gans.data}", f"--extractor={gans.extractor}", f"--out={tmp_path}/x", f"--gan={gans.pretrained}"]
    assert_refused(run_script("train_gan.py", "finetune", *some, "--k=6"), "draws.json", "but the largest n is 6")
    none = ["--split", gans.data / "split.json", "--out", tmp_path / "s.h5", "--n_per_class", "0"]
    assert_refused(run_script("sample_gan.py", "--gan", gans.finetuned, *none), "n_per_class")
    with pytest.raises(InputError, match="k3: already fine-tuned"):
        finetune(gans.data, gans.extractor, gans.finetuned, tmp_path / "x")
    with pytest.raises(InputError, match=r"images\.h5: the images have 16 px, but 4 entries of blocks_per_res need"):
        pretrain(gans.data, gans.extractor, tmp_path / "x", blocks_per_res=[1, 1, 1, 1])
    assert not list(tmp_path.iterdir())


def test_a_batch_must_be_shared_equally(gans, tmp_path):
    with pytest.raises(InputError, match="batch_size 8: must be divisible by the number of processes, 3"):
        pretrain(gans.data, gans.extractor, tmp_path / "x", devices=3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--augment=fixed"], "--augment.p: is required: "),
        (["--augment=fixed", "--augment.p=0"], "--augment.p: '0': must be a number > 0 and <= 1"),
        (["--augment.p=0.5"], "--augment.p: no setting of adaptive (it is one of fixed)"),
        (["--augment.mode=fixed"], "--augment.mode: is called augment now"),
        (["--film=affine"], "--film: is called network.film now"),
        (["--class_embedding=features"], "--class_embedding: is called network.class_embedding now"),
        (["--network=my_nets.py:Net"], "no network is called 'my_nets.py:Net'. Available: published, modulated"),
    ],
)
def test_settings_of_other_choices_are_refused(given, words, tmp_path):
    paths = [f"--data={tmp_path}", f"--extractor={tmp_path}", f"--out={tmp_path}/x"]
    assert_refused(run_script("train_gan.py", "pretrain", *paths, *given), words)


OWN = """
from dataclasses import dataclass


@dataclass
class Mirror:
    below: float = 0.5
    n_uniforms = 1

    def __call__(self, images, uniforms):
        assert uniforms.shape == (len(images), 1)
        return images.flip(3).where((uniforms[:, 0] < self.below).view(-1, 1, 1, 1), images)
"""


def test_changes_of_the_users_own_are_trained_with(gans, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    options = {"augment": {"name": f"{tmp_path}/mine.py:Mirror", "below": 0.3}, "steps": 2}
    mirrored = pretrain(gans.data, gans.extractor, tmp_path / "gan", **options)
    made_from = read_json(mirrored / "config.json")
    assert made_from["config"]["augment"] == {"name": "mine.py:Mirror", "below": 0.3}
    assert "code of augment" in made_from["inputs"]
    assert differing(mirrored, pretrain(gans.data, gans.extractor, tmp_path / "plain", augment="none", steps=2))
    options["augment"] |= {"below": 0.0}  # never
    never = pretrain(gans.data, gans.extractor, tmp_path / "never", **options)
    assert differing(never, tmp_path / "plain") == []


# Recipes of revision d41a11c, with the settings of all augmentations, and film for the published network only.
CHANGES = {"p": 0.0, "target": 0.6, "n_images": 100_000, "changes": ["flip", "rotate90", "translate", "rotate"]}


@pytest.mark.parametrize(
    ("older", "today"),
    [
        ({"network": "modulated", "augment": CHANGES | {"mode": "adaptive"}}, {}),
        ({"network": "modulated", "augment": CHANGES | {"mode": "adaptive", "p": 0.4}}, {}),  # p was not used
        ({"network": "modulated", "class_embedding": "features", "augment": CHANGES | {"mode": "none"}},
         {"network": {"class_embedding": "features"}, "augment": "none"}),
        ({"network": "published", "film": "affine", "augment": CHANGES | {"mode": "fixed", "p": 0.3}},
         {"network": {"name": "published", "film": "affine"}, "augment": {"name": "fixed", "p": 0.3}}),
    ],
)  # fmt: skip
def test_what_an_older_revision_trained_is_there_already(gans, older, today):
    def made_from(**changes):
        options = {"data": gans.data, "extractor": gans.extractor, "out": "x"}
        return recipe("train_gan pretrain", settings(train_gan.PretrainConfig, **SMALL | options | changes), {})

    now = made_from(**today)
    stored = {**now, "config": {name: v for name, v in now["config"].items() if name not in ("network", "augment")}}
    stored["config"] |= older
    assert now.difference(stored) is None and now.difference(dict(now)) is None
    assert made_from(**today | {"augment": {"name": "fixed", "p": 0.9}}).difference(stored)
    assert made_from(**today | {"network": {"name": "published", "film": "relu"}}).difference(stored)


def test_a_scorer_that_has_learned_novel_classes_is_refused(gans, tmp_path):
    split = read_split(gans.data / "split.json")
    for name in ("labelled", "superclasses", "unlabelled"):
        scorer = tmp_path / name
        copy_to_edit(gans.extractor, scorer)
        made_from = read_json(scorer / "config.json")
        write_json(scorer / "config.json", {**made_from, "lineage": {name: [split.origins[split.novel_classes[0]]]}})
        with pytest.raises(InputError, match=r"has seen images of class \d+ .*, which is novel in this split"):
            pretrain(gans.data, scorer, tmp_path / "x")


def test_a_gan_of_another_split_is_refused(gans, tmp_path):
    """Its base classes could be novel in this split."""
    data = tmp_path / "data"
    copy_to_edit(gans.data, data)
    split = read_json(data / "split.json")
    write_json(data / "split.json", {**split, "seed": 5})
    with pytest.raises(InputError, match="pretrained: trained on another split than"):
        finetune(data, gans.extractor, gans.pretrained, tmp_path / "x")
    other = sample_gan.Config(gan=gans.finetuned, split=data / "split.json", n_per_class=1, out=tmp_path / "s.h5")
    with pytest.raises(InputError, match="k3: trained on another split than"):
        sample_gan.main(other)


@pytest.mark.parametrize("changes", [{"alpha": 0.0, "d_mode": "all"}, {"alpha": 1.0, "d_mode": "embed"}])
def test_unlabelled_images_that_would_teach_nothing_are_refused(gans, tmp_path, changes):
    with pytest.raises(InputError, match="semi_supervised: has no effect with --alpha"):
        finetune(gans.data, gans.extractor, gans.pretrained, tmp_path / "x", semi_supervised=True, **changes)


def test_a_sample_is_the_same_however_many_are_made(gans, sampled, tmp_path):
    options = {"gan": gans.finetuned, "split": gans.data / "split.json"}
    few = read_images(sample_gan.main(sample_gan.Config(**options, n_per_class=2, out=tmp_path / "few.h5")))
    many, novel = read_images(sampled.images), read_split(gans.data / "split.json").novel_classes
    assert few.labels.tolist() == np.repeat(novel, 2).tolist() and not few.is_test.any()
    for c in novel:
        assert np.abs(few.pixels[few.labels == c].astype(int) - many.pixels[many.labels == c][:2]).max() <= 1
    other = read_images(sample_gan.main(sample_gan.Config(**options, n_per_class=2, seed=1, out=tmp_path / "other.h5")))
    assert (other.pixels != few.pixels).any()
    assert len(np.unique(many.pixels.reshape(len(many), -1), axis=0)) == len(many)


def test_last_weights_and_rows_are_kept(gans):
    assert any((folder / "last.pt").exists() for folder in (gans.pretrained, gans.finetuned))
    for folder in (gans.pretrained, gans.finetuned):
        fids = {record["step"]: record["fid"] for record in records(folder)}
        is_best = min(fids, key=fids.get) == max(fids)
        assert (folder / "last.pt").exists() != is_best
    images, rows = read_images(gans.data / "images.h5"), read_json(gans.finetuned / "rows.json")
    split = read_split(gans.data / "split.json")
    rows = {name: rows[name] for name in ("supports", "unlabelled", "validation")}
    assert len(rows["supports"]) == 3 * len(split.novel_classes)
    parts = [set(part) for part in rows.values()]
    assert not parts[0] & parts[1] and not parts[1] & parts[2] and not parts[0] & parts[2]
    assert set(images.labels[rows["validation"]]) == set(split.novel_classes)


def test_noise_and_mixed_classes(gans, tmp_path):
    options = {"gan": gans.finetuned, "split": gans.data / "split.json", "n_per_class": 3}

    def made(name, **changes):
        return read_images(sample_gan.main(sample_gan.Config(**options, **changes, out=tmp_path / f"{name}.h5"))).pixels

    plain, still = made("plain"), made("still", noise_scale=0.0)
    assert (still[0] == still[1]).all() and not (plain[0] == plain[1]).all()
    mixed = made("mixed", mix=0.4)
    assert mixed.shape == plain.shape and (mixed != plain).any()
    classes, labels, numbers = [4, 7, 9], np.repeat([4, 7, 9], 200), np.tile(np.arange(200), 3)
    others, shares = mixtures(0, classes, labels, numbers, 0.4)
    assert (others.numpy() != labels).all() and set(others.tolist()) == set(classes)
    assert 0.6 <= shares.min() < 0.65 and 0.95 < shares.max() <= 1
    few_others, few_shares = mixtures(0, classes, labels[:3], numbers[:3], 0.4)
    assert torch.equal(few_others, others[:3]) and torch.equal(few_shares, shares[:3])


def test_pixels_are_rounded():
    assert to_bytes(torch.tensor([-1.0, 1.0, 0.0, -1 + 1.6 / 127.5, 1.2])).tolist() == [0, 255, 128, 2, 255]


def benchmark(gans, features, sampled, out, per_shot=2, **changes):
    options = {"train": features / "train.h5", "test": features / "test.h5", "split": gans.data / "split.json",
               "draws": gans.data / "draws.json", "classifier": "nearest_mean", "shots": [3], "trials": [1],
               "add": {"samples": {"files": str(sampled), "per_shot": per_shot}}}  # fmt: skip
    return low_shot.main(settings(low_shot.Config, **options | changes, out=out))


def test_samples_join_the_shots(gans, features, sampled, tmp_path):
    """The first samples of each class become training rows. The control has no samples."""
    template = sampled.features.parent.parent / "trial{trial}_k{n_shot}" / "train.h5"
    result = read_json(benchmark(gans, features, template, tmp_path / "with.json"))
    assert result["method"] == "nearest_mean + samples" and result["protocol"]["setting"] == "semi_supervised"
    assert set(result["inputs"]) >= {"samples_1_3"}
    train, made = read_features(features / "train.h5"), read_features(sampled.features)
    split, draws = read_split(gans.data / "split.json"), read_draws(gans.data / "draws.json")[1]
    means = {c: train.feats[train.labels == c].mean(0) for c in split.base_classes_2}
    for c in split.novel_classes_2:
        means[c] = np.concatenate([train.feats[draws[c][:3]], made.feats[made.labels == c][:6]]).mean(0)
    test, classes = read_features(features / "test.h5"), np.array(sorted(means))
    distances = np.linalg.norm(test.feats[:, None] - np.stack([means[c] for c in classes]), axis=2)
    novel = np.isin(test.labels, split.novel_classes_2)
    right = classes[distances.argmin(1)] == test.labels
    assert result["trials"][0]["top1_novel"] == pytest.approx(right[novel].mean())


def test_samples_are_judged_on_the_classes_without_halves(gans, features, sampled, tmp_path):
    """The GAN was trained with split.json; whole.json has the same classes."""
    template = sampled.features.parent.parent / "trial{trial}_k{n_shot}" / "train.h5"
    whole = gans.data / "whole.json"
    result = read_json(benchmark(gans, features, template, tmp_path / "whole.json", split=whole))
    split = read_split(whole)
    assert {one["class"] for one in result["classes"]} == set(range(split.n_classes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shots": [2]}, "was trained on 3 shots of trial 1 and cannot be evaluated on n = 2, trial 1"),
        ({"trials": [2]}, "was trained on 3 shots of trial 1 and cannot be evaluated on n = 3, trial 2"),
        ({"per_shot": 5}, r"12 samples of class \d, but per_shot 5 needs 15\. Use sample_gan.py --n_per_class 15"),
    ],
)
def test_samples_of_other_shots_are_refused(gans, features, sampled, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        benchmark(gans, features, sampled.features, tmp_path / "x.json", **changes)
    assert not (tmp_path / "x.json").exists()


def test_samples_that_do_not_belong_are_refused(gans, features, sampled, tmp_path):
    with pytest.raises(InputError, match=r"not features of GAN samples \(sample_gan\.py, then save_features\.py\)"):
        benchmark(gans, features, features / "train.h5", tmp_path / "x.json")
    with pytest.raises(InputError, match="not a template"):
        benchmark(gans, features, "a{other}", tmp_path / "x.json")
    draws = tmp_path / "draws.json"
    write_json(draws, {**read_json(gans.data / "draws.json"), "seed": 9})
    with pytest.raises(InputError, match="shots of another file than"):
        benchmark(gans, features, sampled.features, tmp_path / "x.json", draws=draws)
    base = sample_gan.Config(gan=gans.pretrained, split=gans.data / "split.json", n_per_class=5, out=tmp_path / "b.h5")
    out = tmp_path / "features"
    options = {"extractor": gans.extractor, "data": sample_gan.main(base), "accelerator": "cpu"}
    save_features.main(save_features.Config(**options, out=out))
    with pytest.raises(InputError, match="was not fine-tuned on shots"):
        benchmark(gans, features, out / "train.h5", tmp_path / "x.json")


def score(gans, features, sampled, out, **changes):
    options = {"samples": sampled, "train": features / "train.h5", "split": gans.data / "split.json",
               "draws": gans.data / "draws.json"}  # fmt: skip
    return read_json(score_samples.main(score_samples.Config(**options | changes, out=out)))


def test_samples_are_scored_by_features(gans, features, sampled, tmp_path):
    result = score(gans, features, sampled.features, tmp_path / "s.json", reference="test", test=features / "test.h5")
    facts = {"k": 3, "trial": 1, "semi_supervised": False, "shared_pool": False}
    assert (
        result["gan"] == facts
        and result["protocol"]["setting"] == "semi_supervised"
        and result["method"] == "trial1_k3"
    )
    real, made = read_features(features / "test.h5"), read_features(sampled.features)
    novel = read_split(gans.data / "split.json").novel_classes
    overall, *each = result["scores"]
    rows = np.flatnonzero(np.isin(real.labels, novel))
    first = np.concatenate([np.flatnonzero(made.labels == c)[:4] for c in novel])
    expected = image_scores(torch.from_numpy(real.feats[rows]), torch.from_numpy(made.feats[first]))
    assert (overall["class"], overall["n_images"]) == (None, 16)
    assert {name: overall[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert overall["class_accuracy"] == pytest.approx(np.mean([one["class_accuracy"] for one in each]))
    assert [one["class"] for one in each] == novel and [one["n_images"] for one in each] == [4] * 4
    pool = read_json(score_samples.main(score_samples.Config(
        samples=sampled.features, train=features / "train.h5", split=gans.data / "split.json",
        draws=gans.data / "draws.json", n_neighbours=1, out=tmp_path / "v.json")))  # fmt: skip
    train = read_features(features / "train.h5")
    draws = read_draws(gans.data / "draws.json")[1]
    rows = few_shot_rows(train.labels, read_split(gans.data / "split.json"), draws, 3, "draws").validation
    assert pool["scores"][0]["n_images"] == len(rows) == 8 and pool["config"]["reference"] == "validation"


def test_a_pretrained_network_is_a_second_judge(gans, features, sampled, tmp_path):
    """The same scores, by features of a timm model of samples and real images. Other features are refused."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "w.safetensors")
    judge = {
        "timm": {"name": "test_resnet", "weights": tmp_path / "w.safetensors", "resize": True},
        "accelerator": "cpu",
    }
    for data, folder in ((gans.data, "real"), (sampled.images, "made")):
        save_features.main(settings(save_features.Config, data=data, out=tmp_path / folder, **judge))
    chosen = {"reference": "test", "train": tmp_path / "real/train.h5", "test": tmp_path / "real/test.h5"}
    result = score(gans, features, tmp_path / "made/train.h5", tmp_path / "s.json", **chosen)
    real, made = read_features(chosen["test"]), read_features(tmp_path / "made/train.h5")
    novel = read_split(gans.data / "split.json").novel_classes
    rows = np.isin(real.labels, novel)
    first = np.concatenate([np.flatnonzero(made.labels == c)[:4] for c in novel])
    expected = image_scores(torch.from_numpy(real.feats[rows]), torch.from_numpy(made.feats[first]))
    assert result["scores"][0]["fid"] == pytest.approx(expected["fid"], rel=1e-4)
    with pytest.raises(InputError, match=r"made by another extractor|dimensions"):
        score(gans, features, sampled.features, tmp_path / "t.json", **chosen)


def test_scores_refuse_what_cannot_be_compared(gans, features, sampled, tmp_path):
    with pytest.raises(InputError, match="0 samples of class"):
        score(gans, features, sampled.features, tmp_path / "s.json", reference="base")
    with pytest.raises(InputError, match="Use --test FILE"):
        score(gans, features, sampled.features, tmp_path / "s.json", reference="test")
    other = tmp_path / "test.h5"
    shutil.copy(features / "test.h5", other)
    with h5py.File(other, "r+") as file:
        inputs = json.loads(file.attrs["inputs"])
        file.attrs["inputs"] = json.dumps(inputs | {"extractor": "another"})
    with pytest.raises(InputError, match=r"test\.h5: made by another extractor than"):
        score(gans, features, sampled.features, tmp_path / "s.json", reference="test", test=other)


def test_a_pool_shared_with_validation_is_no_reference(gans, features, tmp_path):
    """Training with a shared pool works as in the released code. Scores against the pool are an error."""
    options = {"semi_supervised": True, "alpha": 1.0, "shared_pool": True, "steps": 2}
    shared = finetune(gans.data, gans.extractor, gans.pretrained, tmp_path / "shared", **options)
    split = gans.data / "split.json"
    samples = sample_gan.main(sample_gan.Config(gan=shared, split=split, n_per_class=10, out=tmp_path / "s.h5"))
    out = save_features.main(save_features.Config(extractor=gans.extractor, data=samples, out=tmp_path / "features",
                                                  accelerator="cpu"))  # fmt: skip
    for reference in ("validation", "unlabelled"):
        with pytest.raises(InputError, match=f"--shared_pool, so its {reference} images include its shots"):
            score(gans, features, out / "train.h5", tmp_path / "s.json", reference=reference)
    options = {"reference": "test", "test": features / "test.h5"}
    assert score(gans, features, out / "train.h5", tmp_path / "t.json", **options)["gan"]["shared_pool"] is True


def test_scores_against_the_pool(gans, features, sampled, tmp_path):
    result = score(gans, features, sampled.features, tmp_path / "s.json", reference="unlabelled", n_neighbours=1)
    train, split = read_features(features / "train.h5"), read_split(gans.data / "split.json")
    rows = few_shot_rows(train.labels, split, read_draws(gans.data / "draws.json")[1], 3, "draws").unlabelled
    real = torch.from_numpy(train.feats[rows])
    made = read_features(sampled.features)
    first = [np.flatnonzero(made.labels == c)[:n] for c, n in zip(*np.unique(train.labels[rows], return_counts=True))]
    expected = image_scores(real, torch.from_numpy(made.feats[np.concatenate(first)]), 1)
    assert {name: result["scores"][0][name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_features_of_samples_say_what_they_are_made_from(gans, sampled):
    with h5py.File(sampled.features) as file:
        config, inputs = json.loads(file.attrs["config"]), json.loads(file.attrs["inputs"])
    facts = {"k": 3, "trial": 1, "semi_supervised": False, "shared_pool": False}
    assert config["samples"] == facts
    assert inputs["split"] and inputs["draws"] and inputs["extractor"]
