"""Classifiers of photos: from a few photos per class to names, and how far they can be trusted.

The names in `__init__.pyi` are imported from their modules on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
