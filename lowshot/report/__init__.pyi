"""Tables, figures and an HTML page from results files."""

from . import published as published
from . import results as results
from .build import Pictures as Pictures
from .build import write_report as write_report
from .files import read_files as read_files
from .generated import read_gan as read_gan
from .mistakes import write_mistakes as write_mistakes
from .mixture import check_fits as check_fits
from .mixture import read_means as read_means
from .results import read_results as read_results
from .results import summarise as summarise
