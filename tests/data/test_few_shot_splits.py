"""Published few-shot splits: class lists, rotations, the pool of images, and the supported file formats."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_refused, run_script, settings
from PIL import Image

import preprocessing
from lowshot.core.errors import InputError
from lowshot.core.files import read_json
from lowshot.data.datasets import few_shot, registry
from lowshot.data.datasets.content import Source
from lowshot.data.datasets.images import read_images
from lowshot.data.datasets.settings import DATASETS, CifarFewShot, MiniImageNet, OmniglotVinyals, TieredImageNet
from lowshot.data.features import read_features
from lowshot.data.lineage import Judged, judge, trained_on
from lowshot.data.protocol import read_split

REAL = Path(os.environ.get("LOWSHOT_DATA", "../shared/data"))
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"LOWSHOT_DATA: no folder {REAL}")


def image(path: Path, colour=(200, 30, 30), size=(12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def cifar_root(tmp_path):
    """The hundred class names of CIFAR-100, with two train images and one test image each; five per superclass."""
    names = sorted(c for part in read_json(few_shot._CIFAR_CLASSES)["fc100"].values() for c in part)
    (tmp_path / "meta").write_bytes(
        pickle.dumps({"fine_label_names": names, "coarse_label_names": [f"group{i}" for i in range(20)]})
    )
    for part, n in (("train", 200), ("test", 100)):
        fine = [i % 100 for i in range(n)]
        data = np.zeros((n, 3072), np.uint8)
        content = {b"data": data, b"fine_labels": fine, b"coarse_labels": [f // 5 for f in fine]}
        (tmp_path / part).write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path


@pytest.mark.parametrize(("name", "sizes"), [("cifar_fs", [64, 16, 20]), ("fc100", [60, 20, 20])])
def test_cifar_splits(cifar_root, name, sizes):
    content = few_shot.find_cifar(CifarFewShot(name=name), Source(cifar_root)).read()
    split = content.split
    assert [len(split.base_classes), len(split.novel_classes_1), len(split.novel_classes_2)] == sizes
    assert split.dataset == name
    lists = read_json(few_shot._CIFAR_CLASSES)[name]
    assert {split.class_names[c] for c in split.novel_classes_2} == set(lists["test"])
    assert not content.images.is_test.any() and len(content.images) == 300


def prepared(tmp_path, name, root, **options):
    """The split of a data set, by preprocessing.py."""
    dataset = {"name": name, **options}
    out = preprocessing.main(settings(preprocessing.Config, dataset=dataset, root=root, out=tmp_path / f"out_{name}"))
    return read_split(out / "split.json")


def judged_by(split):
    return Judged(split, "test", split.setup("test")[1])


def test_classes_of_cifar_100_are_known_under_all_its_names(cifar_root, tmp_path):
    few, whole = (
        prepared(tmp_path, "cifar_fs", cifar_root, max_shots=1),
        prepared(tmp_path, "cifar100", cifar_root, max_shots=1),
    )
    assert few.origins[0] == f"cifar100/{few.class_names[0]}" and sorted(few.origins) == sorted(whole.origins)
    with pytest.raises(InputError, match="has seen labelled images of class"):
        judge({"train.h5": trained_on(few, few.base_classes)}, judged_by(whole))
    novel = {few.origins[c] for c in few.setup("test")[1]}
    others = [c for c in range(100) if whole.origins[c] not in novel]
    assert judge({"train.h5": trained_on(whole, others)}, judged_by(few)).to_json() == {
        "setting": "inductive", "superclasses": False, "outside": []
    }  # fmt: skip


def test_cifar_with_other_classes(cifar_root):
    meta = pickle.loads((cifar_root / "meta").read_bytes())
    meta["fine_label_names"][0] = "unicorn"
    (cifar_root / "meta").write_bytes(pickle.dumps(meta))
    with pytest.raises(InputError, match="only one of CIFAR-100 and the published lists"):
        few_shot.find_cifar(CifarFewShot(name="fc100"), Source(cifar_root)).read()


@needs_real
def test_lists_are_those_of_the_literature():
    assert read_json(few_shot._CIFAR_CLASSES) == read_json(REAL / "cifar100_fewshot_splits.json")


@needs_real
def test_vinyals_rule_gives_the_published_list():
    published = read_json(REAL / "omniglot_vinyals_split.json")
    later = set(published["test"])
    after_gurmukhi = {name for name in published["train"] if name.split("/")[0] in _EVALUATION_ALPHABETS}
    evaluation = later | after_gurmukhi
    background = (set(published["train"]) | set(published["validation"])) - evaluation
    names = sorted(background) + sorted(evaluation)
    parts = few_shot.vinyals_parts(names, len(background))
    for part, wanted in zip(parts, (published["train"], published["validation"], published["test"])):
        assert {names[c] for c in part} == set(wanted)


# The evaluation alphabets of Lake et al. that have characters in the training part.
_EVALUATION_ALPHABETS = {"Angelic", "Atemayar_Qelisayer", "Atlantean", "Aurek-Besh", "Avesta", "Ge_ez", "Glagolitic",
                         "Gurmukhi"}  # fmt: skip


@pytest.fixture
def omniglot_root(tmp_path):
    """Three background characters (one from a validation alphabet) and three evaluation characters, ink at the top."""
    paper = np.full((28, 28), 255, np.uint8)
    paper[:5] = 0
    for part, alphabet, n in (("background", "Greek", 2), ("background", "Hebrew", 1), ("evaluation", "ULOG", 3)):
        for character in range(n):
            for drawing in range(2):
                path = tmp_path / f"images_{part}" / alphabet / f"character{character:02}" / f"{drawing}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(paper).save(path)
    return tmp_path


def test_omniglot_rotations_are_classes(omniglot_root, monkeypatch):
    monkeypatch.setattr(few_shot, "_VINYALS_TRAIN_OF_EVALUATION", 1)
    monkeypatch.setattr(few_shot, "_VINYALS_SIZES", [3, 1, 2])
    content = few_shot.find_omniglot(OmniglotVinyals(), Source(omniglot_root)).read()
    split, images = content.split, content.images
    assert split.n_classes == 24 and len(images) == 48
    assert [len(split.base_classes), len(split.novel_classes_1), len(split.novel_classes_2)] == [12, 4, 8]
    assert split.class_names[6:8] == ["Greek/character00 rot090", "Greek/character01 rot090"]
    assert split.superclass_names[split.superclass_of[6]] == "Greek rot090"
    assert split.origins[6:8] == ["omniglot/Greek/character00", "omniglot/Greek/character01"]
    edges = images.pixels[:, :5], images.pixels[:, :, :5], images.pixels[:, -5:], images.pixels[:, :, -5:]
    for quarter, edge in enumerate(edges):
        inked = (edge == 255).all(axis=(1, 2, 3))
        assert (inked == (images.labels // 6 == quarter)).all()


def test_omniglot_of_another_size(omniglot_root):
    with pytest.raises(InputError, match="6 characters, but the split needs all 1623"):
        few_shot.find_omniglot(OmniglotVinyals(), Source(omniglot_root)).read()


@pytest.mark.parametrize("name", ["mini_imagenet", "tiered_imagenet"])
def test_folders(tmp_path, name):
    for part, classes in (("train", "ab"), ("val", "c"), ("test", "de")):
        for c in classes:
            for i in range(3):
                image(tmp_path / part / c / f"{i}.jpg")
    content = registry.find(DATASETS.find(name)(), Source(tmp_path)).read()
    split = content.split
    assert split.class_names == list("abcde")
    assert (split.base_classes, split.novel_classes_1, split.novel_classes_2) == ([0, 1], [2], [3, 4])
    assert content.images.paths[0] == "train/a/0.jpg" and len(content.images) == 15
    (tmp_path / "test" / "a").mkdir()
    image(tmp_path / "test" / "a" / "0.jpg")
    with pytest.raises(InputError, match="class a is in more than one of train, val and test"):
        registry.find(DATASETS.find(name)(), Source(tmp_path)).read()


def test_mini_imagenet_csv(tmp_path):
    for part, classes in (("train", "ab"), ("val", "c"), ("test", "d")):
        lines = [f"{c}{i}.jpg,{c}" for c in classes for i in range(2)]
        (tmp_path / f"{part}.csv").write_text("\n".join(["filename,label", *lines]) + "\n")
        for line in lines:
            image(tmp_path / "images" / line.split(",")[0])
    content = few_shot.find_mini_imagenet(MiniImageNet(), Source(tmp_path)).read()
    assert content.split.class_names == list("abcd") and content.images.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    (tmp_path / "val.csv").write_text("filename,label\n../secret.jpg,c\n")
    with pytest.raises(InputError, match="line 2 is not 'filename,label'"):
        few_shot.find_mini_imagenet(MiniImageNet(), Source(tmp_path))
    (tmp_path / "val.csv").write_text("filename,label\nabsent.jpg,c\n")
    with pytest.raises(InputError, match=r"absent.jpg: no such image \(listed in val.csv\)"):
        few_shot.find_mini_imagenet(MiniImageNet(), Source(tmp_path))


def save_tiered(root: Path, **changes) -> None:
    for part, groups in (("train", [0, 0, 1]), ("val", [0]), ("test", [0, 0])):
        buffer = io.BytesIO()
        Image.new("RGB", (6, 6), (250, 20, 20)).save(buffer, "PNG")
        n = len(groups)
        labels = {
            "label_specific": np.arange(n), "label_general": np.array(groups),
            "label_specific_str": [f"{part} fine {c}" for c in range(n)],
            "label_general_str": [f"{part} coarse {g}" for g in range(max(groups) + 1)],
        }  # fmt: skip
        (root / f"{part}_labels.pkl").write_bytes(pickle.dumps(labels | changes, protocol=2))
        encoded = [np.frombuffer(buffer.getvalue(), np.uint8)] * n
        (root / f"{part}_images_png.pkl").write_bytes(pickle.dumps(encoded, protocol=2))


def test_tiered_imagenet_pickles(tmp_path):
    save_tiered(tmp_path)
    content = few_shot.find_tiered_imagenet(TieredImageNet(), Source(tmp_path)).read()
    assert content.images.pixels.shape == (6, 6, 6, 3)
    groups = [content.superclass_names[g] for g in content.superclass_of]
    assert groups == ["train coarse 0"] * 2 + ["train coarse 1", "val coarse 0"] + ["test coarse 0"] * 2
    assert content.split.novel_classes_2 == [4, 5]
    assert (content.images.pixels == (250, 20, 20)).all()
    encoded = tmp_path / "test_images_png.pkl"
    whole = encoded.read_bytes()
    encoded.write_bytes(pickle.dumps(pickle.loads(whole)[:1], protocol=2))
    with pytest.raises(InputError, match=r"test_images_png.pkl: 1 images, but 2 labels"):
        few_shot.find_tiered_imagenet(TieredImageNet(), Source(tmp_path)).read()
    buffer = io.BytesIO()
    Image.new("RGB", (3, 6)).save(buffer, "PNG")
    small = [np.frombuffer(buffer.getvalue(), np.uint8)]
    encoded.write_bytes(pickle.dumps(pickle.loads(whole)[:1] + small, protocol=2))
    with pytest.raises(InputError, match=r"test_images_png.pkl: image 1 has the shape \(6, 3, 3\), others have"):
        few_shot.find_tiered_imagenet(TieredImageNet(), Source(tmp_path)).read()
    save_tiered(tmp_path, label_general_str=None)
    with pytest.raises(InputError, match=r"train_labels.pkl: not a labels file of tieredImageNet"):
        few_shot.find_tiered_imagenet(TieredImageNet(), Source(tmp_path)).read()


def test_one_pool_gives_one_feature_file(tmp_path, cifar_root):
    from preprocessing import Config, main
    from save_features import Config as SaveConfig
    from save_features import main as save_features
    from train_extractor import Config as TrainConfig
    from train_extractor import main as train_extractor

    dataset = {"name": "cifar_fs", "max_shots": 3}
    data = main(settings(Config, dataset=dataset, root=cifar_root, out=tmp_path / "data"))
    options = {"model": {"name": "ResNet12", "width": 0.1, "drop_rate": 0.1}, "head": "cosine", "epochs": 1,
               "batch_size": 32, "accelerator": "cpu"}  # fmt: skip
    extractor = train_extractor(settings(TrainConfig, data=data, out=tmp_path / "extractor", **options))
    out = save_features(SaveConfig(extractor=extractor, data=data, out=tmp_path / "features", accelerator="cpu"))
    assert [path.name for path in out.iterdir()] == ["train.h5"]
    assert len(read_features(out / "train.h5", 100).labels) == 300


def test_preprocessing_and_training_with_validation_classes(tmp_path, cifar_root):
    out = tmp_path / "data"
    assert (
        run_script(
            "preprocessing.py", "--dataset", "fc100", "--root", cifar_root, "--out", out, "--dataset.max_shots", 3
        ).returncode
        == 0
    )
    split, images = read_split(out / "split.json"), read_images(out / "images.h5")
    assert len(images.rows(test=False)) == 300 and len(images.rows(test=True)) == 0

    from train_extractor import Config, choose_rows

    for both, n in ((False, 180), (True, 240)):
        config = Config(data=out, out=tmp_path / "x", validation_classes=both, batch_size=8)
        assert len(choose_rows(config, images, split)[0]) == n


def test_drop_rate_needs_resnet12(tmp_path, data):
    result = run_script(
        "train_extractor.py", "--data", data, "--out", tmp_path / "x", "--model", "Conv4", "--model.drop_rate", 0.1
    )
    assert_refused(result, "model.drop_rate: no setting of Conv4", "ResNet12")


def test_a_published_split_has_no_split_settings(tmp_path, cifar_root):
    result = run_script("preprocessing.py", "--dataset", "fc100", "--root", cifar_root, "--out", tmp_path / "x",
                        "--dataset.halves", "superclasses")  # fmt: skip
    assert_refused(result, "--dataset.halves: no setting of fc100", "n_trials, max_shots")


def test_sgm_needs_a_linear_head(tmp_path, data):
    result = run_script(
        "train_extractor.py", "--data", data, "--out", tmp_path / "x", "--head", "cosine", "--loss", "sgm"
    )
    assert_refused(result, "--loss sgm: needs --head linear")


def test_an_absent_accelerator(tmp_path, data):
    result = run_script("train_extractor.py", "--data", data, "--out", tmp_path / "x", "--accelerator", "zpu")
    assert_refused(result, "accelerator zpu")
