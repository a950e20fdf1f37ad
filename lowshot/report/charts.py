"""Charts of a report. Each is one Vega-Lite definition, drawn twice: as a static SVG file, and in the page, with hover,
switches and a legend that picks systems.

Colours are those of Okabe & Ito, which suit all kinds of colour vision. Systems also differ in marker and line style.
Text and rules have the colour of the page around them (`currentColor`), so that charts suit light and dark pages.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import vl_convert

from lowshot.report.figures import OKABE_ITO
from lowshot.report.page import Figure
from lowshot.report.tables import n_label

_VERSION = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
_COLORS = (*OKABE_ITO[:6], "currentColor")
_MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
_DASHES = ([1, 0], [6, 3], [6, 3, 1.5, 3], [1.5, 2.5])
_FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_WIDTH, _HEIGHT, _STEPS_WIDTH, _BASE_NOVEL, _LETTERS = 268, 230, 200, (560, 380), 64
_GROUPS = {"novel": "novel classes", "base": "base classes", "all": "all classes"}
# Name of a metric without its rank -> what it measures, and its panel.
_PANELS = {
    **{group: ("accuracy", name) for group, name in _GROUPS.items()},
    **{f"{group}_class_mean": ("accuracy, mean over classes", name) for group, name in _GROUPS.items()},
    "novel_among_novel": ("accuracy within a group", "novel among novel classes"),
    "base_among_base": ("accuracy within a group", "base among base classes"),
    "harmonic_mean": ("accuracy, base and novel together", "harmonic mean of base and novel"),
    "all_with_prior": ("accuracy, base and novel together", "all classes, with class prior"),
}
_AREA = ("Top-1 accuracy, base and novel together", "area under the base-novel curve")
_SHOTS = "n (training images per novel class)"
_SWITCHES = {"measure": "Show:", "system": "System:", "n": "Training images per novel class:"}
_VALUE = "format(datum.mean, '.2f') + ' ± ' + (isValid(datum.interval) ? format(datum.interval, '.2f') : '?')"
_TOLD = {
    "system": {"shorthand": "system:N", "title": "System"},
    "panel": {"shorthand": "panel:N", "title": "Of"},
    "n": {"shorthand": "n:N", "title": "Images per novel class"},
    "n_steps": {"shorthand": "n_steps:Q", "title": "Steps"},
    "value": {"shorthand": "value:N", "title": "Percent"},
    "trials": {"shorthand": "trials:Q", "title": "Trials"},
    "base": {"shorthand": "base:Q", "title": "Base classes, %", "format": ".1f"},
    "novel": {"shorthand": "novel:Q", "title": "Novel classes, %", "format": ".1f"},
    "area": {"shorthand": "area:Q", "title": "Area under the curve, %", "format": ".1f"},
    "class": {"shorthand": "class:N", "title": "Class"},
    "accuracy": {"shorthand": "accuracy:Q", "title": "Accuracy, %", "format": ".1f"},
}


def measure_and_panel(metric: str) -> tuple[str, str]:
    """``top1_novel`` -> ``Top-1 accuracy``, ``novel classes``."""
    if metric == "ausuc":
        return _AREA
    rank, _, over = metric.partition("_")
    measure, panel = _PANELS[over]
    return f"Top-{rank[3:]} {measure}", panel


def curves(summary: pd.DataFrame, systems: list[str], measure: str) -> alt.FacetChart:
    """Accuracy over n, with bands of 95 % intervals. Missing cells leave a gap.

    Args:
        summary: means and intervals (`results.summarise`) of systems, metrics and n. Metrics are in the order of the
            switch and of the panels.
        systems: all systems, in the order of their colours.
        measure: what is shown first (see `measure_and_panel`).
    """
    shots = sorted(summary["n_shot"].unique().tolist())
    scale = alt.Scale(type="log", domain=[shots[0] / 1.1, shots[-1] * 1.1], nice=False)
    base = alt.Chart().encode(x=alt.X("n_shot:Q", scale=scale, axis=alt.Axis(values=shots, format="d", title=_SHOTS)))
    y = {"title": "percent", "scale": alt.Scale(zero=False)}
    marks = _marks(base, y, systems, systems).add_params(_picked())
    layers = [*_bands(base, y, systems, systems), marks, _hover(base, y, "panel", "n")]
    return _switched(layers, _with_gaps(_percent(summary), shots), columns=3, measure=measure)


def differences(pairs: pd.DataFrame, systems: list[str], measure: str) -> alt.FacetChart:
    """Systems minus one reference over n, with 95 % intervals.

    `pairs` are `results.paired_differences` to the reference. The other arguments are those of `curves`.
    """
    shown = [system for system in systems if system in set(pairs["system"])]
    x = alt.X("n_shot:O", axis=alt.Axis(labelAngle=0, title=_SHOTS))
    base, y = alt.Chart().encode(x=x, xOffset=alt.XOffset("system:N", sort=shown)), {"title": "percentage points"}
    zero = alt.Chart().transform_calculate(zero="0").mark_rule(color="currentColor", opacity=0.6)
    zero = zero.encode(y=alt.Y("min(zero):Q", **y))
    bars = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q", **y), y2="high:Q", color=_color(systems, shown))
    marks = _marks(base, y, systems, shown).add_params(_picked())
    layers = [zero, bars.encode(opacity=_faded()), marks, _hover(base, y, "panel", "n")]
    return _switched(layers, _percent(pairs, clip=False), columns=3, measure=measure)


def steps(
    summary: pd.DataFrame, plain: pd.DataFrame, reported: pd.Series, rank: str, systems: list[str]
) -> alt.ConcatChart:
    """Accuracy over the number of steps, with a panel for each n: novel classes above, all classes below.

    `summary` has a column n_steps. The systems of `plain` take no steps and are horizontal lines. A marker shows the
    number of steps that is `reported` (see `results.reported_steps`). Bands are 95 % intervals. All panels of a row
    span the same number of percentage points, so that slopes can be compared.
    """
    ends = [plain.assign(n_steps=end) for end in (0, max(1, summary["n_steps"].max()))]
    frame = pd.concat([*ends, summary])
    frame = _percent(frame[frame["metric"].isin([f"{rank}_novel", f"{rank}_all"])])
    marked = [reported.get((one.system, one.n_shot)) == one.n_steps for one in frame.itertuples()]
    frame["reported"] = np.array(marked, bool) & ~frame["system"].isin(plain["system"]).to_numpy()
    shown, shots = [one for one in systems if one in set(frame["system"])], sorted(summary["n_shot"].unique())
    panels = []
    for group in ("novel", "all"):
        of_group = frame[frame["panel"] == _GROUPS[group]]
        row = [of_group[of_group["n_shot"] == n] for n in shots]
        panels += [_step_panel(part, limits, systems, shown) for part, limits in zip(row, _alike(row))]
    panels[0] = panels[0].add_params(_picked())
    chart = alt.concat(*panels, columns=len(shots), bounds="flush", spacing={"column": 62, "row": 76})
    return _styled(chart, shown, margin=62)


def _step_panel(part: pd.DataFrame, limits: list[float], systems: list[str], shown: list[str]) -> alt.LayerChart:
    base = alt.Chart().encode(x=alt.X("n_steps:Q", title="steps", axis=alt.Axis(tickMinStep=1, tickCount=5)))
    first = part.iloc[0]
    y = {"title": f"{first['measure']}, {first['panel']}, %", "scale": alt.Scale(domain=limits, nice=False)}
    layers = [*_bands(base, y, systems, shown), _hover(base, y, "n_steps", size=60)]
    if part["reported"].any():
        layers.append(_marks(base.transform_filter("datum.reported"), y, systems, shown, size=70))
    return alt.layer(*layers, data=_values(part), title=first["n"], width=_STEPS_WIDTH, height=_HEIGHT)


def _alike(row: list[pd.DataFrame]) -> list[list[float]]:
    """Return the ends of the y axes of a row of panels. All span the same range."""
    lows = np.array([np.nanmin(part[["low", "mean"]]) for part in row])
    highs = np.array([np.nanmax(part[["high", "mean"]]) for part in row])
    span = 1.06 * max(1, (highs - lows).max())
    starts = np.clip((lows + highs - span) / 2, 0, max(0, 100 - span))
    return [[low, low + span] for low in starts.tolist()]


def base_novel(curve: pd.DataFrame, own: pd.DataFrame, systems: list[str]) -> alt.LayerChart:
    """Accuracy on base over accuracy on novel classes for all biases, and a marker where each system is.

    Args:
        curve: base and novel, means over trials, of systems, n_shot and places of the curve.
        own: base, novel and area, means over trials, of systems and n_shot.
        systems: all systems, in the order of their colours.
    """
    keys = ["system", "n_shot"]
    along = (100 * curve.set_index(keys)[["base", "novel"]]).round(2)
    along = along.groupby(level=keys, sort=False).agg(list).add_prefix("all_").reset_index()
    frame = own.assign(**100 * own[["base", "novel", "area"]], n=own["n_shot"].map(n_label))
    shown = [system for system in systems if system in set(frame["system"])]
    x = alt.X("novel:Q", title="accuracy on novel classes, %", axis=alt.Axis(tickCount=8))
    y = {"title": "accuracy on base classes, %"}
    flat = alt.Chart().transform_flatten(["all_novel", "all_base"], ["novel", "base"]).encode(x=x)
    lines = _line(flat, alt.Y("base:Q", **y), systems, shown)
    points = _marks(alt.Chart().encode(x=x), y, systems, shown, "base", size=80)
    layers = [lines, points.add_params(_picked()), _hover(flat, y, "base", "novel", "area", of="base", size=60)]
    width, height = _BASE_NOVEL
    chart = alt.layer(*layers, data=_values(along.merge(frame, on=keys)), width=width, height=height)
    shots = [n_label(n) for n in sorted(own["n_shot"].unique())]
    return _styled(_with_switches(chart, {"n": (shots, None)}), shown, margin=62)


def class_accuracies(frame: pd.DataFrame, shots: list[int]) -> alt.FacetChart:
    """Accuracy of single classes of one system at one n; switches choose both.

    `frame` has a row for each system and class, with columns system, group, class, and the accuracy at each of `shots`.
    """
    names = {n: n_label(n) for n in shots}
    frame = frame.assign(panel=frame["group"].map(_GROUPS), **{names[n]: 100 * frame[n] for n in shots})
    frame = frame.drop(columns=shots).sort_values("group", ascending=False, kind="stable")
    color = alt.Color("group:N", legend=None, scale=alt.Scale(domain=["base", "novel"], range=OKABE_ITO[:2]))
    x = alt.X("accuracy:Q", title="accuracy, %", scale=alt.Scale(domain=[0, 100]))
    y = alt.Y("class:N", title=None, sort="-x", axis=alt.Axis(labelLimit=110, grid=False, ticks=False))
    bars = alt.Chart().mark_bar(height=9).encode(x=x, y=y, color=color, tooltip=_tooltip("class", "accuracy", "n"))
    size = {"columns": 2, "margin": 130, "height": alt.Step(13)}
    return _switched([bars], frame, **size, fold=list(names.values()), system=None, n=None)


def _percent(summary: pd.DataFrame, clip: bool = True) -> pd.DataFrame:
    """Return means and ends of intervals in percent, with the words of the chart. Accuracies end at 0 and at 100."""
    mean, interval = 100 * summary["mean"], 100 * summary["interval"]
    low, high = ((mean + sign * interval).clip(*((0, 100) if clip else ())) for sign in (-1, 1))
    measure, panel = zip(*summary["metric"].map(measure_and_panel))
    frame = summary[["system", "n_shot", "trials", *({"n_steps"} & set(summary))]]
    words = {"n": frame["n_shot"].map(n_label), "measure": measure, "panel": panel}
    return frame.assign(mean=mean, interval=interval, low=low, high=high, **words).reset_index(drop=True)


def _with_gaps(frame: pd.DataFrame, shots: list[int]) -> pd.DataFrame:
    """Add rows without a mean for missing n, where lines break."""
    lines = frame[["measure", "panel", "system"]].drop_duplicates()
    return lines.merge(pd.DataFrame({"n_shot": shots}), how="cross").merge(frame, how="left")


def _values(frame: pd.DataFrame) -> alt.InlineData:
    return alt.InlineData(values=json.loads(frame.to_json(orient="records", double_precision=2)))


def _picked() -> alt.Parameter:
    return alt.selection_point(name="picked", fields=["system"], bind="legend")


def _faded(full: float = 1, rest: float = 0.1) -> Any:
    """Return the opacity of a mark, depending on whether its system is picked in the legend."""
    return alt.when(_picked()).then(alt.value(full)).otherwise(alt.value(rest))


def _color(systems: list[str], shown: list[str]) -> alt.Color:
    scale = alt.Scale(domain=shown, range=_range(systems, shown, _COLORS))
    return alt.Color("system:N", scale=scale, legend=_legend(shown))


def _legend(shown: list[str]) -> alt.Legend:
    """Return a legend. The extractor of a system is left out if there is only one."""
    extractors = {system.partition(": ")[0] for system in shown}
    start = len(extractors.pop()) + 2 if len(extractors) == 1 else 0
    return alt.Legend(title=None, labelExpr=f"slice(datum.label, {start})")


def _range(systems: list[str], shown: list[str], values: tuple) -> list:
    """Return the values of the systems `shown`. A system has the same value in all charts of a protocol."""
    return [values[systems.index(system) % len(values)] for system in shown]


def _line(base: alt.Chart, y: alt.Y, systems: list[str], shown: list[str]) -> alt.Chart:
    """Return lines. Legends of equal domains are merged, and a legend of dashed markers is hard to read: the domain of
    the dashes has one value more."""
    scale = alt.Scale(domain=[*shown, ""], range=[*_range(systems, shown, _DASHES), [1, 0]])
    dash = alt.StrokeDash("system:N", legend=None, scale=scale)
    return base.mark_line(clip=True).encode(y=y, color=_color(systems, shown), strokeDash=dash, opacity=_faded())


def _bands(base: alt.Chart, y: dict[str, Any], systems: list[str], shown: list[str]) -> list[alt.Chart]:
    area = base.mark_area(clip=True).encode(y=alt.Y("low:Q", **y), y2="high:Q", opacity=_faded(0.13, 0.01))
    return [area.encode(color=_color(systems, shown)), _line(base, alt.Y("mean:Q", **y), systems, shown)]


def _marks(
    base: alt.Chart, y: dict[str, Any], systems: list[str], shown: list[str], of: str = "mean", size: int = 36
) -> alt.Chart:
    scale = alt.Scale(domain=shown, range=_range(systems, shown, _MARKERS))
    shape = alt.Shape("system:N", scale=scale, legend=_legend(shown))
    look = {"color": _color(systems, shown), "shape": shape, "opacity": _faded()}
    return base.mark_point(filled=True, size=size).encode(y=alt.Y(f"{of}:Q", **y), **look)


def _hover(base: alt.Chart, y: dict[str, Any], *told: str, of: str = "mean", size: int = 200) -> alt.Chart:
    """Return transparent marks that are large enough to be hit, with what is told of them."""
    told = ("system", *told) if of != "mean" else ("system", *told, "value", "trials")
    marks = base.transform_calculate(value=_VALUE).mark_point(filled=True, size=size, opacity=0)
    return marks.encode(y=alt.Y(f"{of}:Q", **y), tooltip=_tooltip(*told))


def _tooltip(*told: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(**_TOLD[name]) for name in told]


def _switched(
    layers: list[alt.Chart],
    frame: pd.DataFrame,
    columns: int,
    margin: int = 62,
    height: int | alt.Step = _HEIGHT,
    fold: list[str] | None = None,
    **first: str | None,
) -> alt.FacetChart:
    """Return a chart with a panel for each `panel` of `frame`.

    Args:
        columns: at most so many panels side by side.
        margin: width of the y axis of a panel in pixels.
        fold: columns whose names become the field n, and whose values become the field accuracy.
        first: fields with a switch between their values, and the value that is shown first (None for the first).
    """
    panels = alt.Facet("panel:N", title=None, sort=frame["panel"].unique().tolist())
    space = {"bounds": "flush", "spacing": {"column": margin, "row": 76}}
    chart = alt.layer(*layers, width=_WIDTH * 3 // columns, height=height)
    chart = chart.facet(panels, columns=columns, data=_values(frame), **space).resolve_scale(y="independent")
    chart = chart.transform_fold(fold, ["n", "accuracy"]) if fold else chart
    options = {field: fold if fold and field == "n" else frame[field].unique().tolist() for field in first}
    chart = _with_switches(chart, {field: (options[field], value) for field, value in first.items()})
    return _styled(chart, [] if fold else frame["system"].unique().tolist(), margin)


def _with_switches(chart: Any, fields: dict[str, tuple[list[str], str | None]]) -> Any:
    """Return the chart of one value of each of `fields` (their values, and the one that is shown first; None for the
    first), and a list to choose from if there are several. The values are the title of the chart."""
    for field, (options, value) in fields.items():
        select = {"bind": alt.binding_select(options=options, name=_SWITCHES[field])} if len(options) > 1 else {}
        chosen = alt.param(name=f"chosen_{field}", value=options[0] if value is None else value, **select)
        chart = chart.add_params(chosen).transform_filter(f"datum.{field} == {chosen.name}")
    shown = alt.ExprRef(" + ', ' + ".join(f"chosen_{field}" for field in fields))
    return chart.properties(title=alt.TitleParams(shown))


def _styled(chart: Any, systems: list[str], margin: int) -> Any:
    """Return the chart in the style of the report. The page needs `margin` to fit panels into its width."""
    ink = {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 11, "titleFontSize": 11}
    rules = {f"{part}Color": "currentColor" for part in ("domain", "tick", "grid")}
    faint = {"domainOpacity": 0.4, "tickOpacity": 0.4, "gridOpacity": 0.1, "titleFontWeight": "normal"}
    long = max(map(len, systems), default=0) > _LETTERS
    legend = {"orient": "bottom", "direction": "vertical", "columns": 1 if long else 2, "labelLimit": 0}
    return chart.properties(usermeta={"margin": margin}, background="transparent").configure(
        font=_FONT,
        axis={**ink, **rules, **faint},
        axisYQuantitative={"labelFlush": True},  # labels beyond the panel would move its header
        header={**ink, "labelFontSize": 12, "labelFontWeight": "bold", "labelAnchor": "start"},
        legend={**legend, "labelColor": "currentColor", "symbolOpacity": 1, "symbolSize": 60, "rowPadding": 3},
        title={"color": "currentColor", "anchor": "start", "fontSize": 13, "offset": 12},
        view={"stroke": None},
    )


def draw(chart: Any, caption: str, views: dict[Path, dict[str, str]]) -> Figure:
    """Return a figure, and save its static `views`: SVG files, and the values of their switches."""
    definition = chart.to_dict()
    del definition["$schema"]  # an address
    for path, chosen in views.items():
        path.write_text(_svg(definition, chosen), encoding="utf-8")
    return Figure(caption, list(views), definition)


def _svg(definition: dict[str, Any], chosen: dict[str, str]) -> str:
    params = [
        {**one, "value": chosen.get(one["name"].removeprefix("chosen_"), one.get("value"))} if "value" in one else one
        for one in definition.get("params", [])
    ]
    config = {**definition["config"], "aria": False}  # the page describes its figures
    return vl_convert.vegalite_to_svg({**definition, "params": params, "config": config}, vl_version=_VERSION)


@cache
def scripts() -> str:
    """Return the scripts that draw charts in a page."""
    return vl_convert.javascript_bundle(vl_version=_VERSION)
