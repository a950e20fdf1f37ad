"""Cross-granularity few-shot: features of augmented copies and of the trunk, tasks of all classes with augmented
support, clustering scores, and the report on them."""

import hashlib
import json
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_script, settings, unfinished
from torch.nn import functional as F

import episodes as stage
import parse_results
import save_features
from lowshot.classifiers.settings import METHODS, FeatureTransform
from lowshot.core.errors import InputError
from lowshot.core.files import read_json, write_json
from lowshot.data.datasets.images import read_images
from lowshot.data.features import read_copies, read_features, write_features
from lowshot.data.protocol import Split, read_split
from lowshot.evaluation.episodes import draw_tasks, evaluate_episodes, gather_tasks, make_pool, tasks_digest
from lowshot.evaluation.settings import Sampling
from lowshot.hallucination.clustering import clustering_scores
from lowshot.report import mixture, results
from lowshot.report.files import read_files
from lowshot.representation.augmentation import Augmentation
from lowshot.representation.backbones import Extractor, ModelConfig, load_extractor, save_extractor

CHANGES = {"flip": True, "shift_pixels": 2}
FLIP = Augmentation(**CHANGES)


def save(**changes):
    """The test.h5 of one call of save_features."""
    values = {"accelerator": "cpu", "part": "test", **changes}
    return save_features.main(settings(save_features.Config, **values)) / "test.h5"


def copies(n, seed=1):
    return {"n": n, "augment": CHANGES, "seed": seed}


def stored(path, name="augmented_feats"):
    with h5py.File(path) as file:
        return file[name][:] if name in file else None


@pytest.fixture(scope="session")
def scgm(tmp_path_factory, data):
    """An untrained folder in the format of train_scgm.py: a Conv-4 with embeddings of 8 dimensions, means of 2
    superclasses and 6 subclasses, three assignments of 100 images."""
    folder = tmp_path_factory.mktemp("scgm") / "extractor"
    folder.mkdir()
    torch.manual_seed(0)
    model = Extractor(ModelConfig("Conv4", 0, 3, 16, width=0.25, embedding=8))
    save_extractor(folder, model, {"stage": "train_scgm", "config": {"epochs": 5, "e_step_every": 2}, "inputs": {}})
    rng = np.random.default_rng(0)
    with h5py.File(folder / "mixture.h5", "w") as file:
        file["superclasses"] = np.arange(2)
        file["superclass_means"], file["subclass_means"] = rng.normal(size=(2, 8)), rng.normal(size=(6, 8))
        file["sizes"] = rng.multinomial(100, [1 / 6] * 6, 3)
    return folder


@pytest.fixture(scope="session")
def embedded(tmp_path_factory, data, scgm):
    """The test.h5 of `data`: 10 classes in 2 superclasses, 4 images per class, 3 copies per image."""
    out = tmp_path_factory.mktemp("scgm_features") / "features"
    return save(extractor=scgm, data=data, out=out, copies=copies(3))


# Features


def test_copies_are_features_of_images_changed_by_seed_image_and_copy(data, scgm, embedded):
    images, model = read_images(data / "images.h5"), load_extractor(scgm)
    rows = images.rows(test=True)
    unit = torch.from_numpy(images.pixels[rows]).permute(0, 3, 1, 2).float() / 255
    assert stored(embedded).shape == (40, 3, 8) and stored(embedded).dtype == np.float32
    for copy in range(3):
        uniforms = FLIP.uniforms(len(images), 1, copy + 1, save_features._SUPPORT)[rows]
        expected = model.features(FLIP(unit, uniforms)).detach()
        assert torch.allclose(torch.from_numpy(stored(embedded)[:, copy]), expected, atol=1e-5)
    read = read_features(embedded)
    assert torch.allclose(torch.from_numpy(read.feats), model.features(unit).detach(), atol=1e-5)
    assert np.array_equal(read_copies(read), stored(embedded))
    assert (np.abs(np.diff(stored(embedded), axis=1)).max((1, 2)) > 1e-4).all()  # the copies differ


def test_copies_do_not_hang_on_batches_nor_on_how_many_there_are(tmp_path, data, scgm, embedded):
    other = save(extractor=scgm, data=data, out=tmp_path, copies=copies(2), batch_size=7)
    assert np.allclose(stored(other), stored(embedded)[:, :2], atol=1e-5)
    seeded = save(extractor=scgm, data=data, out=tmp_path / "s", copies=copies(1, seed=2))
    assert not np.allclose(stored(seeded), stored(embedded)[:, :1], atol=1e-3)


