"""The process that `harness.Server` talks to: a line of JSON each way."""

import ctypes
import importlib
import json
import os
import runpy
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))
SHIM = ctypes.CDLL(None)
SHIM.shim_set.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
SHIM.shim_set.restype = ctypes.c_void_p
SHIM.shim_names.argtypes = SHIM.shim_free.argtypes = [ctypes.c_void_p]
SHIM.shim_names.restype = ctypes.c_char_p


HUNG = 1000  # exit code of a run that did not end


@dataclass
class Running:
    """A started process: what it says on stderr, the record of its calls, and its status once it has ended."""

    said: BinaryIO
    record: int
    status: int | None = None


def main() -> None:
    import torch

    torch.set_num_threads(1)
    for stage in sorted(ROOT.glob("*.py")):
        importlib.import_module(stage.stem)
    import_lazily()
    running: dict[int, Running] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            answer = {"pid": start(question, running)}
        elif "stopped" in question:
            _, status = os.waitpid(question["stopped"], os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                running[question["stopped"]].status = status
            answer = {"stopped": os.WIFSTOPPED(status)}
        else:
            answer = finish(question["wait"], question["seconds"], running.pop(question["wait"]))
        print(json.dumps(answer), flush=True)


def import_lazily() -> None:
    """Import what the stages import on first use."""
    import lowshot.core

    for room in Path(lowshot.__file__).parent.iterdir():
        if (room / "__init__.pyi").exists():
            module = importlib.import_module(f"lowshot.{room.name}")
            for name in module.__all__:
                getattr(module, name)


def start(question: dict, running: dict) -> int:
    said = tempfile.TemporaryFile()  # noqa: SIM115 -- closed in finish
    record = SHIM.shim_set(question["root"].encode(), question["at"], question["do"])
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.dup2(said.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdin.close()
        sys.argv = question["start"]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = 1
        try:
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:  # a traceback
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    running[pid] = Running(said, record)
    return pid


def finish(pid: int, seconds: float, run: Running) -> dict:
    end, hung = time.monotonic() + seconds, False
    while run.status is None:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            run.status = status
        elif time.monotonic() > end:
            hung = True
            os.kill(pid, signal.SIGKILL)
        else:
            time.sleep(0.005)
    code = HUNG if hung else os.waitstatus_to_exitcode(run.status)
    run.said.seek(0)
    with run.said as said:
        error = said.read().decode(errors="replace")
    calls = SHIM.shim_names(run.record).decode().split(",")[:-1]
    SHIM.shim_free(run.record)
    return {"code": code, "calls": calls, "error": error}


if __name__ == "__main__":
    main()
