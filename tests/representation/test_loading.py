"""Images on disk: what random crops depend on, and workers that are kept, counted by rule and fail in one line."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from lowshot.core import workers
from lowshot.core.errors import CorruptImage
from lowshot.core.seeds import torch_stream
from lowshot.data.datasets.images import Images
from lowshot.representation.augmentation import Augmentation
from lowshot.representation.backbones import ModelConfig
from lowshot.representation.image_training import Trainer
from lowshot.representation.loading import ImageLoader, to_unit, view

MODEL = ModelConfig("Conv4", 10, 3, 16)


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """30 equal images on disk whose red value is the column and whose green value is the row."""
    root = tmp_path_factory.mktemp("ramps")
    y, x = np.mgrid[:64, :64].astype(np.uint8) * 4
    for i in range(30):
        Image.fromarray(np.stack([x, y, x], axis=2)).save(root / f"{i:02}.png")
    paths = np.array([f"{i:02}.png" for i in range(30)], object)
    return Images(np.zeros(30, int), np.zeros(30, bool), paths=paths, root=root)


def areas(images: torch.Tensor) -> torch.Tensor:
    """Return the share of the area that each crop (B, 3, S, S) shows, from the span of its ramps."""
    values = images.float() / 252
    spans = values[:, :2].amax(dim=(2, 3)) - values[:, :2].amin(dim=(2, 3))
    return spans.prod(dim=1)


def cut(images: Images, smallest_area: float, key=(0, 1, 0), rows=None, num_workers=0) -> torch.Tensor:
    loader = ImageLoader(images, MODEL, num_workers, smallest_area=smallest_area)
    return torch.cat([one for (one,) in loader.views([np.arange(30)] if rows is None else rows, [key])])


def test_the_smallest_area(ramps):
    small, large = areas(cut(ramps, 0.08)), areas(cut(ramps, 0.6))
    assert small.min() < 0.3 and large.min() > 0.5
    assert len(small.unique()) > 10


def test_a_crop_is_torchvisions_own(ramps):
    assert torch.equal(torchvisions_crop(ramps, 7, (0, 1, 0)), cut(ramps, 0.08)[7])


def torchvisions_crop(images, row, key):
    with torch.random.fork_rng():
        torch.manual_seed(torch_stream(*key, "crop", row).initial_seed())
        image = v2.functional.pil_to_tensor(Image.open(images.root / images.paths[row]))
        return v2.RandomResizedCrop(16, antialias=True)(image)


def test_a_part_depends_on_seed_epoch_view_and_image_only(ramps):
    whole = cut(ramps, 0.2)
    assert torch.equal(whole, cut(ramps, 0.2, rows=[np.arange(4), np.arange(4, 30)]))
    for key in ((1, 1, 0), (0, 2, 0), (0, 1, 1)):
        assert not torch.equal(whole, cut(ramps, 0.2, key))


@pytest.mark.parametrize("stored", [False, True])
def test_training_cuts_once(ramps, stored):
    """The decoder crops images on disk, the augmentation crops stored pixels."""
    augment = Augmentation(crop_area=0.2)
    pixels = np.stack([np.asarray(Image.open(ramps.root / path)) for path in ramps.paths])
    images = Images(ramps.labels, ramps.is_test, pixels) if stored else ramps
    trainer = SimpleNamespace(
        settings=SimpleNamespace(seed=3),
        augment=augment,
        fabric=SimpleNamespace(device=torch.device("cpu")),
        train_rows=np.arange(30),
        images=images,
        loader=ImageLoader(images, MODEL, smallest_area=augment.smallest_area),
    )
    ((seen,),) = Trainer._batches(trainer, 5, [np.arange(30)], [1])
    if stored:
        whole = to_unit(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.device("cpu"))
        assert torch.equal(seen, augment(whole, augment.uniforms(30, 3, 5, 1)))
    else:
        assert torch.equal(seen, to_unit(cut(ramps, 0.2, (3, 5, 1)), torch.device("cpu")))


def test_passes_of_workers_are_equal_and_the_workers_are_kept(ramps):
    """Also for batches that a pass that was given up has loaded ahead."""
    parts, keys = [np.array([7, 3]), np.array([29]), *np.arange(20).reshape(10, 2)], [(0, 1, 0), (0, 1, 1)]
    ours, plain = ImageLoader(ramps, MODEL, 2, smallest_area=0.08), ImageLoader(ramps, MODEL, smallest_area=0.08)
    seen = view(MODEL)
    whole = [torch.stack([seen(ramps.open(row)) for row in part]) for part in parts]
    pids = set()
    for _ in range(2):
        next(ours.views(parts[::-1], keys))
        for loader in (ours, plain):
            assert all(torch.equal(*pair) for pair in zip(whole, loader.whole(parts), strict=True))
            for part, views in zip(parts, loader.views(parts, keys), strict=True):
                expected = [torch.stack([torchvisions_crop(ramps, row, key) for row in part]) for key in keys]
                assert torch.equal(torch.stack(expected), views)
        pids |= pids_of(ours)
    assert len(pids) == 2
    del ours
    assert not any(is_running(pid) for pid in pids)


def pids_of(loader):
    return {process.pid for process in loader.decoded._iterator._workers}


def is_running(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(") ")[2][0] != "Z"


def test_all_views_of_an_image_come_from_one_decoding(ramps, monkeypatch):
    opened, open_one = [], Images.open
    monkeypatch.setattr(Images, "open", lambda self, row: opened.append(row) or open_one(self, row))
    loader = ImageLoader(ramps, MODEL, smallest_area=0.3)
    ((first, second),) = loader.views([np.array([4, 9])], [(0, 0, 0), (0, 0, 1)])
    assert opened == [4, 9] and first.shape == second.shape == (2, 3, 16, 16) and not torch.equal(first, second)


def test_without_random_crops_all_views_are_equal(ramps):
    ((first, second),) = ImageLoader(ramps, MODEL).views([np.arange(3)], [(0, 0, 0), (0, 0, 1)])
    assert first is second


def test_random_crops_leave_the_global_generator_alone(ramps):
    before = torch.get_rng_state()
    cut(ramps, 0.3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_image_is_one_line(ramps, tmp_path, num_workers):
    (tmp_path / "ä\udcff.png").write_bytes(b"no image")  # a name that is no UTF-8
    names = np.array(["ä\udcff.png"], object)
    images = Images(np.zeros(1, int), np.zeros(1, bool), paths=names, root=tmp_path)
    with pytest.raises(CorruptImage) as error:
        list(ImageLoader(images, MODEL, num_workers).whole([np.arange(1)]))
    assert re.fullmatch(r"\S+\.png: corrupt image \(.+\)\. Replace or remove it", str(error.value))


def test_the_number_of_workers(monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: 12)
    many = workers.FEWEST_ITEMS
    assert [workers.n_workers(None, n) for n in (0, many - 1, many)] == [0, 0, 8]
    assert [workers.n_workers(None, many, n) for n in (2, 5, 12, 16)] == [6, 2, 0, 0]
    assert [workers.n_workers(3, n) for n in (0, 1)] == [0, 3]


def test_stored_pixels_need_no_workers(ramps):
    pixels = np.zeros((30, 16, 16, 3), np.uint8)
    loader = ImageLoader(Images(ramps.labels, ramps.is_test, pixels), MODEL, 2)
    assert not hasattr(loader, "decoded") and [len(one) for one in loader.whole([np.arange(5)])] == [5]


FEATURES = """
import os, signal, sys
from pathlib import Path
import numpy as np
from lowshot.core.cli import run
from lowshot.core.settings import PositiveInt
from lowshot.data.datasets.images import Images
from lowshot.representation.backbones import ModelConfig
from lowshot.representation.loading import ImageLoader
from dataclasses import dataclass

