"""predict.py: from photos to a classifier to class names, a self-contained folder, errors."""

import csv
import importlib.util
import shutil

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import ROOT, assert_refused, run_script, settings
from PIL import Image
from safetensors.torch import save_file

import predict
from lowshot.classifiers.heads import Head
from lowshot.classifiers.methods import score_tasks
from lowshot.classifiers.settings import INDUCTIVE_METHODS, METHODS, FeatureTransform, is_transductive
from lowshot.classifiers.tasks import Tasks
from lowshot.core.cli import run_commands
from lowshot.core.errors import InputError
from lowshot.core.files import read_json, write_json
from lowshot.core.parts import parts_of
from lowshot.core.publishing import write_record
from lowshot.data.datasets.folder import find_images
from lowshot.data.datasets.images import open_image
from lowshot.data.features import read_features, write_features
from lowshot.data.protocol import read_split
from lowshot.photos.classifier import PhotoClassifier, load_classifier
from lowshot.photos.onnx import description_of
from lowshot.photos.typicality import Typicality
from lowshot.representation.backbones import Extractor, ModelConfig, load_extractor, save_extractor, timm_config
from lowshot.representation.extractors import embed
from lowshot.representation.loading import view
from predict import AddConfig, ClassifyConfig, EvaluateConfig, ExportConfig, FitConfig


@pytest.fixture(scope="module")
def photos(tmp_path_factory, image_folder):
    """Five photos of each class to learn from (`few`) and the rest (`new`)."""
    root = tmp_path_factory.mktemp("photos")
    for path in image_folder.rglob("*.png"):
        part = "few" if int(path.stem) < 5 else "new"
        (root / part / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / part / path.parent.name)
    return root


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, photos, extractor):
    out = tmp_path_factory.mktemp("classifier") / "classifier"
    return predict.fit(FitConfig(extractor=extractor, images=photos / "few", out=out))


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(*files):
    return torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])).permute(0, 3, 1, 2) / 255


