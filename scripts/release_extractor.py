"""Write a small copy of an extractor, to be kept in a repository: weights of half precision in a .safetensors file.
Recipes use examples/extractors/DATASET-REPRESENTATION.

Reads     EXTRACTOR/ (train_extractor.py)
Writes    OUT/model.safetensors, OUT/config.json (with recipe, lineage and the digest of the original weights),
          OUT/SHA256SUMS; every stage accepts the folder as --extractor

    python scripts/release_extractor.py --extractor outputs/cifar_fs/airbench/extractor \\
        --out examples/extractors/cifar_fs-airbench
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.files import digest, read_json, write_json
from lowshot.core.sealing import seal_folder
from lowshot.representation.backbones import load_extractor


@dataclass
class Config:
    extractor: Path
    """Folder of the extractor."""
    out: Path
    """Folder to write, which must not exist."""
    without_classifier: bool = False
    """Leave the classifier out: for thousands of classes it is larger than the backbone."""


@torch.no_grad()
def main(config: Config) -> None:
    """Write the copy."""
    if config.out.exists():
        raise InputError(f"{config.out}: exists. Remove it or choose another --out")
    model, content = load_extractor(config.extractor), read_json(config.extractor / "config.json")
    content["released_from"] = digest(config.extractor / "model.pt")
    if config.without_classifier:
        model.classifier = torch.nn.Identity()
        content["model"]["n_classes"] = 0
    state = {name: one.half() if one.is_floating_point() else one for name, one in model.state_dict().items()}
    for name in [name for name, one in state.items() if not one.isfinite().all()][:1]:
        raise InputError(f"{config.extractor}: {name} has values that are not finite in half precision")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.out.parent, prefix=".release-") as unfinished:
        folder = Path(unfinished) / config.out.name
        folder.mkdir()
        save_file({name: one.contiguous() for name, one in state.items()}, folder / "model.safetensors")
        write_json(folder / "config.json", content)
        seal_folder(folder)
        folder.rename(config.out)
    print(f"release_extractor: wrote {config.out} ({(config.out / 'model.safetensors').stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    run(main, Config, __doc__)
