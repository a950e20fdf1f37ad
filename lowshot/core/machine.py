"""The machine that a number was measured on."""

import os
import platform
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
# What makes matrix products fast, best first: its name, and its flag in /proc/cpuinfo.
_FLAGS = {"AMX": "amx_bf16", "AVX512_BF16": "avx512_bf16", "AVX-512": "avx512f", "AVX2": "avx2"}


def machine() -> str:
    """Describe the processor: its model, the number of cores that this process may use, and its vector instructions."""
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.exists() else []
    known = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = set(known.get("flags", "").split())
    fastest = [name for name, flag in _FLAGS.items() if flag in flags][:1]
    return ", ".join(
        [known.get("model name") or platform.machine(), f"{cores} core{'s' if cores != 1 else ''}", *fastest]
    )
