"""Low-shot visual recognition: one pipeline, one split and one evaluator.

There is one subpackage per subject: core, data, representation, scgm, hallucination, classifiers, matching, evaluation,
gan, diffusion, report. Each imports only from those before it. The functions and classes for notebooks are here:

    extractor = lowshot.open_extractor("timm:resnet50.a1_in1k")
    features = lowshot.embed(extractor, files)
    classifier = lowshot.FewShotClassifier("nearest_mean").fit(features, labels)
    classifier.predict(lowshot.embed(extractor, new_files))

The names in `__init__.pyi` are imported from their modules on first use, so that `import lowshot` is fast. The
subpackages work the same way.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
