"""Classify photos with a classifier that `predict.py export` wrote. Needs numpy, pillow and onnxruntime only.

python examples/classify_onnx.py exported photo1.jpg photo2.jpg
prints for each photo: file, class, probability, typicality (near 0: it looks like none of the classes)
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

RESAMPLING = {name: Image.Resampling[name.upper()] for name in ("bicubic", "bilinear", "nearest")}


def pixels(path: Path, form: dict) -> np.ndarray:
    """Return an image as the network takes it, uint8 (C, S, S): short side resized, centre cropped."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("L" if form["n_channels"] == 1 else "RGB")
    scale = form["resize_short_side"] / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], RESAMPLING[form["resampling"]])
    left, top = ((side - form["crop"]) // 2 for side in image.size)
    image = image.crop((left, top, left + form["crop"], top + form["crop"]))
    return np.asarray(image).reshape(form["crop"], form["crop"], form["n_channels"]).transpose(2, 0, 1)


def main(folder: Path, images: list[Path]) -> None:
    form = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    for path in images:
        probabilities, typicality = session.run(None, {"pixels": pixels(path, form)[None]})
        best = probabilities[0].argmax()
        print(path, form["class_names"][best], f"{probabilities[0, best]:.4f}", f"{typicality[0]:.3f}", sep="\t")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
