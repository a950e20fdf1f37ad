"""Every stage as a process, and the equivalence of `run_script` and `run_process`."""

import logging
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused, run_process, run_script

STAGES = sorted(path.name for path in ROOT.glob("*.py"))


@pytest.mark.parametrize("script", STAGES)
def test_help_in_a_new_process(tmp_path, script):
    """Works from any folder."""
    done = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {script} ") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("run", [run_process, run_script])
def test_a_refusal(tmp_path, run):
    """The parser and the stage both print one line and exit with code 2."""
    arguments = ["preprocessing.py", "--dataset", "folder", "--root", tmp_path, "--out", tmp_path / "out"]
    assert_refused(run(*arguments, "--dataset.max_shots", "few"), "max_shots", "few")
    assert_refused(run(*arguments), str(tmp_path))
    assert not list(tmp_path.iterdir())


ENDS = {
    "pass": (0, ""),
    "raise SystemExit": (0, ""),
    "raise SystemExit(3)": (3, ""),
    "raise SystemExit('words')": (1, "words\n"),
    "1 / 0": (1, "ZeroDivisionError: division by zero\n"),
    "import warnings; warnings.warn('words')": (0, "words\n"),
    "import warnings; warnings.warn('words', DeprecationWarning)": (0, "words\n"),
    "import warnings; warnings.warn_explicit('words', DeprecationWarning, 'x', 1, 'x')": (0, ""),
}


@pytest.mark.parametrize("code", ENDS)
def test_how_a_script_ends(tmp_path, code):
    (tmp_path / "script.py").write_text(f"import sys\nprint(sys.argv[1:], __name__)\n{code}\n")
    code, last = ENDS[code]
    ends = [run(tmp_path / "script.py", 1, tmp_path) for run in (run_process, run_script)]
    assert [done.returncode for done in ends] == [code, code]
    assert all(done.stdout == f"['1', '{tmp_path}'] __main__\n" for done in ends)
    assert all(last in done.stderr and bool(done.stderr) == bool(last) for done in ends)
    assert ("Traceback" in ends[0].stderr) == ("Traceback" in ends[1].stderr) == ("Zero" in last)


CHANGES = """
import logging, os, random, sys, warnings
import numpy as np, torch
os.environ["LOWSHOT_TEST"] = "changed"
os.chdir("/")
sys.argv.append("more")
sys.path.insert(0, "/more")
warnings.simplefilter("error")
logging.basicConfig(level="DEBUG", force=True)
random.seed(1), np.random.seed(1), torch.manual_seed(1)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(2)
torch.set_grad_enabled(False)
torch.use_deterministic_algorithms(True)
torch.set_float32_matmul_precision("medium")
"""


def state():
    return [dict(os.environ), Path.cwd(), list(sys.argv), list(sys.path), list(warnings.filters), warnings.showwarning,
            list(logging.getLogger().handlers), logging.getLogger().level, np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads(),
            torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(), sys.modules["__main__"], sys.stdout, sys.stderr]  # fmt: skip


def test_run_script_restores_the_state_of_the_process(tmp_path):
    (tmp_path / "script.py").write_text(CHANGES)
    before = state()
    assert run_script(tmp_path / "script.py").returncode == 0
    assert state() == before


FILES = "--train conv4/features/train.h5 --test conv4/features/test.h5 --split prepared/split.json "
FILES += "--draws prepared/draws.json"
ONE_RUN = f"{FILES} --trials [1] --shots [1] --out new.json"
CLOCKED = [
    f"low_shot.py --classifier pt_map {ONE_RUN}",
    f"matching_network.py test --model matching --rows_per_class 2 {ONE_RUN}",
    f"diffusion.py --graph graphs/novel-test.h5 --edges.k 3 {ONE_RUN}",
    f"diffusion.py --graph graphs/novel-test.h5 --edges.k 3 {ONE_RUN} --dry_run true",
    f"score_samples.py --samples gan/samples/train.h5 --n_images 6 --n_neighbours 1 {FILES} --out new.json",
    "low_shot.py --config inputs.yaml --classifier logistic_regression --add.propagated scores/propagated.h5 "
    "--add.generator conv4/generator --scores new.h5 --out new.json",
    "low_shot.py --config inputs.yaml --classifier linear_sgd --classifier.n_steps 5 --classifier.batch_size 20 "
    "--select grids/low_shot_today.yaml --out new.json",
    "diffusion.py --config inputs.yaml --edges.k 3 --graph graphs/novel-{setup}.h5 --select grids/diffusion.yaml "
    "--out new.json",
    "diffusion.py --config inputs.yaml --edges.k 3 --graph graphs/novel-test.h5 --fuse scores/plain.h5 --out new.json",
    "episodes.py --features conv4/features/test.h5 --split prepared/split.json --n_way 2 --n_shots [1] --n_queries 1 "
    "--n_episodes 2 --method logistic_regression --out new.json",
]
CLOCK = """
import lowshot.core.artifacts as artifacts, lowshot.diffusion as diffusion, runpy, sys
def loaded():
    libraries = ("lowshot", "torchvision", "sklearn", "scipy", "faiss")
    return {name for name in sys.modules if name.split(".")[0] in libraries}
def started(clock):
    def start(*arguments):
        seen.update(loaded())
        return clock(*arguments)
    return start
def ended(*arguments):
    print("late:", sorted(loaded() - seen) if seen else "no clock")
    return record(*arguments)
seen, record = set(), artifacts.Provenance.record
artifacts.Provenance.__init__, artifacts.Provenance.record = started(artifacts.Provenance.__init__), ended
if "--dry_run" in sys.argv:
    diffusion.seconds_around = started(diffusion.seconds_around)
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
if "--dry_run" in sys.argv:
    print("late:", sorted(loaded() - seen) if seen else "no clock")
"""


@pytest.mark.parametrize("command", CLOCKED, ids=lambda command: command.split()[0])
def test_clocks_do_not_include_imports(tmp_path, command):
    """Libraries are imported before the wall time of results starts, and before samples of work are timed."""
    copy = shutil.copytree(ROOT / "tests" / "fixtures" / "d41a11c", tmp_path / "copy")
    (tmp_path / "clock.py").write_text(CLOCK)
    script, *words = command.split()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    clocked = [sys.executable, tmp_path / "clock.py", ROOT / script, *words]
    done = subprocess.run(clocked, capture_output=True, text=True, cwd=copy, env=environment)
    late = [line for line in done.stdout.splitlines() if line.startswith("late:")]
    assert done.returncode == 0 and set(late) == {"late: []"}, done.stdout + done.stderr
