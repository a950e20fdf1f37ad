"""The built-in data set: characters of twelve scripts, rendered from the open fonts that ship with matplotlib.

144 classes, 50 train and 20 test images each, 28x28x1 uint8, bright ink on a dark background. The superclass of a
character is its script. Each image shows a character in one of its fonts, with a random rotation, scale, shear, shift,
elastic deformation, stroke width, contrast and noise. Nothing is downloaded, and the images are always the same:
--seed affects splits and draws only.

No two characters look alike after such changes, as upper and lower case or Latin and Greek letters can. To choose them,
their outlines were scaled to one size, blurred, and compared under small rotations, scalings, shears and shifts.
"""

import numpy as np

from lowshot.core.errors import InputError
from lowshot.data.datasets.content import Content, Found, Source, superclasses
from lowshot.data.datasets.images import Images
from lowshot.data.datasets.settings import Glyphs


def find(settings: Glyphs, source: Source) -> Found:
    """Return the glyphs, which need no files."""
    if source.root is not None:
        raise InputError(f"--root {source.root}: glyphs are rendered, not read from files. Leave --root out")
    return Found({}, _read)


def _read() -> Content:
    from lowshot.core.runtime import one_thread
    from lowshot.data.datasets import drawing  # torch and matplotlib are slow to import

    pairs = [(script, char) for script, (chars, _) in drawing.SCRIPTS.items() for char in chars]
    n_images = drawing.N_TRAIN + drawing.N_TEST
    with one_thread():
        pixels = np.concatenate(
            [drawing.draw_class(c, script, char, n_images) for c, (script, char) in enumerate(pairs)]
        )
    labels = np.repeat(np.arange(len(pairs)), n_images)
    is_test = np.tile(np.arange(n_images) >= drawing.N_TRAIN, len(pairs))
    names, superclass_of = superclasses([script for script, _ in pairs])
    return Content(
        Images(labels, is_test, pixels), [f"{script}/{char}" for script, char in pairs], names, superclass_of
    )
