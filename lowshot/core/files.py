"""Files: digests, JSON and YAML, and errors for what is missing."""

import hashlib
import json
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import yaml

from lowshot.core.choices import suggestion
from lowshot.core.errors import InputError, NotReadable
from lowshot.core.sealing import SealedFile, verify_checksum, verify_file, with_checksum

# Suffixes of the files of a folder that its digest is made of.
DIGESTED = {".pt", ".safetensors", ".h5", ".json"}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the models, arrays and JSON files directly inside a folder. Logs do not
    count.

    Raises Damaged for an output of ours that does not have its checksums.
    """
    path = Path(path)
    if path.is_dir():
        parts = sorted(p for p in path.iterdir() if p.suffix in DIGESTED)
        return hashlib.sha256("".join(f"{p.name}:{digest(p)}\n" for p in parts).encode()).hexdigest()
    if not path.is_file():
        raise missing(path, "no such file or folder")
    found = _file_digest(path.resolve(), *facts_of(path))
    verify_file(path, found)
    return found


def facts_of(path: Path) -> tuple[int, int, int]:
    """Return what changes when a file is replaced or written to: inode, size and time."""
    facts = path.stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


class ContentDigest(str):
    """The SHA-256 of the content of many files. `facts` has the facts of each file when it was read."""

    facts: dict[Path, tuple[int, int, int]]


def content_digest(files: Iterable[Path], names: Iterable[str] = ()) -> ContentDigest:
    """Return the SHA-256 of the content of `files`, in this order, and of `names`."""
    state, facts = hashlib.sha256(), {}
    state.update(json.dumps(list(names)).encode() if names else b"")
    for path in files:
        facts[path] = facts_of(path)
        content = path.read_bytes()
        state.update(b"%d\n" % len(content))
        state.update(content)
    found = ContentDigest(state.hexdigest())
    found.facts = facts
    return found


@lru_cache
def _file_digest(path: Path, *_facts: int) -> str:
    """Hash and verify a file once: graphs are many gigabytes. `_facts` change when the file changes."""
    if path.suffix in {".h5", ".hdf5"}:
        with SealedFile(path) as file:
            file.verify()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_cell(text: str) -> str:
    """Return a text for a CSV file that a spreadsheet shows as it is, instead of computing it as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def check_suffix(option: str, path: Path, suffix: str) -> None:
    """Raise InputError if the output given with `option` has a name of another format."""
    if path.suffix != suffix:
        raise InputError(f"{option} {path}: must end in {suffix}. Use {option} {path.with_suffix(suffix)}")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises InputError if it is missing or not JSON."""
    content = _parsed(path, _strict_json, "JSON")
    verify_checksum(path, content)
    return content


def _strict_json(text: str) -> Any:
    """Parse JSON as it is defined: numbers are finite, and no key is there twice (the last one would win silently)."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not a number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keyed = dict(pairs)
        if len(keyed) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' is there twice")
        return keyed

    content = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    if "\\ud" in text or "\\uD" in text:
        json.dumps(content, ensure_ascii=False).encode()  # raises for half of a surrogate pair, which no text may hold
    return content


def write_json(path: Path, content: Any) -> None:
    """Write JSON to `path` atomically, with a checksum."""
    content = with_checksum(content) if isinstance(content, dict) else content
    _write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file, plain values only. Raises InputError if it is missing, not YAML, or has a key
    twice.
    """
    content = _parsed(path, partial(yaml.load, Loader=_UniqueKeys), "YAML")
    try:
        n_values = _n_values(content, {})
    except RecursionError:
        raise NotReadable(f"{path}: not valid YAML (an anchor contains itself)") from None
    if n_values > _MOST_VALUES:
        raise NotReadable(f"{path}: not valid YAML (its anchors stand for {n_values} values)")
    try:
        json.dumps(content, default=str, skipkeys=True, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise NotReadable(f"{path}: not valid YAML ({error})") from None
    verify_checksum(path, content)
    return content


_MOST_VALUES = 10**7  # of a YAML file


def _n_values(content: Any, known: dict[int, int]) -> int:
    """Return the number of values of nested lists and mappings, where an anchor counts wherever it is used. `known` has
    the counts of those that were seen, by identity.
    """
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in known:
        inner = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_n_values(one, known) for one in inner)
    return known[id(content)]


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
    plain = with_checksum(json.loads(json.dumps(content)))  # YAML does not know checked types such as PositiveInt
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=400, allow_unicode=True)
    _write_text(path, text)


def _parsed(path: Path, parse: Callable[[str], Any], form: str) -> Any:
    path = Path(path)
    if not path.is_file():  # reading a pipe would wait for ever
        raise missing(path)
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:  # removed in the meantime
        raise missing(path) from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError too
        raise NotReadable(f"{path}: not valid {form} ({_place_and_cause(error)})") from None


def _place_and_cause(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {error.problem}" if mark else " ".join(str(error).split())


def _write_text(path: Path, text: str) -> None:
    partial = Path(path).with_name(Path(path).name + ".writing")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


# Which stage writes a file of that name.
_WRITERS = {"images.h5": "preprocessing.py", "split.json": "preprocessing.py", "draws.json": "preprocessing.py",
            "train.h5": "save_features.py", "test.h5": "save_features.py", "quadruplets*.h5": "make_quadruplet.py",
            "graph*.h5": "build_graph.py", "config.json": "every stage that writes a folder"}  # fmt: skip


def missing(path: Path, what: str = "no such file") -> InputError:
    """Return the error for an input that does not exist, or is a folder instead of a file, or a file instead of a
    folder.
    """
    path = Path(path)
    if path.is_dir():
        files = [one.name for one in sorted(path.iterdir()) if one.suffix in {".h5", ".json", ".pt", ".yaml"}]
        return InputError(f"{path}: is a folder, not a file" + (f"; it holds {', '.join(files[:6])}" if files else ""))
    if path.exists():
        return InputError(f"{path}: is a pipe or a device, not a file")
    for parent in path.parents:
        if parent.is_file():
            return InputError(f"{parent}: is a file, not a folder with a {path.name}")
    writers = [one for pattern, one in _WRITERS.items() if fnmatch(path.name, pattern)]
    writer = f" ({writers[0]} writes {path.name})" if writers else ""
    absent = next((parent for parent in reversed(path.parents) if not parent.exists()), path)
    beside = absent.parent.iterdir() if absent.parent.is_dir() else []
    alike = [one.name for one in beside if suggestion(absent.stem, [one.stem])]
    what = what if absent == path else "no such folder"
    return InputError(f"{absent}: {what}{suggestion(absent.name, alike) or writer}")
