"""The commands of README and docs work as printed: with tiny settings, one page after the other in a folder of its own.

A script runs with a python that only records its commands; these then run here. Data sets that would be downloaded are
replaced by the embedded one. A block below a comment such as `<!-- needs: a GPU -->` is only parsed.
"""

import dataclasses
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, restored
from PIL import Image
from test_scripts import parsed, recording

from lowshot.core.parts import parts_of
from lowshot.data.datasets.settings import CifarFewShot, FeatureFile, Folder, Glyphs, OmniglotVinyals, Shots, part_of
from lowshot.data.features import read_features, write_features
from lowshot.representation.settings import TimmModel

# RESULTS and LOG have commands in their text; extending.md has a test of its own.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [p for p in sorted((ROOT / "docs").rglob("*.md")) if p.name not in ("RESULTS.md", "LOG.md", "extending.md")]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
_FENCE = re.compile(r"^(?:<!-- needs: ([^\n]+) -->\n)?```(\w*)\n(.*?)^```$", re.M | re.S)
_ASSIGNMENT = re.compile(r"[A-Z_]+=")
# Commands of the shell, and scripts that run the tests: there is nothing to try.
_NOT_TRIED = ("source", "zensical", "bash scripts/test.sh", "bash scripts/environment.sh",
              "bash scripts/photos/run_all.sh", "python examples/classify_onnx.py")  # fmt: skip
N_IMAGES = 24  # of a class
# What is small in a test, by the names of settings.
SMALL = {"epochs": 1, "n_steps": 10, "steps": 4, "score_every": 2, "n_episodes": 3, "width": 0.125, "max_epochs": 2,
         "n_clusters": 2, "n_way": 4, "clustering": 12, "rows_per_class": 20, "n_subclasses": 24, "n_cycles": 1,
         "warmup_epochs": 0, "devices": 1, "accelerator": "cpu", "max_per_label": 8, "max_iter": 20,
         "batch_size": 32}  # fmt: skip


class Block(NamedTuple):
    """A block of a page: what it needs that a test has not, its language, its text."""

    needs: str
    language: str
    text: str


def blocks(name: str) -> list[Block]:
    return [Block(*found) for found in _FENCE.findall((ROOT / name).read_text(encoding="utf-8"))]


def commands(block: Block) -> list[list[str]]:
    """Words of each command; assignments come first."""
    lines = block.text.replace("\\\n", " ").splitlines() if block.language == "bash" else []
    words = [shlex.split(line, comments=True) for line in lines]
    return [one for one in words if one]


def commands_of(name: str) -> list[list[str]]:
    return [words for block in blocks(name) for words in commands(block)]


def shrunk(settings: object) -> object:
    """The same settings, with numbers that a test can afford."""
    changes = {}
    if getattr(settings, "tasks", None) is not None:  # of given tasks, nothing can be chosen
        return settings
    for name in parts_of(type(settings)):
        value = getattr(settings, name)
        if isinstance(value, TimmModel):
            changes[name] = dataclasses.replace(value, image_size=32)  # no test decodes photos for 224 px
        elif name == "progressive_resizing":
            changes[name] = None  # the embedded images have other sizes
        elif dataclasses.is_dataclass(value):
            changes[name] = shrunk(value)
        elif name in SMALL and value is not None:
            changes[name] = min(value, SMALL[name]) if isinstance(value, int | float) else SMALL[name]
    if "n_per_class" in parts_of(type(settings)):
        changes["n_per_class"] = N_IMAGES  # scores compare as many samples as there are images
    return dataclasses.replace(settings, **changes)


def small_data(dataset: object) -> Glyphs:
    """The embedded data set with as many shots, in place of one that is large or has to be downloaded."""
    shots = min(20, part_of(dataset, Shots).max_shots)
    one_pool = isinstance(dataset, CifarFewShot | OmniglotVinyals)  # shots and queries are drawn from it
    return Glyphs(n_trials=2, max_shots=shots, max_per_class=2 * N_IMAGES if one_pool else N_IMAGES)


