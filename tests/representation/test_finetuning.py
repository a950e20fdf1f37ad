"""Extractors that are fine-tuned on a few shots and generated images, and evaluated with their own head."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import assert_refused, run_script, settings
from safetensors.torch import save_file

import finetune_extractor
import low_shot
import sample_gan
import save_features
import train_gan
from lowshot.core.errors import InputError
from lowshot.core.files import read_json, write_json
from lowshot.data.datasets.images import read_images
from lowshot.data.features import read_features
from lowshot.data.protocol import read_draws, read_split
from lowshot.representation import extractor_training
from lowshot.representation.backbones import load_extractor
from lowshot.representation.extractor_training import ExtractorTrainer, mixup_shares
from lowshot.representation.settings import Mixup

OPTIONS = {
    "model": {"name": "Conv4", "width": 0.25},
    "epochs": 2,
    "batch_size": 8,
    "accelerator": "cpu",
    "optimizer": "adam",
    "lr": 0.01,
}


def tune(data, extractor, out, **changes):
    options = OPTIONS | {"weights": extractor / "model.pt", "shots": 3} | changes
    return finetune_extractor.main(settings(finetune_extractor.Config, data=data, out=out, **options))


@pytest.fixture(scope="module")
def samples(tmp_path_factory, data, extractor):
    """Six images of each novel class, from a GAN that was fine-tuned on three shots of trial 1."""
    folder = tmp_path_factory.mktemp("gan")
    some = {"data": data, "extractor": extractor, "batch_size": 8, "steps": 2, "accelerator": "cpu"}
    gan = train_gan.pretrain(train_gan.PretrainConfig(**some, ngf=16, ndf=2, z_dim=4, out=folder / "pretrained"))
    tuned = train_gan.finetune(train_gan.FinetuneConfig(**some, gan=gan, k=3, out=folder / "tuned"))
    return sample_gan.main(
        sample_gan.Config(gan=tuned, split=data / "split.json", n_per_class=6, out=folder / "samples.h5")
    )


def moved(one, other) -> set[str]:
    a, b = (torch.load(folder / "model.pt", weights_only=True) for folder in (one, other))
    return {name for name in a if not torch.equal(a[name], b[name])}


def test_learns_from_shots_and_samples_and_watches_the_rest(data, extractor, samples, tmp_path, monkeypatch):
    seen = {}
    plain = ExtractorTrainer._step

    def noted(self, positions, *views):
        seen["labels"], seen["held"] = self.images.labels[self.train_rows], self.held_rows
        return plain(self, positions, *views)

    monkeypatch.setattr(ExtractorTrainer, "_step", noted)
    tune(data, extractor, tmp_path / "with", samples=samples)
    novel = read_split(data / "split.json").novel_classes
    assert np.bincount(seen["labels"], minlength=10)[novel].tolist() == [9] * 4 and len(seen["labels"]) == 36
    images, draws = read_images(data / "images.h5"), read_draws(data / "draws.json")[1]
    drawn = images.rows(test=False)[np.concatenate([draws[c] for c in novel])]
    assert not set(seen["held"]) & set(drawn) and set(images.labels[seen["held"]]) == set(novel)
    tune(data, extractor, tmp_path / "without")
    assert len(seen["labels"]) == 12 and moved(tmp_path / "with", tmp_path / "without")
    tune(data, extractor, tmp_path / "samples", samples=samples, samples_only=True)
    assert np.bincount(seen["labels"], minlength=10)[novel].tolist() == [6] * 4 and len(seen["labels"]) == 24
    with pytest.raises(InputError, match="--samples_only: needs --samples"):
        tune(data, extractor, tmp_path / "none", samples_only=True)
    tune(data, extractor, tmp_path / "repeated", repeat_shots=3)
    assert np.bincount(seen["labels"], minlength=10)[novel].tolist() == [9] * 4
    assert "held_top1" in json.loads((tmp_path / "with" / "log.jsonl").read_text().splitlines()[-1])


def test_only_the_named_parts_are_trained_and_batch_norm_stands_still(data, extractor, tmp_path):
    head = moved(extractor, tune(data, extractor, tmp_path / "head", trained=["classifier"]))
    assert head == {"classifier.weight"}
    some = moved(
        extractor, tune(data, extractor, tmp_path / "some", trained=["classifier", "trunk.12"], optimizer="sgd")
    )
    assert some == {"classifier.weight", "trunk.12.weight"}
    assert any("running_mean" in name for name in moved(extractor, tune(data, extractor, tmp_path / "all")))
    with pytest.raises(
        InputError, match=r"trained trunk\.99: no parameter name begins with it \(they begin with: trunk, classifier\)"
    ):
        tune(data, extractor, tmp_path / "x", trained=["trunk.99"])


def test_mixup_by_hand(data, extractor, tmp_path, monkeypatch):
    """Images and losses are blended by the same shares; the targets are smoothed."""
    seen = []
    monkeypatch.setattr(extractor_training, "mixup_shares", lambda mixup, n, device: torch.linspace(0, 1, n))
    plain = ExtractorTrainer._blended_step

    def noted(self, images, labels):
        state = torch.get_rng_state()
        others = torch.randperm(len(images))
        torch.set_rng_state(state)
        share = torch.linspace(0, 1, len(images))
        blended = share.view(-1, 1, 1, 1) * images + (1 - share).view(-1, 1, 1, 1) * images[others]
        log_p = self.model(blended)[0].log_softmax(1)
        rows = torch.arange(len(images))
        blended_log_p = share * log_p[rows, labels] + (1 - share) * log_p[rows, labels[others]]
        expected = -(0.9 * blended_log_p + 0.1 * log_p.mean(1)).mean()
        record = plain(self, images, labels)
        seen.append((record["loss"].item(), expected.item()))
        return record

    monkeypatch.setattr(ExtractorTrainer, "_blended_step", noted)
    loss = {"name": "plain", "label_smoothing": 0.1}
    tune(data, extractor, tmp_path / "mixed", mixup="beta", loss=loss, trained=["classifier"])
    assert len(seen) == 4 and all(found == pytest.approx(expected, rel=1e-4) for found, expected in seen)


def test_shares_of_mixup():
    torch.manual_seed(0)
    uniform, beta = (mixup_shares(Mixup(name, 0.4), 4000, torch.device("cpu")) for name in ("uniform", "beta"))
    assert uniform.min() >= 0 and 0.39 < uniform.max() <= 0.4 and uniform.mean().item() == pytest.approx(0.2, abs=0.01)
    assert beta.mean().item() == pytest.approx(0.5, abs=0.03)
    assert beta.var().item() == pytest.approx(1 / (4 * 1.8), abs=0.01)  # a b / (a + b)^2 (a + b + 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shots": 2}, r"fine-tuned on 3 shots of trial 1\. Use samples of a GAN with --k 2 --trial 1"),
        ({"trial": 2}, r"fine-tuned on 3 shots of trial 1\. Use samples of a GAN with --k 3 --trial 2"),
        ({"holdout": 0.5}, "holdout: no such setting"),
        ({"trained": []}, "trained: is empty"),
        (
            {"schedule": {"name": "cosine", "n_cycles": 2}, "epochs": 3},
            "n_cycles 2: 3 epochs .*cannot be divided into 2",
        ),
        ({"loss": "l2", "mixup": "beta"}, "--mixup: needs --loss plain, not l2"),
        ({"shots": 6}, "has draws up to n = 5, but the largest n is 6"),
    ],
)
def test_what_does_not_belong_is_refused(data, extractor, samples, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        tune(data, extractor, tmp_path / "x", samples=samples, **changes)
    assert not list(tmp_path.iterdir())


def test_a_network_that_may_know_novel_classes_is_refused(data, extractor, tuned, tmp_path):
    with pytest.raises(InputError, match=r"model\.pt: has seen images of class \d+ .*, which is novel"):
        tune(data, tuned / "extractor", tmp_path / "x")
    shutil.copytree(extractor, tmp_path / "other")
    made_from, split = read_json(tmp_path / "other" / "config.json"), read_split(data / "split.json")
    seen = {"labelled": [split.origins[split.novel_classes[0]]]}
    write_json(tmp_path / "other" / "config.json", {**made_from, "lineage": seen})
    with pytest.raises(InputError, match=r"other/model\.pt: has seen images of class \d+"):
        tune(data, tmp_path / "other", tmp_path / "x")
    released = tmp_path / "other" / "model.safetensors"
    save_file(load_extractor(tuned / "extractor").state_dict(), released)
    with pytest.raises(InputError, match=r"model\.safetensors: has seen images of class \d+"):
        tune(data, extractor, tmp_path / "x", weights=released)
    with pytest.raises(InputError, match="weights: is required"):
        tune(data, extractor, tmp_path / "x", weights=None)


def test_images_that_are_no_samples_are_refused(data, extractor, tmp_path):
    where = ["--data", data, "--weights", extractor / "model.pt", "--out", tmp_path / "x"]
    few = ["--shots", 3, "--samples", data / "images.h5", "--model", "Conv4", "--model.width", 0.25]
    result = run_script("finetune_extractor.py", *where, *few)
    assert_refused(result, "images.h5", "not an images file of sample_gan.py")


@pytest.fixture(scope="module")
def tuned(data, extractor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    made = tune(data, extractor, folder / "extractor")
    save_features.main(
        settings(save_features.Config, extractor=made, data=data, out=folder / "features", accelerator="cpu")
    )
    return folder


def judge(data, folder, out, **changes):
    options = {"train": folder / "features" / "train.h5", "test": folder / "features" / "test.h5", "trials": [1],
               "split": data / "split.json", "draws": data / "draws.json", "shots": [3],
               "classifier": {"name": "own_head", "extractor": folder / "extractor"}}  # fmt: skip
    return read_json(low_shot.main(settings(low_shot.Config, **options | changes, out=out)))


def test_the_own_head_is_evaluated(data, tuned, tmp_path):
    result = judge(data, tuned, tmp_path / "own.json")
    model, test = load_extractor(tuned / "extractor"), read_features(tuned / "features" / "test.h5")
    with torch.inference_mode():
        right = model.classifier(torch.from_numpy(test.feats)).argmax(1).numpy() == test.labels
    novel = np.isin(test.labels, read_split(data / "split.json").novel_classes_2)
    assert result["trials"][0]["top1_novel"] == pytest.approx(right[novel].mean())
    assert result["method"] == "own_head" and set(result["inputs"]) >= {"classifier.extractor"}
    assert result["protocol"]["setting"] == "inductive"


def test_a_head_that_has_learned_from_samples_says_so(data, extractor, samples, tmp_path):
    made = tune(data, extractor, tmp_path / "extractor", samples=samples)
    save_features.main(
        settings(save_features.Config, extractor=made, data=data, out=tmp_path / "features", accelerator="cpu")
    )
    assert judge(data, tmp_path, tmp_path / "own.json")["protocol"]["setting"] == "semi_supervised"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shots": [2]}, "was trained on 3 shots of trial 1 and cannot be evaluated on n = 2, trial 1"),
        ({"trials": [1, 2]}, "cannot be evaluated on n = 3, trial 2"),
        ({"add": ["repetition"]}, "own_head: does not learn"),
        ({"classifier": "own_head"}, r"classifier\.extractor: is required"),
    ],
)
def test_heads_and_features_serve_their_own_runs_only(data, tuned, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        judge(data, tuned, tmp_path / "x.json", **changes)


def test_the_head_of_another_extractor_is_refused(data, extractor, tuned, tmp_path):
    with pytest.raises(InputError, match="has features of another extractor"):
        judge(data, tuned, tmp_path / "x.json", classifier={"name": "own_head", "extractor": extractor})


@pytest.mark.parametrize(
    ("changes", "words"),
    [({}, "has no cosine head"), ({"transform": {"centre": True}}, "has weights of features without a transform")],
)
def test_imprinting_needs_the_cosine_head_of_the_features(data, tuned, tmp_path, changes, words):
    imprinting = {"name": "imprinting", "extractor": tuned / "extractor"}
    with pytest.raises(InputError, match=words):
        judge(data, tuned, tmp_path / "x.json", classifier=imprinting, **changes)


def test_weights_that_are_a_folder_are_named(tmp_path, data, extractor):
    words = ("finetune_extractor.py", "--data", data, "--shots", 1, "--out", tmp_path / "out")
    assert_refused(run_script(*words, "--weights", extractor), f"{extractor}: is a folder, not a file", "model.pt")
    assert_refused(run_script(*words, "--weights", tmp_path / "nothing.pt"), "nothing.pt: no such file")


def test_a_timm_model_is_not_a_folder(tmp_path, data):
    words = ("save_features.py", "--data", data, "--out", tmp_path / "out", "--extractor", "timm:resnet18")
    assert_refused(run_script(*words), "--extractor timm:resnet18: is a timm model; use --timm resnet18")
