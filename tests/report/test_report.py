"""Reports: reading and merging results files, means and paired differences, escaping, and the whole script."""

import json
import os
import re
from itertools import chain
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from conftest import run_script

import parse_results
from lowshot.core.errors import InputError
from lowshot.data.datasets.images import Images, write_images
from lowshot.data.features import write_features
from lowshot.data.protocol import make_split
from lowshot.evaluation.settings import SixAccuracies
from lowshot.report import results, tables
from lowshot.report.files import read_files

SYSTEM = [*results.PROTOCOL, "system", "setting", "metric", "n_shot"]
PROTOCOL = ("glyphs", "test", "f" * 64)
INDUCTIVE = {"setup": "test", "setting": "inductive", "superclasses": False, "outside": []}
SIX = get_args(SixAccuracies)


def content(method="plain", values=None, **changes):
    """The content of a results file. `values` is {(trial, n_shot): top1_novel}; the other five metrics are 0.5."""
    rows = [
        {"trial": trial, "n_shot": n_shot, **dict.fromkeys(SIX, 0.5), "top1_novel": value}
        for (trial, n_shot), value in (values or {(1, 1): 0.2, (2, 1): 0.4}).items()
    ]
    provenance = {"command": f"low_shot.py --out {method}", "commit": "abc", "versions": {}, "device": "cpu"}
    return {
        "stage": "low_shot",
        "config": {"seed": 0, "shots": [1]},
        "inputs": {"draws": "d" * 64},
        "method": method,
        "dataset": "glyphs",
        "extractor": "conv4",
        "protocol": {**INDUCTIVE, "split_digest": "f" * 64},
        "provenance": {**provenance, "wall_time_s": 90.0, "peak_memory_bytes": 2**30},
        "trials": rows,
        **changes,
    }


def without_scripts(page):
    """A page without what draws its charts and sorts its tables."""
    return re.sub(r"<script type=\"module\">.*?</script>", "", page, flags=re.DOTALL)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in files.items():
        (folder / f"{name}.json").write_text(json.dumps(one))
    return folder


def summary_of(folder):
    return results.summarise(results.read_results(folder), SYSTEM)


def main_table(folder):
    return tables.accuracy_table(summary_of(folder), "top1_novel", PROTOCOL).frame


# Reading


def test_long_form_has_a_row_per_trial_n_and_metric(tmp_path):
    frame = results.read_results(write(tmp_path, a=content()))
    assert len(frame) == 2 * 6
    assert [*results.COLUMNS, "trial", "n_shot", "metric", "value", "draws", "file"] == list(frame)
    row = frame[(frame["trial"] == 2) & (frame["metric"] == "top1_novel")].iloc[0]
    assert (row["system"], row["value"], row["file"], row["draws"]) == ("conv4: plain", 0.4, "a.json", "d" * 64)


def test_one_file_and_other_kinds(tmp_path):
    folder = write(tmp_path, a=content(), b=content(method="other"))
    one = results.read_results(folder / "a.json")
    whole = results.read_results(folder)
    assert one.equals(whole[whole["file"] == "a.json"].reset_index(drop=True))
    with pytest.raises(InputError, match=r"contains no episodes\. Available: trials"):
        results.read_results(folder, "episodes")
    with pytest.raises(InputError, match="no such file or folder"):
        results.read_results(folder / "c.json")
    with pytest.raises(InputError, match=r"kind 'accuracies': not a kind of result\. Available: trials, by_class"):
        results.read_results(folder, "accuracies")


def test_files_at_any_depth_are_read_except_unfinished_ones_and_the_report(tmp_path):
    write(tmp_path, a=content())
    write(tmp_path / "deep", b=content("other"))
    write(tmp_path / "report", config={"stage": "parse_results"})
    (tmp_path / ".lowshot").mkdir()
    (tmp_path / ".lowshot" / "c.json").write_text("{")
    assert list(read_files(tmp_path, tmp_path / "report")) == ["a.json", "deep/b.json"]


def test_tasks_of_a_job_array_are_one_system(tmp_path):
    parts = {f"t{t}": content(values={(t, 1): t / 10}, config={"seed": 0, "trials": [t]}) for t in (1, 2, 3)}
    parts["n5"] = content(values={(1, 5): 0.9}, config={"seed": 0, "shots": [5]})
    table = main_table(write(tmp_path, **parts))
    assert table["System"].tolist() == ["conv4: plain"]
    assert table["n = 1"].tolist() == ["20.00 ± 24.84"] and table["n = 5"].tolist() == ["90.00 ± ? (1 trial)"]


def test_runs_that_differ_in_a_setting_are_two_systems_named_by_it(tmp_path):
    configs = [{"seed": 0, "sgd": {"learning_rate": rate, "n_steps": 5}} for rate in (0.1, 0.5)]
    write(tmp_path, a=content(config=configs[0]), b=content(config=configs[1], values={(1, 1): 0.9}))
    names = results.read_results(tmp_path)["system"].unique().tolist()
    assert names == ["conv4: plain (sgd.learning_rate=0.1)", "conv4: plain (sgd.learning_rate=0.5)"]


TRANSFORM = {"power": 0.0, "centre": False, "normalise": False}
OLDER = {"seed": 0, "trials": [1], "transform": TRANSFORM, "classifier": "linear_sgd", "sgd": {"lr": 0.1},
         "pairs": "centroids", "pair_scope": "all", "repetition": False, "max_per_label": 5, "shots": [1]}  # fmt: skip
NEWER = {"seed": 0, "trials": [2], "transform": TRANSFORM, "classifier": {"name": "linear_sgd", "lr": 0.1},
         "shots": [1], "add": {"names": ["generator"],
                 "generator": {"pairs": "centroids", "pair_scope": "all", "max_per_label": 5}}}  # fmt: skip


