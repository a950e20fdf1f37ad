"""diffusion.py on tiny clusters: reference results, choice of steps, fusion, labelled images, processes, bad input."""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from conftest import OF_RESULTS, ROOT, assert_refused, run_script
from test_propagation import neighbour_sums, normalised, walk

import diffusion
import low_shot
import lowshot.data.rows as rows_room
import lowshot.diffusion.adjacency as adjacency_room
from build_graph import CompleteConfig, complete
from diffusion import Config
from lowshot import diffusion as diffusion_room
from lowshot.classifiers.settings import LogisticOptions
from lowshot.core.artifacts import read_recipe
from lowshot.core.errors import InputError
from lowshot.core.files import digest, write_json
from lowshot.core.publishing import partial_path
from lowshot.core.runtime import Processes
from lowshot.data.features import write_features
from lowshot.diffusion.fusion import fuse
from lowshot.diffusion.settings import (
    Background,
    ConstantWeight,
    EdgeOptions,
    Fusion,
    GaussianWeight,
    Labelling,
    SimilarityWeight,
    StepOptions,
)
from lowshot.evaluation.selection import evidence_path, joint_recipe
from lowshot.evaluation.settings import Selection

EDGES = EdgeOptions(k=6)
CLASSES = np.array([1, 3, 5, 7, 9, 11])  # of the test setup, 7, 9, 11 novel
SHOTS = [1, 4]


@pytest.fixture
def config(clusters, tmp_path) -> Config:
    files = {name: getattr(clusters, name) for name in ("train", "test", "split", "draws", "graph")}
    return Config(**files, out=tmp_path / "out" / "r.json", shots=SHOTS, n_steps=2, edges=EDGES)


def results(config: Config, **changes) -> dict:
    return json.loads(diffusion.main(replace(config, overwrite=True, **changes)).read_text())


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(path) as file:
        return file["all_feats"][:].astype(np.float64), file["all_labels"][:].astype(int)


def unit(feats: np.ndarray) -> np.ndarray:
    return feats / np.linalg.norm(feats, axis=1, keepdims=True)


def nearest(queries: np.ndarray, nodes: np.ndarray, k: int = EDGES.k) -> np.ndarray:
    return np.argsort(-queries @ nodes.T, axis=1)[:, :k]


class ByHand:
    """Float64 reference of one run on the test setup. Nodes are base rows, shots, other train rows and background."""

    def __init__(self, clusters, kind: str, trial: int, n_shot: int) -> None:
        feats, labels = read(clusters.train)
        test, truth = read(clusters.test)
        draws = json.loads(clusters.draws.read_text())["trials"][str(trial)]
        shots = np.concatenate([draws[c][:n_shot] for c in CLASSES[3:]])
        base = np.flatnonzero(np.isin(labels, CLASSES[:3]))
        others = np.setdiff1d(np.arange(len(labels)), [*base, *shots]) if kind == "images" else np.empty(0, int)
        rows = np.concatenate([base, shots, others])
        background = np.load(clusters.unlabelled).astype(np.float64) if kind == "graph" else np.empty((0, 8))
        self.feats = np.concatenate([feats[rows], background])
        nodes = unit(self.feats)
        self.initial = np.zeros((len(nodes), 6))
        n_labelled = len(base) + len(shots)
        self.initial[np.arange(n_labelled), np.searchsorted(CLASSES, labels[rows[:n_labelled]])] = 1
        self.w = walk(nearest(nodes, nodes).astype(np.int32))
        self.truth = truth[np.isin(truth, CLASSES)]
        self.test_ids = nearest(unit(test[np.isin(truth, CLASSES)]), nodes)

    def state(self, n_steps: int) -> np.ndarray:
        state = normalised(self.initial)
        for _ in range(n_steps):
            state = normalised(self.w @ state)
        return state

    def scores(self, n_steps: int) -> np.ndarray:
        return neighbour_sums(self.state(n_steps), self.test_ids)

    def six(self, scores: np.ndarray) -> dict[str, float]:
        """The six accuracies. Of equal scores the lowest class wins."""
        best = CLASSES[np.argsort(-scores, axis=1, kind="stable")]
        groups = {"novel": self.truth > 5, "base": self.truth <= 5, "all": self.truth > 0}
        groups["novel"], groups["base"] = np.isin(self.truth, CLASSES[3:]), np.isin(self.truth, CLASSES[:3])
        return {
            f"top{k}_{name}": (best[inside, :k] == self.truth[inside, None]).any(1).mean()
            for name, inside in groups.items()
            for k in (1, 5)
        }


def assert_runs(content: list[dict], clusters, kind: str, n_steps: int, change=lambda scores, by_hand: scores) -> None:
    assert [(one["trial"], one["n_shot"]) for one in content] == [(t, n) for t in (1, 2) for n in SHOTS]
    for one in content:
        by_hand = ByHand(clusters, kind, one["trial"], one["n_shot"])
        expected = by_hand.six(change(by_hand.scores(n_steps), by_hand))
        assert {name: one[name] for name in expected} == pytest.approx(expected), one


# --- numbers ---


