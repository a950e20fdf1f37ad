"""Published few-shot splits: CIFAR-FS, FC100, Omniglot (Vinyals), mini-ImageNet, tieredImageNet.

Training classes become base classes. Validation classes become the novel classes of the validation setup, test classes
the novel classes of the test setup. All images of a class form one pool, without test images: the tasks of
`episodes.py` draw support and query images from it.
"""

import io
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from lowshot.core.errors import InputError
from lowshot.core.files import digest, read_json
from lowshot.core.progress import Progress
from lowshot.data.datasets import cifar100, omniglot
from lowshot.data.datasets.cifar100 import read_pickle
from lowshot.data.datasets.content import Content, Found, Source, image_digests, image_files, subfolders, superclasses
from lowshot.data.datasets.images import Images, opened_image
from lowshot.data.datasets.rotation import rotated
from lowshot.data.datasets.settings import (
    Cifar100,
    CifarFewShot,
    MiniImageNet,
    Omniglot,
    OmniglotVinyals,
    TieredImageNet,
)
from lowshot.data.protocol import published_split

_CIFAR_CLASSES = Path(__file__).with_name("cifar100_few_shot.json")
_PARTS = ("train", "val", "test")


def find_cifar(settings: CifarFewShot, source: Source) -> Found:
    """CIFAR-FS (Bertinetto et al., ICLR 2019) or FC100 (Oreshkin et al., NeurIPS 2018): all 600 images of each class of
    CIFAR-100, train and test."""
    found = cifar100.find(Cifar100(), source)
    return Found(found.digests, lambda: _read_cifar(settings.name, source, found.read()))


def _read_cifar(name: str, source: Source, content: Content) -> Content:
    lists = read_json(_CIFAR_CLASSES)[name]
    if strange := sorted(set(chain.from_iterable(lists.values())) ^ set(content.class_names)):
        raise InputError(
            f"{source.folder}: class {strange[0]} is in only one of CIFAR-100 and the published lists of {name}. "
            f"Use the official files of CIFAR-100"
        )
    position = {c: i for i, c in enumerate(content.class_names)}
    parts = [sorted(position[c] for c in lists[part]) for part in ("train", "validation", "test")]
    return _pooled(name, content, parts, source.seed)


def find_omniglot(settings: OmniglotVinyals, source: Source) -> Found:
    """Omniglot with the split of Vinyals et al. (NeurIPS 2016) that Prototypical Networks (Snell et al., NeurIPS 2017)
    use: 1028, 172 and 423 characters. Their rotations by 90, 180 and 270 degrees are additional classes."""
    form = {"image_size": settings.image_size, "resampling": settings.resampling}
    as_it_is = Omniglot(**form, test_per_class=1)  # the test flags are not used
    found = omniglot.find(as_it_is, source)
    return Found(found.digests, lambda: _read_omniglot(source, found.read()))


# Five background alphabets are for validation. Of the evaluation characters in alphabetical order, the first 236 are
# for training.
_VINYALS_VALIDATION = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
_VINYALS_TRAIN_OF_EVALUATION = 236
_VINYALS_SIZES = [1028, 172, 423]


def vinyals_parts(class_names: list[str], n_background: int) -> list[list[int]]:
    """Return the positions in `class_names` of the training, validation and test characters.

    The first `n_background` names are background characters, the others evaluation characters.
    """
    background, evaluation = range(n_background), range(n_background, len(class_names))
    validation = [c for c in background if class_names[c].split("/")[0] in _VINYALS_VALIDATION]
    ordered = sorted(evaluation, key=lambda c: class_names[c])
    train = sorted({*background, *ordered[:_VINYALS_TRAIN_OF_EVALUATION]} - set(validation))
    return [train, validation, sorted(ordered[_VINYALS_TRAIN_OF_EVALUATION:])]


def _read_omniglot(source: Source, content: Content) -> Content:
    parts = vinyals_parts(content.class_names, content.novel_classes[0])
    if [len(part) for part in parts] != _VINYALS_SIZES:
        raise InputError(
            f"{source.folder}: {len(content.class_names)} characters, but the split needs all 1623 of Omniglot. "
            f"Use the official files"
        )
    rotated_parts = [[c + quarter * len(content.class_names) for quarter in range(4) for c in part] for part in parts]
    return _pooled("omniglot_vinyals", rotated(replace(content, novel_classes=None)), rotated_parts, source.seed)


def find_mini_imagenet(settings: MiniImageNet, source: Source) -> Found:
    """mini-ImageNet in one of its two common forms: ROOT/{train,val,test}/<class>/*, or ROOT/images/* with the lists
    ROOT/{train,val,test}.csv (Ravi & Larochelle, ICLR 2017: lines `filename,label`)."""
    root = _root(source, "mini-imagenet")
    if not (root / "train.csv").is_file():
        return _find_folders("mini_imagenet", root, source)
    return _found_paths("mini_imagenet", root, {part: _read_csv(root, part) for part in _PARTS}, source.seed)


def find_tiered_imagenet(settings: TieredImageNet, source: Source) -> Found:
    """tieredImageNet (Ren et al., ICLR 2018): ROOT/{train,val,test}/<class>/*, or the published pickles
    ROOT/{train,val,test}_{images_png,labels}.pkl.

    Only the pickles have superclasses. They are decoded into memory, 16.5 GB for the whole set; images in folders stay
    on disk.
    """
    root = _root(source, "tiered-imagenet")
    if not (root / "train_labels.pkl").is_file():
        return _find_folders("tiered_imagenet", root, source)
    digests = {
        name: digest(root / f"{name}.pkl") for part in _PARTS for name in (f"{part}_images_png", f"{part}_labels")
    }
    return Found(digests, partial(_read_tiered, root, source.seed), stays=True)  # recipes name the root of either form


