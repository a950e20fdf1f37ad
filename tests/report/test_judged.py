"""Numbers of classes and images, the level of chance, top-5 of few classes, further numbers and single classes."""

import json
from typing import get_args

import pandas as pd
import pytest
from test_report import INDUCTIVE, PROTOCOL, SIX, config, content, write

import parse_results
from lowshot.core.errors import InputError
from lowshot.evaluation.settings import Metric
from lowshot.report import results
from lowshot.report.by_class import class_table
from lowshot.report.files import read_files
from lowshot.report.judged import Judged, judged_files

CLASSES = [{"class": c, "name": f"class {c}", "group": "novel" if c > 3 else "base", "n_images": 10} for c in range(6)]
CONFUSIONS = [
    {"n_shot": 1, "class": 4, "predicted": 0, "name": "class 0", "n_images": 12},
    {"n_shot": 1, "class": 4, "predicted": 5, "name": "class 5", "n_images": 3},
]


def judged(n_classes=6, **changes):
    """Results of two trials that record their classes and all numbers. top1_novel is 0.1."""
    classes = [{**CLASSES[c % 6], "class": c, "name": f"class {c}"} for c in range(n_classes)]
    hits = [10, 9, 8, 7, 1, 2, *[0] * (n_classes - 6)]
    numbers = dict.fromkeys(get_args(Metric), 0.5) | {"top1_novel": 0.1}
    rows = [{"trial": trial, "n_shot": 1, **numbers, "class_hits": hits} for trial in (1, 2)]
    return content(**({"trials": rows, "classes": classes, "confusions": CONFUSIONS} | changes))


def report(folder, **changes):
    path = parse_results.main(config(folder, **changes))
    return path.read_text().replace("\u00a0", " "), path.parent / "tables"


def test_tables_name_classes_images_and_chance_and_mark_what_is_not_above(tmp_path):
    page, tables = report(write(tmp_path / "results", a=judged()))
    main = (tables / "main.md").read_text()
    assert "classes: 2 novel, 4 base; test images: 20 novel, 40 base; chance 16.67 %" in main
    assert "| 10.00 ± 0.00 † |" in main and "† at or below chance (16.67 %)" in main
    for name, value in (("Classes", "2 novel, 4 base"), ("Chance level", "16.67 % (top-1)")):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page and f"{name}: {value}" in page
    latex = (tables / "tables.tex").read_text()
    assert r"10.00 $\pm$ 0.00 $^{\dagger}$" in latex and r"50.00 $\pm$ 0.00 \\" in latex
    assert "chance 50.00 %" in latex.replace("\\", "")  # novel among two novel classes


