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
    """Return an image as the network takes it, uint8 (C, S, S)."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith(("I", "F")):
        sys.exit(f"{path}: convert images of more than 8 bits first")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image, size = image.convert("RGB"), form["size"]
    if form["resize_short_side"] is None:
        image = ImageOps.fit(image, (size, size), RESAMPLING[form["resampling"]])
    else:
        short = min(image.size)
        image = image.resize([int(form["resize_short_side"] * side / short) for side in image.size],
                             RESAMPLING[form["resampling"]])  # fmt: skip
        left, top = (round((side - size) / 2) for side in image.size)
        image = image.crop((left, top, left + size, top + size))
    image = image.convert("L") if form["n_channels"] == 1 else image
    return np.asarray(image).reshape(size, size, form["n_channels"]).transpose(2, 0, 1)


def main(folder: Path, images: list[Path]) -> None:
    form = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    for path in images:
        probabilities, typicality = session.run(None, {"pixels": pixels(path, form)[None]})
        best = probabilities[0].argmax()
        print(path, form["class_names"][best], f"{probabilities[0, best]:.4f}", f"{typicality[0]:.3f}", sep="\t")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
