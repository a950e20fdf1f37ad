"""Selection of settings: evaluate every cell of a grid on the validation setup and select the best.

A grid file is YAML. It maps settings, named as on the command line, to the values to try:

    classifier.lr: [0.1, 1.0]
    classifier.weight_decay: [0.01, 0.001]

The evidence is a YAML file next to the results, with the accuracies of every cell and the choice. It is written cell by
cell, so that a killed run resumes at the next cell.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np

from lowshot.core.artifacts import Provenance, Recipe, name_today
from lowshot.core.errors import Diverged, InputError
from lowshot.core.files import read_yaml, write_yaml
from lowshot.core.publishing import is_done, partial_recipe, writing
from lowshot.core.settings import BadSetting, build, flat, nested, values_of
from lowshot.evaluation.benchmark import Benchmark, Evaluated, read_benchmark
from lowshot.evaluation.settings import Criterion, SelectionConfig

Config = TypeVar("Config", bound=SelectionConfig)
Values = dict[str, Any]  # dotted name -> value
# Settings that define the evaluation and its random numbers. A grid must not contain them.
_PROTOCOL = {"seed", *(field.name for field in fields(SelectionConfig))}
_MEANS_OF_TWO = {f"{top}_novel_base": (f"{top}_novel", f"{top}_base") for top in ("top1", "top5")}


class Cell(NamedTuple):
    """A cell of a grid: `values` as stored in recipes, and the `config` with these values."""

    values: Values
    config: Any


class Choice(NamedTuple):
    """The selected `configs`, the `evidence` file and the `record` of the choice for the results.

    There is one config for all `shots`, or one for each.
    """

    configs: list[Any]
    evidence: Path
    record: dict


def choose(
    config: Config,
    recipe_of: Callable[[Config], Recipe],
    evaluate: Callable[[list[Config], Benchmark, str], Iterator[Evaluated | Diverged]],
    device: str,
) -> Choice:
    """Evaluate every cell of the grid `config.select` on the validation setup and select the best.

    The first of equally good cells is selected. A cell that diverges is recorded and never selected.

    Args:
        recipe_of: returns the recipe of results for a config.
        evaluate: runs some cells: (config of each, benchmark, device) -> outcomes of each, in the same order.

    Raises:
        InputError: if the grid is invalid (before any work), the evidence is damaged, or every cell diverged.
    """
    if config.setup == "test" and config.trials is not None:
        raise InputError(
            "--trials: with --select, each run of some trials would select its own settings. Select once with "
            "--setup validation, then run the trials with the selected settings"
        )
    how, plain = config.select, replace(config, select=None, setup="validation")
    cells = read_grid(how.grid, plain)
    evidence = evidence_path(config.out)
    made_from = _recipe(cells, how.criterion, how.per_shot, recipe_of)
    if not is_done(evidence, made_from, config.overwrite):
        _evaluate_cells(evidence, made_from, cells, config, evaluate, device)
    stored = read_yaml(evidence)
    done = _checked_cells(evidence, stored, cells, how.criterion)
    chosen = _chosen(evidence, done, config)
    if len(done) < len(cells) or not _same_values(stored.get("chosen"), chosen):
        raise InputError(
            f"{evidence}: edited by hand: 'chosen' is not the best cell. Use --overwrite to evaluate the grid again"
        )
    record = {"criterion": how.criterion, "chosen": chosen, "evidence": evidence.name, "digest": _digest(stored)}
    return Choice(_with_chosen(config, cells, chosen), evidence, record)


def _chosen(evidence: Path, done: list[dict], config: SelectionConfig) -> dict:
    """Return the values of the best cell, or {n: values of the best cell for n}."""
    criterion = config.select.criterion
    if not config.select.per_shot:
        return _best(evidence, done, criterion)
    return {str(n): _best(evidence, done, criterion, n) for n in config.shots}


def _with_chosen(config: Config, cells: list[Cell], chosen: dict) -> list[Config]:
    """Return the configs of the selected cells for the setup of `config`: one, or one for each n."""
    by_shot = {(n,): chosen[str(n)] for n in config.shots} if config.select.per_shot else {tuple(config.shots): chosen}
    return [
        replace(next(cell.config for cell in cells if cell.values == values), setup=config.setup, shots=list(shots))
        for shots, values in by_shot.items()
    ]


def joint_recipe(recipes: list[tuple[list[int], Recipe]]) -> Recipe:
    """Return one recipe for the results of several configs, given as (shots, recipe).

    A setting that differs between them, or that only some of them have, is listed for each n that has it.
    """
    all_shots = {"shots": [n for shots, _ in recipes for n in shots]}
    by_shot = {str(n): flat({**one["config"], **all_shots}) for shots, one in recipes for n in shots}
    inputs = {name: one for _, made_from in recipes for name, one in made_from["inputs"].items()}  # samples differ by n
    joint = recipes[0][1].but(config=nested(joint_settings(by_shot)), inputs=inputs)
    for _, one in recipes[1:]:
        joint.sources.update(one.sources)
    return joint


def joint_settings(by_shot: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Merge {n: settings by dotted name}: a setting equal for all n keeps its name, any other becomes `name.n`."""
    joint = {}
    for name in dict.fromkeys(name for settings in by_shot.values() for name in settings):
        values = {n: settings[name] for n, settings in by_shot.items() if name in settings}
        first = next(iter(values.values()))
        alike = len(values) == len(by_shot) and all(value == first for value in values.values())
        joint |= {name: first} if alike else {f"{name}.{n}": value for n, value in values.items()}
    return joint


