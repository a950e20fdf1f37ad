"""Published figures: the file, which of them are beside ours, and in what the others differ."""

from typing import get_args

import pandas as pd
import pytest
from test_report import INDUCTIVE, config, content, write

import parse_results
from lowshot.data.lineage import Setting
from lowshot.evaluation.settings import SixAccuracies
from lowshot.report.published import _ours, read_published


def test_the_file_is_whole():
    frame = read_published()
    assert len(frame) == 390 and not frame.duplicated(list(frame.columns.drop("percent"))).any()
    assert set(frame["setting"]) <= set(get_args(Setting))
    assert set(frame["metric"]) <= {*get_args(SixAccuracies), "accuracy"}
    assert frame["percent"].between(0, 100).all() and (frame["source"] != "").all() and (frame["n_shot"] >= 1).all()
    sgm = frame.query("extractor == 'resnet10_sgm' and method == 'linear_sgd' and metric == 'top5_novel'")
    assert sgm.set_index("n_shot")["percent"][20] == 73.76


def report(folder, **changes):
    path = parse_results.main(config(folder, published=True, **changes))
    tables = path.parent / "tables"
    figures = tables / "published.csv"
    frame = pd.read_csv(figures, keep_default_na=False) if figures.exists() else None
    return path.read_text(), (tables / "main.md").read_text(), frame


def of_imagenet(method="linear_sgd", values=None, **changes):
    return content(method, values or {(1, 1): 0.028, (2, 1): 0.028}, **({"dataset": "imagenet"} | changes))


def test_a_figure_is_beside_the_same_network_method_and_metric(tmp_path):
    folder = write(tmp_path / "results", a=of_imagenet(extractor="resnet10_plain"))
    page, main, frame = report(folder)
    assert "| conv4" not in main and "top1_novel | 1 | 2.80 ± 0.00 | 2.77 | +0.03 | yes |" in main
    assert "1 of 6 figures agree" in main  # the other five are 50 % in these results
    beside = frame[frame["agrees"] != ""]
    assert len(beside) == 6 and set(beside["n_shot"]) == {1}
    assert "Published figures that are not comparable" in page


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"extractor": "other"}, "network"),
        ({"extractor": "resnet10_plain", "method": "cosine"}, "method"),
        ({"extractor": "resnet10_plain", "method": "linear_sgd (CL2N)"}, "method"),
        ({"extractor": "resnet10_plain", "setting": "transductive"}, "setting"),
        ({"extractor": "resnet10_plain", "values": {(1, 3): 0.5}}, "n"),
        ({"extractor": "resnet10_plain", "setup": "validation"}, "setup: ours is validation"),
    ],
)
def test_figures_that_are_not_comparable_say_why(tmp_path, changes, reason):
    changes = dict(changes)
    protocol = {name: changes.pop(name) for name in ("setup", "setting") if name in changes}
    one = of_imagenet(**changes, protocol=INDUCTIVE | protocol | {"split_digest": "f" * 64})
    _, _, frame = report(write(tmp_path / "results", a=one))
    plain = frame.query("extractor == 'resnet10_plain' and method == 'linear_sgd' and metric == 'top1_novel'")
    assert set(plain["reason"]) == {reason} and "agrees" not in {*frame.columns} - {"agrees"}


def test_names_with_settings_and_seeds_are_the_same_method_and_network(tmp_path):
    one = of_imagenet("linear_sgd + generator (centroids, all)", extractor="resnet10_sgm_seed1")
    _, main, _ = report(write(tmp_path / "results", a=one))
    assert "| resnet10_sgm_seed1: linear_sgd + generator (centroids, all) | inductive | top1_novel | 1 |" in main


def test_other_data_sets_have_no_published_figures(tmp_path):
    page, main, frame = report(write(tmp_path / "results", a=content()))
    assert frame is None and "Published figures" not in page + main


def test_tasks_of_the_superclasses_of_cifar100(tmp_path):
    rows = [{"episode": e, "n_way": 5, "n_shot": 1, "accuracy": 0.7} for e in range(3)]
    without = {key: value for key, value in content("nearest_mean").items() if key != "trials"}
    protocol = {"setup": "test", "setting": "inductive", "split_digest": "f" * 64, "superclasses": True, "outside": []}
    one = {**without, "dataset": "cifar100", "protocol": protocol, "episodes": rows}
    _, _, frame = report(write(tmp_path / "results", a=one))
    assert set(frame["dataset"]) == {"cifar100_coarse"} and set(frame["reason"]) == {"method"}


def test_tasks_of_all_classes_are_no_tasks_of_novel_classes():
    rows = {"dataset": "d", "setup": "test", "split_digest": "s", "setting": "inductive", "extractor": "e"}
    rows |= {"method": "m", "system": "e: m", "metric": "accuracy", "n_shot": 1, "value": 0.5}
    kinds = ["5-way", "5-way of all classes", "all-way of all classes, 15 queries a class", "5-way within a superclass",
             "5-way, 3 queries a class on average, shares from Dirichlet(2)", "given tasks"]  # fmt: skip
    episodes = pd.DataFrame([{**rows, "task": task} for task in kinds])
    found = _ours(pd.DataFrame(columns=list(rows)), episodes)
    assert found["n_way"].tolist() == ["5", "5 of all", "all of all"]


def test_the_tolerance_decides_what_agrees(tmp_path):
    values = {(1, 1): 0.05, (2, 1): 0.05}
    folder = write(tmp_path / "results", a=of_imagenet(extractor="resnet10_plain", values=values))
    assert "| +2.23 | no |" in report(folder)[1]
    assert "| +2.23 | yes |" in report(folder, tolerance=2.5, overwrite=True)[1]
