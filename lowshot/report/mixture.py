"""Pictures of a superclass-conditional mixture: a map of embeddings and means, and subclass sizes over training."""

import colorsys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from sklearn.preprocessing import normalize

from lowshot.core.artifacts import read_recipe
from lowshot.core.errors import InputError
from lowshot.core.files import digest
from lowshot.core.h5 import open_h5, require_datasets
from lowshot.core.seeds import stream
from lowshot.core.settings import flat
from lowshot.data.features import Features
from lowshot.data.protocol import Split
from lowshot.report.figures import OKABE_ITO, figure_at, project

_MAP_ROWS = 2000
_LEGEND_ROWS = 26


@dataclass(frozen=True)
class Means:
    """The means and subclass sizes learned by train_scgm.py.

    `superclasses` (C,) are indices into the split's superclass_names. `superclass_means` is (C, d), `subclass_means`
    (K, d). `sizes` (E, K) is the number of images of each subclass after each of E assignments, made after `epochs`
    (E,) epochs of training. `n_epochs` is the length of the training. `extractor` is the digest of the folder. The last
    three fields are None for methods without subclasses.
    """

    folder: Path
    extractor: str
    n_epochs: int
    superclasses: np.ndarray
    superclass_means: np.ndarray
    subclass_means: np.ndarray | None = None
    sizes: np.ndarray | None = None
    epochs: np.ndarray | None = None


def read_means(folder: Path) -> Means:
    """Read the means from a folder of train_scgm.py. Raises InputError if it is not one or its arrays do not agree."""
    made_from, path = read_recipe(folder), Path(folder) / "mixture.h5"
    if made_from is None or made_from["stage"] != "train_scgm":
        raise InputError(f"{folder}: not an output of train_scgm.py. Give --mixture the folder that it wrote")
    with open_h5(path) as file:
        require_datasets(file, {"superclasses": ("integers", 1), "superclass_means": ("floats", 2)})
        superclasses, superclass_means = file["superclasses"][:], file["superclass_means"][:]
        if len(superclasses) != len(superclass_means) or not np.isfinite(superclass_means).all():
            raise InputError(
                f"{path}: {len(superclasses)} superclasses, but {len(superclass_means)} means, or a mean is not finite"
            )
        mixture = _read_mixture(file) if "subclass_means" in file else ()
    if mixture and mixture[0].shape[1] != superclass_means.shape[1]:
        raise InputError(
            f"{path}: subclass means have {mixture[0].shape[1]} dimensions, but superclass means have "
            f"{superclass_means.shape[1]}"
        )
    config = flat(made_from["config"])
    every = int(
        config.get("method.e_step_every", config.get("e_step_every", 0))
    )  # the second name is from older recipes
    n_epochs = int(config.get("ended_after", config["epochs"]))
    if mixture:  # early stopping leaves fewer assignments
        n_epochs = min(n_epochs, every * len(mixture[1]))
        mixture = (*mixture, every * np.arange(len(mixture[1])))
    return Means(Path(folder), digest(folder), n_epochs, superclasses, superclass_means, *mixture)


def _read_mixture(file: h5py.File) -> tuple[np.ndarray, np.ndarray]:
    require_datasets(file, {"subclass_means": ("floats", 2), "sizes": ("integers", 2)})
    means, sizes = file["subclass_means"][:], file["sizes"][:]
    if sizes.ndim != 2 or sizes.shape[1] != len(means) or not len(sizes) or not np.isfinite(means).all():
        raise InputError(f"{file.path}: sizes have shape {sizes.shape} for {len(means)} means, or a mean is not finite")
    return means, sizes


def check_fits(means: Means, features: Features, split: Split) -> None:
    """Raise InputError unless `features` are from the extractor of `means` and the split has its superclasses."""
    if features.dim != means.superclass_means.shape[1]:
        raise InputError(
            f"{features.path}: has {features.dim} dimensions, but the means of {means.folder} have "
            f"{means.superclass_means.shape[1]}. Save the features with save_features.py --extractor {means.folder}"
        )
    if features.extractor and features.extractor != means.extractor:
        raise InputError(
            f"{features.path}: made by a different extractor than {means.folder}. "
            f"Save the features with save_features.py --extractor {means.folder}"
        )
    if means.superclasses.max() >= len(split.superclass_names):
        raise InputError(
            f"{means.folder}: superclass {means.superclasses.max()} is not in the split. "
            "Give --data the folder that the extractor was trained on"
        )


