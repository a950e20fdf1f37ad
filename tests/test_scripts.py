"""Stages accept every command of every shell script.

The scripts run with a stub instead of python, which only records its arguments.
"""

import importlib
import os
import re
import shutil
import stat
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from lowshot.core.cli import parse

SHRINK = [f"scripts/shrink_hallucinate/{p.name}" for p in sorted((ROOT / "scripts/shrink_hallucinate").glob("[1-8]_*"))]
ANALOGY = [f"scripts/analogy_cifar100/{p.name}" for p in sorted((ROOT / "scripts/analogy_cifar100").glob("[1-7]_*"))]
DIFFUSION = [f"scripts/diffusion/{p.name}" for p in sorted((ROOT / "scripts/diffusion").glob("[1-6]_*"))]
SCGM = [f"scripts/scgm/{p.name}" for p in sorted((ROOT / "scripts/scgm").glob("[1-5]_*"))]
FEW_SHOT = [f"scripts/few_shot/{p.name}" for p in sorted((ROOT / "scripts/few_shot").glob("[1-5]_*"))]
GAN = [f"scripts/few_shot_gan/{p.name}" for p in sorted((ROOT / "scripts/few_shot_gan").glob("[1-8]_*"))]
ONE_SHOT = [f"scripts/one_shot/{p.name}" for p in sorted((ROOT / "scripts/one_shot").glob("[1-3]_*"))]
RUNS = [("scripts/quickstart.sh", "")]
RUNS += [(script, dataset) for script in SHRINK for dataset in ("imagenet", "cifar100", "omniglot")]
RUNS += [(script, dataset) for script in DIFFUSION for dataset in ("imagenet", "cifar100", "omniglot")]
RUNS += [(script, dataset) for script in SCGM for dataset in ("cifar100", "omniglot", "living17", "tiered_imagenet")]
RUNS += [(script, dataset) for script in GAN for dataset in ("emnist_fs", "omniglot_fs", "cifar100_fs")]
RUNS += [(script, dataset) for script in ONE_SHOT for dataset in ("cifar100", "omniglot")]
RUNS += [("scripts/scgm/choose.sh", "")]
RUNS += [("scripts/few_shot_gan/choose.sh", dataset) for dataset in ("emnist_fs", "omniglot_fs", "cifar100_fs")]
RUNS += [(script, dataset) for script in FEW_SHOT for dataset in ("omniglot_vinyals", "cifar_fs", "fc100")]
RUNS += [(script, dataset) for script in FEW_SHOT for dataset in ("mini_imagenet", "tiered_imagenet")]
RUNS += [(script, size) for script in ANALOGY for size in ("two_cores", "paper")]
BENCHMARKS = [("scripts/few_shot/speedrun.sh", f"{split} short") for split in ("cifar_fs", "fc100", "omniglot_vinyals")]
BENCHMARKS += [("scripts/few_shot/speedrun.sh", f"{split} long") for split in ("cifar_fs", "fc100")]
PARTS = ("cifar100", "few_shot", "omniglot", "emnist", "superclasses")
BENCHMARKS += [("benchmarks/leaderboard.sh", part) for part in PARTS] + [
    ("benchmarks/gpu.sh", part) for part in "BCDEF"
]

STUB = """#!/bin/sh
for word in "$@"; do printf '%s\\t' "$word"; done >> "$RECORD"
echo >> "$RECORD"
"""