def test_copies_of_a_killed_run_go_on_where_it_stopped(tmp_path, data, scgm, embedded):
    options = {"extractor": scgm, "data": data, "out": tmp_path, "copies": copies(3), "batch_size": 16}
    done = save(**options)
    with h5py.File(unfinished(done), "r+") as file:  # the state after a kill in the second block
        file["augmented_feats"][16:] = 0
        file["augmented_feats"][0] = 7
        file["count"][0] = 16
    again = stored(save(**options))
    assert (again[0] == 7).all() and np.allclose(again[16:], stored(embedded)[16:], atol=1e-5)


def test_files_without_copies_are_made_as_before(data, extractor, features, capsys):
    assert "augmented_feats" not in h5py.File(features / "test.h5")
    made_from = json.loads(h5py.File(features / "test.h5").attrs["config"])
    assert {name for name, value in made_from.items() if value is not None} == {"precision"}
    save(extractor=extractor, data=data, out=features)
    assert "already exists" in capsys.readouterr().out


def test_features_of_the_trunk(tmp_path, data, scgm, embedded):
    images, model = read_images(data / "images.h5"), load_extractor(scgm)
    path = save(extractor=scgm, data=data, out=tmp_path, layer="trunk")
    read, own = read_features(path), read_features(embedded)
    unit = torch.from_numpy(images.pixels[images.rows(test=True)]).permute(0, 3, 1, 2).float() / 255
    assert read.dim == 16 and own.dim == 8
    assert np.allclose(read.feats, model.trunk((unit - model.mean) / model.std).detach(), atol=1e-5)
    assert read.extractor == f"{own.extractor}:trunk"  # features of another space


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"copies": 2}, ["--copies", "all 2 would equal the image"]),
        ({"copies": {"augment": CHANGES}}, ["copies.n", "is required"]),
        ({"copies": {"n": 2, "augment": {"resized_crop": True}}}, ["resized_crop", "copies.augment.crop_area"]),
        ({"layer": "trunk"}, ["layer trunk", "extractor", "no projection"]),
    ],
)
def test_settings_of_features_that_cannot_be(tmp_path, data, extractor, changes, words):
    with pytest.raises(InputError) as error:
        save(extractor=extractor, data=data, out=tmp_path / "f", **changes)
    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "f").exists()


# Tasks. Classes 0..3 are base, 4..9 novel. Superclass 0 has the classes 0, 1, 4, 5, 6, superclass 1 has 2, 3, 7, 8 and
# superclass 2 has 9 only. Class c has 8 + c images.

SPLIT = Split("tiny", [f"c{c}" for c in range(10)], ["s", "t", "u"], [0, 0, 1, 1, 0, 0, 0, 1, 1, 2], [0, 1, 2, 3],
              [4, 5, 6, 7, 8, 9], [0, 1], [4, 5, 6], [2, 3], [7, 8, 9])  # fmt: skip
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 8 + np.arange(10)))


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(10, 6))
    copies = (centres[LABELS][:, None] + rng.normal(size=(len(LABELS), 3, 6))).astype(np.float32)
    folder = tmp_path / "conv" / "features"
    folder.mkdir(parents=True)
    feats = centres[LABELS] + rng.normal(size=(len(LABELS), 6))
    write_features(
        folder / "test.h5", feats.astype(np.float32), LABELS, {"stage": "", "config": {}, "inputs": {}, "lineage": {}}
    )
    with h5py.File(folder / "test.h5", "r+") as file:
        file["augmented_feats"] = copies
    write_json(tmp_path / "split.json", SPLIT.to_json())
    return stage.Config(features=folder / "test.h5", split=tmp_path / "split.json", out=tmp_path / "r.json",
                        n_episodes=6, n_queries=3, n_way=4, classes="all")  # fmt: skip


def evaluated(config, **changes):
    return read_json(stage.main(replace(config, overwrite=True, **changes)))