def test_older_files_do_not_say_what_they_have_seen(tmp_path):
    older = content("older", protocol={"setup": "test", "setting": "inductive", "split_digest": "f" * 64})
    page, tables = report(write(tmp_path / "results", a=older, b=content("zeta + more")))
    lines = (tables / "main.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines if line.startswith("| conv4")] == ["inductive", "unknown"]
    assert any(line.startswith("unknown, listed last") for line in lines) and "unknown, listed last" in page


def test_older_files_do_not_say_what_they_judged(tmp_path):
    page, tables = report(write(tmp_path / "results", a=content(values={(1, 1): 0.0})))
    assert "chance" not in (tables / "main.md").read_text() and "<dt>Classes</dt><dd>not recorded</dd>" in page
    assert "Further numbers" not in page and "Single classes" not in page and "Top-5" in page


def test_top5_is_not_shown_with_fewer_than_ten_classes(tmp_path):
    page, tables = report(write(tmp_path / "results", a=judged()))
    assert "Top-5" not in page and "Top-5" not in (tables / "tables.md").read_text()
    assert not list((tables.parent / "figures").glob("*top5*"))
    page, tables = report(write(tmp_path / "more" / "results", a=judged(12)), metric="top5_novel")
    assert "Top-5, novel classes among novel" not in page  # four novel classes
    assert (tables / "main.md").read_text().startswith("**Top-5, novel classes: glyphs")


def test_a_metric_that_is_not_shown_gives_way_to_another(tmp_path):
    folder = write(tmp_path / "results", a=judged())
    for metric, first in (("top5_novel", "Top-1, novel classes:"), ("ausuc", "Area under the base-novel curve:")):
        _, tables = report(folder, metric=metric, overwrite=True)
        assert (tables / "main.md").read_text().startswith(f"**{first}")
    _, tables = report(write(tmp_path / "older" / "results", a=content()), metric="ausuc")
    assert (tables / "main.md").read_text().startswith("**Top-1, novel classes:")


def test_older_and_newer_files_are_in_one_table(tmp_path):
    one = judged(method="new", extractor="conv4")
    _, tables = report(write(tmp_path / "results", a=content("old"), b=one))
    rows = (tables / "tables.md").read_text()
    assert "| conv4: old |" in rows.split("**Top-1, harmonic mean")[0]
    assert "| conv4: old |" not in rows.split("**Top-1, harmonic mean")[1].split("**")[1]


def test_single_classes_and_what_they_are_taken_for(tmp_path):
    folder = write(tmp_path / "results", a=judged())
    page, tables = report(folder)
    frame = class_table(*(kind(read_files(folder)) for kind in (results.by_class, results.confusions)), "x", PROTOCOL)
    assert frame.frame["Class"].tolist() == ["class 4", "class 5", "class 3", "class 2", "class 1", "class 0"]
    taken = frame.frame["Taken for, n = 1"].str.replace("[\u2068\u2069]", "", regex=True).str.replace("\u00a0", " ")
    assert taken.tolist()[:2] == ["class 0 60 %, class 5 15 %", ""]
    assert frame.frame["n = 1"].tolist()[:2] == ["10.0", "20.0"] and frame.n_text == 3
    assert "\u2068class 0\u2069 60 %" in page
    table = pd.read_csv(tables / "class_accuracy.csv").set_index("class")
    assert table.loc[4, "mean"] == 0.1 and table.loc[4, "trials"] == 2
    assert len(pd.read_csv(tables / "confusions.csv")) == 2
    frame = results.read_results(folder, "by_class")
    assert len(frame) == 12 and frame.loc[frame["class"] == 1, "value"].tolist() == [0.9, 0.9]


def test_systems_with_other_shots_or_test_images_are_named(tmp_path):
    other = judged(method="other", inputs={"draws": "c" * 64}, classes=[{**one, "n_images": 20} for one in CLASSES])
    _, tables = report(write(tmp_path / "results", a=judged(), b=other))
    main = (tables / "main.md").read_text()
    assert "Other shots than conv4: other, so not paired with it: conv4: plain." in main
    assert "Other test images than conv4: other: conv4: plain." in main
    assert "test images: 20–40 novel, 40–80 base" in main


def test_episodes_of_other_classes_do_not_change_what_trials_are_over(tmp_path):
    rows = [{"episode": e, "n_way": 5, "n_shot": 1, "accuracy": 0.7} for e in range(3)]
    without = {key: value for key, value in judged(9, method="nearest").items() if key not in ("trials", "confusions")}
    _, tables = report(write(tmp_path / "results", a=judged(), b={**without, "episodes": rows}))
    main = (tables / "main.md").read_text()
    assert "classes: 2 novel, 4 base; test images: 20 novel, 40 base; chance 16.67 %" in main
    assert "classes: 2 novel, 7 base; images: 20 novel, 70 base; chance 20.00 %" in main


def test_splits_of_other_sizes_are_not_joined(tmp_path):
    """The same classes with and without halves are two protocols, not two class splits."""
    parts = {f"{n}{digest}": judged(n, protocol={**INDUCTIVE, "split_digest": digest * 64})
             for n, digest in ((12, "a"), (12, "b"), (24, "c"), (24, "d"), (24, "e"))}  # fmt: skip
    _, tables = report(write(tmp_path / "results", **parts))
    main = (tables / "main.md").read_text()
    for n, novel, base in ((2, 4, 8), (3, 8, 16)):
        what = f"{n} class splits of {novel} novel and {base} base classes; classes: {novel} novel, {base} base"
        assert f"glyphs, test setup, {what}" in main
    write(tmp_path / "two" / "results", a=parts["12a"], c=parts["24c"])
    _, tables = report(tmp_path / "two" / "results")
    assert "class splits" not in (tables / "main.md").read_text()


def test_chance_is_unknown_if_class_splits_differ():
    assert Judged((2, 3), (4,), (9,), (9,)).chance("top1_novel") is None
    assert Judged((2,), (4,), (9,), (9,)).chance("top1_novel") == pytest.approx(1 / 6)
    assert Judged().shown(SIX) == list(SIX)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"classes": [{**CLASSES[0], "group": "new"}, *CLASSES[1:]]}, "of the groups 'base' and 'novel'"),
        ({"classes": [CLASSES[1], *CLASSES[1:]]}, "must be different classes"),
        ({"classes": [{**CLASSES[0], "name": 7}, *CLASSES[1:]]}, "'name' must be a text"),
        ({"classes": [{**CLASSES[0], "n_images": 5}, *CLASSES[1:]]}, "more hits than the class has images"),
        ({"classes": CLASSES[1:]}, "a number of hits for each class"),
        ({"classes": {}}, "a number of hits for each class"),
        ({"classes": []}, "a number of hits for each class"),
        ({"confusions": [{**CONFUSIONS[0], "predicted": -1}]}, "'predicted' must be an integer"),
        ({"confusions": 3}, "not a list of entries"),
    ],
)
def test_broken_classes_are_named(tmp_path, changes, cause):
    write(tmp_path, a=judged(**changes))
    with pytest.raises(InputError, match=r"a\.json") as error:
        read_files(tmp_path)
    assert cause in str(error.value)


@pytest.mark.parametrize("hits", ["x", [1, 2], [0.5] * 6, [True] * 6, [-1] * 6])
def test_broken_hits_are_named(tmp_path, hits):
    one = judged()
    one["trials"][1]["class_hits"] = hits
    write(tmp_path, a=one)
    with pytest.raises(InputError, match="class_hits"):
        read_files(tmp_path)


def test_a_class_that_is_always_right_has_no_confusions(tmp_path):
    files = read_files(write(tmp_path, a=judged(confusions=[])))
    assert results.confusions(files).empty and len(judged_files(files)) == 1
    json.dumps(results.by_class(files).to_dict())
