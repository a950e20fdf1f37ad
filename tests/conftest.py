"""Shared helpers and fixtures: tiny real files, made once per session."""

import io
import json
import logging
import os
import random
import runpy
import shutil
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "passive"  # read by torch; spinning threads would slow down other tests
import numpy as np
import pytest
import torch
from PIL import Image

from lowshot.core.errors import InputError
from lowshot.core.files import write_json
from lowshot.core.publishing import partial_path
from lowshot.core.settings import build

ROOT = Path(__file__).parent.parent
# Entries of every results file.
OF_RESULTS = {
    "stage",
    "config",
    "inputs",
    "lineage",
    "method",
    "dataset",
    "extractor",
    "protocol",
    "provenance",
    "checksum",
}

# On small tensors a second thread costs more than it saves, especially on a busy machine.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def unfinished(done: Path) -> Path:
    """Move a finished output to where a killed run would have left it, and return that path."""
    partial = partial_path(done)
    partial.parent.mkdir(mode=0o700, exist_ok=True)
    return done.rename(partial)


def copy_to_edit(folder: Path, target: Path) -> Path:
    """Copy an output without its checksums, which let nobody change it."""
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns("SHA256SUMS")))


def edit_json(path: Path, old: str, new: str) -> None:
    """Replace text in a JSON file of ours, as its author would: with the checksum of the new content."""
    write_json(path, json.loads(path.read_text(encoding="utf-8").replace(old, new)))


