"""A small run of every stage and sub-command, for the tests of faults."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Case(NamedTuple):
    """A command, whose last word is its output. `beside` are outputs that it writes beside that."""

    name: str
    words: list
    beside: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        return self.words[-1]

    @property
    def overwriting(self) -> list:
        """The command with --overwrite."""
        return [*self.words[:-2], "--overwrite", *self.words[-2:]]

    def into(self, folder: Path) -> "Case":
        """Return the same command with its outputs in another folder."""
        old = self.out.parent
        words = [folder / one.relative_to(old) if isinstance(one, Path) and one in self._outputs() else one
                 for one in self.words]  # fmt: skip
        return Case(self.name, words, self.beside)

    def _outputs(self) -> set[Path]:
        return {self.out, *(self.out.parent / name for name in self.beside)}


def make_images(root: Path) -> Path:
    """Write twelve classes in three superclasses, with ten small images each."""
    rng = np.random.default_rng(0)
    for c in range(12):
        folder = root / f"super{c // 4}" / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(10):
            pixels = (rng.random((16, 16, 3)) * 80 + 14 * c).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def cases(root: Path, images: Path) -> list[Case]:
    """The commands, in an order in which each finds its inputs."""
    data, first, results = root / "data", root / "first", root / "results"
    split, train, test = data / "split.json", first / "features" / "train.h5", first / "features" / "test.h5"
    extractor, draws = first / "extractor", data / "draws.json"
    inputs = ["--train", train, "--test", test, "--split", split, "--draws", draws, "--shots", 1, 3]
    small = ["--data", data, "--accelerator", "cpu", "--batch_size", 8]
    network = ["--model", "Conv4", "--model.width", 0.125, "--epochs", 2]
    gan = [*small, "--extractor", extractor, "--steps", 2, "--score_every", 1]
    grid = root / "grid.yaml"
    grid.parent.mkdir(parents=True, exist_ok=True)
    grid.write_text("classifier.metric: [euclidean, cosine]\n")
    steps = root / "steps.yaml"
    steps.write_text("n_steps: [0, 1]\n")
    case = Case
    return [
        case("preprocessing", ["preprocessing.py", "--dataset", "folder", "--root", images, "--dataset.image_size", 16,
             "--dataset.test_per_class", 4, "--dataset.max_shots", 3, "--dataset.n_trials", 2, "--out", data]),
        case("train_extractor", ["train_extractor.py", *small, *network, "--out", extractor]),
        case("train_scgm", ["train_scgm.py", *small, *network, "--method", "scgm_g", "--method.n_subclasses", 6,
             "--schedule.n_cycles", 1, "--out", root / "scgm"]),
        case("join_extractors", ["join_extractors.py", "--extractors", extractor, extractor, "--out", root / "joined"]),
        case("save_features", ["save_features.py", "--extractor", extractor, *small, "--out", first / "features"]),
        case("make_quadruplet", ["make_quadruplet.py", "--features", train, "--split", split, "--n_clusters", 2,
             "--out", first / "quadruplets.h5"]),
        case("train_analogy_generator", ["train_analogy_generator.py", "--quadruplets", first / "quadruplets.h5",
             "--n_steps", 20, "--out", first / "generator"]),
        case("build_graph background", ["build_graph.py", "background", "--features", train, "--k", 4,
             "--out", root / "background.h5"]),
        *[case(f"build_graph complete {setup}", ["build_graph.py", "complete", *inputs[:6], "--setup", setup, "--k", 4,
               "--unlabelled", "novel", "--out", root / f"graph-{setup}.h5"]) for setup in ("validation", "test")],
        case("low_shot --scores", ["low_shot.py", *inputs, "--classifier", "nearest_mean",
             "--scores", results / "scores.h5", "--out", results / "plain.json"], ("scores.h5",)),
        case("low_shot --select", ["low_shot.py", *inputs, "--classifier", "nearest_mean", "--select", grid,
             "--out", results / "chosen.json"], ("chosen.selection.yaml",)),
        case("low_shot --add", ["low_shot.py", *inputs, "--classifier", "linear_sgd", "--classifier.n_steps", 20,
             "--classifier.batch_size", 20, "--add.generator", first / "generator",
             "--out", results / "generated.json"]),
        case("diffusion --label", ["diffusion.py", *inputs, "--graph", root / "graph-test.h5", "--edges.k", 4,
             "--label", results / "labelled.h5", "--out", results / "diffusion.json"], ("labelled.h5",)),
        case("diffusion --select", ["diffusion.py", *inputs, "--graph", f"{root}/graph-{{setup}}.h5", "--edges.k", 4,
             "--select", steps, "--out", results / "steps.json"], ("steps.selection.yaml",)),
        case("matching_network train", ["matching_network.py", "train", "--features", train, "--split", split,
             "--n_episodes", 4, "--n_way", 2, "--accelerator", "cpu", "--out", root / "matching"]),
        case("matching_network test", ["matching_network.py", "test", "--model", root / "matching", *inputs,
             "--rows_per_class", 2, "--out", results / "matching.json"]),
        case("episodes", ["episodes.py", "--features", test, "--split", split, "--n_way", 2, "--n_shots", 1,
             "--n_queries", 2, "--n_episodes", 4, "--out", results / "episodes.json"]),
        case("train_gan pretrain", ["train_gan.py", "pretrain", *gan, "--ngf", 16, "--ndf", 2, "--z_dim", 4,
             "--out", root / "gan"]),
        case("train_gan finetune", ["train_gan.py", "finetune", *gan, "--gan", root / "gan", "--k", 3,
             "--out", root / "tuned_gan"]),
        case("sample_gan", ["sample_gan.py", "--gan", root / "tuned_gan", "--split", split, "--n_per_class", 8,
             "--out", root / "samples" / "samples.h5"]),
        case("save_features of samples", ["save_features.py", "--extractor", extractor, "--data",
             root / "samples" / "samples.h5", "--accelerator", "cpu", "--out", root / "sampled"]),
        case("score_samples", ["score_samples.py", *inputs[:8], "--samples", root / "sampled" / "train.h5",
             "--reference", "test", "--n_images", 4, "--n_neighbours", 1, "--out", results / "scores.json"]),
        case("finetune_extractor", ["finetune_extractor.py", *small, *network, "--weights", extractor / "model.pt",
             "--shots", 3, "--out", root / "tuned"]),
        case("predict fit", ["predict.py", "fit", "--extractor", extractor, "--images", images,
             "--out", root / "classifier"]),
        case("predict classify", ["predict.py", "classify", "--classifier", root / "classifier", "--images", images,
             "--out", root / "p" / "predictions.csv"], ("predictions.csv.json",)),
        case("parse_results", ["parse_results.py", "--results", results, "--out", root / "report"]),
    ]  # fmt: skip
