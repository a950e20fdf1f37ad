"""Unlabelled training images of the novel classes, labelled by a few-shot method, as additional training rows."""

import numpy as np
import torch

from lowshot.classifiers.methods import score_tasks
from lowshot.classifiers.settings import transform_of
from lowshot.classifiers.tasks import Tasks
from lowshot.classifiers.transform import fitted_transform
from lowshot.core.errors import InputError
from lowshot.data.additions import Run
from lowshot.data.protocol import unlabelled_halves
from lowshot.evaluation.benchmark import Benchmark
from lowshot.evaluation.runs import seed_of_run
from lowshot.evaluation.settings import Pool


class PoolRows:
    """Adds the images of the pool, each with the class that a few-shot method gives it.

    The pool has no images but those of the novel classes of the setup, as that of a semi-supervised GAN. What class an
    image is of is not read. Test images are in no pool.
    """

    def __init__(self, settings: Pool, benchmark: Benchmark) -> None:
        self.settings, base = settings, benchmark.train.feats[benchmark.base_rows]
        self.transform = fitted_transform(transform_of(settings.method, None), base)

    def extend(self, run: Run, benchmark: Benchmark, seed: int) -> Run:
        """Add the most confident share of the images of every class, class after class, the most confident first.

        Only the shots are the support, whatever earlier additions have added. A class that no image is given to gets
        no rows. Raises InputError if the pool is empty.
        """
        train, shots = benchmark.train, benchmark.shot_rows(run.trial, run.n_shot)
        rows = self.rows(run, benchmark)
        if len(rows) == 0:
            way_out = "--add.pool.images others" if self.settings.images == "gan" else "fewer shots"
            raise InputError(
                f"{train.path}: trial {run.trial}, n = {run.n_shot} leaves no images of the novel classes to the pool. "
                f"Use {way_out}"
            )
        support, queries = (torch.from_numpy(self.transform(train.feats[one]))[None] for one in (shots.ravel(), rows))
        ways = torch.arange(len(shots)).repeat_interleave(run.n_shot)[None]
        method = self.settings.method
        scores = score_tasks(method, Tasks(support, ways, queries, len(shots)), seed_of_run(seed, method, run))[0]
        chosen, ways = most_confident(scores.double().numpy(), self.settings.share)
        return run.joined(train.feats[rows[chosen]], benchmark.novel_classes[ways])

    def rows(self, run: Run, benchmark: Benchmark) -> np.ndarray:
        """Return the rows of the pool in `benchmark.train`, ascending."""
        labels, drawn = benchmark.train.labels, benchmark.draws[run.trial]
        if self.settings.images == "gan":
            return np.sort(np.concatenate([unlabelled_halves(labels, c, drawn[c])[0] for c in benchmark.novel_classes]))
        of_classes = np.flatnonzero(np.isin(labels, benchmark.novel_classes))
        return np.setdiff1d(of_classes, benchmark.shot_rows(run.trial, run.n_shot))


def most_confident(scores: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the most confident `share` of the rows of each class, at least one, and their classes: (n,), (n,).

    `scores` (N, n_way) give every row its class, the one of the highest score. A row is the more confident, the less
    the softmax gives to all other classes. The rows are in the order of the classes, the most confident first.
    """
    ways, others = scores.argmax(axis=1), scores - scores.max(axis=1, keepdims=True)
    others[np.arange(len(scores)), ways] = -np.inf
    doubts = np.exp(others).sum(axis=1)  # unlike the probability of the class, it does not round to 1
    order = np.lexsort((doubts, ways))
    ways = ways[order]
    places, counts = np.arange(len(ways)) - np.searchsorted(ways, ways), np.bincount(ways, minlength=scores.shape[1])
    kept = places < np.maximum(1, np.rint(share * counts))[ways]
    return order[kept], ways[kept]
