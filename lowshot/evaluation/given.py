"""Evaluation of given tasks (`lowshot.data.task_list`)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowshot.classifiers.methods import score_tasks
from lowshot.classifiers.tasks import Tasks
from lowshot.core.progress import Progress
from lowshot.data.task_list import GivenTask
from lowshot.evaluation.ranks import true_class_ranks


def evaluate_given(
    features: Tensor, tasks: list[GivenTask], method: Any, seed: int, copies: Tensor | None, entries: list[dict]
) -> None:
    """Evaluate `method` on the tasks after the first `len(entries)`, and append an entry of a results file for each.

    Args:
        features: (N, D) float32, the rows that the tasks refer to, on the device to compute on.
        method: settings of a few-shot method.
        copies: (N, A, D) float32, features of augmented copies of each row. If given, the method learns from the copies
            of a support image instead of the image.
    """
    done = len(entries)
    for i, task in enumerate(Progress(tasks[done:], "tasks", unit="task", resumable=True), start=done):
        accuracy = _accuracy(features, task, method, seed, copies)
        numbers = {"episode": i, "n_way": len(task.class_names), "n_shot": task.n_shot, "accuracy": accuracy}
        entries.append(numbers | {"name": task.name, "cluster": task.cluster})


def _accuracy(features: Tensor, task: GivenTask, method: Any, seed: int, copies: Tensor | None) -> float:
    """Return the fraction of the queries that are classified correctly."""
    support, queries = (features[torch.from_numpy(rows).to(features.device)] for rows in (task.support, task.queries))
    labels = task.support_labels
    if copies is not None:
        support = copies[torch.from_numpy(task.support).to(copies.device)].flatten(0, 1)
        labels = np.repeat(labels, copies.shape[1])
    on_device = torch.from_numpy(labels).to(features.device)
    scores = score_tasks(method, Tasks(support[None], on_device[None], queries[None], len(task.class_names)), seed)
    truth = torch.from_numpy(task.query_labels).to(features.device)
    return float((true_class_ranks(scores, truth) == 0).double().mean())
