"""Results files: reading them and checking what they contain."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd

from lowshot.core.errors import InputError
from lowshot.core.files import read_json
from lowshot.data.lineage import Setting
from lowshot.evaluation.settings import Metric, SixAccuracies
from lowshot.gan.settings import SCORES

# Entries of a results file, with their types.
_ENTRIES = {"method": str, "dataset": str, "extractor": str, "protocol": dict, "config": dict, "provenance": dict}
_PROTOCOL_ENTRIES = {"setup": str, "setting": str, "split_digest": str}
# Tags of newer files: whether images of novel classes were seen with their superclass, and data sets from outside.
_TAGS = {"superclasses": bool, "outside": list}
_PROVENANCE_ENTRIES = {"command": str, "commit": str | None, "versions": dict, "device": str,
                       "wall_time_s": int | float | None, "peak_memory_bytes": int | None}  # fmt: skip
_NEWER_PROVENANCE = {"machine": str}
# Settings that are read from a file's config, and further entries. They may be absent.
_CONFIG_ENTRIES = {"classes": str | None, "transform": dict | None, "within_superclass": bool | None,
                   "n_way": int | str | None, "n_queries": int | None, "dirichlet": int | float | None,
                   "n_present": int | None, "reference": str | None}  # fmt: skip
_FURTHER_ENTRIES = {"stage": str, "inputs": dict, "gan": dict | None, "selection": dict}


class Form(NamedTuple):
    """The fields of one kind of entry: integers with their minimum, real values and texts, and further real values and
    texts that not all files have. Real values are in 0..1 unless _LOWEST or _HIGHEST has another bound."""

    integers: dict[str, int]
    values: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    newer: tuple[str, ...] = ()
    newer_texts: tuple[str, ...] = ()


_SIX = get_args(SixAccuracies)
_NEWER = tuple(name for name in get_args(Metric) if name not in _SIX)
FORMS = {
    "trials": Form({"trial": 0, "n_shot": 1}, _SIX, newer=_NEWER),
    "episodes": Form({"episode": 0, "n_way": 1, "n_shot": 1}, ("accuracy",), newer_texts=("name", "cluster")),
    "history": Form({"n_steps": 0, "trial": 0, "n_shot": 1}, _SIX, newer=_NEWER),
    "clustering": Form({"seed": 0, "n_clusters": 2}, ("nmi", "homogeneity", "adjusted_rand")),
    "scores": Form({"n_images": 1}, tuple(SCORES)),
    "classes": Form({"class": 0, "n_images": 1}, texts=("name", "group")),
    "confusions": Form({"n_shot": 1, "class": 0, "predicted": 0, "n_images": 1}, texts=("name",)),
}
_LOWEST = {"adjusted_rand": -1, "kid": -np.inf}
_HIGHEST = {"fid": np.inf, "kid": np.inf, "density": np.inf}


def read_files(folder: Path, report: Path | None = None) -> dict[str, dict]:
    """Read and check all results files below `folder`; returns their content by relative path.

    Skips unfinished files (hidden folders) and the files of a `report` inside the folder. Raises InputError if there
    are no results, and, naming the file, if one is not JSON, lacks a key, or has a value out of range.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    inside = Path(report).resolve() if report else None
    paths = [path for path in sorted(_files_below(folder)) if path.suffix == ".json" and path.is_file()]
    paths = [path for path in paths if inside is None or inside not in path.resolve().parents]
    if not paths:
        raise InputError(f"{folder}: no results file (*.json) below it")
    return {path.relative_to(folder).as_posix(): read_file(path) for path in paths}


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that are not hidden. Raises OSError for a folder that cannot be read."""

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def read_file(path: Path) -> dict:
    """Read and check a results file. Its lists of entries become data frames; `by_class` is made from the hits of
    classes, `base_novel` from the curves of the trials."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a results file: it is not a JSON object")
    _check_entries(path, content, _ENTRIES)
    _check_entries(path, content["protocol"], _PROTOCOL_ENTRIES, "protocol.")
    _check_entries(path, content["protocol"], _TAGS | {"tasks_digest": str}, "protocol.", optional=True)
    setting, outside = content["protocol"]["setting"], content["protocol"].get("outside", [])
    if setting not in get_args(Setting) or not all(isinstance(one, str) for one in outside):
        raise InputError(f"{path}: not a results file: its setting is '{setting}', seen outside: {outside}")
    _check_entries(path, content["provenance"], _PROVENANCE_ENTRIES, "provenance.")
    _check_entries(path, content["provenance"], _NEWER_PROVENANCE, "provenance.", optional=True)
    _check_entries(path, content, _FURTHER_ENTRIES, optional=True)
    _check_entries(path, content["config"], _CONFIG_ENTRIES, "config.", optional=True)
    for key in ("inputs", "gan"):
        parts = content.get(key) or {}
        kinds = dict.fromkeys(parts, str | None) if key == "inputs" else {"trial": int | None, "k": int | None}
        _check_entries(path, parts, kinds, f"{key}.", optional=True)
    if "trials" not in content and (not {"episodes", "scores"} & set(content) or "history" in content):
        raise InputError(f"{path}: not a results file: lacks 'trials' (or 'episodes', 'scores')")
    hits = _class_hits(path, content) if "classes" in content and "trials" in content else None
    curves = _curves(path, content["trials"]) if "trials" in content else None
    for kind, form in FORMS.items():
        if kind in content and (kind != "confusions" or content[kind] != []):
            content[kind] = _check_rows(f"{path}: {kind}", content[kind], form)
    if hits is not None:
        content["by_class"] = _by_class(path, content, hits)
    if curves is not None:
        content["base_novel"] = _base_novel(content["trials"], curves)
    return content


