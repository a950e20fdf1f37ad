"""Run stages in forked processes, and kill, stop, interrupt them or fill their disk at the n-th system call.

A server process imports the stages once, under a preloaded library (shim.c) that counts the calls below a folder. Each
run is a fork of it, so a run takes a fraction of a second.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
COUNT, KILL, FULL, STOP, INTERRUPT = range(5)


class Outcome(NamedTuple):
    """How a run ended: exit code (negative: signal), system calls below the folder, what it printed on stderr."""

    code: int
    calls: list[str]
    error: str


def compiled(folder: Path) -> Path | None:
    """Build the shim in `folder`. Returns None without a C compiler, or on systems other than Linux."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "shim.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, HERE / "shim.c", "-ldl"], check=True)
    return library


class Server:
    """Runs stages in forks of a process that has imported them. Use it as a context manager."""

    def __init__(self, library: Path, seconds: float = 120) -> None:
        self.seconds = seconds
        command = [sys.executable, str(HERE / "serve.py")]
        environment = {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "LOWSHOT_CHAIN": "1"}
        environment |= {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, cwd=ROOT, env=environment, **pipes)

    def run(self, words: list, root: Path, do: int = COUNT, at: int = 0) -> Outcome:
        """Run a stage. `do` happens at the `at`-th call below the folder `root`, counted from 1."""
        return self.wait(self.start(words, root, do, at))

    def start(self, words: list, root: Path, do: int = COUNT, at: int = 0) -> int:
        """Start a stage and return the number of its process. With STOP, it stands still at the call."""
        return self._ask({"start": [str(word) for word in words], "root": str(root), "do": do, "at": at})["pid"]

    def wait(self, pid: int) -> Outcome:
        """Wait until a process ends."""
        answer = self._ask({"wait": pid, "seconds": self.seconds})
        return Outcome(answer["code"], answer["calls"], answer["error"])

    def until_stopped(self, pid: int) -> bool:
        """Wait until a process stands still. Returns False if it has ended instead."""
        return self._ask({"stopped": pid})["stopped"]

    def kill(self, pid: int) -> None:
        """Kill a process."""
        os.kill(pid, signal.SIGKILL)

    def resume(self, pid: int) -> None:
        """Let a stopped process go on."""
        os.kill(pid, signal.SIGCONT)

    def _ask(self, question: dict) -> dict:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, without logs and facts about the run, which differ between equal runs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and "tensorboard" not in path.parts and path.name not in ("log.jsonl", "log.csv"):
            found[name] = _without_facts(path)
    return found


def _without_facts(path: Path) -> bytes:
    if path.name == "SHA256SUMS":
        return b"".join(line for line in path.read_bytes().splitlines(True) if b"config.json" not in line)
    try:
        content = {".json": json.loads, ".yaml": yaml.safe_load}[path.suffix](path.read_text(encoding="utf-8"))
    except (KeyError, ValueError, yaml.YAMLError):
        return path.read_bytes()
    facts = {"checksum", "provenance"}
    return json.dumps({key: value for key, value in content.items() if key not in facts}, default=str).encode()


def scratch() -> Path:
    """Return a new folder for one run."""
    return Path(tempfile.mkdtemp(prefix="faults-"))
