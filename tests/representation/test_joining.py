"""Joined extractors: features side by side, mean scores, every stage reads them; what does not fit is refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_refused, run_script

import join_extractors
import lowshot
from lowshot.core.errors import InputError
from lowshot.core.files import read_json, write_json
from lowshot.data.datasets.images import read_images
from lowshot.data.lineage import lineage_of
from lowshot.representation.backbones import Extractor, ModelConfig, load_extractor
from lowshot.representation.extractors import handed_on
from lowshot.representation.joining import join

CONFIG = ModelConfig("Conv4", 5, 3, 16, width=0.1)


def test_features_are_side_by_side_and_scores_are_means():
    models = [Extractor(replace(CONFIG, width=width)).eval() for width in (0.1, 0.2)]
    images = torch.rand(3, 3, 16, 16)
    scores, features = join(models)(images)
    ones = [model(images) for model in models]
    assert torch.allclose(features, torch.cat([one[1] for one in ones], dim=1))
    assert torch.allclose(scores, (ones[0][0] + ones[1][0]) / 2, atol=1e-6)


def test_without_linear_classifiers_there_is_none():
    joined = join([Extractor(CONFIG), Extractor(replace(CONFIG, head="cosine"))])
    assert joined.config.n_classes == 0 and joined.dim == 2 * Extractor(CONFIG).dim


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(CONFIG, image_size=32), "image_size: 32 and 16. Join extractors of the same classes and images"),
        (replace(CONFIG, n_classes=6), "n_classes: 6 and 5"),
        (replace(CONFIG, embedding=8), "Conv4 with a projection .*: cannot be joined"),
    ],
)
def test_what_does_not_fit_is_refused(other, message):
    with pytest.raises(InputError, match=message):
        join([Extractor(CONFIG), Extractor(other)])


def test_the_seed_may_choose_the_images_whose_brightness_is_known():
    joined = join([Extractor(replace(CONFIG, brightness=brightness)) for brightness in (0.4789, 0.4791)])
    assert joined.dim == 2 * Extractor(CONFIG).dim


def test_members_that_ended_early_are_recorded(tmp_path, extractor):
    early = shutil.copytree(extractor, tmp_path / "early")
    (early / "SHA256SUMS").unlink()
    content = read_json(early / "config.json")
    write_json(early / "config.json", content | {"config": content["config"] | {"ended_after": 2}})
    joined = join_extractors.main(join_extractors.Config(extractors=[extractor, early], out=tmp_path / "joined"))
    again = join_extractors.main(join_extractors.Config(extractors=[joined, extractor], out=tmp_path / "again"))
    assert handed_on(joined) == {"extractor_ended_after": [None, 2]}
    assert handed_on(again) == {"extractor_ended_after": [[None, 2], None]}
    assert handed_on(extractor) == {}


def test_another_split_is_refused(tmp_path, extractor):
    other = shutil.copytree(extractor, tmp_path / "other")
    (other / "SHA256SUMS").unlink()
    content = read_json(other / "config.json")
    write_json(other / "config.json", content | {"inputs": content["inputs"] | {"split": "another"}})
    config = join_extractors.Config(extractors=[extractor, other], out=tmp_path / "joined")
    with pytest.raises(InputError, match="other: trained on another split than"):
        join_extractors.main(config)
    joined = join_extractors.main(replace(config, extractors=[extractor, extractor]))
    with pytest.raises(InputError, match="other: trained on another split than"):
        join_extractors.main(replace(config, extractors=[joined, other], out=tmp_path / "more"))


def test_the_stage_writes_an_extractor(tmp_path, data, extractor):
    folder = join_extractors.main(join_extractors.Config(extractors=[extractor, extractor], out=tmp_path / "joined"))
    pixels = read_images(data / "images.h5").pixels[:7]
    one, two = (lowshot.embed(lowshot.open_extractor(path), pixels) for path in (extractor, folder))
    assert np.allclose(two, np.concatenate([one, one], axis=1), atol=1e-6)
    assert lineage_of(folder) == lineage_of(extractor)
    assert load_extractor(folder).classifier.weight.shape == (10, two.shape[1])
    again = run_script("join_extractors.py", "--extractors", folder, extractor, "--out", tmp_path / "more")
    assert again.returncode == 0 and "D = " in again.stdout, again.stderr  # joined ones can be joined
    assert_refused(run_script("join_extractors.py", "--extractors", extractor, "--out", tmp_path / "x"), "extractors")