def test_two_commands(tmp_path, photos, extractor):
    made = run_script(
        "predict.py", "fit", "--extractor", extractor, "--images", photos / "few", "--out", tmp_path / "c"
    )
    assert made.returncode == 0 and "10 classes from 50 images" in made.stdout, made.stderr
    shutil.move(tmp_path / "c", tmp_path / "moved")
    named = run_script("predict.py", "classify", "--classifier", tmp_path / "moved", "--images", photos / "new",
                       "--out", tmp_path / "p.csv", "--top_k", 10)  # fmt: skip
    assert named.returncode == 0, named.stderr
    rows = table(tmp_path / "p.csv")
    assert len(rows) == 90 * 10 and list(rows[0]) == ["image", "rank", "class", "score", "typicality"]
    best = [row for row in rows if row["rank"] == "1"]
    assert [row["image"] for row in best] == sorted(f"class{c}/{i}.png" for c in range(10) for i in range(5, 14))
    assert np.mean([row["image"].split("/")[0] == row["class"] for row in best]) > 0.5
    scores = np.array([float(row["score"]) for row in rows]).reshape(90, 10)
    assert np.allclose(scores.sum(1), 1, atol=1e-4) and (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("method", ["nearest_mean", "logistic_regression", "cosine"])
def test_a_saved_classifier_is_the_method_itself(tmp_path, photos, extractor, method):
    config = settings(FitConfig, extractor=extractor, images=photos / "few", out=tmp_path / "c", method=method)
    saved = load_classifier(predict.fit(config))
    few = sorted((photos / "few").rglob("*.png"))
    feats = load_extractor(extractor).features(pixels(*few)).detach()
    queries = load_extractor(extractor).features(pixels(*sorted((photos / "new" / "class3").iterdir()))).detach()
    labels = torch.tensor([int(path.parent.name[-1]) for path in few])
    tasks = Tasks(F.normalize(feats)[None], labels[None], F.normalize(queries)[None], 10)
    expected = (score_tasks(METHODS.classes[method](), tasks, 0)[0].double() / saved.temperature).softmax(-1)
    assert torch.equal(saved.support.labels, labels)
    assert torch.allclose(saved.support.features, tasks.support_features[0])
    assert torch.allclose(torch.from_numpy(saved.predict_proba(queries.numpy())), expected, atol=1e-5)


def test_the_offered_methods_are_those_that_classify_an_image_alone():
    offered = parts_of(FitConfig)["method"].what
    assert offered is INDUCTIVE_METHODS and offered.method == METHODS.method
    assert offered.classes == {name: one for name, one in METHODS.classes.items() if not is_transductive(one)}


def test_the_centre_of_the_base_classes_is_kept(tmp_path, photos, extractor, features, data):
    options = {"transform": FeatureTransform(centre=True, normalise=True), "base_features": features / "train.h5"}
    options["split"] = data / "split.json"
    saved = load_classifier(
        predict.fit(FitConfig(extractor=extractor, images=photos / "few", out=tmp_path / "c", **options))
    )
    base, split = read_features(features / "train.h5"), read_split(data / "split.json")
    mean = torch.from_numpy(base.feats[[label in split.base_classes for label in base.labels]].mean(0))
    assert not torch.allclose(mean, torch.from_numpy(base.feats.mean(0)), atol=1e-3)
    raw = load_extractor(extractor).features(pixels(photos / "few" / "class0" / "0.png")).detach()
    assert torch.allclose(saved.base_mean, mean, atol=1e-6)
    assert torch.allclose(saved.support.features[0], F.normalize(raw - mean)[0], atol=1e-5)


def test_classes_may_have_different_numbers_of_photos(tmp_path, photos, extractor):
    shutil.copytree(photos / "few", tmp_path / "few")
    for name in ("0", "1", "2", "3"):
        (tmp_path / "few" / "class7" / f"{name}.png").unlink()
    saved = load_classifier(predict.fit(FitConfig(extractor=extractor, images=tmp_path / "few", out=tmp_path / "c")))
    assert saved.support.labels.bincount().tolist() == [5, 5, 5, 5, 5, 5, 5, 1, 5, 5]


def test_photos_become_what_a_grey_extractor_learned_from(tmp_path):
    model = Extractor(ModelConfig("Conv4", 3, 1, 28, width=0.25, crop_pct=1.0)).eval()
    grey = np.random.default_rng(0).integers(0, 256, (2, 28, 28), np.uint8)
    for i, image in enumerate(grey):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    Image.fromarray(grey[0]).resize((280, 140)).convert("RGB").save(tmp_path / "wide.png")
    files = [tmp_path / f"{name}.png" for name in ("0", "1", "wide")]
    plain, negative = (torch.from_numpy(embed(model, files, invert=invert, batch_size=2)) for invert in (False, True))
    stored = torch.from_numpy(grey[:, None]) / 255
    assert torch.allclose(plain[:2], model.features(stored), atol=1e-6) and plain.shape == (3, model.dim)
    assert torch.allclose(negative[:2], model.features(1 - stored), atol=1e-6)


def test_a_timm_classifier_needs_nothing_but_its_folder(tmp_path, photos):
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=4).state_dict(), tmp_path / "w.safetensors")
    for c in range(10):
        (tmp_path / "one" / f"class{c}").mkdir(parents=True)
        shutil.copy(photos / "few" / f"class{c}" / "0.png", tmp_path / "one" / f"class{c}")
    timm_model = {"name": "test_resnet", "weights": tmp_path / "w.safetensors", "image_size": 48}
    options = {"timm": timm_model, "method": "nearest_mean"}
    made = predict.fit(settings(FitConfig, images=tmp_path / "one", out=tmp_path / "c", **options))
    (tmp_path / "w.safetensors").unlink()
    out = predict.classify(ClassifyConfig(classifier=made, images=tmp_path / "one", out=tmp_path / "p.json"))
    best = [row["classes"][0]["class"] for row in read_json(out)["predictions"]]
    assert best == [f"class{c}" for c in range(10)]
    assert read_json(made / "extractor" / "config.json")["model"]["image_size"] == 48


def test_documents_say_what_made_them(tmp_path, photos, classifier, capsys):
    """The batch size changes nothing, a second run is skipped, and different images are an error."""
    one = ClassifyConfig(classifier=classifier, images=photos / "new" / "class1", out=tmp_path / "one.json", top_k=3)
    document = read_json(predict.classify(one))
    assert [row["image"] for row in document["predictions"]] == sorted(f"{i}.png" for i in range(5, 14))
    assert all(len(row["classes"]) == 3 for row in document["predictions"])
    predict.classify(one)
    assert "already exists, made from the same" in capsys.readouterr().out
    one.out, one.batch_size = tmp_path / "two.json", 2
    for a, b in zip(document["predictions"], read_json(predict.classify(one))["predictions"]):
        assert [c["class"] for c in a["classes"]] == [c["class"] for c in b["classes"]]
        assert [c["score"] for c in a["classes"]] == pytest.approx([c["score"] for c in b["classes"]], abs=1e-5)
    one.images = [photos / "new" / "class1" / "5.png", photos / "new" / "class2" / "5.png"]
    with pytest.raises(
        InputError,
        match=r"two\.json: exists, but was made differently \(input content of files",
    ):
        predict.classify(one)
    one.overwrite = True
    assert [row["image"] for row in read_json(predict.classify(one))["predictions"]] == list(map(str, one.images))