def run_small(words: list[str], folder: Path) -> None:
    """Run a stage in `folder`, and see that it writes its output."""
    with restored():
        os.chdir(folder)
        config = shrunk(parsed(words))
        if words[0] == "preprocessing.py" and not isinstance(config.dataset, Folder | FeatureFile):
            config.dataset = small_data(config.dataset)
        stage = importlib.import_module(words[0].removesuffix(".py"))
        several = getattr(stage, "COMMANDS", None)
        (several[words[1]][0] if several else stage.main)(config)
        assert not hasattr(config, "out") or config.out.exists() or getattr(config, "dry_run", False)


def check_block(block: Block, folder: Path, tmp_path: Path, variables: dict[str, str], run) -> None:
    for words in commands(block):
        given = dict(word.split("=", 1) for word in words if _ASSIGNMENT.match(word))
        rest = [Template(word).safe_substitute(variables) for word in words if not _ASSIGNMENT.match(word)]
        if not rest:
            variables |= given
        elif " ".join(rest).startswith(_NOT_TRIED):
            assert rest[0] != "bash" or (ROOT / rest[1]).exists()
        elif rest[0] == "bash":
            for name in {"DATA_ROOT", "WEIGHTS", "YFCC_ROOT"} & given.keys():
                given[name] = str(tmp_path)  # something that exists
            done, recorded = recording(tmp_path, rest[1], *rest[2:], **given)
            assert done.returncode == 0, done.stderr
            for command in trained_again(recorded):
                run(command, folder)
        else:
            assert rest[0] == "python", rest
            if "--help" not in rest and rest[-1] != "--print_config":
                run(rest[1:], folder)


def trained_again(recorded: list[list[str]]) -> Iterator[list[str]]:
    """Train what a recipe takes from examples/extractors/, where nothing fits the embedded data set."""
    known = {}
    for words in recorded:
        for released in [word for word in words if word.startswith("examples/extractors/")]:
            if released not in known:
                known[released] = f"trained_again/{Path(released).name}"
                (config,) = (ROOT / "configs").glob(f"*/train_extractor-{Path(released).name}.yaml")
                yield [
                    "train_extractor.py", "--config", str(config), "--data", words[words.index("--data") + 1],
                    "--out", known[released],
                ]  # fmt: skip
        yield [known.get(word, word) for word in words]


def parse_only(words: list[str], folder: Path) -> None:
    with restored():
        os.chdir(folder)
        parsed(words)


