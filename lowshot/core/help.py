"""The text of --help: settings in sections, each with placeholder, description, range and default."""

import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from lowshot.core.parts import Part, default_of, limits, parts_of, placeholder, texts_of
from lowshot.core.settings import as_several

_WIDTH, _COLUMN = 118, 32


class _Entry(NamedTuple):
    """A setting: `name` is dotted, `text` its description, `given` its value on the command line or in a file."""

    name: str
    part: Part
    default: Any
    text: str
    given: Any

    @property
    def is_listed(self) -> bool:
        """A group that is always present has a section, but no value of its own."""
        return self.part.kind != "group" or self.part.optional


def help_text(config_class: type, given: dict[str, Any], script: str, description: str | None) -> str:
    """Return the description of the stage and all settings. A choice shows the settings of the `given` option."""
    lines = [f"usage: {script} --setting value ... [--config FILE.yaml ...] [--print_config] [--wait]", ""]
    lines += [(description or "").strip()]
    for title, entries in _sections(_entries(config_class, given, "")):
        lines += ["", *_wrapped(f"{title}:"), *(line for entry in entries for line in _entry_lines(entry))]
    if any(part.kind in ("choice", "several") for part in parts_of(config_class).values()):
        lines += ["", "To see the settings of another choice, name it before --help."]
    return "\n".join(lines)


def _entries(settings_class: type, given: dict[str, Any], at: str, named: bool = False) -> list[_Entry]:
    """Return the settings of a class, prefixed with `at`. If a choice names the class, `name` is not a setting."""
    parts, texts = parts_of(settings_class), texts_of(settings_class)
    names = [one for one in fields(settings_class) if one.init and not (named and one.name == "name")]
    return [_Entry(f"{at}{one.name}", parts[one.name], default_of(one), texts.get(one.name, ""), given.get(one.name))
            for one in names]  # fmt: skip


def _sections(entries: list[_Entry]) -> Iterator[tuple[str, list[_Entry]]]:
    """Yield titles and settings: required, optional, one section per group and choice, and those without influence on
    the result.
    """
    listed = [entry for entry in entries if entry.is_listed]
    required = [entry for entry in listed if entry.default is MISSING]
    of_the_run = [entry for entry in listed if entry.part.run_only and entry not in required]
    optional = [entry for entry in listed if entry not in (*required, *of_the_run)]
    below = [section for entry in entries for section in _sections_below(entry)]
    run = ("run (no influence on the result, unless stated)", of_the_run)
    yield from (one for one in [("required", required), ("optional", optional), *below, run] if one[1])


def _sections_below(entry: _Entry) -> Iterator[tuple[str, list[_Entry]]]:
    """Yield the settings of a group or choice, then those of the groups and choices inside it."""
    for key, title, settings_class, given in _held(entry):
        entries = _entries(settings_class, given, f"{key}.", named=entry.part.kind != "group")
        if entry.part.kind == "group" and entry.part.optional:
            entries[0] = _with_short_form(entries[0], key)
        yield title, [one for one in entries if one.is_listed]
        for one in entries:
            yield from _sections_below(one)


def _with_short_form(first: _Entry, group: str) -> _Entry:
    """Return the first setting of an optional group. It needs no mark if it is required, since the group names it."""
    default = None if first.default is MISSING else first.default
    return first._replace(text=f"{first.text} Short form: --{group}.", default=default)


def _held(entry: _Entry) -> Iterator[tuple[str, str, type, dict[str, Any]]]:
    """Yield what a part contains: dotted name, section title, class, and the given values."""
    name, part, given = entry.name, entry.part, entry.given
    values = given if isinstance(given, dict) else {}
    if part.kind == "group":
        yield name, f"--{name}" if part.optional else f"--{name}.*: {entry.text.rstrip('.')}", part.what, values
    elif part.kind == "several":
        for key, one in as_several(given or {}).items():
            held = one if isinstance(one, dict) else {}
            yield f"{name}.{key}", f"--{name}.{key}", part.what.find(held.get("name", key)), held
    elif part.kind == "choice":
        chosen = values.get("name", values.get("", given))
        if isinstance(chosen, str) and chosen != "null":
            yield name, f"--{name} {chosen}", part.what.find(chosen), values
        elif entry.default not in (None, MISSING):
            yield name, f"--{name} {part.what.name_of(entry.default)}", type(entry.default), values


def _entry_lines(entry: _Entry) -> list[str]:
    """Return the name and placeholder, with the description beside them, or below if they are long."""
    head = f"  --{entry.name}" if entry.default is False else f"  --{entry.name} {placeholder(entry.part)}".rstrip()
    text = f"{entry.text} {_note(entry)}".strip()
    beside = head.ljust(_COLUMN)
    if len(head) >= _COLUMN or not text:
        return [*_wrapped(head, "  ", " " * 6), *_wrapped(text, " " * _COLUMN, " " * _COLUMN)]
    return _wrapped(text, beside, " " * _COLUMN)


def _note(entry: _Entry) -> str:
    """Return range, available names and default of a setting, in brackets."""
    part, default = entry.part, entry.default
    notes = [limits(part)]
    if part.kind in ("choice", "several"):
        notes.append(f"{'one' if part.kind == 'choice' else 'any'} of {part.what.names}")
    if default is MISSING and "." in entry.name:
        notes.append("required")
    elif part.kind == "choice" and default not in (None, MISSING):
        notes.append(f"default: {part.what.name_of(default)}")
    elif part.kind == "value" and default is not MISSING:
        notes.append(_default_note(default))
    return f"({'; '.join(filter(None, notes))})" if any(notes) else ""


def _default_note(default: Any) -> str:
    """Return nothing for a switch that is off, an empty list, or a setting that is absent by default."""
    if default is None or default is False or default == []:
        return ""
    shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    return f"default: {'true' if default is True else shown}"


def _wrapped(text: str, first: str = "", others: str = "") -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _WIDTH, initial_indent=first, subsequent_indent=others)
