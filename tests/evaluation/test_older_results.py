"""Results and choices of revision d41a11c, which stored the settings of all choices side by side.

Results with the same settings are recognised, others are distinguished. The recipes are written as that revision wrote
them.
"""

import json
from dataclasses import replace

import pytest
import yaml
from conftest import unfinished
from test_low_shot import tiny_config

import episodes
import low_shot
from lowshot.classifiers.settings import (
    CosineOptions,
    FeatureTransform,
    ImprintingOptions,
    LaplacianShotOptions,
    LogisticOptions,
    MLPOptions,
    NearestMeanOptions,
    OwnHead,
    PTMapOptions,
    RefinementOptions,
    SupportLogisticOptions,
)
from lowshot.core.artifacts import recipe
from lowshot.core.errors import InputError
from lowshot.core.files import digest, write_json
from lowshot.data.additions import Repetition
from lowshot.diffusion.settings import Propagated
from lowshot.evaluation.selection import _recipe as evidence_recipe
from lowshot.evaluation.selection import joint_recipe, read_grid, with_values
from lowshot.evaluation.settings import Selection
from lowshot.gan.settings import Samples
from lowshot.hallucination.settings import Generator

SGD = {"lr": 0.1, "weight_decay": 0.001, "momentum": 0.9, "n_steps": 20, "batch_size": 20}
COSINE = {"scale": 10.0, "lr": 0.01, "n_steps": 100, "batch_size": 1000}
LOGISTIC = {"weight_decay": 0.001, "tolerance": 1e-06, "max_iter": 2000}
MLP = {"lr": 1e-06, "weight_decay": 0.001, "batch_size": 64, "hidden": 512, "max_epochs": 500, "patience": 10}


@pytest.fixture
def config(tmp_path):
    """Files of all inputs. They are empty where only the digest matters."""
    for name in ("p.h5", "other.h5", "samples_1.h5"):
        (tmp_path / name).write_text(name)
    for name in ("generator", "other_generator", "head"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "config.json", name)
    return tiny_config(tmp_path)


def older(config, inputs=(), **settings):
    """A recipe as d41a11c wrote it: the settings of all results and `settings`."""
    folder = config.split.parent
    files = {name: digest(getattr(config, name)) for name in ("train", "test", "split", "draws")}
    files |= {name: digest(folder / file) for name, file in dict(inputs).items()}
    plain = {"setup": "test", "shots": [1, 5], "trials": None, "name": None, "extractor": None, "seed": 0,
             "transform": {"power": 0.0, "centre": False, "normalise": False}, "repetition": False}  # fmt: skip
    return {"stage": "low_shot", "config": {**plain, **settings}, "inputs": files}


def difference(config, stored):
    return low_shot._recipe(config).difference(json.loads(json.dumps(stored)))


# --- results ---

PLAIN = [
    ({}, {"classifier": "linear_sgd", "sgd": SGD}),
    ({"classifier": LogisticOptions()}, {"classifier": "logistic_regression", "logistic": LOGISTIC}),
    ({"classifier": MLPOptions()}, {"classifier": "mlp", "mlp": MLP}),
    ({"classifier": CosineOptions()}, {"classifier": "cosine", "methods": {"cosine": COSINE}}),
    ({"classifier": PTMapOptions(), "seed": 3, "transform": FeatureTransform()},
     {"classifier": "pt_map", "methods": {"pt_map": {"scale": 10.0, "rate": 0.2, "n_steps": 20}}, "seed": 3}),
    ({"classifier": NearestMeanOptions(), "transform": FeatureTransform(0.5, True, True)},
     {"classifier": "nearest_mean", "methods": {"nearest_mean": {"metric": "euclidean"}},
      "transform": {"power": 0.5, "centre": True, "normalise": True}}),
]  # fmt: skip


