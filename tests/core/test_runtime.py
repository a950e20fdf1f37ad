"""Where work runs: cores, devices, and what an Apple GPU cannot do."""

import torch

from lowshot.core import runtime
from lowshot.core.runtime import in_float64, pick_device
from lowshot.core.workers import available_cores


class OnAppleGpu(torch.Tensor):
    """A tensor that says it is on MPS, and refuses float64 as MPS does."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if function == torch.Tensor.device.__get__:
            return torch.device("mps")
        made = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return made


def on_apple_gpu(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).as_subclass(OnAppleGpu)


def test_float64_without_a_device_that_has_it():
    tensor = on_apple_gpu(3)
    assert in_float64(tensor).dtype == torch.float64
    assert torch.equal(in_float64(torch.ones(2)), torch.ones(2, dtype=torch.float64))


def test_scores_of_a_gan_that_trains_on_an_apple_gpu():
    from lowshot.gan.scores import frechet_distance

    real, fake = on_apple_gpu(40, 3), on_apple_gpu(30, 3)
    plain = [one.as_subclass(torch.Tensor) for one in (real, fake)]
    assert frechet_distance(real, fake) == frechet_distance(*plain)


def test_assignment_of_scores_on_an_apple_gpu():
    from lowshot.scgm.assignment import assign_subclasses

    scores = on_apple_gpu(20, 4)
    assert torch.equal(assign_subclasses(scores, 5.0).labels, assign_subclasses(scores.cpu(), 5.0).labels)


def test_features_never_go_to_an_apple_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")


def test_cores(monkeypatch):
    assert available_cores() >= 1
    monkeypatch.delattr(runtime.os, "sched_getaffinity", raising=False)  # macOS and Windows
    monkeypatch.setattr(runtime.os, "cpu_count", lambda: None)
    assert available_cores() == 1
