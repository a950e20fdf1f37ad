"""Figures of a report: curves over n, paired differences, sample images and a map of the features.

Colours are those of Okabe & Ito, which suit all kinds of colour vision. Systems also differ in marker and line style.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from lowshot.core.seeds import stream
from lowshot.data.datasets.images import Images
from lowshot.data.features import Features
from lowshot.data.protocol import Split

CLASSES = ("novel", "base", "all")
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
_BASE, _NOVEL = OKABE_ITO[0], OKABE_ITO[1]
_MARKERS, _LINES = ("o", "s", "^", "D", "v", "P", "X", "<"), ("-", "--", "-.", ":")
_SHEET_CLASSES, _SHEET_IMAGES, _THUMBNAIL = 6, 8, 64
_MAP_CLASSES, _MAP_ROWS = 10, 50
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "text.parse_math": False,  # a $ in the name of a method is not a formula
    "svg.hashsalt": "lowshot",  # equal figures are equal files
}


@contextmanager
def figure_at(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure in the style of the report, and save it under `path`. Sizes are in inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure((width, height), layout="constrained")
        yield figure
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def system_styles(systems: list[str]) -> dict[str, dict]:
    """Return colour, marker and line style of each system, for all figures of one protocol."""
    return {
        system: {"color": OKABE_ITO[i % 7], "marker": _MARKERS[i % 8], "linestyle": _LINES[i % 4], "markersize": 5.5}
        for i, system in enumerate(systems)
    }


def curves(path: Path, summary: pd.DataFrame, rank: str, styles: dict[str, dict]) -> None:
    """Plot accuracy over n for novel, base and all classes. Bands are 95 % intervals; missing cells leave a gap."""
    shots = np.array(sorted(summary["n_shot"].unique()))
    with figure_at(path, 10, _height(list(styles))) as figure:
        for classes, axes in zip(CLASSES, figure.subplots(1, 3)):
            _shot_axis(axes, shots, f"{classes} classes")
            rows = summary[summary["metric"] == f"{rank}_{classes}"]
            for system, style in styles.items():
                line = rows[rows["system"] == system].set_index("n_shot").reindex(shots)
                mean, interval = 100 * line["mean"].to_numpy(float), 100 * line["interval"].to_numpy(float)
                axes.plot(shots, mean, linewidth=1.7, **style)
                low, high = mean - interval, mean + interval
                axes.fill_between(shots, low, high, color=style["color"], alpha=0.16, linewidth=0)
        figure.axes[0].set_ylabel(f"top-{rank[3:]} accuracy, %")
        _legend(figure, styles)


def differences(path: Path, table: pd.DataFrame, reference: str, rank: str, styles: dict[str, dict]) -> None:
    """Plot all systems minus `reference` over n, with 95 % intervals. For `table` see `paired_differences`."""
    shots = np.array(sorted(table["n_shot"].unique()))
    others = [system for system in styles if system in set(table.loc[table["versus"] == reference, "system"])]
    with figure_at(path, 10, _height(others)) as figure:
        for classes, axes in zip(CLASSES, figure.subplots(1, 3)):
            _shot_axis(axes, np.arange(len(shots)), f"{classes} classes", shots)
            axes.axhline(0, color="#555", linewidth=1)
            rows = table[(table["versus"] == reference) & (table["metric"] == f"{rank}_{classes}")]
            for place, system in enumerate(others):
                line = rows[rows["system"] == system].set_index("n_shot").reindex(shots)
                beside = np.arange(len(shots)) + min(0.14, 0.8 / len(others)) * (place - (len(others) - 1) / 2)
                style = {**styles[system], "linestyle": "none"}
                axes.errorbar(beside, 100 * line["mean"], 100 * line["interval"], elinewidth=1.5, capsize=3, **style)
        figure.axes[0].set_ylabel(f"top-{rank[3:]}, percentage points")
        _legend(figure, {system: {**styles[system], "linestyle": "none"} for system in others})


def steps(
    path: Path, summary: pd.DataFrame, plain: pd.DataFrame, reported: pd.Series, rank: str, styles: dict[str, dict]
) -> None:
    """Plot accuracy over the number of steps, with a panel for each n: novel classes above, all classes below.

    `summary` has a column n_steps. The systems of `plain` take no steps and are horizontal lines. A marker shows the
    number of steps that is `reported` (see `results.reported_steps`). Bands are 95 % intervals. All panels of a row
    span the same number of percentage points, so that slopes can be compared.
    """
    shots = sorted(summary["n_shot"].unique())
    ends = [plain.assign(n_steps=end) for end in (0, max(1, summary["n_steps"].max()))]
    lines = pd.concat([*ends, summary])
    drawn = {system: dict(style) for system, style in styles.items() if system in set(lines["system"])}
    for system in plain["system"]:
        drawn[system]["marker"] = ""
    with figure_at(path, max(10, 2 * len(shots)), _height(list(drawn)) + 1.4) as figure:
        grid = figure.subplots(2, len(shots), sharex=True, squeeze=False)
        for classes, row in zip(("novel", "all"), grid):
            for n_shot, axes in zip(shots, row):
                part = lines[(lines["n_shot"] == n_shot) & (lines["metric"] == f"{rank}_{classes}")]
                for system, style in drawn.items():
                    _step_line(axes, part[part["system"] == system], reported.get((system, n_shot)), style)
            _span_alike(row)
            row[0].set_ylabel(f"{classes} classes\ntop-{rank[3:]} accuracy, %")
        for n_shot, top, bottom in zip(shots, *grid):
            top.set_title(f"n = {n_shot}", loc="left", fontweight="bold", fontsize=10.5)
            bottom.set_xlabel("steps")
            bottom.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        _legend(figure, drawn)


def _step_line(axes: Axes, line: pd.DataFrame, marked: int | None, style: dict) -> None:
    n_steps, mean, interval = line["n_steps"], 100 * line["mean"], 100 * line["interval"]
    marks = {"markevery": np.flatnonzero(n_steps == marked).tolist(), "markeredgecolor": "white"}
    axes.plot(n_steps, mean, linewidth=1.7, **style | {"markersize": 7}, **marks)
    axes.fill_between(n_steps, mean - interval, mean + interval, color=style["color"], alpha=0.16, linewidth=0)


def _span_alike(row: np.ndarray) -> None:
    """Set the y limits so that all panels of a row span the same range."""
    limits = np.array([axes.get_ylim() for axes in row])
    span = np.ptp(limits, axis=1).max()
    for axes, low in zip(row, np.clip(limits.mean(axis=1) - span / 2, 0, max(0, 100 - span))):
        axes.set_ylim(low, low + span)


def _legend_columns(systems: list[str]) -> int:
    return 1 if max(map(len, systems), default=0) > 58 else 2


def _height(systems: list[str]) -> float:
    return 3.4 + 0.2 * -(-len(systems) // _legend_columns(systems))


def _shot_axis(axes: Axes, places: np.ndarray, title: str, shots: np.ndarray | None = None) -> None:
    """Label the x axis with the values of n: on a log scale, or at `places` if `shots` gives the labels."""
    if shots is None:
        axes.set_xscale("log")
    axes.set_xticks(places, [str(n) for n in (places if shots is None else shots)])
    axes.minorticks_off()
    axes.set_xlabel("n (images per novel class)")
    axes.set_title(title, loc="left", fontweight="bold", fontsize=10.5)


def _legend(figure: Figure, styles: dict[str, dict]) -> None:
    handles = [Line2D([], [], linewidth=1.7, **style) for style in styles.values()]
    where = {"loc": "outside lower center", "ncols": _legend_columns(list(styles)), "frameon": False}
    figure.legend(handles, list(styles), fontsize=9, handlelength=3.2, **where)


def _spread(classes: list[int], n: int) -> list[int]:
    """Return at most `n` of `classes`, evenly spaced in the list (and so over superclasses, if sorted by them)."""
    return [classes[i] for i in np.unique(np.linspace(0, len(classes) - 1, min(n, len(classes))).round().astype(int))]


def sample_sheet(path: Path, images: Images, split: Split) -> None:
    """Draw a few training images of some base classes (left) and some novel classes (right)."""
    sides = [("base", _BASE, split.base_classes), ("novel", _NOVEL, split.novel_classes)]
    n_rows = min(_SHEET_CLASSES, max(len(classes) for *_, classes in sides))
    with figure_at(path, 10, 0.95 * n_rows + 0.2) as figure:
        figure.get_layout_engine().set(wspace=0.06)
        grid = figure.subplots(n_rows, 2, squeeze=False)
        for column, (role, color, classes) in zip(grid.T, sides):
            for axes in column:
                axes.set_axis_off()
            for axes, c in zip(column, _spread(classes, _SHEET_CLASSES)):
                axes.imshow(_strip(images, c), aspect="equal", interpolation="nearest")
                axes.set_title(f"{role}: {split.class_names[c]}", loc="left", fontsize=10, color=color, pad=3)


def _strip(images: Images, c: int) -> np.ndarray:
    """Images of class `c` side by side, uint8 (H, W, 3). Unused places are white."""
    rows = np.flatnonzero((images.labels == c) & ~images.is_test)
    rows = stream(0, "samples", c).permutation(rows)[:_SHEET_IMAGES]
    side = images.size or _THUMBNAIL
    strip = np.full((side, _SHEET_IMAGES, side + 2, 3), 255, np.uint8)
    for place, row in enumerate(rows):
        strip[:, place, :side] = _thumbnail(images, row, side)
    return strip.reshape(side, -1, 3)


def _thumbnail(images: Images, row: int, side: int) -> np.ndarray:
    if images.pixels is not None:
        return images.pixels[row, :, :side]
    return np.asarray(images.open(row).resize((side, side)))


def feature_map(path: Path, features: Features, split: Split) -> None:
    """Plot features of some classes in two dimensions (PCA, then t-SNE, fixed seed), with class names at the means."""
    present = set(features.labels.tolist())
    base, novel = (
        _spread([c for c in cs if c in present], _MAP_CLASSES) for cs in (split.base_classes, split.novel_classes)
    )
    rows = _map_rows(features.labels, base + novel)
    points, labels = project(features.feats[rows]), features.labels[rows]
    with figure_at(path, 10, 7) as figure:
        axes = figure.subplots()
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        for classes, shades, marker, role in ((base, "Blues", "o", "base"), (novel, "Oranges", "^", "novel")):
            for c, shade in zip(classes, matplotlib.colormaps[shades](np.linspace(0.5, 0.95, len(classes)))):
                class_points = points[labels == c]
                axes.scatter(
                    *class_points.T, s=22, color=shade, marker=marker, alpha=0.6, linewidths=0, label=f"{role} classes"
                )
                text = axes.text(
                    *class_points.mean(0), split.class_names[c], color=shade, size=9, ha="center", va="center", zorder=3
                )
                text.set(weight="bold", path_effects=[withStroke(linewidth=2.5, foreground="white")])
        named = dict(zip(*reversed(axes.get_legend_handles_labels())))
        axes.legend(named.values(), named, frameon=False, loc="upper left", bbox_to_anchor=(0, 1.06), ncols=2)


def _map_rows(labels: np.ndarray, classes: list[int]) -> np.ndarray:
    draws = [stream(0, "feature map", c).permutation(np.flatnonzero(labels == c))[:_MAP_ROWS] for c in classes]
    return np.concatenate(draws)


def project(feats: np.ndarray) -> np.ndarray:
    """Project (N, D) to (N, 2). One thread is faster for few rows, and makes the result independent of the cores."""
    with threadpool_limits(1):
        reduced = PCA(min(50, *feats.shape), random_state=0).fit_transform(feats)
        return TSNE(perplexity=min(30, (len(feats) - 1) / 3), init="pca", random_state=0).fit_transform(reduced)