def test_tasks_of_all_classes(config, capsys):
    assert {one["n_way"] for one in evaluated(config, n_way="all")["episodes"]} == {10}
    assert {one["n_way"] for one in evaluated(config, n_way="all", classes="novel")["episodes"]} == {3}
    within = evaluated(config, n_way="all", within_superclass=True, n_episodes=30)["episodes"]
    assert {one["n_way"] for one in within} == {4, 5}  # superclass 2 has one class, too few for a task
    assert capsys.readouterr().out.count("skipped 1 of 3 superclasses with too few classes") == 1


def test_the_digest_of_tasks_is_what_it_was(config):
    sampling = Sampling(n_queries=3, seed=4)
    kind = {"n_way": 5, "n_queries": 3, "dirichlet": None, "within_superclass": False, "seed": 4}
    text = json.dumps([kind, ["a"]]).encode() + LABELS.astype("<i8").tobytes()
    assert tasks_digest(sampling, LABELS, ["a"]) == hashlib.sha256(text).hexdigest()
    digests = [evaluated(config, **changes)["protocol"]["tasks_digest"] for changes in
               ({}, {"augmented_support": True}, {"classes": "novel", "n_way": 3})]  # fmt: skip
    assert digests[0] == digests[1] != digests[2]  # the same queries, with more support rows


def test_results_made_before_these_settings_stand(config, capsys):
    config = replace(config, classes="novel", n_way=3)
    content = evaluated(config)
    for name in ("classes", "augmented_support", "clustering"):
        del content["config"][name]
    write_json(config.out, content)
    stage.main(config)
    assert "already exists" in capsys.readouterr().out


def test_accuracies_with_augmented_support_by_hand(config):
    """Nearest mean of the unit-length copies of every shot, with plain loops. Queries are the original images."""
    content = evaluated(config, augmented_support=True, transform=FeatureTransform(normalise=True))
    assert content["method"] == "nearest_mean (L2N, 3 augmented copies)"
    unit = [F.normalize(torch.from_numpy(stored(config.features, name)), dim=-1)
            for name in ("all_feats", "augmented_feats")]  # fmt: skip
    (rows,) = draw_tasks(make_pool(LABELS, SPLIT, np.arange(10), config, "f"), config, range(6))
    for one in content["episodes"]:
        e = one["episode"]
        means = [unit[1][rows.support[e, way, : one["n_shot"]]].flatten(0, 1).mean(0) for way in range(4)]
        hits = [
            min(range(4), key=lambda way: (unit[0][query] - means[way]).square().sum()) == truth
            for query, truth in zip(rows.queries[e], rows.query_labels[e])
        ]
        assert one["accuracy"] == sum(hits) / 12


@pytest.mark.parametrize(("n_way", "within"), [(4, False), ("all", True)])
def test_rows_of_an_augmented_support(n_way, within):
    sampling = Sampling(n_way=n_way, n_queries=2, within_superclass=within, dirichlet=5.0, n_shots=[1, 2])
    pool = make_pool(LABELS, SPLIT, np.arange(10), sampling, "f")
    numbers = torch.arange(len(LABELS), dtype=torch.float32)
    copies = torch.stack([numbers + 1000, numbers + 2000], 1)[..., None]
    for rows in draw_tasks(pool, sampling, range(8)):
        for n_shot, tasks in gather_tasks(numbers[:, None], rows, [1, 2], copies):
            n_rows = rows.n_way * n_shot * 2
            assert tasks.support_features.shape == (len(rows.episodes), n_rows, 1)
            classes = torch.from_numpy(LABELS)[tasks.support_features[..., 0].long() % 1000]
            assert torch.equal(classes, torch.from_numpy(rows.classes).gather(1, tasks.support_labels))
            assert (torch.bincount(tasks.support_labels[0]) == n_shot * 2).all()
            assert (tasks.query_features < 1000).all()


