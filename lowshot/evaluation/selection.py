"""Choosing settings: every cell of a grid is evaluated on the validation setup, and the best one is taken.

A grid file is YAML, settings by their names on the command line and the values to try:

    sgd.lr: [0.1, 1.0]
    sgd.weight_decay: [0.01, 0.001]

The evidence (every cell's numbers and the choice) is a YAML file beside the results. It grows cell by cell, so a killed
grid goes on where it was.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import numpy as np
from jsonargparse import ArgumentError, ArgumentParser

from lowshot.core.artifacts import (
    Provenance,
    flat,
    is_done,
    names_of_values,
    partial_recipe,
    read_yaml,
    write_yaml,
    writing,
)
from lowshot.core.errors import Diverged, InputError
from lowshot.evaluation.benchmark import Benchmark, Ranks, read_benchmark
from lowshot.evaluation.settings import Criterion, SelectionConfig

Config = TypeVar("Config", bound=SelectionConfig)


class Selection(NamedTuple):
    """A choice: `configs` have the chosen values, one for all `shots` or one for each; `evidence` is the file, `record`
    what results say about it."""

    configs: list[Any]
    evidence: Path
    record: dict


def choose(
    config: Config,
    inputs: dict[str, Path | None],
    recipe_of: Callable[[Config, dict[str, Path | None]], dict],
    evaluate: Callable[[list[Config], Benchmark, str], Iterator[Ranks | Diverged]],
    device: str,
) -> Selection:
    """Evaluate every cell of the grid `config.select` on the validation setup and take the best, of equals the first.

    A cell that diverges is recorded and never taken. Raises InputError for a grid that cannot be run, before any work,
    for damaged evidence, and if no cell is left to take.

    Args:
        inputs: the files that the numbers depend on, named for a recipe.
        recipe_of: the recipe of (settings, inputs), with those settings only that these settings make the stage read.
        evaluate: the runs of some cells: (settings of each, benchmark, device) -> ranks of each, in their order.
    """
    if config.setup == "test" and config.trials is not None:
        raise InputError(
            "select, trials: every part of a run would choose for itself; choose once with --setup validation, then "
            "give the parts the choice"
        )
    cells = read_grid(config.select, config)
    evidence = evidence_path(config.out)
    read = _settings_read(cells, config, recipe_of)
    made_from = {**recipe_of(config, inputs), "config": read}
    if not is_done(evidence, made_from, config.overwrite):
        _evaluate_cells(evidence, made_from, cells, config, evaluate, device)
    written = read_yaml(evidence)
    done = _checked_cells(evidence, written, cells, config.criterion)
    chosen = _chosen(evidence, done, config)
    if len(done) < len(cells) or written.get("chosen") != chosen:
        raise InputError(f"{evidence}: what it calls chosen is not the best of all cells; it was edited by hand")
    record = {"criterion": config.criterion, "chosen": chosen, "evidence": evidence.name}
    digest = _digest({**made_from, "chosen": chosen, "cells": done})
    return Selection(_with_chosen(config, chosen), evidence, {**record, "digest": digest})


def _chosen(evidence: Path, done: list[dict], config: SelectionConfig) -> dict:
    """The values of the best cell, or those of the best for each n."""
    if not config.select_per_shot:
        return _best(evidence, done, config.criterion)
    return {str(n): _best(evidence, done, config.criterion, n) for n in config.shots}


def _with_chosen(config: Config, chosen: dict) -> list[Config]:
    if not config.select_per_shot:
        return [with_values(config, chosen)]
    return [with_values(replace(config, shots=[n]), chosen[str(n)]) for n in config.shots]


def joint_recipe(recipes: list[tuple[list[int], dict]]) -> dict:
    """One recipe for the results of several configs, each for some n: (shots, recipe) of each. A setting in which they
    differ, or that not all of them read, is shown for each n that reads it."""
    by_shot = {str(n): one["config"] for shots, one in recipes for n in shots}
    joint = {}
    for name in dict.fromkeys(name for config in by_shot.values() for name in config):
        values = {n: config[name] for n, config in by_shot.items() if name in config}
        first = next(iter(values.values()))
        alike = len(values) == len(by_shot) and all(value == first for value in values.values())
        joint[name] = first if alike else values
    return {**recipes[0][1], "config": {**joint, "shots": [n for shots, _ in recipes for n in shots]}}


def evidence_path(out: Path) -> Path:
    """Where the evidence of a choice stands beside the results `out`."""
    return out.with_suffix(".selection.yaml")


def _digest(content: dict) -> str:
    """SHA-256 of what evidence says, without when and where it was made: made again it is the same."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _settings_read(cells: list[dict], config: SelectionConfig, recipe_of: Callable) -> dict[str, Any]:
    """The settings that a choice depends on, under dotted names: those that a cell reads, and the cells.

    Raises InputError for a setting of the grid that no cell reads: its values would be recorded as a choice.
    """
    # What only names things is no difference between two choices.
    config = replace(config, setup="validation", name=None, extractor=None)
    read = {}
    for values in cells:
        read |= flat(recipe_of(with_values(config, values), {})["config"])
    for name in cells[0]:
        if name not in read:
            raise InputError(f"{config.select}: {name}: neither the classifier nor the augmentation at work reads it")
    how = {"criterion": config.criterion} | ({"select_per_shot": True} if config.select_per_shot else {})
    return {**how, **{n: read[n] for n in read if n not in cells[0]}, "cells": cells}


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
    names = [name for name in names_of_values(config) if name not in protocol]
    return list(flat({name: value for name, value in asdict(config).items() if name in names}))


