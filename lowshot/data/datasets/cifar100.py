"""CIFAR-100 (Krizhevsky, 2009) in its official form: pickles of 50 000 train and 10 000 test images, 32x32x3.

A restricted unpickler reads them: it accepts arrays and plain values only, so that a file cannot run code.
"""

import pickle
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lowshot.core.errors import InputError
from lowshot.core.files import digest, missing
from lowshot.data.datasets.content import Content, Found, Source, downloading
from lowshot.data.datasets.images import Images
from lowshot.data.datasets.settings import Cifar100

_FILES = ("train", "test", "meta")


def find(settings: Cifar100, source: Source) -> Found:
    """Find ROOT/cifar-100-python/{train,test,meta} or ROOT/{train,test,meta}; without a root, download if missing."""
    root = source.folder if (source.folder / "meta").is_file() else source.folder / "cifar-100-python"
    if source.root is None and not (root / "meta").is_file():
        _download(source.folder)
    return Found({name: digest(root / name) for name in _FILES}, partial(_read, root))


def _download(root: Path) -> None:
    """Download the official archive, check its MD5 and unpack it.

    torchvision's CIFAR100 class is not used: it would unpickle the files without restrictions.
    """
    from torchvision.datasets import CIFAR100, utils  # slow to import, and only a download needs it

    with downloading("cifar100", root):
        utils.download_and_extract_archive(CIFAR100.url, str(root), filename=CIFAR100.filename, md5=CIFAR100.tgz_md5)


def _read(root: Path) -> Content:
    meta = read_pickle(root / "meta")
    fine, coarse = (_names(root / "meta", meta, f"{kind}_label_names") for kind in ("fine", "coarse"))
    parts = [_read_part(root / name, len(fine), len(coarse)) for name in ("train", "test")]
    pixels, labels, superclass = (np.concatenate(arrays) for arrays in zip(*parts))
    is_test = np.repeat([False, True], [len(part[1]) for part in parts])
    return Content(Images(labels, is_test, pixels), fine, coarse, _superclass_of(root, labels, superclass, len(fine)))


def _names(path: Path, meta: dict, key: str) -> list[str]:
    names = [_text(name) for name in meta[key]] if isinstance(meta.get(key), list) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: the list {key} is missing or empty. Use the official file")
    return names


def _read_part(path: Path, n_fine: int, n_coarse: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read one pickle: pixels uint8 (N, 32, 32, 3), fine labels (N,) and coarse labels (N,)."""
    content = read_pickle(path)
    try:
        data = np.asarray(content["data"])
        labels = [np.asarray(content[f"{kind}_labels"], np.int64) for kind in ("fine", "coarse")]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: not a CIFAR-100 file ({error})") from None
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072 or any(len(data) != len(y) for y in labels):
        raise InputError(f"{path}: expected data uint8 (N, 3072) with N labels, found {data.dtype} {data.shape}")
    for y, n in zip(labels, (n_fine, n_coarse)):
        if len(y) == 0 or y.min() < 0 or y.max() >= n:
            raise InputError(f"{path}: no images, or a label outside 0..{n - 1}. Use the official file")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), *labels


def _superclass_of(root: Path, labels: np.ndarray, superclass: np.ndarray, n_classes: int) -> list[int | None]:
    pairs = np.unique(np.stack([labels, superclass], axis=1), axis=0)
    if len(pairs) != n_classes or len(np.unique(pairs[:, 0])) != n_classes:
        raise InputError(f"{root}: a class has no images, or has images of two superclasses. Use the official files")
    return pairs[:, 1].tolist()


def read_pickle(path: Path, kind: type = dict) -> Any:
    """Read a pickle of a dict (or a list, by `kind`) of arrays, lists, dicts, bytes, strings and numbers.

    Keys of the dict are returned as str. Raises InputError if the pickle refers to any other object, before calling
    anything.
    """
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file, encoding="latin1").load()
    except FileNotFoundError:
        raise missing(path) from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(f"{path}: damaged pickle ({type(error).__name__}: {error}). Download it again") from None
    if not isinstance(content, kind):
        raise InputError(f"{path}: expected a {kind.__name__}, found a {type(content).__name__}")
    return {_text(key): value for key, value in content.items()} if kind is dict else content


def _text(value: object) -> object:
    """Decode bytes. Copies of the data set that a newer Python has saved again contain bytes instead of str."""
    return value.decode("latin1") if isinstance(value, bytes) else value


def _latin1(text: str, encoding: str) -> bytes:
    """Replace `_codecs.encode`, which newer Pythons call to rebuild old byte strings; accepts latin1 only."""
    if encoding != "latin1":
        raise InputError(f"refused, because the pickle uses the encoding {encoding}")
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that resolves only the names needed to rebuild numpy arrays."""

    _reconstruct = np.empty(0).__reduce__()[0]
    _known: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            raise InputError(f"refused, because the pickle refers to {module}.{name}") from None
