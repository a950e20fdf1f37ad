"""The command line of every stage: flags and YAML fill one dataclass; bad input is one line and exit code 2.

``--name value``, ``--name=value``, ``--switch`` alone for true, ``--list 1 5`` or ``--list "[1,5]"``; names are dotted
(``--classifier.lr 0.1``). ``--config FILE`` reads YAML, more than one of them in order; the line goes before any file.
"""

import os
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import partial, reduce
from pathlib import Path
from typing import Any

import yaml
from docstring_parser import parse_from_object

from lowshot.core.artifacts import name_today, read_yaml
from lowshot.core.choices import Registry, code_file, is_own, suggestion
from lowshot.core.errors import InputError
from lowshot.core.settings import BadSetting, Part, as_several, build, describe, flat, merge, nested, parts_of

_HELP = {"-h", "--help"}
_ASKS = {*_HELP, "--print_config"}
_WIDTH = 118
# What a file, or the line (None), gives: values by the names of settings, nested.
Source = tuple[Path | None, dict[str, Any]]


def run(main: Callable, config_class: type, description: str | None) -> None:
    """Fill `config_class` from the command line (and `--config FILE`), call `main` with it, report errors.

    `description` is the script's docstring, shown by --help. A full disk or another OSError is reported in one line as
    well; every other exception is a defect of ours and keeps its traceback.
    """
    _call(main, config_class, sys.argv[1:], Path(sys.argv[0]).name, description)


def run_commands(commands: dict[str, tuple[Callable, type]], description: str | None) -> None:
    """The same for a stage of several commands: name -> (main, config class), the name being the first argument."""
    script, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    if arguments and arguments[0] in commands:
        main, config_class = commands[arguments[0]]
        _call(main, config_class, arguments[1:], f"{script} {arguments[0]}", _about(config_class))
        return
    if arguments and arguments[0] in _ASKS:
        shown = "\n".join(f"  {name:12}{_about(one)}" for name, (_, one) in commands.items())
        usage = f"usage: {script} {{{','.join(commands)}}} --setting value ...; each has a --help of its own"
        print(usage, (description or "").strip(), shown, sep="\n\n")
        return
    given = f"'{arguments[0]}'{suggestion(arguments[0], commands)}" if arguments else "none is given"
    _refuse(script, f"the first word must be one of {', '.join(commands)}: {given}")


def _about(config_class: type) -> str:
    """What its docstring says; a dataclass without one is given its signature, which is no help."""
    said = config_class.__doc__ or ""
    return "" if said.startswith(f"{config_class.__name__}(") else said


