"""Tables of a report as frames of formatted text, and their output as Markdown, LaTeX and CSV."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lowshot.core.files import plain_cell
from lowshot.report.judged import NOT_RECORDED, Judged
from lowshot.report.results import PROTOCOL, SPLITS, summarise

MISSING = "missing"
# Mark of an accuracy at or below chance.
_AT_CHANCE = "†"
_SCORES = {"nmi": "NMI", "homogeneity": "Homogeneity", "adjusted_rand": "Adjusted Rand"}
_LATEX = str.maketrans(
    {character: rf"\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "*": r"$^{*}$",
        "†": r"$^{\dagger}$",
        "×": r"$\times$",
    }
)


@dataclass(frozen=True)
class Table:
    """A table: a caption, a frame of text with one row per system or pair of systems, and notes to print below it."""

    caption: str
    frame: pd.DataFrame
    notes: Sequence[str] = ()

    @property
    def n_text(self) -> int:
        """Number of leading columns with names. The other columns hold numbers."""
        return sum(name in _TEXT_COLUMNS or name.startswith("Taken for") for name in self.frame)


_TEXT_COLUMNS = {"System", "Setting", "minus", "Features", "Class", "Group", "Groups", "Task", "Cluster", "Metric",
                 "Differs in", "Source"}  # fmt: skip
_OVER = {"novel": "novel classes", "base": "base classes", "all": "all classes",
         "novel_among_novel": "novel classes among novel classes", "base_among_base": "base classes among base classes",
         "harmonic_mean": "harmonic mean of base and novel", "all_with_prior": "all classes, with class prior",
         "novel_class_mean": "novel classes, mean over classes", "base_class_mean": "base classes, mean over classes",
         "all_class_mean": "all classes, mean over classes"}  # fmt: skip


def metric_name(metric: str) -> str:
    """``top1_novel`` -> ``Top-1, novel classes``."""
    rank, _, over = metric.partition("_")
    return "Area under the base-novel curve" if metric == "ausuc" else f"Top-{rank[3:]}, {_OVER[over]}"


def protocol_name(protocol: tuple[str, str, str]) -> str:
    """Describe a protocol: data set, setup, and the short split digest or the number of splits."""
    dataset, setup, split_digest = protocol
    split = split_digest if unit_of(protocol) == SPLITS else f"split {split_digest[:12]}"
    return f"{dataset}, {setup} setup, {split}"


def unit_of(protocol: tuple[str, str, str]) -> str:
    """Return the unit of the intervals: trials, or class splits."""
    return SPLITS if SPLITS in protocol[2] else "trials"


def n_label(n_shot: int) -> str:
    """Name a column: n, or 0 for all numbers of shots together."""
    return f"n = {n_shot}" if n_shot else "all n"


def _percent(mean: float, interval: float, sign: str = "") -> str:
    return f"{100 * mean:{sign}.2f} ± {'?' if np.isnan(interval) else f'{100 * interval:.2f}'}"


def _cells(
    rows: pd.DataFrame, columns: list[int], sign: str = "", unit: str = "trials", chance: float | None = None
) -> dict[str, str]:
    """Format one row: its number of trials, then a cell per n. A cell with fewer trials states their number, and a mean
    at or below `chance` is marked."""
    by_n, most = rows.set_index("n_shot"), rows["trials"].max()
    cells = {unit.capitalize(): str(most)}
    for n_shot in columns:
        cells[n_label(n_shot)] = MISSING
        if n_shot in by_n.index:
            cell = by_n.loc[n_shot]
            star = " *" if cell.get("differs", False) else ""
            few = (
                f" ({cell['trials']} {unit if cell['trials'] > 1 else unit.removesuffix('s')})"
                if cell["trials"] < most
                else ""
            )
            mark = f" {_AT_CHANCE}" if chance is not None and cell["mean"] <= chance else ""
            cells[n_label(n_shot)] = _percent(cell["mean"], cell["interval"], sign) + few + star + mark
    return cells


def _marked(frame: pd.DataFrame, chance: float | None) -> list[str]:
    """Explain the mark of accuracies at or below `chance` if there is one in the table."""
    any_marked = chance is not None and any(str(cell).endswith(_AT_CHANCE) for cell in frame.to_numpy().ravel())
    return [f"{_AT_CHANCE} at or below chance ({100 * chance:.2f} %)"] if any_marked else []


def _unknown(frame: pd.DataFrame) -> list[str]:
    """Explain the block of systems of unknown setting, if there are any."""
    if not frame["Setting"].str.startswith("unknown").any():
        return []
    return [
        "unknown, listed last: what features or method have seen is not recorded. Not to be ranked with the others."
    ]


def _described(protocol: tuple[str, str, str], judged: Judged, chance: float | None) -> str:
    """Name the protocol, the classes and test images, and the level of chance."""
    level = f"chance {100 * chance:.2f} %" if chance is not None else ""
    return "; ".join(part for part in (protocol_name(protocol), judged.text, level) if part)


def accuracy_table(
    summary: pd.DataFrame,
    metric: str,
    protocol: tuple[str, str, str],
    notes: Sequence[str] = (),
    judged: Judged = NOT_RECORDED,
) -> Table:
    """Table of one metric, mean ± 95 % interval in percent: rows are systems, columns are n. `summary` has one
    protocol."""
    chance = judged.chance(metric)
    columns = sorted(summary["n_shot"].unique())
    rows = summary[summary["metric"] == metric].groupby(["system", "setting"], sort=False)
    unit = unit_of(protocol)
    lines = [
        {"System": system, "Setting": setting, **_cells(part, columns, unit=unit, chance=chance)}
        for (system, setting), part in rows
    ]
    frame, number = pd.DataFrame(lines), "% of the unit square" if metric == "ausuc" else "% accuracy"
    what = f"{_described(protocol, judged, chance)}; {number}, mean ± 95 % interval over {unit}"
    return Table(f"{metric_name(metric)}: {what}", frame, [*_marked(frame, chance), *_unknown(frame), *notes])


def steps_table(
    summary: pd.DataFrame,
    plain: pd.DataFrame,
    metric: str,
    protocol: tuple[str, str, str],
    judged: Judged = NOT_RECORDED,
) -> Table:
    """Table of one metric after every number of steps, below the `plain` systems, which take no steps."""
    chance = judged.chance(metric)
    columns = sorted(summary["n_shot"].unique())
    lines = []
    for frame in (plain.assign(n_steps="none"), summary):
        rows = frame[(frame["metric"] == metric) & frame["n_shot"].isin(columns)]
        for (system, n_steps), part in rows.groupby(["system", "n_steps"], sort=False):
            lines.append({"System": system, "Steps": str(n_steps), **_cells(part, columns, chance=chance)})
    frame, what = (
        pd.DataFrame(lines),
        f"{_described(protocol, judged, chance)}; % accuracy, mean ± 95 % interval over trials",
    )
    return Table(f"{metric_name(metric)}, over diffusion steps: {what}", frame, _marked(frame, chance))


def paired_table(differences: pd.DataFrame, metric: str, protocol: tuple[str, str, str]) -> Table:
    """Table of differences in percentage points on the same trials. Each pair appears once, later minus earlier."""
    columns = sorted(differences["n_shot"].unique())
    order = {system: place for place, system in enumerate(differences["system"].unique())}
    rows = differences[differences["metric"] == metric]
    rows = rows[rows["system"].map(order) > rows["versus"].map(order)]
    pairs = sorted(rows.groupby(["system", "versus"]), key=lambda pair: (order[pair[0][1]], order[pair[0][0]]))
    unit = unit_of(protocol)
    lines = [{"System": one, "minus": other, **_cells(part, columns, "+", unit)} for (one, other), part in pairs]
    what = f"{protocol_name(protocol)}; percentage points on the same {unit}, mean ± 95 % interval, * excludes zero"
    return Table(f"{metric_name(metric)}, paired differences: {what}", pd.DataFrame(lines))


def episode_table(
    summary: pd.DataFrame,
    task: str,
    protocol: tuple[str, str, str],
    unit: str = "episodes",
    judged: Judged = NOT_RECORDED,
    chance: float | None = None,
) -> Table:
    """Table of the mean accuracy ± 95 % interval for one kind of `task`, over episodes or repeated trainings (`unit`):
    rows are systems, columns are n. `chance` is the mean accuracy of guesses, if it is known."""
    columns = sorted(summary["n_shot"].unique())
    rows = summary.groupby(["system", "setting"], sort=False)
    lines = [
        {"System": system, "Setting": setting, **_cells(part, columns, unit=unit, chance=chance)}
        for (system, setting), part in rows
    ]
    frame, described = pd.DataFrame(lines), _described(protocol, judged, chance)
    what = f"{described}; % accuracy, mean ± 95 % interval over {unit}"
    return Table(f"Episodes, {task}{_over(unit)}: {what}", frame, [*_marked(frame, chance), *_unknown(frame)])


def paired_episode_table(
    differences: pd.DataFrame, task: str, protocol: tuple[str, str, str], unit: str = "episodes"
) -> Table:
    """Table of differences in percentage points on the same episodes, for one kind of `task`."""
    columns = sorted(differences["n_shot"].unique())
    rows = differences.groupby(["system", "versus"], sort=False)
    lines = [{"System": one, "minus": other, **_cells(part, columns, "+", unit)} for (one, other), part in rows]
    same = "tasks" if unit.startswith("tasks") else "episodes"
    points = f"percentage points on the same {same}, mean ± 95 % interval over {unit}, * excludes zero"
    what = f"{protocol_name(protocol)}; {points}"
    return Table(f"Episodes, {task}{_over(unit)}, paired differences: {what}", pd.DataFrame(lines))


def _over(unit: str) -> str:
    return "" if unit.startswith(("episodes", "tasks")) else f", over {unit}"


def single_tasks_table(episodes: pd.DataFrame, protocol: tuple[str, str, str]) -> Table:
    """Table of the accuracy of every given task in percent: rows are tasks, columns are systems."""
    keys = ["episode", "name", "cluster", "n_way", "n_shot"]
    wide = episodes.pivot_table("value", keys, "system", sort=False).sort_index().reset_index()
    frame = pd.DataFrame({"Task": wide["name"], "Cluster": wide["cluster"]})
    frame["Ways"], frame["Shots"] = wide["n_way"].astype(str), wide["n_shot"].astype(str)
    for system in episodes["system"].unique():
        frame[system] = [MISSING if np.isnan(value) else f"{100 * value:.2f}" for value in wide[system]]
    return Table(f"Given tasks, one by one: {protocol_name(protocol)}; % accuracy", frame)


def clustering_table(summary: pd.DataFrame, classes: str, protocol: tuple[str, str, str]) -> Table:
    """Table of the scores of k-means against `classes` ("novel" or "all"), times 100, mean ± 95 % interval over seeds:
    rows are features and numbers of clusters."""
    lines = []
    for (features, n_clusters), part in summary.groupby(["features", "n_clusters"], sort=False):
        cells = {_SCORES[row.metric]: _percent(row.mean, row.interval) for row in part.itertuples()}
        lines.append(
            {"Features": features, "Clusters": str(n_clusters), "k-means seeds": str(part["trials"].max()), **cells}
        )
    what = (
        f"{protocol_name(protocol)}; k-means against {classes} classes, × 100, mean ± 95 % interval over k-means seeds"
    )
    return Table(f"Clustering: {what}", pd.DataFrame(lines))


_IMAGE_SCORES = {"fid": "FID", "kid": "KID", "precision": "Precision", "recall": "Recall", "density": "Density",
                 "coverage": "Coverage", "class_accuracy": "Of own class"}  # fmt: skip


def image_scores_table(scores: pd.DataFrame, dataset: str, reference: str) -> Table:
    """Table of the scores of all classes together against one `reference`, mean ± 95 % interval over class splits: rows
    are GANs."""
    rows = summarise(scores, ["system", "setting", "metric"])
    lines = [
        {"System": system, "Setting": setting, "Class splits": str(part["trials"].max()), **_score_cells(part)}
        for (system, setting), part in rows.groupby(["system", "setting"], sort=False)
    ]
    return Table(f"Generated images, {_against(dataset, reference)}, over class splits", pd.DataFrame(lines))


def paired_scores_table(differences: pd.DataFrame, dataset: str, reference: str) -> Table:
    """Table of differences of image scores on the same class splits. Each pair appears once, later minus earlier."""
    order = {system: place for place, system in enumerate(differences["system"].unique())}
    rows = differences[differences["system"].map(order) > differences["versus"].map(order)]
    lines = [
        {"System": one, "minus": other, "Class splits": str(part["trials"].max()), **_score_cells(part, "+")}
        for (one, other), part in rows.groupby(["system", "versus"], sort=False)
    ]
    what = f"{_against(dataset, reference)}, on the same class splits, * excludes zero"
    return Table(f"Generated images, paired differences, {what}", pd.DataFrame(lines))


def class_scores_table(scores: pd.DataFrame, class_names: dict[int, str], protocol: tuple[str, str, str]) -> Table:
    """Table of the FID of single classes in one class split, averaged over trials: rows are classes, columns GANs."""
    frame = scores[(scores["metric"] == "fid") & (scores["class"] >= 0)]
    wide = frame.pivot_table("value", "class", "system", "mean", sort=False).sort_index()
    text = wide.map("{:.2f}".format)
    text.insert(0, "Class", [class_names.get(c, str(c)) for c in wide.index])
    dataset, reference, split_digest = protocol
    return Table(f"FID of each class, {_against(dataset, reference)}, split {split_digest[:12]}", text)


def _against(dataset: str, reference: str) -> str:
    return f"{dataset}, against {reference} images; mean ± 95 % interval"


def _score_cells(rows: pd.DataFrame, sign: str = "") -> dict[str, str]:
    by_name, cells = rows.set_index("metric"), {}
    for name, title in _IMAGE_SCORES.items():
        row = by_name.loc[name]
        interval = "?" if np.isnan(row["interval"]) else f"{row['interval']:.3g}"
        star = " *" if row.get("differs", False) else ""
        cells[title] = f"{row['mean']:{sign}.3g} ± {interval}{star}"
    return cells


def to_markdown(table: Table) -> str:
    """Format a table for Markdown. Names stay on one line, and HTML in them is shown, not interpreted."""
    frame = table.frame.map(_markdown).rename(columns=_markdown)
    rule = ["---"] * table.n_text + ["---:"] * (len(frame.columns) - table.n_text)
    lines = markdown_lines([list(frame), rule, *frame.to_numpy().tolist()])
    notes = (f"\n{_markdown(note)}" for note in table.notes)
    return "\n".join([f"**{_markdown(table.caption)}**", "", lines, *notes]) + "\n"


def markdown_lines(lines: list[list[str]]) -> str:
    """Return the lines of a Markdown table, each a list of cells: head, rule, rows."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown(text: str) -> str:
    return _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a data frame for a CSV file: texts that a spreadsheet would compute begin with an apostrophe."""
    return frame.map(lambda cell: plain_cell(cell) if isinstance(cell, str) else cell)


def _latex(text: str) -> str:
    text = _one_line(text)
    return ("$-$" if text.startswith("-") else "") + text.removeprefix("-").translate(_LATEX)


def to_latex(table: Table) -> str:
    """Format a table for the LaTeX package booktabs. Special characters are escaped."""
    lines = [" & ".join(map(_latex, row)) + r" \\" for row in [list(table.frame), *table.frame.to_numpy().tolist()]]
    columns = "l" * table.n_text + "r" * (len(table.frame.columns) - table.n_text)
    head = [r"\begin{table}[htbp]", r"\centering", rf"\caption{{{_latex(table.caption)}}}"]
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    notes = [rf"\par\footnotesize {_latex(note)}" for note in table.notes]
    return "\n".join([*head, *body, r"\end{tabular}", *notes, r"\end{table}"]) + "\n"


def wide(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the values of all tables in wide form: one row per system, metric and (if in `summary`) number of steps,
    with mean, interval and trials (0 if missing) for each n."""
    index = [*PROTOCOL, "setting", "system", "metric", *({"n_steps"} & set(summary))]
    numbers = ["mean", "interval", "trials"]
    frame = summary.pivot(index=index, columns="n_shot", values=numbers).swaplevel(axis=1)
    shots = sorted(summary["n_shot"].unique())
    frame = frame[[(n, what) for n in shots for what in numbers]]
    frame.columns = [f"{what}_n{n}" for n, what in frame.columns]
    counts = [f"trials_n{n}" for n in shots]
    frame[counts] = frame[counts].fillna(0).astype(int)
    order = pd.MultiIndex.from_frame(summary[index].drop_duplicates())
    return frame.reindex(order).reset_index()