def with_generator(name, digest="g"):
    return {"draws": "d" * 64, name: digest * 64}


def test_trials_of_an_older_revision_belong_to_the_same_system(tmp_path):
    """Settings and input files had other names."""
    older = content(values={(1, 1): 0.2}, config=OLDER, inputs=with_generator("generator"))
    newer = content(values={(2, 1): 0.4}, config=NEWER, inputs=with_generator("add.generator.folder"))
    write(tmp_path, older=older, newer=newer)
    assert results.read_results(tmp_path)["system"].unique().tolist() == ["conv4: plain"]
    write(tmp_path, newer=newer | {"inputs": with_generator("add.generator.folder", "h")})
    assert set(results.read_results(tmp_path)["system"]) == {
        "conv4: plain (add.generator.folder=gggggggg)", "conv4: plain (add.generator.folder=hhhhhhhh)"
    }  # fmt: skip
    faster = {**NEWER, "classifier": {"name": "linear_sgd", "lr": 0.5}}
    write(tmp_path, newer=newer | {"config": faster})
    names = {"conv4: plain (classifier.lr=0.1)", "conv4: plain (classifier.lr=0.5)"}
    assert set(results.read_results(tmp_path)["system"]) == names


def test_settings_chosen_for_each_n_in_an_older_revision(tmp_path):
    older = {name: value for name, value in OLDER.items() if name not in ("pairs", "pair_scope", "max_per_label")}
    older |= {"sgd": {"1": {"lr": 0.1}, "5": {"lr": 0.5}}, "shots": [1, 5]}
    newer = NEWER | {"classifier": {"name": "linear_sgd", "lr": {"1": 0.1, "5": 0.5}}, "add": {"names": []}}
    write(
        tmp_path, older=content(values={(1, 1): 0.2}, config=older), newer=content(values={(2, 1): 0.4}, config=newer)
    )
    assert results.read_results(tmp_path)["system"].unique().tolist() == ["conv4: plain"]


def test_code_of_ones_own_that_has_changed_makes_another_system(tmp_path):
    own = {"classifier": {"name": "mine.py:Mine"}, "shots": [1], "add": {"names": []}}
    for i, digest in enumerate("xy", start=1):
        inputs = {"draws": "d" * 64, "code of classifier": digest * 64}
        write(tmp_path, **{digest: content("mine", {(i, 1): 0.2}, config=own, inputs=inputs)})
    assert set(results.read_results(tmp_path)["system"]) == {
        "conv4: mine (code of classifier=xxxxxxxx)", "conv4: mine (code of classifier=yyyyyyyy)"
    }  # fmt: skip


def test_different_values_for_the_same_trial_name_both_files(tmp_path):
    write(tmp_path, a=content(values={(1, 1): 0.2}), b=content(values={(1, 1): 0.3}))
    with pytest.raises(InputError, match=r"a\.json and b\.json.*conv4: plain, trial 1, n_shot 1, metric top1_novel"):
        results.read_results(tmp_path)


def test_identical_duplicates_count_once(tmp_path):
    assert summary_of(write(tmp_path, a=content(), b=content()))["trials"].unique().tolist() == [2]


def spoiled(**row):
    one = content()
    one["trials"][1].update(row)
    return json.dumps(one)


