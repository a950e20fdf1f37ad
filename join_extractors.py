"""Join extractors of the same images: one extractor, with the features of all side by side.

Reads   EXTRACTORS, folders of train_extractor.py, such as trainings with different seeds
Writes  OUT/model.pt, OUT/config.json, which every stage accepts as an extractor

The classifier of the output has the mean scores of the others. There is one if all of theirs are linear.

python join_extractors.py --extractors outputs/cifar_fs/airbench_seed0/extractor \\
    outputs/cifar_fs/airbench_seed1/extractor --out outputs/cifar_fs/airbench_joined/extractor
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from lowshot import representation
from lowshot.core.artifacts import recipe, stored_recipe
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.publishing import is_done, writing
from lowshot.core.settings import RunOnly
from lowshot.data.lineage import Lineage, lineage_of


@dataclass(kw_only=True)
class Config:
    extractors: Annotated[list[Path], MinLen(2)]
    """Folders of the extractors to join."""
    out: Path
    """Folder to write the joined extractor to."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""


def main(config: Config) -> Path:
    """Write the joined extractor, and return its folder."""
    inputs = {f"extractor {i}": folder for i, folder in enumerate(config.extractors, start=1)}
    inputs |= {"split": _split_of(config.extractors)}
    seen = Lineage()
    for folder in config.extractors:
        seen |= lineage_of(folder)
    made_from = recipe("join_extractors", config, inputs, seen.to_json(), **_ended_early(config.extractors))
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    joined = representation.join([representation.load_extractor(folder) for folder in config.extractors])
    with writing(config.out, made_from) as partial:
        partial.mkdir()
        representation.save_extractor(partial, joined, made_from)
    print(f"join_extractors: wrote {config.out} (D = {joined.dim})")
    return config.out


def _ended_early(extractors: list[Path]) -> dict:
    """Return what the joined extractor and its features record about members that were ended early."""
    epochs = [representation.handed_on(folder).get("extractor_ended_after") for folder in extractors]
    return {"extractor_ended_after": epochs} if any(epochs) else {}


def _split_of(extractors: list[Path]) -> str | None:
    """Return the digest of the split, if known. Raises InputError for extractors whose classes have other numbers."""
    splits = {folder: stored_recipe(folder)["inputs"].get("split") for folder in extractors}
    known = [folder for folder in extractors if splits[folder]]
    for folder in [folder for folder in known if splits[folder] != splits[known[0]]][:1]:
        raise InputError(f"{folder}: trained on another split than {known[0]}. Join extractors of the same classes")
    return splits[known[0]] if known else None


if __name__ == "__main__":
    run(main, Config, __doc__)
