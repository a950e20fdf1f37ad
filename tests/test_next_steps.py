"""Each stage ends with the command that takes its output. That command must be one that its stage accepts."""

import importlib
import shlex
from pathlib import Path

import pytest
from test_scripts import parsed

from lowshot.core.files import write_json
from lowshot.data.protocol import make_split

INPUTS = "--train f/train.h5 --test f/test.h5 --split d/split.json"
# A command of each stage, and the stage of the next command.
STEPS = {
    "preprocessing.py --dataset glyphs --out d": "train_extractor.py",
    "train_extractor.py --data d --out x/extractor": "save_features.py",
    "finetune_extractor.py --data d --weights m.pt --shots 5 --out x/extractor": "save_features.py",
    "train_scgm.py --data d --out x/extractor": "save_features.py",
    "save_features.py --extractor x/extractor --data d --out f": "low_shot.py",
    "save_features.py --extractor x/extractor --data d --out pool": "episodes.py",
    "make_quadruplet.py --features f/train.h5 --split d/split.json --out q.h5": "train_analogy_generator.py",
    "train_analogy_generator.py --quadruplets q.h5 --out generator": "low_shot.py",
    "train_gan.py pretrain --data d --extractor x --out gan": "train_gan.py",
    "train_gan.py pretrain --data d --timm resnet18 --out gan": "train_gan.py",
    "train_gan.py finetune --data d --extractor x --gan gan --k 5 --out tuned": "sample_gan.py",
    "sample_gan.py --gan gan --split d/split.json --n_per_class 9 --out s.h5": "save_features.py",
    f"score_samples.py --samples s.h5 {INPUTS} --draws d.json --out results/s.json": "parse_results.py",
    f"low_shot.py {INPUTS} --draws d.json --out results/r.json": "parse_results.py",
    "build_graph.py background --features b.h5 --out b-graph.h5": "build_graph.py",
    f"build_graph.py complete {INPUTS} --setup validation --out g.h5": "diffusion.py",
    f"diffusion.py {INPUTS} --draws d.json --graph g.h5 --out results/r.json": "parse_results.py",
    "matching_network.py train --features f/train.h5 --split d/split.json --out matching": "matching_network.py",
    f"matching_network.py test --model matching {INPUTS} --draws d.json --out results/r.json": "parse_results.py",
    "episodes.py --features f/train.h5 --split d/split.json --out results/e.json": "parse_results.py",
    "predict.py fit --extractor x --images photos --out classifier": "predict.py",
}
LAST = {"predict.py classify", "parse_results.py"}  # what they write is for people


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the few outputs that decide what comes next, whose name has a blank."""
    folder = tmp_path / "my work"
    for name in ("d", "f", "pool"):
        (folder / name).mkdir(parents=True)
    for name in ("d/split.json", "d/draws.json", "f/train.h5", "f/test.h5", "pool/train.h5"):
        write_json(folder / name, {})
    monkeypatch.chdir(folder)
    return folder


def next_of(words):
    stage = importlib.import_module(words[0].removesuffix(".py"))
    several = getattr(stage, "COMMANDS", None)
    return several[words[1]][2] if several else stage.next_step


@pytest.mark.parametrize("command", STEPS)
def test_the_next_command_is_accepted(folder, command):
    words = [str(folder / one) if one.startswith(("d/", "f/")) or one == "d" else one for one in command.split()]
    proposed = shlex.split(shlex.join(map(str, next_of(words)(parsed(words)))))
    assert proposed[0] == STEPS[command]
    parsed(proposed)


def test_only_shots_that_were_drawn_are_proposed(folder):
    """Base classes give no shots, and may have fewer rows."""
    split = make_split("toy", list("abcd"), [], [None] * 4, 0, [2, 3])
    write_json(folder / "d/split.json", split.to_json())
    words = ["save_features.py", "--extractor", "e", "--data", "d", "--out", "f"]
    for n_rows, shots in ((4, ["--shots", 1, 2]), (20, [])):
        write_json(folder / "d/draws.json", {"trials": {"1": [[0], [0], *[list(range(n_rows))] * 2]}})
        proposed = next_of(words)(parsed(words))
        assert [str(one) for one in proposed[9:-2]] == list(map(str, shots)), proposed


def test_an_estimate_and_a_choice_have_no_results_to_report(folder):
    words = f"diffusion.py {INPUTS} --draws d.json --graph g.h5 --out results/r.json --dry_run".split()
    assert next_of(words)(parsed(words)) is None


def test_unlabelled_images_have_no_split_to_train_on(folder):
    words = ["preprocessing.py", "--dataset", "yfcc100m", "--dataset.count", "5", "--out", "unlabelled"]
    assert next_of(words)(parsed(words)) is None


def test_every_stage_is_here():
    """Except verify.py, and join_extractors.py, which does not know the images."""
    stages = {path.name for path in Path(__file__).parent.parent.glob("*.py")} - {"verify.py", "join_extractors.py"}
    assert {command.split()[0] for command in STEPS} | {name.split()[0] for name in LAST} == stages


@pytest.mark.parametrize("stage", ["low_shot.py", "diffusion.py --graph g.h5"])
def test_settings_that_are_only_chosen_have_no_report(folder, stage):
    words = f"{stage} {INPUTS} --draws d.json --out results/r.json --select grid.yaml --setup validation".split()
    assert next_of(words)(parsed(words)) is None
