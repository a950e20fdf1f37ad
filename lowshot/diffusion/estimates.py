"""Estimate the memory and time of diffusion before it starts: memory by formula, time by running samples of the work.

Each module states the bytes that it holds; this module adds them up. Times are for this machine under its current load.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowshot.core.artifacts import peak_memory_bytes
from lowshot.core.errors import InputError
from lowshot.data.rows import BLOCK
from lowshot.diffusion import adjacency, propagation
from lowshot.diffusion.adjacency import Adjacency, Block, in_degrees, symmetrise
from lowshot.diffusion.graph import add_nodes, adding_bytes
from lowshot.diffusion.neighbours import exact_search, search_bytes
from lowshot.diffusion.propagation import Labels, Spread, TestLists, Work, slice_bytes
from lowshot.diffusion.run_graphs import RunGraphs, Sizes, edge_weights, edge_weights_bytes
from lowshot.diffusion.settings import Precision, StepOptions

GIB = 2**30
# Libraries load code and create memory pools on first use, and do not return all freed memory.
_LIBRARIES = 160 * 2**20
# Slice widths to try, fastest first.
_WIDTHS = (64, 48, 32, 16, 8, 4, 2, 1)
_PHASES = ("search", "matrix", "class sums", "first step", "step", "last step", "scores")
# Time is measured on a quarter of the entries of S, but at most on this number.
_SAMPLED_ENTRIES = 2**26
# Number of values compared in a measured search.
_SEARCHED = 2**33
# Maximum seconds to load compiled loops. A longer time includes their compilation, which is cached for later runs.
_LOADING = 2.0


@dataclass(frozen=True)
class Job:
    """All runs on the graphs of a setup that share the same steps."""

    graphs: RunGraphs
    shots: list[int]
    steps: list[int]
    """Steps after which scores are needed, ascending."""
    options: StepOptions
    precision: Precision
    n_evaluated: int = 1
    """Number of configs evaluated on the scores of a run."""
    n_final_scores: int = 0
    """Number of arrays of transformed scores held at the same time."""
    finish: Callable[[np.ndarray], Any] = np.copy
    """The evaluation of scores (N, classes) by one config."""
    assigning: bool = False
    """Whether all nodes are assigned to a class (`assign`), instead of scoring test images."""

    @property
    def n_runs(self) -> int:
        return len(self.shots) * len(self.graphs.benchmark.draws)

    @property
    def device(self) -> str:
        return torch.device(self.graphs.device).type

    @cached_property
    def sizes(self) -> Sizes:
        """The sizes of the run with the most shots."""
        return self.graphs.sizes(max(self.shots), self.assigning)


@dataclass(frozen=True)
class Term:
    """Memory of `n_bytes` that is held in `phases` of a run.

    `place` is "GPU", "host" or "mapped". Mapped files do not count: the system drops them if memory is short.
    """

    name: str
    n_bytes: float
    phases: tuple[str, ...]
    place: str = "host"


def memory_terms(job: Job, width: int, precision: Precision) -> list[Term]:
    """Return the memory of a run with slices of `width` columns, beyond what the process holds now."""
    s, graph, k = job.sizes, job.graphs.graph, job.graphs.options.k
    n, w, dim = s.n_nodes, min(width, s.n_classes), graph.vectors.shape[1]
    labels, scores = slice_bytes(n, w, precision), slice_bytes(len(graph.test_ids), s.n_classes)
    lists, searching = adding_bytes(n, dim, k)
    spreading, after_search = _PHASES[2:6], _PHASES[1:]
    on_gpu = "GPU" if job.device == "cuda" else "host"
    adding = [
        Term("mapped vectors", graph.vectors.nbytes, _PHASES, "mapped"),
        Term("copies of lists", lists, ("search", "matrix")),
        Term("search of the shots", searching, ("search",)),
    ]
    terms = [
        Term("libraries at work", _LIBRARIES, _PHASES),
        *(adding if s.n_added else []),
        Term("edge weights", edge_weights_bytes(n, k, s.weighted), ("matrix",)),
        Term("symmetric matrix", adjacency.matrix_bytes(n, s.n_entries, s.weighted), after_search),
        Term("parts of its transpose", adjacency.transpose_bytes(n, s.n_entries, s.weighted), ("matrix",)),
        Term("rows of test neighbours", adjacency.entries_bytes(s.needed_entries, s.weighted), spreading),
        Term("class sums", propagation.SUMS_BYTES * n, ("class sums",)),
        Term("label slice", labels, ("first step",), on_gpu),
        Term("two label slices", 2 * labels, ("step",), on_gpu),
        Term("columns of the first step",
             propagation.first_step_bytes(n, s.n_entries, s.n_labelled, s.n_classes, w), ("first step",), on_gpu),
        Term("rows of the last slice",
             propagation.given_rows_bytes(s.n_needed, w, len(job.steps), precision), ("first step", "step"), on_gpu),
        Term("last step",
             propagation.last_step_bytes(n, s.n_needed, w, precision, job.assigning), ("last step",), on_gpu),
        Term("scores of the steps", scores * len(job.steps), (*spreading, "scores")),
        Term("scores evaluated", scores * (3 + job.n_final_scores), ("scores",)),
        Term("classes of the nodes", job.assigning * propagation.ASSIGN_BYTES * n, spreading),
    ]  # fmt: skip
    if on_gpu == "GPU":
        matrix = propagation.device_bytes(n, s.n_entries + s.needed_entries, s.weighted)
        terms.append(Term("matrix on the GPU", matrix, spreading, "GPU"))
        terms.append(Term("search on the GPU", search_bytes(s.n_added), ("search",), "GPU"))
    return [term for term in terms if term.n_bytes]


def peak(terms: list[Term], place: str) -> tuple[float, str]:
    """Return the peak memory of one place in bytes, and the phase of the peak."""
    return max((sum(t.n_bytes for t in terms if t.place == place and phase in t.phases), phase) for phase in _PHASES)


@dataclass(frozen=True)
class Limits:
    """Limits in bytes: of host memory beyond what this process holds now, and of GPU memory."""

    host: float
    gpu: float | None
    held: float
    """Private memory that this process holds now."""
    mapped: float
    """Pages of files (libraries, lists) that are in memory now."""

    @classmethod
    def now(cls, memory_gib: float | None, device: str) -> "Limits":
        """Return limits of `memory_gib` for this process or, if None, its share of the memory that is available."""
        held, mapped = _resident()
        shared_by = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        host = _available() / shared_by if memory_gib is None or device == "cuda" else memory_gib * GIB - held
        gpu = None
        if device == "cuda":
            gpu = torch.cuda.mem_get_info()[0] if memory_gib is None else memory_gib * GIB
        return cls(host, gpu, held, mapped)

    def lack(self, terms: list[Term]) -> float:
        """Return the bytes missing in the place that lacks most; negative if everything fits."""
        over = [peak(terms, "host")[0] - self.host]
        return max(over + ([peak(terms, "GPU")[0] - self.gpu] if self.gpu is not None else []))


def _resident() -> tuple[float, float]:
    """Bytes of this process that are in memory: private pages, and pages of files."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    except OSError:
        return peak_memory_bytes() or 0, 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE"), int(shared) * os.sysconf("SC_PAGE_SIZE")