@pytest.mark.parametrize("name", METHODS.classes)
def test_every_method_learns_from_copies(name, config):
    feats = torch.from_numpy(stored(config.features, "all_feats"))
    pool, method = make_pool(LABELS, SPLIT, np.arange(10), config, "f"), METHODS.classes[name]()
    far = 50 * F.one_hot(torch.from_numpy(LABELS), 10).float()  # only the copies separate the classes
    copies = far[:, None].expand(-1, 2, -1)
    right = evaluate_episodes(far, pool, config, 6, method, copies)
    wrong = evaluate_episodes(torch.ones(len(far), 10), pool, config, 6, method, copies)
    assert {one["accuracy"] for one in right} == {1.0} and np.mean([one["accuracy"] for one in wrong]) < 0.5
    assert len(evaluate_episodes(feats, pool, config, 6, method, feats[:, None])) == 12


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_way": 11}, ["n_way 11: there are only 10 classes to evaluate. Use --n_way 10"]),
        ({"setup": "validation"}, ["classes all", "--classes novel"]),
        ({"transform": FeatureTransform(centre=True)}, ["transform.centre", "classes all"]),
        ({"clustering": 126}, ["clustering 126", "125 images"]),
    ],
)
def test_settings_of_tasks_that_cannot_be(config, changes, words):
    with pytest.raises(InputError) as error:
        stage.main(replace(config, **changes))
    assert all(word in str(error.value) for word in words), error.value
    assert not config.out.exists()


def test_a_pool_without_a_class_or_without_copies(config):
    inside = LABELS != 2
    feats = stored(config.features, "all_feats")
    made_from = {"stage": "", "config": {}, "inputs": {}, "lineage": {}}
    other = config.features.with_name("other.h5")
    write_features(other, feats[inside], LABELS[inside], made_from)
    with pytest.raises(InputError, match=r"other\.h5: no image of class 2 \(c2\)"):
        stage.main(replace(config, features=other))
    with pytest.raises(
        InputError, match=r"other\.h5: has no augmented copies\. Make them with save_features\.py --copies"
    ):
        stage.main(replace(config, features=[config.features, other], augmented_support=True))
    for wrong, words in (
        (np.zeros((len(feats), 2, 6), np.float32)[:, :, :5], "shape"),
        (np.full((inside.sum(), 3, 6), np.nan, np.float32), "augmented_feats: row 0 contains NaN"),
        (np.zeros((inside.sum(), 2, 6), np.float32), "2 augmented copies per image, but .*test.h5 has 3"),
    ):
        with h5py.File(other, "r+") as file:
            file.pop("augmented_feats", None)
            file["augmented_feats"] = wrong
        with pytest.raises(InputError, match=rf"other\.h5: .*{words}"):
            stage.main(replace(config, features=[config.features, other], augmented_support=True))


# Clustering


def test_scores_of_a_clustering_by_hand():
    feats = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [90, 0], [90, 1], [91, 0], [91, 1]], np.float32)
    scores = clustering_scores(feats, np.array([0, 0, 0, 1, 1, 1, 1, 0]), 2, seed=3)
    # Each cluster has 3 images of one class and 1 of the other: H(class | cluster) is that of a 1:3 coin, 0.811278 of
    # 1 bit. Pairs together in both clusterings: 3 + 3 of 28, expected 12 * 12 / 28, at most 12.
    assert (scores["seed"], scores["n_clusters"]) == (3, 2)
    assert scores["nmi"] == pytest.approx(1 - 0.811278, abs=1e-6)
    assert scores["homogeneity"] == pytest.approx(1 - 0.811278, abs=1e-6)
    assert scores["adjusted_rand"] == pytest.approx((6 - 144 / 28) / (12 - 144 / 28))
    perfect = clustering_scores(feats, np.repeat([5, 2], 4), 2, seed=0)
    assert [perfect[name] for name in ("nmi", "homogeneity", "adjusted_rand")] == pytest.approx([1, 1, 1])
    assert max(value for name, value in perfect.items() if name not in ("seed", "n_clusters")) <= 1


def test_clusterings_of_five_seeds(config):
    content = evaluated(config, clustering=10, seed=7, transform=FeatureTransform(normalise=True))
    assert [one["seed"] for one in content["clustering"]] == [7, 8, 9, 10, 11]
    unit = F.normalize(torch.from_numpy(stored(config.features, "all_feats"))).numpy()
    assert content["clustering"][2] == clustering_scores(unit, LABELS, 10, seed=9)
    assert len({one["nmi"] for one in content["clustering"]}) > 1
    assert "clustering" not in evaluated(config)


# Report


@pytest.fixture
def folder(config):
    """Results of one system on three kinds of task, with a clustering, and of augmented support."""
    shared = {"n_episodes": 4, "extractor": "scgm"}
    runs = {
        "five": {"clustering": 10},
        "copies": {"augmented_support": True},
        "all": {"n_way": "all"},
        "within": {"n_way": "all", "within_superclass": True},
        "novel": {"classes": "novel", "n_way": 3, "clustering": 4},
    }
    out = config.out.parent / "results"
    for name, changes in runs.items():
        stage.main(replace(config, **shared, **changes, out=out / f"{name}.json"))
    return out


