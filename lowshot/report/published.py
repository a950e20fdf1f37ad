"""Published figures beside our results.

`published.csv` has a line for each figure: dataset, extractor (network and how it was trained), method, setting,
metric, n_shot, n_way (of tasks), percent and source. Its data sets are those of the published splits.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lowshot.report import results
from lowshot.report.tables import Table, n_label, protocol_name

FIGURES = Path(__file__).with_name("published.csv")
# Published method and network -> our names, where they differ.
_METHODS = {
    "diffusion, 1M background, k = 30, 3 steps": "diffusion (1000000 background images)",
    "linear_sgd + generator": "linear_sgd + generator (centroids, all)",
    "logistic regression": "balanced_sgd",
}
_NETWORKS = {"resnet50": "resnet50_plain"}
# Kinds of tasks that papers report: of novel or of all classes, with the same number of queries for every class.
_TASK = r"^(\w+)-way( of all classes)?(?:, \d+ queries a class)?$"
# What must be equal, in words.
_NEEDED = {"extractor": "network", "method": "method", "setting": "setting", "n_way": "kind of task",
           "metric": "metric", "n_shot": "n"}  # fmt: skip
# Trained on the superclasses of CIFAR-100 and evaluated on tasks of all its classes.
_COARSE = "cifar100_coarse"


def read_published() -> pd.DataFrame:
    """Return the published figures. n_way is an empty text for figures that are not of tasks."""
    texts = ["dataset", "extractor", "method", "setting", "metric", "n_way", "source"]
    frame = pd.read_csv(FIGURES, dtype=dict.fromkeys(texts, str), keep_default_na=False)
    return frame.assign(method=frame["method"].replace(_METHODS), extractor=frame["extractor"].replace(_NETWORKS))


@dataclass(frozen=True)
class Comparison:
    """The published figures of the data set of one protocol.

    `beside` has a row for each of our values that has a published counterpart: system, metric, n_shot, task, mean,
    interval, percent, source and agrees. `others` are the published figures without one, with the `reason`.
    """

    protocol: tuple[str, str, str]
    beside: pd.DataFrame
    others: pd.DataFrame

    def tables(self, tolerance: float) -> list[Table]:
        """Return a table of the figures beside ours, and one of the others. Empty tables are left out."""
        made = [_beside_table(self.beside, self.protocol, tolerance)] if len(self.beside) else []
        return made + ([_others_table(self.others, self.protocol)] if len(self.others) else [])


def compared(
    protocol: tuple[str, str, str], trials: pd.DataFrame, episodes: pd.DataFrame, tolerance: float
) -> Comparison | None:
    """Compare the results of one protocol with the published figures of its data set, or return None if there are none.

    A figure is beside ours if data set, network, method, setting, metric, n and kind of task are equal, and the results
    are of the test setup. It agrees if it differs by at most `tolerance` percentage points and our interval.
    """
    ours = _ours(trials, episodes)
    figures = read_published()
    figures = figures[[_is_of_dataset(one, protocol[0], ours) for one in figures["dataset"]]]
    if figures.empty or ours.empty:
        return None
    keys = ["extractor", "method", "setting", "metric", "n_shot", "n_way"]
    is_coarse = figures["dataset"] == _COARSE
    figures["setting"] += is_coarse.map({True: ", superclasses", False: ""})
    figures["n_way"] += is_coarse.map({True: " of all", False: ""})
    reasons = pd.Series([_reason(one, protocol[1], ours) for one in figures.itertuples()], figures.index, dtype=str)
    order = {metric: place for place, metric in enumerate(results.METRICS)}
    both = ours.merge(figures[reasons == ""], on=keys, how="inner")
    both = both.assign(place=both["metric"].map(order)).sort_values(
        ["system", "n_way", "place", "n_shot"], kind="stable"
    )
    off = (100 * both["mean"] - both["percent"]).abs() - 100 * both["interval"].fillna(0)
    return Comparison(
        protocol,
        both.drop(columns="place").assign(agrees=off <= tolerance),
        figures.assign(reason=reasons)[reasons != ""],
    )


def _ours(trials: pd.DataFrame, episodes: pd.DataFrame) -> pd.DataFrame:
    """Return our means under the names of the published figures. n_way of tasks of all classes ends with "of all"."""
    by = ["system", "extractor", "method", "setting", "metric", "n_shot", "n_way"]
    kinds = episodes["task"].str.extract(_TASK) if len(episodes) else pd.DataFrame(columns=[0, 1])
    tasks = episodes.assign(n_way=kinds[0] + kinds[1].map({" of all classes": " of all"}).fillna(""))
    frames = trials.assign(n_way=""), tasks.dropna(subset="n_way")
    parts = [results.summarise(frame, by) for frame in frames if len(frame)]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*by, "mean", "interval"])
    return frame.assign(extractor=frame["extractor"].str.replace(r"_seed\d+$", "", regex=True))


def _is_of_dataset(dataset: str, ours: str, values: pd.DataFrame) -> bool:
    if ours == "label_idx":  # the published file as --split
        ours = "imagenet"
    if dataset == _COARSE:
        return ours == "cifar100" and values["setting"].str.contains("superclasses").any()
    return dataset == ours


def _reason(figure: tuple, setup: str, ours: pd.DataFrame) -> str:
    """Return in what a published figure differs from all our results, or an empty text."""
    if setup != "test":
        return "setup: ours is validation"
    left = ours
    for name, words in _NEEDED.items():
        if name == "extractor" and not getattr(figure, name):
            continue  # the network is part of the method's name
        left = left[left[name] == getattr(figure, name)]
        if left.empty:
            return words
    return "" if figure.extractor else "network"


def _beside_table(beside: pd.DataFrame, protocol: tuple[str, str, str], tolerance: float) -> Table:
    lines = [
        {
            "System": one.system,
            "Setting": one.setting,
            "Metric": one.metric + (f", {one.n_way}-way" if one.n_way else ""),
            "n": str(one.n_shot),
            "Ours": f"{100 * one.mean:.2f}" + ("" if pd.isna(one.interval) else f" ± {100 * one.interval:.2f}"),
            "Published": f"{one.percent:.2f}",
            "Difference": f"{100 * one.mean - one.percent:+.2f}",
            "Agrees": "yes" if one.agrees else "no",
        }
        for one in beside.itertuples()
    ]
    counted = f"{int(beside['agrees'].sum())} of {len(beside)} figures agree"
    notes = [
        f"{counted}: the difference is at most {tolerance:g} (percentage points) and our interval.",
        "Sources: " + "; ".join(beside["source"].unique()) + ".",
    ]
    return Table(f"Published figures beside ours: {protocol_name(protocol)}; %", pd.DataFrame(lines), notes)


def _others_table(others: pd.DataFrame, protocol: tuple[str, str, str]) -> Table:
    """Table of the published figures that are not comparable: a row for each system and metric, columns are n."""
    keys = ["extractor", "method", "setting", "metric", "n_way", "reason", "source"]
    lines = []
    for (extractor, method, setting, metric, n_way, reason, source), part in others.groupby(keys, sort=False):
        by_n = {n_label(one.n_shot): f"{one.percent:.2f}" for one in part.itertuples()}
        lines.append({"System": f"{extractor}: {method}" if extractor else method, "Setting": setting,
                      "Metric": metric + (f", {n_way}-way" if n_way else ""), "Differs in": reason, "Source": source,
                      **by_n})  # fmt: skip
    shots = [n_label(n) for n in sorted(others["n_shot"].unique())]
    frame = pd.DataFrame(lines)[["System", "Setting", "Metric", "Differs in", "Source", *shots]].fillna("")
    return Table(f"Published figures that are not comparable with ours: {protocol_name(protocol)}; %", frame)
