"""The superclass-conditional mixture, the assignment of subclasses, the angular contrast, and gradients of the losses.

Values marked as published were computed with the released code.
"""

import math

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from torch import Tensor, nn

from lowshot.core.errors import InputError
from lowshot.core.settings import build
from lowshot.scgm.assignment import Assignment, assign_subclasses
from lowshot.scgm.contrast import ClassQueues, angular_logits
from lowshot.scgm.mixture import Mixture, Superclasses
from lowshot.scgm.model import ScgmModel
from lowshot.scgm.settings import ScgmSettings
from lowshot.scgm.training import build_model

SCORES = torch.tensor(
    [[0.60, 0.30, 0.10], [0.55, 0.35, 0.10], [0.50, 0.40, 0.10], [0.45, 0.30, 0.25], [0.40, 0.35, 0.25],
     [0.34, 0.33, 0.33]]
).log()  # fmt: skip
MU_Y, MU_Z = torch.tensor([[2.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [0, 3], [1, 1]])
Y, Q = torch.tensor([0, 1]), torch.tensor([2, 1])


def plan(found: Assignment, log_scores: Tensor, exponent: float) -> Tensor:
    return torch.exp(exponent * log_scores.double() + found.log_r + found.log_c[:, None])


def random_scores(n: int, k: int, spread: float, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-spread, 0, (n, k)))


@pytest.mark.parametrize(
    ("exponent", "labels"), [(1, [0, 0, 1, 2, 2, 2]), (5, [0, 0, 1, 2, 2, 2]), (25, [0, 0, 1, 2, 1, 2])]
)
def test_published_assignments(exponent, labels):
    found = assign_subclasses(SCORES, exponent)
    assert found.labels.tolist() == labels and found.n_iterations == 11


def test_published_plan():
    """The released code stops with small errors of the column sums."""
    q = plan(assign_subclasses(SCORES, 25), SCORES, 25)
    expected = [[0.999593, 0.000407, 0], [0.855368, 0.144632, 0], [0.019008, 0.980992, 0],
                [0.138610, 0.074988, 0.786402], [0.001684, 0.816737, 0.181579], [0, 0.000999, 0.999001]]  # fmt: skip
    assert torch.allclose(6 * q, torch.tensor(expected).double(), atol=1e-6)
    assert (3 * q.sum(0)).tolist() == pytest.approx([1.007132, 1.009377, 0.983491], abs=1e-6)


@pytest.mark.parametrize("exponent", [1.0, 5.0, 25.0])
def test_the_plan_is_the_one_of_python_optimal_transport(exponent):
    scores = random_scores(60, 7, 2.0)
    found = assign_subclasses(scores, exponent, tolerance=1e-9, max_iterations=20_001)
    other = ot.sinkhorn(np.full(60, 1 / 60), np.full(7, 1 / 7), -scores.numpy(), 1 / exponent, "sinkhorn_log", 20_000,
                        1e-12)  # fmt: skip
    assert torch.allclose(plan(found, scores, exponent), torch.from_numpy(other), atol=1e-9)
    assert found.labels.tolist() == other.argmax(1).tolist()


