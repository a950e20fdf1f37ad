"""The command line of every stage: flags and YAML fill one dataclass; bad input is one line and exit code 2."""

import math
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, auto_cli, set_parsing_settings
from jsonargparse.typing import restricted_number_type

from lowshot.core.errors import InputError

set_parsing_settings(docstring_parse_attribute_docstrings=True)

TwoOrMore = restricted_number_type("TwoOrMore", int, (">=", 2))
Momentum = restricted_number_type("Momentum", float, [(">=", 0), ("<", 1)])
NetworkPrecision = Literal["32-true", "16-mixed", "bf16-mixed"]


class _StageParser(ArgumentParser):
    """Reports an error as one line, without the usage text."""

    def error(self, message: str, exception: Exception | None = None) -> None:
        text = " ".join(str(message).split())
        print(f"{Path(sys.argv[0]).name}: error: {text}", file=sys.stderr)
        raise SystemExit(2)


def run(main: Callable, config_class: type, description: str | None) -> None:
    """Fill `config_class` from the command line (and `--config FILE`), call `main` with it, report errors.

    `description` is the script's docstring, shown by --help. A full disk or another OSError is reported in one line as
    well; every other exception is a defect of ours and keeps its traceback.
    """
    _call(main, _parse(config_class, description))


def run_commands(commands: dict[str, tuple[Callable, type]], description: str | None) -> None:
    """The same for a stage of several commands: name -> (main, config class), the name being the first argument."""
    config = _parse({name: config_class for name, (_, config_class) in commands.items()}, description)
    _call(next(main for main, config_class in commands.values() if type(config) is config_class), config)


def checked(config_class: type, values: Any, where: Path) -> Any:
    """The dataclass filled with what the file `where` holds for it; InputError unless its types and ranges allow it."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: {values!r} in the place of named settings")
    for field in fields(config_class):  # the parser would take null for a setting that is not given
        if values.get(field.name, 0) is None and field.default is not None:
            raise InputError(f"{where}: {field.name} is null")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=config_class)
    try:
        return _plain(config_class(**parser.parse_object({"value": values}).value.as_dict()))
    except ArgumentError as error:
        raise InputError(f"{where}: {' '.join(str(error).replace('value.', '').split())}") from None


def _parse(components: type | dict[str, type], description: str | None) -> Any:
    warnings.filterwarnings("ignore", message=".*nested tensors.*")
    summary = (description or "").strip().split("\n\n")[0].replace("\n", " ")
    return auto_cli(components, as_positional=False, parser_class=_StageParser, description=summary)


def _call(main: Callable, config: Any) -> None:
    try:
        _check_finite(asdict(config))
        main(_plain(config))
    except (InputError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _plain(value: Any) -> Any:
    """Settings with numbers and text of plain types in place of the parser's checked ones, which a checkpoint of an
    optimiser would hold, and which nothing but a pickle can be read back as."""
    if is_dataclass(value):
        for field in fields(value):
            object.__setattr__(value, field.name, _plain(getattr(value, field.name)))
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    kind = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
    return kind(value) if kind else value


def _check_finite(values: dict, prefix: str = "") -> None:
    """InputError for an infinite or NaN setting: number types with a lower bound let them pass."""
    for name, value in values.items():
        if isinstance(value, dict):
            _check_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{prefix}{name} {value}: must be a finite number")
