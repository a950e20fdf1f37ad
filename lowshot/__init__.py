"""Low-shot visual recognition: one pipeline, one split and one evaluator.

A subpackage for each subject, each of which imports from those before it only: core, data, representation, scgm,
hallucination, classifiers, matching, evaluation, gan, diffusion, report. What a notebook needs is here as well:

    extractor = lowshot.open_extractor("timm:resnet50.a1_in1k")
    features = lowshot.embed(extractor, files)
    classifier = lowshot.FewShotClassifier("nearest_mean").fit(features, labels)
    classifier.predict(lowshot.embed(extractor, new_files))

The names of `__init__.pyi` are imported from their modules when they are first used, so that importing lowshot costs
nothing; the same holds for each subpackage.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
