"""Turn results files into tables (Markdown, CSV, LaTeX), figures and one self-contained report.html.

Reads   every *.json below --results. Optional: images.h5 and split.json (--data), a feature file (--features), the
        means learned by train_scgm.py (--mixture), the networks of train_gan.py (--gan).
Writes  the folder --out: report.html, tables/, figures/, config.json. Updates it if the results or settings changed.

Full    python parse_results.py --results outputs/glyphs/results --out outputs/glyphs/report \\
            --data outputs/glyphs/data --features outputs/glyphs/features/test.h5
A GAN   python parse_results.py --out outputs/emnist_fs/seed0/sheets --data outputs/emnist_fs/seed0/data \\
            --gan outputs/emnist_fs/seed0/gan/k5_trial1
GANs    python parse_results.py --results outputs/emnist_fs/results --out outputs/emnist_fs/report \\
            --data outputs/emnist_fs/seed0/data --gan outputs/emnist_fs/seed0/gan/k5_trial1
SCGM    python parse_results.py --results outputs/cifar100/results --out outputs/cifar100/report \\
            --data outputs/cifar100/data --features outputs/cifar100/scgm_g/features/test.h5 \\
            --mixture outputs/cifar100/scgm_g/extractor
Papers  python parse_results.py --results outputs/imagenet/results --out outputs/imagenet/report --published
Tiny    python parse_results.py --results outputs/tiny/results --out outputs/tiny/report
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lowshot import report
from lowshot.core.artifacts import Recipe, read_recipe, recipe
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.files import write_json
from lowshot.core.publishing import is_done, writing
from lowshot.core.settings import NonNegativeFloat, RunOnly
from lowshot.data.datasets.images import read_images
from lowshot.data.features import read_features
from lowshot.data.protocol import read_split
from lowshot.evaluation.settings import Metric


@dataclass
class Config:
    out: Path
    """Folder to write the report to."""
    results: Path | None = None
    """Folder with results files (*.json at any depth). Default: none, a report of pictures only (--gan, --mixture)."""
    data: Path | None = None
    """Folder of preprocessing.py. Adds a sheet of sample images."""
    features: Path | None = None
    """Feature file of the test images. Adds a map of the features (requires --data)."""
    mixture: Path | None = None
    """Folder of train_scgm.py. Adds the sizes of its subclasses and, if --features holds its embeddings, a map of
    embeddings and means."""
    gan: Path | None = None
    """Folder of train_gan.py. Adds sheets of generated images and training curves (requires --data)."""
    metric: Metric = "top1_novel"
    """Metric of the table that is printed and shown first."""
    reference: str | None = None
    """System, method or extractor to compare with in paired differences; the simplest system by default. Extractors
    NAME_seed0, NAME_seed1, ... are repeated trainings: they are compared with the reference of the same seed, and
    tables over trainings are added."""
    published: bool = False
    """Put the published figures of the data sets (lowshot/report/published.csv) beside ours, where network, method,
    setting, metric and n are equal, and say of the others in what they differ."""
    tolerance: NonNegativeFloat = 1.0
    """Percentage points that our results may differ from published figures by, besides their interval."""
    overwrite: RunOnly[bool] = False
    """Make the report again even if nothing changed."""


def main(config: Config) -> Path:
    """Write the report and return the path of report.html."""
    page_path = config.out / "report.html"
    files = _read_results(config)
    known = [read(files) for read in (report.results.trials, report.results.episodes, report.results.scores)]
    report.results.check_reference(config.reference, known)
    pictures = _read_pictures(config, {content["protocol"]["split_digest"] for content in files.values()})

    made_from = recipe("parse_results", config, _inputs(config, files))
    if not is_done(config.out, made_from, config.overwrite or _is_stale(config.out, made_from)):
        with writing(config.out, made_from) as partial:
            partial.mkdir()
            tolerance = config.tolerance if config.published else None
            report.write_report(partial, _name(config), files, config.metric, config.reference, pictures, tolerance)
            write_json(partial / "config.json", made_from)
    print((config.out / "tables" / "main.md").read_text(encoding="utf-8"))
    print(f"report: {page_path}")
    return page_path


def _name(config: Config) -> str:
    """Return what the page calls itself: the folder of the results (or of the report), and the one around it."""
    return "/".join((config.results or config.out).resolve().parts[-2:])


def _read_results(config: Config) -> dict[str, dict]:
    if config.results is None:
        if config.gan is None and config.mixture is None:
            raise InputError("--results: needed for a report, or --gan (or --mixture) for one of pictures only")
        return {}
    if config.out.resolve() in [config.results.resolve(), *config.results.resolve().parents]:
        raise InputError(f"--out {config.out}: the report would replace the results. Choose another folder")
    return report.read_files(config.results, config.out)


def _read_pictures(config: Config, split_digests: set[str]) -> report.Pictures:
    means = report.read_means(config.mixture) if config.mixture else None
    if config.data is None:
        for name in ("features", "gan"):
            if getattr(config, name) is not None:
                raise InputError(f"--{name} {getattr(config, name)}: requires --data, which names the classes")
        return report.Pictures(mixture=means)
    path = config.data / "split.json"
    split = read_split(path)
    if config.results is not None and not {split.digest, split.whole().digest} & split_digests:
        raise InputError(
            f"{path}: no file in {config.results} was made with this split ({split.digest[:12]}). "
            "Give --data the folder that the results were made from"
        )
    features = read_features(config.features, split.n_classes) if config.features else None
    if means and features:
        report.check_fits(means, features, split)
    images = read_images(config.data / "images.h5")
    gan = report.read_gan(config.gan, config.data, images, split) if config.gan else None
    return report.Pictures(split, images, features, means, gan)


def _inputs(config: Config, files: dict[str, dict]) -> dict[str, Path | None]:
    data = {name: config.data / name if config.data else None for name in ("split.json", "images.h5")}
    published = {"published": report.published.FIGURES} if config.published else {}
    pictured = {"features": config.features, "mixture": config.mixture, "gan": config.gan}
    return {f"results/{name}": config.results / name for name in files} | data | pictured | published


def _is_stale(out: Path, made_from: Recipe) -> bool:
    """Whether `out` is a report of different results or settings. It can be replaced: it is made from results only."""
    stored = read_recipe(out) if out.is_dir() else None
    stale = stored is not None and stored["stage"] == made_from["stage"] and made_from.difference(stored) is not None
    if stale:
        print(f"parse_results: {out} was made from different results or settings; making it again")
    return stale


if __name__ == "__main__":
    run(main, Config, __doc__)