@pytest.mark.parametrize(("today", "then"), PLAIN)
def test_every_classifier(config, today, then):
    assert difference(replace(config, **today), older(config, **then)) is None
    assert difference(replace(config, **today | {"seed": 7}), older(config, **then)).startswith("setting seed was ")
    for other, _ in PLAIN:
        if other != today:
            assert difference(replace(config, **other), older(config, **then)) is not None


def test_results_of_the_former_default_are_not_those_of_todays(config):
    """Results name their classifier, also where it was the default."""
    default = replace(config, classifier=ImprintingOptions())
    for stored in (older(config, classifier="linear_sgd", sgd=SGD), low_shot._recipe(config)):
        assert difference(config, stored) is None
        assert "setting classifier.name was linear_sgd, now imprinting" in difference(default, stored)
    stored = low_shot._recipe(replace(default, transform=FeatureTransform()))  # as before it had a transform
    assert difference(replace(default, transform=FeatureTransform()), stored) is None
    assert difference(default, stored).startswith("setting transform.centre was False, now True; ")


def test_results_from_before_the_novel_bias(config):
    stored = older(config, classifier="linear_sgd", sgd=SGD)
    assert difference(config, stored) is None
    assert difference(replace(config, novel_bias=0.5), stored) == "setting novel_bias was 0.0, now 0.5"


def test_the_switch_of_laplacian_shot(config):
    """It had shift and rectification together, in a form that is no longer there."""
    laplacian = {"smoothing": 0.7, "n_neighbours": 2, "n_steps": 20}
    plain = replace(config, classifier=LaplacianShotOptions(rectification="none"), transform=FeatureTransform())
    off = older(config, classifier="laplacian_shot", methods={"laplacian_shot": {**laplacian, "rectify": False}})
    newer = {**off, "config": {**low_shot._recipe(plain)["config"],
                               "classifier": {"name": "laplacian_shot", **laplacian, "rectify": False}}}  # fmt: skip
    for stored in (off, newer):
        assert difference(plain, stored) is None
        assert difference(replace(plain, classifier=LaplacianShotOptions()), stored) == (
            "setting classifier.rectification was none, now bounded"
        )
        stored = json.loads(json.dumps(stored).replace('"rectify": false', '"rectify": true'))
        for form in ("none", "published", "bounded"):
            one = replace(plain, classifier=LaplacianShotOptions(rectification=form, shift=True))
            told = f"setting classifier.rectification was weights over rows, now {form}"
            assert difference(one, stored) == told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0.2}, "setting classifier.lr was 0.1, now 0.2"),
        ({"n_steps": 21}, "setting classifier.n_steps was 20, now 21"),
        ({"momentum": 0.5}, "setting classifier.momentum was 0.9, now 0.5"),
    ],
)
def test_other_settings_of_the_classifier(config, change, words):
    stored = older(config, classifier="linear_sgd", sgd=SGD)
    assert difference(replace(config, classifier=replace(config.classifier, **change)), stored) == words


def adding(config, **added):
    """The configuration with additions, given the names of their files."""
    folder = config.split.parent
    kinds = {"generator": Generator, "propagated": Propagated}
    made = {name: kinds[name](folder / file, **more) for name, (file, more) in added.items()}
    return replace(config, add=made)


def test_repetition(config):
    stored = older(config, classifier="linear_sgd", sgd=SGD, repetition=True, max_per_label=7)
    assert difference(replace(config, add={"repetition": Repetition(7)}), stored) is None
    few = replace(config, add={"repetition": Repetition(6)})
    assert difference(few, stored) == "setting add.repetition.max_per_label was 7, now 6"
    assert (
        difference(config, stored)
        == "setting add.names was ['repetition'], now []; setting add.repetition.max_per_label was 7, now not set"
    )


