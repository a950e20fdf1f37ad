"""The six accuracies of the low-shot benchmark (Hariharan & Girshick, ICCV 2017).

They are top-1 and top-5 on novel, base and all images. An image is classified among all classes that have a score,
without masking and without class priors.
"""

import numpy as np

from lowshot.core.errors import InputError

TOP_K = (1, 5)


def six_accuracies(
    ranks: np.ndarray, labels: np.ndarray, base_classes: np.ndarray, novel_classes: np.ndarray
) -> dict[str, float]:
    """Return the fractions of images whose true class has a rank below k, `top1_novel` ... `top5_all`.

    Args:
        ranks: (N,) from `true_class_ranks`.
        labels: (N,). Images of classes outside the setup are ignored.

    Raises InputError if no test image is of a novel class, or none of a base class.
    """
    members = {"novel": np.isin(labels, novel_classes), "base": np.isin(labels, base_classes)}
    for name, inside in members.items():
        if not inside.any():
            raise InputError(f"--test: no image of the {name} classes of the setup. Use features of all test images")
    members["all"] = members["novel"] | members["base"]
    return {f"top{k}_{name}": float((ranks[inside] < k).mean()) for name, inside in members.items() for k in TOP_K}