def test_a_document_in_the_place_of_a_record_is_not_replaced(tmp_path, photos, classifier):
    image = photos / "new" / "class1" / "5.png"
    config = ClassifyConfig(classifier=classifier, images=image, out=tmp_path / "p.csv.json", top_k=1)
    before = predict.classify(config).read_bytes()
    config.out = tmp_path / "p.csv"
    for config.overwrite in (False, True):
        with pytest.raises(InputError, match=r"p\.csv\.json: exists, and is not the record of p\.csv"):
            predict.classify(config)
    assert (tmp_path / "p.csv.json").read_bytes() == before


def test_the_same_photos_under_other_names(tmp_path, photos, classifier):
    config = ClassifyConfig(classifier=classifier, images=photos / "new" / "class1", out=tmp_path / "p.csv", top_k=1)
    predict.classify(config)
    config.images = sorted((photos / "new" / "class1").iterdir())
    with pytest.raises(InputError, match="input content of files has changed"):
        predict.classify(config)


def test_a_table_is_not_replaced_unasked(tmp_path, photos, classifier, capsys):
    image = photos / "new" / "class1" / "5.png"
    config = ClassifyConfig(classifier=classifier, images=image, out=tmp_path / "p.csv", top_k=1)
    assert table(predict.classify(config))[0]["image"] == str(image)
    predict.classify(config)
    assert "already exists, made from the same" in capsys.readouterr().out
    config.top_k = 2
    with pytest.raises(
        InputError, match=r"p\.csv\.json: exists, but was made differently \(setting top_k was 1, now 2\)"
    ):
        predict.classify(config)
    config.overwrite = True
    assert len(table(predict.classify(config))) == 2
    config.overwrite = False
    record = tmp_path / "p.csv.json"
    record.rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"p\.csv: exists, and lowshot did not write it"):
        predict.classify(config)
    (tmp_path / "kept").rename(record)
    config.out.write_text("mine")
    config.overwrite = True
    with pytest.raises(InputError, match=r"p\.csv: exists, and lowshot did not write it"):
        predict.classify(config)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_between_record_and_table(tmp_path, photos, classifier, monkeypatch, overwrite):
    """The next run writes the table, whichever of the two the killed one has left."""
    image, out = photos / "new" / "class1" / "5.png", tmp_path / "p.csv"
    config = ClassifyConfig(classifier=classifier, images=image, out=out, top_k=1)
    if overwrite:
        predict.classify(config)
        config.top_k, config.overwrite = 2, True
    monkeypatch.setattr(predict, "write_record", lambda *words: (write_record(*words), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        predict.classify(config)
    monkeypatch.undo()
    config.overwrite = False
    assert (tmp_path / "p.csv.json").exists() and out.exists() == overwrite
    assert len(table(predict.classify(config))) == config.top_k


def test_files_and_folders_in_a_list(tmp_path, photos, classifier, capsys):
    shutil.copytree(photos / "new" / "class1", tmp_path / "more")
    (tmp_path / "more" / "phone.heic").touch()
    images = [photos / "new" / "class2" / "5.png", tmp_path / "more"]
    config = ClassifyConfig(classifier=classifier, images=images, out=tmp_path / "p.csv", top_k=1)
    expected = [str(images[0]), *(str(path) for path in find_images(tmp_path / "more"))]
    assert [row["image"] for row in table(predict.classify(config))] == expected and len(expected) == 10
    assert f"1 files in {tmp_path / 'more'} are ignored" in capsys.readouterr().out


def test_pictures_are_seen_as_a_viewer_shows_them(tmp_path):
    def opened(image, name="x.png", **options):
        image.save(tmp_path / name, **options)
        return np.asarray(open_image(tmp_path / name))[..., 0].tolist()

    turned = Image.Exif()
    turned[0x0112] = 6  # display rotated clockwise by 90 degrees
    assert opened(Image.fromarray(np.array([[10, 200]], np.uint8)), exif=turned) == [[10], [200]]
    assert opened(Image.fromarray(np.array([[0, 257, 65535]], np.uint16))) == [[0, 1, 255]]
    assert opened(Image.fromarray(np.array([[0, 257, 65535]], np.int32)), "x.tif") == [[0, 1, 255]]
    assert opened(Image.fromarray(np.array([[-1, 0.2, 1]], np.float32)), "x.tif") == [[0, 51, 255]]
    assert opened(Image.fromarray(np.array([[0, 100, 200]], np.float32)), "x.tif") == [[0, 128, 255]]
    see_through = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [7, 8, 9, 255]]], np.uint8)
    assert opened(Image.fromarray(see_through)) == [[255, 0, 7]]
    assert opened(Image.fromarray(np.array([[False, True]]))) == [[0, 255]]


