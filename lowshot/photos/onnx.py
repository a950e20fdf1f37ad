"""Export a classifier to ONNX, and check that it answers as before. Needs onnx, onnxscript and onnxruntime."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowshot.classifiers.heads import Head
from lowshot.core.errors import InputError
from lowshot.core.progress import Progress
from lowshot.data.datasets.images import Images
from lowshot.photos.classifier import PhotoClassifier
from lowshot.representation.loading import ImageLoader, in_batches, to_unit
from lowshot.representation.timm_models import is_timm

_MISSING = "ONNX: needs packages that are missing ({}). pip install onnx onnxscript onnxruntime"
_LARGEST_DIFFERENCE = 1e-4  # of a probability
_BATCH_SIZE = 32


class _Network(nn.Module):
    """From pixels to probabilities and typicality."""

    def __init__(self, classifier: PhotoClassifier) -> None:
        super().__init__()
        self.extractor, self.head, self.invert = classifier.extractor, classifier.head, classifier.invert
        self.power, self.normalise = classifier.transform.power, classifier.transform.normalise
        self.temperature = classifier.temperature or 1.0
        self.register_buffer("base_mean", classifier.base_mean)
        self.register_buffer("means", classifier.typicality.means)
        self.register_buffer("known", classifier.typicality.known)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        unit = pixels.float() / 255
        features = self._transformed(self.extractor.features(1 - unit if self.invert else unit))
        similarity = (F.normalize(features, dim=-1) @ self.means.mT).amax(-1, keepdim=True)
        n_lower = (self.known <= similarity).float().sum(-1)
        typicality = (1 + n_lower) / (1 + len(self.known)) + (0.0 if len(self.known) else torch.nan)
        return (self.head(features) / self.temperature).softmax(-1), typicality

    def _transformed(self, features: Tensor) -> Tensor:
        if self.power:
            powered = (features.abs() + 1e-6) ** self.power
            features = F.normalize(torch.where(features < 0, -powered, powered), dim=-1)
        if self.base_mean is not None:
            features = features - self.base_mean
        return F.normalize(features, dim=-1) if self.normalise else features


def export_onnx(classifier: PhotoClassifier, path: Path) -> None:
    """Write a network from `pixels` uint8 (N, C, S, S) to `probabilities` float32 (N, n_way) and `typicality` (N,).

    Raises InputError for a method of the user's own, for an extractor that cannot be exported, or if packages are
    missing.
    """
    if not isinstance(classifier.head, Head):
        raise InputError(f"{path}: a method of your own cannot be exported. Use one of lowshot's")
    config = classifier.extractor.config
    if config.crop_mode != "center":
        raise InputError(f"{path}: {config.name} prepares images in a way ({config.crop_mode}) that is not exported")
    example = torch.zeros(2, config.n_channels, config.image_size, config.image_size, dtype=torch.uint8)
    try:
        program = torch.onnx.export(
            _Network(classifier).eval(), (example,), dynamo=True, verbose=False, input_names=["pixels"],
            output_names=["probabilities", "typicality"], dynamic_shapes=({0: torch.export.Dim("n_images")},),
        )  # fmt: skip
    except ImportError as error:
        raise InputError(_MISSING.format(error.name)) from None
    except Exception as error:  # torch raises many kinds of errors for operations that ONNX does not have
        raise InputError(f"{path}: {config.name} cannot be exported ({str(error).splitlines()[0][:200]})") from None
    program.save(str(path))


def check_onnx(classifier: PhotoClassifier, path: Path, images: list[Path]) -> dict[str, Any]:
    """Compare the answers of an exported classifier to image files with its own.

    Returns the number of images, of those with the same most likely class, and the largest difference of a probability.
    Raises InputError if it is above 1e-4.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(_MISSING.format(error.name)) from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = np.array([str(file.absolute()) for file in images], object)
    files = Images(np.zeros(len(names), np.int64), np.zeros(len(names), bool), paths=names, root=Path("/"))
    extractor, largest, n_same = classifier.extractor, 0.0, 0
    parts = in_batches(np.arange(len(names)), _BATCH_SIZE)
    for pixels in Progress(ImageLoader(files, extractor.config).whole(parts), "check", len(parts), unit="batch"):
        with torch.inference_mode():
            unit = to_unit(255 - pixels if classifier.invert else pixels, torch.device("cpu"))
            features = extractor.features(unit).numpy()
        own, typical = classifier.predict_proba(features), classifier.typicality_of(features)
        probabilities, typicality = session.run(None, {"pixels": pixels.numpy()})
        largest = max(largest, float(np.abs(probabilities - own).max()))
        n_same += int((probabilities.argmax(1) == own.argmax(1)).sum())
        # Rounding may move an image past one of the known photos.
        if not np.allclose(typicality, typical, atol=1.5 * classifier.typicality.smallest, equal_nan=True):
            raise InputError(f"{path}: the typicality differs from that of the classifier. Not exported")
    if largest > _LARGEST_DIFFERENCE:
        raise InputError(f"{path}: probabilities differ by {largest:.1e} from those of the classifier. Not exported")
    return {"n_images": len(images), "n_same_class": n_same, "largest_difference": largest}


def description_of(classifier: PhotoClassifier) -> dict[str, Any]:
    """Return what a program needs to know to make `pixels` of an image and to read the probabilities."""
    config = classifier.extractor.config
    whole = config.crop_pct == 1 and not is_timm(config.name)  # the extractor learned from stored squares
    rounded = math.floor if is_timm(config.name) else round
    resampling = config.interpolation if is_timm(config.name) else config.resampling if whole else "bilinear"
    return {
        "schema": "lowshot-onnx-1",
        "class_names": classifier.class_names,
        "n_channels": config.n_channels,
        "size": config.image_size,
        "resize_short_side": None if whole else rounded(config.image_size / config.crop_pct),
        "resampling": "bilinear" if resampling == "antialiased" else resampling,
    }
