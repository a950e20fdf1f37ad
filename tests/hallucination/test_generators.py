"""The analogy generator: sizes, training by both papers, and the draws of hallucination."""

import json
from collections import Counter

import h5py
import numpy as np
import pytest
import torch
from conftest import assert_refused, edit_json, run_script

import train_analogy_generator as stage
from lowshot.core.errors import InputError
from lowshot.core.training import TrainingRun
from lowshot.data.additions import Run
from lowshot.data.features import Features
from lowshot.data.protocol import Split
from lowshot.hallucination.generators import AnalogyGenerator, Hallucinator, load_generator, save_generator
from lowshot.hallucination.quadruplets import read_quadruplets
from lowshot.hallucination.settings import Generator
from lowshot.hallucination.training import RULES, GeneratorTrainer, build_critic, build_generator
from lowshot.representation.backbones import Extractor, ModelConfig, save_extractor

MADE_FROM = {"stage": "train_analogy_generator", "config": {}, "inputs": {"extractor": "E"}}
SPLIT = Split("toy", list("abcdef"), ["x", "y"], [0, 0, 1, 1, 0, 1], [0, 1, 2, 3], [4, 5], [0, 1], [4], [2, 3], [5])


def write_quadruplets(path, n_classes=4, n_clusters=3, dim=4, seed=0, **changes):
    """Write random centroids with random valid quadruplets; `changes` replace datasets, or (None) omit them."""
    rng = np.random.default_rng(seed)
    a, c = rng.integers(n_classes, size=(2, 40))
    pairs = np.array([rng.permutation(n_clusters)[:2] for _ in range(80)]).reshape(40, 2, 2)
    quadruplets = np.concatenate([a[:, None] * n_clusters + pairs[:, 0], c[:, None] * n_clusters + pairs[:, 1]], 1)
    content = {
        "centroids": rng.random((n_classes, n_clusters, dim), np.float32),
        "centroid_labels": np.arange(n_classes, dtype=np.int32),
        "quadruplets": quadruplets.astype(np.int32),
        "scores": rng.uniform(0.5, 1, 40).astype(np.float32),
    }
    with h5py.File(path, "w") as file:
        for name, value in (content | changes).items():
            if value is not None:
                file[name] = value
    return path


def features(dim=4, extractor="E"):
    labels = np.repeat(np.arange(6), 5)
    return Features(np.random.default_rng(1).random((30, dim), np.float32), labels, "train.h5", extractor)


@pytest.fixture
def generator(tmp_path):
    """A generator that returns the first coordinates of its three inputs."""
    model = AnalogyGenerator(4, 8, 4, 3)
    model.centroids.copy_(torch.arange(12.0).view(4, 3, 1).expand(-1, -1, 4))
    model.centroid_labels.copy_(torch.arange(4))
    folder = tmp_path / "generator"
    folder.mkdir()
    save_generator(folder, model, MADE_FROM)
    return folder


def spy(hallucinator):
    """Make the generator return (seed, from, to, 0) of every row."""
    hallucinator.model.forward = lambda seed, start, end: torch.stack(
        [seed[:, 0], start[:, 0], end[:, 0], torch.zeros(len(seed))], 1
    )
    return hallucinator


def new_rows(hallucinator, shots, labels, n_rows, trial=1):
    """Return the rows and labels added to shots (S, D) of classes `labels`, for `n_rows` per class."""
    hallucinator.max_per_label, run = n_rows, Run(trial, 1, shots, np.array(labels))
    extended = hallucinator.extend(run, None, seed=0)
    n = len(labels)
    assert extended.key == run.key and np.array_equal(extended.feats[:n], shots)
    assert extended.labels[:n].tolist() == list(labels)
    return extended.feats[n:], extended.labels[n:]


@pytest.mark.parametrize(("dim", "n"), [(512, 1_312_256), (2048, 4_459_520)])
def test_published_sizes(dim, n):
    model = AnalogyGenerator(dim, 512, 1, 1)
    assert sum(p.numel() for p in model.parameters()) == n
    assert model(*torch.rand(3, 7, dim)).min() >= 0


