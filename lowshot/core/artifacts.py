"""Files and folders that stages exchange. They are complete or absent, and record the settings and inputs that made
them.

Every artifact (HDF5 file, JSON file or folder) stores three entries, together called its *recipe*: `stage`, `config`
(the resolved settings that influence the content) and `inputs` (name -> digest of what was read). They are HDF5
attributes, top-level entries of a JSON or YAML file, or in the folder's `config.json`.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import yaml

from lowshot.core.choices import code_file, is_own, suggestion
from lowshot.core.errors import InputError
from lowshot.core.settings import choices_in, defaults_of, flat, paths_of, values_of


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the models, arrays and JSON files directly inside a folder. Logs do not
    count.
    """
    path = Path(path)
    if path.is_dir():
        parts = sorted(p for p in path.iterdir() if p.suffix in {".pt", ".h5", ".json"})
        return hashlib.sha256("".join(f"{p.name}:{digest(p)}\n" for p in parts).encode()).hexdigest()
    if not path.exists():
        raise missing(path, "no such file or folder")
    facts = path.stat()
    return _file_digest(path.resolve(), facts.st_ino, facts.st_size, facts.st_mtime_ns)


@lru_cache
def _file_digest(path: Path, *_facts: int) -> str:
    """Hash a file once: graphs are many gigabytes. `_facts` (inode, size, time) change when the file changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_SHOWN = 5  # differences that a message names


class Recipe(dict):
    """The recipe of an artifact (`stage`, `config`, `inputs`), which can be compared with a stored one.

    `defaults` are the defaults of the settings. `older` converts the recipe of an older revision to current names. A
    setting that the older recipe lacks was added later, and its default is the former behaviour. A setting that the
    current choice does not have was never read.
    """

    def __init__(self, content: dict, defaults: dict, older: Callable[[dict], dict]) -> None:
        super().__init__(content)
        self.defaults, self.older = defaults, older

    def but(self, older: Callable[[dict], dict] | None = None, **parts: Any) -> "Recipe":
        """Return a copy with a different `config` or `inputs`."""
        return Recipe({**self, **parts}, self.defaults, older or self.older)

    def difference(self, stored: dict | None) -> str | None:
        """Describe how the recipe `stored` differs from this one, in at most five points. Return None if it is the
        same.
        """
        found = self._differences(stored)
        more = [f"{len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        return "; ".join(found[:_SHOWN] + more) or None

    def _differences(self, stored: dict | None) -> list[str]:
        if stored is None:
            return ["it does not record what made it"]
        if stored.get("config", {}).keys() & FACTS_OF_RUNS:
            stored = {**stored, "config": {k: v for k, v in stored["config"].items() if k not in FACTS_OF_RUNS}}
        stored = self.older(stored)
        if stored["stage"] != self["stage"]:
            return [f"it is an output of {stored['stage']}"]
        found = [
            f"input {name} {_change(name, stored['inputs'], self['inputs'])}"
            for name in sorted({*stored["inputs"], *self["inputs"]})
            if stored["inputs"].get(name) != self["inputs"].get(name)
        ]
        new = flat(self["config"])
        old = {name: self.defaults[name] for name in new if name in self.defaults} | flat(stored["config"])
        return found + [
            f"setting {name} was {old.get(name, 'not set')}, now {new.get(name, 'not set')}"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name) and not _was_unread(name, new)
        ]


def _change(name: str, old: dict[str, str], new: dict[str, str]) -> str:
    return "has changed" if name in old and name in new else "is new" if name in new else "is no longer given"


def _was_unread(name: str, new: dict[str, Any]) -> bool:
    """Whether a setting belongs to a choice in `new`, but not to the option chosen there or to one of its parts.
    Settings chosen per n are stored below their setting.
    """
    groups = list(_groups(name))
    return not new.keys() & {name, *groups} and any(f"{group}.name" in new for group in groups)


def _groups(name: str) -> Iterator[str]:
    """Yield the prefixes of a dotted name: the groups that it belongs to."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


# Facts that an artifact records about its run. They do not count as a difference.
FACTS_OF_RUNS = {"ended_after"}


def recipe(stage: str, config: Any, inputs: dict[str, Path | str | None], **facts: Any) -> Recipe:
    """Return the recipe of an output of `stage` with the settings `config`.

    `inputs` are the files and folders that were read, or their digests; None for an input that is not given. Files
    named in the settings of choices, and the files of user-defined classes, are added. `facts` are further entries of
    the config, such as what the inputs pass on.
    """
    named = {f"{name}.{field}": path for name, one in choices_in(config) for field, path in paths_of(one).items()}
    code = {f"code of {name}": code_file(type(one)) for name, one in choices_in(config) if is_own(one)}
    files = {**inputs, **named, **code}
    digests = {name: digest(one) if isinstance(one, Path) else one for name, one in files.items() if one is not None}
    content = {"stage": stage, "config": {**values_of(config), **facts}, "inputs": digests}
    older = getattr(type(config), "older", None) or partial(renamed, getattr(type(config), "renamed", {}))
    return Recipe(
        json.loads(json.dumps(content, default=str)),
        json.loads(json.dumps(flat(defaults_of(config)), default=str)),
        older,
    )


