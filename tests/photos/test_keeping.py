"""low_shot.py --classifier_out: a classifier of base and novel classes that names images."""

import csv
import shutil

import h5py
import numpy as np
import pytest
import timm
import torch
from conftest import settings
from safetensors.torch import save_file

import low_shot
import predict
import preprocessing
import save_features
from lowshot.core.errors import InputError
from lowshot.data.features import read_features
from lowshot.data.protocol import read_split
from lowshot.photos.classifier import load_classifier
from lowshot.representation.backbones import Extractor, ModelConfig, save_extractor


@pytest.fixture(scope="module")
def folder(tmp_path_factory, extractor, features):
    """Features beside their extractor, as the recipes have them."""
    root = tmp_path_factory.mktemp("representation")
    shutil.copytree(extractor, root / "extractor")
    shutil.copytree(features, root / "features")
    return root


def config(folder, data, out, **more):
    files = {"train": folder / "features" / "train.h5", "test": folder / "features" / "test.h5"}
    files |= {"split": data / "split.json", "draws": data / "draws.json", "out": out / "r.json"}
    return settings(low_shot.Config, **files, shots=[1, 5], **more)


CLASSIFIERS = {
    "linear_sgd": {"name": "linear_sgd", "n_steps": 200, "batch_size": 20},
    "logistic_regression": {"name": "logistic_regression"},
    "balanced_sgd": {"name": "balanced_sgd", "n_steps": 200},
    "mlp": {"name": "mlp", "lr": 0.001, "hidden": 16, "max_epochs": 5},
    "logit_adjusted": {"name": "logit_adjusted"},
    "imprinting": {"name": "imprinting"},
    "attention": {"name": "attention", "n_steps": 20},
    "nearest_mean": {"name": "nearest_mean"},
    "cosine": {"name": "cosine"},
    "cosine by draws": {"name": "cosine", "batch_size": 16},  # each batch depends on the seed
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_kept_classifier_is_the_one_that_was_evaluated(tmp_path, folder, data, name):
    more = {"transform": {"centre": True, "normalise": True}, "scores": tmp_path / "s.h5", "novel_bias": 0.7}
    one = config(folder, data, tmp_path, classifier=CLASSIFIERS[name], classifier_out=tmp_path / "c", **more)
    low_shot.main(one)
    kept, split, test = load_classifier(tmp_path / "c"), read_split(data / "split.json"), read_features(one.test)
    classes = sorted(split.base_classes_2 + split.novel_classes_2)
    assert kept.class_names == [split.class_names[c] for c in classes] and kept.support is None
    feats = test.feats[np.isin(test.labels, classes)]
    with h5py.File(tmp_path / "s.h5") as file:
        expected = np.exp(file["log_probabilities"][1])  # trial 1, n = 5
    assert np.allclose(kept.predict_proba(feats), expected, atol=1e-4)
    assert kept.typicality_of(feats).min() > 0


def test_rows_that_were_added_are_learned(tmp_path, folder, data, image_folder, capsys):
    """Ten rows of a novel class far from all others pull its mean."""
    rng, split = np.random.default_rng(0), read_split(data / "split.json")
    novel, dim = split.novel_classes_2[0], read_features(folder / "features" / "train.h5").dim
    np.savez(tmp_path / "rows.npz", feats=50 + rng.random((10, dim)), labels=np.full(10, novel),
             trials=np.ones(10, int), n_shots=np.full(10, 5))  # fmt: skip
    one = config(folder, data, tmp_path, classifier="nearest_mean", trials=[1], classifier_out=tmp_path / "c",
                 add={"rows": {"file": tmp_path / "rows.npz"}})  # fmt: skip
    one.shots = [5]
    low_shot.main(one)
    low_shot.main(one)
    assert f"{tmp_path / 'c'} already exists" in capsys.readouterr().out
    kept = load_classifier(tmp_path / "c")
    assert kept.class_names[kept.predict_proba(np.full((1, dim), 50, np.float32)).argmax()] == split.class_names[novel]
    images = image_folder / "super0" / "class0"
    named = predict.classify(predict.ClassifyConfig(classifier=tmp_path / "c", images=images, out=tmp_path / "p.csv"))
    with named.open(newline="", encoding="utf-8") as file:
        assert sum(row["rank"] == "1" for row in csv.DictReader(file)) == 14
    with pytest.raises(InputError, match="c: was not made from photos, so none can be added"):
        predict.add(predict.AddConfig(classifier=tmp_path / "c", images=image_folder, out=tmp_path / "more"))


def test_an_extractor_without_its_projection_is_kept(tmp_path, data):
    """A classifier of trunk features opens again."""
    torch.manual_seed(0)
    model = Extractor(ModelConfig("Conv4", 0, 3, 16, width=0.25, crop_pct=1.0, embedding=8))
    (tmp_path / "extractor").mkdir()
    save_extractor(tmp_path / "extractor", model, {"stage": "train_scgm", "config": {}, "inputs": {}, "lineage": {}})
    trunk = {"extractor": tmp_path / "extractor", "data": data, "out": tmp_path / "features", "layer": "trunk"}
    save_features.main(save_features.Config(**trunk, accelerator="cpu"))
    low_shot.main(config(tmp_path, data, tmp_path, classifier="nearest_mean", classifier_out=tmp_path / "c"))
    assert load_classifier(tmp_path / "c").extractor.dim == 16


def test_features_of_a_timm_model(tmp_path, image_folder):
    torch.manual_seed(0)
    weights = tmp_path / "w.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=4).state_dict(), weights)
    photos = {"name": "folder", "test_per_class": 4, "max_shots": 5, "n_trials": 1}
    data = preprocessing.main(settings(preprocessing.Config, dataset=photos, root=image_folder, out=tmp_path / "data"))
    timm_model = {"name": "test_resnet", "weights": weights, "image_size": 32}
    save_features.main(settings(save_features.Config, timm=timm_model, data=data, out=tmp_path / "features",
                                accelerator="cpu"))  # fmt: skip
    more = {"classifier": "nearest_mean", "classifier_out": tmp_path / "c", "classifier_weights": weights}
    low_shot.main(config(tmp_path, data, tmp_path, **more))
    assert load_classifier(tmp_path / "c").extractor.config.name == "timm:test_resnet"
    save_file(timm.create_model("test_resnet", num_classes=4).state_dict(), weights)
    more["classifier_out"] = tmp_path / "other"
    with pytest.raises(InputError, match=r"train\.h5: made with other weights of test_resnet"):
        low_shot.main(config(tmp_path, data, tmp_path, **more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"classifier": "pt_map"}, "--classifier_out: pt_map cannot be kept"),
        ({"select": {"grid": "grid.yaml"}}, "--classifier_out: not with --select"),
        ({"classifier_extractor": "nowhere"}, "nowhere: is not the extractor of .*train.h5"),
    ],
)
def test_what_cannot_be_kept(tmp_path, folder, data, more, message):
    given = {"classifier": "nearest_mean", **more}
    with pytest.raises(InputError, match=message):
        low_shot.main(config(folder, data, tmp_path, classifier_out=tmp_path / "c", **given))
    assert not (tmp_path / "c").exists()


def test_settings_of_a_kept_classifier_are_not_ignored(tmp_path, folder, data):
    with pytest.raises(InputError, match="are for --classifier_out"):
        low_shot.main(config(folder, data, tmp_path, classifier_extractor=folder / "extractor"))