_WITHOUT_REPORT = 8 * 2**30  # of Windows: --memory_gib says it


def _available() -> float:
    """Bytes available without swapping, or the total memory if the system does not report it."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        if not hasattr(os, "sysconf"):
            return _WITHOUT_REPORT
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def fitting_width(job: Job, requested_width: int | None, limits: Limits) -> int:
    """Return `requested_width` if given, or else the fastest slice width that fits into memory.

    Raises InputError if it does not fit. The message names a slice width or precision that fits, if there is one.
    """

    def fits(width: int, precision: Precision) -> bool:
        return limits.lack(memory_terms(job, width, precision)) <= 0

    widths = [requested_width] if requested_width else _WIDTHS
    if (width := next((w for w in widths if fits(w, job.precision)), None)) is not None:
        return width
    way_out = [(w, precision) for precision in (job.precision, "bfloat16") for w in _WIDTHS if fits(w, precision)]
    terms = memory_terms(job, widths[-1], job.precision)
    on_gpu = limits.gpu is not None and peak(terms, "GPU")[0] > limits.gpu
    place, limit, held = ("GPU", limits.gpu, 0) if on_gpu else ("host", limits.host, limits.held)
    if way_out:
        width, precision = way_out[0]
        advice = f"Use {'' if precision == job.precision else f'--precision {precision} '}--slice_width {width}"
    else:
        alone = peak(memory_terms(job, 1, "bfloat16"), place)[0] + held
        advice = f"One class at a time would still need {alone / GIB:.2f} GiB; use more memory or a smaller graph"
    need, available = peak(terms, place)[0] + held, limit + held
    raise InputError(
        f"memory: slices of {widths[-1]} classes need {need / GIB:.2f} GiB, but only {available / GIB:.2f} GiB are "
        f"available. {advice}"
    )


def seconds(job: Job, width: int, n_processes: int) -> dict[str, float]:
    """Estimate the seconds of each part of a job, for all its runs, on the process with the most slices.

    The samples are ranges of rows of S. Time that does not depend on entries is measured on a matrix without entries.
    """
    sizes, graph, k = job.sizes, job.graphs.graph, job.graphs.options.k
    sample, making, loading = _sampled_matrix(job)
    nothing = Adjacency([Block.empty(0, len(sample), sizes.weighted)], sample.degrees)
    some, none = (_step_seconds(job, matrix, width) for matrix in (sample, nothing))
    share = sample.n_entries / sizes.n_entries
    whole = {name: none[name] + max(0, some[name] - none[name]) / share for name in some}
    n_slices, last = len(Work(slice_width=width, n_processes=n_processes).slices(sizes.n_classes)), max(job.steps)
    n_last = sum(propagation.is_separate(step, last, job.precision) for step in job.steps)
    n_taken = len([step for step in job.steps if step > 0]) - n_last
    scores = np.zeros((len(graph.test_ids), sizes.n_classes), np.float32)
    per_run = {
        "class sums": last * whole["class sums"],
        "first step": n_slices * (last > 0) * whole["first step"],
        "steps": n_slices * max(0, last - 2) * whole["step"],
        "last step": n_slices * n_last * whole["last step"],
        "scores": n_slices * (len(job.steps) * whole["scores"] + n_taken * whole["rows taken"])
        + timed(job, lambda: TestLists(graph.test_ids[:, :k])),
        "evaluation": job.n_evaluated * timed(job, lambda: job.finish(scores)),
    }
    return {
        "search of the shots": _search_seconds(job) if sizes.n_added else 0,
        "compiled loops": loading,
        "symmetric matrix": making * (job.n_runs if sizes.n_added else 1),
        **{name: job.n_runs * value for name, value in per_run.items()},
    }


def seconds_around() -> float:
    """Seconds that start-up took, plus a fifth of them for the exit of the process. To be called before any work."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        started = float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        started = time.process_time()
    return 1.2 * started


