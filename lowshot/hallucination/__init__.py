"""Analogies between clusters of base classes, and feature generators trained on them.

The names in `__init__.pyi` are imported from their modules at first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
