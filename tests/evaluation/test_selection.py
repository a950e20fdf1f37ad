"""low_shot.py --select: selects the best cell, uses the validation setup only, and resumes after a kill."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, assert_refused
from test_low_shot import NUMBERS, command, results, tiny_config

import diffusion
import low_shot
from lowshot.classifiers.settings import (
    CLASSIFIERS,
    METHODS,
    BalancedSGDOptions,
    CosineOptions,
    NearestMeanOptions,
    SGDOptions,
)
from lowshot.core.artifacts import Recipe
from lowshot.core.errors import InputError
from lowshot.core.publishing import partial_path
from lowshot.data.additions import Repetition
from lowshot.diffusion.settings import Fusion
from lowshot.evaluation.outcomes import Outcomes
from lowshot.evaluation.selection import joint_recipe
from lowshot.evaluation.settings import Selection
from lowshot.gan.settings import Samples
from lowshot.hallucination.settings import Calibrated, Generator
from lowshot.report.results import read_files

LR, FILLED = "classifier.lr", "add.repetition.max_per_label"
GRID = f"{LR}: [0.001, 0.3]\n{FILLED}: [2, 5]"
CELLS = [{LR: lr, FILLED: rows} for lr in (0.001, 0.3) for rows in (2, 5)]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID)
    select = Selection(tmp_path / "grid.yaml", criterion="top1_novel_base")
    return replace(tiny_config(tmp_path), select=select, add={"repetition": Repetition()})


def of_cell(config, cell):
    """The settings of a cell of `CELLS`."""
    repetition = Repetition(cell[FILLED])
    return {"classifier": replace(config.classifier, lr=cell[LR]), "add": {"repetition": repetition}}


def choosing(config, **how):
    """The configuration with changed settings of the selection."""
    return replace(config, select=replace(config.select, **how))


def evidence_of(config):
    return yaml.safe_load(config.out.with_suffix(".selection.yaml").read_text())


@pytest.fixture
def evaluated(monkeypatch):
    """(setup, learning rate) of every evaluation. `evaluated.kill_at` is the index of the one that is killed."""
    real = low_shot._problem

    class Seen(list):
        kill_at = None

    seen = Seen()

    def watched(config, benchmark):
        if len(seen) == seen.kill_at:
            raise KeyboardInterrupt
        setup = "validation" if set(benchmark.classes) == {0, 1, 4, 5} else "test"
        seen.append((setup, getattr(config.classifier, "lr", None), config.add["repetition"].max_per_label))
        return real(config, benchmark)

    monkeypatch.setattr(low_shot, "_problem", watched)
    return seen


@pytest.mark.parametrize("criterion", ["top1_novel_base", "top1_novel", "top5_all"])
def test_the_choice_is_the_best_cell(config, criterion):
    """Computed by hand: each cell as a separate run on the validation setup, then the best on the test setup."""
    groups = criterion.split("_")[1:]
    plain, means = replace(config, select=None, out=config.out.with_name("plain.json")), []
    for cell in CELLS:
        trials = results(plain, setup="validation", **of_cell(config, cell))["trials"]
        values = [
            [one[f"{criterion[:4]}_{group}"] for one in trials if one["trial"] == t for group in groups]
            for t in (1, 2, 3)
        ]
        means.append(np.mean(values, axis=1))
    content = json.loads(low_shot.main(choosing(config, criterion=criterion)).read_text())
    evidence = evidence_of(config)
    assert evidence["protocol"]["setup"] == "validation" and [cell["values"] for cell in evidence["cells"]] == CELLS
    for cell, by_trial in zip(evidence["cells"], means):
        assert cell["mean"] == pytest.approx(by_trial.mean())
        assert cell["interval"] == pytest.approx(4.302653 * by_trial.std(ddof=1) / 3**0.5)  # t(0.975; 2)
        assert len(cell["trials"]) == 6 and set(cell["trials"][0]) > NUMBERS
    best = CELLS[int(np.argmax([by_trial.mean() for by_trial in means]))]
    assert content["selection"]["chosen"] == evidence["chosen"] == best
    assert content["selection"]["criterion"] == criterion and content["protocol"]["setup"] == "test"
    expected = results(plain, **of_cell(config, best))
    assert content["trials"] == expected["trials"] and content["config"] == expected["config"]


def test_the_test_setup_is_evaluated_once_after_the_choice(config, evaluated):
    low_shot.main(config)
    assert [setup for setup, *_ in evaluated] == ["validation"] * 4 + ["test"]
    assert {LR: evaluated[-1][1], FILLED: evaluated[-1][2]} == evidence_of(config)["chosen"]


def test_on_validation_only_the_choice_is_made(config, evaluated):
    assert low_shot.main(replace(config, setup="validation")) == config.out.with_suffix(".selection.yaml")
    assert {setup for setup, *_ in evaluated} == {"validation"} and not config.out.exists()
    low_shot.main(config)
    assert len(evaluated) == 5 and evaluated[-1][0] == "test"


def test_existing_results_are_not_made_again(config, evaluated, capsys):
    low_shot.main(config)
    low_shot.main(config)
    assert len(evaluated) == 5 and capsys.readouterr().out.count("already exists") == 2
    low_shot.main(replace(config, classifier=replace(config.classifier, lr=7.0)))  # the grid overrides it
    assert len(evaluated) == 5
    with pytest.raises(InputError, match="setting criterion was top1_novel_base, now top1_all"):
        low_shot.main(choosing(config, criterion="top1_all"))
    config.select.grid.write_text("classifier.lr: [0.3]")
    with pytest.raises(InputError, match="setting cells was"):
        low_shot.main(config)
    low_shot.main(replace(config, overwrite=True))
    assert evidence_of(config)["chosen"] == {LR: 0.3}


@pytest.mark.parametrize("kill_at", [0, 1, 3])
def test_a_killed_grid_goes_on(config, evaluated, kill_at):
    whole = replace(config, out=config.out.with_name("whole.json"))
    low_shot.main(whole)
    evaluated.clear()
    evaluated.kill_at = kill_at
    with pytest.raises(KeyboardInterrupt):
        low_shot.main(config)
    unfinished = partial_path(config.out.with_suffix(".selection.yaml"))
    assert unfinished.exists() == (kill_at > 0) and not config.out.with_suffix(".selection.yaml").exists()
    evaluated.kill_at = None
    low_shot.main(config)
    assert len(evaluated) == 5 and not unfinished.exists()
    one, two = evidence_of(whole), evidence_of(config)
    for evidence in (one, two):
        assert evidence.pop("provenance") and evidence.pop("checksum")
    assert one == two


def test_an_unfinished_grid_of_other_settings_is_not_continued(config, evaluated):
    evaluated.kill_at = 2
    with pytest.raises(KeyboardInterrupt):
        low_shot.main(config)
    evaluated.clear()
    evaluated.kill_at = None
    low_shot.main(replace(config, seed=1))
    assert len(evaluated) == 5


def test_a_cell_that_diverges_is_not_taken(config):
    config.select.grid.write_text("classifier.lr: [1.0e+30, 0.3]")
    low_shot.main(config)
    diverged, trained = evidence_of(config)["cells"]
    assert diverged["mean"] is None and "NaN" in diverged["diverged"] and trained["mean"] > 0
    assert evidence_of(config)["chosen"] == {LR: 0.3}


def test_a_grid_of_diverging_cells_is_refused(config):
    config.select.grid.write_text("classifier.lr: [1.0e+30]")
    with pytest.raises(InputError, match="every cell of the grid diverged"):
        low_shot.main(config)
    assert not config.out.exists() and not config.out.with_suffix(".selection.yaml").exists()


def test_an_edited_choice_is_refused(config):
    low_shot.main(config)
    evidence = config.out.with_suffix(".selection.yaml")
    content = evidence_of(config)
    content["chosen"] = next(cell for cell in CELLS if cell != content["chosen"])
    evidence.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(InputError, match="damaged or edited"):
        low_shot.main(config)


def test_of_equal_cells_the_first_is_taken(config):
    config.select.grid.write_text("transform.centre: [true, false]")
    low_shot.main(
        replace(choosing(config, criterion="top5_novel_base"), classifier=NearestMeanOptions())
    )  # with four classes, top-5 is always 1
    assert [cell["mean"] for cell in evidence_of(config)["cells"]] == [1.0, 1.0]
    assert evidence_of(config)["chosen"] == {"transform.centre": True}


DAMAGE = [
    lambda content: content.pop("cells"),
    lambda content: content.update(cells=None),
    lambda content: content["cells"][0].update(mean="high"),
    lambda content: content["cells"][0].update(mean=None),
    lambda content: content["cells"][0].update(mean=0.999),
    lambda content: content["cells"][0].update(trials=[]),
    lambda content: content["cells"][0]["values"].update({LR: 0.5}),
    lambda content: content["cells"][0]["trials"][0].pop("top1_novel"),
]


def assert_damage_is_named(config, path, changes):
    for change in changes:
        change(content := yaml.safe_load(whole := path.read_text()))
        content.pop("checksum")
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        with pytest.raises(InputError, match=re.escape(str(path))):
            low_shot.main(config)
        path.write_text(whole)


def test_damaged_evidence_is_named(config, evaluated):
    low_shot.main(replace(config, setup="validation"))
    evidence = config.out.with_suffix(".selection.yaml")
    assert_damage_is_named(
        config, evidence, [*DAMAGE, lambda content: content["cells"].pop(), lambda c: c.pop("chosen")]
    )
    assert len(evaluated) == 4 and not config.out.exists()


def test_a_damaged_unfinished_grid_is_named(config, evaluated):
    evaluated.kill_at = 2
    with pytest.raises(KeyboardInterrupt):
        low_shot.main(config)
    assert_damage_is_named(config, partial_path(config.out.with_suffix(".selection.yaml")), DAMAGE)
    with pytest.raises(KeyboardInterrupt):  # an undamaged file is resumed
        low_shot.main(config)


def test_an_unfinished_grid_that_cannot_be_read_is_thrown_away(config, evaluated, capsys):
    evaluated.kill_at = 2
    with pytest.raises(KeyboardInterrupt):
        low_shot.main(config)
    unfinished = partial_path(config.out.with_suffix(".selection.yaml"))
    unfinished.write_text(unfinished.read_text()[:-20])
    evaluated.clear()
    evaluated.kill_at = None
    low_shot.main(config)
    assert len(evaluated) == 5 and "cannot be read, it is thrown away" in capsys.readouterr().err


def test_parts_of_a_run_do_not_choose_for_themselves(config):
    with pytest.raises(InputError, match="Select once with --setup validation"):
        low_shot.main(replace(config, trials=[1]))
    assert not config.out.parent.exists()
    low_shot.main(replace(config, trials=[1], setup="validation"))
    assert evidence_of(config)["cells"][0]["interval"] is None


def test_results_without_the_choice_are_no_results_with_it(config):
    config.select.grid.write_text("classifier.lr: [0.3]")
    low_shot.main(replace(config, select=None, classifier=replace(config.classifier, lr=0.3)))
    with pytest.raises(InputError, match="input selection is new"):
        low_shot.main(config)


def test_evidence_made_again_is_the_same(config, evaluated, capsys):
    low_shot.main(config)
    config.out.with_suffix(".selection.yaml").unlink()
    low_shot.main(config)
    assert len(evaluated) == 9 and f"{config.out} already exists" in capsys.readouterr().out


NOT_THERE = [
    ({}, "mlp.lr: [0.1]", "mlp.lr: is called classifier.lr now"),
    (
        {},
        "classifier.hidden: [8]",
        "classifier.hidden: no setting of linear_sgd (it is one of mlp); its settings are: lr",
    ),
    (
        {"classifier": NearestMeanOptions()},
        "classifier.lr: [0.1, 1.0]",
        "classifier.lr: no setting of nearest_mean (it",
    ),
    ({}, "classifier: [cosine, nearest_mean]\nclassifier.lr: [0.1, 1.0]", "classifier.lr: no setting of nearest_mean"),
    ({}, "classifier.C: [0.1, 1.0]", "classifier.C: no setting of linear_sgd"),
    ({}, "add.generator.pairs: [centroids, features]", "add.generator.folder: is required"),
    (
        {},
        "add.repetition.pairs: [centroids]",
        "add.repetition.pairs: no setting of repetition (it is one of generator)",
    ),
    ({"add": {}}, "max_per_label: [2, 5]", "max_per_label: is called add.ADDITION.max_per_label now"),
]


@pytest.mark.parametrize(("changes", "text", "message"), NOT_THERE)
def test_a_setting_that_is_not_there_is_not_chosen(config, changes, text, message):
    config.select.grid.write_text(text)
    with pytest.raises(InputError) as caught:
        low_shot.main(replace(config, train=Path("missing.h5"), **changes))
    assert f"grid.yaml: {message}" in str(caught.value)
    assert not config.out.parent.exists()


def test_a_choice_depends_on_what_its_cells_have(config, evaluated):
    """The choice depends on the settings of the classifiers in the grid and of no others."""
    config.select.grid.write_text("classifier: [nearest_mean, linear_sgd]")
    low_shot.main(config)
    assert len(evaluated) == 3
    with pytest.raises(InputError, match=r"setting classifier\.lr\.1 was 0\.1, now 7\.0"):
        low_shot.main(replace(config, classifier=replace(config.classifier, lr=7.0)))
    other = NearestMeanOptions("cosine")  # linear_sgd then has its default settings
    with pytest.raises(InputError, match=r"setting classifier\.batch_size\.1 was 20, now 1000"):
        low_shot.main(replace(config, classifier=other))


def test_classifiers_that_have_settings_of_one_name_are_distinguished(config, evaluated):
    """linear_sgd and cosine both have a learning rate: the recipe of a choice contains both."""
    config.select.grid.write_text("classifier: [linear_sgd, cosine]")
    low_shot.main(config)
    stored = evidence_of(config)["config"]
    assert (stored["classifier.lr.0"], stored["classifier.lr.1"]) == (0.1, 0.01)
    assert stored["classifier.momentum.0"] == 0.9 and stored["classifier.scale.1"] == 10
    with pytest.raises(InputError, match=r"setting classifier\.lr\.0 was 0\.1, now 7\.0"):
        low_shot.main(replace(config, classifier=replace(config.classifier, lr=7.0)))


def test_a_grid_over_one_addition_leaves_the_others(config, tmp_path, monkeypatch):
    from test_low_shot import StubHallucinator, captured_problem

    from lowshot import hallucination

    (tmp_path / "generator").mkdir()
    monkeypatch.setattr(hallucination, "Hallucinator", StubHallucinator)
    config.select.grid.write_text("add.repetition.max_per_label: [9]")
    added = {"generator": Generator(tmp_path / "generator", max_per_label=3), "repetition": Repetition()}
    problem, content = captured_problem(replace(config, select=None), monkeypatch, select=config.select, add=added)
    assert content["config"]["add"]["names"] == ["generator", "repetition"]
    assert content["config"]["add"]["repetition"] == {"max_per_label": 9}
    assert (np.bincount(problem.runs[0].labels)[problem.runs[0].labels] == 9).all()
    assert (problem.runs[0].feats == 1).all(1).sum() == 2 * 6  # two of three rows are generated, three times


def test_a_grid_may_add(config):
    """A setting of an addition in a grid works as on the command line."""
    content = json.loads(low_shot.main(replace(config, add={})).read_text())
    assert content["config"]["add"]["names"] == ["repetition"] and content["method"] == "linear_sgd + repetition"


def test_classifiers_and_transforms_can_be_chosen(config):
    config.select.grid.write_text("classifier: [cosine, nearest_mean]\ntransform.centre: [false, true]\n"
                                  "transform.power: [5e-1]")  # fmt: skip
    content = json.loads(low_shot.main(config).read_text())
    chosen = content["selection"]["chosen"]
    assert content["config"]["classifier"]["name"] == chosen["classifier.name"] and chosen["transform.power"] == 0.5
    assert content["config"]["transform"]["centre"] is chosen["transform.centre"]
    names = [cell["values"]["classifier.name"] for cell in evidence_of(config)["cells"]]
    assert names == ["cosine"] * 2 + ["nearest_mean"] * 2


def test_every_cell_has_the_transform_of_its_classifier(config):
    config.select.grid.write_text("classifier: [linear_sgd, pt_map]")
    low_shot.main(replace(choosing(config), setup="validation", add={}))
    stored = evidence_of(config)["config"]
    assert (stored["transform.power.0"], stored["transform.power.1"]) == (0.0, 0.5)


def test_settings_of_a_classifier_that_the_grid_names(config):
    config.select.grid.write_text("classifier.metric: [cosine, euclidean]\nclassifier: [nearest_mean]")
    content = json.loads(low_shot.main(config).read_text())
    assert content["config"]["classifier"].keys() == {"name", "metric"}
    assert [cell["values"]["classifier.metric"] for cell in evidence_of(config)["cells"]] == ["cosine", "euclidean"]


BAD_GRIDS = [
    ("setup: [test]", "settings are always selected on the validation setup"),
    ("setup: [validation, test]", "settings are always selected on the validation setup"),
    ("classifier.rate: [1.0]", "classifier.rate: no setting of linear_sgd"),
    ("transform.rate: [1.0]", "transform.rate: no such setting"),
    ("transform: [1.0]", "transform: cannot be in a grid; available: classifier.name, classifier.lr"),
    ("sgd.lr: [1.0]", "sgd.lr: is called classifier.lr now"),
    ("methods.cosine.lr: [1.0]", "methods.cosine.lr: is called classifier.lr now"),
    ("pairs: [centroids]", "pairs: is called add.generator.pairs now"),
    ("repetition: [true]", "repetition: is called add.repetition now"),
    ("seed: [0, 1]", "seed: cannot be in a grid; available: "),
    ("train: [a.h5, b.h5]", "train: cannot be in a grid; available: "),
    ("select.criterion: [top1_all]", "select.criterion: cannot be in a grid; available: "),
    ("classifier.n_steps: [10, many]", "classifier.n_steps: 'many': must be an integer > 0"),
    ("classifier.lr: [-1.0]", "classifier.lr: -1.0: must be a number > 0"),
    ("classifier.lr: [.inf]", "classifier.lr: inf: must be a number > 0"),
    ("classifier.lr: [null]", "classifier.lr: null: must be a number > 0"),
    ("classifier.lr: [true]", "classifier.lr: true: must be a number > 0"),
    ("classifier: [null]", "classifier.name: is required (linear_sgd, "),
    ("classifier: [knn]", "nearest_mean"),
    ("classifier.lr: 1.0", "setting: [value, ...]"),
    ("classifier.lr: []", "setting: [value, ...]"),
    ("", "not a grid"),
    ("{}", "not a grid"),
    ("[1, 2]", "not a grid"),
    (f"seed: {list(range(99))}\nclassifier.lr: {list(range(1, 99))}", "has 9702 combinations, more than 1000"),
    ("classifier.lr: [1.0, 1]", "twice"),
    ("classifier: [cosine]\nclassifier.name: [cosine]", "twice"),
    ("classifier.lr: [1.0", "not valid YAML"),
    ("classifier.lr: !!python/object/apply:os.getcwd []", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "message"), BAD_GRIDS)
def test_bad_grids_are_refused_before_any_work(config, text, message):
    config.select.grid.write_text(text)
    with pytest.raises(InputError) as caught:
        low_shot.main(replace(config, train=Path("missing.h5")))
    assert message in str(caught.value) and str(config.select.grid) in str(caught.value)
    assert not config.out.parent.exists()


def test_a_missing_grid_is_named(config):
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such file"):
        low_shot.main(choosing(config, grid=Path("nowhere.yaml")))


def test_evidence_is_no_results_file(config):
    low_shot.main(config)
    assert list(read_files(config.out.parent)) == ["r.json"]


def test_script(config):
    settings = ["--select", config.select.grid, "--shots", "[1]", "--add", "repetition"]
    small = ["--classifier.n_steps", "5", "--classifier.batch_size", "20"]
    done = command(config, *settings, *small)
    assert done.returncode == 0, done.stderr
    assert "cell 4 of 4" in done.stdout and evidence_of(config)["protocol"]["setup"] == "validation"
    assert json.loads(config.out.read_text())["selection"]["evidence"] == "r.selection.yaml"
    config.select.grid.write_text("setup: [test]")
    assert_refused(command(config, *settings, *small), "grid.yaml", "always selected on the validation setup")


# --- selection per n ---


def by_shot(config):
    """The values of the best cell for each n, computed from the evidence."""
    best = {}
    for n in config.shots:
        means = [
            np.mean([(one["top1_novel"] + one["top1_base"]) / 2 for one in cell["trials"] if one["n_shot"] == n])
            for cell in evidence_of(config)["cells"]
        ]
        best[str(n)] = evidence_of(config)["cells"][int(np.argmax(means))]["values"]
    return best


def test_a_choice_for_every_n_equals_separate_runs(config):
    config.select.grid.write_text("transform.power: [0.25, 1.0]\ntransform.normalise: [false, true]\n"
                             "transform.centre: [false, true]")  # fmt: skip
    config = replace(config, classifier=NearestMeanOptions(), add={}, shots=[5, 1, 2])
    content = json.loads(low_shot.main(choosing(config, per_shot=True)).read_text())
    best = by_shot(config)
    assert best["1"] != best["5"]  # otherwise the test shows nothing
    assert content["selection"]["chosen"] == evidence_of(config)["chosen"] == best
    plain = replace(config, select=None, out=config.out.with_name("plain.json"))
    for n in config.shots:
        transform = {name.split(".")[1]: value for name, value in best[str(n)].items()}
        alone = results(plain, shots=[n], transform=low_shot.FeatureTransform(**transform))
        assert [one for one in content["trials"] if one["n_shot"] == n] == alone["trials"]
        shown = {
            name: one[str(n)] if isinstance(one, dict) else one for name, one in content["config"]["transform"].items()
        }
        assert shown == alone["config"]["transform"]
    assert content["config"]["shots"] == [5, 1, 2] and content["method"] == "nearest_mean (settings by n)"


def test_a_classifier_chosen_for_every_n(config, monkeypatch):
    """The methods have different settings, and one is transductive."""
    better = {("cosine", 1), ("prototype_refinement", 5)}

    def evaluate_runs(classifier, problem, benchmark, *rest):
        name = {SGDOptions: "linear_sgd", CosineOptions: "cosine"}.get(type(classifier), "prototype_refinement")
        for run in problem.runs:
            rank = 0 if (name, run.n_shot) in better else 9
            yield [{run.key: Outcomes(*[np.full(len(benchmark.test_labels), rank)] * 5)}]

    monkeypatch.setattr(low_shot.evaluation, "evaluate_runs", evaluate_runs)
    config.select.grid.write_text("classifier: [linear_sgd, cosine, prototype_refinement]")
    content = json.loads(low_shot.main(replace(choosing(config, per_shot=True), add={})).read_text())
    assert content["config"]["classifier"] == {
        "name": {"1": "cosine", "5": "prototype_refinement"},
        "scale": {"1": 10.0, "5": 1.0},
        "n_steps": {"1": 100, "5": 1},
        "lr": {"1": 0.01},
        "batch_size": {"1": 1000},
    }
    assert content["method"] == "cosine, prototype_refinement (settings by n)"
    assert content["protocol"]["setting"] == "transductive"


def test_a_transductive_choice_is_called_one(config):
    config.select.grid.write_text("classifier: [pt_map]")
    content = json.loads(low_shot.main(replace(config, add={})).read_text())
    assert content["method"] == "pt_map (power 0.5)" and content["protocol"]["setting"] == "transductive"


def test_a_choice_for_every_n_is_another_than_one_for_all(config, evaluated, capsys):
    low_shot.main(choosing(config, per_shot=True))
    assert [setup for setup, *_ in evaluated] == ["validation"] * 4 + ["test"] * 2
    low_shot.main(choosing(config, per_shot=True))
    assert len(evaluated) == 6 and capsys.readouterr().out.count("already exists") == 2
    with pytest.raises(InputError, match="setting select_per_shot was True, now not set"):
        low_shot.main(config)
    content = evidence_of(config)
    content["chosen"]["1"] = next(cell for cell in CELLS if cell != content["chosen"]["1"])
    config.out.with_suffix(".selection.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(InputError, match="damaged or edited"):
        low_shot.main(choosing(config, per_shot=True))


def test_a_cell_that_diverges_is_taken_for_no_n(config):
    config.select.grid.write_text("classifier.lr: [1.0e+30, 0.3]")
    low_shot.main(choosing(config, per_shot=True))
    assert evidence_of(config)["chosen"] == {"1": {LR: 0.3}, "5": {LR: 0.3}}


def test_joint_recipe_by_hand():
    def recipe_of(config):
        return Recipe({"stage": "s", "config": config, "inputs": {"x": "y"}}, {}, lambda stored: stored)

    one = recipe_of({"shots": [1, 2], "a": 1, "b": {"c": 1, "e": 3}, "only": 5})
    two = recipe_of({"shots": [5], "a": 1, "b": {"c": 2, "e": 3}, "other": None})
    joint = joint_recipe([([1, 2], one), ([5], two)])
    assert joint["stage"] == "s" and joint["inputs"] == {"x": "y"}
    assert joint["config"] == {
        "shots": [1, 2, 5],
        "a": 1,
        "b": {"c": {"1": 1, "2": 1, "5": 2}, "e": 3},
        "only": {"1": 5, "2": 5},
        "other": {"5": None},
    }
    assert joint_recipe([([1, 2], one)]) == one


def test_the_grids_of_the_recipes_are_accepted(config, tmp_path):
    grids = sorted((ROOT / "configs").glob("*/grids/*.yaml"))
    assert grids
    graph, missing = tmp_path / "graph-{setup}.h5", Path("missing.h5")
    for setup in ("validation", "test"):
        (tmp_path / f"graph-{setup}.h5").touch()
    for grid in grids:
        is_logreg = grid.stem == "logreg"
        if (grid.parents[1].name == "diffusion" or grid.stem in ("diffusion", "fusion")) and not is_logreg:
            files = {name: getattr(config, name) for name in ("test", "split", "draws", "out")}
            files |= {"train": missing, "graph": graph, "fuse": Fusion(graph)}
            stage, own = diffusion, diffusion.Config(**files, select=Selection(grid))
        else:
            classifiers = CLASSIFIERS.classes | METHODS.classes
            known = classifiers.get(grid.stem, BalancedSGDOptions if is_logreg else SGDOptions)()
            stage, own = low_shot, replace(config, train=missing, classifier=known, select=Selection(grid))
            if grid.stem == "low_shot-generated":
                own = replace(own, add={"generator": Generator(missing)})
            if grid.stem == "calibrated":
                own = replace(own, add={"calibrated": Calibrated()})
            if grid.parents[1].name == "few_shot_gan":
                own = replace(own, add={"samples": Samples(str(missing))})
        with pytest.raises(InputError, match=r"missing\.h5: no such file"):  # only after all checks of the grid
            stage.main(own)