def recording(folder, script, *arguments, **variables):
    """Run a script with the stub, written into `folder`, as python. Return the finished process and its commands."""
    stub, record = folder / "bin" / "python", folder / "record"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(STUB)
    stub.chmod(stub.stat().st_mode | stat.S_IEXEC)
    record.unlink(missing_ok=True)
    environment = os.environ | {"PATH": f"{stub.parent}:{os.environ['PATH']}", "VIRTUAL_ENV": str(folder)}
    environment |= {"RECORD": str(record)} | variables
    command = ["bash", str(ROOT / script), *filter(None, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = record.read_text().splitlines() if record.exists() else []
    return done, [line.rstrip("\t").split("\t") for line in lines]


@pytest.fixture
def recorded(tmp_path):
    return partial(recording, tmp_path)


def parsed(command):
    """Return the config that a stage parses from a command."""
    stage = importlib.import_module(command[0].removesuffix(".py").replace("/", "."))
    several = getattr(stage, "COMMANDS", None)
    return parse(several[command[1]][1] if several else stage.Config, command[2 if several else 1 :])


@pytest.mark.parametrize(("script", "argument"), RUNS + BENCHMARKS)
def test_commands_are_accepted(recorded, monkeypatch, tmp_path, script, argument):
    monkeypatch.chdir(ROOT)
    weights = tmp_path / "vgg16.pth"
    weights.touch()
    variables = {"WEIGHTS": str(weights), "PRECISION": "bf16-mixed", "SEEDS": "0 1"}
    if argument == "cifar_fs":
        variables["REPRESENTATION"] = "airbench"  # the default is released, so step 2 has nothing to do
    done, commands = recorded(script, *argument.split(), **variables)
    assert done.returncode == 0, done.stderr
    assert commands
    for command in commands:
        parsed(command)
        assert all((ROOT / grid).is_file() for flag, grid in pairwise(command) if flag == "--select")


@pytest.mark.parametrize("path", sorted((ROOT / "examples/extractors").iterdir()), ids=lambda path: path.name)
def test_a_released_extractor_is_not_trained(recorded, path):
    dataset, name = path.name.split("-")
    recipe = "few_shot" if name == "airbench" else "shrink_hallucinate"
    for chosen, extractor in (
        (f"{name}_released", f"examples/extractors/{path.name}"),
        (name, f"outputs/{dataset}/{name}/extractor"),
    ):
        variables = {"REPRESENTATION": chosen, "REPRESENTATIONS": chosen}
        done, commands = recorded(f"scripts/{recipe}/run_all.sh", dataset, **variables)
        assert done.returncode == 0, done.stderr
        assert any(command[0] == "train_extractor.py" for command in commands) == (chosen == name)
        saved = [dict(pairwise(command)) for command in commands if command[0] == "save_features.py"]
        assert [one["--extractor"] for one in saved] == [extractor]
        assert [one["--out"] for one in saved] == [f"outputs/{dataset}/{chosen}/features"]


@pytest.mark.parametrize("name", ["resnet10_plain", "airbench_plain_released", "airbench_sgm_seed1"])
def test_a_generator_is_trained_and_judged(recorded, monkeypatch, name):
    monkeypatch.chdir(ROOT)
    for script in ("run_all.sh", "choose.sh"):
        done, commands = recorded(f"scripts/shrink_hallucinate/{script}", "cifar100", REPRESENTATIONS=name)
        assert done.returncode == 0, done.stderr
        for command in commands:
            parsed(command)
        judged = [dict(pairwise(command)) for command in commands if "--add.generator" in command]
        assert [one["--add.generator"] for one in judged] == [f"outputs/cifar100/{name}/generator"]
        assert [Path(one["--out"]).name for one in judged] == [f"{name}_generated.json"]


def test_a_representation_that_is_not_released(recorded):
    for recipe, dataset, name in (("few_shot", "fc100", "airbench"), ("shrink_hallucinate", "cifar100", "conv4")):
        variables = dict.fromkeys(("REPRESENTATION", "REPRESENTATIONS"), f"{name}_released")
        done, commands = recorded(f"scripts/{recipe}/run_all.sh", dataset, **variables)
        assert done.returncode == 2 and not commands
        assert f"no such representation: examples/extractors/{dataset}-{name} does not exist" in done.stderr


@pytest.mark.parametrize("recipe", ["scgm cifar100", "few_shot_gan emnist_fs"])
def test_recipes_that_take_no_released_extractor(recorded, recipe):
    recipe, dataset = recipe.split()
    done, commands = recorded(f"scripts/{recipe}/run_all.sh", dataset, REPRESENTATION="airbench_plain_released")
    assert done.returncode == 2 and not commands
    assert "airbench_plain_released.yaml does not exist" in done.stderr


@pytest.mark.parametrize("recipe", ["shrink_hallucinate cifar100", "few_shot fc100", "scgm living17", "scgm omniglot",
                                    "few_shot_gan omniglot_fs"])  # fmt: skip
def test_data_root_is_passed_on(recorded, tmp_path, monkeypatch, recipe):
    """A data root may have any name, and is relative to where the user stands; without one, a download is allowed."""
    recipe, dataset = recipe.split()
    script, root = f"scripts/{recipe}/1_prepare.sh", tmp_path / "my data" / 'a "b" $c é'
    root.mkdir(parents=True)
    assert "--root" not in recorded(script, dataset)[1][-1]
    monkeypatch.chdir(tmp_path)
    for given in (str(root), str(root.relative_to(tmp_path))):
        command = recorded(script, dataset, DATA_ROOT=given)[1][-1]
        assert command[command.index("--root") + 1] == str(root)


def test_weights_of_any_name(recorded, tmp_path, monkeypatch):
    (tmp_path / "my weights.pth").touch()
    monkeypatch.chdir(tmp_path)
    script = "scripts/analogy_cifar100/2_train_extractor.sh"
    command = recorded(script, "paper", WEIGHTS="my weights.pth")[1][-1]
    assert command[command.index("--weights") + 1] == str(tmp_path / "my weights.pth")


def test_a_data_root_that_does_not_exist(recorded):
    done, commands = recorded("scripts/scgm/run_all.sh", "omniglot", DATA_ROOT="nowhere")
    assert done.returncode == 2 and done.stderr == "DATA_ROOT=nowhere: no such file or folder\n" and not commands


@pytest.mark.parametrize(
    ("call", "variable", "value", "message"),
    [
        ("scgm/run_all.sh omniglot", "METHODS", "*", "METHODS=*: only names and numbers are expected"),
        ("scgm/run_all.sh omniglot", "METHODS", 'a "b"', 'METHODS=a "b": only names and numbers are expected'),
        ("diffusion/1_prepare.sh cifar100", "N_BACKGROUND", "1 0", "N_BACKGROUND=1 0: one value is expected"),
        ("scgm/run_all.sh omniglot", "PRECISION", "x --seed 3", "PRECISION=x --seed 3: one value is expected"),
        ("scgm/run_all.sh omniglot", "REPRESENTATION", "x", "train_scgm-omniglot-x.yaml does not exist"),
        ("few_shot/run_all.sh fc100", "REPRESENTATION", "x", "train_extractor-fc100-x.yaml does not exist"),
        ("shrink_hallucinate/run_all.sh omniglot", "REPRESENTATIONS", "conv4_sgm x", "omniglot-x.yaml does not exist"),
    ],
)
def test_variables_that_are_no_names(recorded, call, variable, value, message):
    script, dataset = call.split()
    done, commands = recorded(f"scripts/{script}", dataset, **{variable: value})
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr and not commands


@pytest.mark.parametrize("recipe", sorted({Path(script).parent.name for script, _ in RUNS} - {"scripts"}))
def test_without_a_data_set_the_usage_is_printed(recorded, recipe):
    datasets = {argument for script, argument in RUNS if f"/{recipe}/" in script and argument}
    for arguments in ([], ["mnist"]):
        done, commands = recorded(f"scripts/{recipe}/run_all.sh", *arguments)
        assert done.returncode == 2 and not commands
        assert re.search(rf"^usage: bash \S*scripts/{recipe}/run_all.sh [A-Z]+$", done.stderr, re.M), done.stderr
        assert not arguments or done.stderr.startswith("mnist: not one of this recipe\n")
        assert all(dataset in done.stderr for dataset in datasets)
        assert f"docs/recipes/{recipe}.md" in done.stderr and (ROOT / f"docs/recipes/{recipe}.md").exists()


@pytest.mark.parametrize("recipe", sorted({Path(script).parent.name for script, _ in RUNS} - {"scripts"}))
def test_the_usage_needs_no_environment(tmp_path, recipe):
    """A call without a data set must not install anything first."""
    copy = tmp_path / "scripts"
    shutil.copytree(ROOT / "scripts", copy)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_DEFAULT_ENV")
    }
    environment["PYTHON"] = "/nonexistent/python"  # an installation would fail
    command = ["bash", str(copy / recipe / "run_all.sh")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("usage: ") and done.stdout == ""
    assert not (tmp_path / ".venv").exists()


def test_a_recipe_announces_how_long_it_takes(recorded):
    done, commands = recorded("scripts/analogy_cifar100/run_all.sh", "two_cores")
    assert done.stdout.startswith("analogy_cifar100 on two_cores: about 40 minutes on two cores. Ctrl-C stops it")
    assert len(commands) > 5


def test_missing_weights_are_refused(recorded):
    done, commands = recorded("scripts/analogy_cifar100/2_train_extractor.sh", "paper")
    assert done.returncode == 2 and "WEIGHTS" in done.stderr and not commands


@pytest.mark.parametrize("script", GAN[2:6])
def test_the_published_gan_can_be_chosen(recorded, monkeypatch, script):
    monkeypatch.chdir(ROOT)
    done, commands = recorded(script, "emnist_fs", NETWORK="published", SEEDS="0", SHOTS="5")
    assert done.returncode == 0, done.stderr
    for command in commands:
        parsed(command)
    assert any("published" in word for command in commands for word in command)
    done, commands = recorded(script, "omniglot_fs", NETWORK="published")
    assert done.returncode == 2 and "only of emnist_fs" in done.stderr


@pytest.fixture
def album(tmp_path):
    """A folder of photos with a name of its own, and what the recipe writes for it."""
    folder = tmp_path / f"my album {os.getpid()}"
    rng = np.random.default_rng(0)
    for c in range(12):
        (folder / f"class {c}").mkdir(parents=True)
        for i in range(26):
            pixels = rng.integers(0, 60, (40, 48, 3), np.uint8) + np.uint8([15 * c, 8 * (c % 5), 100 - 8 * c])
            Image.fromarray(pixels).save(folder / f"class {c}" / f"{i}.jpg")
    out = ROOT / "outputs" / "photos" / folder.name.replace(" ", "_")
    yield folder, out
    shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize("timm", ["none", "tf_efficientnet_lite0"])
def test_the_photo_recipe(recorded, monkeypatch, album, timm):
    monkeypatch.chdir(ROOT)
    folder, out = album
    planned = subprocess.run([sys.executable, "scripts/photos/plan.py", folder], capture_output=True, text=True,
                             env=os.environ | {"TIMM": "none", "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert "n_classes=12" in planned.stdout and "max_shots=20" in planned.stdout, planned.stderr
    plan = planned.stdout if timm == "none" else planned.stdout + f"timm={timm}\nname={timm}\n"
    out.mkdir(parents=True)
    (out / "plan.sh").write_text(f"# {folder}, 312 files, TIMM=, MAX_SHOTS=\n{plan}")
    (out / "airbench/generator").mkdir(parents=True)
    done, commands = recorded("scripts/photos/run_all.sh", str(folder))
    assert done.returncode == 0, done.stderr
    stages = {command[0] for command in commands if command[0] != "-c"}
    assert {"preprocessing.py", "save_features.py", "low_shot.py", "diffusion.py", "parse_results.py"} < stages
    assert ("train_extractor.py" in stages) == (timm == "none")
    for command in commands:
        if command[0] != "-c":
            parsed(command)


def test_few_photos_make_a_classifier_and_no_benchmark(recorded, album):
    folder, out = album
    out.mkdir(parents=True)
    known = f"# {folder}, 312 files, TIMM=, MAX_SHOTS=\n"
    (out / "plan.sh").write_text(
        known + "n_classes=12\nn_photos=60\ncan_judge=0\ntimm=resnet18\nname=resnet18\nminutes=1\n"
    )
    done, commands = recorded("scripts/photos/run_all.sh", str(folder))
    assert done.returncode == 0 and "too few to judge" in done.stdout
    assert [command[:2] for command in commands] == [["predict.py", "fit"]]
    assert recorded("scripts/photos/run_all.sh", str(folder) + "/nowhere")[0].returncode == 2
    other = recorded("scripts/photos/run_all.sh", str(folder), TIMM="resnet50")[0]
    assert other.returncode == 2 and "TIMM=resnet50" in other.stderr and "Move it away" in other.stderr


@pytest.mark.slow
def test_the_photo_recipe_on_a_small_network(album):
    """From photos to a report, twice; the second run skips everything but the report."""
    folder, out = album
    environment = os.environ | {
        "TIMM": "none",
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for again in (False, True):
        done = subprocess.run(["bash", "scripts/photos/run_all.sh", folder], capture_output=True, text=True, cwd=ROOT,
                              env=environment)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (out / "report" / "report.html").is_file()
        assert ("already exists" in done.stdout) == again