def report(folder, **changes):
    return parse_results.main(parse_results.Config(results=folder, out=folder.parent / "report", **changes))


def test_tables_of_tasks_and_clusterings(folder, capsys):
    path = report(folder)
    printed = capsys.readouterr().out
    captions = [block.split(":")[0] for block in printed.split("**")[1::2]]
    assert sorted(captions) == [
        "Clustering",
        "Clustering",
        "Episodes, 3-way, 3 queries a class",
        "Episodes, 4-way of all classes, 3 queries a class",
        "Episodes, 4-way of all classes, 3 queries a class, paired differences",
        "Episodes, all-way of all classes within a superclass, 3 queries a class",
        "Episodes, all-way of all classes, 3 queries a class",
    ]
    assert "scgm: nearest_mean (3 augmented copies) | scgm: nearest_mean | 4" in printed
    values = np.array([one["nmi"] for one in read_json(folder / "five.json")["clustering"]])
    half = 2.776445 * values.std(ddof=1) / np.sqrt(5)
    assert f"| scgm | 10 | 5 | {100 * values.mean():.2f} ± {100 * half:.2f} |" in printed
    assert "against all classes" in printed and "against novel classes" in printed
    long = pd.read_csv(path.parent / "tables/clustering.csv")
    assert len(long) == 2 * 5 * 3 and set(long["metric"]) == {"nmi", "homogeneity", "adjusted_rand"}
    means = pd.read_csv(path.parent / "tables/clustering_scores.csv").set_index(["classes", "metric"])
    assert means.loc[("all", "nmi"), "mean"] == pytest.approx(values.mean())
    assert means.loc[("novel", "nmi"), "seeds"] == 5
    page = path.read_text()
    assert "<h3>Clustering</h3>" in page and 'id="sizes"' not in page and 'id="embeddings"' not in page


def test_a_clustering_in_two_files_counts_once_and_other_numbers_are_refused(folder):
    one = read_json(folder / "five.json")
    write_json(folder / "again.json", {**one, "method": "cosine"})
    frame = results.clustering(read_files(folder))
    assert len(frame) == 2 * 5 * 3 and set(frame["features"]) == {"scgm"}
    write_json(folder / "again.json", {**one, "method": "cosine", "inputs": {"features": "other"}})
    frame = results.clustering(read_files(folder))
    assert {"scgm (features=other)"} < set(frame["features"])
    one["clustering"][1]["nmi"] /= 2
    write_json(folder / "again.json", {**one, "method": "cosine"})
    with pytest.raises(InputError, match=r"again\.json and five\.json: different values"):
        results.clustering(read_files(folder))


def test_scores_out_of_range_are_named(folder):
    content = read_json(folder / "five.json")
    content["clustering"][1]["adjusted_rand"] = -0.2
    write_json(folder / "five.json", content)
    read_files(folder)
    for name, value, words in (("adjusted_rand", -1.5, "outside -1..1"), ("nmi", -0.2, "outside 0..1")):
        write_json(folder / "five.json", {**content, "clustering": [{**content["clustering"][0], name: value}]})
        with pytest.raises(InputError, match=rf"five\.json: clustering: entry 1: '{name}' is {value}, {words}"):
            read_files(folder)


def test_results_of_before_these_settings_are_of_one_run_with_newer_ones(folder):
    content = read_json(folder / "novel.json")
    del content["config"]["classes"], content["config"]["augmented_support"]
    del content["config"]["clustering"], content["clustering"]
    content["episodes"] = [{**one, "n_shot": 9} for one in content["episodes"] if one["n_shot"] == 1]
    write_json(folder / "older.json", content)
    frame = results.episodes(read_files(folder))
    part = frame[frame["file"].isin(["novel.json", "older.json"])]
    assert part["system"].unique().tolist() == ["scgm: nearest_mean"] and part["task"].nunique() == 1
    content["config"] |= {"method": "nearest_mean", "methods": {"nearest_mean": {"metric": "euclidean"}},
                          "augmented_support": None, "classes": None}  # fmt: skip
    write_json(folder / "older.json", content)
    assert results.episodes(read_files(folder))["system"].equals(frame["system"])