def without(key):
    return json.dumps({name: value for name, value in content().items() if name != key})


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{not json", "not valid JSON"),
        ("[1]", "it is not a JSON object"),
        (without("method"), "lacks 'method'"),
        (without("provenance"), "lacks 'provenance'"),
        (without("trials"), "lacks 'trials'"),
        (json.dumps(content(protocol={"setup": "test", "setting": "inductive"})), "lacks 'protocol.split_digest'"),
        (json.dumps(content(trials=[])), "not a list of entries"),
        (json.dumps(content(trials=[{"trial": 1, "n_shot": 1}])), "lack 'top1_novel'"),
        (spoiled(top1_base=1.2), "entry 2: 'top1_base' is 1.2, outside 0..1"),
        (spoiled(top5_all=float("nan")), "NaN is not a number"),
        (spoiled(top5_all="0.5"), "'top5_all' has a value that is not a number"),
        (spoiled(n_shot=0), "'n_shot' must be an integer, at least 1"),
        (spoiled(trial=1.5), "'trial' must be an integer, at least 0"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(tmp_path, text, cause):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(InputError, match=r"broken\.json") as error:
        read_files(tmp_path)
    assert cause in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(PermissionError):
        read_files(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InputError, match="no results file"):
        read_files(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        read_files(tmp_path / "nowhere")


# Statistics


def test_mean_and_interval_by_hand():
    frame = pd.DataFrame({"key": ["a"] * 5 + ["b"], "value": [0.1, 0.2, 0.3, 0.4, 0.5, 0.7]})
    found = results.summarise(frame, ["key"])
    # Standard deviation sqrt(0.025); t of 4 degrees of freedom 2.776445.
    assert found.loc[0, "mean"] == pytest.approx(0.3)
    assert found.loc[0, "interval"] == pytest.approx(2.776445 * np.sqrt(0.025 / 5), rel=1e-6)
    assert found.loc[1, "mean"] == 0.7 and np.isnan(found.loc[1, "interval"])
    assert found["trials"].tolist() == [5, 1]


def test_paired_interval_by_hand(tmp_path):
    plain = content(values={(1, 1): 0.2, (2, 1): 0.5, (3, 1): 0.8, (4, 1): 0.1})
    better = content("plain + more", values={(1, 1): 0.31, (2, 1): 0.60, (3, 1): 0.89})
    pairs = results.paired_differences(results.read_results(write(tmp_path, a=plain, b=better)))
    pairs = pairs[pairs["metric"] == "top1_novel"].set_index("system")
    row = pairs.loc["conv4: plain + more"]
    # Differences 0.11, 0.10, 0.09: standard deviation 0.01; t of 2 degrees of freedom 4.302653.
    assert row["mean"] == pytest.approx(0.1)
    assert row["interval"] == pytest.approx(4.302653 * 0.01 / np.sqrt(3), rel=1e-6)
    assert row["trials"] == 3 and row["differs"]
    assert pairs.loc["conv4: plain", "mean"] == pytest.approx(-0.1)


def test_a_difference_within_its_interval_or_of_one_trial_is_no_difference(tmp_path):
    plain = content(values={(1, 1): 0.2, (2, 1): 0.5, (1, 5): 0.5})
    other = content("zother", values={(1, 1): 0.4, (2, 1): 0.4, (1, 5): 0.9})
    frame = results.read_results(write(tmp_path, a=plain, b=other))
    table = tables.paired_table(results.paired_differences(frame), "top1_novel", PROTOCOL).frame
    assert table.loc[0].tolist() == ["conv4: zother", "conv4: plain", "2", "+5.00 ± 190.59", "+40.00 ± ? (1 trial)"]


def test_trials_of_other_draws_or_another_split_are_not_paired(tmp_path):
    other_split = {**INDUCTIVE, "split_digest": "e" * 64}
    others = {"b": content("b", inputs={"draws": "c" * 64}), "c": content("c", protocol=other_split)}
    assert results.paired_differences(results.read_results(write(tmp_path, a=content(), **others))).empty
    write(tmp_path, d=content("d", inputs={}))
    pairs = results.paired_differences(results.read_results(tmp_path))
    assert set(pairs["system"]) == {"conv4: plain", "conv4: b", "conv4: d"}


# Tables


def test_missing_cells_and_single_trials_are_marked(tmp_path):
    values = {(1, 1): 0.2, (2, 1): 0.4, (1, 5): 0.6, (2, 5): 0.6}
    write(tmp_path, a=content(values=values), b=content("single", values={(1, 1): 0.25}))
    assert main_table(tmp_path).to_numpy().tolist() == [
        ["conv4: plain", "inductive", "2", "30.00 ± 127.06", "60.00 ± 0.00"],
        ["conv4: single", "inductive", "1", "25.00 ± ?", "missing"],
    ]
    wide = tables.wide(summary_of(tmp_path)).set_index(["system", "metric"]).loc[("conv4: single", "top1_novel")]
    assert wide["trials_n5"] == 0 and np.isnan(wide["mean_n5"]) and np.isnan(wide["interval_n1"])


def test_augmented_methods_follow_the_plain_ones(tmp_path):
    write(tmp_path, a=content("a + b"), b=content("z"), c=content("a + b + c"))
    assert main_table(tmp_path)["System"].tolist() == ["conv4: z", "conv4: a + b", "conv4: a + b + c"]


def test_latex_and_markdown_escape_names(tmp_path):
    table = tables.accuracy_table(summary_of(write(tmp_path, a=content(r"a_b & <c>|\x%"))), "top1_novel", PROTOCOL)
    latex = tables.to_latex(table)
    assert r"conv4: a\_b \& \textless{}c\textgreater{}\textbar{}\textbackslash{}x\% & inductive & 2" in latex
    assert r"30.00 $\pm$ 127.06 \\" in latex and r"\% accuracy" in latex
    assert r"| conv4: a_b &amp; &lt;c>\|\x% |" in tables.to_markdown(table)


def test_names_stay_on_one_line_and_are_no_formulas(tmp_path):
    folder = write(tmp_path / "results", a=content("=1+1\nand more", extractor="@x"))
    parse_results.main(config(folder))
    for name, line in (("main.md", "| @x: =1+1 and more |"), ("tables.tex", "@x: =1+1 and more &")):
        assert line in (folder.parent / "report" / "tables" / name).read_text()
    cells = pd.read_csv(folder.parent / "report" / "tables" / "trials.csv")
    assert set(cells["method"]) == {"'=1+1\nand more"} and set(cells["extractor"]) == {"'@x"}
    assert cells["value"].dtype == float


# Notes on identical results


def notes(folder, capsys):
    parse_results.main(config(folder, overwrite=True))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Identical")]
    page = (folder.parent / "report/report.html").read_text()
    assert all(f'<p class="note">{line}</p>' in page for line in printed) and ("Identical" in page) == bool(printed)
    return printed


def with_additions(**additions):
    return {"classifier": {"name": "plain"}, "add": {"names": list(additions), **additions}}


AT = {n: {(t, n): 0.1 * t + 0.01 * n for t in (1, 2, 3)} for n in (1, 5, 10)}
BETTER = {key: value + 0.1 for key, value in AT[1].items()}


def test_equal_results_are_explained_by_max_per_label(folder, capsys):
    values = {"a": AT[1] | AT[5] | AT[10], "b": BETTER | AT[5] | AT[10], "c": BETTER | AT[5] | AT[10]}
    adding = {"a": {}, "b": {"generator": {"max_per_label": 5}}, "c": {"repetition": {"max_per_label": 10}}}
    for name, added in adding.items():
        method = " + ".join(["plain", *added])
        write(folder, **{name: content(method, values[name], config=with_additions(**added))})
    equal, generator = "Identical in every trial at n = ", "conv4: plain + generator"
    assert notes(folder, capsys) == [
        f"{equal}5, 10: {generator} and conv4: plain; generator adds no rows to classes with 5 or more shots "
        "(max_per_label 5).",
        f"{equal}5: conv4: plain + repetition and conv4: plain.",
        f"{equal}10: conv4: plain + repetition and conv4: plain; repetition adds no rows to classes with 10 or "
        "more shots (max_per_label 10).",
        f"{equal}1: conv4: plain + repetition and {generator}.",
    ]
    assert "max\\_per\\_label 5" in (folder.parent / "report/tables/tables.tex").read_text()


def test_results_of_an_older_revision_are_explained_too(folder, capsys):
    older = {name: value for name, value in OLDER.items() if name != "max_per_label"}
    write(folder, a=content(values=AT[5], config={**older, "shots": [5]}))
    write(folder, b=content("plain + generator", AT[5], config={**OLDER, "shots": [5]},
                            inputs=with_generator("generator")))  # fmt: skip
    assert notes(folder, capsys) == [
        "Identical in every trial at n = 5: conv4: plain + generator and conv4: plain; generator adds no rows to "
        "classes with 5 or more shots (max_per_label 5)."
    ]


def test_equal_results_are_explained_by_settings_chosen_for_every_n(folder, capsys):
    equal, biases = "Identical in every trial at n =", {"a": 0.0, "b": {"1": 0.75, "5": 0.0}}
    for (name, bias), values in zip(biases.items(), (AT[1] | AT[5], BETTER | AT[5])):
        settings = {"classifier": {"name": "plain"}, "add": {"names": []}, "novel_bias": bias, "shots": [1, 5]}
        write(folder, **{name: content(name, values, config=settings)})
    write(folder, c=content("c", BETTER | AT[5], config={**settings, "novel_bias": {"1": 0.75, "5": 0.5}}))
    assert notes(folder, capsys) == [
        f"{equal} 5: conv4: b and conv4: a; the settings chosen there are the same: novel_bias 0.0.",
        f"{equal} 5: conv4: c and conv4: a.",
        f"{equal} 1: conv4: c and conv4: b; the settings chosen there are the same: novel_bias 0.75.",
    ]


@pytest.mark.parametrize("change", ["a value of one trial", "another metric", "other draws"])
def test_only_results_that_are_equal_in_every_trial_and_metric_get_a_note(folder, capsys, change):
    one = content("other", AT[5])
    if change == "other draws":
        one["inputs"] = {"draws": "c" * 64}
    else:
        one["trials"][2]["top5_all" if change == "another metric" else "top1_novel"] += 1e-9
    assert notes(write(folder, a=content(values=AT[5]), b=one), capsys) == []
    assert len(notes(write(folder, b=content("other", AT[5])), capsys)) == 1


# Episodes


def episodes(method="nearest_mean", values=(0.2, 0.4), tasks="t" * 64, setting="inductive", **config):
    """A results file of 5-way 1-shot episodes with these accuracies."""
    rows = [{"episode": e, "n_way": 5, "n_shot": 1, "accuracy": value} for e, value in enumerate(values)]
    settings = {"seed": 0, "n_way": 5, "n_shots": [1], "n_queries": 15, "dirichlet": None, **config}
    protocol = INDUCTIVE | {"setting": setting, "split_digest": "f" * 64, "tasks_digest": tasks}
    one = content(method, config=settings, protocol=protocol, inputs={"features": "x"}, episodes=rows)
    return {key: value for key, value in one.items() if key != "trials"}


def printed_tables(folder, capsys, **changes):
    """The rows of the tables that the stage prints, by caption."""
    parse_results.main(parse_results.Config(results=folder, out=folder.parent / "report", overwrite=True, **changes))
    blocks = capsys.readouterr().out.split("**")[1:]
    found = {caption.split(":")[0]: block.strip().splitlines()[2:] for caption, block in zip(blocks[::2], blocks[1::2])}
    return {caption: [line for line in lines if line.startswith("|")] for caption, lines in found.items()}


def test_episode_table_and_paired_differences_by_hand(tmp_path, capsys):
    rival = episodes("cosine", values=(0.31, 0.60, 0.89), setting="transductive")
    folder = write(tmp_path / "results", a=episodes(values=(0.2, 0.5, 0.8, 0.1)), b=rival)
    found = printed_tables(folder, capsys)
    assert found["Episodes, 5-way, 15 queries a class"] == [
        "| conv4: nearest_mean | inductive | 4 | 40.00 ± 50.32 |",
        "| conv4: cosine | transductive | 3 | 60.00 ± 72.04 |",
    ]
    # Differences 0.11, 0.10, 0.09: t of 2 degrees of freedom times 0.01 / sqrt(3).
    expected = ["| conv4: cosine | conv4: nearest_mean | 3 | +10.00 ± 2.48 * |"]
    assert found["Episodes, 5-way, 15 queries a class, paired differences"] == expected
    turned = printed_tables(folder, capsys, reference="cosine")
    assert [line[:46] for line in turned["Episodes, 5-way, 15 queries a class, paired differences"]] == [
        "| conv4: nearest_mean | conv4: cosine | 3 | -1"
    ]


def test_each_kind_of_task_has_its_own_table(tmp_path, capsys):
    kinds = {
        "b": episodes(dirichlet=2.0, tasks="u" * 64),
        "c": episodes(within_superclass=True, tasks="v" * 64),
        "d": episodes(n_way="all", within_superclass=True, tasks="w" * 64),
        "e": episodes("cosine", dirichlet=2.0, tasks="u" * 64, values=(0.3, 0.4)),
    }
    found = printed_tables(write(tmp_path / "results", a=episodes(), **kinds), capsys)
    dirichlet = "Episodes, 5-way, 15 queries a class on average, shares from Dirichlet(2)"
    assert {caption: len(lines) for caption, lines in found.items()} == {
        "Episodes, 5-way, 15 queries a class": 1,
        dirichlet: 2,
        f"{dirichlet}, paired differences": 1,
        "Episodes, 5-way within a superclass, 15 queries a class": 1,
        "Episodes, all-way within a superclass, 15 queries a class": 1,
    }
    assert all("nearest_mean |" in line for line in found["Episodes, 5-way, 15 queries a class"])


def test_episodes_of_other_images_are_not_paired(tmp_path):
    files = read_files(write(tmp_path, a=episodes(), b=episodes("cosine", tasks="u" * 64)))
    assert results.paired_differences(results.episodes(files)).empty


def test_the_plainest_classifiers_come_first(tmp_path):
    files = {"a": episodes("cosine"), "b": episodes("nearest_mean (CL2N)"), "c": episodes()}
    frame = results.episodes(read_files(write(tmp_path, **files)))
    systems = ["conv4: nearest_mean", "conv4: nearest_mean (CL2N)", "conv4: cosine"]
    assert frame["system"].unique().tolist() == systems and results.plainest(frame) == systems[0]
    assert results.plainest(frame, "cosine") == systems[2] and results.plainest(frame, "other") == systems[0]


# The stage


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "results", a=content())


@pytest.fixture
def rich_folder(folder):
    """Results of two systems (one without n = 5), an escaping problem in a name, episodes and a second setup."""
    values = {(t, n): 0.1 * t + 0.02 * n for t in (1, 2, 3) for n in (1, 5)}
    validation = {**INDUCTIVE, "setup": "validation", "split_digest": "f" * 64}
    episodes = [{"episode": e, "n_way": 5, "n_shot": 1, "accuracy": 0.1 * e} for e in range(5)]
    without_trials = {key: value for key, value in content("nearest").items() if key != "trials"}
    return write(
        folder,
        a=content(values=values),
        b=content("$a_b$ & <c> + 'd'", values={(t, 1): 0.1 * t + 0.1 + 0.01 * t for t in (1, 2, 3)}),
        c=content(values=values, protocol=validation),
        d={**without_trials, "episodes": episodes},
    )


CURVE = {"base": [0.8, 0.6, 0.0], "novel": [0.0, 0.4, 0.5]}


def with_curves(method="plain", curve=CURVE):
    one = content(method)
    further = {"top1_base_class_mean": 0.7, "top1_novel_class_mean": 0.2, "ausuc": 0.3}
    return one | {"trials": [row | further | {"base_novel": curve} for row in one["trials"]]}


def test_base_novel_curves_are_read_and_drawn(folder):
    """Files of older revisions have none; they are read as before."""
    assert "Base-novel curve" not in parse_results.main(config(folder)).read_text()
    path = parse_results.main(config(write(folder, b=with_curves("curved"))))
    assert "<h3>Base-novel curve</h3>" in path.read_text()
    figure = (path.parent / "figures/glyphs_test_ffffffff_base_novel_n1.svg").read_text()
    assert ">curved</text>" in figure and ">plain</text>" not in figure
    frame = results.read_results(folder, "base_novel")
    assert set(frame["system"]) == {"conv4: curved"} and frame["place"].tolist() == [0, 1, 2] * 2
    assert frame["base"].tolist() == CURVE["base"] * 2 and frame["novel"].tolist() == CURVE["novel"] * 2


@pytest.mark.parametrize(
    "curve",
    [
        3,
        {},
        {"base": [0.5]},
        {"base": [0.5], "novel": [0.5, 0.6]},
        {"base": [], "novel": []},
        {"base": [2], "novel": [1]},
        {"base": ["a"], "novel": [1]},
        {"base": [None], "novel": [0.5]},
    ],
)
def test_a_broken_base_novel_curve_is_named(tmp_path, curve):
    with pytest.raises(InputError, match=r"a\.json: trials: 'base_novel' must hold"):
        read_files(write(tmp_path, a=with_curves(curve=curve)))


def test_bands_end_at_0_and_100_and_differences_do_not(folder):
    """Two trials have intervals of more than 100 points."""
    write(folder, a=content(values={(1, 1): 0.1, (2, 1): 0.9}), b=content("other", {(1, 1): 0.9, (2, 1): 0.1}))
    page = parse_results.main(config(folder)).read_text()
    specs = re.findall(r'<script type="application/json">(.*?)</script>', page)
    rows = [chain.from_iterable(json.loads(spec)["datasets"].values()) for spec in specs]
    curves, differences = ([one for one in part if one["interval"] > 100] for part in rows)
    assert curves and {(one["low"], one["high"]) for one in curves} == {(0, 100)}
    assert differences and all(one["low"] < -100 and one["high"] > 100 for one in differences)


def config(folder, **changes):
    return parse_results.Config(results=folder, out=folder.parent / "report", **changes)


def test_a_report_is_whole_and_escaped(rich_folder, capsys):
    path = parse_results.main(config(rich_folder, reference="$a_b$ & <c> + 'd'"))
    page = without_scripts(path.read_text())
    assert "$a_b$ &amp; &lt;c&gt; + &#39;d&#39;" in page and "<c>" not in page
    assert "minus <b>conv4: $a_b$ &amp; &lt;c&gt; + &#39;d&#39;</b>" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    for words in ("missing", "22.00 ± 24.84", "1 min 30 s", "1.00 GiB", "low_shot.py --out plain", "ffffffffffff"):
        assert words in page.replace("\u00a0", " ")
    names = {file.relative_to(path.parent).as_posix() for file in path.parent.rglob("*") if file.is_file()}
    assert {f"tables/{n}" for n in ("main.md", "tables.md", "tables.tex", "trials.csv", "accuracy.csv")} <= names
    assert {f"figures/glyphs_{s}_ffffffff_{k}.svg" for s in ("test", "validation") for k in ("top1", "top5")} <= names
    assert len(pd.read_csv(path.parent / "tables/trials.csv")) == (6 + 3 + 6) * 6
    printed = capsys.readouterr().out
    assert "Top-1, novel classes: glyphs, validation setup, split ffffffffffff" in printed
    assert "| conv4: nearest | inductive | 5 | 20.00 ± 19.63 † |" in printed and "**Episodes, 5-way: glyphs" in printed
    assert printed.rstrip().endswith(f"report: {path}")


def test_the_second_run_skips_and_changed_results_update_the_report(folder, capsys):
    path = parse_results.main(config(folder))
    made = path.stat().st_mtime_ns
    parse_results.main(config(folder))
    assert path.stat().st_mtime_ns == made and "already exists" in capsys.readouterr().out
    write(folder, e=content("new"))
    parse_results.main(config(folder))
    assert "making it again" in capsys.readouterr().out and "conv4: new" in path.read_text()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["report", "results"]


def test_only_a_report_is_replaced(folder):
    with pytest.raises(InputError, match=r"would replace the results\. Choose another folder"):
        parse_results.main(parse_results.Config(results=folder, out=folder.parent, overwrite=True))
    write(folder.parent / "report", config={"stage": "train_extractor", "config": {}, "inputs": {}})
    with pytest.raises(InputError, match="output of train_extractor"):
        parse_results.main(config(folder))


def test_the_reference_must_exist(folder):
    with pytest.raises(InputError, match=r"no such system\. Available: 'conv4: plain'"):
        parse_results.main(config(folder, reference="nothing"))


@pytest.fixture
def data(tmp_path, folder):
    """A preprocessing folder of 6 classes with 4 train and 4 test images each, and results on its split."""
    split = make_split("glyphs", list("abcdef"), ["s"], [0] * 6, 0, novel_classes=[4, 5])
    made_from = {"stage": "preprocessing", "config": {}, "inputs": {}}
    labels, rng = np.repeat(np.arange(6), 8), np.random.default_rng(0)
    is_test = np.tile(np.arange(8) >= 4, 6)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "split.json").write_text(json.dumps(split.to_json()))
    pixels = rng.integers(0, 255, (48, 8, 8, 1), np.uint8)
    write_images(tmp_path / "data" / "images.h5", Images(labels, is_test, pixels), made_from)
    feats = rng.normal(size=(24, 6)).astype(np.float32)
    write_features(tmp_path / "test.h5", feats, labels[is_test], made_from)
    protocol = {**INDUCTIVE, "split_digest": split.digest}
    write(folder, a=content(protocol=protocol))
    return tmp_path / "data"


def test_samples_and_feature_map(folder, data):
    page = parse_results.main(config(folder, data=data, features=data.parent / "test.h5")).read_text()
    assert 'id="samples"' in page and 'id="features"' in page and "data:image/png;base64," in page
    assert len(page) < 3e6


def test_features_require_data_and_data_require_the_split_of_the_results(folder, data):
    with pytest.raises(InputError, match=r"--features .*: requires --data"):
        parse_results.main(config(folder, features=data.parent / "test.h5"))
    write(folder, a=content())
    with pytest.raises(InputError, match=r"split\.json: no file in .* was made with this split"):
        parse_results.main(config(folder, data=data))
    assert not (folder.parent / "report").exists()


def script(*arguments):
    return run_script("parse_results.py", *arguments)


def test_script(folder):
    done = script("--results", folder, "--out", folder.parent / "report", "--metric", "top5_all")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("**Top-5, all classes: glyphs") and (folder.parent / "report/report.html").exists()


def test_script_prints_one_line_and_writes_nothing_on_bad_input(folder):
    (folder / "bad.json").write_text("{")
    done = script("--results", folder, "--out", folder.parent / "report")
    assert done.returncode == 2 and "bad.json" in done.stderr and done.stderr.count("\n") == 1
    assert sorted(p.name for p in folder.parent.iterdir()) == ["results"]


# Accuracy over steps


def entries(values):
    """History entries from {(n_steps, trial, n_shot): top1_novel}; the other accuracies are 0.5."""
    rest = dict.fromkeys(SIX, 0.5)
    return [{"n_steps": s, "trial": t, "n_shot": n, **rest, "top1_novel": v} for (s, t, n), v in values.items()]


def diffused(method="diffusion", gain=0.1, best=2, shots=(1, 5), trials=(1, 2, 3), **changes):
    """A results file of diffusion. Accuracy rises up to `best` steps, which are reported, and then falls."""
    values = {
        (s, t, n): 0.1 + 0.05 * np.log2(n) + gain * (1 - abs(s - best) / 4) + 0.01 * t
        for s in range(5)
        for t in trials
        for n in shots
    }
    reported = {(t, n): value for (s, t, n), value in values.items() if s == best}
    protocol = INDUCTIVE | {"setting": "semi_supervised", "split_digest": "f" * 64}
    return content(method, reported, protocol=protocol, history=entries(values), **changes)


@pytest.fixture
def diffusion_folder(tmp_path):
    plain = content("linear_sgd", {(t, n): 0.15 + 0.02 * t for t in (1, 2, 3) for n in (1, 2, 5)})
    generator = content("linear_sgd + generator", {(t, 1): 0.2 + 0.02 * t for t in (1, 2, 3)})
    background = diffused("diffusion + background", gain=0.2, best=3)
    return write(tmp_path / "results", a=plain, b=generator, c=diffused(), d=background)


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ({"n_steps": -1}, "history: 'n_steps' must be an integer, at least 0"),
        ({"n_steps": 1.5}, "history: 'n_steps' must be an integer, at least 0"),
        ({"n_shot": 0}, "history: 'n_shot' must be an integer, at least 1"),
        ({"top5_all": 1.1}, "history: entry 1: 'top5_all' is 1.1, outside 0..1"),
        ({"top1_novel": None}, "history: entry 1: 'top1_novel' is absent or NaN"),
    ],
)
def test_a_broken_history_is_named_with_its_fault(tmp_path, entry, cause):
    one = diffused()
    one["history"][0] |= entry
    with pytest.raises(InputError, match=r"broken\.json") as error:
        read_files(write(tmp_path, broken=one))
    assert cause in str(error.value)
    with pytest.raises(InputError, match="history is not a list of entries"):
        read_files(write(tmp_path, broken=one | {"history": {}}))
    del one["trials"]
    with pytest.raises(InputError, match="lacks 'trials'"):
        read_files(write(tmp_path, broken=one | {"episodes": []}))