def test_a_generator(config):
    options = {"pairs": "features", "pair_scope": "superclass", "max_per_label": 5}
    stored = older(config, {"generator": "generator"}, classifier="linear_sgd", sgd=SGD, **options)
    same = adding(config, generator=("generator", options))
    assert difference(same, stored) is None
    for name, value in {"pairs": "centroids", "pair_scope": "all", "max_per_label": 6}.items():
        other = adding(config, generator=("generator", options | {name: value}))
        assert difference(other, stored) == f"setting add.generator.{name} was {options[name]}, now {value}"
    other = adding(config, generator=("other_generator", options))
    assert difference(other, stored) == "input add.generator.folder has changed"
    without = difference(config, stored)
    assert without.startswith(
        "input add.generator.folder is no longer given; setting add.generator.max_per_label was 5"
    )
    assert without.endswith("setting add.names was ['generator'], now []") and without.count(";") == 4


def test_propagated_rows_and_then_a_generator(config):
    options = {"pairs": "centroids", "pair_scope": "all", "max_per_label": 9}
    inputs = {"propagated": "p.h5", "generator": "generator"}
    stored = older(config, inputs, classifier="linear_sgd", sgd=SGD, **options)
    nine = {"max_per_label": 9}
    assert difference(adding(config, propagated=("p.h5", nine), generator=("generator", nine)), stored) is None
    swapped = adding(config, generator=("generator", nine), propagated=("p.h5", nine))
    assert difference(swapped, stored) == (
        "setting add.names was ['propagated', 'generator'], now ['generator', 'propagated']"
    )
    fewer = adding(config, propagated=("p.h5", {"max_per_label": 8}), generator=("generator", nine))
    assert difference(fewer, stored) == "setting add.propagated.max_per_label was 9, now 8"
    other = adding(config, propagated=("other.h5", nine), generator=("generator", nine))
    assert difference(other, stored) == "input add.propagated.file has changed"
    alone = adding(config, propagated=("p.h5", nine))
    assert difference(alone, stored).startswith("input add.generator.folder is no longer given; setting add.gen")


def test_samples(config, tmp_path):
    one_run = replace(config, shots=[1], trials=[1])
    plain = {"shots": [1], "trials": [1], "samples_per_shot": 3, "classifier": "linear_sgd", "sgd": SGD}
    stored = older(one_run, {"samples_1_1": "samples_1.h5"}, **plain)
    template = str(tmp_path / "samples_{n_shot}.h5")
    assert difference(replace(one_run, add={"samples": Samples(template)}), stored) is None
    more = replace(one_run, add={"samples": Samples(template, per_shot=4)})
    assert difference(more, stored) == "setting add.samples.per_shot was 3, now 4"
    filled = older(one_run, {"samples_1_1": "samples_1.h5", "generator": "generator"}, **plain, pairs="centroids",
                   pair_scope="all", max_per_label=20)  # fmt: skip
    both = {"generator": Generator(tmp_path / "generator"), "samples": Samples(template)}
    assert difference(replace(one_run, add=both), filled) is None  # samples came last: they have no limit per class


def test_an_own_head(config, monkeypatch, tmp_path):
    monkeypatch.setattr(low_shot, "_check_own_head", lambda config: None)
    stored = older(config, {"head": "head"}, classifier="own_head")
    assert difference(replace(config, classifier=OwnHead(tmp_path / "head")), stored) is None
    other = replace(config, classifier=OwnHead(tmp_path / "generator"))
    assert difference(other, stored) == "input classifier.extractor has changed"


def test_todays_recipes_stay_as_they_are(config, tmp_path):
    for one in (config, adding(config, generator=("generator", {}), propagated=("p.h5", {})),
                replace(config, classifier=CosineOptions())):  # fmt: skip
        made_from = json.loads(json.dumps(low_shot._recipe(one)))
        assert low_shot.Config.older(made_from) == made_from
        assert low_shot.Config.older(low_shot.Config.older(made_from)) == made_from
    write_json(tmp_path / "r.json", {**older(config), "stage": "episodes", "config": {"n_way": 5}})
    assert difference(config, {**older(config), "stage": "episodes", "config": {"n_way": 5}}) == (
        "it is an output of episodes"
    )


# --- results with settings selected per n ---