def test_images_are_found_at_any_depth_and_hidden_ones_are_not(tmp_path):
    for name in ("b.png", "a/deep/c.JPG", ".hidden/d.png", "a/.e.png", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == ["a/deep/c.JPG", "b.png"]


def test_photos_that_cannot_make_a_classifier(tmp_path, photos, extractor, features):
    root = tmp_path / "few"
    config = FitConfig(extractor=extractor, images=root, out=tmp_path / "c")

    def refused(message):
        with pytest.raises(InputError, match=message):
            predict.fit(config)
        assert not list(tmp_path.glob("c*"))

    refused("few: no such folder")
    root.mkdir()
    refused("few: contains no class folders")
    shutil.copytree(photos / "few" / "class0", root / "class0")
    refused(r"few: contains only one class \(class0\)")
    (root / "class1").mkdir()
    refused("few: no images in class1")
    (root / "class1" / "x.jpg").write_bytes(b"no image")
    refused(r"class1/x\.jpg: corrupt image")
    (root / "class1" / "x.jpg").unlink()
    shutil.copy(photos / "few" / "class1" / "0.png", root / "class1")
    config.base_features = features / "train.h5"
    refused("Use --transform.centre, --base_features and --split together")
    config.transform = FeatureTransform(centre=True)
    refused("Use --transform.centre, --base_features and --split together")
    config.transform, config.base_features = FeatureTransform(), None
    config.method = METHODS.classes["pt_map"]()
    refused("method: is transductive")


@pytest.mark.parametrize(("side", "message"), [(32, "16 dimensions, but the extractor makes 64"), (16, "by another")])
def test_base_features_of_another_extractor(tmp_path, photos, features, data, side, message):
    save_extractor(tmp_path, Extractor(ModelConfig("Conv4", 3, 3, side, width=0.25)), {})
    options = {"transform": FeatureTransform(centre=True), "split": data / "split.json"}
    options["base_features"] = features / "train.h5"
    with pytest.raises(InputError, match=rf"train\.h5: .*{message}"):
        predict.fit(FitConfig(extractor=tmp_path, images=photos / "few", out=tmp_path / "c", **options))


def test_base_features_without_a_base_class(tmp_path, photos, extractor, features, data):
    novel = read_features(features / "train.h5")
    rows = np.isin(novel.labels, read_split(data / "split.json").novel_classes)
    write_features(tmp_path / "novel.h5", novel.feats[rows], novel.labels[rows], {"inputs": {}})
    options = {"transform": FeatureTransform(centre=True), "split": data / "split.json"}
    options["base_features"] = tmp_path / "novel.h5"
    with pytest.raises(InputError, match=r"novel\.h5: contains no image of a base class"):
        predict.fit(FitConfig(extractor=extractor, images=photos / "few", out=tmp_path / "c", **options))


def test_extractors_older_than_crop_pct_are_seen_whole_if_they_learned_stored_pixels(tmp_path):
    save_extractor(tmp_path, Extractor(ModelConfig("Conv4", 3, 3, 32, width=0.25)), {"config": {"image_size": 224}})
    content = read_json(tmp_path / "config.json")
    del content["model"]["crop_pct"]
    for recipe, crop_pct in (({"image_size": 224}, 1.0), ({"image_size": 32}, 0.875), ({}, 0.875)):
        write_json(tmp_path / "config.json", {**content, "config": recipe})
        assert load_extractor(tmp_path).config.crop_pct == crop_pct


def test_images_that_cannot_be_classified(tmp_path, classifier):
    config = ClassifyConfig(classifier=classifier, images=tmp_path / "new", out=tmp_path / "p.csv")
    for make, message in (
        (lambda: None, "new: no such file or folder"),
        ((tmp_path / "new").mkdir, "new: contains no images"),
        (lambda: (tmp_path / "new" / "x.png").write_bytes(b"no image"), r"x\.png: corrupt image"),
        (lambda: setattr(config, "out", tmp_path / "p.txt"), r"p\.txt: predictions must be a \.csv or \.json file"),
    ):
        make()
        with pytest.raises(InputError, match=message):
            predict.classify(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


def test_broken_classifiers_are_named(tmp_path, photos, classifier):
    config = ClassifyConfig(classifier=tmp_path / "c", images=photos / "new", out=tmp_path / "p.csv")

    def refused(message):
        with pytest.raises(InputError, match=message):
            predict.classify(config)
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        shutil.copytree(classifier, tmp_path / "c")
        for sums in list((tmp_path / "c").rglob("SHA256SUMS")):  # a classifier that was written by hand
            sums.unlink()

    refused(r"c: no such folder")
    content = read_json(tmp_path / "c" / "config.json")
    write_json(tmp_path / "c" / "config.json", {**content, "schema": "lowshot-extractor-1"})
    refused("schema lowshot-classifier-1")
    write_json(tmp_path / "c" / "config.json", {**content, "method": "oracle"})
    refused(r"c/config\.json: no inductive method is called 'oracle'")
    for wrong in (
        {"class_names": {"a": 1}}, {"class_names": None}, {"class_names": [["a"]]}, {"options": {"C": "x"}},
        {"options": {"C": -1}}, {"options": 1}, {"options": {"c": 1}}, {"options": {"name": "cosine"}},
        {"transform": {"power": -1}}, {"invert": "perhaps"},
    ):  # fmt: skip
        write_json(tmp_path / "c" / "config.json", {**content, **wrong})
        refused(r"c/config\.json: ")
    write_json(tmp_path / "c" / "config.json", [content])
    refused(r"c/config\.json: not a classifier \(schema lowshot-classifier-1\)")
    described = read_json(tmp_path / "c" / "extractor" / "config.json")
    for wrong in ({"crop_pct": 0}, {"image_size": -3}, {"image_size": "x"}, {"name": 1}, {"width": None}, {"new": 1}):
        model = {**described["model"], **wrong}
        write_json(tmp_path / "c" / "extractor" / "config.json", {**described, "model": model})
        refused(r"c/extractor(/config\.json)?: ")
    tensors = torch.load(tmp_path / "c" / "model.pt", weights_only=True)
    for wrong in (
        {"support_labels": 3}, {"support_labels": torch.tensor(3)}, {"support_features": torch.zeros(50)},
        {"support_labels": tensors["support_labels"].float()}, {"support_features": tensors["support_features"] / 0},
    ):  # fmt: skip
        torch.save({**tensors, **wrong}, tmp_path / "c" / "model.pt")
        refused(r"c/model\.pt: ")
    torch.save(tensors["support_labels"], tmp_path / "c" / "model.pt")
    refused(r"c/model\.pt: not a state dict")
    write_json(tmp_path / "c" / "config.json", {**content, "class_names": ["one", "two"]})
    refused(r"c/model\.pt: does not match config\.json")
    write_json(tmp_path / "c" / "config.json", {**content, "transform": {**content["transform"], "centre": True}})
    refused(r"c/model\.pt: must contain exactly base_mean, ")
    (tmp_path / "c" / "model.pt").write_bytes(b"PK broken")
    refused(r"c/model\.pt: not a readable state dict")
    (tmp_path / "c" / "extractor" / "model.pt").unlink()
    refused(r"c/extractor/model\.pt: no such file")


def test_an_unknown_method_is_refused_with_the_names(photos, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["predict.py", "fit", "--timm", "x", "--images", ".", "--out", "c", "--method", "pt_map"]
    )
    with pytest.raises(SystemExit, match="2"):
        run_commands(predict.COMMANDS, predict.__doc__)
    error = capsys.readouterr().err
    assert all(word in error for word in ("method", "nearest_mean", "logistic_regression", "cosine", "pt_map"))


# --- how good is it? ---


def test_fit_says_how_good_the_classifier_is(tmp_path, photos, extractor):
    root = shutil.copytree(photos / "few", tmp_path / "few")
    for name in ("2", "3", "4"):
        (root / "class7" / f"{name}.png").unlink()
    made = run_script("predict.py", "fit", "--extractor", extractor, "--images", root, "--out", tmp_path / "c")
    assert made.returncode == 0, made.stderr
    for said in (
        "10 classes, 2 (class7) to 5 photos each (class0)", "unequal classes count alike", "class7 2)",
        "chosen by cross-validation (accuracy: ", "of 47 right (95 % interval ", "chance 10.0%", " of 2",
    ):  # fmt: skip
        assert said in made.stdout
    content = read_json(tmp_path / "c" / "config.json")
    assert content["held_out"]["n_images"] == 47 and len(content["candidates"]) == 5 and len(content["photos"]) == 47


@pytest.fixture(scope="module")
def others(tmp_path_factory, photos):
    """The photos to judge on, and noise, which is none of the classes."""
    root = shutil.copytree(photos / "new", tmp_path_factory.mktemp("others") / "new")
    (root / "noise").mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)):
        Image.fromarray(image).save(root / "noise" / f"{i}.png")
    return root