@pytest.mark.parametrize("n_steps", [0, 1, 3])
@pytest.mark.parametrize("kind", ["graph", "bare", "images"])
def test_the_whole_stage_by_hand(clusters, config, kind, n_steps, monkeypatch):
    """With a background, without one (nbg = 0), and with training images whose labels are withheld; in many blocks."""
    monkeypatch.setattr(adjacency_room, "_ENTRIES_PER_RANGE", 300)
    monkeypatch.setattr(rows_room, "BLOCK", 50)
    content = results(config, graph=getattr(clusters, kind), n_steps=n_steps)
    assert_runs(content["trials"], clusters, kind, n_steps)


def test_results_file(clusters, config):
    content = results(config, history=3)
    made = OF_RESULTS | {"trials", "history", "classes", "confusions"}
    assert set(content) == made and content["stage"] == "diffusion" and content["dataset"] == "clusters"
    assert content["method"] == "diffusion (240 background images)"
    assert content["protocol"]["setup"] == "test" and content["protocol"]["setting"] == "unknown"  # of the .npy
    assert set(content["inputs"]) == {"train", "test", "split", "draws", "graph"}
    assert content["inputs"]["graph"] == digest(clusters.folder / "graph-test.h5")
    for step in range(4):
        assert_runs([one for one in content["history"] if one["n_steps"] == step], clusters, "graph", step)
    assert_runs(content["trials"], clusters, "graph", 2)


@pytest.mark.parametrize(
    ("kind", "method", "setting"),
    [
        ("bare", "diffusion (no unlabelled images)", "inductive"),
        ("images", "diffusion (all training images)", "semi_supervised"),
    ],
)
def test_the_method_name_states_the_unlabelled_images(clusters, config, kind, method, setting):
    content = results(config, graph=getattr(clusters, kind), shots=[1], trials=[1])
    assert content["method"] == method and content["protocol"]["setting"] == setting


def test_a_part_gives_the_numbers_of_the_whole(config):
    whole = results(config)["trials"]
    assert results(config, trials=[2], shots=[4])["trials"] == whole[-1:]


@pytest.mark.parametrize("exponent", [0.5, 2.0])
def test_class_prior_by_hand(clusters, config, exponent):
    def prior(scores, by_hand):
        return scores * by_hand.initial.sum(0) ** exponent

    assert_runs(results(config, class_prior=exponent)["trials"], clusters, "graph", 2, prior)


def test_ties_are_won_by_the_lowest_class_or_lost(clusters, config):
    """Without steps, most images have few non-zero scores."""
    published, against = (results(config, n_steps=0, ties=ties)["trials"] for ties in ("lowest_class", "against"))
    assert_runs(published, clusters, "graph", 0)
    assert all(one["top5_all"] <= other["top5_all"] for one, other in zip(against, published))
    assert against != published


def test_options_of_edges_and_steps_reach_the_work(config):
    """Each option changes some score. What each option does is tested with its module."""
    plain = scores_of(config)
    for change in (
        {"edges": replace(EDGES, k=5)},
        {"edges": replace(EDGES, weight=SimilarityWeight())},
        {"edges": replace(EDGES, weight=GaussianWeight(0.3))},
        {"edges": replace(EDGES, symmetry="max")},
        {"step": StepOptions(restart=0.2)},
        {"step": StepOptions(clamp=True)},
        {"precision": "bfloat16"},
        {"n_steps": 3},
    ):
        assert not np.array_equal(scores_of(replace(config, **change)), plain), change
    np.testing.assert_array_equal(scores_of(replace(config, slice_width=1)), plain)


def scores_of(config: Config) -> np.ndarray:
    from lowshot.core.runtime import open_processes
    from lowshot.evaluation.benchmark import read_benchmark

    with open_processes() as processes:
        own = diffusion._of_setup(config)
        graph = diffusion_room.open_setup_graph(own.graph, own)
        runs = [(key, list(one)) for key, one in diffusion._scores([own], graph, read_benchmark(own), processes)]
    return np.stack([scores for _, (scores,) in runs])


def test_diffusion_helps_where_few_images_have_labels(tmp_path):
    """Two labelled images per class and 1000 unlabelled ones: hardly any test image has a labelled neighbour."""
    from build_graph import BackgroundConfig, background
    from lowshot.data.protocol import Split, draws_to_json, make_draws

    rng, n_classes = np.random.default_rng(3), 16
    centres = rng.standard_normal((n_classes, 16))

    def rows(n_rows):
        labels = np.repeat(np.arange(n_classes), n_rows)
        return np.float32(centres[labels] + 0.9 * rng.standard_normal((len(labels), 16))), labels

    for name, n_rows in (("train", 2), ("test", 20)):
        write_features(
            tmp_path / f"{name}.h5", *rows(n_rows), {"stage": "test", "config": {}, "inputs": {}, "lineage": {}}
        )
    np.save(tmp_path / "background.npy", rows(64)[0])
    names, groups = [str(c) for c in range(n_classes)], np.arange(n_classes).reshape(4, 4).tolist()
    split = Split("toy", names, [], [None] * n_classes, groups[0] + groups[2], groups[1] + groups[3], *groups)
    write_json(tmp_path / "split.json", split.to_json())
    draws = make_draws(np.repeat(np.arange(n_classes), 2), names, 2, 2, 0)
    write_json(tmp_path / "draws.json", draws_to_json(draws, split, 0))

    files = {"train": tmp_path / "train.h5", "test": tmp_path / "test.h5", "split": tmp_path / "split.json"}
    far = background(BackgroundConfig(features=tmp_path / "background.npy", out=tmp_path / "b.h5", k=30))
    complete(CompleteConfig(**files, background=Background(far), out=tmp_path / "graph.h5", k=30))
    config = Config(**files, draws=tmp_path / "draws.json", graph=tmp_path / "graph.h5", out=tmp_path / "r.json",
                    shots=[2], history=4)  # fmt: skip
    history = results(config)["history"]
    means = [np.mean([one["top1_all"] for one in history if one["n_steps"] == t]) for t in range(5)]
    assert min(means[2:5]) > means[0] + 0.1 and max(means) > 0.7, means