@pytest.fixture
def folder(tmp_path):
    """A folder to stand in, with the configurations of the repository."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def features(folder, dim=16, name=""):
    """Feature files, split and draws of ten base and ten novel classes."""
    from lowshot.core.files import write_json
    from lowshot.data.protocol import draws_to_json, make_draws, make_split

    rng, made_from = np.random.default_rng(0), {"stage": "save_features", "config": {}, "inputs": {"extractor": "x"}}
    centres, names = rng.standard_normal((20, dim)), [f"class{c}" for c in range(20)]
    (folder / name).mkdir(exist_ok=True)
    for part, n_rows in (("test", 24), ("train", 24)):
        labels = np.repeat(np.arange(20), n_rows)
        feats = np.abs(centres[labels] + rng.standard_normal((len(labels), dim))).astype(np.float32)
        write_features(folder / name / f"{part}.h5", feats, labels, made_from)
    split = make_split("glyphs", names, [], [None] * 20, 0, None, 0.5, 0, "classes")
    write_json(folder / "split.json", split.to_json())
    write_json(folder / "whole.json", split.whole().to_json())
    write_json(folder / "draws.json", draws_to_json(make_draws(labels, names, 2, 20, 0), split, 0))


def write_background(folder):
    """Features without a header, and their lists as published: two files without one."""
    np.random.default_rng(1).random((300, 256), np.float32).tofile(folder / "background.raw")
    words = "build_graph.py background --features background.raw --dim 256 --k 32 --out lists.h5"
    run_small(words.split(), folder)
    with h5py.File(folder / "lists.h5") as lists:
        lists["ids"][:].tofile(folder / "background.int32")
        lists["similarities"][:].tofile(folder / "background.float32")


def write_photos(folder, n_images):
    rng = np.random.default_rng(0)
    for c in range(10):
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(n_images):
            pixels = rng.integers(25 * c, 25 * c + 30, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"class{c}" / f"{i}.png")


def write_task_list(folder):
    """Pictures, and a list of one task of two classes."""
    write_photos(folder, 2)
    lines = [f"1,{part},kind {c},class{c}/{i}.png" for c in (0, 9) for i, part in enumerate(("support", "query"))]
    (folder / "tasks.csv").write_text("\n".join(["task,part,class,image", *lines]) + "\n")


@pytest.fixture
def inputs(folder, extractor, data):
    """What the pages speak of as something the reader has."""

    def make(page):
        features(folder, name="features")
        features(folder, dim=256)
        for name, n_images in (("photos", 28), ("new_photos", 1), ("test_photos", 3), ("more_photos", 2)):
            write_photos(folder / name, n_images)
        if page in ("docs/photos.md", "docs/features.md"):
            (folder / "outputs/glyphs/conv4_sgm").mkdir(parents=True)
            (folder / "outputs/glyphs/conv4_sgm/extractor").symlink_to(extractor)
            (folder / "examples").symlink_to(ROOT / "examples")
        if page == "docs/protocol.md":
            (folder / "extractor").symlink_to(extractor)
            write_task_list(folder / "pictures")
        if page == "docs/reliability.md":
            (folder / "outputs").mkdir()
        if page == "docs/recipes/diffusion.md":
            write_background(folder)
        if page == "docs/pretrained.md":
            torch.save(timm.create_model("resnet50").state_dict(), folder / "resnet50.pth")
        if page == "docs/classifiers.md":
            (folder / "extractor").symlink_to(extractor)
            (folder / "data").symlink_to(data)
            mining = "make_quadruplet.py --features features/train.h5 --split split.json --n_clusters 2 --out q.h5"
            run_small(mining.split(), folder)
            training = "train_analogy_generator.py --quadruplets q.h5 --n_steps 10 --out generator"
            run_small(training.split(), folder)
        for block in blocks(page):
            if block.language in ("yaml", "python") and (named := re.match(r"# (\w+\.\w+)\n", block.text)):
                (folder / named[1]).write_text(block.text)

    return make


def test_every_block_of_commands_is_known():
    """A block without a language cannot be told from output."""
    for name in NAMES:
        assert all(block.language or "python" not in block.text for block in blocks(name)), name
        fences = (ROOT / name).read_text(encoding="utf-8").count("```bash")
        assert fences == sum(block.language == "bash" for block in blocks(name)), name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if "recipes/" in name or name == "docs/pretrained.md" else ())
        for name in NAMES
        if commands_of(name)
    ],
)
def test_commands(name, folder, tmp_path, inputs):
    inputs(name)
    variables: dict[str, str] = {}
    for block in blocks(name):
        check_block(block, folder, tmp_path, variables, parse_only if block.needs else run_small)


def test_python_of_the_features_page(folder, inputs, monkeypatch):
    inputs("docs/features.md")
    monkeypatch.chdir(folder)
    files, new_files = sorted(Path("photos").rglob("*.png")), sorted(Path("new_photos").rglob("*.png"))
    stored = read_features(folder / "features" / "train.h5")
    variables = {
        "files": files,
        "labels": [file.parent.name for file in files],
        "new_files": new_files,
        "base_features": stored.feats,
        "base_labels": stored.labels,
        "novel_features": stored.feats + 1,
        "novel_labels": stored.labels + 100,
    }
    benchmark = "low_shot.py --train features/train.h5 --test features/test.h5 --split split.json --draws draws.json"
    run_small([*benchmark.split(), "--shots", "1", "--out", "outputs/glyphs/results/r.json"], folder)
    writing, using = (block.text for block in blocks("docs/features.md") if block.language == "python")
    exec(writing, {"features": stored.feats, "labels": stored.labels})
    assert (read_features(folder / "features" / "train.h5").feats == stored.feats).all()
    exec(using.replace("predict(features)", "predict(base_features)"), variables)


def test_readme_is_short():
    prose = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert sum(len(line.split()) for line in prose.splitlines() if not line.startswith("|")) <= 1200
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))],
                         ids=lambda page: str(page.relative_to(ROOT)))  # fmt: skip
def test_links(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_part_of_the_site(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    zensical = Path(sys.executable).with_name("zensical")
    done = subprocess.run([zensical, "build", "--strict"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    named = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