def embedding_map(path: Path, means: Means, features: Features, split: Split) -> None:
    """Plot unit-length embeddings and means together in two dimensions (Ni et al., ICLR 2022, figures; spec 8).

    Departs from the published picture: subclass means have the colour of their most likely superclass, superclass means
    are numbered, embeddings are of test images (not of the last training epoch), and t-SNE is scikit-learn's.
    """
    rows, superclass = _map_rows(features.labels, means.superclasses, split)
    subclass_means = means.superclass_means[:0] if means.subclass_means is None else means.subclass_means
    together = [normalize(one) for one in (features.feats[rows], subclass_means, means.superclass_means) if len(one)]
    points = project(np.concatenate(together))
    images, subclasses, stars = np.split(points, np.cumsum([len(rows), len(subclass_means)]))
    colors = np.array(_colors(len(stars)))
    with figure_at(path, 10 + 1.6 * ((len(stars) - 1) // _LEGEND_ROWS), 7.2) as figure:
        axes = figure.subplots()
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.scatter(*images.T, s=9, c=colors[superclass], alpha=0.55, linewidths=0)
        outlined = [withStroke(linewidth=3, foreground="white")]
        axes.scatter(
            *subclasses.T, s=42, c=colors[_likeliest(means)], marker="+", linewidths=1.6, path_effects=outlined
        )
        axes.scatter(*stars.T, s=190, c=colors, marker="*", edgecolors="black", linewidths=0.9, zorder=3)
        _number(axes, stars)
        names = [f"{i + 1}  {split.superclass_names[s]}" for i, s in enumerate(means.superclasses)]
        _legend(axes, names, colors, has_subclasses=len(subclasses) > 0)


def _map_rows(labels: np.ndarray, superclasses: np.ndarray, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Draw at most `_MAP_ROWS` rows of these superclasses; return them and the index of each row's superclass."""
    place_of = {superclass: place for place, superclass in enumerate(superclasses.tolist())}
    places = np.array([place_of.get(superclass, -1) for superclass in split.superclass_of])[labels]
    known = np.flatnonzero(places >= 0)
    rows = np.sort(stream(0, "embedding map").permutation(known)[:_MAP_ROWS])
    return rows, places[rows]


def _likeliest(means: Means) -> np.ndarray:
    """Return, for each subclass, the superclass with the largest p(y|z), which has the nearest mean: int64 (K,)."""
    if means.subclass_means is None:
        return np.zeros(0, np.int64)
    return (normalize(means.subclass_means) @ normalize(means.superclass_means).T).argmax(1)


def _colors(n: int) -> list[tuple[float, float, float]]:
    """Return `n` colours around the hue circle. Neighbours differ in lightness."""
    return [colorsys.hls_to_rgb(i / n, (0.36, 0.62, 0.48)[i % 3], (0.85, 0.7, 0.95)[i % 3]) for i in range(n)]


def _number(axes: Axes, stars: np.ndarray) -> None:
    """Write a number beside each star, on the side away from its nearest neighbour."""
    distances = np.square(stars[:, None] - stars).sum(-1)
    np.fill_diagonal(distances, np.inf)
    away = normalize(stars - stars[distances.argmin(1)])
    for i, (place, direction) in enumerate(zip(stars, away)):
        where = {"textcoords": "offset points", "ha": "center", "va": "center", "zorder": 4}
        text = axes.annotate(str(i + 1), place, 12 * direction, size=9, weight="bold", **where)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _legend(axes: Axes, names: list[str], colors: np.ndarray, has_subclasses: bool) -> None:
    """Add two legends: superclasses in columns right of the map, marker types above it."""
    marks = [(".", "image"), ("+", "mean of a subclass"), ("*", "mean of a superclass")]
    signs = [
        Line2D([], [], linestyle="none", marker=marker, color="#444", markersize=8, label=label)
        for marker, label in marks
        if has_subclasses or marker != "+"
    ]
    axes.figure.legend(handles=signs, frameon=False, loc="outside upper left", ncols=3, fontsize=9)
    n_columns = -(-len(names) // _LEGEND_ROWS)
    dots = [
        Line2D([], [], linestyle="none", marker="o", color=color, label=name if len(name) <= 30 else name[:29] + "…")
        for name, color in zip(names, colors)
    ]
    where = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "ncols": n_columns, "columnspacing": 0.8}
    axes.legend(handles=dots, frameon=False, fontsize=8.5, handletextpad=0.2, **where)


def subclass_sizes(path: Path, means: Means) -> None:
    """Plot the number of training images per subclass: bands over epochs, and all sizes after the last assignment."""
    n_images, n_subclasses = int(means.sizes[0].sum()), means.sizes.shape[1]
    epochs = np.append(means.epochs, means.n_epochs)  # an assignment holds until the next one
    low, quarter, median, three_quarters, high = (
        np.append(line, line[-1]) for line in np.quantile(means.sizes, [0, 0.25, 0.5, 0.75, 1], axis=1)
    )
    band, step = OKABE_ITO[0], {"step": "post", "color": OKABE_ITO[0], "linewidth": 0}
    with figure_at(path, 10, 3.8) as figure:
        over, last = figure.subplots(1, 2, sharey=True, width_ratios=(1.7, 1))
        over.fill_between(epochs, low, high, alpha=0.18, label="smallest to largest", **step)
        over.fill_between(epochs, quarter, three_quarters, alpha=0.4, label="middle half", **step)
        over.step(epochs, median, where="post", color=band, linewidth=1.8, label="median")
        for axes in (over, last):
            axes.axhline(n_images / n_subclasses, color=OKABE_ITO[1], linestyle="--", linewidth=1.3)
        over.set_xlim(0, means.n_epochs)
        over.xaxis.set_major_locator(MaxNLocator(integer=True))
        over.set(xlabel="epochs", ylabel="training images per subclass", ylim=(0, 1.08 * high.max()))
        over.set_title("Over training", loc="left", fontweight="bold", fontsize=10.5)
        target = Line2D([], [], color=OKABE_ITO[1], linestyle="--", label=f"equal: {n_images / n_subclasses:.4g}")
        handles = [*over.get_legend_handles_labels()[0], target]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        last.stairs(np.sort(means.sizes[-1])[::-1], np.arange(n_subclasses + 1), color=band, fill=True, alpha=0.6)
        last.set(xlabel="subclasses, in order of size", xlim=(0, n_subclasses))
        n_empty = int((means.sizes[-1] == 0).sum())
        last.set_title(f"Last assignment: {n_empty} of {n_subclasses} empty", loc="left", fontweight="bold", size=10.5)
