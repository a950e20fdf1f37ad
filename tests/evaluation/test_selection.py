"""low_shot.py --select: the choice is the best cell, is made on the validation setup only, and survives a kill."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, assert_refused
from test_low_shot import SIX, command, results, tiny_config

import diffusion
import low_shot
from lowshot.classifiers.methods import METHODS
from lowshot.core.artifacts import partial_path
from lowshot.core.errors import InputError
from lowshot.evaluation.selection import joint_recipe
from lowshot.report.results import read_files

GRID = "sgd.lr: [0.001, 0.3]\nmax_per_label: [2, 5]"
CELLS = [{"sgd.lr": lr, "max_per_label": rows} for lr in (0.001, 0.3) for rows in (2, 5)]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID)
    return replace(tiny_config(tmp_path), select=tmp_path / "grid.yaml", repetition=True, criterion="top1_novel_base")


def evidence_of(config):
    return yaml.safe_load(config.out.with_suffix(".selection.yaml").read_text())


@pytest.fixture
def judged(monkeypatch):
    """(setup, learning rate) of everything that is judged; `judged.kill_at` = number of the one that is killed."""
    real = low_shot._ranks

    class Seen(list):
        kill_at = None

    seen = Seen()

    def watched(config, benchmark, device, keep=None):
        if len(seen) == seen.kill_at:
            raise KeyboardInterrupt
        setup = "validation" if set(benchmark.classes) == {0, 1, 4, 5} else "test"
        seen.append((setup, config.sgd.lr, config.max_per_label))
        return real(config, benchmark, device)

    monkeypatch.setattr(low_shot, "_ranks", watched)
    return seen


@pytest.mark.parametrize("criterion", ["top1_novel_base", "top1_novel", "top5_all"])
def test_the_choice_is_the_best_cell(config, criterion):
    """By hand: every cell as a run of its own on the validation setup, then the best as a run on the test setup."""
    groups = criterion.split("_")[1:]
    plain, means = replace(config, select=None, out=config.out.with_name("plain.json")), []
    for cell in CELLS:
        sgd = replace(config.sgd, lr=cell["sgd.lr"])
        trials = results(plain, setup="validation", sgd=sgd, max_per_label=cell["max_per_label"])["trials"]
        values = [
            [one[f"{criterion[:4]}_{group}"] for one in trials if one["trial"] == t for group in groups]
            for t in (1, 2, 3)
        ]
        means.append(np.mean(values, axis=1))
    content = json.loads(low_shot.main(replace(config, criterion=criterion)).read_text())
    evidence = evidence_of(config)
    assert evidence["protocol"]["setup"] == "validation" and [cell["values"] for cell in evidence["cells"]] == CELLS
    for cell, by_trial in zip(evidence["cells"], means):
        assert cell["mean"] == pytest.approx(by_trial.mean())
        assert cell["interval"] == pytest.approx(4.302653 * by_trial.std(ddof=1) / 3**0.5)  # t(0.975; 2)
        assert len(cell["trials"]) == 6 and set(cell["trials"][0]) > SIX
    best = CELLS[int(np.argmax([by_trial.mean() for by_trial in means]))]
    assert content["selection"]["chosen"] == evidence["chosen"] == best
    assert content["selection"]["criterion"] == criterion and content["protocol"]["setup"] == "test"
    sgd = replace(config.sgd, lr=best["sgd.lr"])
    expected = results(plain, sgd=sgd, max_per_label=best["max_per_label"])
    assert content["trials"] == expected["trials"] and content["config"] == expected["config"]


def test_the_test_setup_is_judged_once_after_the_choice(config, judged):
    low_shot.main(config)
    assert [setup for setup, *_ in judged] == ["validation"] * 4 + ["test"]
    assert {"sgd.lr": judged[-1][1], "max_per_label": judged[-1][2]} == evidence_of(config)["chosen"]


def test_on_validation_only_the_choice_is_made(config, judged):
    assert low_shot.main(replace(config, setup="validation")) == config.out.with_suffix(".selection.yaml")
    assert {setup for setup, *_ in judged} == {"validation"} and not config.out.exists()
    low_shot.main(config)
    assert len(judged) == 5 and judged[-1][0] == "test"


def test_what_stands_is_not_made_again(config, judged, capsys):
    low_shot.main(config)
    low_shot.main(config)
    assert len(judged) == 5 and capsys.readouterr().out.count("there already") == 2
    low_shot.main(replace(config, sgd=replace(config.sgd, lr=7.0)))  # the grid overrides it
    assert len(judged) == 5
    with pytest.raises(InputError, match="setting criterion was top1_novel_base, now top1_all"):
        low_shot.main(replace(config, criterion="top1_all"))
    config.select.write_text("sgd.lr: [0.3]")
    with pytest.raises(InputError, match="setting cells was"):
        low_shot.main(config)
    low_shot.main(replace(config, overwrite=True))
    assert evidence_of(config)["chosen"] == {"sgd.lr": 0.3}


@pytest.mark.parametrize("kill_at", [0, 1, 3])
def test_a_killed_grid_goes_on(config, judged, kill_at):
    whole = replace(config, out=config.out.with_name("whole.json"))
    low_shot.main(whole)
    judged.clear()
    judged.kill_at = kill_at
    with pytest.raises(KeyboardInterrupt):
        low_shot.main(config)
    unfinished = partial_path(config.out.with_suffix(".selection.yaml"))
    assert unfinished.exists() == (kill_at > 0) and not config.out.with_suffix(".selection.yaml").exists()
    judged.kill_at = None
    low_shot.main(config)
    assert len(judged) == 5 and not unfinished.exists()
    one, two = evidence_of(whole), evidence_of(config)
    assert one.pop("provenance") and two.pop("provenance") and one == two


def test_an_unfinished_grid_of_other_settings_is_not_continued(config, judged):
    judged.kill_at = 2
    with pytest.raises(KeyboardInterrupt):
        low_shot.main(config)
    judged.clear()
    judged.kill_at = None
    low_shot.main(replace(config, seed=1))
    assert len(judged) == 5


def test_a_cell_that_diverges_is_not_taken(config):
    config.select.write_text("sgd.lr: [1.0e+30, 0.3]")
    low_shot.main(config)
    diverged, trained = evidence_of(config)["cells"]
    assert diverged["mean"] is None and "NaN" in diverged["diverged"] and trained["mean"] > 0
    assert evidence_of(config)["chosen"] == {"sgd.lr": 0.3}


def test_a_grid_of_diverging_cells_is_refused(config):
    config.select.write_text("sgd.lr: [1.0e+30]")
    with pytest.raises(InputError, match="every cell of the grid diverged"):
        low_shot.main(config)
    assert not config.out.exists() and not config.out.with_suffix(".selection.yaml").exists()


def test_an_edited_choice_is_refused(config):
    low_shot.main(config)
    evidence = config.out.with_suffix(".selection.yaml")
    content = evidence_of(config)
    content["chosen"] = next(cell for cell in CELLS if cell != content["chosen"])
    evidence.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="edited by hand"):
        low_shot.main(config)


def test_of_equal_cells_the_first_is_taken(config):
    config.select.write_text("transform.centre: [true, false]")
    low_shot.main(replace(config, classifier="nearest_mean", criterion="top5_novel_base"))  # four ways: always 1
    assert [cell["mean"] for cell in evidence_of(config)["cells"]] == [1.0, 1.0]
    assert evidence_of(config)["chosen"] == {"transform.centre": True}


DAMAGE = [
    lambda content: content.pop("cells"),
    lambda content: content.update(cells=None),
    lambda content: content["cells"][0].update(mean="high"),
    lambda content: content["cells"][0].update(mean=None),
    lambda content: content["cells"][0].update(mean=0.999),
    lambda content: content["cells"][0].update(trials=[]),
    lambda content: content["cells"][0]["values"].update({"sgd.lr": 0.5}),
    lambda content: content["cells"][0]["trials"][0].pop("top1_novel"),
]


def assert_damage_is_named(config, path, changes):
    for change in changes:
        change(content := yaml.safe_load(whole := path.read_text()))
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(InputError, match=re.escape(str(path))):
            low_shot.main(config)
        path.write_text(whole)


def test_damaged_evidence_is_named(config, judged):
    low_shot.main(replace(config, setup="validation"))
    evidence = config.out.with_suffix(".selection.yaml")
    assert_damage_is_named(
        config, evidence, [*DAMAGE, lambda content: content["cells"].pop(), lambda c: c.pop("chosen")]
    )
    assert len(judged) == 4 and not config.out.exists()


def test_a_damaged_unfinished_grid_is_named(config, judged):
    judged.kill_at = 2
    with pytest.raises(KeyboardInterrupt):
        low_shot.main(config)
    assert_damage_is_named(config, partial_path(config.out.with_suffix(".selection.yaml")), DAMAGE)
    with pytest.raises(KeyboardInterrupt):  # undamaged it goes on
        low_shot.main(config)


def test_parts_of_a_run_do_not_choose_for_themselves(config):
    with pytest.raises(InputError, match="choose once with --setup validation"):
        low_shot.main(replace(config, trials=[1]))
    assert not config.out.parent.exists()
    low_shot.main(replace(config, trials=[1], setup="validation"))
    assert evidence_of(config)["cells"][0]["interval"] is None


def test_results_without_the_choice_are_no_results_with_it(config):
    config.select.write_text("sgd.lr: [0.3]")
    low_shot.main(replace(config, select=None, sgd=replace(config.sgd, lr=0.3)))
    with pytest.raises(InputError, match="input selection has another content"):
        low_shot.main(config)


def test_evidence_made_again_is_the_same(config, judged, capsys):
    low_shot.main(config)
    config.out.with_suffix(".selection.yaml").unlink()
    low_shot.main(config)
    assert len(judged) == 9 and f"{config.out} is there already" in capsys.readouterr().out


UNREAD = [
    ({"repetition": False}, "max_per_label: [2, 5]"),
    ({}, "pairs: [centroids, features]"),
    ({}, "mlp.lr: [0.1]"),
    ({"classifier": "nearest_mean"}, "sgd.lr: [0.1, 1.0]"),
    ({"classifier": "nearest_mean"}, "methods.logistic_regression.C: [0.1, 1.0]"),
    ({"classifier": "logistic_regression"}, "methods.logistic_regression.C: [0.1, 1.0]"),
    ({}, "classifier: [cosine, nearest_mean]\nsgd.lr: [0.1, 1.0]"),
]


@pytest.mark.parametrize(("changes", "text"), UNREAD)
def test_a_setting_that_nothing_reads_is_not_chosen(config, changes, text):
    config.select.write_text(text)
    name = text.splitlines()[-1].split(":")[0]
    with pytest.raises(
        InputError, match=rf"grid\.yaml: {name}: neither the classifier nor the augmentation .* reads it"
    ):
        low_shot.main(replace(config, train=Path("missing.h5"), **changes))
    assert not config.out.parent.exists()


def test_a_choice_depends_on_what_its_cells_read(config, judged):
    """Of all classifiers that the grid tries, and of no other."""
    config.select.write_text("classifier: [nearest_mean, linear_sgd]")
    low_shot.main(config)
    low_shot.main(replace(config, classifier="cosine", mlp=low_shot.MLPOptions(lr=0.3), pairs="features"))
    assert len(judged) == 3
    with pytest.raises(InputError, match=r"setting sgd\.lr was"):
        low_shot.main(replace(config, sgd=replace(config.sgd, lr=7.0)))


def test_classifiers_and_transforms_can_be_chosen(config):
    config.select.write_text("classifier: [cosine, nearest_mean]\ntransform.centre: [false, true]\n"
                             "methods.nearest_mean.metric: [cosine]\ntransform.power: [5e-1]")  # fmt: skip
    content = json.loads(low_shot.main(config).read_text())
    chosen = content["selection"]["chosen"]
    assert content["config"]["classifier"] == chosen["classifier"] and chosen["transform.power"] == 0.5
    assert content["config"]["transform"]["centre"] is chosen["transform.centre"]
    assert [cell["values"]["classifier"] for cell in evidence_of(config)["cells"]] == ["cosine"] * 2 + [
        "nearest_mean"
    ] * 2


BAD_GRIDS = [
    ("setup: [test]", "choosing on test is refused"),
    ("setup: [validation, test]", "choosing on test is refused"),
    ("sgd.rate: [1.0]", "'sgd.rate' (there are: classifier, transform.power"),
    ("sgd: [1.0]", "no setting to choose: 'sgd'"),
    ("seed: [0, 1]", "no setting to choose: 'seed'"),
    ("generator: [a, b]", "no setting to choose: 'generator'"),
    ("sgd.n_steps: [10, many]", "'many' is no value"),
    ("sgd.lr: [-1.0]", "-1.0 is no value"),
    ("sgd.lr: [.inf]", "inf is no value"),
    ("sgd.lr: [null]", "None is no value"),
    ("classifier: [null]", "None is no value"),
    ("repetition: [null, true]", "None is no value"),
    ("classifier: [knn]", "nearest_mean"),
    ("sgd.lr: 1.0", "setting: [value, ...]"),
    ("sgd.lr: []", "setting: [value, ...]"),
    ("", "not a grid"),
    ("{}", "not a grid"),
    ("[1, 2]", "not a grid"),
    ("sgd.lr: [1.0, 1]", "twice"),
    ("sgd.lr: [1.0", "not valid YAML"),
    ("sgd.lr: !!python/object/apply:os.getcwd []", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "message"), BAD_GRIDS)
def test_bad_grids_are_refused_before_any_work(config, text, message):
    config.select.write_text(text)
    with pytest.raises(InputError) as caught:
        low_shot.main(replace(config, train=Path("missing.h5")))
    assert message in str(caught.value) and str(config.select) in str(caught.value)
    assert not config.out.parent.exists()


def test_a_missing_grid_is_named(config):
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such file"):
        low_shot.main(replace(config, select=Path("nowhere.yaml")))


def test_evidence_is_no_results_file(config):
    low_shot.main(config)
    assert list(read_files(config.out.parent)) == ["r.json"]


def test_script(config):
    settings = ["--select", config.select, "--shots", "[1]", "--repetition", "true"]
    small = ["--sgd.n_steps", "5", "--sgd.batch_size", "20"]
    done = command(config, *settings, *small)
    assert done.returncode == 0, done.stderr
    assert "cell 4 of 4" in done.stdout and evidence_of(config)["protocol"]["setup"] == "validation"
    assert json.loads(config.out.read_text())["selection"]["evidence"] == "r.selection.yaml"
    config.select.write_text("setup: [test]")
    assert_refused(command(config, *settings, *small), "grid.yaml", "choosing on test is refused")


# --- a choice for every n ---


def by_shot(config):
    """The values of the best cell of the evidence for each n, by hand."""
    best = {}
    for n in config.shots:
        means = [
            np.mean([(one["top1_novel"] + one["top1_base"]) / 2 for one in cell["trials"] if one["n_shot"] == n])
            for cell in evidence_of(config)["cells"]
        ]
        best[str(n)] = evidence_of(config)["cells"][int(np.argmax(means))]["values"]
    return best


def test_a_choice_for_every_n_equals_separate_runs(config):
    config.select.write_text("transform.power: [0.25, 1.0]\ntransform.normalise: [false, true]\n"
                             "transform.centre: [false, true]")  # fmt: skip
    config = replace(config, classifier="nearest_mean", repetition=False, shots=[5, 1, 2])
    content = json.loads(low_shot.main(replace(config, select_per_shot=True)).read_text())
    best = by_shot(config)
    assert best["1"] != best["5"]  # or the test shows nothing
    assert content["selection"]["chosen"] == evidence_of(config)["chosen"] == best
    plain = replace(config, select=None, out=config.out.with_name("plain.json"))
    for n in config.shots:
        transform = {name.split(".")[1]: value for name, value in best[str(n)].items()}
        alone = results(plain, shots=[n], transform=low_shot.FeatureTransform(**transform))
        assert [one for one in content["trials"] if one["n_shot"] == n] == alone["trials"]
        assert content["config"]["transform"][str(n)] == alone["config"]["transform"]
    assert content["config"]["shots"] == [5, 1, 2] and content["method"] == "nearest_mean (settings by n)"


def test_a_classifier_chosen_for_every_n(config, monkeypatch):
    """They read different settings, and one is transductive."""
    better = {("cosine", 1), ("prototype_refinement", 5)}

    def judged(config, benchmark, device, keep=None):
        rank = {n: 0 if (config.classifier, n) in better else 9 for n in config.shots}
        return {(t, n): np.full(len(benchmark.test_labels), rank[n]) for t in benchmark.draws for n in config.shots}

    monkeypatch.setattr(low_shot, "_ranks", judged)
    config.select.write_text("classifier: [linear_sgd, cosine, prototype_refinement]\nmethods.cosine.lr: [0.1]")
    content = json.loads(low_shot.main(replace(config, select_per_shot=True, repetition=False)).read_text())
    assert content["config"]["classifier"] == {"1": "cosine", "5": "prototype_refinement"}
    assert content["config"]["methods"]["1"].keys() == {"cosine"}
    assert content["config"]["methods"]["5"].keys() == {"prototype_refinement"} and "sgd" not in content["config"]
    assert content["method"] == "cosine, prototype_refinement (settings by n)"
    assert content["protocol"]["setting"] == "transductive"


def test_a_transductive_choice_is_called_one(config):
    config.select.write_text("classifier: [pt_map]")
    content = json.loads(low_shot.main(replace(config, repetition=False)).read_text())
    assert content["method"] == "pt_map" and content["protocol"]["setting"] == "transductive"


def test_a_choice_for_every_n_is_another_than_one_for_all(config, judged, capsys):
    low_shot.main(replace(config, select_per_shot=True))
    assert [setup for setup, *_ in judged] == ["validation"] * 4 + ["test"] * 2
    low_shot.main(replace(config, select_per_shot=True))
    assert len(judged) == 6 and capsys.readouterr().out.count("there already") == 2
    with pytest.raises(InputError, match="setting select_per_shot was True, now absent"):
        low_shot.main(config)
    content = evidence_of(config)
    content["chosen"]["1"] = next(cell for cell in CELLS if cell != content["chosen"]["1"])
    config.out.with_suffix(".selection.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="edited by hand"):
        low_shot.main(replace(config, select_per_shot=True))


def test_a_cell_that_diverges_is_taken_for_no_n(config):
    config.select.write_text("sgd.lr: [1.0e+30, 0.3]")
    low_shot.main(replace(config, select_per_shot=True))
    assert evidence_of(config)["chosen"] == {"1": {"sgd.lr": 0.3}, "5": {"sgd.lr": 0.3}}


def test_joint_recipe_by_hand():
    one = {"stage": "s", "config": {"shots": [1, 2], "a": 1, "b": {"c": 1}, "only": 5}, "inputs": {"x": "y"}}
    two = {"stage": "s", "config": {"shots": [5], "a": 1, "b": {"c": 2}, "other": None}, "inputs": {"x": "y"}}
    joint = joint_recipe([([1, 2], one), ([5], two)])
    assert joint["stage"] == "s" and joint["inputs"] == {"x": "y"}
    assert joint["config"] == {
        "shots": [1, 2, 5],
        "a": 1,
        "b": {"1": {"c": 1}, "2": {"c": 1}, "5": {"c": 2}},
        "only": {"1": 5, "2": 5},
        "other": {"5": None},
    }
    assert joint_recipe([([1, 2], one)]) == one


def test_the_grids_of_the_recipes_are_accepted(config):
    grids = sorted((ROOT / "configs").glob("*/grids/*.yaml"))
    assert grids
    for grid in grids:
        missing = Path("missing.h5")
        if grid.parents[1].name == "diffusion":
            files = {name: getattr(config, name) for name in ("test", "split", "draws", "out")}
            stage, own = diffusion, diffusion.Config(**files, train=missing, graph=missing, scores=missing, select=grid)
        else:
            classifier = grid.stem if grid.stem in METHODS else "linear_sgd"
            stage, own = low_shot, replace(config, train=missing, classifier=classifier, select=grid)
            if grid.parents[1].name == "few_shot_gan":
                own = replace(own, samples=missing, repetition=False)
        with pytest.raises(InputError, match=r"missing\.h5: no such file"):  # after all that is said of the grid
            stage.main(own)
