"""The low-shot benchmark, few-shot episodes, selection of settings.

The names of `__init__.pyi` are imported from their modules when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