def test_counts_labels_and_untouched_classes(generator):
    hallucinator = Hallucinator(Generator(generator), SPLIT, features())
    shots, labels = np.random.default_rng(0).random((8, 4), np.float32), [4] * 3 + [5] * 5
    new, new_labels = new_rows(hallucinator, shots, labels, 5)
    assert new.shape == (2, 4) and new.dtype == np.float32 and new_labels.tolist() == [4, 4]
    assert new_rows(hallucinator, shots, labels, 3)[0].shape == (0, 4)
    again, _ = new_rows(hallucinator, shots, labels, 5)
    assert np.array_equal(new, again), "a second call gives the same rows"


def test_it_fills_up_to_what_its_settings_say(generator):
    hallucinator = Hallucinator(Generator(generator, max_per_label=7), SPLIT, features())
    run = Run(1, 1, np.ones((3, 4), np.float32), np.array([4, 5, 5]))
    assert np.bincount(hallucinator.extend(run, None, 0).labels).tolist() == [0, 0, 0, 0, 7, 7]


def test_more_rows_leave_the_first_as_they_are_and_trials_differ(generator):
    hallucinator = spy(Hallucinator(Generator(generator), SPLIT, features()))
    shots, labels = np.random.default_rng(0).random((3, 4), np.float32), [4, 4, 4]
    few, many = (new_rows(hallucinator, shots, labels, m)[0] for m in (10, 200))
    assert np.array_equal(few, many[:7])
    assert not np.array_equal(few, new_rows(hallucinator, shots, labels, 10, trial=2)[0])