def test_a_classifier_is_judged_on_labelled_photos(tmp_path, others, classifier, capsys):
    config = EvaluateConfig(classifier=classifier, images=others, out=tmp_path / "e", false_alarms=0.1)
    out = predict.evaluate(config)
    metrics, rows = read_json(out / "metrics.json"), table(out / "predictions.csv")
    known = [row for row in rows if row["class"] != "noise"]
    right = [row["class"] == row["predicted"] for row in known]
    assert len(rows) == 96 and metrics["n_images"] == 90 and metrics["accuracy"] == pytest.approx(np.mean(right))
    confusion = table(out / "confusion.csv")
    assert sum(int(row[f"class{c}"]) for c, row in enumerate(confusion)) == sum(right)
    flagged = [float(row["typicality"]) <= 0.1 for row in rows if row["class"] == "noise"]
    assert metrics["none_of_these"]["found"] == pytest.approx(np.mean(flagged))
    assert metrics["none_of_these"]["n_others"] == 6
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") == min(18, right.count(False)) + flagged.count(False) and "<script" not in page
    said = capsys.readouterr().out
    assert "of 90 right (95 % interval" in said and "of 6 of other classes" in said
    predict.evaluate(config)
    assert "already exists" in capsys.readouterr().out


def test_photos_that_a_classifier_cannot_be_judged_on(tmp_path, photos, classifier, capsys):
    shutil.copytree(photos / "new" / "class1", tmp_path / "new" / "daisy")
    config = EvaluateConfig(classifier=classifier, images=tmp_path / "new", out=tmp_path / "e")
    with pytest.raises(InputError, match=r"new: no folder is called like a class of .*classifier \(class0, "):
        predict.evaluate(config)
    config.images = photos / "few"
    predict.evaluate(config)
    assert "the classifier has learned from 50 of these photos" in capsys.readouterr().out


