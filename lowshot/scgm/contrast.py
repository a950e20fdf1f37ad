"""Contrast within superclasses, by angle (ANCOR, Bukchin et al., CVPR 2021; spec 5.2 and 5.3).

Two views of an image are told from other images of its superclass by their directions as seen from the superclass's
mean: A_c(u) = normalise(normalise(u) - normalise(mu_c)). The other images are keys of earlier batches, a queue for each
superclass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassQueues(nn.Module):
    """The latest keys of every superclass, as unit vectors: `keys` float32 (C, d, L), `images` int64 (C, L).

    Departs from the published code, whose queues of 65 536 are longer than a class and start with random vectors: one
    is never longer than its class, an empty place (image -1) is no negative, and neither is an older key of the same
    image.
    """

    def __init__(self, class_sizes: Tensor, dim: int, length: int) -> None:
        super().__init__()
        longest = min(length, int(class_sizes.max()))
        lengths, n_classes = class_sizes.clamp(max=longest), len(class_sizes)
        self.register_buffer("lengths", lengths)
        self.register_buffer("pointers", torch.zeros_like(lengths))
        self.register_buffer("keys", torch.zeros(n_classes, dim, longest))
        self.register_buffer("images", torch.full((n_classes, longest), -1))

    def add(self, keys: Tensor, classes: Tensor, images: Tensor) -> None:
        """Put `keys` (B, d) of `classes` (B,) at the pointers of their queues, in order, the oldest making room."""
        counts = classes.bincount(minlength=len(self.lengths))
        place = _place_in_class(classes, len(self.lengths))
        last = place >= (counts - self.lengths)[classes]  # of more than fit, the last ones
        keys, classes, images, place = keys[last], classes[last], images[last], place[last]
        at = (self.pointers[classes] + place) % self.lengths[classes]
        self.keys[classes, :, at], self.images[classes, at] = F.normalize(keys.float()), images
        self.pointers.add_(counts).remainder_(self.lengths)


def angular_logits(
    queries: Tensor, keys: Tensor, classes: Tensor, images: Tensor, queues: ClassQueues, means: Tensor, tau: float
) -> Tensor:
    """Similarities of each query to its own key (column 0) and to the queue of its class: (B, 1 + L), over `tau`.

    Args:
        queries, keys: (B, d), embeddings of two views; keys carry no gradient.
        classes, images: int64 (B,).
        means: (C, d), of superclasses; they get no gradient. None can be an empty class.

    Empty places and the image's own older keys are -inf.
    """
    means = F.normalize(means.detach())
    queries, keys = (F.normalize(F.normalize(one) - means[classes]) for one in (queries, keys))
    queries = queries / tau
    positives = (queries * keys).sum(1, keepdim=True)
    owners = queues.images[classes]
    left_out = (owners < 0) | (owners == images[:, None])
    negatives = _seen_from_means(queries, classes, queues.keys, means).masked_fill(left_out, -torch.inf)
    return torch.cat([positives, negatives], 1)


def _seen_from_means(queries: Tensor, classes: Tensor, keys: Tensor, means: Tensor) -> Tensor:
    """Inner products of queries (B, d) with the directions of unit `keys` (C, d, L) as seen from the unit mean of
    their class (C, d): (B, L).

    q . (u - mu) / |u - mu|, where |u - mu|^2 = 2 - 2 u . mu: the queues, most of the bytes, are read once, by one
    product a class of its mean and its queries with all of its keys, and not rewritten.
    """
    place = _place_in_class(classes, len(keys))
    vectors = queries.new_zeros(len(keys), 1 + int(place.max()) + 1, queries.shape[1])
    vectors = vectors.index_put((classes, 1 + place), queries)
    vectors[:, 0] = means
    products = torch.bmm(vectors, keys)
    distances = (2 - 2 * products[:, 0].detach()).clamp(min=1e-12).sqrt()
    towards_mean = (queries * means[classes]).sum(1, keepdim=True)
    return (products[classes, 1 + place] - towards_mean) / distances[classes]


def _place_in_class(classes: Tensor, n_classes: int) -> Tensor:
    """How many of the same class stand before each in `classes` int64 (B,): int64 (B,)."""
    order = classes.argsort(stable=True)
    counts = classes.bincount(minlength=n_classes)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[classes[order]]
    return place
