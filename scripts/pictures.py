"""Draw the pictures of the README: the pipeline, the accuracies of the quick start and its report.

    bash scripts/quickstart.sh
    bash scripts/results.sh glyphs    # puts its numbers into docs/results/glyphs.csv, and calls this script

Writes pipeline.svg and, from docs/results/glyphs.csv, accuracy.svg to docs/images/; report.png too if there is the
report of a quick start, and Chromium.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from lowshot.report.book import Numbers
from lowshot.report.figures import OKABE_ITO, figure_at

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
QUICK_START = ROOT / "outputs" / "glyphs"

BLUE, RED, GREEN, PINK, YELLOW, _, GREY = OKABE_ITO

# The boxes of the pipeline: lines of text, centre (x, y), colour of the subject (None: what goes in and comes out).
BOXES = {
    "images": (["photos, or a", "public data set"], 0.0, 1.5, None),
    "split": (["preprocessing.py"], 0.0, 0.0, GREY),
    "extractor": (["train_extractor.py", "train_scgm.py", "finetune_extractor.py"], 4.1, 0.0, BLUE),
    "features": (["save_features.py"], 8.5, 0.0, BLUE),
    "gan": (["train_gan.py", "sample_gan.py"], 4.1, -1.6, PINK),
    "predict": (["predict.py"], 4.1, 1.5, YELLOW),
    "names": (["class names of", "new photos"], 8.5, 1.5, None),
    "analogies": (["make_quadruplet.py", "train_analogy_generator.py"], 12.3, 1.6, RED),
    "graph": (["build_graph.py", "diffusion.py"], 12.8, -1.8, GREEN),
    "classifiers": (["low_shot.py", "episodes.py", "matching_network.py", "score_samples.py"], 16.8, 0.6, YELLOW),
    "report": (["parse_results.py"], 20.7, 0.0, GREY),
    "page": (["tables, plots,", "report.html"], 20.7, -1.5, None),
}
# From one box to another, what is handed over, and where its name is written, from the middle of the arrow.
ARROWS = [
    ("images", "split", "", (0, 0)),
    ("images", "predict", "", (0, 0)),
    ("split", "extractor", "images,\nsplit", (0, 0.38)),
    ("extractor", "features", "extractor", (0, 0.24)),
    ("extractor", "predict", "", (0, 0)),
    ("predict", "names", "", (0, 0)),
    ("split", "gan", "", (0, 0)),
    ("gan", "features", "generated\nimages", (0.85, -0.25)),
    ("features", "classifiers", "features (and split, draws)", (-0.6, 0.3)),
    ("features", "analogies", "", (0, 0)),
    ("features", "graph", "", (0, 0)),
    ("analogies", "classifiers", "generated\nfeatures", (0.75, 0.68)),
    ("graph", "classifiers", "propagated\nlabels", (-0.95, 0.2)),
    ("graph", "report", "results", (0.6, -0.25)),
    ("classifiers", "report", "results", (0.55, 0.25)),
    ("report", "page", "", (0, 0)),
]
LINE = 0.37  # height of a line of text
Point = tuple[float, float]

# The lines of the curve, named and coloured as in the report, by results file: label, colour, marker, and the place of
# the label (a point, a shift from it).
METHODS = {
    "conv4_sgm": ("linear_sgd", BLUE, "o", 1, (12, -16)),
    "conv4_sgm_diffusion": ("diffusion (unlabelled images)", RED, "s", 0, (-6, 26)),
    "conv4_sgm_generated": ("linear_sgd\n+ generator", GREEN, "^", 0, (-6, 25)),
}
COINCIDE = "from 5 images on, the generator adds\nnothing: the two lines coincide"


def pipeline(path: Path) -> None:
    """The stages as lines of boxes, boxes by subject, arrows for the files that one stage hands to the next."""
    with figure_at(path, 12, 3.1) as figure:
        axes = figure.subplots()
        axes.set(xlim=(-1.5, 22.3), ylim=(-2.45, 2.35))
        axes.set_axis_off()
        halves = {name: _draw_box(axes, *box) for name, box in BOXES.items()}
        for source, target, text, (right, up) in ARROWS:
            tail, head = _ends(BOXES[source][1:3], BOXES[target][1:3], halves[source], halves[target])
            style = {"arrowstyle": "-|>", "color": "#777", "linewidth": 1.2, "shrinkA": 2, "shrinkB": 2}
            axes.annotate("", head, tail, arrowprops=style)
            place = (tail[0] + head[0]) / 2 + right, (tail[1] + head[1]) / 2 + up
            axes.text(*place, text, ha="center", va="center", fontsize=8, color="#555", style="italic")


def _draw_box(axes: Axes, lines: list[str], x: float, y: float, colour: str | None) -> tuple[float, float]:
    """Returns half the width and half the height of the box."""
    width, height = 0.146 * max(map(len, lines)) + 0.3, LINE * len(lines) + 0.25
    font = {}
    if colour is not None:
        font = {"family": "monospace"}
        corner, shape = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.12"
        filled = {"facecolor": f"{colour}22", "edgecolor": colour, "zorder": 2}
        axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=shape, **filled))
    for i, line in enumerate(lines):
        above = y + LINE * ((len(lines) - 1) / 2 - i)
        axes.text(x, above, line, ha="center", va="center", fontsize=9, zorder=3, **font)
    return width / 2, height / 2


def _ends(start: Point, end: Point, half: Point, other_half: Point) -> tuple[Point, Point]:
    """Where an arrow starts and ends: at the edges of its boxes, which are side by side or one above the other."""
    (x0, y0), (x1, y1) = start, end
    if x0 == x1:
        up = 1 if y1 > y0 else -1
        return (x0, y0 + up * half[1]), (x1, y1 - up * other_half[1])
    return (x0 + half[0], y0), (x1 - other_half[0], y1)


def accuracy(path: Path) -> None:
    """Top-1 accuracy of the novel classes over n in the quick start, with 95 % intervals over trials."""
    numbers = Numbers.read(ROOT / "docs/results/glyphs.csv")
    summary = numbers.summary.reset_index().query("metric == 'top1_novel'")
    shots = np.array(sorted(summary["n_shot"].unique()))
    with figure_at(path, 7.5, 3.4) as figure:
        axes = figure.subplots()
        for name, (label, colour, marker, point, shift) in METHODS.items():
            line = summary[summary["run"] == name]
            mean, interval = 100 * line["mean"].to_numpy(), 100 * line["interval"].to_numpy()
            axes.plot(line["n_shot"], mean, marker=marker, color=colour, linewidth=2)
            axes.fill_between(line["n_shot"], mean - interval, mean + interval, color=colour, alpha=0.16, linewidth=0)
            end = line["n_shot"].iloc[point], mean[point]
            axes.annotate(label, end, shift, textcoords="offset points", color=colour, fontweight="bold")
        axes.text(20, 38, COINCIDE, ha="right", fontsize=9, color="#555", style="italic")
        axes.set(xscale="log", xlabel="images per new class", ylabel="top-1 accuracy on new classes, %", ylim=(0, 90))
        axes.set_xticks(shots, [str(n) for n in shots])
        axes.minorticks_off()


def screenshot(path: Path) -> None:
    """The top of the quick start's report, as a browser shows it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    page = QUICK_START / "report" / "report.html"
    if browser is None or not page.exists():
        print("scripts/pictures.py: no Chromium or no report of a quick start here, report.png is left as it is")
        return
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,1385", f"--screenshot={path}"]
    subprocess.run([browser, *options, page.resolve().as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    pipeline(IMAGES / "pipeline.svg")
    accuracy(IMAGES / "accuracy.svg")
    screenshot(IMAGES / "report.png")