def test_history_in_long_form(diffusion_folder):
    files = read_files(diffusion_folder)
    frame = results.history(files)
    assert frame["system"].unique().tolist() == ["conv4: diffusion", "conv4: diffusion + background"]
    assert len(frame) == 2 * 5 * 3 * 2 * 6 and frame["n_steps"].tolist()[:1] == [0]
    row = frame[(frame["metric"] == "top1_novel") & (frame["n_steps"] == 2) & (frame["n_shot"] == 1)].iloc[0]
    assert row["value"] == pytest.approx(0.21)
    assert results.history({name: one for name, one in files.items() if name < "c"}).empty


def test_parts_of_a_run_are_one_system_also_in_their_history(tmp_path):
    parts = {f"t{t}": diffused(trials=[t], config={"seed": 0, "trials": [t]}) for t in (1, 2, 3)}
    del parts["t3"]["history"]
    files = read_files(write(tmp_path, **parts))
    assert results.trials(files)["system"].unique().tolist() == ["conv4: diffusion"]
    assert sorted(results.history(files)["trial"].unique()) == [1, 2]


def test_the_reported_steps_are_those_with_the_numbers_of_the_trials(diffusion_folder):
    fused = diffused("fused")
    fused["trials"][0]["top1_novel"] = 0.99
    files = read_files(write(diffusion_folder, e=fused))
    found = results.reported_steps(results.history(files), results.trials(files)).to_dict()
    background = {("conv4: diffusion + background", n): 3 for n in (1, 5)}
    assert found == {("conv4: diffusion", 1): 2, ("conv4: diffusion", 5): 2, ("conv4: fused", 5): 2, **background}