def run_process(script: str | Path, *arguments: object) -> subprocess.CompletedProcess:
    """Run a script in a new process and capture its output. `script` is relative to the repository.

    Starting Python and torch takes seconds. Use this for tests about processes, and `run_script` otherwise.
    """
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def run_script(script: str | Path, *arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a script in `folder` within this process, whose state is restored, and capture its output.

    As in a new process, an exception gives exit code 1 and a traceback on stderr.
    """
    words, out, err = [str(ROOT / script), *map(str, arguments)], io.StringIO(), io.StringIO()
    with restored(), redirect_stdout(out), redirect_stderr(err):
        os.chdir(folder)
        sys.argv = words
        code = _exit_code(words[0])
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def _exit_code(script: str) -> int:
    """Run `script` and return the exit code that a new process would have."""
    _show_warnings()
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _show_warnings() -> None:
    """Print warnings on stderr as Python does by default; pytest would capture all of them."""

    def show(message, category, filename, lineno, file=None, line=None):
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)

    warnings.showwarning = show
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")


@contextmanager
def restored() -> Iterator[None]:
    """Restore everything that a script may change for the whole process."""
    argv, folder, paths, environment = sys.argv, Path.cwd(), list(sys.path), dict(os.environ)
    random_states = random.getstate(), np.random.get_state()
    dtype, n_threads, with_grad = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    deterministic, precision = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        logger.handlers[:], logger.level = handlers, level
        torch.use_deterministic_algorithms(deterministic)
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(n_threads)
        torch.set_grad_enabled(with_grad)
        random.setstate(random_states[0])
        np.random.set_state(random_states[1])
        os.environ.clear()
        os.environ.update(environment)
        sys.argv, sys.path[:] = argv, paths
        os.chdir(folder)


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """Assert exit code 2 and a single error line on stderr that contains `words`."""
    lines = [line for line in result.stderr.strip().splitlines() if "error:" in line]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    assert all(word in lines[0] for word in words), lines[0]


def settings(settings_class: type, **values: object) -> Any:
    """Build settings from plain values, as in a YAML file: `model="Conv4"`, `model={"name": "Conv4", ...}`."""
    return build(settings_class, values)


def save_image(path: Path, colour=(200, 30, 30), size=(12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def refused(call, cause: str) -> None:
    with pytest.raises(InputError, match=cause) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """2 superclasses x 5 classes x 14 images of 16 px. Each class is a bar at a different angle, with noise."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[-1:1:16j, -1:1:16j]
    for c in range(10):
        folder = root / f"super{c // 5}" / f"class{c}"
        folder.mkdir(parents=True)
        angle = np.pi * c / 10
        bar = np.exp(-((xx * np.sin(angle) - yy * np.cos(angle)) ** 2) * 20)
        for i in range(14):
            noisy = np.clip(bar[..., None] * [1, 0.5 + c // 5 / 2, 0.3] + rng.normal(0, 0.15, (16, 16, 3)), 0, 1)
            Image.fromarray((noisy * 255).astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def data(tmp_path_factory, image_folder) -> Path:
    """The preprocessed image folder: 10 classes, 10 train and 4 test images each, 16 px, up to 5 shots, 2 trials."""
    from preprocessing import Config, main

    out = tmp_path_factory.mktemp("data") / "data"
    photos = {"name": "folder", "image_size": 16, "test_per_class": 4, "max_shots": 5, "n_trials": 2}
    return main(settings(Config, dataset=photos, root=image_folder, out=out))


@pytest.fixture(scope="session")
def extractor(tmp_path_factory, data) -> Path:
    """A small Conv-4 trained for one epoch on `data`."""
    from train_extractor import Config, main

    out = tmp_path_factory.mktemp("extractor") / "extractor"
    small = {"model": {"name": "Conv4", "width": 0.25}, "epochs": 2, "batch_size": 16, "accelerator": "cpu"}
    return main(settings(Config, data=data, out=out, **small))


@pytest.fixture(scope="session")
def features(tmp_path_factory, data, extractor) -> Path:
    """Folder with train.h5 and test.h5 of `data` through `extractor`."""
    from save_features import Config, main

    return main(Config(extractor=extractor, data=data, out=tmp_path_factory.mktemp("features"), accelerator="cpu"))


@pytest.fixture(scope="session")
def clusters(tmp_path_factory) -> SimpleNamespace:
    """Twelve overlapping Gaussian clusters in 8 dimensions, with three base and three novel classes per setup.

    Files: features of 12 train and 5 test images per class; split; draws of two trials and four shots; 240 unlabelled
    images of the same clusters (`unlabelled`) and their graph (`background`). Graphs per `{setup}`, with lists of 8:
    with the background (`graph`), without it (`bare`), and of all training images without it (`images`).
    """
    from build_graph import BackgroundConfig, CompleteConfig, background, complete
    from lowshot.core.files import write_json
    from lowshot.data.features import write_features
    from lowshot.data.protocol import Split, draws_to_json, make_draws
    from lowshot.diffusion.settings import Background

    folder, rng = tmp_path_factory.mktemp("clusters"), np.random.default_rng(0)
    made = SimpleNamespace(folder=folder, **{n: folder / f"{n}.h5" for n in ("train", "test", "background")},
                           unlabelled=folder / "unlabelled.npy", split=folder / "split.json",
                           draws=folder / "draws.json",
                           **{n: folder / (n + "-{setup}.h5") for n in ("graph", "bare", "images")})  # fmt: skip
    centres = rng.standard_normal((12, 8))
    for name, n_rows in (("test", 5), ("train", 12)):
        labels = rng.permutation(np.repeat(np.arange(12), n_rows))
        feats = centres[labels] + 0.8 * rng.standard_normal((len(labels), 8))
        made_from = {"stage": "save_features", "config": {}, "inputs": {"extractor": "x"}, "lineage": {}}
        write_features(getattr(made, name), feats.astype(np.float32), labels, made_from)
    np.save(made.unlabelled, np.float32(centres[rng.integers(12, size=240)] + 0.8 * rng.standard_normal((240, 8))))
    names, parts = [f"c{c}" for c in range(12)], ([0, 2, 4], [6, 8, 10], [1, 3, 5], [7, 9, 11])
    base, novel = sorted(parts[0] + parts[2]), sorted(parts[1] + parts[3])
    split = Split("clusters", names, [], [None] * 12, base, novel, *parts)
    write_json(made.split, split.to_json())
    write_json(made.draws, draws_to_json(make_draws(labels, names, 2, 4, seed=0), split, 0))
    background(BackgroundConfig(features=made.unlabelled, out=made.background, k=8))
    files = {"train": made.train, "test": made.test, "split": made.split, "k": 8}
    for setup in ("validation", "test"):
        for name, more in (
            ("graph", {"background": Background(made.background)}),
            ("bare", {}),
            ("images", {"unlabelled": "all"}),
        ):
            out = Path(str(getattr(made, name)).format(setup=setup))
            complete(CompleteConfig(**files, **more, setup=setup, out=out))
    return made
