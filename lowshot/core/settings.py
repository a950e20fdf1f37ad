"""Settings as dataclasses: built from plain values, checked, and converted back to plain values.

A field of a settings dataclass holds a value, a *group* (another dataclass, or None if it may be absent), a *choice*
(`Annotated[Any, Registry]`, see `lowshot.core.choices`) or several choices (`Annotated[dict, Several]`). The annotation
defines what is accepted, the string below the field is its help. A single value for a group or choice sets its first
setting: ``classifier: mlp`` is short for ``classifier: {name: mlp}``.
"""

import json
import types
from collections.abc import Iterator
from dataclasses import MISSING, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.types import NonNegativeFloat as NonNegativeFloat
from pydantic.types import NonNegativeInt as NonNegativeInt
from pydantic.types import PositiveFloat as PositiveFloat
from pydantic.types import PositiveInt as PositiveInt

from lowshot.core.choices import Registry, suggestion
from lowshot.core.errors import InputError
from lowshot.core.parts import ClosedUnitInterval as ClosedUnitInterval
from lowshot.core.parts import Momentum as Momentum
from lowshot.core.parts import NetworkPrecision as NetworkPrecision
from lowshot.core.parts import OpenUnitInterval as OpenUnitInterval
from lowshot.core.parts import Part, alternatives, bare, default_of, describe, parts_of, takes_path, texts_of
from lowshot.core.parts import RunOnly as RunOnly
from lowshot.core.parts import Seed as Seed
from lowshot.core.parts import TwoOrMore as TwoOrMore

Settings = TypeVar("Settings")
_ITSELF = ""  # key of a group's single value, beside its settings


class BadSetting(InputError):
    """A setting that is not accepted. `key` is its dotted name."""

    def __init__(self, key: str, cause: str) -> None:
        super().__init__(f"{key}: {cause}")
        self.key, self.cause = key, cause