def test_the_plain_classifier_is_of_the_same_extractor_and_without_augmentation(tmp_path):
    files = {
        "a": content("linear_sgd + generator"),
        "b": content("nearest_mean (centre)"),
        "c": content("linear_sgd", extractor="other"),
        "d": content("cosine", extractor="third"),
        "e": content("imprinting (CL2N)", extractor="fourth"),
    }
    frame = results.trials(read_files(write(tmp_path, **files)))
    assert results.plain_system(frame, "conv4") == "conv4: nearest_mean (centre)"
    assert results.plain_system(frame, "other") == "other: linear_sgd"
    assert results.plain_system(frame, "third") is None
    assert results.plain_system(frame, "fourth") == "fourth: imprinting (CL2N)"


def test_the_table_over_steps_by_hand(tmp_path):
    plain = content("linear_sgd", {(1, 1): 0.2, (2, 1): 0.4, (1, 2): 0.3})
    history = {(0, 1, 1): 0.1, (0, 2, 1): 0.1, (1, 1, 1): 0.3, (1, 2, 1): 0.5, (0, 1, 5): 0.6}
    one = content("diffusion", {(1, 1): 0.3, (2, 1): 0.5}, history=entries(history))
    files = read_files(write(tmp_path, a=plain, b=one))
    summary = results.summarise(results.history(files), [*SYSTEM, "n_steps"])
    level = results.summarise(results.trials(files).query("method == 'linear_sgd'"), SYSTEM)
    assert tables.steps_table(summary, level, "top1_novel", PROTOCOL).frame.to_numpy().tolist() == [
        ["conv4: linear_sgd", "none", "2", "30.00 ± 127.06", "missing"],
        ["conv4: diffusion", "0", "2", "10.00 ± 0.00", "60.00 ± ? (1 trial)"],
        ["conv4: diffusion", "1", "2", "40.00 ± 127.06", "missing"],
    ]


