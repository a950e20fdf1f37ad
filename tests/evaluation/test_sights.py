"""Every evaluating stage asks what each of its inputs has seen, and follows the table of `lowshot.data.lineage`."""

import json
from dataclasses import replace

import pytest

import diffusion
import episodes
import low_shot
import matching_network
from lowshot.classifiers.settings import NearestMeanOptions, PTMapOptions
from lowshot.core.errors import InputError
from lowshot.core.files import write_json
from lowshot.data import lineage
from lowshot.data.lineage import ANY, Lineage, shots_of
from lowshot.data.protocol import make_split, read_draws, read_split
from lowshot.diffusion.settings import EdgeOptions, Fusion, Labelling, Propagated
from lowshot.evaluation.settings import Selection

FILES = ("train", "test", "split", "draws")
# Novel classes of the test setup are c7, c9 and c11; of validation c6, c8 and c10.
SIGHTS = {
    "base classes": ({"labelled": ["clusters/c1", "clusters/c3"]}, "inductive"),
    "validation classes": ({"labelled": ["clusters/c6"]}, "inductive"),
    "a novel class": ({"labelled": ["clusters/c7"]}, "has seen labelled images of class 7"),
    "the whole data set": ({"labelled": ["clusters/*"]}, "has seen labelled images of class 7"),
    "superclasses": ({"superclasses": ["clusters/c9"]}, "inductive, superclasses"),
    "unlabelled images": ({"unlabelled": ["clusters/c9"]}, "semi_supervised"),
    "a pool": ({"unlabelled": [ANY]}, "semi_supervised"),
    "test images": ({"test_images": True}, "transductive"),
    "another data set": ({"labelled": ["imagenet/*"]}, "inductive, imagenet"),
    "nothing is said": (None, "unknown"),
    "own shots": ("shots 1 1", "inductive"),
    "more shots": ("shots 1 4", "was trained on 4 shots of trial 1 and cannot be evaluated"),
    "shots of another trial": ("shots 2 1", "was trained on 1 shots of trial 2 and cannot be evaluated"),
}


@pytest.fixture(scope="module")
def made(clusters, tmp_path_factory):
    """For each stage: its function, its settings, and the setting of its method."""
    folder = tmp_path_factory.mktemp("sights")
    files = {name: getattr(clusters, name) for name in FILES}
    common = {**files, "shots": [1, 2], "trials": [1], "overwrite": True}
    edges = {"graph": clusters.images, "n_steps": 1, "edges": EdgeOptions(k=4)}
    scores, rows, model = folder / "scores.h5", folder / "rows.h5", folder / "model"
    plain = low_shot.Config(**common, out=folder / "plain.json", classifier=NearestMeanOptions(), scores=scores)
    low_shot.main(plain)
    diffusion.main(diffusion.Config(**common, **edges, out=folder / "d.json", label=Labelling(rows, 5)))
    matching_network.train(matching_network.TrainConfig(features=files["train"], split=files["split"], out=model,
                                                        n_episodes=2, n_way=3, accelerator="cpu"))  # fmt: skip
    added = {"propagated": Propagated(rows, max_per_label=5)}
    fused = diffusion.Config(**common, graph=clusters.bare, n_steps=1, edges=EdgeOptions(k=4), out=folder / "f.json",
                             fuse=Fusion(scores))  # fmt: skip
    plain = replace(plain, scores=None)
    return {
        "low_shot": (low_shot.main, plain, "inductive"),
        "low_shot --add": (low_shot.main, replace(plain, add=added), "inductive"),
        "low_shot, transductive": (low_shot.main, replace(plain, classifier=PTMapOptions()), "transductive"),
        "diffusion": (diffusion.main, replace(fused, fuse=None), "inductive"),
        "diffusion --fuse": (diffusion.main, fused, "inductive"),
        "matching_network": (matching_network.test, matching_network.TestConfig(
            **common, out=folder / "m.json", model=model, rows_per_class=4), "inductive"),
        "episodes": (episodes.main, episodes.Config(
            features=files["test"], split=files["split"], out=folder / "e.json", n_way=2, n_shots=[1], n_queries=2,
            n_episodes=3, overwrite=True), "inductive"),
    }  # fmt: skip


