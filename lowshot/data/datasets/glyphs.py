"""The embedded data set: characters of twelve scripts, rendered from the open fonts that ship with matplotlib.

144 classes (script = superclass), 50 train and 20 test images each, 28x28x1 uint8, bright ink on a dark background.
Each image is a character in one of the fonts that have it, rotated, scaled, sheared, shifted and bent at random, with
thinner or thicker strokes, less contrast and grain. No download, and always the same images: the seed of a run chooses
splits and draws only.

The characters were chosen so that no two of them look almost alike after such a change (upper and lower case, Latin and
Greek, ...): outlines scaled to one size, blurred, and compared under small rotations, stretches, shears and shifts.
"""

import numpy as np

from lowshot.core.errors import InputError
from lowshot.data.datasets.content import Content, Found, Source, superclasses
from lowshot.data.datasets.images import Images
from lowshot.data.datasets.settings import Glyphs


def find(settings: Glyphs, source: Source) -> Found:
    """The glyphs, which are always the same."""
    if source.root is not None:
        raise InputError(f"--root {source.root}: glyphs are read from no files")
    return Found({}, _read)


def _read() -> Content:
    from lowshot.data.datasets import drawing  # with torch and matplotlib, which only drawing needs

    pairs = [(script, char) for script, (chars, _) in drawing.SCRIPTS.items() for char in chars]
    n_images = drawing.N_TRAIN + drawing.N_TEST
    with drawing.one_thread():
        pixels = np.concatenate(
            [drawing.draw_class(c, script, char, n_images) for c, (script, char) in enumerate(pairs)]
        )
    labels = np.repeat(np.arange(len(pairs)), n_images)
    is_test = np.tile(np.arange(n_images) >= drawing.N_TRAIN, len(pairs))
    names, superclass_of = superclasses([script for script, _ in pairs])
    return Content(
        Images(labels, is_test, pixels), [f"{script}/{char}" for script, char in pairs], names, superclass_of
    )