class MissingSettings(BadSetting):
    """Several required settings without a value: `keys`."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(keys[0], f"is required, and {', '.join(keys[1:])} {'is' if len(keys) == 2 else 'are'} too")
        self.keys = keys


def build(
    settings_class: type[Settings], values: dict[str, Any], base: Settings | None = None, at: str = ""
) -> Settings:
    """Build settings from `values`; all others are as in `base`, or have their defaults.

    Values may be strings, as on the command line. Raises BadSetting for a setting that is unknown, missing or not
    accepted; `at` is the prefix of its key.
    """
    parts, built = parts_of(settings_class), {}
    for name in values:
        if name not in parts:
            raise BadSetting(f"{at}{name}", f"no such setting{_hint(str(name), parts)}")
    for field in (field for field in fields(settings_class) if field.init):
        default = default_of(field) if base is None else getattr(base, field.name)
        if field.name in values:
            built[field.name] = _build_part(parts[field.name], values[field.name], default, f"{at}{field.name}")
        elif default is not MISSING:
            built[field.name] = default
    if any(default_of(field) is MISSING and field.init and field.name not in built for field in fields(settings_class)):
        raise _missing(settings_class, values, at)
    try:
        return settings_class(**built)
    except Exception as error:  # a user-defined class may raise anything
        if not isinstance(error, ValueError) and settings_class.__module__.partition(".")[0] == "lowshot":
            raise
        raise (BadSetting(at[:-1], str(error)) if at else InputError(str(error))) from None


def _hint(name: str, parts: dict[str, Part]) -> str:
    """Suggest the setting that was probably meant: one inside a group or choice, or one with a similar name."""
    for top, part in parts.items():
        held = [part.what] if part.kind == "group" else part.what.classes.values() if part.kind == "choice" else []
        if any(name in parts_of(one) for one in held):
            return f", did you mean '{top}.{name}'?"
    return suggestion(name, parts)


def _missing(settings_class: type, values: dict[str, Any], at: str) -> BadSetting:
    """Return the error that names all required settings without a value."""
    required = [field.name for field in fields(settings_class) if field.init and default_of(field) is MISSING]
    first, *others = [name for name in required if name not in values]
    if others:
        return MissingSettings([f"{at}{name}" for name in (first, *others)])
    about = texts_of(settings_class).get(first, "").partition(". ")[0].rstrip(".")
    known = describe(parts_of(settings_class)[first])
    return BadSetting(f"{at}{first}", f"is required{about and f': {about}'} ({known})")


def _build_part(part: Part, value: Any, default: Any, at: str) -> Any:
    if part.optional and value in (None, "null"):
        return None
    if part.kind == "value":
        return _checked_value(part, value, at)
    if part.kind == "group":
        base = default if type(default) is part.what else None
        return build(part.what, _as_group(part.what, value), base, f"{at}.")
    if part.kind == "choice":
        return _build_choice(part.what, _as_choice(value), None if default is MISSING else default, at)
    before = default if isinstance(default, dict) else {}
    built = {
        name: _build_one(part.what, name, one, before.get(name), f"{at}.{name}")
        for name, one in as_several(value).items()
    }
    return built if _names_anew(value) else {**before, **built}


def _build_one(registry: Registry, key: str, value: Any, base: Any, at: str) -> Any:
    """Build one of several choices. Its name is its key, unless it is user-defined."""
    given, known = _as_dict(value), key if base is None else registry.name_of(base)
    name = given.pop("name", known)
    found = type(base) if base is not None and name == known else _found(registry, name, at)
    return _build_choice(registry, {"name": name, **_as_group(found, given)}, base, at)


def _found(registry: Registry, name: Any, at: str) -> type:
    if isinstance(name, list):
        raise BadSetting(at, _too_many(name))
    try:
        return registry.find(str(name))
    except InputError as error:
        raise BadSetting(at, str(error)) from None


def _build_choice(registry: Registry, given: dict[str, Any], default: Any, at: str) -> Any:
    name = given.pop("name", None if default is None else registry.name_of(default))
    if name in (None, True):
        raise BadSetting(
            at if name else f"{at}.name", f"is required ({describe(Part('choice', registry, False, False))})"
        )
    found = _found(registry, name, at) if name != (default and registry.name_of(default)) else type(default)
    known = parts_of(found)
    for option in given:
        if option not in known:
            having = [other for other, one in registry.classes.items() if option in parts_of(one)]
            whose = f" (it is one of {', '.join(having)})" if having else suggestion(str(option), known)
            there = ", ".join(one for one in known if one != "name") or "none"
            raise BadSetting(f"{at}.{option}", f"no setting of {name}{whose}; its settings are: {there}")
    base = default if type(default) is found and registry.name_of(default) == name else None
    return build(found, given | ({"name": name} if "name" in known else {}), base, f"{at}.")


def _as_dict(value: Any) -> dict[str, Any]:
    """Return what is given for a group or choice by setting. A single value has a key of its own."""
    return dict(value) if isinstance(value, dict) else {_ITSELF: value}


def _as_choice(value: Any) -> dict[str, Any]:
    given = _as_dict(value)
    return {"name": given.pop(_ITSELF), **given} if _ITSELF in given else given


def _as_group(group: type, value: Any) -> dict[str, Any]:
    """Return what is given for a group by setting. A single value sets the first setting, a switch ("true") none."""
    given = _as_dict(value)
    single = given.pop(_ITSELF, None)
    if single is True or single in ("true", None):  # 1 is a value, though it equals True
        return given
    first = next(iter(parts_of(group)))
    below = given.get(first)  # the settings of a first setting that is itself a choice
    return {**given, first: {_ITSELF: single, **below} if isinstance(below, dict) else single}


def as_several(value: Any) -> dict[str, Any]:
    """Return names in order, each with its settings. User-defined classes go by their class name."""
    if isinstance(value, dict) and _ITSELF in value:
        merged: dict[str, Any] = {}
        for name, one in value.items():
            for key, given in as_several(one if name == _ITSELF else {name: one}).items():
                merged[key] = {**_as_dict(merged.get(key)), **_as_dict(given)}
        return merged
    if isinstance(value, str):
        value = _listed(value)
    given = value.items() if isinstance(value, dict) else _in_list(value)
    keyed: dict[str, Any] = {}
    for key, one in (_keyed(str(name), one) for name, one in given):
        if key == "names":
            raise InputError("names: is taken by the order of the others; give the class another name")
        if key in keyed:
            raise InputError(f"'{key}' is there twice; each goes by the name of its class")
        keyed[key] = one
    return keyed


def _in_list(value: Any) -> list[tuple[Any, Any]]:
    """Return pairs of name and settings from a list of names or mappings."""
    listed = value if isinstance(value, list) else [value]
    parts = [one if isinstance(one, dict) else {str(one): None} for one in listed]
    return [pair for part in parts for pair in part.items()]


def _keyed(name: str, value: Any) -> tuple[str, Any]:
    if ":" not in name:
        return name, value
    return name.rpartition(":")[2], {"name": name, **(value if isinstance(value, dict) else {})}


def _checked_value(part: Part, value: Any, at: str) -> Any:
    try:  # a boolean is not a number, and a bare switch is not a string
        return _adapter(part.what).validate_python(_readable(part.what, value), strict=isinstance(value, bool) or None)
    except ValidationError:
        wrong = isinstance(value, list) and not _takes_list(part.what)
        raise BadSetting(at, _too_many(value) if wrong else f"{_as_written(value)}: must be {describe(part)}") from None


def _too_many(values: list) -> str:
    return f"takes one value, not {len(values)} ({', '.join(map(str, values))})"


def _as_written(value: Any) -> str:
    if isinstance(value, str):
        return f"'{value}'"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _readable(hint: Any, value: Any) -> Any:
    """Return `value` in the form of its type: a string in brackets as a list, a single value as a list of one."""
    if isinstance(value, str) and _takes_list(hint):
        value = _listed(value)
    if isinstance(value, list):
        return _without_truths(value)
    alone = value is not None and not isinstance(value, bool) and _takes_only_lists(hint)
    return [value] if alone else value


def _listed(value: str) -> Any:
    """Return a string in brackets as a list, anything else unchanged."""
    if not (value.startswith("[") and value.endswith("]")):
        return value
    try:
        return _without_truths(yaml.safe_load(value))
    except yaml.YAMLError:
        return value


def _without_truths(values: list) -> list:
    """Return booleans as strings, so that they are not taken for numbers."""
    return [str(one).lower() if isinstance(one, bool) else one for one in values]


def _takes_list(hint: Any) -> bool:
    return any(get_origin(bare(one)) is list for one in alternatives(bare(hint)))


def _takes_only_lists(hint: Any) -> bool:
    return all(get_origin(bare(one)) is list for one in alternatives(bare(hint)) if one is not types.NoneType)


@lru_cache
def _adapter(hint: Any) -> TypeAdapter:
    config = ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True, arbitrary_types_allowed=True)
    return TypeAdapter(hint, config=config)


def merge(settings_class: type, older: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    """Combine values of two sources, where `newer` wins. A different choice discards the older settings."""
    parts, merged = parts_of(settings_class), dict(older)
    defaults = {field.name: default_of(field) for field in fields(settings_class)}
    for name, value in newer.items():
        part, before = parts.get(name), older.get(name)
        merged[name] = value if part is None or before is None else _merge_part(part, defaults[name], before, value)
    return merged


def _merge_part(part: Part, default: Any, older: Any, newer: Any) -> Any:
    if part.kind == "group" and not (part.optional and newer in (None, "null")):
        return merge(part.what, _as_group(part.what, older), _as_group(part.what, newer))
    if part.kind == "choice" and newer not in (None, "null"):
        older, newer = _as_choice(older), _as_choice(newer)
        name = older.get("name") or (None if default in (MISSING, None) else part.what.name_of(default))
        return newer if newer.get("name", name) != name else {**older, **newer}
    return _merge_several(part.what, older, newer) if part.kind == "several" else newer


def _merge_several(registry: Registry, older: Any, newer: Any) -> dict[str, Any]:
    """Combine several choices. A new list of names replaces the old one; settings alone change or add a choice."""
    before, given = as_several(older), as_several(newer)
    both = {}
    for name in given.keys() & before.keys():
        found = registry.find(str(_as_dict(before[name]).get("name", name)))
        both[name] = merge(found, _as_group(found, before[name]), _as_group(found, given[name]))
    return {**given, **both} if _names_anew(newer) else {**before, **given, **both}


def _names_anew(value: Any) -> bool:
    """Whether a value lists the choices by name, instead of only changing their settings."""
    return not isinstance(value, dict) or _ITSELF in value


def values_of(settings: Any) -> dict[str, Any]:
    """Return the settings that influence the result as plain values: no paths, nothing that only concerns the run."""
    return {
        name: _plain(part, getattr(settings, name))
        for name, part in parts_of(type(settings)).items()
        if not part.run_only and not takes_path(part)
    }


def _plain(part: Part, value: Any) -> Any:
    if value is None or part.kind == "value":
        return value
    if part.kind == "group":
        return values_of(value)
    if part.kind == "choice":
        return {"name": part.what.name_of(value), **values_of(value)}
    return {"names": [_order_entry(part.what.name_of(one), key) for key, one in value.items()],
            **{key: values_of(one) for key, one in value.items()}}  # fmt: skip


def _order_entry(name: str, key: str) -> str:
    """Return the entry of a choice in a list of several: its name, with its key if the name does not imply it."""
    return name if _keyed(name, None)[0] == key else f"{key}: {name}"


def paths_of(settings: Any, at: str = "") -> dict[str, Path]:
    """Return the files and folders named in the settings of a choice, by field, including groups and lists but not
    RunOnly settings.
    """
    paths: dict[str, Path] = {}
    for name, part in parts_of(type(settings)).items():
        value = getattr(settings, name)
        if part.kind == "group" and value is not None:
            paths |= paths_of(value, f"{at}{name}.")
        elif takes_path(part) and not part.run_only and value is not None:
            paths |= {f"{at}{name}.{i}": Path(one) for i, one in enumerate(value)} if isinstance(value, list) else {
                f"{at}{name}": Path(value)
            }  # fmt: skip
    return paths


def stored_values(settings: Any) -> dict[str, Any]:
    """Return everything needed to rebuild the settings of a choice, as plain values with absolute paths."""
    paths = {name: str(path.resolve()) for name, path in paths_of(settings).items()}
    return nested({**flat(values_of(settings)), **paths})


def defaults_of(settings: Any) -> dict[str, Any]:
    """Return the default of every setting that has one, as in `values_of`, for the current choices."""
    values = {}
    for field in (field for field in fields(settings) if field.init):
        part, value, default = parts_of(type(settings))[field.name], getattr(settings, field.name), default_of(field)
        if part.run_only or takes_path(part):
            continue
        if part.kind == "choice" and value is not None:
            name = {} if default is MISSING or default is None else {"name": part.what.name_of(default)}
            alike = name and name["name"] == part.what.name_of(value)
            values[field.name] = name | (values_of(default) if alike else defaults_of(value))
        elif part.kind == "several":
            values[field.name] = {"names": list(default), **{name: defaults_of(one) for name, one in value.items()}}
        elif part.kind == "group" and default is None and value is not None:
            values[field.name] = defaults_of(value)
        elif default is not MISSING:
            values[field.name] = _plain(part, default)
    return values


def choices_in(settings: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, choice) for all choices, including those inside groups and choices."""
    for name, part in parts_of(type(settings)).items():
        value = getattr(settings, name)
        if value is None or part.kind == "value":
            continue
        held = {f"{at}{name}": value} if part.kind != "several" else {f"{at}{name}.{k}": v for k, v in value.items()}
        for key, one in held.items():
            if part.kind != "group":
                yield key, one
            yield from choices_in(one, f"{key}.")


def checked(settings_class: type[Settings], values: Any, where: Path) -> Settings:
    """Build the dataclass from the content of the file `where`. Raises InputError if it is not accepted."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: {values!r} instead of named settings")
    try:
        return build(settings_class, values)
    except BadSetting as error:
        raise InputError(f"{where}: {error}") from None


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names, as on the command line."""
    dotted = {}
    for name, value in values.items():  # keys of a file may be numbers or null
        dotted |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return dotted


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Nest values with dotted names. A value and settings below it (`loss: sgm`, `loss.weight: 1`) are combined."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *groups, key = name.split(".")
        node = tree
        for group in groups:
            if not isinstance(node.get(group), dict):
                node[group] = {_ITSELF: node[group]} if group in node else {}
            node = node[group]
        both = isinstance(node.get(key), dict)
        node[key] = {**node[key], **_as_dict(value)} if both else value
    return tree