def test_a_report_shows_accuracy_over_steps(diffusion_folder):
    path = parse_results.main(config(diffusion_folder))
    page = path.read_text()
    assert "Accuracy over diffusion steps" in page and "The horizontal line is conv4: linear_sgd, which" in page
    for rank in ("top1", "top5"):
        figure = (path.parent / f"figures/glyphs_test_ffffffff_{rank}_steps.svg").read_text()
        shown = re.findall(r">(n = \d|linear_sgd|diffusion[^<]*)</text>", figure)
        assert set(shown) == {"n = 1", "n = 5", "linear_sgd", "diffusion", "diffusion + background"}
    for name in ("tables.md", "tables.tex"):
        assert "Top-5, all classes, over diffusion steps" in (path.parent / "tables" / name).read_text()
    assert "diffusion steps" not in (path.parent / "tables/main.md").read_text()
    wide = pd.read_csv(path.parent / "tables/accuracy_over_steps.csv").set_index(["system", "metric", "n_steps"])
    assert wide.loc[("conv4: diffusion", "top1_novel", 2), "mean_n1"] == pytest.approx(0.22)
    assert len(pd.read_csv(path.parent / "tables/steps.csv")) == 2 * 5 * 3 * 2 * 6


def test_a_report_without_steps_has_no_such_figure(folder):
    path = parse_results.main(config(folder))
    assert "diffusion steps" not in path.read_text() and not list(path.parent.rglob("*steps*"))


