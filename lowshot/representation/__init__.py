"""Feature extractors: networks, losses, augmentation, loading, training."""