def _root(source: Source, folder: str) -> Path:
    return (source.folder / folder if (source.folder / folder).is_dir() else source.folder).resolve()


def _find_folders(name: str, root: Path, source: Source) -> Found:
    lists = {part: {folder.name: image_files(folder) for folder in subfolders(root / part)} for part in _PARTS}
    return _found_paths(name, root, lists, source.seed)


def _found_paths(name: str, root: Path, lists: dict[str, dict[str, list[Path]]], seed: int) -> Found:
    """Images on disk; `lists` maps part -> class -> files."""
    files = (file for classes in lists.values() for rows in classes.values() for file in rows)
    return Found(image_digests(root, files), partial(_read_paths, name, root, lists, seed), stays=True)


def _read_csv(root: Path, part: str) -> dict[str, list[Path]]:
    """Map each class of ROOT/<part>.csv to its image files."""
    path, classes = root / f"{part}.csv", {}
    try:
        lines = path.read_text(encoding="utf-8").split()[1:]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 2):
        file, comma, label = line.partition(",")
        if not comma or Path(file).name != file:
            raise InputError(f"{path}: line {number} is not 'filename,label'")
        if not (root / "images" / file).is_file():
            raise InputError(f"{root / 'images' / file}: no such image (listed in {path.name})")
        classes.setdefault(label, []).append(root / "images" / file)
    return classes


def _read_paths(name: str, root: Path, lists: dict[str, dict[str, list[Path]]], seed: int) -> Content:
    owners = [(part, c) for part in _PARTS for c in lists[part]]
    for part, c in owners:
        if not lists[part][c]:
            raise InputError(f"{root / part / c}: contains no images")
    class_names = [c for _, c in owners]
    if twice := sorted({c for c in class_names if class_names.count(c) > 1}):
        raise InputError(f"{root}: class {twice[0]} is in more than one of train, val and test")
    labels = np.repeat(np.arange(len(owners)), [len(lists[part][c]) for part, c in owners])
    paths = [file.relative_to(root).as_posix() for part, c in owners for file in lists[part][c]]
    images = Images(labels, np.zeros(len(labels), bool), paths=np.array(paths, object), root=root)
    parts = [[i for i, (owner, _) in enumerate(owners) if owner == part] for part in _PARTS]
    return _pooled(name, Content(images, class_names), parts, seed)


def _read_tiered(root: Path, seed: int) -> Content:
    labels, names, groups, parts = {}, [], [], []
    for part in _PARTS:
        fine, fine_names, superclass_of = _read_tiered_labels(root / f"{part}_labels.pkl")
        labels[part] = fine + len(names)
        parts.append(list(range(len(names), len(names) + len(fine_names))))
        names, groups = names + fine_names, groups + superclass_of
    pixels = _read_tiered_pixels(root, {part: len(rows) for part, rows in labels.items()})
    images = Images(np.concatenate(list(labels.values())), np.zeros(len(pixels), bool), pixels)
    return _pooled("tiered_imagenet", Content(images, names, *superclasses(groups)), parts, seed)


def _read_tiered_labels(path: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Return the labels of the images (N,), the names of the classes, and the name of the superclass of each."""
    content = read_pickle(path)
    try:
        fine, coarse = (np.asarray(content[f"label_{kind}"], np.int64) for kind in ("specific", "general"))
        fine_names, coarse_names = (list(content[f"label_{kind}_str"]) for kind in ("specific", "general"))
        if not len(fine):
            raise ValueError("no labels")
        return fine, fine_names, [coarse_names[coarse[fine == c][0]] for c in range(len(fine_names))]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not a labels file of tieredImageNet ({error!r})") from None


def _read_tiered_pixels(root: Path, counts: dict[str, int]) -> np.ndarray:
    """Decode `counts[part]` images of each part into one array (N, H, W, 3). An encoded image is freed when it is
    decoded, so that memory holds those of one part at most beside the array.
    """
    pixels, row = None, 0
    for part, n in counts.items():
        path = root / f"{part}_images_png.pkl"
        encoded = read_pickle(path, list)
        if len(encoded) != n:
            raise InputError(f"{path}: {len(encoded)} images, but {n} labels")
        for i in Progress(range(n), f"tiered_imagenet {part}", unit="image", leave=False):
            image, encoded[i] = _decode(path, encoded[i]), None
            if pixels is None:
                pixels = np.empty((sum(counts.values()), *image.shape), np.uint8)
            if image.shape != pixels.shape[1:]:
                raise InputError(f"{path}: image {i} has the shape {image.shape}, others have {pixels.shape[1:]}")
            pixels[row] = image
            row += 1
    return pixels


def _decode(path: Path, png: object) -> np.ndarray:
    try:
        with opened_image(io.BytesIO(bytes(png))) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, TypeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: corrupt image ({error})") from None


def _pooled(name: str, content: Content, parts: list[list[int]], seed: int) -> Content:
    """Add the published split to `content`, and put all images in one pool."""
    split = published_split(name, content.class_names, content.superclass_names, content.superclass_of, seed, *parts)
    images = replace(content.images, is_test=np.zeros(len(content.images), bool))
    return replace(content, images=images, split=split)
