"""What diffusion will take, known before it starts: memory by formula, time by running samples of the true operations.

Each module states the bytes that it holds; here they are put together. Seconds hold for this machine as busy as it is
now.
"""

import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
# Libraries load code and set up pools when they are first used, and freed memory is not all given back.
_LIBRARIES = 160 * 2**20
# Slice widths that are tried, the fastest first.
_WIDTHS = (64, 48, 32, 16, 8, 4, 2, 1)
_PHASES = ("search", "matrix", "class sums", "first step", "step", "last step", "scores")
# Entries of S on which time is measured: a quarter, at most these.
_SAMPLED_ENTRIES = 2**26
# Numbers compared in a measured search.
_SEARCHED = 2**33
# Seconds for compiled loops to load, at most: where they take longer now, they were compiled, and are kept.
_LOADING = 2.0


@dataclass(frozen=True)
class Job:
    """All runs on the graphs of a setup that share the steps."""

    graphs: RunGraphs
    shots: list[int]
    steps: list[int]
    """After which scores are wanted, ascending."""
    options: StepOptions
    precision: Precision
    n_evaluated: int = 1
    """Configs that are evaluated on the scores of a run."""
    n_final_scores: int = 0
    """How many times they are turned into other scores at once."""
    finish: Callable[[np.ndarray], Any] = np.copy
    """What a config does with scores (N, classes)."""
    assigning: bool = False
    """All nodes get a class (`assign`), in the place of scores for test images."""

    @property
    def n_runs(self) -> int:
        return len(self.shots) * len(self.graphs.benchmark.draws)

    @property
    def device(self) -> str:
        return torch.device(self.graphs.device).type

    @cached_property
    def sizes(self) -> Sizes:
        """Sizes of the run with the most shots."""
        return self.graphs.sizes(max(self.shots), self.assigning)


@dataclass(frozen=True)
class Term:
    """`n_bytes` that are held in `phases` of a run; `place` is the GPU's memory, the host's, or that of mapped files,
    which the system takes back where memory is short."""

    name: str
    n_bytes: float
    phases: tuple[str, ...]
    place: str = "host"


def memory_terms(job: Job, width: int, precision: Precision) -> list[Term]:
    """What a run holds beside what is there already, with slices of `width` columns."""
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
        Term("scores judged", scores * (3 + job.n_final_scores), ("scores",)),
        Term("classes of the nodes", job.assigning * propagation.ASSIGN_BYTES * n, spreading),
    ]  # fmt: skip
    if on_gpu == "GPU":
        matrix = propagation.device_bytes(n, s.n_entries + s.needed_entries, s.weighted)
        terms.append(Term("matrix on the GPU", matrix, spreading, "GPU"))
        terms.append(Term("search on the GPU", search_bytes(s.n_added), ("search",), "GPU"))
    return [term for term in terms if term.n_bytes]


def peak(terms: list[Term], place: str) -> tuple[float, str]:
    """The most that is held in one place at once, in bytes, and the phase."""
    return max((sum(t.n_bytes for t in terms if t.place == place and phase in t.phases), phase) for phase in _PHASES)


@dataclass(frozen=True)
class Limits:
    """Bytes that this process may hold, of the host's memory beyond what it holds now, and of the GPU's."""

    host: float
    gpu: float | None
    held: float
    """Private memory now."""
    mapped: float
    """Pages of files (libraries, lists) now."""

    @classmethod
    def now(cls, memory_gib: float | None, device: str) -> "Limits":
        """`memory_gib` for this process, or what the machine has left for each of the processes on it."""
        held, mapped = _resident()
        shared_by = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        host = _available() / shared_by if memory_gib is None or device == "cuda" else memory_gib * GIB - held
        gpu = None
        if device == "cuda":
            gpu = torch.cuda.mem_get_info()[0] if memory_gib is None else memory_gib * GIB
        return cls(host, gpu, held, mapped)

    def lack(self, terms: list[Term]) -> float:
        """Bytes that are missing in the place that is short of most; negative where all fits."""
        over = [peak(terms, "host")[0] - self.host]
        return max(over + ([peak(terms, "GPU")[0] - self.gpu] if self.gpu is not None else []))


def _resident() -> tuple[float, float]:
    """Private and file pages of this process that are in memory, in bytes."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE"), int(shared) * os.sysconf("SC_PAGE_SIZE")


def _available() -> float:
    """Bytes that the machine can give without swapping; all it has where it does not say."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def fitting_width(job: Job, requested_width: int | None, limits: Limits) -> int:
    """`requested_width`, or the fastest slice width that fits.

    Raises InputError where nothing does, naming the slice width or the precision that would.
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
        advice = f"{'' if precision == job.precision else f'--precision {precision} '}--slice_width {width} fits"
    else:
        alone = peak(memory_terms(job, 1, "bfloat16"), place)[0] + held
        advice = f"one class at a time would still take {alone / GIB:.2f}"
    need, available = peak(terms, place)[0] + held, limit + held
    raise InputError(
        f"memory: slices of {widths[-1]} classes take {need / GIB:.2f} GiB, there are {available / GIB:.2f}; {advice}"
    )


def seconds(job: Job, width: int, n_processes: int) -> dict[str, float]:
    """Seconds of a job by what is done: all its runs, on the process with the most slices.

    Samples are ranges of rows of S. What does not grow with entries is measured on a matrix without any.
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
        "judging": job.n_evaluated * timed(job, lambda: job.finish(scores)),
    }
    return {
        "search of the shots": _search_seconds(job) if sizes.n_added else 0,
        "compiled loops": loading,
        "symmetric matrix": making * (job.n_runs if sizes.n_added else 1),
        **{name: job.n_runs * value for name, value in per_run.items()},
    }


