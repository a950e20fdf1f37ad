"""What the fields of a settings dataclass may hold, from their annotations, and descriptions of it in words."""

import types
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from docstring_parser import parse_from_object

from lowshot.core.choices import Registry, Several

_T = TypeVar("_T")
_RUN_ONLY = "run only"

ClosedUnitInterval = Annotated[float, Ge(0), Le(1)]
OpenUnitInterval = Annotated[float, Gt(0), Lt(1)]
Momentum = Annotated[float, Ge(0), Lt(1)]
TwoOrMore = Annotated[int, Ge(2)]
Seed = Annotated[int, Ge(0), Lt(2**32)]
NetworkPrecision = Literal["32-true", "16-mixed", "bf16-mixed"]
# A setting that changes where or how fast the work runs, but never its result. Recipes do not contain it.
RunOnly = Annotated[_T, _RUN_ONLY]


class Part(NamedTuple):
    """What a field holds: a "value" of type `what`, a "group" (a dataclass), a "choice" from a registry, or "several"
    choices.
    """

    kind: Literal["value", "group", "choice", "several"]
    what: Any
    optional: bool
    run_only: bool


@lru_cache
def parts_of(settings_class: type) -> dict[str, Part]:
    """Return what each field holds, in the order of declaration."""
    hints = get_type_hints(settings_class, include_extras=True)
    return {field.name: _part_of(hints[field.name]) for field in fields(settings_class) if field.init}


def _part_of(hint: Any) -> Part:
    run_only = get_origin(hint) is Annotated and _RUN_ONLY in get_args(hint)
    members = alternatives(bare(hint) if run_only else hint)
    options = [one for one in members if one is not types.NoneType]
    optional = len(options) < len(members)
    for one in options:
        marks = get_args(one)[1:] if get_origin(one) is Annotated else ()
        for mark in marks:
            if isinstance(mark, Registry):
                return Part("choice", mark, optional, run_only)
            if isinstance(mark, Several):
                return Part("several", mark.registry, optional, run_only)
    if len(options) == 1 and is_dataclass(options[0]):
        return Part("group", options[0], optional, run_only)
    return Part("value", hint, optional, run_only)


def alternatives(hint: Any) -> tuple:
    """Return the members of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def bare(hint: Any) -> Any:
    """Return a type without its `Annotated` metadata."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def texts_of(settings_class: type) -> dict[str, str]:
    """Return the description of each setting: the string below its field."""
    texts = {}
    for one in reversed(settings_class.__mro__[:-1]):
        texts |= {part.arg_name: part.description for part in parse_from_object(one).params if part.description}
    return texts


def default_of(field: Field) -> Any:
    """Return the default of a dataclass field, or MISSING."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


def takes_path(part: Part) -> bool:
    """Whether a part holds a path or a list of paths."""
    return part.kind == "value" and any(
        one is Path or (get_origin(one) is list and Path in get_args(one)) for one in alternatives(bare(part.what))
    )


def describe(part: Part) -> str:
    """Describe the values that a part accepts, for error messages."""
    if part.kind in ("choice", "several"):
        return part.what.names
    return "settings" if part.kind == "group" else _in_words(part.what)


_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path",
          dict: "settings", types.NoneType: "null", Any: "anything"}  # fmt: skip


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        base, *marks = get_args(hint)
        return f"{_in_words(base)} {_bounds(tuple(marks))}".rstrip()
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}" if len(get_args(hint)) > 1 else str(get_args(hint)[0])
    if get_origin(hint) is list:
        return _list_in_words(get_args(hint)[0])
    if len(alternatives(hint)) > 1:
        words = [_in_words(one) for one in alternatives(hint)]
        return " or ".join(words)
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


_PLURALS = {int: ("integers", "1 5"), float: ("numbers", "0.1 0.5"), str: ("texts", "A B"),
            Path: ("paths", "A B")}  # fmt: skip


def _list_in_words(item: Any) -> str:
    if bare(item) not in _PLURALS:
        return f"a list, each {_in_words(item)}"
    several, example = _PLURALS[bare(item)]
    marks = get_args(item)[1:] if get_origin(item) is Annotated else ()
    return f"{several} {_bounds(marks)}".rstrip() + f", such as {example} (YAML: [{example.replace(' ', ', ')}])"


_PLACEHOLDERS = {bool: "true|false", int: "N", float: "X", str: "TEXT", Path: "PATH"}


def placeholder(part: Part) -> str:
    """Return the placeholder of a value in the help: "N ..."."""
    if part.kind == "group":
        return placeholder(next(iter(parts_of(part.what).values()))) if part.optional else ""
    return {"choice": "NAME", "several": "NAME ..."}.get(part.kind) or _placeholder(part.what)


def _placeholder(hint: Any) -> str:
    kind = bare(hint)
    options = [one for one in alternatives(kind) if one is not types.NoneType]
    if options != [kind]:
        names = [_placeholder(one) for one in options]
        return "|".join(name for name in names if f"{name} ..." not in names)
    if get_origin(kind) is list:
        return f"{_placeholder(get_args(kind)[0])} ..."
    return "|".join(map(str, get_args(kind))) if get_origin(kind) is Literal else _PLACEHOLDERS.get(kind, "VALUE")


def limits(part: Part) -> str:
    """Return the range of numbers that a part accepts, such as "> 0", or nothing."""
    return _limits(part.what) if part.kind == "value" else ""


def _limits(hint: Any) -> str:
    if get_origin(hint) is Annotated and (bounds := _bounds(get_args(hint)[1:])):
        return bounds
    kind = bare(hint)
    return next(filter(None, map(_limits, get_args(kind))), "") if get_origin(kind) not in (None, Literal) else ""


def _bounds(marks: tuple) -> str:
    signs = {Gt: (">", "gt"), Ge: (">=", "ge"), Lt: ("<", "lt"), Le: ("<=", "le")}
    found = [(signs[type(mark)], mark) for mark in marks if type(mark) in signs]
    return " and ".join(f"{sign} {getattr(mark, name)}" for (sign, name), mark in found)