def chosen(config, **by_shot):
    """The current recipe of results with settings selected per n: dotted name -> values for 1 and 5 shots."""
    by_shot = {name.replace("__", "."): values for name, values in by_shot.items()}
    parts = [
        with_values(replace(config, shots=[n]), {name: values[i] for name, values in by_shot.items()})
        for i, n in enumerate((1, 5))
    ]
    return joint_recipe([(one.shots, low_shot._recipe(one)) for one in parts])


def test_settings_chosen_for_each_n(config):
    by_n = {"1": {**SGD, "lr": 0.5}, "5": {**SGD, "lr": 0.05}}
    stored = older(config, classifier="linear_sgd", sgd=by_n)
    assert chosen(config, classifier__lr=(0.5, 0.05)).difference(stored) is None
    other = chosen(config, classifier__lr=(0.5, 0.06)).difference(stored)
    assert other == "setting classifier.lr.5 was 0.05, now 0.06"
    swapped = chosen(config, classifier__lr=(0.05, 0.5)).difference(stored)
    assert swapped == "setting classifier.lr.1 was 0.5, now 0.05; setting classifier.lr.5 was 0.05, now 0.5"
    alike = chosen(config, classifier__lr=(0.5, 0.05), classifier__momentum=(0.9, 0.8)).difference(stored)
    assert alike is not None and "classifier.momentum" in alike


def test_settings_chosen_for_each_n_are_none_that_are_the_same_for_all(config):
    stored = older(config, classifier="linear_sgd", sgd={"1": SGD, "5": {**SGD, "lr": 0.05}})
    told = low_shot._recipe(config).difference(stored)
    assert told.startswith("setting classifier.lr was not set, now 0.1; ") or told
    plain = older(config, classifier="linear_sgd", sgd=SGD)
    assert chosen(config, classifier__lr=(0.1, 0.05)).difference(plain) is not None
    assert chosen(config, classifier__lr=(0.1, 0.1)).difference(plain) is None


def test_a_transform_chosen_for_each_n(config):
    plain = {"power": 0.0, "centre": False, "normalise": False}
    stored = older(config, classifier="nearest_mean", methods={"nearest_mean": {"metric": "euclidean"}},
                   transform={"1": {**plain, "centre": True}, "5": {**plain, "normalise": True}})  # fmt: skip
    means = replace(config, classifier=NearestMeanOptions())
    same = chosen(means, transform__centre=(True, False), transform__normalise=(False, True))
    assert same.difference(stored) is None
    other = chosen(means, transform__centre=(False, True), transform__normalise=(False, True))
    assert (
        other.difference(stored)
        == "setting transform.centre.1 was True, now False; setting transform.centre.5 was False, now True"
    )


def test_how_far_a_generator_fills_chosen_for_each_n(config):
    stored = older(config, {"generator": "generator"}, classifier="linear_sgd", sgd=SGD, pairs="centroids",
                   pair_scope="all", max_per_label={"1": 5, "5": 20})  # fmt: skip
    generated = adding(config, generator=("generator", {}))
    assert chosen(generated, add__generator__max_per_label=(5, 20)).difference(stored) is None
    other = chosen(generated, add__generator__max_per_label=(5, 10)).difference(stored)
    assert other == "setting add.generator.max_per_label.5 was 20, now 10"


def test_a_classifier_chosen_for_each_n(config):
    """Settings with the same name in both classifiers were stored separately."""
    refinement = {"n_steps": 1, "scale": 1.0}
    stored = older(config, classifier={"1": "cosine", "5": "prototype_refinement"},
                   methods={"1": {"cosine": COSINE}, "5": {"prototype_refinement": refinement}})  # fmt: skip
    parts = [replace(config, shots=[1], classifier=CosineOptions()),
             replace(config, shots=[5], classifier=RefinementOptions(), transform=FeatureTransform())]  # fmt: skip
    made_from = joint_recipe([(one.shots, low_shot._recipe(one)) for one in parts])
    assert made_from.difference(stored) is None
    parts[1].classifier = RefinementOptions(scale=2.0)
    made_from = joint_recipe([(one.shots, low_shot._recipe(one)) for one in parts])
    assert made_from.difference(stored) == "setting classifier.scale.5 was 1.0, now 2.0"
    with_sgd = older(config, classifier={"1": "cosine", "5": "linear_sgd"}, methods={"1": {"cosine": COSINE}},
                     sgd={"5": SGD})  # fmt: skip
    parts[1].classifier = config.classifier
    made_from = joint_recipe([(one.shots, low_shot._recipe(one)) for one in parts])
    assert made_from.difference(with_sgd) is None


