"""Convert the recipes of results from older revisions to the current form.

Older recipes list the settings of all choices side by side, with different names. Now each choice has its own settings.
"""

import re
from collections.abc import Callable

from lowshot.classifiers.settings import BENCHMARK_CLASSIFIERS, METHODS
from lowshot.core.artifacts import renamed
from lowshot.core.settings import flat
from lowshot.evaluation.selection import joint_settings

# Older name -> current name, for the settings of low_shot.py.
LOW_SHOT_NAMES = {
    "classifier": "classifier.name",
    "sgd": "classifier",
    "logistic": "classifier",
    "mlp": "classifier",
    **{f"methods.{name}": "classifier" for name in BENCHMARK_CLASSIFIERS.classes},
    "head": "classifier.extractor",
    "generator": "add.generator",
    "pairs": "add.generator.pairs",
    "pair_scope": "add.generator.pair_scope",
    "propagated": "add.propagated",
    "samples": "add.samples",
    "samples_per_shot": "add.samples.per_shot",
    "repetition": "add.repetition",
    "max_per_label": "add.ADDITION.max_per_label",
}
# The same for episodes.py.
EPISODES_NAMES = {"method": "method.name", **{f"methods.{name}": "method" for name in METHODS.classes}}
# The same for diffusion.py, with the names in its recipes.
DIFFUSION_NAMES = {
    "edges.weight": "edges.weight.name",
    "edges.sigma": "edges.weight.sigma",
    "fusion_weight": "fuse.weight",
    "n_propagated": "label.n_rows",
}
_INPUTS = {"generator": "add.generator.folder", "propagated": "add.propagated.file", "head": "classifier.extractor"}
_OWN = {"linear_sgd": "sgd.", "logistic_regression": "logistic.", "mlp": "mlp."}


def low_shot_today(stored: dict) -> dict:
    """Return the current recipe of results of low_shot.py. Older ones map a setting selected per n to {n: value}."""
    config = stored["config"]
    if {"add", "add.names"} & config.keys() or not _is_low_shot(config):
        return stored
    parts = {str(n): _of_shot(stored, str(n)) for n in config["shots"]}
    config = joint_settings({n: part["config"] for n, part in parts.items()})
    return {**next(iter(parts.values())), "config": config}


def _is_low_shot(config: dict) -> bool:
    """Whether the settings that are renamed have their types."""
    chosen, shots = config.get("classifier"), config.get("shots")
    names = list(chosen.values()) if isinstance(chosen, dict) else [chosen]
    by_shot = not isinstance(chosen, dict) or (isinstance(shots, list) and {str(n) for n in shots} <= chosen.keys())
    return isinstance(shots, list) and shots != [] and by_shot and all(isinstance(name, str) for name in names)


def _of_shot(stored: dict, n_shot: str) -> dict:
    """Return the recipe for one n, with current names."""
    config, inputs = flat(_chosen_for(stored["config"], n_shot)), stored["inputs"]
    read, of_any = _OWN.get(config["classifier"], f"methods.{config['classifier']}."), (*_OWN.values(), "methods.")
    config = {name: one for name, one in config.items() if name.startswith(read) or not name.startswith(of_any)}
    named = {name: name in inputs for name in ("propagated", "generator")}
    named |= {"samples": "samples_per_shot" in config, "repetition": config.pop("repetition", False)}
    names, filled = [name for name in named if named[name]], config.pop("max_per_label", None)
    config |= {f"add.{name}.max_per_label": filled for name in names if name != "samples"}
    today = renamed(LOW_SHOT_NAMES, {**stored, "config": {**config, "add.names": names}})
    return {**today, "inputs": {_INPUTS.get(name, name): value for name, value in inputs.items()}}


def _chosen_for(config: dict, n_shot: str) -> dict:
    by_shot = {name for name, one in config.items() if isinstance(one, dict) and all(map(str.isdigit, one))}
    known = {name: one for name, one in config.items() if name not in by_shot or n_shot in one}
    return {name: one[n_shot] if name in by_shot else one for name, one in known.items()}


def episodes_today(stored: dict) -> dict:
    """Return the current recipe of results of episodes.py. Older ones omit a setting that was off or set it to null."""
    added_later = {"augmented_support": False, "classes": "novel"}
    config = {name: one for name, one in stored["config"].items() if not (name in added_later and one is None)}
    return renamed(EPISODES_NAMES, {**stored, "config": {**added_later, **config}})


def _rectification_today(stored: dict) -> dict:
    """Return the recipe with the switch `rectify` of LaplacianShot as today's settings.

    It included the shift. Its weights, normalised over the rows of a class, equal none of today's forms.
    """
    config = flat(stored["config"])
    switches = [name for name in config if re.fullmatch(r"(classifier|method)\.rectify(\.\d+)?", name)]
    if not switches or "laplacian_shot" not in config.values():
        return stored
    for name in switches:
        rectified = config.pop(name)
        config[name.replace("rectify", "rectification")] = "weights over rows" if rectified else "none"
        config[name.replace("rectify", "shift")] = rectified
    return {**stored, "config": config}


def diffusion_today(stored: dict) -> dict:
    """Return the current recipe of results of diffusion.py, or of images that it labelled.

    Older recipes store a whole group of settings for each n.
    """
    config = {
        name: joint_settings({n: flat(one) for n, one in value.items()}) if _is_by_shot(value) else value
        for name, value in stored["config"].items()
    }
    return renamed(DIFFUSION_NAMES, {**stored, "config": config})


def _is_by_shot(value: object) -> bool:
    return isinstance(value, dict) and all(n.isdigit() and isinstance(one, dict) for n, one in value.items())


# Stage that made the results -> conversion.
TODAY: dict[str, Callable[[dict], dict]] = {
    "low_shot": low_shot_today,
    "episodes": episodes_today,
    "diffusion": diffusion_today,
}


def results_today(stored: dict) -> dict:
    """Return the current recipe of the results of any stage."""
    return _rectification_today(TODAY.get(stored["stage"], lambda same: same)(stored))
