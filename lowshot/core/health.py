"""Health checks of trainings and results: a sentence for what a look at the log would show, and the setting to change.

Each check takes numbers and returns a sentence, or None if nothing is wrong. `warn` prints them.
"""

import math

from lowshot.core.progress import say

# A share of hits up to this multiple of chance is called chance.
_NEAR_CHANCE = 1.5
# Images of one class that differ by less than this share of what real images do are one image.
_ONE_IMAGE = 0.1


def warn(*findings: str | None) -> None:
    """Print each finding in a line on stderr."""
    for finding in filter(None, findings):
        say(f"CHECK: {finding}")


def at_chance(what: str, top1: float, n_classes: int, remedy: str) -> str | None:
    """Whether a classifier, with top-1 accuracy `top1` on images of `n_classes` classes, has learned nothing."""
    if n_classes < 2 or top1 > min(_NEAR_CHANCE / n_classes, 0.5 + 0.5 / n_classes):
        return None
    return f"{what} is at chance: top-1 {100 * top1:.1f} %, chance {100 / n_classes:.1f} %. {remedy}"


def constant(where: str, spread: float, size: float) -> str | None:
    """Whether features are all equal. `spread` is their standard deviation over images, `size` their mean magnitude,
    both averaged over dimensions."""
    if spread > 1e-5 * size:
        return None
    return (
        f"the features of {where} are constant: all images have the same. The extractor has collapsed: train it again "
        "with a smaller --lr"
    )


def novel_at_chance(
    top1: dict[int, float], among_novel: dict[int, float], chance: float, chance_among: float
) -> str | None:
    """Whether novel classes are not found among all classes, or not even among themselves.

    Args:
        top1: n -> top-1 accuracy on images of novel classes, among all classes.
        among_novel: the same among novel classes only.
        chance, chance_among: the levels of chance of both.
    """
    low = [n for n, value in top1.items() if value <= chance]
    if not low:
        return None
    numbers, worst = ", ".join(map(str, low)), min(low, key=top1.get)
    what = f"novel top-1 is not above chance at n = {numbers} ({100 * top1[worst]:.2f} %, chance {100 * chance:.2f} %)"
    if among_novel[worst] <= _NEAR_CHANCE * chance_among:
        return (
            f"{what}, nor among novel classes alone. The features do not tell these classes apart: use another "
            "extractor, and check that features, split and draws belong together"
        )
    return (
        f"{what}, but {100 * among_novel[worst]:.0f} % among novel classes alone: base classes, with many more images, "
        "win. Try low_shot.py --classifier imprinting, a positive --novel_bias, or diffusion.py"
    )


def generator(spread: float, error: float, variance: float) -> str | None:
    """Whether an analogy generator is dead, or no better than the mean of its targets.

    Args:
        spread: variance of the generated rows, averaged over dimensions.
        error: mean squared error of the generated rows.
        variance: variance of the targets, averaged over dimensions.
    """
    if spread <= 1e-4 * variance:
        return "the generator is dead: it makes the same features from all inputs. Use a smaller --lr (a tenth)"
    if error >= variance:
        return (
            f"the generator is worse than the mean of its targets (squared error {error:.3g}, variance "
            f"{variance:.3g}): it diverges, or is not trained. Use a smaller --lr, or more --n_steps"
        )
    return None


def one_image_a_class(spread: float) -> str | None:
    """Whether a GAN makes one image a class. `spread` is the distance of generated images of one class from each other,
    relative to that of real ones."""
    if not spread < _ONE_IMAGE:
        return None
    return (
        f"the GAN makes nearly one image a class: its images of a class differ {100 * spread:.0f} % as much as real "
        "ones. Use a larger --d_lr than --lr, fewer --z_dim, or fewer --steps"
    )


def discriminator(loss: float, generator_loss: float) -> str | None:
    """Whether a discriminator is at chance or has won. The losses are adversarial, means over the last steps."""
    if abs(loss - math.log(2)) < 0.002:
        return "the discriminator is at chance. Use a larger --d_lr, or less augmentation (--augment.p)"
    if loss < 0.01 and generator_loss > 8:
        return "the discriminator has won: the generator gets no useful gradient. Use a smaller --d_lr, or more --r1"
    return None


def subclasses(n_used: int, n_subclasses: int, n_superclasses: int) -> str | None:
    """Whether the subclasses of SCGM have collapsed."""
    if n_used > n_superclasses or n_subclasses <= n_superclasses:
        return None
    return (
        f"only {n_used} of {n_subclasses} subclasses have images: they have collapsed. Use a larger "
        "--method.exponent, or fewer --method.n_subclasses"
    )
