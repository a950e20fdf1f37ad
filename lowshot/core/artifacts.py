"""Files and folders that stages exchange. They are complete or absent, and record the settings and inputs that made
them.

Every artifact (HDF5 file, JSON file or folder) stores three entries, together called its *recipe*: `stage`, `config`
(the resolved settings that influence the content) and `inputs` (name -> digest of what was read). They are HDF5
attributes, top-level entries of a JSON or YAML file, or in the folder's `config.json`. Artifacts that were made from
images also store their `lineage` (`lowshot.data.lineage`).
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

from lowshot.core.choices import code_file, is_own
from lowshot.core.errors import InputError
from lowshot.core.files import ContentDigest, digest, facts_of, read_json, read_yaml
from lowshot.core.h5 import open_h5, read_lineage
from lowshot.core.machine import machine
from lowshot.core.settings import choices_in, defaults_of, flat, paths_of, values_of

_SHOWN = 5  # differences that a message names


class Recipe(dict):
    """The recipe of an artifact (`stage`, `config`, `inputs`), which can be compared with a stored one.

    `defaults` are the defaults of the settings. `older` converts the recipe of an older revision to current names. A
    setting that the older recipe lacks was added later, and its default is the former behaviour. A setting that the
    current choice does not have was never read. `absent` are the outputs that did not exist when the stage looked for
    them (`core.publishing.is_done`).
    """

    def __init__(
        self, content: dict, defaults: dict, older: Callable[[dict], dict], sources: "Sources | None" = None
    ) -> None:
        super().__init__(content)
        self.defaults, self.older, self.sources = defaults, older, sources or Sources()
        self.absent: set[Path] = set()

    def but(self, older: Callable[[dict], dict] | None = None, **parts: Any) -> "Recipe":
        """Return a copy with a different `config` or `inputs`."""
        other = Recipe({**self, **parts}, self.defaults, older or self.older, self.sources)
        other.absent = self.absent
        return other

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
            if not (name == CONTENT and name not in stored["inputs"])
            and stored["inputs"].get(name) != self["inputs"].get(name)
        ]
        new = flat(self["config"])
        old = {name: self.defaults[name] for name in new if name in self.defaults} | flat(stored["config"])
        return found + [
            f"setting {name} was {old.get(name, 'not set')}, now {new.get(name, 'not set')}"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name) and not _was_unread(name, new)
        ]


# Input for the digest of the content of images. Older recipes have only that of their names and sizes.
CONTENT = "content of files"


class Sources(dict):
    """The files that a recipe names, by path, with their digests.

    `inputs` are those of a recipe, by name. `facts` are of the files of a ContentDigest among them.
    """

    def __init__(self, inputs: dict[str, Any] | None = None) -> None:
        given = (inputs or {}).values()
        super().__init__({one: digest(one) for one in given if isinstance(one, Path)})
        listed = [one.facts for one in given if isinstance(one, ContentDigest)]
        self.facts = {path: facts for files in listed for path, facts in files.items()}

    def check(self, listed: Iterable[Path] | None = None) -> None:
        """Raise InputError if a file has changed since its digest was taken, so that the recipe would be wrong.

        `listed` are the files of a ContentDigest to check (default: all). What was removed is not checked: an open file
        can still be read.
        """
        changed = (path for path, known in self.items() if path.exists() and digest(path) != known)
        listed = self.facts if listed is None else listed
        touched = (path for path in listed if path.exists() and facts_of(path) != self.facts[path])
        for path in chain(changed, touched):
            raise InputError(f"{path}: was changed while it was read. Run the command again")


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


def recipe(
    stage: str, config: Any, inputs: dict[str, Path | str | None], lineage: dict | None = None, **facts: Any
) -> Recipe:
    """Return the recipe of an output of `stage` with the settings `config`.

    `inputs` are the files and folders that were read, or their digests; None for an input that is not given. Files
    named in the settings of choices, and the files of user-defined classes, are added. `lineage` is what the output has
    seen; it follows from the inputs, so recipes are not compared by it. `facts` are further entries of the config, such
    as what the inputs pass on.
    """
    named = {f"{name}.{field}": path for name, one in choices_in(config) for field, path in paths_of(one).items()}
    code = {f"code of {name}": code_file(type(one)) for name, one in choices_in(config) if is_own(one)}
    files = {**inputs, **named, **code}
    sources = Sources(files)
    digests = {name: sources.get(one, one) for name, one in files.items() if one is not None}
    content = {"stage": stage, "config": {**values_of(config), **facts}, "inputs": digests}
    content |= {} if lineage is None else {"lineage": lineage}
    older = getattr(type(config), "older", None) or partial(renamed, getattr(type(config), "renamed", {}))
    return Recipe(
        json.loads(json.dumps(content, default=str)),
        json.loads(json.dumps(flat(defaults_of(config)), default=str)),
        older,
        sources,
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


_ENTRIES = ("stage", "config", "inputs")


def read_recipe(path: Path) -> dict | None:
    """Return the recipe stored in an artifact, or None if it has none (a published file, or a file of the user)."""
    path = Path(path)
    if path.suffix == ".npz":
        return None
    try:
        if path.is_dir():
            stored = read_json(path / "config.json") if (path / "config.json").exists() else {}
        elif path.suffix in {".h5", ".hdf5"}:
            with open_h5(path) as file:
                stored = {key: json.loads(file.attrs[key]) for key in _ENTRIES if key in file.attrs}
        elif path.suffix == ".yaml":
            stored = read_yaml(path)
        else:
            stored = read_json(path)
        made_from = {key: stored[key] for key in _ENTRIES}
    except (KeyError, TypeError, json.JSONDecodeError, RecursionError):
        return None
    return made_from if is_recipe(made_from) else None


def stored_recipe(path: Path) -> dict:
    """Return the recipe stored in an artifact, with empty entries if it has none."""
    return read_recipe(path) or {"stage": "", "config": {}, "inputs": {}}


def stored_lineage(path: Path) -> Any:
    """Return the lineage stored in an artifact, unchecked, or None if it has none."""
    path = Path(path)
    if path.suffix in {".h5", ".hdf5"}:
        with open_h5(path) as file:
            return read_lineage(file)
    if path.suffix == ".npz":
        return None
    where = path / "config.json" if path.is_dir() else path
    stored = read_json(where) if where.exists() or not path.is_dir() else None
    return stored.get("lineage") if isinstance(stored, dict) else None


def is_recipe(made_from: Any) -> bool:
    """Whether a value has the entries of a recipe, with their types."""
    if not isinstance(made_from, dict):
        return False
    stage, config, inputs = (made_from.get(key) for key in _ENTRIES)
    if not (isinstance(stage, str) and isinstance(config, dict) and isinstance(inputs, dict)):
        return False
    return all(isinstance(name, str) and isinstance(one, str | None) for name, one in inputs.items())


def begins_like_ours(path: Path) -> bool:
    """Whether a JSON or YAML file that cannot be parsed begins like an output."""
    where = path / "config.json" if path.is_dir() else path
    with where.open("rb") as file:
        return file.read(200).lstrip(b"{ \n").startswith((b'"stage": "', b"stage: ", b"chosen: "))


def ended_early(config: dict) -> str:
    """Return a remark on a training that ended before its schedule, from the `config` of its recipe."""
    if "ended_after" not in config:
        return ""
    return f", but ended after {point_in(config, config['ended_after'])}; --overwrite trains again from the start"


def point_in(config: dict, step: int) -> str:
    """Describe a point of the training with the recipe `config`: "epoch 3 of 30"."""
    length = next((name for name in ("epochs", "steps", "n_steps", "n_episodes") if config.get(name)), None)
    return f"{length.removeprefix('n_')[:-1]} {step} of {config[length]}" if length else f"step {step}"


class Provenance:
    """Facts about a run for its results file. Create it when the stage starts."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def record(self, device: str) -> dict:
        """Return command, commit, versions, device, machine, wall time in seconds and peak memory in bytes of this
        process so far.
        """
        packages = ("torch", "numpy", "scikit-learn", "h5py")
        return {
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "commit": commit(),
            "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
            "device": device,
            "machine": machine(),
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


def commit() -> str | None:
    """Return the commit of this code, with "+changes" if files differ from it; None without a repository."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if changed.returncode else "")
