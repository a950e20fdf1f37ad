"""The command line of every stage: flags and YAML fill one dataclass; bad input is one line and exit code 2.

``--name value``, ``--name=value``, ``--switch`` alone for true, ``--list 1 5`` or ``--list "[1,5]"``; names are dotted
(``--classifier.lr 0.1``). ``--config FILE`` reads YAML, more than one of them in order; the line goes before any file.
"""

import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from docstring_parser import parse_from_object

from lowshot.core.artifacts import read_yaml
from lowshot.core.choices import suggestion
from lowshot.core.errors import InputError
from lowshot.core.settings import BadSetting, Part, build, describe, flat, merge, nested, parts_of

_ASKS = {"-h", "--help", "--print_config"}


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
        _call(main, config_class, arguments[1:], f"{script} {arguments[0]}", config_class.__doc__)
        return
    if arguments and arguments[0] in _ASKS:
        shown = "".join(f"  {name:12}{one.__doc__ or ''}\n" for name, (_, one) in commands.items())
        usage = f"usage: {script} {{{','.join(commands)}}} --setting value ..."
        print(usage, (description or "").strip(), shown, sep="\n\n")
        return
    given = f"'{arguments[0]}'{suggestion(arguments[0], commands)}" if arguments else "none is given"
    _refuse(script, f"the first word must be one of {', '.join(commands)}: {given}")


def _call(main: Callable, config_class: type, arguments: list[str], script: str, description: str | None) -> None:
    warnings.filterwarnings("ignore", message=".*nested tensors.*")
    try:
        asked = next((word for word in arguments if word in _ASKS), None)
        if asked in ("-h", "--help"):
            print(_help(config_class, arguments, script, description or ""))
            return
        config = parse(config_class, [word for word in arguments if word != asked])
        if asked:
            print(yaml.safe_dump(_shown(config), sort_keys=False, default_flow_style=None), end="")
            return
        main(config)
    except (InputError, OSError) as error:
        _refuse(script.split()[0], str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _refuse(script: str, message: str) -> None:
    print(f"{script}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2) from None


def parse(config_class: type, arguments: list[str]) -> Any:
    """The settings that a command line gives; InputError, which names the file of a setting that stands in one."""
    given = _given(arguments)
    files = {Path(file): nested(_read(Path(file))) for file in given.pop("config", [])}
    for where, values in [*files.items(), (None, nested(given))]:
        _refuse_older_names(config_class, values, where)
    values = reduce(lambda older, newer: merge(config_class, older, newer), [*files.values(), nested(given)], {})
    try:
        return build(config_class, values)
    except BadSetting as error:
        where = [file for file, part in files.items() if error.key in flat(part) and error.key not in given]
        raise InputError(f"{where[-1]}: {error}" if where else f"--{error}") from None


def _given(arguments: list[str]) -> dict[str, Any]:
    """Texts by setting, as they stand on the line: one, a list of several, "true" for a switch; `config` is a list."""
    given: dict[str, Any] = {}
    name = None
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            values = given.setdefault(name, []) if name == "config" else given.__setitem__(name, []) or given[name]
            values += [value] if equals else []
        elif name is None:
            raise InputError(f"'{word}': settings are given as --name value")
        else:
            given[name].append(word)
    single = {name: (values or ["true"])[0] if len(values) < 2 else values for name, values in given.items()}
    return single | ({"config": given["config"]} if "config" in given else {})


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no settings, 'name: value' in every line")
    return {str(name): value for name, value in values.items()}


def _refuse_older_names(config_class: type, values: dict[str, Any], where: Path | None) -> None:
    """InputError for a setting under the name that it had in an older revision, or that another stage has now: a
    config class may have a table `moved` of such beside that of `renamed`."""
    older, moved = getattr(config_class, "renamed", {}), getattr(config_class, "moved", {})
    for key in flat(values):
        top = key.split(".")[0]
        if top in moved:
            raise InputError(f"{f'{where}: ' if where else '--'}{top}: is a setting of {moved[top]} now")
        prefix = next((one for one in sorted(older, key=len, reverse=True) if f"{key}.".startswith(f"{one}.")), None)
        if prefix is None or (top in parts_of(config_class) and top == prefix):
            continue
        key = key.rstrip(".")
        newer = older[prefix] + key[len(prefix) :]
        raise InputError(f"{f'{where}: ' if where else '--'}{key}: is called {newer} now")


def _shown(config: Any) -> dict[str, Any]:
    """All settings as plain values, paths too."""
    shown = {}
    for name, part in parts_of(type(config)).items():
        value = getattr(config, name)
        if part.kind == "value":
            shown[name] = [_text_or_plain(one) for one in value] if isinstance(value, list) else _text_or_plain(value)
        elif value is not None:
            shown[name] = _shown_part(part, value)
    return shown


def _shown_part(part: Part, value: Any) -> Any:
    if part.kind == "several":
        return {name: {"name": part.what.name_of(one), **_shown(one)} for name, one in value.items()}
    return ({"name": part.what.name_of(value)} if part.kind == "choice" else {}) | _shown(value)


def _text_or_plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _help(config_class: type, arguments: list[str], script: str, description: str) -> str:
    """The description, then every setting with what it may be; of a choice the settings of the one that is named."""
    given = _given([word for word in arguments if word not in _ASKS])
    given.pop("config", None)
    lines = [f"usage: {script} --setting value ... [--config FILE.yaml]", "", description.strip(), "", "settings:"]
    return "\n".join(lines + _help_lines(config_class, nested(given), ""))


def _help_lines(settings_class: type, given: dict[str, Any], at: str) -> list[str]:
    lines, texts = [], _texts(settings_class)
    for field in (field for field in fields(settings_class) if field.init):
        part = parts_of(settings_class)[field.name]
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        lines += [f"  --{at}{field.name} {_form(part, default)}"]
        if field.name in texts:
            lines += textwrap.wrap(texts[field.name], 112, initial_indent="      ", subsequent_indent="      ")
        below, value = _below(part, default, given.get(field.name))
        if below is not None:
            lines += _help_lines(below, value, f"{at}{field.name}.")
    return lines


def _below(part: Part, default: Any, given: Any) -> tuple[type | None, dict[str, Any]]:
    """The class whose settings are shown below a part, and what is given of them."""
    values = given if isinstance(given, dict) else {"": given}
    if part.kind == "group":
        return part.what, values
    if part.kind == "choice":
        name = values.get("name") or values.get("")
        if name:
            return part.what.find(str(name)), values
        return (None if default is MISSING or default is None else type(default)), values
    return None, {}


def _form(part: Part, default: Any) -> str:
    if default is MISSING:
        return f"({describe(part)}; must be given)"
    if part.kind == "choice":
        return f"({describe(part)}; default: {'none' if default is None else part.what.name_of(default)})"
    if part.kind == "several":
        return f"(any of {describe(part)})"
    if part.kind == "group":
        return "(settings; none unless given)" if default is None else "(settings)"
    return f"({describe(part)}; default: {'none' if default is None else default})"


def _texts(settings_class: type) -> dict[str, str]:
    """The help of each setting: the string below its field."""
    texts = {}
    for one in reversed(settings_class.__mro__[:-1]):
        texts |= {part.arg_name: part.description for part in parse_from_object(one).params if part.description}
    return texts
