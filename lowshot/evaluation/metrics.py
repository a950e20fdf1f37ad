"""The six numbers of the low-shot benchmark (Hariharan & Girshick, ICCV 2017): top-1, top-5 on novel, base, all images.

Scores run over every class of the data set, without masking to the setup's classes and without class priors.
"""

import numpy as np

from lowshot.core.errors import InputError

TOP_K = (1, 5)


def six_accuracies(
    ranks: np.ndarray, labels: np.ndarray, base_classes: np.ndarray, novel_classes: np.ndarray
) -> dict[str, float]:
    """Fractions of images whose true class ranks below k, as the results files name them (`top1_novel` ... `top5_all`).

    Args:
        ranks: (N,) from `true_class_ranks`.
        labels: (N,); images of classes outside the setup are left out.

    Raises InputError if the test images hold no novel or no base class of the setup.
    """
    members = {"novel": np.isin(labels, novel_classes), "base": np.isin(labels, base_classes)}
    for name, inside in members.items():
        if not inside.any():
            raise InputError(f"the test features hold no image of the setup's {name} classes")
    members["all"] = members["novel"] | members["base"]
    return {f"top{k}_{name}": float((ranks[inside] < k).mean()) for name, inside in members.items() for k in TOP_K}