def test_images_of_no_class_are_called_so(tmp_path, others, classifier):
    images = others / "noise"
    config = ClassifyConfig(classifier=classifier, images=images, out=tmp_path / "p.csv", top_k=2, false_alarms=0.1)
    rows = table(predict.classify(config))
    for first, second in zip(rows[::2], rows[1::2]):
        if float(first["typicality"]) <= 0.1:
            assert first["class"] == "none of these" and second["class"].startswith("class")
            assert float(first["score"]) == pytest.approx(1 - float(first["typicality"]), abs=1e-5)
        else:
            assert first["class"].startswith("class")
    assert {"none of these"} & {row["class"] for row in rows}
    config.out, config.false_alarms = tmp_path / "q.csv", 0.001
    with pytest.raises(InputError, match=r"--false_alarms 0\.001: the classifier has 50 photos"):
        predict.classify(config)


def test_photos_and_classes_join(tmp_path, photos, extractor, classifier, capsys):
    """What is added equals what is fitted at once; photos that are known are left out."""
    some, more = tmp_path / "some", tmp_path / "more"
    for c in range(10):
        for part, name in ((some, "0"), (some, "1"), (more, "1"), (more, "2"), (more, "3"), (more, "4")):
            if c < 8 or part == more:
                (part / f"class{c}").mkdir(parents=True, exist_ok=True)
                shutil.copy(photos / "few" / f"class{c}" / f"{name}.png", part / f"class{c}")
    for c in (8, 9):
        shutil.copy(photos / "few" / f"class{c}" / "0.png", more / f"class{c}")
    first = predict.fit(FitConfig(extractor=extractor, images=some, out=tmp_path / "first"))
    joined = predict.add(AddConfig(classifier=first, images=more, out=tmp_path / "joined"))
    said = capsys.readouterr().out
    assert "8 photos are known already" in said and "adding 34 photos; 2 of 10 classes are new" in said
    at_once, added = load_classifier(classifier), load_classifier(joined)
    assert added.class_names == at_once.class_names and added.support.is_chosen
    assert sorted(added.support.photos) == sorted(at_once.support.photos)
    queries = embed(at_once.extractor, sorted((photos / "new" / "class3").iterdir()))
    assert np.allclose(at_once.typicality_of(queries), added.typicality_of(queries))
    assert (at_once.predict_proba(queries).argmax(1) == added.predict_proba(queries).argmax(1)).all()
    with pytest.raises(InputError, match="the classifier knows all of these photos"):
        predict.add(AddConfig(classifier=joined, images=more, out=tmp_path / "again"))


def test_known_photos_in_a_new_class(tmp_path, photos, extractor, classifier, capsys):
    """A photo keeps its class, and a class without photos of its own does not join."""
    more = tmp_path / "more"
    (more / "renamed").mkdir(parents=True)
    shutil.copy(photos / "few" / "class0" / "0.png", more / "renamed")
    shutil.copytree(photos / "new" / "class1", more / "class1")
    joined = load_classifier(predict.add(AddConfig(classifier=classifier, images=more, out=tmp_path / "joined")))
    assert "known as photos of other classes, which they stay: " in (said := capsys.readouterr().out)
    assert "0.png (class0)" in said and joined.class_names == [f"class{c}" for c in range(10)]


