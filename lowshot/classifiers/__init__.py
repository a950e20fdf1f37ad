"""Low-shot classifiers and few-shot methods.

`__init__.pyi` lists the public names. Each is imported from its module on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