# --- choice of settings ---


def write_grid(config: Config, text: str, **how) -> Config:
    grid = config.out.parent.parent / "grid.yaml"
    grid.write_text(text)
    return replace(config, select=Selection(grid, **how))


def evidence_of(config: Config) -> dict:
    return yaml.safe_load(config.out.with_suffix(".selection.yaml").read_text())


def without_classes(trials):
    return [{key: value for key, value in one.items() if key not in ("class_hits", "base_novel")} for one in trials]


def test_cells_that_share_steps_give_the_same_results_as_alone(config):
    chosen = write_grid(
        config, "n_steps: [0, 3, 1]\nedges.k: [6, 4]\nties: [lowest_class, against]", criterion="top1_all"
    )
    content = results(chosen)
    cells = evidence_of(chosen)["cells"]
    assert len(cells) == 12
    for cell in cells:
        values = cell["values"]
        alone = results(config, setup="validation", n_steps=values["n_steps"], ties=values["ties"],
                        edges=EdgeOptions(k=values["edges.k"]))  # fmt: skip
        assert cell["trials"] == without_classes(alone["trials"])
    best = max(cells, key=lambda cell: cell["mean"])["values"]
    assert content["selection"]["chosen"] == best
    expected = results(config, n_steps=best["n_steps"], ties=best["ties"], edges=EdgeOptions(k=best["edges.k"]))
    assert content["trials"] == expected["trials"] and content["config"] == expected["config"]


def test_steps_chosen_for_every_n(config):
    """The results equal those of separate runs."""
    chosen = write_grid(config, "n_steps: [0, 1, 2, 4]", per_shot=True, criterion="top1_novel")
    content = results(chosen)
    cells = evidence_of(chosen)["cells"]
    by_shot = {}
    for n in SHOTS:
        means = [np.mean([one["top1_novel"] for one in c["trials"] if one["n_shot"] == n]) for c in cells]
        by_shot[str(n)] = cells[int(np.argmax(means))]["values"]
    assert content["selection"]["chosen"] == evidence_of(chosen)["chosen"] == by_shot
    for n in SHOTS:
        alone = results(config, shots=[n], n_steps=by_shot[str(n)]["n_steps"])["trials"]
        assert [one for one in content["trials"] if one["n_shot"] == n] == alone
    assert content["config"]["shots"] == SHOTS


@pytest.mark.parametrize("kill_at", [1, 2])
def test_an_interrupted_grid_resumes(config, monkeypatch, kill_at):
    """Cells that share their steps are evaluated together; each such group is stored when it is done."""
    chosen = write_grid(config, "edges.k: [4, 5, 6]\nn_steps: [1, 2]")
    whole = results(chosen, out=config.out.with_name("whole.json"))
    real, calls = diffusion._scores, []

    def counted(configs, *rest):
        calls.append(configs[0].edges.k)
        if len(calls) == kill_at + 1:
            raise KeyboardInterrupt
        return real(configs, *rest)

    monkeypatch.setattr(diffusion, "_scores", counted)
    with pytest.raises(KeyboardInterrupt):
        diffusion.main(chosen)
    unfinished = partial_path(config.out.with_suffix(".selection.yaml"))
    assert len(yaml.safe_load(unfinished.read_text())["cells"]) == 2 * kill_at and not config.out.exists()
    content = json.loads(diffusion.main(chosen).read_text())
    assert calls[kill_at + 1 : -1] == [4, 5, 6][kill_at:]
    assert content["trials"] == whole["trials"] and content["selection"]["digest"] == whole["selection"]["digest"]


