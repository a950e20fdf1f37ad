"""Pictures of a report: sample images and a map of the features, and the style of all that matplotlib draws.

Curves are in `charts`. Colours are those of Okabe & Ito, which suit all kinds of colour vision.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from lowshot.core.seeds import stream
from lowshot.data.datasets.images import Images
from lowshot.data.features import Features
from lowshot.data.protocol import Split

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
_BASE, _NOVEL = OKABE_ITO[0], OKABE_ITO[1]
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
