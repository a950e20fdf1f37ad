"""Sheets of generated images: their sizes, the content of each row, and the report that shows them."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_refused, run_script
from PIL import Image

import train_gan
from lowshot.core.files import write_json
from lowshot.data.datasets.images import read_images
from lowshot.data.protocol import read_draws, read_split
from lowshot.gan.model import to_bytes
from lowshot.report import generated

PITCH = 16 + 2


@pytest.fixture(scope="module")
def gans(tmp_path_factory, data, extractor):
    folder = tmp_path_factory.mktemp("gan")
    some = {"data": data, "extractor": extractor, "batch_size": 8, "steps": 3, "accelerator": "cpu", "score_every": 1}
    gan = train_gan.pretrain(train_gan.PretrainConfig(**some, ngf=16, ndf=2, z_dim=4, out=folder / "pretrained"))
    tuned = train_gan.finetune(train_gan.FinetuneConfig(**some, gan=gan, k=3, out=folder / "tuned"))
    return {"pretrained": gan, "tuned": tuned}


@pytest.fixture(scope="module")
def trained(gans, data):
    images, split = read_images(data / "images.h5"), read_split(data / "split.json")
    return images, split, generated.read_gan(gans["tuned"], data, images, split)


def cell(sheet, row: int, column: int) -> np.ndarray:
    """Return an image of a sheet, (3, 16, 16)."""
    top, left = row * PITCH + 2, column * PITCH + 2
    return np.asarray(sheet)[top : top + 16, left : left + 16].transpose(2, 0, 1)


def test_a_row_of_samples_for_each_class(trained, gans, data, tmp_path):
    images, split, gan = trained
    generated.samples_sheet(tmp_path / "a.png", gan)
    sheet = Image.open(tmp_path / "a.png")
    assert sheet.size == (16 * PITCH + 2, len(split.novel_classes) * PITCH + 2)
    assert (np.asarray(sheet)[:2] == 255).all() and (np.asarray(sheet)[:, :2] == 255).all()
    base = generated.read_gan(gans["pretrained"], data, images, split)
    generated.samples_sheet(tmp_path / "b.png", base)
    assert Image.open(tmp_path / "b.png").size[1] == len(split.base_classes) * PITCH + 2


def test_from_one_class_to_the_other(trained, tmp_path, monkeypatch):
    """The name of a row is the share of the first class, which is at the bottom (spec 5)."""
    images, _, gan = trained
    plain, named = generated._named, []
    monkeypatch.setattr(
        generated, "_named", lambda sheet, names, size: named.extend(names) or plain(sheet, names, size)
    )
    generated.between_sheet(tmp_path / "a.png", gan, images)
    sheet = Image.open(tmp_path / "a.png")
    assert sheet.size == (290, 290)
    y1, y2 = (torch.from_numpy(images.labels[rows]) for rows in generated._pairs(gan, images))
    z = generated._noise(gan.gan, "between")
    assert (y1 != y2).all()
    for row, labels in ((0, y2), (15, y1)):
        with torch.inference_mode():
            expected = to_bytes(gan.gan.averaged.module(z, labels)).numpy()
        for column in range(4, 16):  # the first ones may be under the name
            assert np.abs(cell(sheet, row, column).astype(int) - expected[column]).max() <= 1
    assert len(named) == 16 and (named[0], named[15]) == ("0.00", "1.00")
    red, green, blue = np.moveaxis(np.asarray(sheet), 2, 0)
    blue = (blue == 255) & (red == green) & (red < 200)  # of a name on white
    assert all(blue[row * PITCH : (row + 1) * PITCH].any() for row in range(16))


def test_crossover_rows(trained, data, tmp_path):
    images, split, gan = trained
    generated.crossover_sheet(tmp_path / "a.png", gan, images)
    sheet = Image.open(tmp_path / "a.png")
    assert sheet.size == (290, 8 * PITCH + 2)
    draws = read_draws(data / "draws.json")[1]
    shots = images.rows(test=False)[np.concatenate([draws[c][:3] for c in split.novel_classes])]
    first, second = generated._pairs(gan, images)
    assert set(first) | set(second) <= set(shots) and len(set(first)) == 12
    for row, rows in ((0, first), (1, second)):
        assert (cell(sheet, row, 9) == images.pixels[rows[9]].transpose(2, 0, 1)).all()
    assert (cell(sheet, 2, 9) == 128).all()
    z2, y2 = generated._noise(gan.gan, "crossover, 2"), torch.from_numpy(images.labels[second])
    with torch.inference_mode():
        expected = to_bytes(gan.gan.averaged.module(z2, y2)).numpy()
    assert np.abs(cell(sheet, 7, 9).astype(int) - expected[9]).max() <= 1


def test_curves_of_a_gan_fine_tuned_with_no_steps(trained, tmp_path):
    """With one FID and no losses, there is nothing for a legend, and no warning."""
    told = replace(trained[2], log=[{"step": 0, "time": 0.0, "fid": 3.0, "fid_base": 2.0}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generated.training_curves(tmp_path / "a.svg", told)
    assert "FID, kept: 3 at step 0" in (tmp_path / "a.svg").read_text()


def test_the_report_shows_them(gans, data, tmp_path):
    split = read_split(data / "split.json")
    scores = {"class": None, "n_images": 9, "fid": 3.0, "kid": 0.1} | dict.fromkeys(
        ("precision", "recall", "density", "coverage", "class_accuracy"), 0.5
    )
    provenance = {"command": "x", "commit": None, "versions": {}, "device": "cpu", "wall_time_s": 1.0,
                  "peak_memory_bytes": 1}  # fmt: skip
    write_json(tmp_path / "one.json", {"method": "supervised", "dataset": "folder", "extractor": "conv4", "config": {},
               "protocol": {"setup": "both", "setting": "inductive", "split_digest": split.digest},
               "provenance": provenance, "scores": [scores], "gan": {"trial": 1}})  # fmt: skip
    some = ("--results", tmp_path, "--out", tmp_path / "report", "--gan", gans["tuned"])
    assert_refused(run_script("parse_results.py", *some), "--gan", "requires --data")
    result = run_script("parse_results.py", *some, "--data", data)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "report" / "report.html").read_text()
    for words in ("Generated images", "Between classes", "Crossover", "Scores of generated images"):
        assert words in page
    assert sorted(p.name for p in (tmp_path / "report" / "figures").iterdir()) == [
        "between.png", "crossover.png", "gan_training.svg", "generated.png", "samples.png"
    ]  # fmt: skip


def test_a_gan_without_results(gans, data, tmp_path):
    only = ("--out", tmp_path / "sheets", "--gan", gans["tuned"], "--data", data)
    result = run_script("parse_results.py", *only)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "sheets" / "report.html").read_text()
    assert "Generated images" in page and "Provenance" not in page and "<table>" not in page
    assert run_script("parse_results.py", *only).stdout.count("already exists") == 1
    assert_refused(run_script("parse_results.py", "--out", tmp_path / "none"), "--results", "pictures only")