def evidence_path(out: Path) -> Path:
    """Return the path of the evidence that belongs to the results `out`."""
    return out.with_suffix(".selection.yaml")


def _digest(stored: dict) -> str:
    """Return the SHA-256 of evidence without its provenance, so that it is the same if the evidence is made again."""
    content = {name: stored[name] for name in ("stage", "config", "inputs", "chosen", "cells")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _recipe(cells: list[Cell], criterion: Criterion, per_shot: bool, recipe_of: Callable) -> Recipe:
    """Return the recipe of a choice: the inputs, the settings of the cells, and the cells."""
    # Names in the tables do not affect the choice.
    recipes = [recipe_of(replace(cell.config, name=None, extractor=None)) for cell in cells]
    names, values = getattr(type(cells[0].config), "renamed", {}), [cell.values for cell in cells]
    how = {"criterion": criterion} | ({"select_per_shot": True} if per_shot else {})
    common = _common((one["config"] for one in recipes), values)
    inputs = joint_settings({str(i): one["inputs"] for i, one in enumerate(recipes)})
    return recipes[0].but(
        inputs=inputs,
        config={**how, **common, "cells": values},
        older=partial(_older, recipes[0].older, names, values[0]),
    )


def _common(configs: Iterable[dict], cells: list[Values]) -> dict[str, Any]:
    """Return the settings of all cells that are not in the grid.

    They can differ, since a choice in a cell can have its own settings. Such a setting is listed for each cell that has
    it, as `name.cell`.
    """
    settings = {
        str(i): {name: value for name, value in flat(config).items() if name not in values}
        for i, (config, values) in enumerate(zip(configs, cells))
    }
    return joint_settings(settings)


def _older(older: Callable[[dict], dict], names: dict[str, str], known: Values, stored: dict) -> dict:
    """Return the recipe of stored evidence with current names of settings, in the cells as in `known`."""
    common, found = dict(stored["config"]), stored["config"].get("cells", [])
    common.pop("cells", None)
    today = [older({**stored, "config": {**common, **values}}) for values in found] or [older(stored)]
    renamed = [
        {_name_among(known, name_today(names, name)): value for name, value in values.items()} for values in found
    ]
    config = _common((one["config"] for one in today), renamed)
    return {**today[0], "config": {**config, "cells": renamed}}


def _name_among(known: Values, name: str) -> str:
    """Return the name as in `known`. ADDITION matches the name of any addition (`add.ADDITION.max_per_label`)."""
    pattern = re.escape(name).replace("ADDITION", r"\w+")
    return next((one for one in known if re.fullmatch(pattern, one)), name)


_MOST_CELLS = 1000


def read_grid(path: Path, config: SelectionConfig) -> list[Cell]:
    """Read the cells of a grid file: every combination of its values, the last setting varying fastest.

    Raises InputError if the file is not a grid of settings of `config`, or contains the setup.
    """
    grid = read_yaml(path)
    lists = list(grid.values()) if isinstance(grid, dict) else []
    if not lists or not all(isinstance(values, list) and values for values in lists):
        raise InputError(f"{path}: not a grid. Write lines of the form 'setting: [value, ...]'")
    if "setup" in grid:
        raise InputError(f"{path}: setup: settings are always selected on the validation setup. Remove this line")
    if (n_cells := math.prod(map(len, lists))) > _MOST_CELLS:
        raise InputError(f"{path}: has {n_cells} combinations, more than {_MOST_CELLS}. List fewer values")
    grid = {str(name): values for name, values in grid.items()}
    for name in grid:
        _check_name(path, config, name)
    given = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    cells = [_cell(path, _with_values(path, config, values), list(grid)) for values in given]
    if any(cell.values == other.values for cell, other in itertools.combinations(cells, 2)):
        raise InputError(f"{path}: a setting lists the same value twice. Remove one")
    return cells


def _check_name(path: Path, config: SelectionConfig, name: str) -> None:
    """Raise InputError if a setting of a grid was renamed or belongs to the protocol."""
    today = name_today(getattr(type(config), "renamed", {}), name)
    if today not in (name, f"{name}.name"):
        raise InputError(f"{path}: {name}: is called {today} now")
    if name.split(".")[0] in _PROTOCOL:
        _refuse(path, config, name)


def _refuse(path: Path, config: SelectionConfig, name: str) -> NoReturn:
    there = [one for one in flat(values_of(config)) if one.split(".")[0] not in _PROTOCOL]
    raise InputError(f"{path}: {name}: cannot be in a grid; available: {', '.join(there)}")


def _cell(path: Path, config: SelectionConfig, names: list[str]) -> Cell:
    """Return the cell of a config, with its values of the settings `names` of the grid."""
    settings, values = flat(values_of(config)), {}
    for name in names:
        known = name if name in settings else f"{name}.name"
        values[known] = settings[known] if known in settings else _refuse(path, config, name)
    if len(values) < len(names):
        raise InputError(f"{path}: a setting is listed twice. Remove one")
    return Cell(values, config)


def _with_values(path: Path, config: Config, values: Values) -> Config:
    try:
        return with_values(config, values)
    except BadSetting as error:
        raise InputError(f"{path}: {error}") from None


def with_values(config: Config, values: Values) -> Config:
    """Return `config` with `values` replaced."""
    return build(type(config), nested(values), config)


def _evaluate_cells(
    evidence: Path, made_from: Recipe, cells: list[Cell], config: SelectionConfig, evaluate: Callable, device: str
) -> None:
    """Evaluate the cells and write the evidence. Continue an unfinished file of the same recipe if there is one."""
    import scipy.stats  # noqa: F401 -- intervals need it; imported before the clock starts

    provenance, criterion = Provenance(), config.select.criterion
    benchmark = read_benchmark(replace(config, setup="validation"))
    protocol = {"setup": "validation", "split_digest": benchmark.split.digest}
    with writing(evidence, made_from, resumable=True) as unfinished:
        done = _checked_cells(unfinished, read_yaml(unfinished), cells, criterion) if partial_recipe(unfinished) else []
        left = cells[len(done) :]
        evaluated = evaluate([cell.config for cell in left], benchmark, device)
        for i, (cell, runs) in enumerate(zip(left, evaluated), start=len(done) + 1):
            done.append(_entry(cell.values, runs, benchmark, criterion))
            write_yaml(unfinished, {**made_from, "protocol": protocol, "cells": done})
            print(f"{made_from['stage']}: cell {i} of {len(cells)}, {_text(done[-1], criterion)}", flush=True)
        chosen = _chosen(unfinished, done, config)
        made = {"chosen": chosen, **made_from, "protocol": protocol, "provenance": provenance.record(device)}
        write_yaml(unfinished, {**made, "cells": done})
    print(f"{made_from['stage']}: chose {chosen} -> {evidence}", flush=True)


def _entry(values: dict, runs: Evaluated | Diverged, benchmark: Benchmark, criterion: Criterion) -> dict:
    """Return the evidence of one cell: mean and 95 % t-interval over trials, and the accuracies of every run."""
    if isinstance(runs, Diverged):
        return {"values": values, "mean": None, "interval": None, "diverged": str(runs), "trials": []}
    trials = benchmark.accuracies(runs)
    mean, interval = _mean_and_interval(trials, criterion)
    return {"values": values, "mean": mean, "interval": interval, "trials": trials}


def _mean_and_interval(trials: list[dict], criterion: str) -> tuple[float, float | None]:
    """Return mean and interval of the criterion over trials. The interval of a single trial is None."""
    from scipy import stats  # imported here: it takes half a second, and only selection needs it

    parts = _MEANS_OF_TWO.get(criterion, (criterion,))
    by_trial = np.array(
        [
            np.mean([run[part] for run in trials if run["trial"] == trial for part in parts])
            for trial in dict.fromkeys(run["trial"] for run in trials)
        ]
    )
    n = len(by_trial)
    interval = float(stats.t.ppf(0.975, n - 1) * by_trial.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    return float(by_trial.mean()), interval


def _checked_cells(path: Path, stored: Any, cells: list[Cell], criterion: Criterion) -> list[dict]:
    """Return the entries of evidence, `stored` in the file `path`, for the first of `cells` or all of them.

    Raises InputError if an entry is not that of the cell, or its mean is not that of its trials.
    """
    try:
        done = [{**entry, "values": cell.values} for entry, cell in zip(stored["cells"], cells)]
        sound = all(_same_values(cell["values"], one["values"]) for cell, one in zip(stored["cells"], done)) and all(
            cell["trials"] and math.isclose(cell["mean"], _mean_and_interval(cell["trials"], criterion)[0])
            for cell in done
            if not (cell["mean"] is None and cell["diverged"])
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound or len(stored["cells"]) > len(cells):
        raise InputError(f"{path}: damaged: its cells do not match the grid or their trials. Delete it to start again")
    return done


def _same_values(stored: Any, expected: dict) -> bool:
    """Whether values are equal, ignoring the names of settings. Values selected per n are nested."""
    if not isinstance(stored, dict) or stored == expected:
        return stored == expected
    pairs = list(zip(stored.values(), expected.values()))
    return len(stored) == len(expected) and all(
        _same_values(one, two) if isinstance(two, dict) else one == two for one, two in pairs
    )


def _text(cell: dict, criterion: str) -> str:
    values = ", ".join(f"{name} {value}" for name, value in cell["values"].items())
    if cell["mean"] is None:
        return f"{values}: diverged"
    interval = "" if cell["interval"] is None else f" ± {100 * cell['interval']:.2f}"
    return f"{values}: {criterion} {100 * cell['mean']:.2f}{interval}"


def _best(evidence: Path, cells: list[dict], criterion: Criterion, n_shot: int | None = None) -> dict[str, Any]:
    """Return the values of the first cell with the highest mean (over the runs of `n_shot`, if given)."""
    trained = [cell for cell in cells if cell["mean"] is not None]
    if not trained:
        raise InputError(f"{evidence}: every cell of the grid diverged. Use lower learning rates")

    def mean(cell: dict) -> float:
        runs = [run for run in cell["trials"] if run["n_shot"] == n_shot]
        return cell["mean"] if n_shot is None else _mean_and_interval(runs, criterion)[0]

    return max(trained, key=mean)["values"]