def _call(main: Callable, config_class: type, arguments: list[str], script: str, description: str | None) -> None:
    warnings.filterwarnings("ignore", message=".*nested tensors.*")
    asked, words = _ASKS.intersection(arguments), [word for word in arguments if word not in _ASKS]
    try:
        if asked & _HELP:
            print(_help(config_class, words, script, description or ""))
        elif asked:
            shown = _shown(parse(config_class, words))
            print(yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, allow_unicode=True), end="")
        else:
            main(parse(config_class, words))
    except BrokenPipeError:  # of a reader such as head, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (InputError, OSError) as error:
        _refuse(script.split()[0], str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _refuse(script: str, message: str) -> None:
    print(f"{script}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2) from None


def parse(config_class: type, arguments: list[str]) -> Any:
    """The settings that a command line gives; InputError, which names the file of a setting that stands in one."""
    sources = _sources(config_class, arguments)
    try:
        return build(config_class, _merged(config_class, sources))
    except BadSetting as error:
        where = _source_of(error.key, sources)
        raise InputError(f"--{error}" if where is None else f"{where}: {error}") from None


def _sources(config_class: type, arguments: list[str]) -> list[Source]:
    """What the files and the line give, the weakest first."""
    given = _given(arguments)
    files = given.pop("config", None)
    if files == []:
        raise InputError("--config: must name a YAML file")
    line = {name: True if not words else words[0] if len(words) == 1 else words for name, words in given.items()}
    sources = [*((Path(file), _read(Path(file))) for file in files or []), (None, line)]
    for where, values in sources:
        _refuse_older_names(config_class, values, where)
    return [(where, nested(values)) for where, values in sources]


def _given(arguments: list[str]) -> dict[str, list[str]]:
    """The words of each setting; of one that is given twice the last ones count, of `config` all."""
    given: dict[str, list[str]] = {}
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            given[name] = (given.get(name, []) if name == "config" else []) + ([value] if equals else [])
        elif given:
            given[name].append(word)
        else:
            raise InputError(f"'{word}': settings are given as --name value")
    return given


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no settings, 'name: value' in every line")
    return {str(name): value for name, value in values.items()}


def _refuse_older_names(config_class: type, values: dict[str, Any], where: Path | None) -> None:
    """InputError for a setting under the name that it had in an older revision, or that another stage has now: a
    config class may have a table `moved` of such beside that of `renamed`."""
    older, moved = getattr(config_class, "renamed", {}), getattr(config_class, "moved", {})
    at = "--" if where is None else f"{where}: "
    for key in (key.rstrip(".") for key in flat(values)):
        top, today = key.split(".")[0], name_today(older, key)
        if top in moved:
            raise InputError(f"{at}{top}: is a setting of {moved[top]} now")
        if today != key and not today.startswith(f"{key}."):
            raise InputError(f"{at}{key}: is called {today.removesuffix('.name')} now")


def _merged(config_class: type, sources: list[Source]) -> dict[str, Any]:
    return reduce(partial(merge, config_class), (values for _, values in sources), {})


def _source_of(key: str, sources: list[Source]) -> Path | None:
    """Where the setting of that dotted name, or else what belongs to it, stands."""
    places = {name.rstrip("."): where for where, values in sources for name in flat(values)}
    akin = [name for name in places if f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")]
    return next((places[name] for name in (key, f"{key}.name", *reversed(akin)) if name in places), None)


def _shown(settings: Any) -> dict[str, Any]:
    """All settings as plain values that `--config` reads back."""
    parts = parts_of(type(settings))
    return {name: _shown_part(part, getattr(settings, name)) for name, part in parts.items()}


def _shown_part(part: Part, value: Any) -> Any:
    if value is None or part.kind == "value":
        return [_plain(one) for one in value] if isinstance(value, list) else _plain(value)
    if part.kind == "group":
        return _shown(value)
    if part.kind == "choice":
        return {"name": _name_to_give(part.what, value), **_shown(value)}
    return {key: {"name": _name_to_give(part.what, one), **_shown(one)} for key, one in value.items()}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _name_to_give(registry: Registry, choice: Any) -> str:
    """The name by which a choice is found again; a class of the user's own by the path of its file."""
    name = registry.name_of(choice)
    return str(code_file(type(choice)).parent / name) if is_own(choice) and ".py:" in name else name


def _help(config_class: type, arguments: list[str], script: str, description: str) -> str:
    """The description, then every setting with what it may be; of a choice the settings of the one that is given."""
    usage = f"usage: {script} --setting value ... [--config FILE.yaml ...] [--print_config]"
    has_choices = any(part.kind in ("choice", "several") for part in parts_of(config_class).values())
    more = " (those of another choice: name it before --help)" if has_choices else ""
    given = _merged(config_class, _sources(config_class, arguments))
    return "\n".join([usage, "", description.strip(), "", f"settings{more}:", *_help_lines(config_class, given, "")])


def _help_lines(settings_class: type, given: dict[str, Any], at: str, named: bool = False) -> list[str]:
    """Of every setting; where the class is `named` by a choice, its name is no setting of its own."""
    lines, texts, parts = [], _texts(settings_class), parts_of(settings_class)
    defaults = {one.name: one.default_factory() if one.default_factory is not MISSING else one.default
                for one in fields(settings_class) if one.init and not (named and one.name == "name")}  # fmt: skip
    for name in sorted(defaults, key=lambda name: defaults[name] is not MISSING):
        part, default = parts[name], defaults[name]
        lines += _wrapped(f"--{at}{name} ({_form(part, default, at + name)})", 2, 8)
        lines += _wrapped(texts.get(name, ""), 6, 6)
        for key, (below, values) in _below(part, default, given.get(name)).items():
            lines += _help_lines(below, values, f"{at}{name}{key}.", part.kind != "group")
    return lines


def _wrapped(text: str, first: int, others: int) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _WIDTH, initial_indent=" " * first, subsequent_indent=" " * others)


def _below(part: Part, default: Any, given: Any) -> dict[str, tuple[type, dict[str, Any]]]:
    """The classes whose settings are shown below a part, and what is given of them, by what their names end in."""
    values = given if isinstance(given, dict) else {}
    if part.kind == "group":
        return {"": (part.what, values)}
    if part.kind == "several":
        found = {key: one if isinstance(one, dict) else {} for key, one in as_several(given or {}).items()}
        return {f".{key}": (part.what.find(one.get("name", key)), one) for key, one in found.items()}
    name = values.get("name", values.get("", given)) if part.kind == "choice" else None
    if isinstance(name, str) and name != "null":
        return {"": (part.what.find(name), values)}
    return {"": (type(default), values)} if part.kind == "choice" and default not in (None, MISSING) else {}


def _form(part: Part, default: Any, key: str) -> str:
    """What a setting may be, and is by default, in words."""
    may_be = describe(part).removesuffix(" or null") if default is None else describe(part)
    if part.kind == "group":
        first = next(iter(parts_of(part.what)))
        return f"a single value is {key}.{first}; none unless given" if default is None else "settings"
    if part.kind == "several":
        return f"any of {may_be}"
    if default is MISSING:
        return f"{may_be}; must be given"
    if default is None:
        return f"{may_be}; none unless given"
    shown = part.what.name_of(default) if part.kind == "choice" else default
    return f"{may_be}; default: {str(shown).lower() if isinstance(shown, bool) else shown}"


def _texts(settings_class: type) -> dict[str, str]:
    """The help of each setting: the string below its field."""
    texts = {}
    for one in reversed(settings_class.__mro__[:-1]):
        texts |= {part.arg_name: part.description for part in parse_from_object(one).params if part.description}
    return texts
