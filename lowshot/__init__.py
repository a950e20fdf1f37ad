"""Low-shot visual recognition: everything the top-level stage scripts share.

The rooms, lowest first (nothing imports upwards): errors, seeds, artifacts, cli; datasets, protocol, features;
backbones, losses, augmentation, training; clustering, quadruplets, generators; metrics, classifiers; report.
"""

__version__ = "0.1.0"