def test_a_single_trial_without_a_plain_classifier_is_drawn_too(tmp_path):
    path = parse_results.main(config(write(tmp_path / "results", a=diffused(shots=[1], trials=[1]))))
    assert "Accuracy over diffusion steps" in path.read_text() and "horizontal line" not in path.read_text()


# Several class splits, and scores of generated images


def splits_folder(tmp_path):
    """Two systems on three class splits of two trials each."""
    for split, (plain, better) in enumerate([(0.2, 0.25), (0.4, 0.5), (0.3, 0.33)]):
        protocol = {**INDUCTIVE, "split_digest": str(split) * 64}
        for method, mean in (("plain", plain), ("plain + samples", better)):
            one = content(method, {(1, 5): mean - 0.1, (2, 5): mean + 0.1}, protocol=protocol)
            write(tmp_path / f"seed{split}", **{method.replace(" ", ""): one})
    return tmp_path


def test_means_over_class_splits_by_hand(tmp_path):
    """Trials are averaged within a split first; intervals are over splits."""
    frame = results.over_splits(results.trials(read_files(splits_folder(tmp_path))))
    assert set(frame["split_digest"]) == {"3 class splits"} and len(frame) == 2 * 3 * 6
    table = tables.accuracy_table(results.summarise(frame, SYSTEM), "top1_novel", ("glyphs", "test", "3 class splits"))
    assert "glyphs, test setup, 3 class splits; % accuracy, mean ± 95 % interval over class splits" in table.caption
    half = 4.302653 * 10 / 3**0.5  # t of two degrees of freedom, deviation 10 points
    assert table.frame.iloc[0].to_dict() == {
        "System": "conv4: plain", "Setting": "inductive", "Class splits": "3", "n = 5": f"30.00 ± {half:.2f}"
    }  # fmt: skip
    pairs = results.paired_differences(frame)
    one = pairs[(pairs["system"] == "conv4: plain + samples") & (pairs["metric"] == "top1_novel")].iloc[0]
    assert (one["mean"], one["trials"]) == (pytest.approx((0.05 + 0.1 + 0.03) / 3), 3)


