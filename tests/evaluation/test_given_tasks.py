"""Given tasks: the list, two commands from pictures to results, rows of a feature file, clustered intervals."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from conftest import run_script

import episodes
import parse_results
import save_features
from lowshot.classifiers.settings import FeatureTransform, NearestMeanOptions, PTMapOptions
from lowshot.core.errors import InputError
from lowshot.data.features import read_features
from lowshot.data.protocol import read_split
from lowshot.data.task_list import read_task_list
from lowshot.report import results
from lowshot.representation.backbones import Extractor, ModelConfig, save_extractor


def write_list(path, lines, columns=("task", "part", "class", "image")):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *lines])
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, image_folder):
    """Six tasks of four classes in two clusters: 1 support and 3 query pictures a class."""
    root = tmp_path_factory.mktemp("given")
    rng, lines = np.random.default_rng(0), []
    folders = sorted({path.parent for path in image_folder.rglob("*.png")})
    for task in range(6):
        for place in rng.permutation(len(folders))[:4]:
            files = sorted(folders[place].glob("*.png"))
            for i, file in enumerate(rng.permutation(files)[:4]):
                copy = root / folders[place].name / file.name
                copy.parent.mkdir(exist_ok=True)
                copy.write_bytes(file.read_bytes())
                part = "query" if i else "support"
                lines.append([f"t{task}", part, f"class of {copy.parent.name}", copy.relative_to(root), f"c{task % 2}"])
    return write_list(root / "tasks.csv", lines, ("task", "part", "class", "image", "cluster"))


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory, pictures, extractor):
    out = tmp_path_factory.mktemp("features")
    save_features.main(save_features.Config(extractor=extractor, data=pictures, out=out))
    return out / "train.h5"


def evaluate(out, **changes):
    return json.loads(episodes.main(episodes.Config(out=out, **changes)).read_text())


def test_two_commands(tmp_path, pictures, extractor, monkeypatch):
    monkeypatch.delenv("LOWSHOT_CHAIN", raising=False)  # set by the scripts, which propose no next step
    made = run_script("save_features.py", "--extractor", extractor, "--data", pictures, "--out", tmp_path / "features")
    assert made.returncode == 0, made.stderr
    command = ["episodes.py", "--tasks", pictures, "--features", tmp_path / "features/train.h5"]
    assert " ".join(map(str, command)) in made.stdout  # the next step
    done = run_script(*command, "--out", tmp_path / "results/tasks.json")
    assert done.returncode == 0 and "6 given tasks" in done.stdout, done.stderr
    report = run_script("parse_results.py", "--results", tmp_path / "results", "--out", tmp_path / "report")
    assert report.returncode == 0 and "Given tasks, one by one" in report.stdout, report.stderr
    assert "| Tasks in 2 clusters |" in report.stdout and "chance 25.00 %" in report.stdout


def by_hand(features, given):
    """Nearest mean, one task and one query at a time."""
    accuracies = []
    for task in given.tasks:
        means = [features[task.support[task.support_labels == c]].mean(0) for c in range(len(task.class_names))]
        hits = [
            np.argmin([((features[row] - mean) ** 2).sum() for mean in means]) == label
            for row, label in zip(task.queries, task.query_labels)
        ]
        accuracies.append(np.mean(hits))
    return accuracies


def test_results_by_hand(tmp_path, pictures, of_pictures):
    content = evaluate(tmp_path / "r.json", tasks=pictures, features=of_pictures)
    given = read_task_list(pictures)
    expected = by_hand(read_features(of_pictures).feats, given)
    assert [one["accuracy"] for one in content["episodes"]] == pytest.approx(expected)
    assert [one["name"] for one in content["episodes"]] == [f"t{i}" for i in range(6)]
    assert {(one["n_way"], one["n_shot"]) for one in content["episodes"]} == {(4, 1)}
    assert content["protocol"]["setting"] == "unknown" and content["dataset"] == "tasks"
    assert {one["group"] for one in content["classes"]} == {"novel"}
    stated = with_source(pictures, "own")
    for method, setting in ((NearestMeanOptions(), "inductive"), (PTMapOptions(), "transductive")):
        content = evaluate(tmp_path / f"{setting}.json", tasks=stated, features=of_pictures, method=method)
        assert content["protocol"]["setting"] == setting and len(content["protocol"]["outside"]) == 1


def with_source(tasks, *sources):
    """The same list with a column of sources, the first lines of the last source."""
    header, *lines = csv.reader(tasks.open())
    named = [[*line, sources[-1] if i < len(lines) // 2 else sources[0]] for i, line in enumerate(lines)]
    return write_list(tasks.parent / f"{'-'.join(sources)}.csv", named, [*header, "source"])


def test_a_class_by_a_name_that_the_extractor_knows(tmp_path, features, data):
    """Without a source, an equal name is refused; every class of the list is judged, not only the first of an image."""
    train, split = read_features(features / "train.h5"), read_split(data / "split.json")
    base, rows = split.class_names[split.base_classes[0]], np.flatnonzero(train.labels == split.novel_classes[0])
    lines = []
    for task, names in (("a", ("x", "y")), ("b", ("x", base))):
        parts = ("support", names[0]), ("support", names[1]), ("query", names[0])
        lines += [[task, part, name, row] for (part, name), row in zip(parts, rows)]
    with pytest.raises(InputError, match=f"has seen labelled images of class .*{base}"):
        evaluate(tmp_path / "r.json", tasks=write_list(tmp_path / "t.csv", lines), features=features / "train.h5")


@pytest.mark.parametrize(("one", "other"), [("7", "07"), ("x/7.png", "x//7.png"), ("8.png", "./8.png")])
def test_an_image_by_two_names_is_one_image(tmp_path, one, other):
    lines = [["t", "support", "a", one], ["t", "support", "b", one.replace("7", "5").replace("8", "5")]]
    with pytest.raises(InputError, match="is listed twice"):
        read_task_list(write_list(tmp_path / "t.csv", [*lines, ["t", "query", "a", other]]))


def test_an_extractor_that_has_seen_the_classes_is_refused(tmp_path, pictures, of_pictures, data):
    split, given = read_split(data / "split.json"), read_task_list(pictures)
    base, lines = split.class_names[split.base_classes[0]], list(csv.reader(pictures.open()))[1:]
    source = split.origins[0].partition("/")[0]
    renamed = [[*line, source] for line in lines]
    for line in renamed:
        line[2] = base if line[2] == f"class of {given.pictures[0].split('/')[0]}" else line[2]
    path = write_list(pictures.parent / "seen.csv", renamed, ("task", "part", "class", "image", "cluster", "source"))
    with pytest.raises(InputError, match="has seen labelled images of class"):
        evaluate(tmp_path / "r.json", tasks=path, features=of_pictures)


def test_rows_of_a_feature_file(tmp_path, features, data):
    """The same tasks with and without a split, and the classes of the split decide what may be judged."""
    train, split = read_features(features / "train.h5"), read_split(data / "split.json")
    novel, lines = split.novel_classes[:3], []
    for task in range(2):
        for c in novel:
            rows = np.flatnonzero(train.labels == c)[4 * task :][:4]
            lines += [[f"t{task}", "support" if i < 2 else "query", f"name {c}", row] for i, row in enumerate(rows)]
    path = write_list(tmp_path / "rows.csv", lines)
    content = evaluate(tmp_path / "r.json", tasks=path, features=features / "train.h5", split=data / "split.json")
    assert [one["accuracy"] for one in content["episodes"]] == pytest.approx(by_hand(train.feats, read_task_list(path)))
    assert content["dataset"] == split.dataset and {one["n_shot"] for one in content["episodes"]} == {2}
    assert [one["class"] for one in content["classes"]] == sorted(novel)
    without = evaluate(tmp_path / "w.json", tasks=path, features=features / "train.h5")
    assert [one["accuracy"] for one in without["episodes"]] == [one["accuracy"] for one in content["episodes"]]
    of_base = write_list(tmp_path / "base.csv", [[*line[:3], np.flatnonzero(train.labels == split.base_classes[0])[0]]
                                                if i == 0 else line for i, line in enumerate(lines)])  # fmt: skip
    with pytest.raises(InputError, match="has seen labelled images of class"):
        evaluate(tmp_path / "b.json", tasks=of_base, features=features / "train.h5", split=data / "split.json")
    far = write_list(tmp_path / "far.csv", [*lines, ["t1", "query", f"name {novel[0]}", 10**6]])
    with pytest.raises(InputError, match="row 1000000 is outside"):
        evaluate(tmp_path / "f.json", tasks=far, features=features / "train.h5")


def test_features_of_other_pictures_are_refused(tmp_path, pictures, of_pictures, features):
    with pytest.raises(InputError, match="not the features of the pictures"):
        evaluate(tmp_path / "r.json", tasks=pictures, features=features / "train.h5")
    lines = list(csv.reader(pictures.open()))
    fewer = write_list(pictures.parent / "fewer.csv", [line for line in lines[1:] if line[0] != "t5"], lines[0])
    with pytest.raises(InputError, match="not the features of the pictures"):
        evaluate(tmp_path / "r.json", tasks=fewer, features=of_pictures)


def test_another_grouping_of_the_same_pictures_needs_no_new_features(tmp_path, pictures, of_pictures):
    lines = list(csv.reader(pictures.open()))
    alone = write_list(pictures.parent / "alone.csv", [line[:4] for line in lines[1:]], lines[0][:4])
    content = evaluate(tmp_path / "r.json", tasks=alone, features=of_pictures)
    assert [one["cluster"] for one in content["episodes"]] == [f"t{i}" for i in range(6)]


def test_a_killed_run_continues(tmp_path, pictures, of_pictures, monkeypatch):
    from lowshot.evaluation import given

    real, calls = given._accuracy, []

    def failing(features, task, *rest):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(task.name)
        return real(features, task, *rest)

    monkeypatch.setattr(given, "_accuracy", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "r.json", tasks=pictures, features=of_pictures)
    monkeypatch.setattr(given, "_accuracy", lambda *inputs: calls.append(inputs[1].name) or real(*inputs))
    content = evaluate(tmp_path / "r.json", tasks=pictures, features=of_pictures)
    assert calls == [f"t{i}" for i in range(6)] and len(content["episodes"]) == 6


def test_pictures_become_what_a_grey_extractor_takes(tmp_path, pictures):
    folder = tmp_path / "grey"
    folder.mkdir()
    save_extractor(folder, Extractor(ModelConfig("Conv4", 3, 1, 28, width=0.25, crop_pct=1.0)).eval(), {})
    out = save_features.main(save_features.Config(extractor=folder, data=pictures, out=tmp_path / "features"))
    assert read_features(out / "train.h5").feats.shape[0] == len(read_task_list(pictures).pictures)


def test_settings_of_drawn_tasks_are_refused(tmp_path, pictures, of_pictures):
    for name, value in (("n_way", 7), ("n_episodes", 5), ("classes", "all"), ("dirichlet", 2.0)):
        with pytest.raises(InputError, match=f"--{name}: only for tasks that are drawn"):
            evaluate(tmp_path / "r.json", tasks=pictures, features=of_pictures, **{name: value})
    with pytest.raises(InputError, match="--split: needed to draw tasks"):
        evaluate(tmp_path / "r.json", features=of_pictures)
    with pytest.raises(InputError, match=r"--transform\.centre: needs --split"):
        centred = FeatureTransform(centre=True)
        evaluate(tmp_path / "r.json", tasks=pictures, features=of_pictures, transform=centred)


GOOD = [["t", "support", "a", "1"], ["t", "support", "b", "2"], ["t", "query", "a", "3"]]


@pytest.mark.parametrize(
    ("lines", "columns", "cause"),
    [
        (GOOD, ("task", "part", "class", "picture"), "has no column 'image'"),
        ([[*line, "x"] for line in GOOD], ("task", "part", "class", "image", "clusters"), "column 'clusters'"),
        ([], ("task", "part", "class", "image"), "lists no images"),
        ([["t", "support", "a", ""]], None, "line 2: 'image' is empty"),
        ([["t", "train", "a", "1"]], None, "part 'train': must be support or query"),
        ([["t", "support", "a"]], None, "another number of columns"),
        ([*GOOD, ["t", "query", "b", "1"]], None, "image 1 is listed twice"),
        (GOOD[1:], None, "support images of 1 classes"),
        (GOOD[:2], None, "has no query images"),
        ([*GOOD, ["t", "query", "c", "4"]], None, "class c has query images, but no support"),
        ([*GOOD, ["t", "query", "b", "x.png"]], None, "paths of pictures and rows"),
        ([[*line[:3], f"../{line[3]}.png"] for line in GOOD], None, "is outside the folder"),
        ([[*line[:3], f"/{line[3]}.png"] for line in GOOD], None, "is outside the folder"),
        ([[*line, line[3]] for line in GOOD], ("task", "part", "class", "image", "cluster"), "in several clusters"),
    ],
)
def test_a_list_that_is_none(tmp_path, lines, columns, cause):
    path = write_list(tmp_path / "tasks.csv", lines, columns or ("task", "part", "class", "image"))
    with pytest.raises(InputError, match=r"tasks\.csv") as error:
        read_task_list(path)
    assert cause in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_list(tmp_path, extractor):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a CSV file in UTF-8"):
        read_task_list(tmp_path / "a.csv")
    with pytest.raises(InputError, match="no such"):
        read_task_list(tmp_path / "b.csv")
    pictures = write_list(tmp_path / "c.csv", [[*line[:3], f"{line[3]}.png"] for line in GOOD])
    with pytest.raises(InputError, match=r"1\.png: no such picture \(listed in c\.csv\)"):
        save_features.main(save_features.Config(extractor=extractor, data=pictures, out=tmp_path / "out"))
    rows = write_list(tmp_path / "d.csv", GOOD)
    with pytest.raises(InputError, match="lists rows of a feature file, not pictures"):
        save_features.main(save_features.Config(extractor=extractor, data=rows, out=tmp_path / "out"))


def test_clustered_intervals_by_hand():
    values, clusters = np.array([0.1, 0.3, 0.5, 0.4, 0.9]), list("aabbc")
    frame = pd.DataFrame({"key": "k", "value": values, "cluster": clusters})
    row = results.summarise(frame, ["key"]).iloc[0]
    deviations = values - values.mean()
    sums = np.array([deviations[:2].sum(), deviations[2:4].sum(), deviations[4]])
    error = np.sqrt(3 / 2 * (sums**2).sum()) / 5
    assert row["mean"] == pytest.approx(0.44) and row["interval"] == pytest.approx(4.302653 * error, rel=1e-6)
    assert row["trials"] == 5
    alone = frame.assign(cluster=list("abcde"))
    pd.testing.assert_frame_equal(
        results.summarise(alone, ["key"]), results.summarise(frame[["key", "value"]], ["key"])
    )
    one = results.summarise(frame.assign(cluster="a"), ["key"]).iloc[0]
    assert np.isnan(one["interval"])


def test_unequal_tasks_and_drawn_ones_in_one_report(tmp_path, features, data):
    train, split = read_features(features / "train.h5"), read_split(data / "split.json")
    lines = []
    for c, n in zip(split.novel_classes[:3], (1, 2, 3)):
        rows = np.flatnonzero(train.labels == c)
        lines += [["t", "support" if i < n else "query", c, row] for i, row in enumerate(rows[: n + 2])]
    path = write_list(tmp_path / "rows.csv", lines)
    files = {"features": features / "train.h5", "split": data / "split.json"}
    given = evaluate(tmp_path / "results/given.json", tasks=path, **files)
    assert [one["n_shot"] for one in given["episodes"]] == [1]
    evaluate(tmp_path / "results/drawn.json", n_way=2, n_episodes=5, n_queries=2, method=NearestMeanOptions(), **files)
    page = parse_results.main(parse_results.Config(results=tmp_path / "results", out=tmp_path / "report"))
    tables = (page.parent / "tables/tables.md").read_text()
    assert "Episodes, given tasks" in tables and "Episodes, 2-way" in tables


def test_tasks_of_unequal_shots_have_one_mean(tmp_path):
    """Seven tasks with one to three shots in four clusters, as episodes.py stores them."""
    values, shots, clusters = [0.5, 0.6, 0.2, 0.9, 0.4, 0.8, 0.5], [1, 2, 3, 1, 2, 1, 2], list("AAABCCD")
    rows = [
        {"episode": e, "n_way": 4, "n_shot": n, "accuracy": value, "name": f"t{e}", "cluster": cluster}
        for e, (value, n, cluster) in enumerate(zip(values, shots, clusters))
    ]
    protocol = {"setup": "test", "setting": "inductive", "outside": [], "superclasses": False, "split_digest": "f" * 64}
    made = {"command": "", "commit": None, "versions": {}, "device": "cpu", "wall_time_s": 1, "peak_memory_bytes": 1}
    one = {
        "method": "nearest",
        "dataset": "t",
        "extractor": "e",
        "protocol": protocol,
        "config": {},
        "provenance": made,
    }
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps({**one, "provenance": made, "episodes": rows}))
    page = parse_results.main(parse_results.Config(results=folder, out=tmp_path / "report"))
    main = (page.parent / "tables/main.md").read_text()
    row = results.summarise(pd.DataFrame({"k": 1, "value": values, "cluster": clusters}), ["k"]).iloc[0]
    assert f"| 7 | {100 * row['mean']:.2f} ± {100 * row['interval']:.2f} |" in main
    assert "| Tasks in 4 clusters | all n |" in main


@pytest.mark.parametrize(
    "text", ["task; part ;class;image\r\n{}", "\ufefftask,part,class,image\n{}", "task\tpart\tclass\timage\n{}"]
)
def test_other_separators(tmp_path, text):
    separator = next(one for one in ";\t," if one in text)
    lines = "".join(separator.join(map(str, line)) + "\n" for line in GOOD)
    (tmp_path / "t.csv").write_bytes(text.format(lines).encode())
    assert read_task_list(tmp_path / "t.csv").tasks[0].class_names == ["a", "b"]


def test_a_row_that_is_too_large(tmp_path):
    lines = [*GOOD, ["t", "query", "b", "9" * 25]]
    with pytest.raises(InputError, match="is no row of a feature file"):
        read_task_list(write_list(tmp_path / "t.csv", lines))


def test_a_task_without_a_cluster_is_in_none_of_that_name(tmp_path):
    lines = [[*line, "b"] for line in GOOD] + [["b", *line[1:], ""] for line in GOOD]
    path = write_list(tmp_path / "t.csv", lines, ("task", "part", "class", "image", "cluster"))
    assert [task.cluster for task in read_task_list(path).tasks] == ["b", "task b"]
