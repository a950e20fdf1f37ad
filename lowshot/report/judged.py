"""What accuracies are over: numbers of classes and test images, and the level of chance."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from lowshot.evaluation.metrics import chance
from lowshot.report.results import COLUMNS, about, system_names

# With fewer classes, top-5 accuracy is not shown.
_TOP5_CLASSES = 10
_NUMBERS = ["novel_classes", "base_classes", "novel_images", "base_images"]


def judged_files(files: dict[str, dict]) -> pd.DataFrame:
    """Return the numbers of classes and test images of each file that records its classes.

    Columns: those of `results.trials` up to system, kind (trials or episodes), size (both numbers of classes in words),
    novel_classes, base_classes, novel_images, base_images and file.
    """
    names, lines = system_names(files), []
    for file, content in files.items():
        if "classes" in content:
            images = content["classes"].groupby("group")["n_images"]
            counts = {f"{group}_classes": n for group, n in images.size().items()}
            counts |= {f"{group}_images": n for group, n in images.sum().items()}
            size = "{novel_classes} novel and {base_classes} base classes".format(**dict.fromkeys(_NUMBERS, 0) | counts)
            of_file = {"size": size, "kind": "trials" if "trials" in content else "episodes"}
            of_file |= {"system": names[file], "file": file}
            lines.append(dict.fromkeys(_NUMBERS, 0) | counts | about(content) | of_file)
    return pd.DataFrame(lines, columns=[*COLUMNS, "kind", "size", *_NUMBERS, "file"])


@dataclass(frozen=True)
class Judged:
    """The numbers of classes and of test images that occur in the results of one protocol. Older files have none."""

    novel_classes: tuple[int, ...] = ()
    base_classes: tuple[int, ...] = ()
    novel_images: tuple[int, ...] = ()
    base_images: tuple[int, ...] = ()
    images: str = "test images"
    """What the images are: those of episodes are shots and queries."""

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "Judged":
        """Summarise rows of `judged_files`."""
        images = "test images" if (frame["kind"] == "trials").any() else "images"
        return cls(*(tuple(sorted(frame[name].unique().tolist())) for name in _NUMBERS), images)

    def of_groups(self, what: str) -> str:
        """Return "36 novel, 64 base" for the numbers of classes or images, or an empty text if they are not known."""
        numbers = {group: getattr(self, f"{group}_{what}") for group in ("novel", "base")}
        return ", ".join(f"{_range(known)} {group}" for group, known in numbers.items() if any(known))

    @property
    def text(self) -> str:
        """Classes and test images in words, or an empty text if they are not known."""
        classes, images = self.of_groups("classes"), self.of_groups("images")
        return f"classes: {classes}; {self.images}: {images}" if classes else ""

    def chance(self, metric: str) -> float | None:
        """Return the level of chance of a metric, or None if it is unknown or differs between results."""
        if len(self.novel_classes) != 1 or len(self.base_classes) != 1:
            return None
        return chance(metric, self.base_classes[0], self.novel_classes[0])

    def shown(self, metrics: Iterable[str]) -> list[str]:
        """Return those of `metrics` to show: all but top-5 among fewer than ten classes."""
        return [
            metric for metric in metrics if not metric.startswith("top5") or self._n_classes(metric) >= _TOP5_CLASSES
        ]

    def _n_classes(self, metric: str) -> int:
        """Return the number of classes that images are classified among; many if it is not known."""
        novel, base = (min(known, default=_TOP5_CLASSES) for known in (self.novel_classes, self.base_classes))
        among = {"novel_among_novel": novel, "base_among_base": base}
        return among.get(metric.partition("_")[2], novel + base)


NOT_RECORDED = Judged()


def _range(numbers: tuple[int, ...]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
