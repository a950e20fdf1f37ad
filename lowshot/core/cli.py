"""The command line of every stage. Options and YAML files fill a dataclass; bad input is one line and exit code 2.

Accepted forms: ``--name value``, ``--name=value``, ``--switch``, ``--list 1 5``, ``--list "[1,5]"``; dotted names such
as ``--classifier.lr 0.1``. ``--config FILE`` reads YAML. Later files override earlier ones, and the command line
overrides all files.
"""

import inspect
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial, reduce
from pathlib import Path
from typing import Any

import yaml

from lowshot.core.artifacts import name_today
from lowshot.core.choices import Registry, code_file, is_own, suggestion
from lowshot.core.errors import InputError, is_memory_error
from lowshot.core.files import read_yaml
from lowshot.core.help import help_text
from lowshot.core.interruption import Terminated, stopping
from lowshot.core.locking import WAIT
from lowshot.core.parts import Part, parts_of
from lowshot.core.settings import BadSetting, MissingSettings, build, flat, merge, nested

_HELP = {"-h", "--help"}
_ASKS = {*_HELP, "--print_config"}
_WAIT = "--wait"  # for another process that writes the output
# A file (None for the command line) and the nested values that it gives.
Source = tuple[Path | None, dict[str, Any]]


NextStep = Callable[[Any], list | None]


def run(main: Callable, config_class: type, description: str | None, next_step: NextStep | None = None) -> None:
    """Fill `config_class` from the command line (and `--config FILE`), call `main` with it, and report errors.

    `description` is the docstring of the script, for --help. `next_step` returns the command that takes the output, as
    a list of words that starts with the script; it is printed at the end. An OSError, such as a full disk, and short
    memory are reported in one line as well. Every other exception is a bug of ours and keeps its traceback.
    """
    _call(main, config_class, sys.argv[1:], Path(sys.argv[0]).name, description, next_step)


def run_commands(commands: dict[str, tuple], description: str | None) -> None:
    """Like `run`, for a stage with several commands: name -> (main, config class, next step if there is one)."""
    script, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    if arguments and arguments[0] in commands:
        main, config_class, *next_step = commands[arguments[0]]
        _call(main, config_class, arguments[1:], f"{script} {arguments[0]}", _about(config_class), *next_step)
        return
    if arguments and arguments[0] in _ASKS:
        abouts = {name: _about(one).splitlines()[:1] for name, (_, one, *_) in commands.items()}
        shown = "\n".join(f"  {name:12}{''.join(about)}" for name, about in abouts.items())
        usage = f"usage: {script} COMMAND --setting value ...    (settings: {script} COMMAND --help)"
        print(usage, (description or "").strip(), f"commands:\n{shown}", sep="\n\n")
        return
    word = arguments[0] if arguments and not arguments[0].startswith("-") else None
    wrong = f"no such command: '{word}'" if word else "the command is missing"
    close = suggestion(word, commands) if word else ""
    _refuse(script, f"{wrong}{close or '.'} Use {script} {'|'.join(commands)} --setting value ...")


def _about(config_class: type) -> str:
    """Return the docstring of a config class. A dataclass without one has its signature instead, which is no help."""
    said = config_class.__doc__ or ""
    return "" if said.startswith(f"{config_class.__name__}(") else inspect.cleandoc(said)


def _call(
    main: Callable,
    config_class: type,
    arguments: list[str],
    script: str,
    description: str | None,
    next_step: NextStep | None = None,
) -> None:
    warnings.filterwarnings("ignore", message=".*nested tensors.*")
    threading.excepthook = _in_thread
    asked, words = _ASKS.intersection(arguments), [word for word in arguments if word not in {*_ASKS, _WAIT}]
    if _WAIT in arguments:
        os.environ[WAIT] = "1"
    try:
        if asked & _HELP:
            print(help_text(config_class, _merged(config_class, _sources(config_class, words)), script, description))
        elif asked:
            shown = _shown(parse(config_class, words))
            print(yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, allow_unicode=True), end="")
        else:
            config = parse(config_class, words)
            with stopping():
                main(config)
            _say_next(next_step and next_step(config))
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        if str(error.name).startswith("lowshot"):
            raise
        _refuse(script.split()[0], f"{error}. Activate the environment: source .venv/bin/activate")
    except InputError as error:
        _refuse(script.split()[0], str(error))
    except MemoryError as error:
        _refuse(script.split()[0], f"not enough memory ({error})" if str(error) else "not enough memory")
    except RuntimeError as error:
        if not is_memory_error(error):
            raise
        _refuse(script.split()[0], f"not enough memory ({str(error).splitlines()[0]})")
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
        _refuse(script.split()[0], f"{where}{error.strerror or error}")
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # another Ctrl-C ends the process without a traceback
        kept = "; ".join(getattr(stop, "__notes__", [])) or "the same command runs it again"
        _say_once(f"{script.split()[0]}: stopped; {kept}")
        raise SystemExit(stop.code if isinstance(stop, Terminated) else 130) from None


