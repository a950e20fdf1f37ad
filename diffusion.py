"""Diffuse the labels of base images and shots over a graph of images, and classify test images by their neighbours.

Reads     the setup's graph (build_graph.py complete), train and test features, split, draws and, if wanted, a grid of
          settings and the scores of a classifier (low_shot.py --scores) to fuse with.
Writes    one results JSON with six accuracies for every trial and n; with a grid, the evidence of the choice beside it;
          if wanted, the rows that it labelled, for low_shot.py --propagated.

    python diffusion.py --graph graph-test.h5 --train features/train.h5 --test features/test.h5 --split split.json \
        --draws draws.json --out results/diffusion.json

The number of steps chosen on the validation setup for every n, results on the test setup (grid.yaml:
`n_steps: [0, 1, 2, 3]`):

    python diffusion.py --graph "graph-{setup}.h5" --train features/train.h5 --test features/test.h5 \
        --split split.json --draws draws.json --out results/diffusion.json --select grid.yaml --select_per_shot true

Several processes share the classes: torchrun --nproc-per-node 2 diffusion.py ...
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Literal

import numpy as np
from tqdm import tqdm

from lowshot import core, diffusion, evaluation
from lowshot.core.artifacts import Provenance, is_done, partial_path, recipe, writing
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.imports import load
from lowshot.core.settings import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lowshot.diffusion.settings import EdgeOptions, Precision, StepOptions
from lowshot.evaluation.benchmark import Benchmark, Ranks, check_settings, input_files, read_benchmark, write_results
from lowshot.evaluation.selection import choose, evidence_path, joint_recipe, read_grid, with_values
from lowshot.evaluation.settings import SelectionConfig, Ties


@dataclass(kw_only=True)
class Config(SelectionConfig):
    graph: Path
    """Graph of the setup; `{setup}` in its name stands for validation and test."""
    n_steps: NonNegativeInt = 3
    """Steps of diffusion; 0 is a vote of the labelled neighbours."""
    edges: EdgeOptions = field(default_factory=EdgeOptions)
    """How neighbour lists become a matrix."""
    step: StepOptions = field(default_factory=StepOptions)
    """What a step does beside averaging over neighbours."""
    class_prior: NonNegativeFloat = 0.0
    """Exponent: the scores of a class are multiplied by its number of labelled images to this power."""
    ties: Ties = "lowest_class"
    """Among equal scores (all are 0 for an image that no label has reached) the lowest class wins, as published, or
    the true class loses."""
    precision: Precision = "float32"
    """In which labels are stored between steps; sums are float32."""
    scores: Path | None = None
    """Scores of a classifier on the same shots (low_shot.py --scores) to fuse with; `{setup}` as in graph."""
    fusion_weight: ClosedUnitInterval = 0.5
    """Weight of diffusion in the fusion; the classifier has the rest."""
    history: NonNegativeInt = 0
    """Accuracies after 0, 1, ... this many steps are recorded as well."""
    propagated: Path | None = None
    """File to write those unlabelled images to that are surest of a novel class (.h5)."""
    n_propagated: PositiveInt = 20
    """Images of a class to write there."""
    background: Path | None = None
    """propagated: the features that the background graph was built from, if its images may be written."""
    slice_width: PositiveInt | None = None
    """Classes worked on at a time; chosen by the memory there is unless given. Changes no result."""
    memory_gib: PositiveFloat | None = None
    """Memory that a process stays below, on a GPU that of the GPU; what is available unless given. Mapped files do not
    count, as the system can take their memory back."""
    dry_run: bool = False
    """Print the memory and time that all the work takes, as if nothing stood yet, and end. Takes seconds."""


def main(config: Config) -> Path:
    """Run every trial and n of `config` and write the results file, with settings chosen first if it says `select`.

    Returns the path of what was written last: the results, or the evidence if only a choice was asked for.
    """
    check_settings(config)
    if config.propagated is not None and config.propagated.suffix != ".h5":
        raise InputError(f"{config.propagated}: labelled images are a .h5 file")
    with core.open_processes() as processes, _process_outputs(config, processes) as process_config:
        if config.dry_run:
            _print_estimate(config, processes)
        else:
            _run(process_config, processes)
    only_chosen = config.select is not None and config.setup == "validation"
    return evidence_path(config.out) if only_chosen else config.out


@contextmanager
def _process_outputs(config: Config, processes: core.Processes) -> Iterator[Config]:
    """The first process writes where it was told to, the others to copies that nobody keeps: all find the same. Only
    the first one says what it does."""
    if processes.rank == 0:
        processes.wait()
        yield config
        return
    with TemporaryDirectory() as folder, redirect_stdout(None):
        evidence = evidence_path(config.out)
        outputs = [config.out, evidence, partial_path(evidence), *([config.propagated] if config.propagated else [])]
        for path in outputs:
            if path.exists():
                shutil.copy(path, folder)
        processes.wait()
        propagated = config.propagated and Path(folder) / config.propagated.name
        yield replace(config, out=Path(folder) / config.out.name, propagated=propagated)


def _run(config: Config, processes: core.Processes) -> None:
    configs, chosen = [config], {}
    if config.select is not None:
        _load()
        inputs = _inputs(replace(config, setup="validation"))
        evaluate = partial(_evaluate, processes=processes)
        configs, _, record = choose(config, inputs, _recipe, evaluate, processes.device.type)
        chosen = {"selection": record}
        if config.setup == "validation":
            return
    made_from = joint_recipe([(one.shots, _recipe(one, _inputs(one))) for one in configs])
    made_from["inputs"] |= {name: record["digest"] for name, record in chosen.items()}
    requested = {config.out: made_from}
    if config.propagated is not None:
        settings = {**made_from["config"], "n_propagated": config.n_propagated}
        requested = {config.propagated: {**made_from, "config": settings}, **requested}
    left = {out: made for out, made in requested.items() if not is_done(out, made, config.overwrite)}
    if not left:
        return
    _load()
    provenance, benchmark = Provenance(), read_benchmark(config)
    if config.propagated in left:
        _label_images(config, configs, benchmark, left[config.propagated], processes)
    if config.out not in left:
        return
    earlier = [past for one in configs for past in _earlier(one)]
    ranks = list(_evaluate([*configs, *earlier], benchmark, processes.device.type, processes))
    history = [
        {"n_steps": one.n_steps, **entry}
        for one, runs in zip(earlier, ranks[len(configs) :])
        for entry in benchmark.accuracies(runs)
    ]
    runs = {key: row for part in ranks[: len(configs)] for key, row in part.items()}
    more = {**chosen, **({"history": history} if history else {})}
    name, setting = _method(config)
    write_results(config, made_from, benchmark, name, setting, runs, provenance, processes.device.type, **more)


def _load() -> None:
    """Import what the work needs."""
    load(diffusion)
    load(evaluation, "true_class_ranks")


def _print_estimate(config: Config, processes: core.Processes) -> None:
    """Memory and time of all that `_run` does; of a choice to be made, as if the most steps were chosen."""
    cells = [with_values(config, values) for values in read_grid(config.select, config)] if config.select else [config]
    longest = max(cells, key=lambda cell: cell.n_steps)
    parts = {"choice of settings": [replace(cell, setup="validation") for cell in cells]} if config.select else {}
    if not (config.select and config.setup == "validation"):
        parts |= {"results": [longest, *_earlier(longest)]}
        parts |= {"labelled images": [longest]} if config.propagated else {}
    _load()
    jobs, reading = {}, diffusion.seconds_around()
    for what, configs in parts.items():
        start = perf_counter()
        benchmark = read_benchmark(configs[0])
        recipe("diffusion", config, _inputs(configs[0]))
        for alike in _alike(configs).values():
            graph = diffusion.open_setup_graph(_of_setup(configs[0], "graph"), configs[0])
            job = _job([configs[i] for i in alike], graph, benchmark, processes, what == "labelled images")
            jobs[f"{what}, part {len(jobs) + 1}"] = job, _width(job, config, processes)
        reading += perf_counter() - start
    limits = diffusion.Limits.now(config.memory_gib, processes.device.type)
    text = diffusion.estimate_text(jobs, limits, reading, processes.size)
    if processes.rank == 0:
        print(text)


def _earlier(config: Config) -> list[Config]:
    """Those of the history."""
    return [replace(config, n_steps=t) for t in range(config.history + 1)] if config.history else []


def _inputs(config: Config) -> dict[str, Path | None]:
    return {**input_files(config), **{name: _of_setup(config, name) for name in ("graph", "scores")}}


def _of_setup(config: Config, name: str) -> Path | None:
    path = getattr(config, name)
    return path and Path(str(path).replace("{setup}", config.setup))


def _recipe(config: Config, inputs: dict[str, Path | None]) -> dict:
    """The recipe of the results: only the settings that are read."""
    made_from = recipe("diffusion", config, inputs)
    unread = {"criterion", "select_per_shot", "seed", "n_propagated", "slice_width", "memory_gib", "dry_run"}
    unread |= {"fusion_weight"} if config.scores is None else set()
    if config.edges.weight != "gaussian":
        made_from["config"]["edges"].pop("sigma")
    return {**made_from, "config": {name: v for name, v in made_from["config"].items() if name not in unread}}


def _evaluate(configs: list[Config], benchmark: Benchmark, _: str, processes: core.Processes) -> Iterator[Ranks]:
    """The true classes' ranks of every run of each of `configs`, which have one setup. Those that differ only in the
    number of steps and in what is done after them share the work."""
    ranks: dict[int, Ranks] = {}
    alike_of = {i: alike for alike in _alike(configs).values() for i in alike}
    for i in range(len(configs)):
        if i not in ranks:
            ranks |= {j: {} for j in alike_of[i]}
            for key, scores in _scores([configs[j] for j in alike_of[i]], benchmark, processes):
                for j, final in zip(alike_of[i], scores):
                    ranks[j][key] = _ranks(final, benchmark, configs[j].ties)
        yield ranks[i]


def _alike(configs: list[Config]) -> dict[str, list[int]]:
    """Numbers of the configs that differ only in the number of steps and in what is done after them."""
    groups: dict[str, list[int]] = {}
    for i, config in enumerate(configs):
        groups.setdefault(repr((config.edges, config.step, config.precision, config.shots)), []).append(i)
    return groups


def _scores(
    configs: list[Config], benchmark: Benchmark, processes: core.Processes
) -> Iterator[tuple[tuple[int, int], Iterator[np.ndarray]]]:
    """Every run of configs that share the steps, with the final scores (N, classes) of each, made when asked for."""
    first = configs[0]
    job = _job(configs, diffusion.open_setup_graph(_of_setup(first, "graph"), first), benchmark, processes)
    graphs, work = job.graphs, _work(job, first, processes)
    runs = benchmark.runs(first.shots)
    kept = diffusion.KeptScores(_of_setup(first, "scores"), first, runs) if first.scores is not None else None
    for trial, n in tqdm(runs, "diffusion", unit="run", disable=None if processes.rank == 0 else True):
        graph = graphs.of(trial, n)
        by_step = diffusion.propagate(
            graph.adjacency, graph.labels, graph.test_ids, job.steps, first.step, first.precision, work
        )
        by_step = {step: processes.total(scores) for step, scores in by_step.items()}
        classified = kept.of(trial, n) if kept is not None else None
        yield (trial, n), (_final(one, by_step[one.n_steps], graph.labels, classified) for one in configs)
        del graph  # before the next one is made


def _final(config: Config, scores: np.ndarray, labels: diffusion.Labels, classified: np.ndarray | None) -> np.ndarray:
    """Class prior and fusion with a classifier's log-probabilities."""
    if config.class_prior:
        counts = np.bincount(labels.columns, minlength=labels.n_columns)
        scores = scores * (counts**config.class_prior).astype(np.float32)
    return scores if classified is None else diffusion.fuse(scores, classified, config.fusion_weight)