# --- recipes of choices ---


def evidence(config, grid, inputs=(), **settings):
    """(current recipe of a choice by `grid` {name: values}, recipe as d41a11c wrote it)."""
    path = config.split.parent / "grid.yaml"
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    plain = replace(config, setup="validation")
    made_from = evidence_recipe(read_grid(path, plain), "top5_novel_base", False, low_shot._recipe)
    stored = older(config, inputs)
    transform = {f"transform.{name}": value for name, value in stored["config"].pop("transform").items()}
    common = {"criterion": "top5_novel_base", **stored["config"], "setup": "validation", **transform, **settings}
    cell = common["cells"][0]
    return made_from, {**stored, "config": {name: value for name, value in common.items() if name not in cell}}


def of(prefix, settings, *without):
    return {f"{prefix}.{name}": value for name, value in settings.items() if name not in without}


def test_a_choice_of_a_rate(config):
    made_from, stored = evidence(config, {"classifier.lr": [0.1, 1.0], "classifier.weight_decay": [0.01]},
                                 classifier="linear_sgd", **of("sgd", SGD, "lr", "weight_decay"),
                                 cells=[{"sgd.lr": lr, "sgd.weight_decay": 0.01} for lr in (0.1, 1.0)])  # fmt: skip
    assert made_from.difference(stored) is None
    stored["config"]["sgd.n_steps"] = 99
    assert made_from.difference(stored) == "setting classifier.n_steps was 99, now 20"
    stored["config"] |= {"sgd.n_steps": 20, "cells": stored["config"]["cells"][:1]}
    assert made_from.difference(stored).startswith("setting cells was ")


def test_a_choice_of_how_far_to_fill(config):
    filled = {"classifier": "linear_sgd", **of("sgd", SGD), "pairs": "centroids", "pair_scope": "all"}
    cells = [{"max_per_label": n} for n in (5, 20)]
    generated = adding(config, generator=("generator", {}))
    made_from, stored = evidence(generated, {"add.generator.max_per_label": [5, 20]}, {"generator": "generator"},
                                 **filled, cells=cells)  # fmt: skip
    assert made_from.difference(stored) is None
    repeated = replace(config, add={"repetition": Repetition()})
    made_from, stored = evidence(repeated, {"add.repetition.max_per_label": [5, 20]}, classifier="linear_sgd",
                                 **of("sgd", SGD), repetition=True, cells=cells)  # fmt: skip
    assert made_from.difference(stored) is None
    stored["config"]["cells"] = [{"max_per_label": n} for n in (5, 10)]
    assert made_from.difference(stored).startswith("setting cells was ")


def test_one_number_that_filled_two_additions_is_none_of_todays_two(config):
    both = adding(config, propagated=("p.h5", {}), generator=("generator", {}))
    settings = {"classifier": "linear_sgd", **of("sgd", SGD), "pairs": "centroids", "pair_scope": "all"}
    made_from, stored = evidence(both, {"add.generator.max_per_label": [5, 20]},
                                 {"propagated": "p.h5", "generator": "generator"}, **settings,
                                 cells=[{"max_per_label": n} for n in (5, 20)])  # fmt: skip
    assert "add.propagated.max_per_label" in made_from.difference(stored)


