"""Several extractors as one, with the features of all side by side (ensembles in EASY, Bendou et al., 2022)."""

from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from lowshot.core.errors import InputError
from lowshot.representation.backbones import JOINED, Extractor

# What may differ between joined extractors. (Brightness is that of some training images, which a seed may choose.)
_OF_ONE = ("name", "width", "drop_rate", "options", "head", "brightness")


def join(models: Sequence[Extractor]) -> Extractor:
    """Return an extractor whose features (N, sum of D) are the joined features of `models`, in their order.

    Its scores are the means of theirs if all classifiers are linear; otherwise it has no classifier. Raises InputError
    for extractors of images of another form or of another number of classes, for projections, and for timm models and
    the user's own backbones.
    """
    configs = [asdict(model.config) for model in models]
    for config in configs:
        if config["embedding"]:
            raise InputError(f"{config['name']} with a projection (train_scgm.py): cannot be joined. Leave it out")
        if ":" in config["name"]:
            raise InputError(f"{config['name']}: cannot be joined, as only networks of this project can. Leave it out")
        for name in [name for name in config if name not in _OF_ONE and config[name] != configs[0][name]][:1]:
            raise InputError(
                f"{name}: {config[name]} and {configs[0][name]}. Join extractors of the same classes and images"
            )
    linear = all(config["head"] == "linear" for config in configs)
    joined = Extractor(
        replace(
            models[0].config,
            name=JOINED,
            width=1.0,
            drop_rate=0.0,
            head="linear",
            n_classes=models[0].config.n_classes if linear else 0,
            options={"members": configs},
        )
    )
    for trunk, model in zip(joined.trunk, models):
        trunk.load_state_dict(model.trunk.state_dict())
    if joined.config.n_classes:
        weights = [model.classifier.weight for model in models]
        joined.classifier.weight.data = torch.cat(weights, dim=1).detach() / len(models)
    return joined.eval()
