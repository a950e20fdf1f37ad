"""report.html: a single page without external resources."""

import base64
import json
import re
from dataclasses import dataclass, field
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader

from lowshot.report.judged import Judged
from lowshot.report.results import PROTOCOL
from lowshot.report.tables import Table, unit_of

_MEDIA = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class Figure:
    """A chart: static views of it (SVG files), and its definition (Vega-Lite, plain values) for pages with scripts."""

    caption: str
    static: list[Path]
    chart: dict[str, Any]


@dataclass
class Section:
    """The part of the page for one protocol (dataset, setup, split digest).

    `main` and `main_paired` are the tables of the metric that is shown first. `accuracy` are those of the other of the
    six accuracies, `further` those of the further numbers, `paired` the other differences. `systems` are in the order
    of their colours. `classes` are tables of single classes by system.
    """

    protocol: tuple[str, str, str]
    facts: dict[str, str]
    systems: list[str] = field(default_factory=list)
    main: Table | None = None
    main_paired: Table | None = None
    accuracy: list[Table] = field(default_factory=list)
    further: list[Table] = field(default_factory=list)
    paired: list[Table] = field(default_factory=list)
    published: list[Table] = field(default_factory=list)
    classes: dict[str, list[Table]] = field(default_factory=dict)
    episodes: list[Table] = field(default_factory=list)
    clustering: list[Table] = field(default_factory=list)
    curves: Figure | None = None
    base_novel: Figure | None = None
    class_chart: Figure | None = None
    step_curves: list[Figure] = field(default_factory=list)
    step_tables: list[Table] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    differences: Figure | None = None
    reference: str = ""

    @property
    def dataset(self) -> str:
        return self.protocol[0]

    @property
    def setup(self) -> str:
        return self.protocol[1]

    @property
    def split_digest(self) -> str:
        return self.protocol[2]

    @property
    def unit(self) -> str:
        """The unit that intervals are computed over."""
        return unit_of(self.protocol)

    @property
    def over(self) -> list[str]:
        """The facts that say what accuracies are over: classes, images, and the level of chance."""
        return list(self.facts)[:3]

    @property
    def tables(self) -> list[Table]:
        """All tables but those of single classes."""
        main = [one for one in (self.main, self.main_paired) if one is not None]
        trials = self.published, self.accuracy, self.further, self.step_tables, self.paired
        return [*main, *chain(*trials, self.episodes, self.clustering)]


def facts(frame: pd.DataFrame, column: str, unit: str, judged: Judged) -> dict[str, str]:
    """Summarise what was run. `frame` is the long form of one protocol; `column` holds the numbers of its `unit`."""
    over = {"Classes": judged.of_groups("classes"), judged.images.capitalize(): judged.of_groups("images")}
    over = {name: numbers or "not recorded" for name, numbers in over.items()}
    cells = ["system", "n_shot", *({"task"} & set(frame))]
    counts = frame.drop_duplicates([*cells, column]).groupby(cells).size()
    least, most = counts.min(), counts.max()
    return {
        **over,
        "Chance level": _chance(frame, judged),
        "Systems": str(frame["system"].nunique()),
        "Images per class" if column == "episode" else "Images per novel class": ", ".join(
            str(n) for n in sorted(frame["n_shot"].unique())
        ),
        f"{unit.removesuffix('s').capitalize()}s per cell": f"{least}–{most}" if least < most else str(most),
        "Setting": ", ".join(frame["setting"].unique()),
    }


def _chance(frame: pd.DataFrame, judged: Judged) -> str:
    """Return the accuracy of guesses among all classes, or among the ways of episodes, in words."""
    if "n_way" in frame:
        least, most = 100 / frame["n_way"].max(), 100 / frame["n_way"].min()
        return f"{least:.2f}–{most:.2f} %" if least < most else f"{most:.2f} %"
    levels = {metric: judged.chance(metric) for metric in judged.shown(["top1_all", "top5_all"])}
    known = [f"{100 * level:.2f} % (top-{metric[3]})" for metric, level in levels.items() if level is not None]
    return ", ".join(known) or "not recorded"


def provenance(files: dict[str, dict], frame: pd.DataFrame) -> list[dict]:
    """Return a record for each system of `frame` (long form): commits, devices, commands, and totals over its files."""
    records = []
    for (*protocol, system), part in frame.groupby([*PROTOCOL, "system"], sort=False):
        names = part["file"].unique()
        runs = [files[name]["provenance"] for name in names]
        seconds = sum(run["wall_time_s"] or 0 for run in runs)
        records.append(
            {
                "system": system,
                "protocol": dict(zip(PROTOCOL, protocol)),
                "n_trials": part["trial" if "trial" in part else "episode"].nunique(),
                "unit": "trials" if "trial" in part else "episodes",
                "commits": sorted({str(run["commit"] or "unknown")[:12] + _changes(run["commit"]) for run in runs}),
                "devices": sorted({", ".join(filter(None, (run["device"], run.get("machine")))) for run in runs}),
                "seconds": seconds,
                "wall_time": _duration(seconds),
                "peak_memory": f"{max(run['peak_memory_bytes'] or 0 for run in runs) / 2**30:.2f} GiB",
                "commands": [{"file": name, "command": run["command"]} for name, run in zip(names, runs)],
                "config": json.dumps(files[names[0]]["config"], indent=1, ensure_ascii=False),
                "versions": json.dumps(runs[0]["versions"], ensure_ascii=False),
            }
        )
    return records


def _changes(commit: str | None) -> str:
    return "+changes" if str(commit).endswith("+changes") else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _number(cell: str) -> str:
    """Format a cell: a line break only before its remark, and a true minus sign."""
    return cell.replace(" ", "\u00a0").replace("\u00a0(", " (").replace("-", "−")


def _order(cell: str) -> str:
    """Return the number at the beginning of a cell, which tables are sorted by, or an empty text."""
    found = re.match(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", cell)
    return found[0] if found else ""


def _inline(script: str) -> str:
    """Return JavaScript that does not end the script element around it."""
    return script.replace("</script", "<\\/script")


def _tables_script() -> str:
    """Return DataTables as a module (data URI). `itables` has it as one file for pages without a network."""
    script = resources.files("itables") / "html" / "dt_bundle.js"
    return f"data:text/javascript;base64,{base64.b64encode(script.read_bytes()).decode()}"


def data_uri(path: Path) -> str:
    """Return a figure as a data URI."""
    return f"data:{_MEDIA[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def templates() -> Environment:
    """Return the templates of pages. They escape all text."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"data_uri": data_uri, "number": _number, "order": _order, "inline": _inline}
    return environment


def render(
    name: str,
    chart_scripts: str,
    sections: list[Section],
    images: list[Table],
    each_class: list[Table],
    drawn: dict[str, Path],
    records: list[dict],
) -> str:
    """Return the HTML of the page. Text from results files is escaped.

    Args:
        name: what the page is called.
        chart_scripts: what draws charts (`charts.scripts`).
        images: tables of the scores of generated images.
        each_class: tables of the scores of single classes.
        drawn: pictures by name: samples, feature_map, embedding_map, subclass_sizes, generated, between, crossover,
            gan_training. All are optional.
    """
    page = templates().get_template("report.html.j2")
    scores = {"images": images, "each_class": each_class}
    scripts = {"chart_scripts": chart_scripts, "tables_script": _tables_script()}
    return page.render(name=name, **scripts, sections=sections, **scores, drawn=drawn, records=records)
