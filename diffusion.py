"""Diffuse the labels of base images and shots over a graph of images, and classify test images by their neighbours.

Reads     the graph of the setup (build_graph.py complete), train and test features, split and draws. Optional: a grid
          of settings, and the scores of a classifier (low_shot.py --scores) to fuse with.
Writes    a results JSON with the accuracies of every trial and n. With a grid, the scores of all its cells beside it.
          Optional: the images that it labelled, for low_shot.py --add.propagated.

    python diffusion.py --graph graph-test.h5 --train features/train.h5 --test features/test.h5 --split split.json \\
        --draws draws.json --out results/diffusion.json [--fuse scores.h5] [--label propagated.h5]

Choose the number of steps for every n on the validation setup, and report results on the test setup (grid.yaml
contains `n_steps: [0, 1, 2, 3]`):

    python diffusion.py --graph "graph-{setup}.h5" --train features/train.h5 --test features/test.h5 \\
        --split split.json --draws draws.json --out results/diffusion.json --select grid.yaml --select.per_shot

Divide the classes among several processes: torchrun --nproc-per-node 2 diffusion.py ...
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
from typing import ClassVar

import numpy as np

from lowshot import core, diffusion, evaluation
from lowshot.core.artifacts import Provenance, Recipe, recipe
from lowshot.core.cli import report_of, run
from lowshot.core.errors import InputError
from lowshot.core.files import check_suffix, missing
from lowshot.core.imports import load
from lowshot.core.publishing import is_done, partial_path, writing
from lowshot.core.settings import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, RunOnly, values_of
from lowshot.diffusion.settings import EdgeOptions, Fusion, Labelling, Precision, StepOptions
from lowshot.evaluation.benchmark import (
    Benchmark,
    Evaluated,
    check_settings,
    input_files,
    read_benchmark,
    writing_results,
)
from lowshot.evaluation.older import DIFFUSION_NAMES, results_today
from lowshot.evaluation.selection import choose, evidence_path, joint_recipe, read_grid
from lowshot.evaluation.settings import SelectionConfig, Ties


@dataclass(kw_only=True)
class Config(SelectionConfig):
    graph: Path
    """Graph of the setup. `{setup}` in the name is replaced by validation or test."""
    n_steps: NonNegativeInt = 3
    """Number of diffusion steps; 0 is a vote of the labelled neighbours."""
    edges: EdgeOptions = field(default_factory=EdgeOptions)
    """How to turn neighbour lists into a matrix."""
    step: StepOptions = field(default_factory=StepOptions)
    """Variants of the diffusion step."""
    class_prior: NonNegativeFloat = 0.0
    """Exponent: multiply the scores of a class by its number of labelled images to this power."""
    ties: Ties = "lowest_class"
    """How to break ties: the lowest class wins, as published, or the true class loses (against). All scores are 0 for
    an image that no label has reached."""
    precision: Precision = "float32"
    """Precision in which labels are stored between steps. Sums are float32."""
    fuse: Fusion | None = None
    """Fuse the scores with the scores of a classifier."""
    history: NonNegativeInt = 0
    """Also record the accuracies after 0, 1, ..., this number of steps."""
    label: RunOnly[Labelling | None] = None
    """Also write the unlabelled images that are labelled as a novel class with the highest confidence."""
    slice_width: RunOnly[PositiveInt | None] = None
    """Number of classes processed at a time; by default as many as fit into memory."""
    memory_gib: RunOnly[PositiveFloat | None] = None
    """Memory limit of a process in GiB (on a GPU: of GPU memory); by default the available memory. Mapped files do not
    count, as the system can reclaim their memory."""
    dry_run: RunOnly[bool] = False
    """Print an estimate of the memory and time of the whole run, and exit. Takes seconds; ignores existing outputs."""

    older = staticmethod(results_today)
    renamed: ClassVar = {
        **DIFFUSION_NAMES,
        "scores": "fuse.scores",
        "propagated": "label.out",
        "background": "label.background",
        "criterion": "select.criterion",
        "select_per_shot": "select.per_shot",
    }


def main(config: Config) -> Path:
    """Run every trial and n of `config` and write the results file. With `select`, choose settings first.

    Returns the path of the results, or of the scores of the grid if only a choice was requested.
    """
    check_settings(config)
    _check_setups(config)
    if config.label is not None:
        check_suffix("--label", config.label.out, ".h5")
    with core.open_processes() as processes, _process_outputs(config, processes) as process_config:
        if config.dry_run:
            _print_estimate(config, processes)
        else:
            _run(process_config, processes)
    return evidence_path(config.out) if _only_chooses(config) else config.out


@contextmanager
def _process_outputs(config: Config, processes: core.Processes) -> Iterator[Config]:
    """Yield the config with the output paths of this process.

    The first process writes to the requested paths. The others start from copies of the existing outputs, so that all
    processes take the same decisions, and their output is discarded. Only the first process prints.
    """
    if processes.rank == 0:
        processes.wait()
        yield config
        return
    with TemporaryDirectory() as folder, redirect_stdout(None):
        evidence = evidence_path(config.out)
        own_unfinished = partial_path(Path(folder) / evidence.name)
        own_unfinished.parent.mkdir(mode=0o700)
        if partial_path(evidence).exists():
            shutil.copy(partial_path(evidence), own_unfinished)
        for path in [config.out, evidence, *([config.label.out] if config.label else [])]:
            if path.exists():
                shutil.copy(path, folder)
        processes.wait()
        label = config.label and replace(config.label, out=Path(folder) / config.label.out.name)
        yield replace(config, out=Path(folder) / config.out.name, label=label)


def _check_setups(config: Config) -> None:
    """Raise InputError unless the files of both setups are named, if settings are chosen on one for the other."""
    named = {"--graph": config.graph} | ({"--fuse.scores": config.fuse.scores} if config.fuse else {})
    for option, path in named.items() if config.select and not _only_chooses(config) else []:
        for setup in ("validation", "test"):
            file = Path(str(path).replace("{setup}", setup))
            if "{setup}" in str(path) and not file.exists():
                raise missing(file)
        if "{setup}" not in str(path):
            both = path.with_name(path.name.replace(config.setup, "{setup}"))
            both = both if "{setup}" in both.name else path.with_stem(f"{path.stem}-{{setup}}")
            raise InputError(
                f"{option} {path}: --select needs a file of each setup. Make both (--setup validation, --setup test) "
                f'and use {option} "{both}"'
            )


def _only_chooses(config: Config) -> bool:
    """Whether the command only chooses settings and reports no results."""
    return config.select is not None and config.setup == "validation"


def _run(config: Config, processes: core.Processes) -> None:
    configs, chosen = _chosen(config, processes)
    if _only_chooses(config):
        return
    made_from = joint_recipe([(one.shots, _recipe(one)) for one in configs])
    digests = {name: record["digest"] for name, record in chosen.items()}
    made_from = made_from.but(inputs={**made_from["inputs"], **digests})
    requested = _labelled(config, made_from) | {config.out: made_from}
    left = {out: made for out, made in requested.items() if not is_done(out, made, config.overwrite)}
    if not left:
        return
    _load()
    provenance, benchmark = Provenance(), read_benchmark(config)
    graph = diffusion.open_setup_graph(configs[0].graph, config)
    if config.label is not None and config.label.out in left:
        _, seen = benchmark.tags(_files(configs[0]))
        labelled_from = left[config.label.out].but(lineage=seen.to_json())
        _label_images(config.label, configs, graph, benchmark, labelled_from, processes)
    if config.out not in left:
        return
    tags, seen = benchmark.tags(_files(configs[0]))
    made_from, name = made_from.but(lineage=seen.to_json()), _method(graph, config.fuse)
    device = processes.device.type
    with writing_results(configs, made_from, benchmark, name, tags, provenance, device, **chosen) as results:
        runs, history = _runs_and_history(configs, graph, benchmark, processes)
        results.add(runs)
        results.more |= {"history": history} if history else {}


def _chosen(config: Config, processes: core.Processes) -> tuple[list[Config], dict[str, dict]]:
    """Return the configs to run, one for all n or one per n, and the record of the choice for the results file."""
    if config.select is None:
        return [_of_setup(config)], {}
    _load()
    configs, _, record = choose(config, _recipe, partial(_evaluate, processes=processes), processes.device.type)
    return [_of_setup(one) for one in configs], {"selection": record}


def _runs_and_history(
    configs: list[Config], graph: diffusion.Graph, benchmark: Benchmark, processes: core.Processes
) -> tuple[Evaluated, list[dict]]:
    """Return the runs of all configs, and the accuracies after each step of the history."""
    earlier = [past for one in configs for past in _earlier(one)]
    evaluated = list(_evaluated([*configs, *earlier], graph, benchmark, processes))
    history = [
        {"n_steps": one.n_steps, **entry}
        for one, runs in zip(earlier, evaluated[len(configs) :])
        for entry in benchmark.accuracies(runs)
    ]
    return {run: one for part in evaluated[: len(configs)] for run, one in part.items()}, history


def _load() -> None:
    """Import heavy modules now, so that imports do not count as time of the work."""
    load(diffusion)
    load(evaluation, "outcomes_in_chunks")


def _print_estimate(config: Config, processes: core.Processes) -> None:
    """Print the memory and time of `_run`. If settings are chosen first, assumes that the largest n_steps is chosen."""
    plain = replace(config, select=None)
    cells = [cell.config for cell in read_grid(config.select.grid, plain)] if config.select else [plain]
    longest = max(cells, key=lambda cell: cell.n_steps)
    parts = {"choice of settings": [replace(cell, setup="validation") for cell in cells]} if config.select else {}
    if not _only_chooses(config):
        parts |= {"results": [longest, *_earlier(longest)]}
        parts |= {"labelled images": [longest]} if config.label else {}
    _load()
    jobs, reading = {}, diffusion.seconds_around()
    for what, configs in parts.items():
        start = perf_counter()
        configs = [_of_setup(one) for one in configs]
        benchmark = read_benchmark(configs[0])
        _recipe(configs[0])
        for alike in _alike(configs).values():
            graph = diffusion.open_setup_graph(configs[0].graph, configs[0])
            job = _job([configs[i] for i in alike], graph, benchmark, processes, what == "labelled images")
            jobs[f"{what}, part {len(jobs) + 1}"] = job, _width(job, config, processes)
        reading += perf_counter() - start
    limits = diffusion.Limits.now(config.memory_gib, processes.device.type)
    text = diffusion.estimate_text(jobs, limits, reading, processes.size)
    if processes.rank == 0:
        print(text)


def _earlier(config: Config) -> list[Config]:
    """Return the configs of the history: 0, 1, ..., `history` steps."""
    return [replace(config, n_steps=t) for t in range(config.history + 1)] if config.history else []


def _of_setup(config: Config) -> Config:
    """Replace `{setup}` in the paths of `config` by its setup."""

    def filled(path: Path) -> Path:
        return Path(str(path).replace("{setup}", config.setup))

    fuse = config.fuse and replace(config.fuse, scores=filled(config.fuse.scores))
    return replace(config, graph=filled(config.graph), fuse=fuse)


def _recipe(config: Config) -> Recipe:
    """Return the recipe of the results."""
    own = _of_setup(config)
    inputs = {**input_files(own), "graph": own.graph, "scores": own.fuse and own.fuse.scores}
    return recipe("diffusion", own, inputs)


def _labelled(config: Config, made_from: Recipe) -> dict[Path, Recipe]:
    """Return the file of labelled images, if requested, with its recipe: the recipe of the results and `label`."""
    if config.label is None:
        return {}
    return {config.label.out: made_from.but(config={**made_from["config"], "label": values_of(config.label)})}


def _evaluate(configs: list[Config], benchmark: Benchmark, _: str, processes: core.Processes) -> Iterator[Evaluated]:
    """Yield the runs of each cell of a grid. All `configs` have the same setup."""
    configs = [_of_setup(one) for one in configs]
    benchmark.tags(_files(configs[0]))  # refuses what may not be chosen with
    yield from _evaluated(configs, diffusion.open_setup_graph(configs[0].graph, configs[0]), benchmark, processes)


def _evaluated(
    configs: list[Config], graph: diffusion.Graph, benchmark: Benchmark, processes: core.Processes
) -> Iterator[Evaluated]:
    """Yield, for each of `configs`, the outcomes of every run. All configs have the same setup.

    Configs that differ only in the number of steps, or in what follows the steps, share the work.
    """
    evaluated: dict[int, Evaluated] = {}
    alike_of = {i: alike for alike in _alike(configs).values() for i in alike}
    for i in range(len(configs)):
        if i not in evaluated:
            evaluated |= {j: {} for j in alike_of[i]}
            for key, scores in _scores([configs[j] for j in alike_of[i]], graph, benchmark, processes):
                for j, final in zip(alike_of[i], scores):
                    evaluated[j][key] = _outcomes(final, benchmark, configs[j])
        yield evaluated[i]


def _alike(configs: list[Config]) -> dict[str, list[int]]:
    """Group the indices of configs that differ only in the number of steps, or in what follows the steps."""
    groups: dict[str, list[int]] = {}
    for i, config in enumerate(configs):
        groups.setdefault(repr((config.edges, config.step, config.precision, config.shots)), []).append(i)
    return groups


def _scores(
    configs: list[Config], graph: diffusion.Graph, benchmark: Benchmark, processes: core.Processes
) -> Iterator[tuple[tuple[int, int], Iterator[np.ndarray]]]:
    """Yield every run of configs that share the steps, with an iterator over the final scores (N, classes) of each."""
    first, job = configs[0], _job(configs, graph, benchmark, processes)
    graphs, work = job.graphs, _work(job, first, processes)
    runs = benchmark.runs(first.shots)
    kept = diffusion.KeptScores(first.fuse.scores, first, runs) if first.fuse is not None else None
    for trial, n in core.Progress(runs, "diffusion", unit="run", disable=processes.rank > 0):
        at = graphs.of(trial, n)
        by_step = diffusion.propagate(
            at.adjacency, at.labels, at.test_ids, job.steps, first.step, first.precision, work
        )
        by_step = {step: processes.total(scores) for step, scores in by_step.items()}
        classified = kept.of(trial, n) if kept is not None else None
        yield (trial, n), (_final(one, by_step[one.n_steps], at.labels, classified) for one in configs)
        del at  # free the memory before the next run


def _final(config: Config, scores: np.ndarray, labels: diffusion.Labels, classified: np.ndarray | None) -> np.ndarray:
    """Apply the class prior, then fuse with the log-probabilities of a classifier."""
    if config.class_prior:
        counts = np.bincount(labels.columns, minlength=labels.n_columns)
        scores = scores * (counts**config.class_prior).astype(np.float32)
    return scores if classified is None else diffusion.fuse(scores, classified, config.fuse.weight)


def _outcomes(scores: np.ndarray, benchmark: Benchmark, config: Config) -> evaluation.Outcomes:
    """Return the outcomes of the test images. Scores that are not fused are probabilities up to a factor."""
    truth = np.searchsorted(benchmark.classes, benchmark.test_labels)
    columns, form = benchmark.columns(of_setup=True), "logits" if config.fuse else "probabilities"
    return evaluation.outcomes_in_chunks(lambda rows: rows, scores, truth, columns, ties=config.ties, form=form)


def _job(
    configs: list[Config],
    graph: diffusion.Graph,
    benchmark: Benchmark,
    processes: core.Processes,
    assigning: bool = False,
) -> diffusion.Job:
    """Describe the runs of `configs`, which share the steps, for estimates."""
    first = configs[0]
    graphs = diffusion.RunGraphs(graph, benchmark, first.edges, processes.device)
    steps = sorted({config.n_steps for config in configs})

    def finish(scores: np.ndarray) -> None:
        labels = diffusion.Labels(np.arange(1), np.arange(1), scores.shape[1])
        _outcomes(_final(first, scores, labels, scores if first.fuse else None), benchmark, first)

    n_final = int(any(config.class_prior or config.fuse for config in configs))  # at most one is in memory
    n_evaluated = 0 if assigning else len(configs)
    return diffusion.Job(
        graphs, first.shots, steps, first.step, first.precision, n_evaluated, n_final, finish, assigning
    )


def _width(job: diffusion.Job, config: Config, processes: core.Processes) -> int:
    """Choose the slice width, the same for all processes. Unless it is set, every process gets at least one slice."""
    fitting = diffusion.fitting_width(
        job, config.slice_width, diffusion.Limits.now(config.memory_gib, processes.device.type)
    )
    if config.slice_width is None:
        fitting = min(fitting, math.ceil(len(job.graphs.benchmark.classes) / processes.size))
    return int(-processes.largest(np.array([-fitting]))[0])


def _work(job: diffusion.Job, config: Config, processes: core.Processes) -> diffusion.Work:
    """Divide the work. Raises InputError if it does not fit into memory."""
    return diffusion.Work(str(processes.device), _width(job, config, processes), processes.rank, processes.size)


def _label_images(
    label: Labelling,
    configs: list[Config],
    graph: diffusion.Graph,
    benchmark: Benchmark,
    made_from: Recipe,
    processes: core.Processes,
) -> None:
    """Write the unlabelled images of every run that are labelled as a novel class with the highest confidence."""
    pool = diffusion.UnlabelledPool(graph, benchmark, label.background)
    parts = []
    for one in configs:
        job = _job([one], graph, benchmark, processes, assigning=True)
        graphs, work = job.graphs, _work(job, one, processes)
        for key in benchmark.runs(one.shots):
            at = graphs.of(*key)
            columns, values = diffusion.assign(at.adjacency, at.labels, one.n_steps, one.step, one.precision, work)
            highest = processes.largest(values)
            columns = -processes.largest(np.where(values == highest, -columns, -at.labels.n_columns))
            parts.append(pool.most_confident(key, at.labels, columns, highest, label.n_rows))
            del at  # free the memory before the next run
    with writing(label.out, made_from) as unfinished:
        diffusion.write_propagated(unfinished, made_from, parts)
    print(f"diffusion: {sum(len(part['labels']) for part in parts)} labelled images -> {label.out}")


def _files(config: Config) -> list[Path]:
    """Return the artifacts that all runs are made from, besides the features."""
    return [config.graph, config.fuse.scores] if config.fuse else [config.graph]


def _method(graph: diffusion.Graph, fuse: Fusion | None) -> str:
    """Return the name of the method, which depends on the unlabelled images in the graph."""
    images = {"none": [], "novel": ["novel images"], "all": ["all training images"]}[graph.unlabelled]
    images += [f"{graph.n_background} background images"] if graph.n_background else []
    return f"diffusion{' + classifier' if fuse else ''} ({', '.join(images) or 'no unlabelled images'})"


def next_step(config: Config) -> list | None:
    """Return the command that uses the output. There are no results to report after an estimate or a choice alone."""
    return None if config.dry_run or _only_chooses(config) else report_of(config.out)


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