def test_on_validation_only_the_choice_is_made(config):
    chosen = write_grid(config, "n_steps: [0, 2]")
    evidence = config.out.with_suffix(".selection.yaml")
    assert diffusion.main(replace(chosen, setup="validation")) == evidence
    assert evidence.exists() and not config.out.exists()
    assert diffusion.main(chosen) == config.out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fuse.weight: [0.1, 0.9]", "fuse.scores: is required"),
        ("edges.weight.sigma: [0.1, 0.9]", "edges.weight.sigma: no setting of constant"),
        ("label.n_rows: [1, 2]", "label.out: is required"),
        ("slice_width: [1, 2]", "slice_width: cannot be in a grid"),
        ("fusion_weight: [0.1, 0.9]", "fusion_weight: is called fuse.weight now"),
        ("edges.sigma: [0.1, 0.9]", "edges.sigma: is called edges.weight.sigma now"),
    ],
)
def test_a_setting_that_nothing_reads_is_not_chosen(config, text, words):
    with pytest.raises(InputError, match=words):
        diffusion.main(write_grid(config, text))


def test_a_graph_of_one_setup_cannot_choose(config):
    chosen = replace(write_grid(config, "n_steps: [0, 2]"), graph=Path(str(config.graph).format(setup="test")))
    with pytest.raises(
        InputError, match=r'--select needs a file of each setup\. .* use --graph ".*graph-{setup}\.h5"$'
    ):
        diffusion.main(chosen)
    one_graph = config.train.parent / "own-{setup}.h5"
    shutil.copy(str(config.graph).format(setup="validation"), str(one_graph).format(setup="validation"))
    with pytest.raises(InputError, match=r"own-test\.h5: no such file"):
        diffusion.main(write_grid(replace(config, graph=one_graph), "n_steps: [0, 2]"))
    assert not config.out.exists() and not evidence_path(config.out).exists()


# --- existing outputs ---


def test_existing_results_are_skipped(config, capsys):
    before = diffusion.main(config).stat().st_mtime_ns
    assert diffusion.main(replace(config, slice_width=1, memory_gib=1.0)).stat().st_mtime_ns == before
    assert "already exists" in capsys.readouterr().out
    with pytest.raises(InputError, match="setting n_steps was 2, now 3"):
        diffusion.main(replace(config, n_steps=3))
    with pytest.raises(InputError, match="input graph has changed"):
        diffusion.main(replace(config, graph=config.graph.with_name("bare-{setup}.h5")))
    diffusion.main(replace(config, n_steps=3, overwrite=True))
    assert json.loads(config.out.read_text())["config"]["n_steps"] == 3


def test_recipes_from_before_choices_had_settings(config, scored):
    """Recipes of revision d41a11c, where some settings had other names or were stored although nothing read them."""
    edges, files = {"k": 6, "symmetry": "sum"}, {"fuse": Fusion(scored[2], 0.3)}

    def same(today, **older) -> bool:
        return today.difference({**today, "config": {**plain, **older}}) is None

    today = diffusion._recipe(replace(config, edges=replace(EDGES, weight=GaussianWeight(0.3)), **files))
    plain = {name: value for name, value in today["config"].items() if name not in ("edges", "fuse", "select")}
    weighted = {**edges, "weight": "gaussian", "sigma": 0.3}
    assert same(today, edges=weighted, fusion_weight=0.3) and same(today, **today["config"])
    assert not same(today, edges=weighted, fusion_weight=0.4)
    assert not same(today, edges={**weighted, "sigma": 0.4}, fusion_weight=0.3)
    assert same(diffusion._recipe(config), edges={**edges, "weight": "constant"})
    by_n = [replace(config, shots=[1]), replace(config, shots=[4], n_steps=3, edges=EdgeOptions(5, GaussianWeight()))]
    today = joint_recipe([(one.shots, diffusion._recipe(one)) for one in by_n])
    groups = {"1": {**edges, "weight": "constant"}, "4": {**edges, "k": 5, "weight": "gaussian", "sigma": 0.5}}
    assert same(today, n_steps={"1": 2, "4": 3}, edges=groups)
    groups["1"]["k"] = 7
    assert not same(today, n_steps={"1": 2, "4": 3}, edges=groups)


def test_a_second_output_overwrites_no_other_results(clusters, config, tmp_path):
    """Only one of the two outputs exists, and it was made with different settings."""
    diffusion.main(config)
    before = config.out.read_bytes()
    label = Labelling(tmp_path / "p.h5", background=clusters.unlabelled)
    with pytest.raises(InputError, match="setting n_steps was 2, now 3"):
        diffusion.main(replace(config, n_steps=3, label=label))
    assert config.out.read_bytes() == before and not (tmp_path / "p.h5").exists()
    diffusion.main(replace(config, label=label))
    assert json.loads(config.out.read_text())["trials"] == json.loads(before)["trials"]