def test_corrupt_photos_are_left_out_if_asked(tmp_path, photos, extractor, capsys):
    few = shutil.copytree(photos / "few", tmp_path / "few")
    (few / "class1" / "x.jpg").write_bytes(b"no image")
    config = FitConfig(extractor=extractor, images=few, out=tmp_path / "c", skip_corrupt=True)
    made = predict.fit(config)
    assert len(load_classifier(made).support.labels) == 50
    one = ClassifyConfig(classifier=made, images=few / "class1", out=tmp_path / "p.csv", top_k=1, skip_corrupt=True)
    assert len(table(predict.classify(one))) == 5
    assert capsys.readouterr().out.count("1 corrupt images are left out: ") == 2


def test_copies_of_a_photo(tmp_path, photos, extractor, capsys):
    root = shutil.copytree(photos / "few", tmp_path / "few")
    shutil.copy(root / "class0" / "0.png", root / "class0" / "copy.png")
    shutil.copy(root / "class0" / "0.png", root / "class1" / "copy.png")
    made = predict.fit(FitConfig(extractor=extractor, images=root, out=tmp_path / "c"))
    said = capsys.readouterr().out
    assert "1 photos are copies of others of their class" in said and "the same photo is in several classes" in said
    assert len(load_classifier(made).support.labels) == 51


def test_the_training_part_is_learned_and_the_test_part_judged(tmp_path, photos, extractor):
    for part, source in (("train", "few"), ("test", "new")):
        shutil.copytree(photos / source, tmp_path / "photos" / part)
    made = predict.fit(FitConfig(extractor=extractor, images=tmp_path / "photos", out=tmp_path / "c"))
    assert len(load_classifier(made).support.labels) == 50
    out = predict.evaluate(EvaluateConfig(classifier=made, images=tmp_path / "photos", out=tmp_path / "e"))
    assert read_json(out / "metrics.json")["n_images"] == 90


@pytest.mark.parametrize("transform", [{}, {"power": 0.5, "normalise": True}])
def test_an_exported_classifier_gives_the_same_answers(tmp_path, photos, extractor, transform):
    pytest.importorskip("onnxruntime")
    options = {"transform": transform, "method": "cosine"} if transform else {}
    made = predict.fit(settings(FitConfig, extractor=extractor, images=photos / "few", out=tmp_path / "c", **options))
    out = predict.export(ExportConfig(classifier=made, images=photos / "new", out=tmp_path / "onnx"))
    described = read_json(out / "config.json")
    assert described["checked"]["n_images"] == described["checked"]["n_same_class"] == 90
    wide = np.random.default_rng(0).integers(0, 256, (300, 401, 4), np.uint8)
    Image.fromarray(wide).resize((40, 30)).resize((401, 300)).save(tmp_path / "wide.png")
    images = [*sorted((photos / "new" / "class3").iterdir()), tmp_path / "wide.png"]
    told = run_script("examples/classify_onnx.py", out, *images)
    assert told.returncode == 0, told.stderr
    saved = load_classifier(made)
    expected = saved.predict_proba(embed(saved.extractor, images))
    for line, image, row in zip(told.stdout.splitlines(), images, expected):
        path, name, probability, typicality = line.split("\t")
        assert 0 < float(typicality) <= 1
        assert path == str(image) and name == saved.class_names[row.argmax()]
        assert float(probability) == pytest.approx(float(row.max()), abs=2e-4)


@pytest.mark.parametrize("size", [(401, 300), (300, 431), (224, 224)])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_program_without_torch_makes_the_same_pixels(tmp_path, name, size):
    model = Extractor(timm_config(f"timm:{name}", 0)).eval()
    head = Head([(torch.zeros(2, model.dim), torch.zeros(2))])
    typicality = Typicality(torch.zeros(2, model.dim), torch.zeros(0))
    form = description_of(PhotoClassifier(model, ["a", "b"], head, typicality, FeatureTransform()))
    picture = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    spec = importlib.util.spec_from_file_location("classify_onnx", ROOT / "examples" / "classify_onnx.py")
    example = importlib.util.module_from_spec(spec)
    pytest.importorskip("onnxruntime")
    spec.loader.exec_module(example)
    expected = view(model.config)(open_image(tmp_path / "p.png"))
    assert np.array_equal(example.pixels(tmp_path / "p.png", form), expected.numpy())


def test_without_a_network_the_default_extractor_is_explained(tmp_path, photos, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"vit_small_patch14_dinov2.lvd142m: its weights .* Use --timm.weights FILE"):
        predict.fit(FitConfig(images=photos / "few", out=tmp_path / "c"))


