"""Choosing settings: every cell of a grid is judged on the validation setup, and the best one is taken.

A grid file is YAML, settings by their names on the command line and the values to try:

    sgd.lr: [0.1, 1.0]
    sgd.weight_decay: [0.01, 0.001]

The evidence (every cell's numbers and the choice) is a YAML file beside the results. It grows cell by cell, so a killed
grid goes on where it was.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from jsonargparse import ArgumentError, ArgumentParser
from scipy import stats

from lowshot.artifacts import Provenance, digest, is_done, partial_recipe, read_yaml, recipe, write_yaml, writing
from lowshot.benchmark import Benchmark, BenchmarkConfig, Ranks, read_benchmark
from lowshot.errors import Diverged, InputError

# A metric, or the mean of two.
Criterion = Literal[
    "top1_novel", "top5_novel", "top1_base", "top5_base", "top1_all", "top5_all", "top1_novel_base", "top5_novel_base"
]


@dataclass(kw_only=True)
class SelectionConfig(BenchmarkConfig):
    """The settings of a stage of the benchmark that can choose its own."""

    select: Path | None = None
    """Grid file (setting: [values]): its best cell on the validation setup is reported on the test setup; with `--setup
    validation` it is chosen and nothing reported."""
    criterion: Criterion = "top5_novel_base"
    """What the best cell is best in: a mean over trials, n and, where two are named, groups of classes."""


Config = TypeVar("Config", bound=SelectionConfig)


class Selection(NamedTuple):
    """A choice: `config` has the chosen values, `evidence` is the file, `record` what results say about it."""

    config: Any
    evidence: Path
    record: dict


def choose(
    config: Config,
    inputs: dict[str, Path | None],
    judge: Callable[[Config, Benchmark, str], Ranks],
    device: str,
) -> Selection:
    """Judge every cell of the grid `config.select` on the validation setup and take the best, of equals the first.

    A cell that diverges is recorded and never taken. Raises InputError for a grid that cannot be run, before any work,
    and if no cell is left to take.

    Args:
        inputs: the files that the numbers depend on, named for a recipe.
        judge: the runs of one cell: (settings, benchmark, device) -> ranks.
    """
    cells = read_grid(config.select, config)
    evidence = config.out.with_suffix(".selection.yaml")
    # What the grid overrides and what only names things is no difference between two choices.
    first = replace(with_values(config, cells[0]), setup="validation", method=None, extractor=None)
    made_from = recipe("low_shot", first, inputs)
    made_from["config"]["cells"] = cells
    if not is_done(evidence, made_from, config.overwrite):
        _judge_cells(evidence, made_from, cells, config, judge, device)
    content = read_yaml(evidence)
    chosen = _best(evidence, content["cells"])
    if content["chosen"] != chosen:
        raise InputError(f"{evidence}: what it calls chosen is not the best of its cells; it was edited by hand")
    record = {"criterion": config.criterion, "chosen": chosen, "evidence": evidence.name, "digest": digest(evidence)}
    return Selection(with_values(config, chosen), evidence, record)


def read_grid(path: Path, config: SelectionConfig) -> list[dict[str, Any]]:
    """The cells of a grid file: every combination of its values, the last setting running fastest.

    Raises InputError for what is no grid of settings of `config`, and for a grid that would choose on the test setup.
    """
    grid = read_yaml(path)
    lists = list(grid.values()) if isinstance(grid, dict) else []
    if not lists or not all(isinstance(values, list) and values for values in lists):
        raise InputError(f"{path}: not a grid: it must hold lines of the form 'setting: [value, ...]'")
    known = _settings_of(config)
    if "setup" in grid:
        raise InputError(f"{path}: setup: settings are chosen on the validation setup; choosing on test is refused")
    for name in grid:
        if name not in known:
            raise InputError(f"{path}: no setting to choose: '{name}' (there are: {', '.join(known)})")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(type(config), "config")
    for name, values in grid.items():
        grid[name] = [_checked(parser, config, name, value, path) for value in values]
        if any(value in grid[name][:i] for i, value in enumerate(grid[name])):
            raise InputError(f"{path}: {name}: a value is there twice")
    cells = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    return json.loads(json.dumps(cells))  # plain numbers, as the evidence will have them


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """`config` with other values under dotted names."""
    for name, value in values.items():
        config = _replace(config, name.split("."), value)
    return config


def _replace(config: Any, keys: list[str], value: Any) -> Any:
    key, *rest = keys
    return replace(config, **{key: _replace(getattr(config, key), rest, value) if rest else value})


def _settings_of(config: SelectionConfig) -> list[str]:
    """Dotted names of what a grid may vary: the method's settings, neither files nor those of the protocol."""
    protocol = {field.name for field in fields(SelectionConfig)}
    return [
        name
        for field in fields(config)
        if field.name not in protocol and "Path" not in str(field.type)
        for name in _leaves(field.name, getattr(config, field.name))
    ]