@dataclass
class Config:
    root: Path

def main(config):
    names = np.array(sorted(os.listdir(config.root)), object)
    images = Images(np.zeros(30, int), np.zeros(30, bool), paths=names, root=config.root)
    loader = ImageLoader(images, ModelConfig("Conv4", 10, 3, 16), 1)
    for i, _ in enumerate(loader.whole([np.arange(30)] * 10_000)):
        if i == 0:
            print(*[process.pid for process in loader.decoded._iterator._workers], flush=True)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    run(main, Config, "")
"""


def test_the_finished_batch_of_a_killed_worker(ramps, monkeypatch):
    loader = ImageLoader(ramps, MODEL, 1)
    batches = loader.whole([np.arange(2)] * 9)
    next(batches)
    while loader.decoded._iterator._worker_result_queue.empty():
        time.sleep(0.01)
    (worker,) = loader.decoded._iterator._workers
    monkeypatch.setattr(worker, "is_alive", lambda: True)  # its end takes a moment to be seen
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="worker exited unexpectedly"):
        list(batches)


@pytest.mark.parametrize(
    ("sent", "to_worker"), [(signal.SIGINT, False), (signal.SIGKILL, False), (signal.SIGKILL, True)]
)
def test_no_worker_survives_and_its_end_is_one_line(ramps, tmp_path, sent, to_worker):
    (tmp_path / "stage.py").write_text(FEATURES)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, tmp_path / "stage.py", "--root", ramps.root]
    with subprocess.Popen(command, **pipes, start_new_session=True) as stage:
        worker = int(stage.stdout.readline())
        if sent == signal.SIGINT:
            os.killpg(stage.pid, sent)  # a terminal sends Ctrl-C to all processes
        else:
            os.kill(worker if to_worker else stage.pid, sent)
        _, errors = stage.communicate(timeout=120)  # its end: no process holds the pipe any more
    if to_worker:
        assert re.fullmatch(r"stage\.py: error: .*worker.* exited unexpectedly.*\n", errors)
    elif sent == signal.SIGINT:
        assert re.fullmatch(r"stage\.py: stopped; .*\n", errors)
    assert not is_running(worker)