def test_a_choice_among_classifiers(config):
    """A grid of linear_sgd and cosine, which have settings with the same name."""
    known = {**of("sgd", SGD), **of("methods.cosine", COSINE)}
    made_from, stored = evidence(config, {"classifier": ["linear_sgd", "cosine"]}, **known,
                                 cells=[{"classifier": "linear_sgd"}, {"classifier": "cosine"}])  # fmt: skip
    assert made_from.difference(stored) is None
    stored["config"]["methods.cosine.lr"] = 0.02
    assert made_from.difference(stored) == "setting classifier.lr.1 was 0.02, now 0.01"
    stored["config"] |= {"methods.cosine.lr": 0.01, "sgd.lr": 0.02}
    assert made_from.difference(stored) == "setting classifier.lr.0 was 0.02, now 0.1"


@pytest.mark.parametrize("killed", [False, True])
def test_existing_evidence_is_continued(config, tmp_path, killed):
    """Results of the current revision, rewritten with the names of d41a11c."""
    (tmp_path / "grid.yaml").write_text("classifier.lr: [0.001, 0.3]\n")
    config = replace(config, select=Selection(tmp_path / "grid.yaml", criterion="top1_novel_base"))
    low_shot.main(replace(config, setup="validation"))
    path = config.out.with_suffix(".selection.yaml")
    made = yaml.safe_load(path.read_text())
    made.pop("checksum")
    _, stored = evidence(config, {"classifier.lr": [0.001, 0.3]}, classifier="linear_sgd", **of("sgd", SGD, "lr"),
                         criterion="top1_novel_base", cells=[{"sgd.lr": lr} for lr in (0.001, 0.3)])  # fmt: skip
    cells = [{**cell, "values": {"sgd.lr": cell["values"]["classifier.lr"]}} for cell in made["cells"]]
    made |= {**stored, "cells": cells, "chosen": {"sgd.lr": made["chosen"]["classifier.lr"]}}
    if killed:
        made.pop("chosen")
        made["cells"], path = cells[:1], unfinished(path)
    path.write_text(yaml.safe_dump(made, sort_keys=False))
    content = json.loads(low_shot.main(config).read_text())
    assert content["selection"]["chosen"].keys() == {"classifier.lr"}
    if killed:
        assert yaml.safe_load(config.out.with_suffix(".selection.yaml").read_text())["cells"][0] == cells[0] | {
            "values": {"classifier.lr": 0.001}
        }
    config.select.grid.write_text("classifier.lr: [0.001, 0.4]\n")
    with pytest.raises(InputError, match="setting cells was"):
        low_shot.main(config)


# --- tasks ---


def test_results_of_episodes(config):
    tasks = episodes.Config(features=config.test, split=config.split, out=config.out, n_way=2,
                            method=SupportLogisticOptions(C=2), transform=FeatureTransform())  # fmt: skip
    stored = {
        "stage": "episodes",
        "config": {"n_way": 2, "n_shots": [1, 5], "n_queries": 15, "dirichlet": None, "within_superclass": False,
                   "seed": 0, "setup": "test", "classes": None, "augmented_support": None,
                   "method": "logistic_regression", "n_episodes": 600, "clustering": None, "name": None,
                   "extractor": None, "transform": {"power": 0.0, "centre": False, "normalise": False},
                   "methods": {"logistic_regression": {"C": 2.0, "max_iter": 1000}}},
        "inputs": {"features": digest(config.test), "split": digest(config.split)},
    }  # fmt: skip

    def told(**changes):
        changed = replace(tasks, **changes)
        return recipe("episodes", changed, {"features": changed.features, "split": changed.split}).difference(stored)

    assert told() is None
    assert told(method=SupportLogisticOptions()) == "setting method.C was 2.0, now 1.0"
    assert told(method=NearestMeanOptions()) == "setting method.name was logistic_regression, now nearest_mean"
    assert told(classes="all") == "setting classes was novel, now all"
    assert told(augmented_support=True) == "setting augmented_support was False, now True"
    assert told(n_way=3) == "setting n_way was 2, now 3"
