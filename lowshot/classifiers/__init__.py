"""Low-shot classifiers."""