CASES = [("low_shot", "train.h5"), ("low_shot", "test.h5"), ("low_shot --add", "rows.h5"),
         ("low_shot, transductive", "train.h5"), ("diffusion", "train.h5"), ("diffusion", "bare-test.h5"),
         ("diffusion --fuse", "scores.h5"), ("matching_network", "train.h5"), ("matching_network", "model"),
         ("episodes", "test.h5")]  # fmt: skip


def stored(sight, clusters):
    """The lineage of a sight, as it is stored."""
    if not isinstance(sight, str):
        return sight
    trial, n = map(int, sight.split()[1:])
    split, draws = read_split(clusters.split), read_draws(clusters.draws)
    return Lineage(shots=frozenset({shots_of(split, split.novel_classes, draws[trial], trial, n, None)})).to_json()


def told(main, config):
    """The setting with its tags, or the refusal."""
    try:
        protocol = json.loads(main(config).read_text())["protocol"]
    except InputError as error:
        return str(error)
    return ", ".join([protocol["setting"], *(["superclasses"] if protocol["superclasses"] else []),
                      *protocol["outside"]])  # fmt: skip


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("stage, name", CASES, ids=[" ".join(case) for case in CASES])
def test_every_stage_follows_the_table(made, clusters, monkeypatch, stage, name, sight):
    main, config, own = made[stage]
    seen, expected = SIGHTS[sight]
    content, real = stored(seen, clusters), lineage.stored_lineage
    monkeypatch.setattr(lineage, "stored_lineage", lambda path: content if path.name == name else real(path))
    if stage == "episodes" and "shots" in sight:
        expected = "cannot be evaluated on tasks"
    found, order = told(main, config), ["inductive", "semi_supervised", "transductive", "unknown"]
    if expected.split(",")[0] in order:
        setting, *tags = expected.split(", ")
        assert found == ", ".join([max(setting, own, key=order.index), *tags])
    else:
        assert name in found.split(":")[0] and expected in found


def test_nothing_is_chosen_with_shots_of_the_test_setup(made, clusters, monkeypatch):
    main, config, _ = made["low_shot"]
    content, real = stored("shots 1 1", clusters), lineage.stored_lineage
    monkeypatch.setattr(lineage, "stored_lineage", lambda path: content if path.name == "train.h5" else real(path))
    with pytest.raises(InputError, match=r"was trained on shots of the test setup\. Nothing may be chosen with it"):
        main(replace(config, setup="validation"))


@pytest.mark.parametrize("stage, name", [("low_shot --add", "rows.h5"), ("diffusion", "bare-validation.h5")])
def test_settings_are_not_chosen_with_what_knows_the_novel_classes(made, clusters, tmp_path, monkeypatch, stage, name):
    main, config, _ = made[stage]
    (tmp_path / "grid.yaml").write_text("ties: [against]" if stage == "diffusion" else "transform.normalise: [true]")
    real = lineage.stored_lineage
    seen = {"labelled": ["clusters/c6"]}  # a novel class of the validation setup
    monkeypatch.setattr(lineage, "stored_lineage", lambda path: seen if path.name == name else real(path))
    with pytest.raises(InputError, match=rf"{name}: has seen labelled images of class 6"):
        main(replace(config, out=tmp_path / "r.json", trials=None, select=Selection(tmp_path / "grid.yaml")))


def test_an_extractor_of_another_split_is_refused_and_other_halves_are_not(data, features, tmp_path):
    """The halves are drawn anew, and then the novel classes."""
    split = read_split(data / "split.json")
    names = split.class_names, split.superclass_names, split.superclass_of
    files = {"train": features / "train.h5", "test": features / "test.h5", "draws": data / "draws.json"}
    for novel, seed in ((split.novel_classes, 5), (split.base_classes[:4], 0)):
        other = replace(make_split(split.dataset, *names, seed, novel), origins=split.origins)
        assert other.digest != split.digest
        write_json(tmp_path / "split.json", other.to_json())
        config = low_shot.Config(**files, split=tmp_path / "split.json", out=tmp_path / f"r{seed}.json", shots=[1],
                                 classifier=NearestMeanOptions())  # fmt: skip
        assert told(low_shot.main, config).startswith("inductive" if seed else f"{files['train']}: has seen labelled")