def renamed(names: dict[str, str], stored: dict) -> dict:
    """Return the recipe `stored` with settings renamed by the table `names` (old name or prefix -> new one)."""
    config = {name_today(names, name): value for name, value in flat(stored["config"]).items()}
    return {**stored, "config": config}


def name_today(names: dict[str, str], name: str) -> str:
    """Return the current dotted name of a setting, by a table as in `renamed`.

    If the old name is a prefix of the new one ("loss" -> "loss.name"), only the old name itself and its numbered values
    ("loss.5") are renamed.
    """
    for older in sorted(names, key=len, reverse=True):
        rest, whole = name[len(older) :], names[older].startswith(f"{older}.")
        if name == older or (name.startswith(f"{older}.") and (not whole or rest[1:].isdigit())):
            return names[older] + rest
    return name


def read_recipe(path: Path) -> dict | None:
    """Return the recipe stored in an artifact, or None if it has none (a published file, or a file of the user)."""
    path = Path(path)
    try:
        if path.is_dir():
            stored = read_json(path / "config.json")
        elif path.suffix in {".h5", ".hdf5"}:
            with open_h5(path) as file:
                stored = {key: json.loads(file.attrs[key]) for key in ("stage", "config", "inputs")}
        elif path.suffix == ".yaml":
            stored = read_yaml(path)
        else:
            stored = read_json(path)
        made_from = {key: stored[key] for key in ("stage", "config", "inputs")}
        return made_from if all(isinstance(made_from[key], dict) for key in ("config", "inputs")) else None
    except (KeyError, TypeError, json.JSONDecodeError):
        return None


def is_done(out: Path, made_from: Recipe, overwrite: bool) -> bool:
    """Return whether `out` already exists and was made from the same inputs and settings. If so, print it.

    Raises InputError with the difference if it was made differently. With `overwrite` the answer is always no.
    """
    out = Path(out)
    if overwrite or not out.exists():
        return False
    stored = read_recipe(out) if not (out.is_dir() and not (out / "config.json").exists()) else None
    _refuse_if_other(out, stored, made_from)
    early = _ended_early(stored["config"])
    print(f"{made_from['stage']}: {out} already exists, made from the same inputs and settings{early}")
    return True


def _ended_early(config: dict) -> str:
    """Return a remark on a training that ended before its schedule, from the `config` of its recipe."""
    if "ended_after" not in config:
        return ""
    return f", but ended after {point_in(config, config['ended_after'])}; --overwrite trains again from the start"


def point_in(config: dict, step: int) -> str:
    """Describe a point of the training with the recipe `config`: "epoch 3 of 30"."""
    length = next((name for name in ("epochs", "steps", "n_steps", "n_episodes") if config.get(name)), None)
    return f"{length.removeprefix('n_')[:-1]} {step} of {config[length]}" if length else f"step {step}"


def _refuse_if_other(path: Path, stored: dict | None, made_from: Recipe) -> None:
    if stored is None:
        raise InputError(f"{path}: exists, but does not record what made it. Use another name, or --overwrite")
    if difference := made_from.difference(stored):
        raise InputError(f"{path}: exists, but was made differently ({difference}). Use another name, or --overwrite")


@contextmanager
def writing(out: Path, made_from: Recipe | None = None, resumable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `out`, and rename it to `out` when the block ends without an error.

    A block that writes a folder creates it. After an error the temporary path is removed, or kept if `resumable`. A
    resumable leftover with a recipe other than `made_from` is discarded.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(out)
    if partial.exists() and not (resumable and made_from.difference(partial_recipe(partial)) is None):
        _remove(partial)
    try:
        yield partial
    except BaseException as error:
        if not resumable:
            _remove(partial)
        elif partial.exists() and not hasattr(error, "__notes__"):
            error.add_note(f"the same command continues from {partial}")
        raise
    publish(partial, out)


@contextmanager
def building(out: Path, made_from: Recipe) -> Iterator[Path]:
    """Like `writing`, for a file that an interrupted run continues. After bad input it is removed."""
    with writing(out, made_from, resumable=True) as partial:
        try:
            yield partial
        except InputError:
            partial.unlink(missing_ok=True)
            raise


def check_suffix(option: str, path: Path, suffix: str) -> None:
    """Raise InputError if the output given with `option` has a name of another format."""
    if path.suffix != suffix:
        raise InputError(f"{option} {path}: must end in {suffix}. Use {option} {path.with_suffix(suffix)}")


def partial_recipe(partial: Path) -> dict | None:
    """Return the recipe of an unfinished artifact, or None if it does not exist or has no recipe yet."""
    try:
        return read_recipe(partial) if partial.exists() else None
    except InputError:
        return None


def partial_path(out: Path) -> Path:
    """Return where `out` is written until it is complete. The suffix is kept, because readers derive the format from
    it.
    """
    if not out.name:
        raise InputError(f"--out {out}: must have a name of its own, such as outputs/data")
    return out.with_name(f"{out.stem}.partial{out.suffix}")


def publish(partial: Path, out: Path) -> None:
    """Flush `partial` to disk and rename it to `out`, replacing an existing output."""
    for file in [partial] if partial.is_file() else [p for p in partial.rglob("*") if p.is_file()]:
        with file.open("r+b") as handle:  # Windows flushes writable files only
            os.fsync(handle.fileno())
    if partial.is_dir() and out.exists():
        old = out.with_name(out.name + ".old")
        _remove(old)
        out.rename(old)
        partial.rename(out)
        _remove(old)
    else:
        partial.replace(out)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises InputError if it is missing or not JSON."""
    return _parsed(path, json.loads, "JSON")


def write_json(path: Path, content: Any) -> None:
    """Write JSON to `path` atomically."""
    _write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file, plain values only. Raises InputError if it is missing, not YAML, or has a key
    twice.
    """
    content = _parsed(path, partial(yaml.load, Loader=_UniqueKeys), "YAML")
    try:
        json.dumps(content, default=str, skipkeys=True)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not valid YAML (an anchor contains itself)") from None
    return content


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys. YAML allows them, and the last one wins silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if isinstance(name, str) and name != "<<":
                if name in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"'{name}' is there twice", key.start_mark)
                seen.add(name)
        return super().construct_mapping(node, deep)


