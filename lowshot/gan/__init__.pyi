"""Class-conditional GANs of few shots, their samples and scores."""

from .data import FewShotRows as FewShotRows
from .data import examples as examples
from .data import few_shot_rows as few_shot_rows
from .data import read_few_shot_rows as read_few_shot_rows
from .model import Gan as Gan
from .model import gan_recipe as gan_recipe
from .model import load_gan as load_gan
from .model import make_images as make_images
from .model import make_mixed_images as make_mixed_images
from .model import mixtures as mixtures
from .model import sample_noise as sample_noise
from .model import save_gan as save_gan
from .networks import GanConfig as GanConfig
from .networks import check_sizes as check_sizes
from .samples import SampleRows as SampleRows
from .samples import handed_on as handed_on
from .samples import read_sample_images as read_sample_images
from .samples import read_samples as read_samples
from .samples import sample_files as sample_files
from .samples import samples_recipe as samples_recipe
from .scores import scores_by_class as scores_by_class
from .training import GanTrainer as GanTrainer
from .training import features_of as features_of
from .training import reference as reference
