"""Every stage's script in a process of its own; and that one within pytest's process tells and leaves the same."""

import logging
import os
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
def test_a_process_of_its_own(tmp_path, script):
    """From any folder."""
    done = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {script} ") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("run", [run_process, run_script])
def test_a_refusal(tmp_path, run):
    """In one line and with exit code 2 by the parser and by the stage."""
    arguments = ["preprocessing.py", "--dataset", "folder", "--root", tmp_path, "--out", tmp_path / "out"]
    assert_refused(run(*arguments, "--max_shots", "few"), "max_shots", "few")
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
    "import importlib; importlib.warnings.warn_explicit('words', DeprecationWarning, 'x', 1, 'x')": (0, ""),
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


def test_a_script_within_this_process_leaves_it_as_it_was(tmp_path):
    (tmp_path / "script.py").write_text(CHANGES)
    before = state()
    assert run_script(tmp_path / "script.py").returncode == 0
    assert state() == before