def _ranks(scores: np.ndarray, benchmark: Benchmark, ties: Ties) -> np.ndarray:
    import torch

    truth = np.searchsorted(benchmark.classes, benchmark.test_labels)
    return evaluation.true_class_ranks(torch.from_numpy(scores), torch.from_numpy(truth), ties).numpy()


def _job(
    configs: list[Config],
    graph: diffusion.Graph,
    benchmark: Benchmark,
    processes: core.Processes,
    assigning: bool = False,
) -> diffusion.Job:
    """The runs of `configs`, which share the steps."""
    first = configs[0]
    graphs = diffusion.RunGraphs(graph, benchmark, first.edges, processes.device)
    steps = sorted({config.n_steps for config in configs})

    def finish(scores: np.ndarray) -> None:
        labels = diffusion.Labels(np.arange(1), np.arange(1), scores.shape[1])
        _ranks(_final(first, scores, labels, scores if first.scores else None), benchmark, first.ties)

    n_final = int(any(config.class_prior or config.scores for config in configs))  # one at a time
    n_evaluated = 0 if assigning else len(configs)
    return diffusion.Job(
        graphs, first.shots, steps, first.step, first.precision, n_evaluated, n_final, finish, assigning
    )


def _width(job: diffusion.Job, config: Config, processes: core.Processes) -> int:
    """Of slices: the same for all processes, and unless it is given none that leaves one of them without work."""
    fitting = diffusion.fitting_width(
        job, config.slice_width, diffusion.Limits.now(config.memory_gib, processes.device.type)
    )
    if config.slice_width is None:
        fitting = min(fitting, math.ceil(len(job.graphs.benchmark.classes) / processes.size))
    return int(-processes.largest(np.array([-fitting]))[0])


