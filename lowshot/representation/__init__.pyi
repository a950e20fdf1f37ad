"""Feature extractors: networks, losses, augmentation, loading, training."""

from .augmentation import Augmentation as Augmentation
from .augmentation import augmentation_of as augmentation_of
from .backbones import Extractor as Extractor
from .backbones import load_extractor as load_extractor
from .backbones import save_extractor as save_extractor
from .extractor_training import check_stage as check_stage
from .extractor_training import train_extractor as train_extractor
from .extractors import batch_features as batch_features
from .extractors import chosen_extractor as chosen_extractor
from .extractors import drop_projection as drop_projection
from .extractors import embed as embed
from .extractors import embed_batches as embed_batches
from .extractors import handed_on as handed_on
from .extractors import lineage_of_extractor as lineage_of_extractor
from .extractors import open_extractor as open_extractor
from .image_training import check_training as check_training
from .image_training import hold_out as hold_out
from .image_training import image_training as image_training
from .image_training import training_recipe as training_recipe
from .loading import batches as batches
from .loading import in_batches as in_batches
from .loading import to_unit as to_unit
from .networks import build_network as build_network
from .networks import check_network as check_network
from .networks import lineage_of_start as lineage_of_start
from .networks import starts_pretrained as starts_pretrained
