"""The command line of every stage: flags and YAML fill one dataclass; bad input is one line and exit code 2."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentParser, auto_cli, set_parsing_settings

from lowshot.errors import InputError

set_parsing_settings(docstring_parse_attribute_docstrings=True)


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
    warnings.filterwarnings("ignore", message=".*nested tensors.*")
    summary = (description or "").strip().split("\n\n")[0].replace("\n", " ")
    config = auto_cli(config_class, as_positional=False, parser_class=_StageParser, description=summary)
    try:
        main(config)
    except (InputError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
