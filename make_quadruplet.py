"""Cluster the features of each base class, and mine analogies a : b :: c : d between the centroids of two classes.

Reads   train features (features/train.h5 or a published file) and split.json
Writes  quadruplets.h5: centroids, their classes, quadruplets and scores, sorted by source class and pair (I, J)

    python make_quadruplet.py --features outputs/omniglot/features/train.h5 --split outputs/omniglot/split.json \\
        --out outputs/omniglot/quadruplets.h5

Small example (seconds on a CPU, plus the compilation of the search in the first run):

    python make_quadruplet.py --features outputs/glyphs/features/train.h5 --split outputs/glyphs/split.json \\
        --out outputs/glyphs/quadruplets.h5 --rule ghosted2018 --n_clusters 4
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowshot import hallucination
from lowshot.core.artifacts import recipe, stored_recipe
from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.files import check_suffix
from lowshot.core.publishing import is_done, writing
from lowshot.core.settings import RunOnly, Seed, TwoOrMore
from lowshot.data.features import read_features
from lowshot.data.lineage import lineage_of, trained_on
from lowshot.data.protocol import read_split
from lowshot.hallucination.settings import KMeans, RuleName, Scope


@dataclass
class Config:
    features: Path
    """Train features: train.h5 of save_features.py, or a published file."""
    split: Path
    """split.json, or a published label_idx.json."""
    out: Path
    """Quadruplets file to write."""
    rule: RuleName = "hariharan2017"
    """Mining rule: hariharan2017 (100 clusters, 20 iterations, lengths + 1e-5) or ghosted2018 (10 clusters, 10 runs of
    300 iterations)."""
    n_clusters: TwoOrMore | None = None
    """Number of clusters per base class (default: the number of the rule)."""
    kmeans: KMeans = "faiss"
    """k-means variant: faiss, or published (starts from unit vectors, re-seeds clusters that never had a member, no
    restarts)."""
    scope: Scope = "global"
    """Classes to search for partners: all other base classes, or those of the same superclass."""
    seed: Seed = 0
    """Seed of the clustering."""
    overwrite: RunOnly[bool] = False
    """Replace an existing output."""


def main(config: Config) -> Path:
    """Write the quadruplets file, and return its path."""
    check_suffix("--out", config.out, ".h5")
    extractor = stored_recipe(config.features)["inputs"].get("extractor")
    inputs = {"features": config.features, "split": config.split, "extractor": extractor}
    split = read_split(config.split)
    seen = lineage_of(config.features) | trained_on(split, split.base_classes)
    made_from = recipe("make_quadruplet", config, inputs, seen.to_json())
    if is_done(config.out, made_from, config.overwrite):
        return config.out
    classes = np.array(sorted(split.base_classes))
    partners = hallucination.partner_classes(classes, split, config.scope, config.split)
    features = read_features(config.features, n_classes=split.n_classes)

    rule = hallucination.RULES[config.rule]
    n_clusters = config.n_clusters or rule.n_clusters
    centroids = hallucination.cluster_classes(
        features, classes, n_clusters, config.kmeans, rule.n_iterations, rule.n_redo, config.seed
    )
    numbers, scores = hallucination.mine(centroids, partners, rule.epsilon)
    if len(numbers) == 0:
        raise InputError(f"{config.features}: no quadruplets, as no centroid differences of two classes are similar")
    with writing(config.out, made_from) as partial:
        hallucination.write_quadruplets(
            partial, hallucination.Quadruplets(centroids, classes, numbers, scores), made_from
        )
    n_paired = len(np.unique(numbers[:, 0] // n_clusters))
    found = f"{len(numbers)} quadruplets; {n_paired} of {len(classes)} base classes have one"
    print(f"make_quadruplet: {found} -> {config.out}")
    return config.out


def next_step(config: Config) -> list:
    """Return the command that reads the output."""
    extractor = config.features.parent.parent / "extractor"
    inputs = ["--quadruplets", config.out, "--extractor", extractor if extractor.exists() else "EXTRACTOR"]
    return ["train_analogy_generator.py", *inputs, "--out", config.out.parent / "generator"]


if __name__ == "__main__":
    run(main, Config, __doc__, next_step)