def _leaves(name: str, value: Any) -> list[str]:
    if not is_dataclass(value):
        return [name]
    return [leaf for field in fields(value) for leaf in _leaves(f"{name}.{field.name}", getattr(value, field.name))]


def _checked(parser: ArgumentParser, config: SelectionConfig, name: str, value: Any, path: Path) -> Any:
    """`value` as the command line would take it; InputError if it would not."""
    content = asdict(with_values(config, {name: value}))
    try:
        return parser.parse_object({"config": content})[f"config.{name}"]
    except ArgumentError as error:
        raise InputError(f"{path}: {name}: {value!r} is no value of it ({' '.join(str(error).split())})") from None


def _judge_cells(
    evidence: Path, made_from: dict, cells: list[dict], config: SelectionConfig, judge: Callable, device: str
) -> None:
    """Write the evidence: judge the cells that an unfinished file of the same recipe does not hold."""
    provenance = Provenance()
    benchmark = read_benchmark(replace(config, setup="validation"))
    protocol = {"setup": "validation", "split_digest": benchmark.split.digest}
    with writing(evidence, made_from, resumable=True) as partial:
        judged = read_yaml(partial)["cells"] if partial_recipe(partial) else []
        for i, values in enumerate(cells[len(judged) :], start=len(judged) + 1):
            judged.append(_judge_cell(values, config, benchmark, judge, device))
            write_yaml(partial, {**made_from, "protocol": protocol, "cells": judged})
            print(f"low_shot: cell {i} of {len(cells)}, {_said(judged[-1], config.criterion)}", flush=True)
        chosen = _best(partial, judged)
        made = {"chosen": chosen, **made_from, "protocol": protocol, "provenance": provenance.record(device)}
        write_yaml(partial, {**made, "cells": judged})
    print(f"low_shot: chose {chosen} -> {evidence}", flush=True)


def _judge_cell(values: dict, config: SelectionConfig, benchmark: Benchmark, judge: Callable, device: str) -> dict:
    """The entry of one cell in the evidence: mean and 95 % t-interval over trials, and every run's accuracies."""
    try:
        trials = benchmark.accuracies(judge(with_values(config, values), benchmark, device))
    except Diverged as error:
        return {"values": values, "mean": None, "interval": None, "diverged": str(error), "trials": []}
    top, *groups = config.criterion.split("_")
    by_trial = np.array(
        [
            np.mean([one[f"{top}_{group}"] for one in trials if one["trial"] == trial for group in groups])
            for trial in benchmark.draws
        ]
    )
    n = len(by_trial)
    interval = float(stats.t.ppf(0.975, n - 1) * by_trial.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    return {"values": values, "mean": float(by_trial.mean()), "interval": interval, "trials": trials}


def _said(cell: dict, criterion: str) -> str:
    values = ", ".join(f"{name} {value}" for name, value in cell["values"].items())
    if cell["mean"] is None:
        return f"{values}: diverged"
    interval = "" if cell["interval"] is None else f" ± {100 * cell['interval']:.2f}"
    return f"{values}: {criterion} {100 * cell['mean']:.2f}{interval}"


def _best(evidence: Path, cells: list[dict]) -> dict[str, Any]:
    """The values of the cell with the highest mean, of equals the first."""
    trained = [cell for cell in cells if cell["mean"] is not None]
    if not trained:
        raise InputError(f"{evidence}: every cell of the grid diverged")
    return max(trained, key=lambda cell: cell["mean"])["values"]