def test_seeds_and_pairs_are_drawn_uniformly_from_one_class(generator):
    hallucinator = spy(Hallucinator(Generator(generator), SPLIT, features()))
    shots = np.array([[1.0] * 4, [2.0] * 4], np.float32)
    new, _ = new_rows(hallucinator, shots, [4, 4], 4002)
    assert Counter(new[:, 0]).keys() == {1.0, 2.0} and abs((new[:, 0] == 1).mean() - 0.5) < 0.05
    assert (new[:, 1] // 3 == new[:, 2] // 3).all(), "both centroids are of one class"
    assert len(Counter(map(tuple, new[:, 1:3]))) == 4 * 9, "every ordered pair, a centroid with itself included"


def test_pairs_of_features_are_distinct_rows_of_one_base_class(generator):
    train = features()
    train.feats[:] = np.arange(30, dtype=np.float32)[:, None]
    hallucinator = spy(Hallucinator(Generator(generator, pairs="features"), SPLIT, train))
    new, _ = new_rows(hallucinator, train.feats[20:21], [4], 2001)
    assert (new[:, 1] != new[:, 2]).all() and (new[:, 1] // 5 == new[:, 2] // 5).all()
    assert len(Counter(map(tuple, new[:, 1:3]))) == 4 * 5 * 4
    assert new[:, 1:3].max() < 20, "novel rows lend no differences"


def test_superclass_scope_takes_the_seeds_superclass(generator):
    train = features()
    train.feats[:] = np.repeat(np.arange(6, dtype=np.float32), 5)[:, None]
    chosen = Generator(generator, pairs="features", pair_scope="superclass")
    new, labels = new_rows(spy(Hallucinator(chosen, SPLIT, train)), train.feats[[20, 25]], [4, 5], 101)
    assert set(new[labels == 4, 1]) == {0.0, 1.0} and set(new[labels == 5, 1]) == {2.0, 3.0}


def test_superclass_without_base_class(generator):
    split = Split("toy", list("abcdef"), ["x", "y"], [0, 0, 0, 0, 0, 1], [0, 1, 2, 3], [4, 5], [0, 1], [4], [2, 3], [5])
    hallucinator = Hallucinator(Generator(generator, pair_scope="superclass"), split, features())
    with pytest.raises(InputError, match=r"class 5 \(f\): no base class has the same superclass"):
        new_rows(hallucinator, np.zeros((1, 4), np.float32), [5], 5)


def test_features_of_another_dimension_or_extractor(generator):
    with pytest.raises(InputError, match=r"4 dimensions, but train\.h5 has 6"):
        Hallucinator(Generator(generator), SPLIT, features(dim=6))
    with pytest.raises(InputError, match="another extractor"):
        Hallucinator(Generator(generator), SPLIT, features(extractor="F"))
    Hallucinator(Generator(generator), SPLIT, features(extractor=None))


def test_a_generator_of_another_split_would_leak_novel_classes(generator):
    split = Split("toy", list("abcdef"), [], [None] * 6, [0, 1, 2, 4], [3, 5], [0, 1], [3], [2, 4], [5])
    with pytest.raises(InputError, match="centroids of class 3, which is not a base class"):
        Hallucinator(Generator(generator), split, features())


def test_a_folder_whose_parts_do_not_fit(generator):
    edit_json(generator / "config.json", '"hidden": 8', '"hidden": 9')
    with pytest.raises(InputError, match=r"model\.pt: does not fit"):
        load_generator(generator)


@pytest.mark.parametrize("rule", ["hariharan2017", "ghosted2018"])
def test_training_learns_and_resumes(tmp_path, rule, monkeypatch):
    quadruplets = write_quadruplets(tmp_path / "q.h5")
    options = {"quadruplets": quadruplets, "rule": rule, "n_steps": 300, "lr": 0.02 if rule == "ghosted2018" else 1.0}
    whole = stage.main(stage.Config(out=tmp_path / "whole", batch_size=16, **options))
    model, _ = load_generator(whole)
    log = [line for line in (whole / "log.jsonl").read_text().splitlines() if line]
    first, last = json.loads(log[0]), json.loads(log[-1])
    assert 10 * last["mse"] + last["cross_entropy"] < 10 * first["mse"] + first["cross_entropy"]

    save, saved = TrainingRun.save, []

    def killed(self, step, checkpoint):
        save(self, step, checkpoint)
        saved.append(step)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.main(stage.Config(out=tmp_path / "killed", batch_size=16, **options))
    monkeypatch.undo()
    resumed, _ = load_generator(stage.main(stage.Config(out=tmp_path / "killed", batch_size=16, **options)))
    pairs = zip(model.state_dict().values(), resumed.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("rule", "inputs", "target"), [("hariharan2017", (0, 2, 3), 1), ("ghosted2018", (2, 0, 1), 3)])
def test_each_paper_predicts_its_own_member(rule, inputs, target):
    model = AnalogyGenerator(4, 8, 4, 3)
    model.centroids.copy_(torch.rand(4, 3, 4))
    model.centroid_labels.copy_(torch.tensor([3, 5, 7, 9]))
    quadruplet = torch.tensor([[0, 1, 5, 4]])
    seen = {}
    model.forward = lambda *given: seen.setdefault("given", given)[0]
    critic = torch.nn.Linear(4, 10)
    trainer = GeneratorTrainer(RULES[rule], 10.0, 0, None, model, critic, quadruplet)
    mse, cross_entropy = trainer.losses(quadruplet)
    flat = model.centroids.flatten(0, 1)
    members = [flat[i] for i in quadruplet[0]]
    assert all(torch.equal(seen["given"][i][0], members[column]) for i, column in enumerate(inputs))
    assert mse.item() == pytest.approx((members[inputs[0]] - members[target]).square().mean().item())
    label = {1: 3, 3: 5}[target]
    expected = torch.nn.functional.cross_entropy(critic(members[inputs[0]])[None], torch.tensor([label]))
    assert cross_entropy.item() == pytest.approx(expected.item())


def test_critic_of_the_centroids_knows_them(tmp_path):
    config = stage.Config(write_quadruplets(tmp_path / "q.h5"), tmp_path / "g")
    mined = read_quadruplets(config.quadruplets)
    mined.centroids *= 20
    critic = build_critic(mined, config.quadruplets, None, {})
    predicted = critic(torch.from_numpy(mined.centroids).view(-1, 4)).argmax(1)
    assert (predicted == torch.arange(4).repeat_interleave(3)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "lacks the dataset 'scores'"),
        ({"centroids": np.full((4, 3, 4), np.nan, np.float32)}, "NaN"),
        ({"quadruplets": np.full((40, 4), 12, np.int32)}, "indices outside its 12 centroids"),
        ({"scores": np.zeros(40, np.float32)}, "--min_score 0.0: the best score in .* is 0"),
    ],
)
def test_refused_quadruplets(tmp_path, changes, message):
    config = stage.Config(write_quadruplets(tmp_path / "q.h5", **changes), tmp_path / "g")
    with pytest.raises(InputError, match=message):
        stage.main(config)
    assert not (tmp_path / "g").exists()


