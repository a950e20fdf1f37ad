"""The results book: CSV files of measured numbers, and pages that quote them.

Three kinds of files hold all numbers. All are small, and are read by name, such as `cifar100`:

- `NAME.csv` with `NAME-runs.csv`: results of the low-shot benchmark. The first has a row for each run, class split, n
  and metric, with the values of the trials in columns. The second has what was run: system, setting, commit, machine,
  minutes, command, and numbers of classes and test images. Means, intervals and paired differences are computed from
  these when a page is made.
- `NAME.csv` with the columns mean and interval: a row for each measured number, such as the accuracy of a system in one
  kind of tasks. If it has a system in the column `minus`, it is the difference to that system on the same tasks.
- Any other `NAME.csv`: a table as it is shown.

Pages are Jinja templates (`docs/templates/`, where a file has the path of its page and the ending .j2) in which every
measured number is an expression.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lowshot.core.errors import InputError
from lowshot.report import results
from lowshot.report.judged import Judged, judged_files
from lowshot.report.published import read_published
from lowshot.report.results import COLUMNS, PROTOCOL
from lowshot.report.tables import MISSING, markdown_lines, n_label

METRICS = ["top1_novel", "top5_novel", "top1_base", "top1_all", "top5_all", "top1_harmonic_mean", "ausuc"]
_RUN = ["run", "split_digest"]
_CELL = [*_RUN, "n_shot", "metric"]
_DIGITS = 12  # of a digest
_COUNTS = ["novel_classes", "base_classes", "novel_images", "base_images"]


def collect(files: dict[str, dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the values and the runs of results files (see `read_files`), as they are written to NAME.csv and
    NAME-runs.csv.

    A run is named after its file, without the number of shots (`-k5`) of a file for each. Files of one name in several
    folders are its class splits. Minutes are those of all its files, the command is that of the first.
    """
    frame = results.trials(files)
    frame = frame[frame["metric"].isin(METRICS)].assign(run=frame["file"].map(_run_name))
    frame[["split_digest", "draws"]] = frame[["split_digest", "draws"]].map(lambda digest: digest[:_DIGITS])
    values = frame.pivot(index=_CELL, columns="trial", values="value").rename(columns="trial_{}".format).reset_index()
    about = pd.DataFrame([{"file": file, **_about_run(content)} for file, content in files.items()])
    each = frame.drop_duplicates("file")[["run", *COLUMNS, "draws", "file"]].merge(about, on="file")
    runs = each.drop_duplicates(_RUN).drop(columns="minutes")
    runs = runs.merge(each.groupby(_RUN, sort=False)["minutes"].sum().reset_index(), on=_RUN)
    return values, runs.merge(judged_files(files)[["file", *_COUNTS]], on="file", how="left").drop(columns="file")


def _run_name(file: str) -> str:
    return re.sub(r"-k\d+$", "", Path(file).stem)


def _about_run(content: dict) -> dict[str, object]:
    made = content["provenance"]
    minutes = (made["wall_time_s"] or 0) / 60
    return {"commit": str(made["commit"])[:7], "machine": made.get("machine", made["device"]),
            "minutes": round(minutes, 2), "command": f"python {made['command']}"}  # fmt: skip


def collect_episodes(files: dict[str, dict], reference: str | None = None) -> pd.DataFrame:
    """Return means over episodes, and differences to `reference` (see `results.differences_to`), in the second form.
    Systems are named after their methods if they have one extractor."""
    frame = results.episodes(files)
    if frame["extractor"].nunique() == 1:
        frame["system"] = frame["system"].str.removeprefix(f"{frame['extractor'].iloc[0]}: ")
    by = [*PROTOCOL, "task", "system", "setting", "n_shot"]
    means = results.summarise(frame, by).assign(minus="")
    gaps = results.differences_to(frame, reference).rename(columns={"versus": "minus"})
    runs = pd.DataFrame([{"file": file, **_about_run(content)} for file, content in files.items()])
    of_system = frame.drop_duplicates(["system", "task"])[["system", "task", "file"]].merge(runs).drop(columns="file")
    table = pd.concat([means, gaps.drop(columns=["metric", "differs"])])
    return table.merge(of_system, on=["system", "task"], how="left")