def test_a_killed_run_leaves_nothing_half_written(clusters, config, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    wanted = replace(config, label=Labelling(tmp_path / "out" / "p.h5", background=clusters.unlabelled))
    for room, name in ((diffusion, "_scores"), (diffusion_room, "write_propagated"), (diffusion, "writing_results")):
        with monkeypatch.context() as patch:
            patch.setattr(room, name, stop)
            with pytest.raises(KeyboardInterrupt):
                diffusion.main(wanted)
        assert not config.out.exists() and not list(tmp_path.glob("out/.lowshot"))
        assert wanted.label.out.exists() == (name != "write_propagated")
        wanted.label.out.unlink(missing_ok=True)
    diffusion.main(wanted)
    assert config.out.exists() and wanted.label.out.exists()


def test_an_estimate_writes_nothing(clusters, config, capsys):
    wanted = {"history": 2, "label": Labelling(config.out.with_name("p.h5"), background=clusters.unlabelled)}
    chosen = write_grid(config, "n_steps: [1, 3]\nedges.k: [4, 6]")
    diffusion.main(replace(chosen, dry_run=True, **wanted))
    assert "GiB" in capsys.readouterr().out and not list(config.out.parent.glob("*"))


def test_what_does_not_fit_into_memory_is_refused(config):
    with pytest.raises(InputError, match="memory: "):
        diffusion.main(replace(config, memory_gib=0.01))
    assert not config.out.exists()


# --- several processes ---


def torchrun(config: Config, *more: object) -> subprocess.CompletedProcess:
    names = ("train", "test", "split", "draws", "graph", "out")
    files = [str(word) for name in names for word in (f"--{name}", getattr(config, name))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    own = ["--edges.k", "6", "--shots", "[1,4]", "--step.restart", "0.25", *map(str, more)]
    return subprocess.run([*command, ROOT / "diffusion.py", *files, *own], capture_output=True, text=True,
                          cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


def test_two_processes_make_the_same_files(clusters, config, tmp_path):
    wanted = replace(write_grid(config, "n_steps: [1, 2]\nedges.weight: [constant, gaussian]"), history=2,
                     step=StepOptions(restart=0.25),
                     label=Labelling(tmp_path / "one.h5", background=clusters.unlabelled))  # fmt: skip
    one = results(wanted, out=tmp_path / "out" / "one.json")
    done = torchrun(wanted, "--select", wanted.select.grid, "--history", 2, "--label", tmp_path / "two.h5",
                    "--label.background", clusters.unlabelled, "--slice_width", 1)  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = json.loads(config.out.read_text())
    assert two["trials"] == one["trials"] and two["history"] == one["history"] and two["config"] == one["config"]
    assert two["selection"]["digest"] == one["selection"]["digest"] and two["inputs"] == one["inputs"]
    assert done.stdout.count("cell 4 of 4") == 1 and str(config.out) in done.stdout and "/tmp/tmp" not in done.stdout
    with h5py.File(tmp_path / "one.h5") as mine, h5py.File(tmp_path / "two.h5") as other:
        assert list(mine) == list(other) and len(mine["labels"]) > 20
        for name in mine:
            np.testing.assert_array_equal(mine[name][:], other[name][:])


def test_two_processes_say_an_error_once(config, tmp_path):
    done = torchrun(replace(config, graph=tmp_path / "none.h5"))
    assert done.returncode != 0 and not config.out.exists()
    assert done.stderr.count("diffusion.py: error: ") == 1 and "none.h5: no such file" in done.stderr


class InThreads:
    """Processes simulated by threads."""

    def __init__(self, rank: int, size: int, shared: list, barrier: threading.Barrier) -> None:
        self.rank, self.size, self.device, self.shared, self.barrier = rank, size, torch.device("cpu"), shared, barrier

    def wait(self) -> None:
        self.barrier.wait()

    def _of_all(self, array: np.ndarray, together) -> np.ndarray:
        self.shared[self.rank] = array.copy()
        self.wait()
        result = together.reduce(self.shared)
        self.wait()
        return result

    def total(self, array: np.ndarray) -> np.ndarray:
        return self._of_all(array, np.add)

    def largest(self, array: np.ndarray) -> np.ndarray:
        return self._of_all(array, np.maximum)


def run_in_threads(config: Config, size: int) -> list[Config]:
    """The configurations of all processes, each with outputs of its own, when they have run."""
    shared, barrier = [None] * size, threading.Barrier(size, timeout=60)
    outputs = [config.out.parent / str(rank) for rank in range(size)]
    labels = [config.label and replace(config.label, out=folder / "p.h5") for folder in outputs]
    configs = [replace(config, out=folder / "r.json", label=one) for folder, one in zip(outputs, labels)]
    with ThreadPoolExecutor(size) as pool:
        processes = [InThreads(rank, size, shared, barrier) for rank in range(size)]
        list(pool.map(diffusion._run, configs, processes))
    return configs


@pytest.mark.parametrize(("size", "width"), [(2, 1), (3, 2), (4, 7)])
def test_every_process_finds_the_same(config, size, width):
    """Also where some have no class to work on."""
    own = replace(config, history=1)
    expected = results(own)
    for one in run_in_threads(replace(own, slice_width=width), size):
        made = json.loads(one.out.read_text())
        assert made["trials"] == expected["trials"] and made["history"] == expected["history"]


def test_ties_between_classes_of_two_processes_go_to_the_lowest_class(clusters, config, monkeypatch):
    def assigned(adjacency, labels, n_steps, options, precision, work):
        """Process 0 assigns class 9, process 1 class 7. They are most confident about nodes that end in 5 and in 6."""
        nodes = np.arange(len(adjacency))
        sure = np.where(nodes % 10 == 5 + work.process, 0.75, 0.5).astype(np.float32)
        return np.where(nodes % 10 == 0, 0, 4 - work.process), np.where(nodes % 10 == 0, 0, sure).astype(np.float32)

    monkeypatch.setattr(diffusion_room, "assign", assigned)
    label = Labelling(Path("p.h5"), n_rows=999, background=clusters.unlabelled)
    own = replace(config, label=label, trials=[1], shots=[1])
    for one in run_in_threads(own, 2):
        with h5py.File(one.label.out) as file:
            n_by_class = dict(zip(*np.unique(file["labels"][:], return_counts=True)))
        assert n_by_class == {7: 24 * 8, 9: 24}  # of 240 background images; no label reaches nodes that end in 0


def test_other_processes_write_to_copies(config, capsys):
    """They see the existing outputs, an interrupted grid included, and leave them unchanged."""
    out = config.out
    evidence, propagated = out.with_suffix(".selection.yaml"), out.parent / "p.h5"
    partial_path(out).parent.mkdir(parents=True, mode=0o700)
    for path in (out, evidence, partial_path(evidence), propagated):
        path.write_text(path.name)
    second = Processes(1, 1, torch.device("cpu"))
    with diffusion._process_outputs(replace(config, label=Labelling(propagated)), second) as own:
        assert own.out.parent == own.label.out.parent != out.parent
        copies = [path for path in own.out.parent.rglob("*") if path.is_file()]
        for path in copies:
            assert path.read_text() == path.name
            path.write_text("changed")
        assert len(copies) == 4
        print("nobody reads this")
    assert not own.out.exists() and capsys.readouterr().out == ""
    assert all(path.read_text() == path.name for path in out.parent.rglob("*") if path.is_file())
    with diffusion._process_outputs(config, Processes(0, 1, torch.device("cpu"))) as own:
        assert own is config


# --- fusion ---


def test_fusion_by_hand():
    diffused = np.float32([[3, 1, 0, 0], [0, 0, 0, 0]])
    classified = np.log(np.float32([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]))
    shares = np.array([[0.75, 0.25, 0, 0], [0.25] * 4]) * 0.99 + 0.01 / 4
    np.testing.assert_allclose(fuse(diffused, classified, 0.3), 0.3 * np.log(shares) + 0.7 * classified, rtol=1e-5)
    np.testing.assert_array_equal(fuse(diffused, classified, 0.0), classified)
    assert (np.argsort(-fuse(diffused, classified, 1.0), kind="stable") == [[0, 1, 2, 3], [0, 1, 2, 3]]).all()


@pytest.fixture(scope="module")
def scored(clusters, tmp_path_factory):
    """(low_shot.py's configuration, its results, file of its scores) on the test setup."""
    folder = tmp_path_factory.mktemp("scored")
    files = {name: getattr(clusters, name) for name in ("train", "test", "split", "draws")}
    config = low_shot.Config(**files, out=folder / "r.json", shots=SHOTS, classifier=LogisticOptions(),
                             scores=folder / "scores.h5")  # fmt: skip
    return config, json.loads(low_shot.main(config).read_text()), config.scores


def test_weight_zero_is_the_classifier_among_the_setups_classes(config, scored):
    with h5py.File(scored[2]) as file:
        np.testing.assert_array_equal(file["classes"][:], CLASSES)
        np.testing.assert_allclose(np.exp(file["log_probabilities"][:].astype(float)).sum(2), 1, rtol=1e-5)
        log_probabilities = file["log_probabilities"][:]
        runs = list(zip(file["trials"][:].tolist(), file["n_shots"][:].tolist()))
    assert runs == [(t, n) for t in (1, 2) for n in SHOTS]
    content = results(config, fuse=Fusion(scored[2], 0.0))
    _, truth = read(config.test)
    truth = truth[np.isin(truth, CLASSES)]
    for one, scores, plain in zip(content["trials"], log_probabilities, scored[1]["trials"]):
        best = CLASSES[np.argsort(-scores, axis=1, kind="stable")]
        assert one["top1_all"] == pytest.approx((best[:, 0] == truth).mean())
        assert one["top5_novel"] == pytest.approx((best[truth > 5, :5] == truth[truth > 5, None]).any(1).mean())
        assert one["top1_all"] >= plain["top1_all"]  # there the scores are over all twelve classes
    assert content["method"] == "diffusion + classifier (240 background images)"
    assert content["inputs"]["scores"] == digest(scored[2])


def test_weight_one_is_diffusion(config, scored):
    assert results(config, fuse=Fusion(scored[2], 1.0))["trials"] == results(config)["trials"]


def test_fused_scores_are_evaluated(clusters, config, scored):
    with h5py.File(scored[2]) as file:
        known = {
            run: scores.astype(np.float64)
            for run, scores in zip(zip(file["trials"][:], file["n_shots"][:]), file["log_probabilities"])
        }
    for one in results(config, fuse=Fusion(scored[2], 0.4))["trials"]:
        by_hand = ByHand(clusters, "graph", one["trial"], one["n_shot"])
        fused = fuse(by_hand.scores(2), known[one["trial"], one["n_shot"]], 0.4)
        expected = by_hand.six(fused)
        assert {name: one[name] for name in expected} == pytest.approx(expected)


def test_scores_of_something_else_are_refused(clusters, config, scored, tmp_path):
    def refused(words: str, scores: Path = scored[2], **changes) -> None:
        with pytest.raises(InputError, match=words):
            diffusion.main(replace(config, fuse=Fusion(scores), **changes))
        assert not config.out.exists()

    draws = json.loads(clusters.draws.read_text())
    draws["trials"]["1"][7] = draws["trials"]["1"][7][::-1]
    write_json(tmp_path / "draws.json", draws)
    feats, labels = read(clusters.train)
    write_features(tmp_path / "train.h5", np.float32(feats * 2), labels, read_recipe(clusters.train))
    graph = complete(CompleteConfig(train=tmp_path / "train.h5", test=clusters.test, split=clusters.split, k=8,
                                    out=tmp_path / "graph.h5"))  # fmt: skip
    refused(r"scores\.h5: made from another draws file", draws=tmp_path / "draws.json")
    refused(r"scores\.h5: made from another train file", train=tmp_path / "train.h5", graph=graph)
    refused(
        r"scores\.h5: made in the test setup\. Use --setup test here, or make it again",
        setup="validation",
    )
    refused(r"scores\.h5: has no scores of trial 1, n = 2", shots=[1, 2])
    refused("lacks the dataset 'log_probabilities'", scores=clusters.background)
    refused(r"nowhere\.h5: no such file", scores=tmp_path / "nowhere.h5")
    refused("not a readable HDF5", scores=clusters.split)


def test_the_weight_of_the_fusion_can_be_chosen(clusters, config, scored, tmp_path):
    for setup in ("validation", "test"):
        own = replace(scored[0], setup=setup, out=tmp_path / f"{setup}.json", scores=tmp_path / f"scores-{setup}.h5")
        low_shot.main(own)
    chosen = write_grid(config, "fuse.weight: [0.0, 0.5, 1.0]\nn_steps: [1, 2]", criterion="top1_all")
    content = results(chosen, fuse=Fusion(tmp_path / "scores-{setup}.h5"))
    values = content["selection"]["chosen"]
    fuse_alone = Fusion(tmp_path / "scores-test.h5", values["fuse.weight"])
    alone = results(config, fuse=fuse_alone, n_steps=values["n_steps"])
    assert content["trials"] == alone["trials"] and content["inputs"]["scores"] == alone["inputs"]["scores"]
    assert len({cell["mean"] for cell in evidence_of(chosen)["cells"]}) > 1


# --- images that get a label ---


def labelled_images(config: Config, background: Path | None = None, n_rows=20, **changes) -> dict[str, np.ndarray]:
    path = config.out.parent / "propagated.h5"
    diffusion.main(replace(config, overwrite=True, label=Labelling(path, n_rows, background), **changes))
    with h5py.File(path) as file:
        assert file.attrs["schema"] == "lowshot-propagated-1"
        return {name: file[name][:] for name in file if name != "lineage"}


@pytest.mark.parametrize("kind", ["graph", "images"])
def test_the_most_confident_unlabelled_images_are_labelled(clusters, config, kind, monkeypatch):
    monkeypatch.setattr(rows_room, "BLOCK", 50)
    source = {"graph": clusters.unlabelled, "images": None}[kind]
    rows = labelled_images(config, source, 5, graph=getattr(clusters, kind))
    for trial, n in [(t, n) for t in (1, 2) for n in SHOTS]:
        by_hand = ByHand(clusters, kind, trial, n)
        state, unlabelled = by_hand.state(2), ~by_hand.initial.any(1)
        for c in CLASSES[3:]:
            column = np.searchsorted(CLASSES, c)
            own = np.flatnonzero(unlabelled & (state.argmax(1) == column) & (state[:, column] > 0))
            order = own[np.argsort(-state[own, column])][:5]
            mine = (rows["trials"] == trial) & (rows["n_shots"] == n) & (rows["labels"] == c)
            np.testing.assert_array_equal(rows["places"][mine], np.arange(len(order)))
            np.testing.assert_allclose(rows["feats"][mine], by_hand.feats[order], rtol=1e-6)
    assert set(rows["labels"]) == set(CLASSES[3:]) and rows["feats"].dtype == np.float32


def test_images_of_a_choice_for_every_n(clusters, config):
    chosen = write_grid(config, "n_steps: [1, 2, 4]", per_shot=True)
    rows = labelled_images(chosen, clusters.unlabelled)
    values = json.loads(config.out.read_text())["selection"]["chosen"]
    for n in SHOTS:
        alone = labelled_images(config, clusters.unlabelled, shots=[n], **values[str(n)])
        mine = rows["n_shots"] == n
        for name, column in alone.items():
            np.testing.assert_array_equal(rows[name][mine], column)


def test_images_need_the_features_that_the_background_was_built_from(clusters, config, tmp_path):
    def refused(words: str, **changes) -> None:
        with pytest.raises(InputError, match=words):
            labelled_images(config, **changes)
        assert not list(config.out.parent.glob("*"))

    config.out.parent.mkdir()
    feats = np.load(clusters.unlabelled)
    np.save(tmp_path / "other.npy", feats[::-1])
    np.save(tmp_path / "short.npy", feats[:100])
    np.save(tmp_path / "narrow.npy", feats[:, :5])
    refused("has a background. Give the features it was built from with --label.background")
    refused(r"other\.npy: not the features", background=tmp_path / "other.npy")
    refused(r"short\.npy: has 100 rows, but", background=tmp_path / "short.npy")
    refused(r"narrow\.npy: has 5 dimensions", background=tmp_path / "narrow.npy")
    refused(r"bare-test\.h5: .*no unlabelled images", graph=clusters.bare)


# --- bad input ---


def spoiled(graph: Path, out: Path, change) -> Path:
    out.write_bytes(graph.read_bytes())
    with h5py.File(out, "r+") as file:
        change(file)
    return out


SPOILED = {
    "id": (lambda file: file["ids"].__setitem__((3, 1), 9999), "ids: row 3 has the id 9999"),
    "test id": (lambda file: file["test_ids"].__setitem__((4, 0), -7), "test_ids: row 4 has the id -7"),
    "nan": (lambda file: file["similarities"].__setitem__((3, 1), np.nan), "row 3 has the similarity nan"),
    "recipe": (lambda file: file.attrs.__delitem__("config"), "does not record its setup"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_spoiled_graphs_are_named(clusters, config, tmp_path, name):
    change, words = SPOILED[name]
    graph = spoiled(clusters.folder / "graph-test.h5", tmp_path / "spoiled.h5", change)
    with pytest.raises(InputError, match=words) as caught:
        diffusion.main(replace(config, graph=graph))
    assert "spoiled.h5" in str(caught.value) and "\n" not in str(caught.value) and not config.out.exists()


def test_missing_neighbours_are_skipped(clusters, config, tmp_path):
    """Entries of id -1 in the lists of nodes and of test images, for any similarity."""

    def change(file):
        for name in ("", "test_"):
            ids, similarities = file[f"{name}ids"][:], file[f"{name}similarities"][:]
            ids[::3, 5:], similarities[::3, 5:] = -1, np.nan
            file[f"{name}ids"][...], file[f"{name}similarities"][...] = ids, similarities

    for weight in (ConstantWeight(), GaussianWeight()):
        graph = spoiled(clusters.folder / "images-test.h5", tmp_path / "gaps.h5", change)
        content = results(config, graph=graph, edges=replace(EDGES, weight=weight))
        assert (
            content["trials"] != results(config, graph=clusters.images, edges=replace(EDGES, weight=weight))["trials"]
        )


def test_graphs_of_something_else_are_refused(clusters, config, tmp_path):
    def refused(words: str, **changes) -> None:
        with pytest.raises(InputError, match=words):
            diffusion.main(replace(config, **changes))
        assert not config.out.exists()

    feats, labels = read(clusters.train)
    write_features(tmp_path / "train.h5", np.float32(feats * 2), labels, read_recipe(clusters.train))
    refused(
        r"graph-test\.h5: made from another train file\. Make it again from .*train\.h5", train=tmp_path / "train.h5"
    )
    refused(
        r"made in the validation setup\. Use --setup validation here, or make it again",
        graph=Path(str(clusters.graph).format(setup="validation")),
    )
    refused("a background, not the graph of a setup. Run build_graph.py complete", graph=clusters.background)
    refused("has lists of 8 neighbours, fewer than edges.k 30", edges=EdgeOptions())
    refused(r"nowhere\.h5: no such file", graph=tmp_path / "nowhere.h5")
    refused("not a readable HDF5 file", graph=clusters.split)
    refused("lacks the dataset 'ids'", graph=clusters.train)


def test_a_class_without_labelled_images_is_refused(clusters, config, tmp_path):
    feats, labels = read(clusters.train)
    write_features(
        tmp_path / "train.h5", np.float32(feats), np.where(labels == 3, 1, labels), read_recipe(clusters.train)
    )
    with pytest.raises(InputError, match=r"no rows of class 3 \(c3\)"):
        diffusion.main(replace(config, train=tmp_path / "train.h5"))
    draws = json.loads(clusters.draws.read_text())
    draws["trials"]["2"][9] = []
    write_json(tmp_path / "draws.json", draws)
    with pytest.raises(InputError, match="trial 2, class 9: has draws up to n = 0, but"):
        diffusion.main(replace(config, draws=tmp_path / "draws.json"))
    assert not config.out.exists()


def test_outputs_have_the_suffix_of_their_format(config, tmp_path):
    with pytest.raises(InputError, match=r"p\.json: .*\.h5"):
        diffusion.main(replace(config, label=Labelling(tmp_path / "p.json")))


def test_the_script_refuses_in_one_line(config):
    files = [word for name in ("train", "test", "split", "draws", "graph", "out")
             for word in (f"--{name}", getattr(config, name))]  # fmt: skip
    refused = run_script("diffusion.py", *files, "--edges.k", 9, "--shots", "[1]")
    assert_refused(refused, "graph-test.h5", "lists of 8 neighbours, fewer than edges.k 9")
    assert not config.out.exists()
