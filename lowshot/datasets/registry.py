"""Which data sets there are, and which settings of preprocessing each of them heeds."""

from collections.abc import Callable
from typing import NamedTuple

from lowshot.datasets import glyphs
from lowshot.datasets.content import Found, Source


class Reader(NamedTuple):
    """`find` looks for the data set; `heeds` names the settings that not every data set has a use for."""

    find: Callable[[Source], Found]
    heeds: frozenset[str]


READERS = {
    "glyphs": Reader(glyphs.find, frozenset()),
}