@dataclass(frozen=True)
class Numbers:
    """The numbers of one data set: `trials` in the long form of `results.trials`, with the column run, and `runs`."""

    name: str
    trials: pd.DataFrame
    runs: pd.DataFrame

    @classmethod
    def read(cls, path: Path) -> "Numbers":
        values, runs = pd.read_csv(path), pd.read_csv(runs_path(path), keep_default_na=False)
        trials = [name for name in values if name.startswith("trial_")]
        frame = values.melt(_CELL, trials, var_name="trial").dropna(subset="value")
        frame["trial"] = frame["trial"].str.removeprefix("trial_").astype(int)
        about = runs[["run", *COLUMNS, "draws"]].assign(place=range(len(runs)))
        frame = frame.merge(about, on=_RUN)
        frame = frame.sort_values(["place", "n_shot", "metric", "trial"], kind="stable", ignore_index=True)
        frame["system"] = frame["run"]  # pages name runs; results.paired_differences pairs systems
        if frame["split_digest"].nunique() > 1:
            frame = results.over_splits(frame.drop(columns="place")).assign(run=lambda table: table["system"])
        return cls(path.stem, frame, runs)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Mean, interval and number of trials of every run, metric and n."""
        return results.summarise(self.trials, ["run", "metric", "n_shot"]).set_index(["run", "metric", "n_shot"])

    @cached_property
    def differences(self) -> pd.DataFrame:
        """Mean, interval and number of trials of every run minus every other."""
        pairs = results.paired_differences(self.trials)
        return pairs.rename(columns={"system": "run"}).set_index(["run", "versus", "metric", "n_shot"])

    def _cell(self, run: str, metric: str, n_shot: int) -> pd.Series:
        return _row(self.summary, (run, metric, n_shot), self.name)

    def value(self, run: str, metric: str, n_shot: int) -> str:
        """Return "81.9 ± 6.2", in percent."""
        cell = self._cell(run, metric, n_shot)
        return percent(cell["mean"], cell["interval"])

    def mean(self, run: str, metric: str, n_shot: int) -> str:
        """Return "81.9", in percent."""
        return f"{100 * self._cell(run, metric, n_shot)['mean']:.1f}"

    def gap(self, run: str, versus: str, metric: str, n_shot: int) -> str:
        """Return "+12.5 ± 5.9", the paired difference in points."""
        cell = _row(self.differences, (run, versus, metric, n_shot), self.name)
        return percent(cell["mean"], cell["interval"], sign="+")

    def gap_between(self, run: str, n_shot: int, versus: str, n_versus: int, metric: str) -> str:
        """Return the paired difference of two runs with different numbers of shots, trial by trial."""
        frame = self.trials[self.trials["metric"] == metric].set_index(["run", "n_shot", "trial"])["value"].sort_index()
        values = (frame.loc[run, n_shot] - frame.loc[versus, n_versus]).dropna().rename("value").reset_index()
        row = results.summarise(values.assign(all=""), ["all"]).iloc[0]
        return percent(row["mean"], row["interval"], sign="+")

    def minutes(self, run: str) -> float:
        """Return the minutes of a run, all its class splits together."""
        return self.runs.loc[self.runs["run"] == run, "minutes"].sum()

    def chance(self, metric: str) -> str:
        """Return the level of chance in percent."""
        return f"{100 * self._judged.chance(metric):.2f}"

    @property
    def judged(self) -> str:
        """Classes and test images in words."""
        return self._judged.text

    @property
    def _judged(self) -> Judged:
        return Judged(*(tuple(sorted(self.runs[name].astype(int).unique().tolist())) for name in _COUNTS))

    @property
    def split(self) -> str:
        """The short digests of the class splits."""
        return ", ".join(self.runs["split_digest"].unique())

    def methods(self) -> dict[str, str]:
        """Return the method of each run, with the extractor in front unless it is the most common one."""
        common = self.runs["extractor"].mode()[0]
        named = {one.run: (one.extractor, one.method) for one in self.runs.itertuples()}
        return {run: method if extractor == common else f"{extractor}: {method}"
                for run, (extractor, method) in named.items()}  # fmt: skip

    def table(self, metric: str, shots: Sequence[int], runs: Sequence[str]) -> str:
        """Return a Markdown table: rows are runs, columns are n. The best of a column is bold if its paired interval
        excludes zero against every other row."""
        methods, settings = self.methods(), dict(zip(self.runs["run"], self.runs["setting"]))
        lines = [["System", "Setting", *map(n_label, shots)], ["---", "---", *["---:"] * len(shots)]]
        for run in runs:
            lines.append([methods[run], settings[run], *(self._shown(run, metric, n_shot, runs) for n_shot in shots)])
        return markdown_lines(lines)

    def _shown(self, run: str, metric: str, n_shot: int, rivals: Sequence[str]) -> str:
        if (run, metric, n_shot) not in self.summary.index:
            return MISSING
        value = self.value(run, metric, n_shot)
        return f"**{value}**" if self.is_best(run, metric, n_shot, rivals) else value

    def is_best(self, run: str, metric: str, n_shot: int, rivals: Sequence[str]) -> bool:
        """Whether the paired interval of a run excludes zero against every rival that has the number."""
        there = [one for one in rivals if one != run and (one, metric, n_shot) in self.summary.index]
        keys = [(run, one, metric, n_shot) for one in there]
        if not there or not all(key in self.differences.index for key in keys):
            return False
        gaps = self.differences.loc[keys]
        return bool((gaps["mean"] > gaps["interval"]).all())

    def row(self, run: str, metrics: Sequence[str], shots: Sequence[int], rivals: Sequence[str]) -> list[str]:
        """Return a cell for each n, with the means of several metrics, such as "46.5 / 49.8 / 34.9"; empty if there are
        none."""
        return [
            " / ".join(
                self._brief(run, metric, n_shot, rivals)
                for metric in metrics
                if (run, metric, n_shot) in self.summary.index
            )
            for n_shot in shots
        ]

    def _brief(self, run: str, metric: str, n_shot: int, rivals: Sequence[str]) -> str:
        mean = self.mean(run, metric, n_shot)
        return f"**{mean}**" if self.is_best(run, metric, n_shot, rivals) else mean

    def widest(self, metrics: Sequence[str], runs: Sequence[str]) -> str:
        """Return the largest half width of the intervals of these numbers, in points."""
        rows = self.summary.reset_index()
        return f"{100 * rows[rows['metric'].isin(metrics) & rows['run'].isin(runs)]['interval'].max():.1f}"


def runs_path(path: Path) -> Path:
    """Return NAME-runs.csv, which lies beside NAME.csv."""
    return path.with_name(f"{path.stem}-runs.csv")


def percent(mean: float, interval: float, sign: str = "") -> str:
    """Return "81.9 ± 6.2", with two decimals if the interval is below a tenth of a point."""
    digits = 2 if interval < 0.00095 else 1
    half = "?" if np.isnan(interval) else f"{100 * interval:.{digits}f}"
    return f"{100 * mean:{sign}.{digits}f} ± {half}"


def _row(frame: pd.DataFrame, key: tuple, name: str) -> pd.Series:
    if key not in frame.index:
        raise InputError(f"{name}.csv: has no {', '.join(map(str, key))}")
    return frame.loc[key]


@dataclass(frozen=True)
class Measured:
    """Means with intervals, in the order of their file."""

    name: str
    frame: pd.DataFrame

    @classmethod
    def read(cls, path: Path) -> "Measured":
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        return cls(path.stem, frame.assign(**{what: pd.to_numeric(frame[what]) for what in ("mean", "interval")}))

    def where(self, **values: object) -> "Measured":
        """Keep the rows with these values. A number equals its text."""
        for column, value in values.items():
            kept = self.frame[self.frame[column] == str(value)]
            if kept.empty:
                raise InputError(f"{self.name}.csv: has no row of {column} {value}, of those asked for")
            self = Measured(self.name, kept)
        return self

    def among(self, **values: Sequence[str]) -> "Measured":
        """Keep the rows whose value is one of several."""
        kept = self.frame[list(values)].isin({column: list(several) for column, several in values.items()}).all(axis=1)
        return Measured(self.name, self.frame[kept])

    def without(self, **values: object) -> "Measured":
        """Leave out the rows with these values."""
        same = (self.frame[list(values)] == [str(value) for value in values.values()]).all(axis=1)
        return Measured(self.name, self.frame[~same])

    def value(self, **values: object) -> str:
        """Return the only row with these values, such as "69.8 ± 0.7" or, of a difference, "+2.1 ± 0.4"."""
        frame = self.where(**values).frame
        if len(frame) > 1:
            raise InputError(f"{self.name}.csv: {len(frame)} rows of {values}, one is expected")
        return _shown(frame.iloc[0])

    def least(self) -> str:
        """Return the smallest number."""
        return _shown(self.frame.loc[self.frame["mean"].idxmin()])

    def most(self) -> str:
        """Return the largest number."""
        return _shown(self.frame.loc[self.frame["mean"].idxmax()])

    def table(self, rows: Sequence[str], columns: Sequence[str]) -> str:
        """Return a Markdown table with a line for each combination of the columns `rows`."""
        named = self.frame.assign(n_shot="n = " + self.frame["n_shot"]) if "n_shot" in columns else self.frame
        frame = self.frame.assign(
            cell=[_shown(row) for _, row in self.frame.iterrows()], title=named[list(columns)].agg(", ".join, axis=1)
        )
        cells = frame.set_index([*rows, "title"])["cell"]
        titles, heads = list(dict.fromkeys(frame["title"])), frame[list(rows)].drop_duplicates()
        lines = [[*rows, *titles], [*["---"] * len(rows), *["---:"] * len(titles)]]
        for head in heads.itertuples(index=False, name=None):
            lines.append([*head, *(cells.get((*head, title), "") for title in titles)])
        return markdown_lines(lines)


def _shown(row: pd.Series) -> str:
    """Format a mean with its interval. Those without the unit % have three digits."""
    sign = "+" if row.get("minus") else ""
    if row.get("unit", "%") == "%":
        return percent(row["mean"], row["interval"], sign)
    return f"{row['mean']:{sign}.3g}" + ("" if np.isnan(row["interval"]) else f" ± {row['interval']:.2g}")


def pages(templates: Path, numbers: Path) -> dict[Path, str]:
    """Return the text of every page by its path relative to `templates`, without `.j2`.

    A template calls `numbers(NAME)`, `measured(NAME)` or `as_shown(NAME)` for the three kinds of files in the folder
    `numbers`, and `cell` for one cell of the third kind. Raises InputError for a number that no file has.
    """
    environment = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {
        "numbers": cache(lambda name: Numbers.read(numbers / f"{name}.csv")),
        "measured": cache(lambda name: Measured.read(numbers / f"{name}.csv")),
        "published": published_table,
        "as_shown": lambda name: as_shown(read_rows(numbers / f"{name}.csv")),
        "cell": lambda name, row, column: cell(numbers / f"{name}.csv", row, column),
    }
    made = {}
    for path in sorted(templates.rglob("*.md.j2")):
        name = path.relative_to(templates).as_posix()
        made[Path(name.removesuffix(".j2"))] = environment.get_template(name).render()
    return made


def published_table(dataset: str) -> str:
    """Return a Markdown table of the published figures of a data set, in percent, as the report puts beside ours."""
    figures = read_published().query("dataset == @dataset")
    figures = figures.assign(task=figures["n_way"].map(lambda n_way: f"{n_way}-way" if n_way else ""))
    names = figures[["extractor", "method"]].agg(lambda both: ": ".join(filter(None, both)), axis=1)
    cells = figures.assign(system=names, title=figures["task"] + ", " + figures["n_shot"].astype(str) + "-shot")
    wide = cells.pivot_table("percent", ["system", "setting", "source"], "title", sort=False)
    lines = [["system", "setting", "source", *wide], ["---"] * 3 + ["---:"] * len(wide.columns)]
    for names, values in zip(wide.index, wide.to_numpy()):
        lines.append([*names, *("" if np.isnan(value) else f"{value:.1f}" for value in values)])
    return markdown_lines(lines)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table as they are shown."""
    return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")


def as_shown(rows: list[dict[str, str]]) -> str:
    """Return a Markdown table of these rows."""
    return markdown_lines([list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)])


def cell(path: Path, row: str, column: str) -> str:
    """Return a cell of a table that is shown as it is. Its first column names the rows."""
    for one in read_rows(path):
        if next(iter(one.values())) == row and column in one:
            return one[column]
    raise InputError(f"{path.name}: has no {column} of {row}")


# What a template leaves to expressions: numbers with a decimal point, or with a unit of what was measured.
_UNITS = "x|points?|times|hours?|minutes?|seconds?|s|ms|[GM]i?B"
_MEASURED = re.compile(rf"\d+\.\d+|\d+ ?(?:%|(?:{_UNITS})\b)")
# Expressions and statements of a template, code, targets of links, and the level of all intervals.
_NOT_PROSE = re.compile(r"{{.*?}}|{%.*?%}|{#.*?#}|```.*?```|`[^`]*`|\]\([^)]*\)|95 % (?:t-)?intervals?", re.S)


def typed_numbers(text: str) -> list[str]:
    """Return the measured numbers that a template has in its own text, where only expressions should give them."""
    return _MEASURED.findall(_NOT_PROSE.sub(" ", text))
