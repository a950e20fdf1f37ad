"""Scores of generated images, compared with independent computations."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from lowshot.core.errors import InputError
from lowshot.gan import scores
from lowshot.gan.scores import image_scores, nearest_own_class


def features(n: int, shift: float, seed: int, dim: int = 6) -> torch.Tensor:
    mixed = np.random.default_rng(7).standard_normal((dim, dim))
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dim)) @ mixed + shift).float()


REAL, FAKE = features(150, 0, 0), features(120, 0.7, 1)


def test_fid_against_scipy():
    x, y = (one.numpy().astype(np.float64) for one in (REAL, FAKE))
    root = sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert image_scores(REAL, FAKE)["fid"] == pytest.approx(expected, abs=1e-4)


def test_fid_of_fewer_images_than_dimensions():
    """The covariances are singular, and rounding makes some eigenvalues of their product negative."""
    x, y = features(10, 0, 0, dim=40), features(12, 1, 1, dim=40)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (x.var(0) + y.var(0)).sum()
    cross = np.linalg.svd((x - x.mean(0)).double().numpy() @ (y - y.mean(0)).double().numpy().T, compute_uv=False)
    expected = expected.item() - 2 * cross.sum() / np.sqrt(9 * 11)  # the trace of the square root is a nuclear norm
    assert image_scores(x, y)["fid"] == pytest.approx(expected, abs=1e-4)


def test_kid_against_loops():
    """Every subset contains all images, so KID is the unbiased estimate itself."""
    x, y = (one[:120].numpy().astype(np.float64) for one in (REAL, FAKE))

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = [(kernel(one, one).sum() - np.trace(kernel(one, one))) / (120 * 119) for one in (x, y)]
    expected = sum(within) - 2 * kernel(x, y).mean()
    assert image_scores(REAL[:120], FAKE)["kid"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("n_distances", [8_000_000, 500])
def test_neighbour_scores_against_loops(monkeypatch, k, n_distances):
    """Balls are open, an image is not its own neighbour, and some images occur twice."""
    monkeypatch.setattr(scores, "_N_DISTANCES", n_distances)
    x, y = torch.cat([REAL[:60], REAL[:3]]), torch.cat([FAKE[:50], REAL[:1], REAL[10:12]])
    real, fake = (one.numpy().astype(np.float64) for one in (x, y))

    def distance(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(2))

    def radii(a):
        return np.sort(distance(a, a) + np.diag(np.full(len(a), np.inf)), 1)[:, k - 1]

    inside_real = distance(fake, real) < radii(real)
    expected = {
        "precision": inside_real.any(1).mean(),
        "recall": (distance(real, fake) < radii(fake)).any(1).mean(),
        "density": inside_real.sum() / (k * len(fake)),
        "coverage": (distance(real, fake).min(1) < radii(real)).mean(),
    }
    found = image_scores(x, y, n_neighbours=k)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert 0 < expected["recall"] < 1 and 0 < expected["precision"] < 1


def test_which_images_are_of_their_own_class():
    labels = torch.tensor([3, 3, 8, 8])
    real = torch.tensor([[0.0, 0], [2, 0], [10, 0], [12, 0]])  # class means at 1 and 11
    fake = torch.tensor([[5.9, 0], [6.1, 0], [6.1, 0], [-3, 0]])
    assert nearest_own_class(real, fake, labels).tolist() == [True, False, True, False]


def test_the_same_images_are_perfect():
    found = image_scores(REAL, REAL)
    assert found["fid"] == pytest.approx(0, abs=1e-4)
    assert found["kid"] < 0  # the unbiased estimate is negative for identical images
    assert found["precision"] == found["recall"] == found["coverage"] == 1


def test_nothing_random_is_left(monkeypatch):
    """KID draws the same subsets each time and does not change the global random state."""
    monkeypatch.setattr(scores, "_KID_SUBSETS", 3)
    x, y = features(1100, 0, 3), features(1200, 0.1, 4)
    torch.manual_seed(5)
    first, state = image_scores(x, y), torch.get_rng_state()
    torch.manual_seed(6)
    assert image_scores(x, y) == first
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="needs more than 3 real and generated images, but there are only 3"):
        image_scores(REAL, FAKE[:3])