def test_methods_under_a_name_of_the_users_are_distinguished_by_their_settings(folder):
    content = read_json(folder / "novel.json") | {"method": "mine"}
    for metric in ("euclidean", "cosine"):
        content["config"]["method"] = {"name": "nearest_mean", "metric": metric}
        write_json(folder / f"{metric}.json", content)
    systems = set(results.episodes(read_files(folder))["system"])
    assert {'scgm: mine (method.metric="cosine")', 'scgm: mine (method.metric="euclidean")'} <= systems


@pytest.fixture
def repeated(folder, tmp_path):
    """Two trainings with three seeds each and one with a single seed, on the same five episodes.

    The accuracies of the first are 0.25, 0.5 and 0.75 plus a term per episode; the second is better by 0.1, 0.1 and
    0.25.
    """
    out, one = tmp_path / "repeated", read_json(folder / "copies.json")
    out.mkdir()
    for seed, (level, gain) in enumerate(((0.25, 0.1), (0.5, 0.1), (0.75, 0.25))):
        for name, shift in (("coarse", 0), ("better", gain), *([("alone", 0.2)] if seed == 1 else [])):
            rows = [{"episode": e, "n_way": 4, "n_shot": 1, "accuracy": level * e / 5 + shift} for e in range(5)]
            made = {"episodes": rows, "extractor": f"{name}_seed{seed}", "inputs": {"features": f"{name}{seed}"}}
            write_json(out / f"{name}{seed}.json", {**one, **made})
    return out


def test_repeated_trainings_are_averaged_and_compared_seed_by_seed(repeated, capsys):
    parse_results.main(parse_results.Config(results=repeated, out=repeated.parent / "r", reference="coarse"))
    tables = dict(zip(*[iter(capsys.readouterr().out.split("**")[1:])] * 2))
    over, pairs, single, paired = tables.values()
    assert [", over trainings" in caption for caption in tables] == [True, True, False, False]
    method = ": nearest_mean (3 augmented copies)"
    levels, gains = 100 * np.array([0.1, 0.2, 0.3]), 100 * np.array([0.1, 0.1, 0.25])
    for name, values in (("coarse", levels), ("better", levels + gains)):
        half = 4.302653 * values.std(ddof=1) / np.sqrt(3)
        mark = " †" if values.mean() <= 25 else ""
        assert f"| {name}{method} | inductive | 3 | {values.mean():.2f} ± {half:.2f}{mark} |" in over
    half = 4.302653 * gains.std(ddof=1) / np.sqrt(3)
    assert f"| better{method} | coarse{method} | 3 | +15.00 ± {half:.2f} |" in pairs
    assert "alone" not in over + pairs and f"| alone_seed1{method} |" in single
    for seed, gain in enumerate(gains):  # each seed is compared with the reference of the same seed
        assert f"| better_seed{seed}{method} | coarse_seed{seed}{method} | 5 | +{gain:.2f} ± 0.00 * |" in paired
    assert f"| alone_seed1{method} | coarse_seed1{method} | 5 | +20.00" in paired


def test_each_seed_is_compared_with_its_own_reference_or_not_at_all(repeated):
    """Without coarse_seed2, that seed is not compared. A reference without a seed is compared with all seeds."""
    files = read_files(repeated)
    del files["coarse2.json"]
    pairs = results.differences_to(results.episodes(files), "coarse")
    assert {name.split(":")[0] for name in pairs["system"]} == {"better_seed0", "better_seed1", "alone_seed1"}
    files["coarse1.json"]["extractor"] = "whole"
    pairs = results.differences_to(results.episodes(files), "whole")
    assert len(pairs) == 5 and {name.split(":")[0] for name in pairs["versus"]} == {"whole"}


def test_an_extractor_as_reference_is_compared_within_a_method(repeated):
    files = read_files(repeated)
    for name in ("coarse0", "better0"):
        files[f"{name}-cosine.json"] = {**files[f"{name}.json"], "method": "cosine"}
    pairs = results.differences_to(results.episodes(files), "coarse_seed0")
    within = [one.split(":")[1] == other.split(":")[1] for one, other in zip(pairs["system"], pairs["versus"])]
    assert len(pairs) == 2 and all(within)


