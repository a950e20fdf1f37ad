"""Analogies between clusters of base classes, and the generator that is trained on them."""