def timed(job: Job, work: Callable[[], Any]) -> float:
    """Measure the seconds of `work`."""
    return float(_repeated(lambda: _spent(job, work)[1]))


def _repeated(measure: Callable[[], Any]) -> np.ndarray:
    """Median of several measurements. A long measurement is not repeated; otherwise the first one is a warm-up."""
    start, results = time.perf_counter(), []
    while not results or (len(results) < 6 and time.perf_counter() - start < 0.3):
        results.append(measure())
    return np.median(results[1:] or results, axis=0)


def _sampled_matrix(job: Job) -> tuple[Adjacency, float, float]:
    """Return S with only its first rows filled, the seconds to build all of S, and those to load compiled loops."""
    sizes, options, graph = job.sizes, job.graphs.options, job.graphs.graph
    # Copies or views of the file, as in a run: numba compiles the loops for each of them.
    ids, similarities = (np.array(a[:, : options.k]) if sizes.n_added else a[:, : options.k]
                         for a in (graph.ids, graph.similarities))  # fmt: skip
    share = min(0.25, _SAMPLED_ENTRIES / sizes.n_entries)

    def make(ids: np.ndarray) -> tuple[Adjacency, float]:
        weights, weighing = _spent(job, lambda: edge_weights(similarities[: len(ids)], options))
        _, counting = _spent(job, lambda: in_degrees(ids))
        sample, making = _spent(job, lambda: symmetrise(ids, weights, options.symmetry, share))
        return sample, weighing + counting + max(0, making - counting) * sizes.n_entries / sample.n_entries

    # Lists of a few nodes with the same memory layout as `ids`.
    few_ids = np.zeros((32, ids.strides[0] // ids.itemsize), ids.dtype)[:, : options.k]
    few_ids.flags.writeable = ids.flags.writeable
    (few, _), loading = _spent(job, lambda: make(few_ids))
    few.times(few.degrees)
    sample, spent = make(ids)
    rest = Block.empty(len(sample), len(ids) - len(sample), sizes.weighted)
    return Adjacency([*sample.blocks, rest], np.ones(len(ids), np.float32)), spent, min(loading, _LOADING)


def _spent(job: Job, work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    if job.device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def _step_seconds(job: Job, matrix: Adjacency, width: int) -> dict[str, float]:
    """Measure the seconds of each part of a slice. Labelled and needed nodes have their true number, evenly spaced."""
    sizes, n = job.sizes, len(matrix)
    width = min(width, sizes.n_classes)
    nodes = _evenly(n, sizes.n_labelled * width // sizes.n_classes)
    labels = Labels(nodes, np.arange(len(nodes)) % width, width)
    # Needed nodes have more neighbours than others, so take the number of nodes that has the same number of entries.
    needed = np.arange(n) if sizes.n_needed == n else _evenly(n, sizes.needed_entries * n // sizes.n_entries)
    spread = Spread(matrix, labels, needed, job.options, job.graphs.device)

    def parts() -> list[float]:
        two, three = (spread.columns(0, width, [1, n_steps], job.precision) for n_steps in (2, 3))
        return [_spent(job, partial(next, steps))[1] for steps in (two, two, three, three)]

    first, last, _, two_steps = _repeated(parts).tolist()
    state = torch.ones(n, width, dtype=getattr(torch, job.precision), device=job.device)
    taking = timed(job, lambda: state[torch.from_numpy(needed).to(job.device)].float())
    spent = {"first step": max(0, first - taking), "step": max(0, two_steps - last), "last step": last}
    spent |= {"rows taken": taking, "class sums": timed(job, lambda: spread.column_sums(1))}
    if job.assigning:
        spent["scores"] = timed(job, lambda: torch.rand(n, width, device=job.graphs.device).max(1))
    else:
        lists = TestLists(job.graphs.graph.test_ids[:, : job.graphs.options.k])
        some = torch.rand(len(lists.nodes), width, device=job.graphs.device)
        spent["scores"] = timed(job, lambda: lists.scores(some).cpu())
    return spent


def _evenly(n_nodes: int, n: int) -> np.ndarray:
    """Return `n` of `n_nodes` node numbers, evenly spaced."""
    return np.unique(np.linspace(0, n_nodes - 1, max(1, min(n, n_nodes))).astype(np.int64))


def _search_seconds(job: Job) -> float:
    """Estimate the seconds of `add_nodes` in all runs from measurements with the fewest and the most shots."""
    ends = sorted({min(job.shots), max(job.shots)})
    one_trial = np.interp(job.shots, ends, [_one_search_seconds(job, n_shot) for n_shot in ends])
    return len(job.graphs.benchmark.draws) * float(one_trial.sum())


def _one_search_seconds(job: Job, n_shot: int) -> float:
    """Estimate the seconds of `add_nodes` in one run from a sample of nodes and test images (about a second)."""
    graph, benchmark, k, device = job.graphs.graph, job.graphs.benchmark, job.graphs.options.k, job.graphs.device
    rows = benchmark.shot_rows(next(iter(benchmark.draws)), n_shot).ravel()
    vectors = graph.project(benchmark.train.feats[rows])
    share = min(1, max(BLOCK, _SEARCHED / vectors.size) / graph.n_nodes)
    names = {"ids", "similarities", "vectors", "test_ids", "test_similarities", "test_vectors"}
    part = replace(graph, **{n: (a := getattr(graph, n))[: math.ceil(share * len(a))] for n in names})
    among = timed(job, lambda: exact_search(vectors, vectors, k, device))
    return among + max(0, timed(job, lambda: add_nodes(part, vectors, k, device)) - among) / share


def estimate_text(jobs: dict[str, tuple[Job, int]], limits: Limits, reading: float, n_processes: int) -> str:
    """Return the estimate as text: for each job with its slice width, and for the whole command.

    `reading` is the time to open all files, in seconds.
    """
    lines, most, total = [], 0.0, reading
    for name, (job, width) in jobs.items():
        terms, s = memory_terms(job, width, job.precision), job.sizes
        spent = seconds(job, width, n_processes)
        (host, phase), (mapped, _) = peak(terms, "host"), peak(terms, "mapped")
        most, total = max(most, limits.held + limits.mapped + host + mapped), total + sum(spent.values())
        lines += [
            f"{name}: {job.n_runs} runs of {s.n_nodes} nodes, {s.n_entries} entries, {s.n_classes} classes, "
            f"slices of {min(width, s.n_classes)} in {job.precision}; most memory: {phase}",
            *(f"  {t.name:26}{t.n_bytes / GIB:9.3f} GiB{'' if t.place == 'host' else f' ({t.place})'}" for t in terms),
            *(f"  {what:26}{value:9.2f} s" for what, value in spent.items()),
        ]
    available = (limits.held + limits.host) / GIB
    return "\n".join([
        *lines,
        f"in use now: {limits.held / GIB:.2f} GiB, and {limits.mapped / GIB:.2f} GiB of mapped files and libraries",
        f"reading: {reading:.1f} s",
        f"processes: {n_processes}, each with",
        f"memory: {most / GIB:.2f} GiB at most ({available:.2f} GiB available; mapped files do not count)",
        f"time: {total:.1f} s",
    ])  # fmt: skip