def _in_thread(arguments: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, except that of a full disk, which the main thread reports in one line."""
    if not issubclass(arguments.exc_type, OSError):
        threading.__excepthook__(arguments)


def _say_next(words: list | None) -> None:
    """Print the command that takes the output, unless a script that chains stages will run it."""
    if words and "LOWSHOT_CHAIN" not in os.environ and _is_first_process():
        script, *arguments = map(str, words)
        print(f"next: python {shlex.join([str(Path(sys.argv[0]).with_name(script)), *arguments])}")


def _is_first_process() -> bool:
    """Whether this is the first of the processes of torchrun (RANK), or of those that Fabric starts (LOCAL_RANK)."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def report_of(results: Path) -> list:
    """Return the next step after a results file: the report."""
    return ["parse_results.py", "--results", results.parent, "--out", results.parent.parent / "report"]


def _refuse(script: str, message: str) -> None:
    _say_once(f"{script}: error: {' '.join(message.split())}")
    raise SystemExit(2) from None


def _say_once(line: str) -> None:
    """Print a line on stderr. Of several processes of torchrun, the first one does."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        from torch.distributed import TCPStore

        with suppress(RuntimeError):  # the launcher has gone
            place, wait = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timedelta(seconds=5)
            store = TCPStore(*place, is_master=False, timeout=wait)
            if store.add(f"lowshot/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) > 1:
                return
    print(line, file=sys.stderr, flush=True)


def parse(config_class: type, arguments: list[str]) -> Any:
    """Return the settings given on a command line. Errors name the file if a setting comes from a file."""
    sources = _sources(config_class, arguments)
    try:
        return build(config_class, _merged(config_class, sources))
    except BadSetting as error:
        where, line = _source_of(error.key, sources), flat(sources[-1][1])
        cause = error.cause.removeprefix("true: ")
        if where is None and cause == "no such setting":
            meant = suggestion(error.key, ["help", "config", "print_config", "wait"]) or " (--help lists them)"
            raise InputError(f"--{error.key}: {cause}{meant}") from None
        if where is None and isinstance(error, MissingSettings):
            raise InputError(f"{', '.join(f'--{key}' for key in error.keys)}: are required (see --help)") from None
        if where is None and line.get(error.key) is True and cause.startswith(("must be", "is required")):
            raise InputError(f"--{error.key}: a value is missing: {cause}") from None
        raise InputError(f"--{error}" if where is None else f"{where}: {error}") from None


def _sources(config_class: type, arguments: list[str]) -> list[Source]:
    """Return what the files and the command line give, in ascending priority."""
    given = _given(arguments, getattr(config_class, "positional", None))
    files = given.pop("config", None)
    if files is not None and not all(files or [""]):
        raise InputError("--config: a value is missing: a YAML file, such as those in configs/")
    line = {name: True if not words else words[0] if len(words) == 1 else words for name, words in given.items()}
    sources = [*((Path(file), _read(Path(file))) for file in files or []), (None, line)]
    for where, values in sources:
        _refuse_older_names(config_class, values, where)
    return [(where, nested(values)) for where, values in sources]


def _given(arguments: list[str], positional: str | None) -> dict[str, list[str]]:
    """Return the words given for each setting. The last occurrence counts, except for `config`, where all do. Words
    before all options belong to the setting `positional`, if the stage has one.
    """
    given: dict[str, list[str]] = {}
    for word in arguments:
        if not _is_text(word):
            raise InputError(f"{word!r}: is not UTF-8 text")
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            given[name] = (given.get(name, []) if name == "config" else []) + ([value] if equals else [])
        elif given or positional:
            name = positional if not given else name
            given.setdefault(name, []).append(word)
        else:
            raise InputError(f"'{word}': does not belong to a setting; settings are given as --name value")
    return given


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in word


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no settings; each line must be 'name: value'")
    return {str(name): value for name, value in values.items()}


def _refuse_older_names(config_class: type, values: dict[str, Any], where: Path | None) -> None:
    """Raise InputError for a setting that was renamed, or that moved to another stage (tables `renamed` and `moved` of
    the config class).
    """
    older, moved = getattr(config_class, "renamed", {}), getattr(config_class, "moved", {})
    at = "--" if where is None else f"{where}: "
    for key in (key.rstrip(".") for key in flat(values) if not key.rpartition(".")[2].isdigit()):
        top, today = key.split(".")[0], name_today(older, key)
        if top in moved:
            raise InputError(f"{at}{top}: is a setting of {moved[top]} now")
        if today != key and not today.startswith(f"{key}."):
            raise InputError(f"{at}{key}: is called {today.removesuffix('.name')} now")


def _merged(config_class: type, sources: list[Source]) -> dict[str, Any]:
    return reduce(partial(merge, config_class), (values for _, values in sources), {})


def _source_of(key: str, sources: list[Source]) -> Path | None:
    """Return the file that gives the setting with that dotted name, or a setting related to it."""
    places = {name.rstrip("."): where for where, values in sources for name in flat(values)}
    akin = [name for name in places if f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")]
    return next((places[name] for name in (key, f"{key}.name", *reversed(akin)) if name in places), None)


def _shown(settings: Any) -> dict[str, Any]:
    """Return all settings as plain values that `--config` can read back."""
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
    """Return a name by which a choice is found again; for a user-defined class, with the path of its file."""
    name = registry.name_of(choice)
    return str(code_file(type(choice)).parent / name) if is_own(choice) and ".py:" in name else name