def in_logarithms(scores: Tensor, exponent: float, n_iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Return log r and log c, with all iterations in logarithms."""
    n, k = scores.shape
    logits, log_c = exponent * scores.numpy(), np.full(n, -math.log(n))
    for _ in range(n_iterations):
        log_r = -math.log(k) - logsumexp(logits + log_c[:, None], axis=0)
        log_c = -math.log(n) - logsumexp(logits + log_r, axis=1)
    return log_r, log_c


@pytest.mark.parametrize("spread", [1.0, 30.0, 600.0])
def test_many_nats_between_scores_change_nothing(spread):
    """P^25 then ranges over 45 000 nats, float64 over 1400."""
    scores = random_scores(80, 9, spread)
    scores[:, 3] -= spread  # a subclass that nobody would choose
    scores[5] -= 2 * spread  # an image that nothing explains well
    log_r, log_c = in_logarithms(scores, 25, 91)
    found = assign_subclasses(scores, 25, tolerance=0, max_iterations=95)
    assert found.n_iterations == 91 and math.isfinite(found.residual)
    assert found.log_r.numpy() == pytest.approx(log_r, rel=1e-9, abs=1e-6)
    assert found.log_c.numpy() == pytest.approx(log_c, rel=1e-9, abs=1e-6)
    assert found.labels.tolist() == (25 * scores.numpy() + log_r).argmax(1).tolist()


def test_scales_may_grow_without_end():
    """Three quarters of the images prefer one of nine subclasses by 7500 nats. Each iteration moves it by two, so after
    601 its scale is beyond float64."""
    scores = random_scores(80, 9, 1.0)
    scores[:60, 1:] -= 300
    log_r, log_c = in_logarithms(scores, 25, 601)
    found = assign_subclasses(scores, 25, max_iterations=601)
    assert found.n_iterations == 601 and 0.1 < found.residual < math.inf
    assert np.ptp(log_r) > 709 + np.ptp(in_logarithms(scores, 25, 1)[0])
    assert found.log_r.numpy() == pytest.approx(log_r, rel=1e-9)
    assert found.log_c.numpy() == pytest.approx(log_c, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(9, 90), st.floats(0.1, 50), st.sampled_from([1, 5, 25]), st.integers(0, 999))
def test_every_plan_is_as_balanced_as_its_residual_says(k, n, spread, exponent, seed):
    """Images have weight 1/N exactly, and the errors of the subclass weights 1/K sum to at most residual/N."""
    scores = random_scores(n, k, spread, seed)
    found = assign_subclasses(scores, exponent, max_iterations=301)
    q = plan(found, scores, exponent)
    assert torch.allclose(q.sum(1), torch.full((n,), 1 / n).double(), rtol=1e-9)
    assert (q.sum(0) - 1 / k).abs().sum() <= found.residual / n + 1e-12
    assert found.residual <= 0.1 or found.n_iterations == 301
    assert torch.equal(found.labels, q.argmax(1))


def test_sharp_assignments_are_nearly_as_balanced_as_their_plan():
    """With cosines / 0.1 of random embeddings, as at the start of training, subclass sizes are within 5 %."""
    generator = torch.Generator().manual_seed(0)
    embeddings, means = (F.normalize(torch.randn(n, 16, generator=generator)) for n in (4000, 20))
    found = assign_subclasses((embeddings @ means.T / 0.1).log_softmax(1), 25)
    sizes = found.labels.bincount(minlength=20)
    assert found.residual <= 0.1
    assert sizes.min() >= 190 and sizes.max() <= 210


@pytest.mark.parametrize(("cap", "done"), [(1, 1), (10, 1), (11, 11), (60, 51)])
def test_iterations_are_capped(cap, done):
    found = assign_subclasses(random_scores(50, 5, 20.0), 25, tolerance=0, max_iterations=cap)
    assert found.n_iterations == done and 0 < found.residual < math.inf


@pytest.mark.parametrize(
    ("where", "value"),
    [((2, 1), math.nan), ((2,), -math.inf), ((slice(None), 1), -math.inf), ((2, 1), math.inf)],
    ids=["nan", "unexplained image", "subclass of none", "infinite"],
)
def test_scores_that_cannot_be_balanced_are_refused(where, value):
    scores = SCORES.clone()
    scores[where] = value
    with pytest.raises(InputError, match="scores of subclasses"):
        assign_subclasses(scores, 25)


def test_some_impossible_pairs_are_no_harm():
    scores = SCORES.clone()
    scores[0, 2] = scores[5, 0] = -math.inf
    found = assign_subclasses(scores, 25)
    assert found.labels.tolist() == [0, 0, 1, 2, 1, 2] and math.isfinite(found.residual)


class Lookup(nn.Module):
    """An extractor whose embeddings are its parameters `values` (n_views * B, d), for any images."""

    config = None

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)

    def features(self, images: Tensor) -> Tensor:
        return self.values[: len(images)]


def published_model(embeddings: Tensor, queues: ClassQueues | None = None, detach_means: bool = False) -> ScgmModel:
    mixture = Mixture(2, 3, 2)
    mixture.means.data, mixture.subclass_means.data = MU_Y.clone(), MU_Z.clone()
    model = ScgmModel(Lookup(embeddings), mixture, queues, 2, 1, detach_means=detach_means)
    model.subclasses.copy_(Q)
    return model


def published_queues() -> ClassQueues:
    """Queues with keys of other images than the first two."""
    queues = ClassQueues(torch.tensor([3, 3]), 2, 3)
    keys = torch.tensor([[0.0, 1], [1, 1], [-1, 0], [1, 0], [1, 1], [-1, 1]])
    queues.add(keys, torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(2, 8))
    return queues


def losses_of(model: ScgmModel, keys: Tensor | None = None) -> dict[str, Tensor]:
    return model(torch.zeros(2, 3, 4, 4), torch.arange(2), Y, keys)[0]


def rows(*values: float) -> Tensor:
    return torch.tensor(values).view(2, -1)


def test_published_mixture():
    v = torch.tensor([[3.0, 4], [-1, 0]])
    mixture = published_model(v).mixture
    given_v = mixture.subclass_logits(v).softmax(1)
    given_z = mixture.superclass_of_subclass_logits().softmax(1)
    joint, predicted = mixture.log_joint(v, Y).exp(), mixture.log_superclass(v).exp()
    assert torch.allclose(given_v, rows(0.017311, 0.127912, 0.854777, 0.000045, 0.999106, 0.000849), atol=1e-6)
    assert torch.allclose(given_z.T, rows(0.731059, 0.268941, 0.5, 0.268941, 0.731059, 0.5), atol=1e-6)
    assert torch.allclose(joint, rows(0.012655, 0.034401, 0.427388, 0.000012, 0.730405, 0.000424), atol=1e-6)
    assert torch.allclose(predicted, rows(0.474445, 0.525555, 0.269158, 0.730842), atol=1e-6)
    assert torch.allclose(joint.sum(1), predicted[[0, 1], Y])  # what the bound of EM bounds


def test_temperatures_divide_cosines():
    mixture = Mixture(2, 3, 2, tau=0.25, tau2=0.5)
    mixture.means.data, mixture.subclass_means.data = MU_Y.clone(), MU_Z.clone()
    half = 2 / math.sqrt(2)
    assert torch.allclose(mixture.superclass_of_subclass_logits(), torch.tensor([[2, 0], [0, 2], [half, half]]))
    assert torch.allclose(mixture.subclass_logits(torch.tensor([[0.0, 7]])), torch.tensor([[0, 4, 2 * half]]))


def test_published_losses_of_scgm_g():
    losses = losses_of(published_model(torch.tensor([[3.0, 4], [-1, 0]])))
    expected = {"superclass": 0.603081, "subclass": 0.078905, "superclass_of_subclass": 0.503204}
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, abs=2e-6)
    total = losses["superclass"] + 0.5 * (losses["subclass"] + losses["superclass_of_subclass"])
    assert total.item() == pytest.approx(0.894136, abs=2e-6)


def test_published_losses_of_scgm_a():
    v, keys = torch.tensor([[3.0, 4], [-1, 2]]), torch.tensor([[1.0, 1], [-2, 1]])
    logits = angular_logits(v, keys, Y, torch.arange(2), published_queues(), MU_Y, 0.2)
    expected = rows(4.98742, 4.74342, 4.98742, 2.23607, 4.74342, -2.62866, -4.05621, 4.93544)
    assert torch.allclose(logits, expected, atol=1e-5)
    model = published_model(v, published_queues())
    expected = {"contrast": 0.920246, "subclass": 0.079997, "superclass_of_subclass": 0.503204}
    losses = {name: loss.item() for name, loss in losses_of(model, keys).items()}
    assert {name: losses[name] for name in expected} == pytest.approx(expected, abs=2e-6)
    assert torch.allclose(model.mixture.subclass_logits(v), rows(6, 8, 9.8995, -4.47214, 8.94427, 3.16228), atol=1e-4)
    of_subclass = model.mixture.superclass_of_subclass_logits()[Q]
    assert torch.allclose(of_subclass, rows(0.70711, 0.70711, 0, 1), atol=1e-5)


MOVED = {"superclass": {"v", "mu_y"}, "subclass": {"v", "mu_z"}, "superclass_of_subclass": {"mu_y", "mu_z"},
         "contrast": {"v"}}  # fmt: skip
MOVED_DETACHED = {**MOVED, "subclass": {"v"}, "superclass_of_subclass": set()}


@pytest.mark.parametrize(("detach_means", "expected"), [(False, MOVED), (True, MOVED_DETACHED)])
def test_what_each_loss_moves(detach_means, expected):
    """With detached means, as in the released SCGM-A, only the classifier moves them."""
    model = published_model(torch.tensor([[3.0, 4], [-1, 2]]), published_queues(), detach_means)
    parameters = {"v": model.extractor.values, "mu_y": model.mixture.means, "mu_z": model.mixture.subclass_means,
                  "key": model.key_extractor.values}  # fmt: skip
    learned = {name: p for name, p in parameters.items() if p.requires_grad}
    moved = {}
    for name, loss in losses_of(model, model.keys(torch.zeros(2, 3, 4, 4), 0.9)).items():
        known = torch.autograd.grad(loss, list(learned.values()), retain_graph=True, allow_unused=True) \
            if loss.requires_grad else [None] * len(learned)  # fmt: skip
        moved[name] = {which for which, gradient in zip(learned, known) if gradient is not None and gradient.any()}
    assert moved == expected


def test_keys_follow_with_momentum_and_statistics():
    extractor = nn.Sequential(nn.BatchNorm1d(2))
    extractor.features = extractor.forward
    model = ScgmModel(extractor, Superclasses(2, 2), ClassQueues(torch.tensor([2, 2]), 2, 2), 4, 1)
    model.key_extractor.features = model.key_extractor.forward
    assert not any(p.requires_grad for p in model.key_extractor.parameters())
    model.extractor[0].weight.data[:] = 3
    model.extractor[0].running_mean[:] = 5
    model.eval()
    keys = model.keys(torch.ones(4, 2), momentum=0.75)
    assert model.key_extractor[0].weight.tolist() == pytest.approx([1.5] * 2)
    assert model.key_extractor[0].running_mean.tolist() == pytest.approx([1.25] * 2)
    assert keys.flatten().tolist() == pytest.approx([1.5 * -0.25] * 8, abs=1e-4) and not keys.requires_grad


def test_published_wrap_of_a_queue():
    """Keys are unit vectors, identified by their images. The pointers are those of the released code."""
    queues = ClassQueues(torch.tensor([5, 9]), 2, 5)
    queues.pointers.copy_(torch.tensor([3, 4]))
    keys = torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]])
    queues.add(keys, torch.tensor([0, 0, 0, 1, 0, 1]), torch.tensor([1, 3, 5, 7, 9, 11]))
    assert queues.images.tolist() == [[5, 9, -1, 1, 3], [11, -1, -1, -1, 7]]
    assert queues.pointers.tolist() == [2, 1]
    assert torch.allclose(queues.keys[0, :, :2].T, F.normalize(keys[[2, 4]]))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(1, 6),
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=25), max_size=5),
)
def test_queues_are_written_in_order_and_wrap(sizes, length, batches):
    """Compared with writing one key at a time. Batches may be several times as long as a queue."""
    queues = ClassQueues(torch.tensor(sizes), 3, length)
    lengths = [min(size, length) for size in sizes]
    expected, pointers = [[None] * n for n in lengths], [0] * len(sizes)
    image = 0
    for batch in batches:
        classes = [c % len(sizes) for c in batch]
        keys = torch.randn(len(classes), 3)
        images = list(range(image, image := image + len(classes)))
        queues.add(keys, torch.tensor(classes), torch.tensor(images))
        for key, c, one in zip(F.normalize(keys), classes, images):
            expected[c][pointers[c]] = one, key
            pointers[c] = (pointers[c] + 1) % lengths[c]
    assert queues.pointers.tolist() == pointers
    for c, places in enumerate(expected):
        assert queues.images[c].tolist()[lengths[c] :] == [-1] * (max(lengths) - lengths[c])
        for place, content in enumerate(places):
            assert queues.images[c, place] == (-1 if content is None else content[0])
            assert content is None or torch.equal(queues.keys[c, :, place], content[1])


def test_angular_logits_against_a_loop():
    generator = torch.Generator().manual_seed(1)
    queues = ClassQueues(torch.tensor([6, 4, 9]), 5, 7)
    classes, images = torch.tensor([0, 2, 2, 1, 2, 0, 2, 2]), torch.arange(20, 28)
    queues.add(torch.randn(8, 5, generator=generator), classes, images)  # places stay empty
    means = 3 * torch.randn(3, 5, generator=generator)
    queries, keys = torch.randn(2, 8, 5, generator=generator)
    queries.requires_grad_()
    seen, labels = torch.tensor([21, 40, 26, 41, 20, 42, 43, 22]), torch.tensor([2, 2, 2, 1, 0, 0, 0, 1])
    logits = angular_logits(queries, keys, labels, seen, queues, means, 0.2)

    def angle(vector, c):
        return F.normalize(F.normalize(vector, dim=0) - F.normalize(means[c], dim=0), dim=0)

    assert logits.shape == (8, 8)
    for query, key, c, image, row in zip(queries, keys, labels, seen, logits):
        expected = [angle(query, c) @ angle(key, c) / 0.2]
        for other, owner in zip(queues.keys[c].T, queues.images[c]):
            left_out = owner == -1 or owner == image
            expected.append(torch.tensor(-math.inf) if left_out else angle(query, c) @ angle(other, c) / 0.2)
        assert torch.allclose(row, torch.stack(expected), atol=1e-5)
    F.cross_entropy(logits, torch.zeros(8, dtype=torch.int64)).backward()
    assert queries.grad.isfinite().all() and queries.grad.any(1).all()


def test_without_other_images_there_is_no_loss():
    """With empty queues, or keys of the image itself only, there are no negatives."""
    queues = ClassQueues(torch.tensor([1, 3]), 2, 8)
    v, keys, classes, images = torch.randn(2, 2), torch.randn(2, 2), torch.tensor([0, 1]), torch.tensor([4, 5])
    for _ in range(2):
        logits = angular_logits(v, keys, classes, images, queues, MU_Y, 0.2)
        assert F.cross_entropy(logits, torch.zeros(2, dtype=torch.int64)).item() == 0
        queues.add(keys, classes, images)


def test_the_model_of_each_method():
    """Queues are at most as long as a class, means are Glorot-uniform, and a method has only the parts it needs."""
    superclasses = np.repeat([0, 1, 2], [50, 3, 9])
    for method, mixture, contrast in (("scgm_g", 1, 0), ("scgm_a", 1, 1), ("coarse", 0, 0), ("ancor", 0, 1)):
        sizes = {"n_subclasses": 20} if mixture else {}
        sizes |= {"queue_length": 10} if contrast else {}
        chosen = build(ScgmSettings, {"method": {"name": method, **sizes}, "embedding": 8, "epochs": 11})
        model = build_model(chosen, Lookup(torch.randn(4, 8)), superclasses)
        assert (model.mixture is not None, model.queues is not None) == (bool(mixture), bool(contrast))
        assert (model.key_extractor is not None) == bool(contrast)
        if contrast:
            assert model.queues.lengths.tolist() == [10, 3, 9] and model.queues.keys.shape == (3, 8, 10)
        if mixture:
            assert model.sizes.shape == (3, 20) and model.subclasses.tolist() == [-1] * 62
            bound = math.sqrt(6 / 28)
            assert 0.9 * bound < model.mixture.subclass_means.abs().max() <= bound


def test_published_cyclic_rates():
    published = {0: 0.03, 1: 0.02981533, 10: 0.015, 19: 0.00018467, 20: 0.03, 199: 0.00018467}
    rates = {e: ScgmSettings().schedule.rate(e, 200, 0.03) for e in published}
    assert rates == pytest.approx(published, abs=1e-8)
    within = ScgmSettings().schedule.rate(10.9, 200, 0.03)
    assert within == rates[10]  # the rate of an epoch does not change within it