def _work(job: diffusion.Job, config: Config, processes: core.Processes) -> diffusion.Work:
    """Raises InputError if memory does not suffice."""
    return diffusion.Work(str(processes.device), _width(job, config, processes), processes.rank, processes.size)


def _label_images(
    config: Config, configs: list[Config], benchmark: Benchmark, made_from: dict, processes: core.Processes
) -> None:
    """Write the unlabelled images of every run that are surest of a novel class."""
    graph = diffusion.open_setup_graph(_of_setup(config, "graph"), config)
    pool = diffusion.UnlabelledPool(graph, benchmark, config.background)
    parts = []
    for one in configs:
        job = _job([one], graph, benchmark, processes, assigning=True)
        graphs, work = job.graphs, _work(job, one, processes)
        for key in benchmark.runs(one.shots):
            at = graphs.of(*key)
            columns, values = diffusion.assign(at.adjacency, at.labels, one.n_steps, one.step, one.precision, work)
            highest = processes.largest(values)
            columns = -processes.largest(np.where(values == highest, -columns, -at.labels.n_columns))
            parts.append(pool.surest(key, at.labels, columns, highest, config.n_propagated))
            del at  # before the next one is made
    with writing(config.propagated) as unfinished:
        diffusion.write_propagated(unfinished, made_from, parts)
    print(f"diffusion: {sum(len(part['labels']) for part in parts)} labelled images -> {config.propagated}")


def _method(config: Config) -> tuple[str, Literal["inductive", "semi_supervised"]]:
    """Name and setting by the unlabelled images that are nodes."""
    graph = diffusion.read_graph(_of_setup(config, "graph"))
    images = {"none": [], "novel": ["novel images"], "all": ["all training images"]}[graph.unlabelled]
    images += [f"{graph.n_background} background images"] if graph.n_background else []
    fused = " + classifier" if config.scores is not None else ""
    name = f"diffusion{fused} ({', '.join(images) or 'no unlabelled images'})"
    return name, "semi_supervised" if images else "inductive"


if __name__ == "__main__":
    run(main, Config, __doc__)