# --- a method of the user's own ---

FARTHEST = '''
from dataclasses import dataclass

import torch


@dataclass
class Farthest:
    """The class of the farthest photo, or of the closest one."""

    sign: float = 1.0
    transductive = {transductive}

    def score(self, tasks, seed):
        distances = torch.cdist(tasks.query_features, tasks.support_features)
        own = tasks.support_labels[:, None, None] == torch.arange(tasks.n_way)[:, None]
        return (self.sign * distances[:, :, None]).masked_fill(~own, -1e9).amax(-1)
'''


@pytest.fixture
def own(tmp_path):
    """A folder with the user's file. Commands name the file without its folder."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "my_method.py").write_text(FARTHEST.format(transductive=False))
    return folder


def fit_own(folder, photos, extractor, *more):
    return run_script("predict.py", "fit", "--extractor", extractor, "--images", photos / "few", "--out", folder / "c",
                      "--method", "my_method.py:Farthest", *more, folder=folder)  # fmt: skip


def classify_own(folder, photos, *more):
    return run_script("predict.py", "classify", "--classifier", folder / "c", "--images", photos / "few", "--out",
                      folder / "p.json", "--top_k", "1", *more, folder=folder)  # fmt: skip


CODE = ("--code", "my_method.py:Farthest")


def test_a_classifier_of_the_users_own_method(own, photos, extractor):
    """The code of a method runs only if a command names it."""
    made = fit_own(own, photos, extractor, "--method.sign", "-1")
    assert made.returncode == 0, made.stderr
    content = read_json(own / "c" / "config.json")
    assert content["method"] == "my_method.py:Farthest" and content["options"] == {"sign": -1.0}
    assert content["config"]["method"] == {"name": "my_method.py:Farthest", "sign": -1.0}
    assert len(content["inputs"]["code of method"]) == 64
    refused = classify_own(own, photos)
    assert_refused(refused, "c/config.json: was made with my_method.py:Farthest", "--code my_method.py:Farthest")
    assert_refused(classify_own(own, photos, "--code", "my_method.py:Other"), "my_method.py defines no 'Other'")
    named = classify_own(own, photos, *CODE)
    assert named.returncode == 0 and "has changed" not in named.stdout, named.stderr
    rows = read_json(own / "p.json")["predictions"]  # the photos are those of the classifier: each is closest to itself
    assert all(row["classes"][0]["class"] == row["image"].split("/")[0] for row in rows) and len(rows) == 50
    assert "already exists" in fit_own(own, photos, extractor, "--method.sign", "-1").stdout
    assert_refused(fit_own(own, photos, extractor), "setting method.sign was -1.0, now 1.0")


def test_changed_code_of_a_method(own, photos, extractor):
    assert fit_own(own, photos, extractor).returncode == 0
    assert classify_own(own, photos, *CODE).returncode == 0
    (own / "my_method.py").write_text(FARTHEST.format(transductive=False) + "\n# changed\n")
    assert_refused(fit_own(own, photos, extractor), "c: exists, but was made differently", "code of method")
    assert_refused(classify_own(own, photos, *CODE), "p.json: exists, but was made differently", "code of method")
    again = classify_own(own, photos, *CODE, "--overwrite")
    assert again.returncode == 0 and "my_method.py has changed since the classifier was made" in again.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--method.power", "2"], FARTHEST, "--method.power: no setting of my_method.py:Farthest"),
        (["--method.sign", "few"], FARTHEST, "--method.sign: 'few': must be a number"),
        ([], FARTHEST.replace("{transductive}", "True"), "method: is transductive"),
        ([], FARTHEST.replace("def score", "def scores"), "my_method.py:Farthest: defines no score(tasks, seed)"),
        ([], FARTHEST.replace("@dataclass", ""), "my_method.py:Farthest: is not a dataclass"),
        ([], "import nothing_of_this_name", "(my_method.py, line 1: ModuleNotFoundError"),
    ],
)
def test_a_method_that_cannot_be(own, photos, extractor, words, code, message):
    (own / "my_method.py").write_text(code.replace("{transductive}", "False"))
    assert_refused(fit_own(own, photos, extractor, *words), message)
    assert not (own / "c").exists()


def test_a_classifier_does_not_replace_its_extractor(tmp_path, photos, extractor):
    mine = shutil.copytree(extractor, tmp_path / "extractor")
    before = (mine / "model.pt").read_bytes()
    config = FitConfig(extractor=mine, images=photos / "few", out=mine, overwrite=True)
    with pytest.raises(InputError, match=r"extractor: is where the input .* is"):
        predict.fit(config)
    assert (mine / "model.pt").read_bytes() == before
