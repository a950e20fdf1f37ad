"""report.html of a classifier of photos: its accuracy, its confusions, and its worst mistakes as pictures."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from lowshot.data.datasets.images import open_image
from lowshot.photos.judging import Judged
from lowshot.report.page import templates

_SHOWN, _SIDE = 18, 180  # mistakes, and the longer side of a picture in pixels
_MOST_CLASSES = 30  # in the table of confusions


def write_mistakes(path: Path, judged: Judged, files: list[Path]) -> None:
    """Write the page for the predictions of image `files` (N). Pictures are embedded."""
    accuracy, none = judged.accuracy, judged.none_of_these
    low, high = accuracy.interval
    facts = {
        "Right": f"{accuracy.is_right.mean():.1%} of {len(accuracy.labels)} photos",
        "95 % interval": f"{low:.1%} to {high:.1%}",
        "Mean over classes": f"{accuracy.over_classes:.1%}",
        "Chance": f"{1 / len(judged.class_names):.1%}",
        "Calibration error": f"{accuracy.calibration_error:.1%}",
    }
    if none["false_alarms"] is not None:
        facts[f"None of these, at a rate of {none['rate']:g}"] = f"{none['false_alarms']:.1%} of the photos"
    if none["found"] is not None:
        facts["None of these, other classes"] = f"{none['found']:.1%} of {none['n_others']} photos"
    counts = accuracy.confusion.sum(1)
    rows = zip(judged.class_names, accuracy.confusion.tolist(), counts.tolist())
    wrong, missed = judged.mistakes(), judged.missed()
    page = templates().get_template("mistakes.html.j2")
    text = page.render(
        facts=facts,
        classes=[one for one in accuracy.to_json()["classes"] if one["n_images"]],
        names=judged.class_names if len(judged.class_names) <= _MOST_CLASSES else [],
        confusion=[row for row in rows if row[2]],
        wrong=_shown(judged, files, wrong),
        n_wrong=len(wrong),
        missed=_shown(judged, files, missed),
        n_missed=len(missed),
    )
    path.write_text(text, encoding="utf-8")


def _shown(judged: Judged, files: list[Path], rows: np.ndarray) -> list[dict]:
    """Return what the page says of the first of some images."""
    table = judged.table([file.name for file in files])
    return [{**table.iloc[row].to_dict(), "picture": _picture(files[row])} for row in rows[:_SHOWN]]


def _picture(file: Path) -> str:
    image = open_image(file)
    if max(image.size) < _SIDE:  # small pictures are enlarged pixel by pixel
        factor = _SIDE // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