def _checked(parser: ArgumentParser, config: SelectionConfig, name: str, value: Any, path: Path) -> Any:
    """`value` as the command line would take it; InputError if it would not."""
    content = asdict(with_values(config, {name: value}))
    try:
        if (value is None and not _may_be_none(config, name)) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise ArgumentError(None, "a value must be given, and numbers be finite")
        return parser.parse_object({"config": content})[f"config.{name}"]
    except ArgumentError as error:
        raise InputError(f"{path}: {name}: {value!r} is no value of it ({' '.join(str(error).split())})") from None


def _may_be_none(config: SelectionConfig, name: str) -> bool:
    *groups, key = name.split(".")
    return type(None) in get_args(get_type_hints(type(reduce(getattr, groups, config)))[key])


def _evaluate_cells(
    evidence: Path, made_from: dict, cells: list[dict], config: SelectionConfig, evaluate: Callable, device: str
) -> None:
    """Write the evidence: evaluate the cells that an unfinished file of the same recipe does not hold."""
    import scipy.stats  # noqa: F401 -- intervals need it; imported before the clock starts

    provenance = Provenance()
    config = replace(config, setup="validation")
    benchmark = read_benchmark(config)
    protocol = {"setup": "validation", "split_digest": benchmark.split.digest}
    with writing(evidence, made_from, resumable=True) as partial:
        done = _checked_cells(partial, read_yaml(partial), cells, config.criterion) if partial_recipe(partial) else []
        left = cells[len(done) :]
        all_ranks = evaluate([with_values(config, values) for values in left], benchmark, device)
        for i, (values, ranks) in enumerate(zip(left, all_ranks), start=len(done) + 1):
            done.append(_entry(values, ranks, benchmark, config.criterion))
            write_yaml(partial, {**made_from, "protocol": protocol, "cells": done})
            print(f"{made_from['stage']}: cell {i} of {len(cells)}, {_text(done[-1], config.criterion)}", flush=True)
        chosen = _chosen(partial, done, config)
        made = {"chosen": chosen, **made_from, "protocol": protocol, "provenance": provenance.record(device)}
        write_yaml(partial, {**made, "cells": done})
    print(f"{made_from['stage']}: chose {chosen} -> {evidence}", flush=True)


def _entry(values: dict, ranks: Ranks | Diverged, benchmark: Benchmark, criterion: Criterion) -> dict:
    """The entry of one cell in the evidence: mean and 95 % t-interval over trials, and every run's accuracies."""
    if isinstance(ranks, Diverged):
        return {"values": values, "mean": None, "interval": None, "diverged": str(ranks), "trials": []}
    trials = benchmark.accuracies(ranks)
    mean, interval = _mean_and_interval(trials, criterion)
    return {"values": values, "mean": mean, "interval": interval, "trials": trials}


def _mean_and_interval(trials: list[dict], criterion: str) -> tuple[float, float | None]:
    """Of the criterion, over trials; there is no interval of a single one."""
    from scipy import stats  # takes half a second, and only a choice needs it

    top, *groups = criterion.split("_")
    by_trial = np.array(
        [
            np.mean([run[f"{top}_{group}"] for run in trials if run["trial"] == trial for group in groups])
            for trial in dict.fromkeys(run["trial"] for run in trials)
        ]
    )
    n = len(by_trial)
    interval = float(stats.t.ppf(0.975, n - 1) * by_trial.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    return float(by_trial.mean()), interval


def _checked_cells(path: Path, written: Any, cells: list[dict], criterion: Criterion) -> list[dict]:
    """What evidence, `written` in the file `path`, says of the first of `cells`, or of all; InputError unless every
    mean is that of its trials."""
    try:
        done = written["cells"]
        sound = [cell["values"] for cell in done] == cells[: len(done)] and all(
            cell["trials"] and math.isclose(cell["mean"], _mean_and_interval(cell["trials"], criterion)[0])
            for cell in done
            if not (cell["mean"] is None and cell["diverged"])
        )
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise InputError(f"{path}: damaged: its cells are not those of the grid with the means of their trials")
    return done


def _text(cell: dict, criterion: str) -> str:
    values = ", ".join(f"{name} {value}" for name, value in cell["values"].items())
    if cell["mean"] is None:
        return f"{values}: diverged"
    interval = "" if cell["interval"] is None else f" ± {100 * cell['interval']:.2f}"
    return f"{values}: {criterion} {100 * cell['mean']:.2f}{interval}"


def _best(evidence: Path, cells: list[dict], criterion: Criterion, n_shot: int | None = None) -> dict[str, Any]:
    """The values of the cell with the highest mean (with `n_shot`: over the runs of that n), of equals the first."""
    trained = [cell for cell in cells if cell["mean"] is not None]
    if not trained:
        raise InputError(f"{evidence}: every cell of the grid diverged")

    def mean(cell: dict) -> float:
        runs = [run for run in cell["trials"] if run["n_shot"] == n_shot]
        return cell["mean"] if n_shot is None else _mean_and_interval(runs, criterion)[0]

    return max(trained, key=mean)["values"]
