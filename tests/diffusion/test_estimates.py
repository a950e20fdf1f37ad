"""Estimates of diffusion: bytes against real allocations, slice widths against limits, seconds by counting."""

import ctypes
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import assert_refused, run_script
from hypothesis import given, settings
from hypothesis import strategies as st

import diffusion
import lowshot.diffusion.estimates as room
from lowshot import diffusion as diffusion_room
from lowshot.core.errors import InputError
from lowshot.diffusion import adjacency
from lowshot.diffusion.adjacency import symmetrise
from lowshot.diffusion.estimates import GIB, Job, Limits, estimate_text, fitting_width, memory_terms, peak, seconds
from lowshot.diffusion.graph import Graph
from lowshot.diffusion.projection import Projection
from lowshot.diffusion.propagation import Labels, Spread, Work, assign, propagate
from lowshot.diffusion.propagation import TestLists as NodesOfTests
from lowshot.diffusion.run_graphs import RunGraphs, edge_weights
from lowshot.diffusion.settings import ConstantWeight, EdgeOptions, GaussianWeight, Labelling, StepOptions
from lowshot.evaluation.settings import Selection

K, DIM = 8, 16


def a_job(n_nodes=600, n_classes=40, k=K, steps=(3,), edges=None, device="cpu", known=True, **more) -> Job:
    """A job with random lists. A base class has 3 rows; a novel class has 2 shots, which are nodes if `known`."""
    rng = np.random.default_rng(0)
    ids = rng.integers(n_nodes, size=(n_nodes, k)).astype(np.int32)
    ids[:, 0], ids[5, 2:] = np.arange(n_nodes), -1
    similarities = np.broadcast_to(np.linspace(1, 0.5, k, dtype=np.float32), (n_nodes, k)).copy()
    vectors = rng.standard_normal((n_nodes, DIM), np.float32)
    novel, base_rows = np.arange(n_classes // 2, n_classes), np.arange(3 * (n_classes // 2))
    shots = {c: len(base_rows) + 2 * i + np.arange(2) for i, c in enumerate(novel)}
    train_rows = np.arange(5 * (n_classes // 2)) if known else base_rows
    graph = Graph(Path("made.h5"), ids, similarities, vectors, Projection(), train_rows, ids[:50], similarities[:50],
                  vectors[:50])  # fmt: skip
    benchmark = SimpleNamespace(
        draws={1: shots, 2: shots}, novel_classes=novel, classes=np.arange(n_classes), base_rows=base_rows,
        shot_rows=lambda trial, n: np.stack([shots[c][:n] for c in novel]),
        train=SimpleNamespace(feats=rng.standard_normal((200, DIM)).astype(np.float32)),
    )  # fmt: skip
    graphs = RunGraphs(graph, benchmark, edges or EdgeOptions(k=k), device)
    return Job(graphs, [1, 2], list(steps), StepOptions(), **{"precision": "float32", **more})


def bytes_of(job: Job, width: int, precision="float32") -> dict[str, float]:
    return {term.name: term.n_bytes for term in memory_terms(job, width, precision)}


def matrix_of(job: Job):
    graph, options = job.graphs.graph, job.graphs.options
    return symmetrise(graph.ids, edge_weights(graph.similarities, options), options.symmetry)


# --- sizes ---


@pytest.mark.parametrize("weight", [ConstantWeight(), GaussianWeight()], ids=["constant", "gaussian"])
@pytest.mark.parametrize("symmetry", ["sum", "max", "mutual"])
def test_entries_are_counted_without_making_the_matrix(symmetry, weight):
    """The count is not exact: a list that contains a node twice counts twice, but is one entry of a weighted matrix."""
    job = a_job(edges=EdgeOptions(k=K, weight=weight, symmetry=symmetry))
    made = matrix_of(job)
    assert job.sizes.n_entries == pytest.approx(made.n_entries, rel=0.02)
    lists = NodesOfTests(job.graphs.graph.test_ids)
    spread = Spread(made, Labels(np.arange(1), np.arange(1), 1), lists.nodes.astype(np.int64), StepOptions(), "cpu")
    assert job.sizes.n_needed == len(lists.nodes)
    assert job.sizes.needed_entries == pytest.approx(len(spread.needed_rows[0].entries), rel=0.05)


def test_the_published_matrix_is_counted_exactly_even_from_a_sample(monkeypatch):
    job = a_job()
    assert job.sizes.n_entries == matrix_of(job).n_entries == 2 * (600 * K - (K - 2))
    monkeypatch.setattr(adjacency, "_SAMPLED_LISTS", 100)
    assert a_job().sizes.n_entries == pytest.approx(job.sizes.n_entries, rel=0.02)


def test_only_shots_that_are_not_nodes_are_added():
    assert (a_job().sizes.n_added, a_job(known=False).sizes.n_added) == (0, 2 * 20)
    assert a_job(known=False).sizes.n_nodes == 640


# --- bytes ---


def test_terms_are_the_arrays_of_the_code():
    job = a_job()
    made, terms = matrix_of(job), bytes_of(job, 16)
    parts = [a for b in made.blocks for a in (b.columns, b.offsets)] + [made.degrees]
    assert terms["symmetric matrix"] == pytest.approx(sum(a.nbytes for a in parts), rel=0.01)
    assert terms["two label slices"] == 2 * torch.zeros(600, 16).nbytes
    assert bytes_of(job, 16, "bfloat16")["two label slices"] == 2 * torch.zeros(600, 16, dtype=torch.bfloat16).nbytes
    assert bytes_of(job, 64)["label slice"] == torch.zeros(600, 40).nbytes  # there are only 40 classes
    assert terms["scores of the steps"] == np.zeros((50, 40), np.float32).nbytes
    assert "copies of lists" not in terms and "mapped vectors" not in terms
    more = bytes_of(a_job(known=False), 16)
    assert more["copies of lists"] == 640 * K * 8 and more["mapped vectors"] == 600 * DIM * 4


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system cannot reset the peak memory")
@pytest.mark.parametrize(
    ("width", "precision", "weight", "assigning"),
    [
        (64, "float32", ConstantWeight(), False),
        (64, "bfloat16", GaussianWeight(), False),
        (32, "bfloat16", ConstantWeight(), True),
    ],
)
def test_the_peak_of_memory_is_right(width, precision, weight, assigning, monkeypatch):
    """Without the memory of libraries, which are loaded already. The arrays are large enough to be returned to the
    system when freed. The allocator would learn to keep them, or was told to by a training in this process, so its
    settings are fixed."""
    mmap_threshold, mmap_max, trim_threshold, top_pad = -3, -4, -1, -2
    for option, value in ((mmap_threshold, 1 << 16), (mmap_max, 1 << 16), (trim_threshold, 1 << 17), (top_pad, 0)):
        ctypes.CDLL(None).mallopt(option, value)
    monkeypatch.setattr(room, "_LIBRARIES", 0)
    work, peaks = Work(slice_width=width), {}
    for n_nodes in (200, 600_000):
        job = a_job(n_nodes, 80, 6, edges=EdgeOptions(k=6, weight=weight), precision=precision, assigning=assigning)
        nodes = np.arange(n_nodes)[:: n_nodes // 200]
        labels = Labels(nodes, np.arange(len(nodes)) % 80, 80)
        ctypes.CDLL(None).malloc_trim(0)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        made = matrix_of(job)
        if assigning:
            assign(made, labels, 3, None, precision, work)
        else:
            propagate(made, labels, job.graphs.graph.test_ids, [3], None, precision, work)
        peaks[n_nodes] = resident("VmHWM") - before
    assert peak(memory_terms(job, width, precision), "host")[0] == pytest.approx(peaks[600_000], rel=0.25)


def resident(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def test_on_a_gpu_slices_take_its_memory_and_lists_the_hosts():
    there, here = a_job(device="cuda"), a_job()
    slices = {term.name: term.place for term in memory_terms(there, 16, "float32")}
    assert slices["two label slices"] == slices["matrix on the GPU"] == "GPU" and slices["symmetric matrix"] == "host"
    assert peak(memory_terms(here, 16, "float32"), "GPU")[0] == 0
    lacking = Limits(host=GIB, gpu=1000, held=0, mapped=0)
    with pytest.raises(InputError, match=r"only 0\.00 GiB are available\. One class at a time would still need"):
        fitting_width(there, None, lacking)
    assert fitting_width(here, None, replace(lacking, gpu=None)) == 64


# --- limits ---


def limits(n_bytes: float) -> Limits:
    return Limits(host=n_bytes, gpu=None, held=0, mapped=0)


def need(job: Job, width: int, precision="float32") -> float:
    return peak(memory_terms(job, width, precision), "host")[0]


@settings(max_examples=50, deadline=None)
@given(st.floats(0.2, 1.5))
def test_the_widest_slice_that_fits_is_taken(share):
    job = a_job(20_000, 400)
    allowed = need(job, 1) + share * (need(job, 64) - need(job, 1))
    width = fitting_width(job, None, limits(allowed))
    wider = [w for w in (64, 48, 32, 16, 8, 4, 2) if w > width]
    assert need(job, width) <= allowed and all(need(job, w) > allowed for w in wider)


def test_a_refusal_names_the_width_the_precision_or_the_memory_needed():
    job = a_job(20_000, 400)
    with pytest.raises(
        InputError, match=r"slices of 64 classes need .* GiB, but only .* available\. Use --slice_width 32"
    ):
        fitting_width(job, 64, limits(need(job, 32)))
    assert fitting_width(job, 64, limits(need(job, 64))) == 64
    narrow = need(job, 1, "bfloat16")
    if narrow < need(job, 1):
        with pytest.raises(InputError, match=r"\. Use --precision bfloat16 --slice_width 1\."):
            fitting_width(job, None, limits(narrow))
    with pytest.raises(InputError, match=f"One class at a time would still need {narrow / GIB:.2f} GiB"):
        fitting_width(job, None, limits(narrow / 2))


def test_limits_are_those_of_the_machine_or_of_the_user(monkeypatch):
    now = Limits.now(None, "cpu")
    assert 0.5 * 2**20 < now.held < now.held + now.host and now.gpu is None
    given_limit = Limits.now(3, "cpu")
    assert given_limit.host + given_limit.held == pytest.approx(3 * GIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Limits.now(None, "cpu").host == pytest.approx(now.host / 4, rel=0.5)
    monkeypatch.setattr(Path, "read_text", lambda self: (_ for _ in ()).throw(OSError()))
    assert Limits.now(None, "cpu").host > 0 and Limits.now(None, "cpu").held > 0


def test_processes_agree_on_the_narrowest_width(monkeypatch):
    other = SimpleNamespace(device=torch.device("cpu"), size=1, largest=lambda widths: np.maximum(widths, -16))
    config = SimpleNamespace(slice_width=None, memory_gib=None)
    assert diffusion._width(a_job(), config, other) == 16


# --- seconds ---


def test_seconds_are_counts_times_rates(monkeypatch):
    """Every measurement takes one second, with or without entries, so the result is the counts."""
    monkeypatch.setattr(room, "_spent", lambda job, work: (work(), 1.0))
    job = a_job(steps=(0, 2, 5), n_evaluated=3)  # 4 runs, 3 slices of 40 classes
    assert seconds(job, 16, 1) == {
        "search of the shots": 0,
        "compiled loops": 1,
        "symmetric matrix": 2,  # weights and in-degrees; the matrix takes no longer than the in-degrees
        "class sums": 4 * 5,
        "first step": 0,  # the measured second is the time to take the rows
        "steps": 0,
        "last step": 4 * 3,
        "scores": 4 * (3 * (3 + 1) + 1),  # rows of the second step are copied from the state
        "evaluation": 4 * 3,
    }
    assert seconds(job, 16, 2)["last step"] == 4 * 2  # the first of two processes has two of the slices
    added = seconds(a_job(known=False), 16, 1)
    assert added["search of the shots"] == 4 and added["symmetric matrix"] == 4 * 2


@pytest.mark.parametrize("more", [{"weight": GaussianWeight()}, {"symmetry": "max"}])
@pytest.mark.parametrize("assigning", [False, True])
def test_every_kind_of_job_can_be_measured(more, assigning):
    job = a_job(known=False, edges=EdgeOptions(k=6, **more), precision="bfloat16", assigning=assigning)
    spent = seconds(job, 16, 1)
    assert all(value >= 0 for value in spent.values()) and spent["search of the shots"] > 0
    text = estimate_text({"results": (job, 16)}, limits(GIB), 1.5, 2)
    total = float(re.search(r"^time: ([\d.]+) s", text, re.M)[1])
    assert total == pytest.approx(1.5 + sum(spent.values()), abs=1) and "processes: 2" in text


# --- diffusion.py ---


@pytest.fixture
def flags(clusters, tmp_path) -> list:
    names = ("train", "test", "split", "draws", "graph")
    return [w for n in names for w in (f"--{n}", getattr(clusters, n))] + [
        "--out", tmp_path / "out" / "r.json", "--shots", "[1,4]", "--edges.k", 6,
    ]  # fmt: skip


@pytest.fixture
def config(clusters, tmp_path) -> diffusion.Config:
    files = {name: getattr(clusters, name) for name in ("train", "test", "split", "draws", "graph")}
    return diffusion.Config(**files, out=tmp_path / "out" / "r.json", shots=[1, 4], edges=EdgeOptions(k=6))


def test_a_dry_run_prints_and_writes_nothing(flags, tmp_path):
    result = run_script("diffusion.py", *flags, "--dry_run", "true")
    assert result.returncode == 0, result.stderr
    numbers = (r"^  last step +[\d.]+ s", r"^processes: 1", r"^memory: \d+\.\d\d GiB", r"^time: \d+\.\d s")
    for line in (r"^results, part 1: 4 runs of 288 nodes", r"^  symmetric matrix +0\.000 GiB", *numbers):
        assert re.search(line, result.stdout, re.M), (line, result.stdout)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_choice_results_and_labelled_images(config, tmp_path, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({"n_steps": [0, 2], "edges.k": [4, 6]}))
    wanted = replace(config, select=Selection(grid), history=4, label=Labelling(tmp_path / "p.h5"), dry_run=True)
    diffusion.main(wanted)
    parts = re.findall(r"^(.*), part (\d): (\d+) runs", capsys.readouterr().out, re.M)
    # Cells with the same lists share the steps.
    assert parts == [("choice of settings", "1", "4"), ("choice of settings", "2", "4"), ("results", "3", "4"),
                     ("labelled images", "4", "4")]  # fmt: skip
    diffusion.main(replace(wanted, setup="validation"))
    assert "results" not in capsys.readouterr().out
    assert not config.out.parent.exists() and list(tmp_path.iterdir()) == [grid]


def test_what_cannot_fit_is_refused(flags, tmp_path):
    """0.1 GiB is less than the libraries need."""
    result = run_script("diffusion.py", *flags, "--memory_gib", 0.1)
    assert_refused(result, "memory:", "GiB, but only 0.10 GiB are available", "One class at a time would still need")
    assert list(tmp_path.iterdir()) == []


def test_labelled_images_that_cannot_fit_are_refused(config, clusters, tmp_path):
    with pytest.raises(InputError, match="memory: slices of 8 classes"):
        label = Labelling(tmp_path / "p.h5", background=clusters.unlabelled)
        diffusion.main(replace(config, label=label, slice_width=8, memory_gib=0.1))
    assert list(tmp_path.iterdir()) == []


def test_the_width_chosen_changes_no_result(config, monkeypatch):
    made = {}
    for width in (1, 5, None):
        path = diffusion.main(replace(config, slice_width=width, overwrite=True))
        made[width] = json.loads(path.read_text())["trials"]
    assert made[1] == made[5] == made[None]


def test_where_memory_is_short_slices_are_narrow(config, monkeypatch):
    """A slice needs 8 MiB per class, and 28 MiB are available."""
    widths, most = [], memory_terms

    def far_more(job, width, precision):
        return [*most(job, width, precision), room.Term("made up", width * 2**23, room._PHASES)]

    monkeypatch.setattr(room, "memory_terms", far_more)
    monkeypatch.setattr(room, "_available", lambda: room._LIBRARIES + 28 * 2**20)
    monkeypatch.setattr(diffusion_room, "Work", lambda device, width, *_: widths.append(width) or Work(device, width))
    diffusion.main(config)
    assert widths == [2]
