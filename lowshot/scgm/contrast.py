"""Angular contrastive loss within superclasses (ANCOR, Bukchin et al., CVPR 2021).

The loss distinguishes two views of an image from other images of its superclass, by their directions from the mean of
the superclass: A_c(u) = normalise(normalise(u) - normalise(mu_c)). The other images are keys of earlier batches, kept
in one queue per superclass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassQueues(nn.Module):
    """The latest keys of each superclass, as unit vectors: `keys` float32 (C, d, L), `images` int64 (C, L).

    Departs from the published code, whose queues of 65 536 keys are longer than a class and start with random vectors.
    Here a queue is at most as long as its class. Empty places (image -1) and older keys of the same image are not used
    as negatives.
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
        """Write `keys` (B, d) of `classes` (B,) to their queues in order, replacing the oldest keys."""
        counts = classes.bincount(minlength=len(self.lengths))
        place = _place_in_class(classes, len(self.lengths))
        last = place >= (counts - self.lengths)[classes]  # if there are more than fit, keep the last ones
        keys, classes, images, place = keys[last], classes[last], images[last], place[last]
        at = (self.pointers[classes] + place) % self.lengths[classes]
        self.keys[classes, :, at], self.images[classes, at] = F.normalize(keys.float()), images
        self.pointers.add_(counts).remainder_(self.lengths)


def angular_logits(
    queries: Tensor, keys: Tensor, classes: Tensor, images: Tensor, queues: ClassQueues, means: Tensor, tau: float
) -> Tensor:
    """Return the logits (B, 1 + L) of each query against its own key (column 0) and the queue of its class.

    Logits are similarities divided by `tau`. Empty places and older keys of the same image are -inf.

    Args:
        queries: Embeddings (B, d) of one view.
        keys: Embeddings (B, d) of another view, without gradient.
        classes: Superclasses int64 (B,).
        images: Indices of the images, int64 (B,).
        queues: The keys of earlier batches. No superclass may be empty.
        means: Means of superclasses (C, d); they receive no gradient.
        tau: Temperature.
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
    """Return the inner products (B, L) of queries (B, d) with the directions from the unit mean of their class (C, d)
    to its unit `keys` (C, d, L).

    Computes q . (u - mu) / |u - mu|, where |u - mu|^2 = 2 - 2 u . mu. The queues, which are most of the data, are read
    once and never copied: one product per class multiplies its mean and queries with all its keys.
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
    """For each entry of `classes` int64 (B,), count the earlier entries of the same class: int64 (B,)."""
    order = classes.argsort(stable=True)
    counts = classes.bincount(minlength=n_classes)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[classes[order]]
    return place