def _class_hits(path: Path, content: dict) -> np.ndarray | None:
    """Return the hits of every class in each trial, (trials, classes), or None for files without."""
    classes, lists = content["classes"], _of_each(content["trials"], "class_hits")
    if lists is None:
        return None
    n_classes = len(classes) if isinstance(classes, list) else 0
    whole = all(isinstance(one, list) and len(one) == n_classes for one in lists)
    if not whole or not all(type(hits) is int and 0 <= hits < 2**31 for one in lists for hits in one):
        raise InputError(f"{path}: trials: 'class_hits' must hold, for each trial, a number of hits for each class")
    return np.array(lists)


def _of_each(trials: object, key: str) -> list | None:
    """Return an entry of every trial, or None if a trial lacks it, as those of older revisions do."""
    found = [one.get(key) for one in trials if isinstance(one, dict)] if isinstance(trials, list) else []
    return found if found and None not in found else None


def _curves(path: Path, trials: object) -> np.ndarray | None:
    """Return the base-novel curve of each trial, (trials, 2, places), or None for files without."""
    curves = _of_each(trials, "base_novel")
    if curves is None:
        return None
    pairs = [[one.get("base"), one.get("novel")] if isinstance(one, dict) else None for one in curves]
    try:
        found = np.array(pairs, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.ndim != 3 or not found.size or not ((found >= 0) & (found <= 1)).all():
        raise InputError(
            f"{path}: trials: 'base_novel' must hold, for each trial, equally long lists base and novel of accuracies"
        )
    return found


def _base_novel(trials: pd.DataFrame, curves: np.ndarray) -> pd.DataFrame:
    """Return base and novel accuracy at every place of the curve of each trial and n."""
    n_places = curves.shape[2]
    runs = trials[["trial", "n_shot"]].loc[trials.index.repeat(n_places)].reset_index(drop=True)
    place = np.tile(np.arange(n_places), len(trials))
    return runs.assign(place=place, base=curves[:, 0].ravel(), novel=curves[:, 1].ravel())


def _by_class(path: Path, content: dict, hits: np.ndarray) -> pd.DataFrame:
    """Return the accuracy (`value`) of every class in each trial and n, with what `classes` says about it."""
    classes, trials = content["classes"], content["trials"]
    if set(classes["group"]) - {"base", "novel"} or classes["class"].duplicated().any():
        raise InputError(f"{path}: classes: must be different classes of the groups 'base' and 'novel'")
    if (hits > classes["n_images"].to_numpy()).any():
        raise InputError(f"{path}: trials: 'class_hits' has more hits than the class has images")
    runs = trials[["trial", "n_shot"]].loc[trials.index.repeat(len(classes))].reset_index(drop=True)
    each = pd.concat([classes] * len(trials), ignore_index=True)
    return pd.concat([runs, each], axis=1).assign(value=hits.ravel() / each["n_images"])


def _check_entries(
    path: Path, content: dict, entries: dict[str, Any], prefix: str = "", optional: bool = False
) -> None:
    """Raise InputError if one of `entries` is missing, unless `optional`, or has another type."""
    for key, kind in entries.items():
        if key not in content:
            if optional:
                continue
            raise InputError(f"{path}: not a results file: lacks '{prefix}{key}'")
        value = content[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and not isinstance(True, kind)):
            raise InputError(
                f"{path}: not a results file: '{prefix}{key}' is {json.dumps(value)[:40]}, must be {_in_words(kind)}"
            )


_WORDS = {
    str: "text",
    list: "a list",
    int: "a number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    NoneType: "null",
}


def _in_words(kind: Any) -> str:
    return " or ".join(dict.fromkeys(_WORDS[one] for one in get_args(kind) or (kind,)))


def _check_rows(where: str, rows: object, form: Form) -> pd.DataFrame:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{where} is not a list of entries")
    frame = pd.DataFrame(rows)
    least, fractions = form.integers, [*form.values, *(name for name in form.newer if name in frame)]
    texts = [*form.texts, *(name for name in form.newer_texts if name in frame)]
    for key in texts:
        if key not in frame or not all(isinstance(text, str) for text in frame[key]):
            raise InputError(f"{where}: '{key}' must be a text in every entry")
    for key in [*least, *fractions]:
        if key not in frame:
            raise InputError(f"{where} lack '{key}'")
        column = frame[key]
        if column.isna().any():
            raise InputError(f"{where}: entry {int(column.isna().argmax()) + 1}: '{key}' is absent or NaN")
        if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
            raise InputError(f"{where}: '{key}' has a value that is not a number")
    values = frame[fractions].to_numpy(float)
    lowest, highest = (
        np.array([ends.get(name, i) for name in fractions]) for i, ends in enumerate((_LOWEST, _HIGHEST))
    )
    for row, column in np.argwhere(~((values >= lowest) & (values <= highest) & np.isfinite(values)))[:1]:
        problem = f"'{fractions[column]}' is {values[row, column]}, outside {lowest[column]}..{highest[column]}"
        raise InputError(f"{where}: entry {row + 1}: {problem}")
    for key, smallest in least.items():
        if not pd.api.types.is_integer_dtype(frame[key]) or frame[key].min() < smallest:
            raise InputError(f"{where}: '{key}' must be an integer, at least {smallest}")
    kept = [*least, *fractions, *texts]
    return frame[kept + (["class"] if "class" in frame and "class" not in kept else [])]