def write_yaml(path: Path, content: Any) -> None:
    """Write YAML to `path` atomically, with innermost lists and mappings on one line each."""
    plain = json.loads(json.dumps(content))  # YAML does not know checked types such as PositiveInt
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=400, allow_unicode=True)
    _write_text(path, text)


def _parsed(path: Path, parse: Callable[[str], Any], form: str) -> Any:
    path = Path(path)
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise missing(path) from None
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: not valid {form} ({_place_and_cause(error)})") from None


def _place_and_cause(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {error.problem}" if mark else " ".join(str(error).split())


def _write_text(path: Path, text: str) -> None:
    partial = Path(path).with_name(Path(path).name + ".writing")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def open_h5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading. Raises InputError if it is missing, truncated or not HDF5."""
    path = Path(path)
    if not path.is_file():
        raise missing(path)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        cut_off = "it is cut off; make it again" if "truncated" in str(error) else f"{error}"
        raise InputError(f"{path}: not a readable HDF5 file ({cut_off})") from None


# Which stage writes a file of that name.
_WRITERS = {"images.h5": "preprocessing.py", "split.json": "preprocessing.py", "draws.json": "preprocessing.py",
            "train.h5": "save_features.py", "test.h5": "save_features.py"}  # fmt: skip


def missing(path: Path, what: str = "no such file") -> InputError:
    """Return the error for an input that does not exist, or is a folder instead of a file, or a file instead of a
    folder.
    """
    path = Path(path)
    if path.is_dir():
        files = [one.name for one in sorted(path.iterdir()) if one.suffix in {".h5", ".json", ".pt", ".yaml"}]
        return InputError(f"{path}: is a folder, not a file" + (f"; it holds {', '.join(files[:6])}" if files else ""))
    for parent in path.parents:
        if parent.is_file():
            return InputError(f"{parent}: is a file, not a folder with a {path.name}")
    writer = f" ({_WRITERS[path.name]} writes {path.name})" if path.name in _WRITERS else ""
    absent = next((parent for parent in reversed(path.parents) if not parent.exists()), path)
    beside = absent.parent.iterdir() if absent.parent.is_dir() else []
    alike = [one.name for one in beside if suggestion(absent.stem, [one.stem])]
    what = what if absent == path else "no such folder"
    return InputError(f"{absent}: {what}{suggestion(absent.name, alike) or writer}")


def require_datasets(file: h5py.File, names: list[str]) -> None:
    """Raise InputError for the first of `names` that is not a dataset of the open `file`."""
    for name in names:
        if not isinstance(file.get(name), h5py.Dataset):
            raise InputError(f"{file.filename}: lacks the dataset '{name}' (it has: {', '.join(file) or 'nothing'})")


def write_recipe(file: h5py.File, schema: str, made_from: dict) -> None:
    """Store the schema name and the recipe as attributes of the open HDF5 `file`."""
    file.attrs["schema"] = schema
    for key, value in made_from.items():
        file.attrs[key] = json.dumps(value)


class Provenance:
    """Facts about a run for its results file. Create it when the stage starts."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def record(self, device: str) -> dict:
        """Return command, commit, versions, device, wall time in seconds and peak memory in bytes of this process so
        far.
        """
        packages = ("torch", "numpy", "scikit-learn", "h5py")
        return {
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "commit": _commit(),
            "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
            "device": device,
            "wall_time_s": round(time.perf_counter() - self.start, 2),
            "peak_memory_bytes": peak_memory_bytes(),
        }


def peak_memory_bytes() -> int | None:
    """Return the peak memory of this process, or None on Windows, which does not report it to Python."""
    if sys.platform == "win32":
        return None
    import resource  # exists on POSIX systems only

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if changed.returncode else "")