@pytest.mark.parametrize("head", ["classifier.extractor", "head"])
def test_heads_with_features_of_their_own_are_one_system(tmp_path, head):
    """Several n and class splits of own_head: each file has its own features, and so its own test file."""
    # The settings in revision d41a11c, and today.
    chosen = (
        {"classifier": "own_head"} if head == "head" else {"classifier": {"name": "own_head"}, "add": {"names": []}}
    )
    for split in range(2):
        protocol = {**INDUCTIVE, "split_digest": str(split) * 64}
        for n in (5, 10):
            inputs = {"draws": "d" * 64, "test": f"{split}{n}" * 20, head: f"{split}{n}" * 20}
            config = {**chosen, "shots": [n]}
            one = content("own head", {(1, n): 0.2 + n / 100}, protocol=protocol, inputs=inputs, config=config)
            write(tmp_path / f"seed{split}", **{f"n{n}": one})
    frame = results.trials(read_files(tmp_path))
    assert set(frame["system"]) == {"conv4: own head"}
    assert set(results.over_splits(frame)["split_digest"]) == {"2 class splits"}


def test_one_class_split_has_no_such_table(folder):
    assert results.over_splits(results.trials(read_files(folder))).empty


def score_content(method, split, fid, reference="validation", trial=1, **changes):
    scores = {"kid": -0.001, "precision": 0.5, "recall": 0.25, "density": 1.5, "coverage": 0.75, "class_accuracy": 1}
    rows = [{"class": c, "n_images": 10, "fid": fid + i, **scores} for i, c in enumerate([None, 3, 7])]
    one = content(method, protocol=INDUCTIVE | {"setup": "both", "split_digest": str(split) * 64},
                  config={"reference": reference, "seed": 0}, gan={"k": 5, "trial": trial}, **changes)  # fmt: skip
    del one["trials"]
    return one | {"scores": rows}


def test_scores_of_generated_images_by_hand(tmp_path, capsys):
    for split, (plain, semi) in enumerate([(20.0, 15.0), (30.0, 24.0)]):
        for reference in ("validation", "test"):
            files = {f"{name}-{reference}": score_content(name, split, fid, reference)
                     for name, fid in (("supervised", plain), ("unlabelled", semi))}  # fmt: skip
            write(tmp_path / "results" / f"seed{split}", **files)
    parse_results.main(parse_results.Config(results=tmp_path / "results", out=tmp_path / "report"))
    printed = capsys.readouterr().out
    assert "against test images" in printed and "against validation images" in printed and "FID of each" not in printed
    text = (tmp_path / "report" / "tables" / "tables.md").read_text()
    half = 12.7062 * np.std([20, 30], ddof=1) / 2**0.5
    assert (
        f"| conv4: supervised | inductive | 2 | 25 ± {half:.3g} | -0.001 ± 0 | 0.5 ± 0 | 0.25 ± 0 | 1.5 ± 0 |" in text
    )
    assert "| conv4: unlabelled | conv4: supervised | 2 | -5.5 ± 6.35 |" in text
    assert text.count("FID of each class") == 4 and "| 7 | 22.00 | 17.00 |" in text
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Scores of generated images" in page and "FID of each class" in page
    wide = pd.read_csv(tmp_path / "report" / "tables" / "image_scores.csv")
    assert len(wide) == 2 * 2 * 2 * 3 * 7 and set(wide["class"]) == {-1, 3, 7}


@pytest.mark.parametrize(("name", "value"), [("fid", -1.0), ("precision", 1.2), ("kid", "x")])
def test_scores_out_of_range_are_named(tmp_path, name, value):
    one = score_content("supervised", 0, 20.0)
    one["scores"][0][name] = value
    with pytest.raises(InputError, match=rf"a\.json: scores.*'{name}'"):
        read_files(write(tmp_path, a=one))