def test_trainings_evaluated_on_fewer_episodes_are_no_pairs(repeated):
    """A seed with other episodes is not comparable and is left out."""
    one = read_json(repeated / "better2.json")
    write_json(repeated / "better2.json", {**one, "episodes": one["episodes"][:4]})
    frame = results.repeats(results.episodes(read_files(repeated)))
    pairs = results.differences_to(frame, "coarse")
    assert pairs["trials"].tolist() == [2] and pairs["mean"].tolist() == pytest.approx([0.1])


# Pictures


def test_means_are_read_with_the_epochs_of_their_assignments(scgm):
    means = mixture.read_means(scgm)
    assert means.epochs.tolist() == [0, 2, 4] and means.n_epochs == 5 and means.sizes.shape == (3, 6)
    pulled = replace(means, superclass_means=np.eye(2), subclass_means=np.array([[0, 3], [2, 1], [-1, -2]]))
    assert mixture._likeliest(pulled).tolist() == [1, 0, 0]


def test_the_map_takes_images_of_its_superclasses_only():
    labels = np.tile(np.arange(10), 400)
    rows, places = mixture._map_rows(labels, np.array([0, 2]), SPLIT)
    assert len(rows) == len(set(rows)) == 2000
    assert set(labels[rows]) == {0, 1, 4, 5, 6, 9} and (places == (labels[rows] == 9)).all()


@pytest.mark.parametrize("n", [2, 20, 50])
def test_colours_are_all_different(n):
    colors = np.array(mixture._colors(n))
    distances = np.abs(colors[:, None] - colors).sum(-1) + 9 * np.eye(n)
    assert distances.min() > 0.05 and colors.min() >= 0 and colors.max() <= 1


def test_pictures_of_a_baseline_without_subclasses(tmp_path, scgm, embedded, data):
    means = replace(mixture.read_means(scgm), subclass_means=None, sizes=None, epochs=None)
    mixture.embedding_map(tmp_path / "map.svg", means, read_features(embedded), read_split(data / "split.json"))
    text = (tmp_path / "map.svg").read_text()
    assert "1  super0" in text and "mean of a superclass" in text and "mean of a subclass" not in text


def test_means_that_do_not_fit(tmp_path, scgm, embedded, data, features):
    means, split = mixture.read_means(scgm), read_split(data / "split.json")
    read = read_features(embedded)
    mixture.check_fits(means, read, split)
    for other, words in (
        (read_features(features / "test.h5"), "16 dimensions, but the means of .* have 8"),
        (replace(read, extractor="other"), "made by a different extractor"),
    ):
        with pytest.raises(InputError, match=rf"test\.h5: .*{words}"):
            mixture.check_fits(means, other, split)
    with pytest.raises(InputError, match="superclass 2 is not in the split"):
        mixture.check_fits(replace(means, superclasses=np.array([0, 2])), read, split)
    with pytest.raises(InputError, match=rf"{data}: not an output of train_scgm\.py"):
        mixture.read_means(data)


def test_the_scripts_one_after_another(tmp_path, data, scgm):
    features, out = tmp_path / "scgm" / "features", tmp_path / "results" / "within.json"
    done = run_script("save_features.py", "--extractor", scgm, "--data", data, "--out", features, "--part", "test",
                      "--copies", "2", "--copies.augment.flip", "--accelerator", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in features.iterdir()] == ["test.h5"]
    done = run_script("episodes.py", "--features", features / "test.h5", "--split", data / "split.json", "--out", out,
                      "--classes", "all", "--n_way", "all", "--within_superclass", "true", "--n_shots", "[1]",
                      "--n_queries", "2", "--n_episodes", "5", "--method", "logistic_regression",
                      "--transform.normalise", "true", "--augmented_support", "true", "--clustering", "10")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "logistic_regression (L2N, 2 augmented copies), 1-shot" in done.stdout
    done = run_script("parse_results.py", "--results", out.parent, "--out", tmp_path / "report", "--data", data,
                      "--features", features / "test.h5", "--mixture", scgm)  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report" / "report.html").read_text()
    assert 'id="sizes"' in page and 'id="embeddings"' in page
    figure = (tmp_path / "report/figures/embedding_map.svg").read_text()
    assert "1  super0" in figure and "mean of a subclass" in figure