def seconds_around() -> float:
    """Seconds since the start, when nothing is done yet, and those for the end: a fifth, in which modules are freed."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        started = float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        started = time.process_time()
    return 1.2 * started


def timed(job: Job, work: Callable[[], Any]) -> float:
    """Seconds of `work`."""
    return float(_repeated(lambda: _spent(job, work)[1]))


def _repeated(measure: Callable[[], Any]) -> np.ndarray:
    """The median of some measurements; one that is long is not repeated, of others the first does not count, as the
    first time takes longer."""
    start, results = time.perf_counter(), []
    while not results or (len(results) < 6 and time.perf_counter() - start < 0.3):
        results.append(measure())
    return np.median(results[1:] or results, axis=0)


def _sampled_matrix(job: Job) -> tuple[Adjacency, float, float]:
    """S with its first rows filled only, the seconds that all of it takes, and those for compiled loops to load."""
    sizes, options, graph = job.sizes, job.graphs.options, job.graphs.graph
    # As in a run, copies or views of the file: loops are compiled for each.
    ids, similarities = (np.array(a[:, : options.k]) if sizes.n_added else a[:, : options.k]
                         for a in (graph.ids, graph.similarities))  # fmt: skip
    share = min(0.25, _SAMPLED_ENTRIES / sizes.n_entries)

    def make(ids: np.ndarray) -> tuple[Adjacency, float]:
        weights, weighing = _spent(job, lambda: edge_weights(similarities[: len(ids)], options))
        _, counting = _spent(job, lambda: in_degrees(ids))
        sample, making = _spent(job, lambda: symmetrise(ids, weights, options.symmetry, share))
        return sample, weighing + counting + max(0, making - counting) * sizes.n_entries / sample.n_entries

    # Lists of a few nodes that lie in memory as `ids` do.
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
    """Seconds of a slice's parts, with as many labelled and needed nodes as there are, spread evenly over all."""
    sizes, n = job.sizes, len(matrix)
    width = min(width, sizes.n_classes)
    nodes = _evenly(n, sizes.n_labelled * width // sizes.n_classes)
    labels = Labels(nodes, np.arange(len(nodes)) % width, width)
    # These have more neighbours than others: as many nodes as have as many entries.
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
    """`n` of `n_nodes` node numbers, evenly spread."""
    return np.unique(np.linspace(0, n_nodes - 1, max(1, min(n, n_nodes))).astype(np.int64))


def _search_seconds(job: Job) -> float:
    """Seconds of `add_nodes` in all runs: measured for the fewest and the most shots."""
    ends = sorted({min(job.shots), max(job.shots)})
    one_trial = np.interp(job.shots, ends, [_one_search_seconds(job, n_shot) for n_shot in ends])
    return len(job.graphs.benchmark.draws) * float(one_trial.sum())


def _one_search_seconds(job: Job, n_shot: int) -> float:
    """Measured on as many of the nodes and test images as take about a second."""
    graph, benchmark, k, device = job.graphs.graph, job.graphs.benchmark, job.graphs.options.k, job.graphs.device
    rows = benchmark.shot_rows(next(iter(benchmark.draws)), n_shot).ravel()
    vectors = graph.project(benchmark.train.feats[rows])
    share = min(1, max(BLOCK, _SEARCHED / vectors.size) / graph.n_nodes)
    names = {"ids", "similarities", "vectors", "test_ids", "test_similarities", "test_vectors"}
    part = replace(graph, **{n: (a := getattr(graph, n))[: math.ceil(share * len(a))] for n in names})
    among = timed(job, lambda: exact_search(vectors, vectors, k, device))
    return among + max(0, timed(job, lambda: add_nodes(part, vectors, k, device)) - among) / share


def estimate_text(jobs: dict[str, tuple[Job, int]], limits: Limits, reading: float, n_processes: int) -> str:
    """An estimate in lines: of each job, with the slice width that it gets, and of the whole command.

    `reading` are the seconds that opening all files takes.
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
        f"here already: {limits.held / GIB:.2f} GiB, and {limits.mapped / GIB:.2f} of mapped files and libraries",
        f"reading: {reading:.1f} s",
        f"processes: {n_processes}, each with",
        f"memory: {most / GIB:.2f} GiB at most (there are {available:.2f}; mapped files do not count)",
        f"time: {total:.1f} s",
    ])  # fmt: skip
