"""Tell which outputs below a folder are whole.

    python verify.py outputs

Prints a line for each output that is damaged, orphaned (a record without its table), unfinished or being written, and
for each that was made from something that is not below the folder, such as an extractor that was removed or trained
again. Every block of every file is read.

Exit code 1 if an output is damaged or not readable, otherwise 0.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lowshot.core.audit import audit
from lowshot.core.cli import run


@dataclass
class Config:
    """Settings of verify."""

    folder: Path
    """Folder of outputs."""

    positional: ClassVar = "folder"


def main(config: Config) -> None:
    """Print the state of all outputs below a folder. Exits with code 1 if one is damaged or not readable."""
    found = audit(config.folder)
    for one in found:
        if one.state != "whole" or one.lost:
            lost = f"; made from another {', '.join(one.lost)} than any that is here" if one.lost else ""
            line = f"{one.path}: {one.state}{lost}" + (f" ({one.cause})" if one.cause else "")
            print(line if line.isprintable() else ascii(line))  # names may hold line breaks
    counts = {state: sum(one.state == state for one in found) for state in dict.fromkeys(one.state for one in found)}
    print(f"verify: {', '.join(f'{n} {state}' for state, n in counts.items()) or 'no outputs'}")
    if counts.keys() & {"damaged", "not readable"}:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main, Config, __doc__)
