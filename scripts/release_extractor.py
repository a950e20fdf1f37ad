"""Write a small copy of an extractor, to be kept in the repository: weights of half precision in a .safetensors file.

    python scripts/release_extractor.py outputs/cifar_fs/airbench/extractor examples/extractors/cifar_fs

Reads a folder of train_extractor.py. Writes model.safetensors, config.json (with recipe and lineage) and SHA256SUMS.
Every stage accepts the folder as --extractor.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from lowshot.core.errors import InputError
from lowshot.core.files import read_json, write_json
from lowshot.core.sealing import seal_folder
from lowshot.representation.backbones import load_extractor


def main(extractor: Path, out: Path) -> None:
    """Write the copy."""
    state = {name: one.half() if one.is_floating_point() else one
             for name, one in load_extractor(extractor).state_dict().items()}  # fmt: skip
    for name in [name for name, one in state.items() if not one.isfinite().all()][:1]:
        raise InputError(f"{extractor}/model.pt: {name} has values beyond half precision")
    out.mkdir(parents=True)
    save_file({name: one.contiguous() for name, one in state.items()}, out / "model.safetensors")
    write_json(out / "config.json", read_json(extractor / "config.json"))
    seal_folder(out)
    print(f"release_extractor: wrote {out} ({(out / 'model.safetensors').stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(*map(Path, sys.argv[1:]))