def test_critic_of_another_extractor(tmp_path, extractor, features):
    quadruplets = write_quadruplets(tmp_path / "q.h5", dim=7)
    result = run_script("train_analogy_generator.py", "--quadruplets", quadruplets, "--extractor", extractor,
                        "--out", tmp_path / "g")  # fmt: skip
    assert_refused(result, "computes features of 16 dimensions")


def test_diverging_generator_names_the_step(tmp_path):
    config = stage.Config(write_quadruplets(tmp_path / "q.h5"), tmp_path / "g", lr=1e30, n_steps=50)
    with pytest.raises(InputError, match=r"loss is \S+ at step \d"):
        stage.main(config)


def test_a_dead_generator_and_a_critic_at_chance_say_so(tmp_path, monkeypatch, capfd):
    options = {"quadruplets": write_quadruplets(tmp_path / "q.h5"), "n_steps": 1, "lr": 1e-9}
    stage.main(stage.Config(**options, out=tmp_path / "untrained"))
    assert "CHECK: the generator is worse than the mean of its targets" in capfd.readouterr().err

    def dead(*given):
        model = build_generator(*given)
        torch.nn.init.constant_(model.layers[0].bias, -1e3)  # no unit of the first layer is ever active
        return model

    monkeypatch.setattr(stage.hallucination, "build_generator", dead)
    stage.main(stage.Config(**options, out=tmp_path / "dead"))
    assert "CHECK: the generator is dead: it makes the same features from all inputs" in capfd.readouterr().err
    flat = np.full((4, 3, 4), 0.5, np.float32)
    mined = read_quadruplets(write_quadruplets(tmp_path / "flat.h5", centroids=flat))
    build_critic(mined, tmp_path / "flat.h5", None, {})
    assert "CHECK: the critic is at chance: top-1 25.0 %, chance 25.0 %" in capfd.readouterr().err


def test_the_critic_in_training_mode_normalises_by_the_generated_batch(tmp_path):
    """As in the release of ghosted2018. The mlp head has batch norm, the fitted critic has none."""
    folder = tmp_path / "extractor"
    folder.mkdir()
    torch.manual_seed(0)
    model = Extractor(ModelConfig("Conv4", 4, 3, 32, width=0.0625, head="mlp")).eval()
    for module in model.classifier.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.fill_(0.3)
    save_extractor(folder, model, MADE_FROM)
    quadruplets = write_quadruplets(tmp_path / "q.h5", dim=model.dim)
    weights = {}
    for mode in ("evaluation", "training"):
        for critic in (folder, None):
            out = tmp_path / f"{mode}-{critic is None}"
            options = {"rule": "ghosted2018", "n_steps": 5, "lr": 0.01, "critic_mode": mode}
            made = stage.main(stage.Config(quadruplets=quadruplets, out=out, extractor=critic, **options))
            weights[mode, critic] = load_generator(made)[0].state_dict()["layers.0.weight"]
    assert torch.equal(weights["training", None], weights["evaluation", None])
    assert not torch.equal(weights["training", folder], weights["evaluation", folder])
