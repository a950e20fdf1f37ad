"""Matching networks: published sizes and equations, episodes and supports, training, both commands."""

import json

import numpy as np
import pytest
import torch
from conftest import assert_refused, run_script
from hypothesis import given
from hypothesis import strategies as st

import matching_network as stage
from lowshot.core.errors import InputError
from lowshot.core.files import read_json, write_json
from lowshot.data.features import Features, read_features, write_features
from lowshot.data.protocol import read_split
from lowshot.matching.network import (
    ClassRows,
    MatchingNetwork,
    class_log_probabilities,
    draw_episode,
    draw_subsets,
    load_matching,
    save_matching,
    support_rows,
)
from lowshot.matching.training import MatchingTrainer


def network(dim=6, **options):
    torch.manual_seed(0)
    return MatchingNetwork(dim, **options).eval()


def supports(n_runs=2, n_rows=9, dim=6, n_way=4):
    rng = torch.Generator().manual_seed(1)
    labels = torch.stack([torch.randperm(n_rows, generator=rng) % n_way for _ in range(n_runs)])
    return torch.rand(n_runs, n_rows, dim, generator=rng), labels


def spread_features(n_classes=8, per_class=12, dim=6, seed=0):
    """Features scattered around a centre per class, rows of all classes shuffled."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(n_classes), per_class))
    centres = 3 * rng.random((n_classes, dim), np.float32)
    return Features(centres[labels] + 0.3 * rng.random((len(labels), dim), np.float32), labels, "train.h5")


def train_config(features, data, out, **options):
    defaults = {"n_episodes": 12, "max_shots": 4, "n_way": 5, "accelerator": "cpu"}
    return stage.TrainConfig(features=features / "train.h5", split=data / "split.json", out=out, **defaults | options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data, features):
    return stage.train(train_config(features, data, tmp_path_factory.mktemp("matching") / "matching"))


@pytest.fixture
def files(data, features):
    inputs = {"train": features / "train.h5", "test": features / "test.h5"}
    return inputs | {"split": data / "split.json", "draws": data / "draws.json"}


@pytest.mark.parametrize("dim", [8, 512])
def test_published_sizes(dim):
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in network(dim).named_children()}
    assert sizes == {"cell": 12 * dim**2 + 8 * dim, "encoder": 16 * dim**2 + 16 * dim}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_step(x, h, c, weights):
    """One LSTM step in numpy, gates in PyTorch's order (input, forget, cell, output)."""
    w_input, w_hidden, b_input, b_hidden = weights
    i, f, g, o = np.split(w_input @ x + b_input + w_hidden @ h + b_hidden, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def naive_log_probabilities(model, support, labels, query, n_way):
    """The published equations, one row at a time, in float64: support (S, D), labels (S,), one query (D,)."""
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def weights(part, end):
        return [state[f"{part}.{name}{end}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

    encoded = support.copy()
    for end, order in (("_l0", range(len(support))), ("_l0_reverse", range(len(support) - 1, -1, -1))):
        h = c = np.zeros(support.shape[1])
        for i in order:
            h, c = lstm_step(support[i], h, c, weights("encoder", end))
            encoded[i] += h
    h, c = query, np.zeros_like(query)
    for _ in range(model.n_reads):
        attention = np.exp(encoded @ h) / np.exp(encoded @ h).sum()
        read = sum(a * row for a, row in zip(attention, encoded))
        h, c = lstm_step(np.concatenate([query, read]), h, c, weights("cell", ""))
        h = h + query
    scores = np.array([row @ h / (np.linalg.norm(row) + 1e-5) for row in encoded])
    probabilities = np.exp(scores) / np.exp(scores).sum()
    return np.log([probabilities[labels == c].sum() for c in range(n_way)])


@pytest.mark.parametrize("n_rows", [9, 6])
def test_scores_are_the_published_equations(n_rows):
    """Includes as many support rows as dimensions: normalising the wrong axis would raise no error there."""
    model, (support, labels) = network(6, n_reads=3), supports(n_rows=n_rows)
    queries = torch.rand(5, 6)
    scores = model(support, labels, queries, 4)
    assert scores.shape == (2, 5, 4) and scores.dtype == torch.float32
    for run in range(2):
        for i, query in enumerate(queries.double().numpy()):
            naive = naive_log_probabilities(model, support[run].double().numpy(), labels[run].numpy(), query, 4)
            assert scores[run, i].tolist() == pytest.approx(naive, abs=1e-5)


def test_stable_form_equals_the_softmax_times_one_hot():
    similarities, labels = 3 * torch.randn(2, 9, 5), supports()[1]
    probabilities = similarities.softmax(1).mT @ torch.nn.functional.one_hot(labels, 4).float()
    assert torch.allclose(class_log_probabilities(similarities, labels, 4), probabilities.log(), atol=1e-5)


def test_log_probabilities_sum_to_one_and_absent_classes_get_none():
    support, labels = supports()
    scores = network()(support, labels, torch.rand(3, 6), 7)
    assert torch.isneginf(scores[..., 4:]).all() and scores[..., :4].isfinite().all()
    assert torch.allclose(scores.exp().sum(-1), torch.ones(2, 3))


def test_a_class_far_behind_does_not_underflow():
    similarities = torch.tensor([[[300.0], [0.0], [-300.0]]], requires_grad=True)
    scores = class_log_probabilities(similarities, torch.tensor([[0, 1, 2]]), 4)
    assert scores[0, 0, :3].tolist() == pytest.approx([0, -300, -600])
    scores[0, 0, 2].backward()
    assert similarities.grad.flatten().tolist() == pytest.approx([-1, 0, 1])


def test_neither_other_queries_nor_other_runs_matter():
    model, (support, labels), queries = network(), supports(n_runs=3), torch.rand(7, 6)
    whole = model(support, labels, queries, 4)
    parts = [model(support[r : r + 1], labels[r : r + 1], queries[q : q + 1], 4) for r in range(3) for q in range(7)]
    assert torch.allclose(whole, torch.cat(parts).view(3, 7, 4), atol=1e-5)


def test_the_order_of_the_support_matters():
    """Full context embeddings read the support as a sequence."""
    model, (support, labels), queries = network(), supports(), torch.rand(3, 6)
    turned = model(support.flip(1), labels.flip(1), queries, 4)
    assert not torch.allclose(model(support, labels, queries, 4), turned, atol=1e-4)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)).map(sorted), min_size=1, max_size=6), st.integers(0))
def test_subsets_are_distinct_ascending_and_inside(pairs, seed):
    sizes, populations = np.array(pairs).T
    parts = np.split(draw_subsets(np.random.default_rng(seed), populations, sizes), np.cumsum(sizes)[:-1])
    for part, size, population in zip(parts, sizes, populations):
        assert len(part) == size and (np.diff(part) > 0).all() and part[0] >= 0 and part[-1] < population


def test_every_subset_is_equally_likely():
    drawn = draw_subsets(np.random.default_rng(0), np.full(20_000, 5), np.full(20_000, 2)).reshape(-1, 2)
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == 10 and abs(counts / 2000 - 1).max() < 0.1


def test_episodes_are_as_published(data):
    features = spread_features()
    base = ClassRows(features, [1, 2, 4, 6], read_split(data / "split.json"))
    sizes, orders = [], set()
    for number in range(300):
        episode = draw_episode(base, 3, 10, seed=0, number=number)
        labels = features.labels[episode.support_rows]
        classes = features.labels[episode.query_rows]
        assert np.array_equal(classes[episode.support_labels], labels) and len(set(classes)) == 3
        assert (np.diff(episode.support_labels) >= 0).all(), "class after class"
        inside = np.diff(episode.support_labels) == 0
        assert (np.diff(episode.support_rows)[inside] > 0).all(), "distinct rows, ascending in a class"
        sizes += np.bincount(episode.support_labels).tolist()
        orders.add(tuple(classes))
    assert set(sizes) == set(range(1, 11)) and abs(np.mean(sizes) - 5.5) < 0.4
    assert len(orders) == 4 * 3 * 2 and {c for order in orders for c in order} == {1, 2, 4, 6}


def test_a_class_with_few_rows_lends_what_it_has(data):
    base = ClassRows(spread_features(per_class=3), [0, 1, 2], read_split(data / "split.json"))
    sizes = [np.bincount(draw_episode(base, 3, 10, 0, i).support_labels).max() for i in range(40)]
    assert max(sizes) == 3


def test_support_is_balanced_and_its_base_rows_are_the_trials(data):
    features = spread_features(per_class=12)
    base = ClassRows(features, [1, 2], read_split(data / "split.json"))
    shots = np.array([np.flatnonzero(features.labels == c)[:3] for c in (5, 7)])
    rows = support_rows(base, shots, 10, seed=0, trial=1)
    assert features.labels[rows[:20]].tolist() == [1] * 10 + [2] * 10 and len(set(rows[:20])) == 20
    assert np.array_equal(rows[20:].reshape(4, 6), np.tile(np.sort(shots.ravel()), (4, 1))), "ceil(10 / 3) times"
    assert np.array_equal(rows[:20], support_rows(base, shots[:, :1], 10, 0, 1)[:20])
    assert not np.array_equal(rows[:20], support_rows(base, shots, 10, 0, 2)[:20])


def test_training_lowers_the_loss(tmp_path, data):
    features = spread_features(n_classes=10)
    write_features(
        tmp_path / "train.h5", features.feats, features.labels, {"stage": "", "config": {}, "inputs": {}, "lineage": {}}
    )
    out = stage.train(train_config(tmp_path, data, tmp_path / "out", n_episodes=100, lr=1.0))
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 100 and log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert [record["lr"] for record in log] == [1.0] * 20
    content = read_json(out / "config.json")
    assert content["model"] == {"dim": 6, "n_reads": 5} and content["schema"] == "lowshot-matching-1"


def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path, data, features, monkeypatch):
    def weights(folder):
        return torch.load(folder / "model.pt", weights_only=True)

    options = {"n_episodes": 40, "step_episodes": 25}
    whole = weights(stage.train(train_config(features, data, tmp_path / "whole", **options)))
    train_episode = MatchingTrainer._train_episode

    def killed(self, number):
        if number == 29:
            raise KeyboardInterrupt
        return train_episode(self, number)

    monkeypatch.setattr(MatchingTrainer, "_train_episode", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.train(train_config(features, data, tmp_path / "killed", **options))
    assert not (tmp_path / "killed").exists()
    monkeypatch.undo()
    resumed = weights(stage.train(train_config(features, data, tmp_path / "killed", **options)))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    log = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == list(range(2, 41, 2))
    assert [record["lr"] for record in log] == pytest.approx([0.1] * 12 + [0.01] * 8), "the rate at a record's end"


def test_a_training_that_is_ended_early(tmp_path, data, features, files, monkeypatch, capsys):
    """The weights equal those of the full training at that episode. The network and its results record the episode."""
    options, kept = {"n_episodes": 40, "step_episodes": 10}, {}
    train_episode = MatchingTrainer._train_episode

    def watched(self, number):
        kept[number] = {name: value.clone() for name, value in self.model.state_dict().items()}
        return train_episode(self, number)

    monkeypatch.setattr(MatchingTrainer, "_train_episode", watched)
    stage.train(train_config(features, data, tmp_path / "whole", **options))
    config = train_config(features, data, tmp_path / "early", end_after=15, **options)
    stage.train(config)
    weights = torch.load(config.out / "model.pt", weights_only=True)
    assert all(torch.equal(weights[name], kept[15][name]) for name in weights)
    assert read_json(config.out / "config.json")["config"]["ended_after"] == 15
    capsys.readouterr()
    stage.train(train_config(features, data, tmp_path / "early", **options))
    assert "ended after episode 15 of 40" in capsys.readouterr().out
    out = tmp_path / "r.json"
    stage.test(stage.TestConfig(model=config.out, out=out, rows_per_class=4, shots=[1], trials=[1], **files))
    assert read_json(out)["config"]["model_ended_after"] == 15


def test_an_unfinished_run_that_is_past_the_end_keeps_its_checkpoint(tmp_path, data, features, monkeypatch):
    train_episode = MatchingTrainer._train_episode

    def killed(self, number):
        if number == 29:
            raise KeyboardInterrupt
        return train_episode(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MatchingTrainer, "_train_episode", killed)
        stage.train(train_config(features, data, tmp_path / "out", n_episodes=40))
    monkeypatch.setattr(MatchingTrainer, "_train_episode", lambda self, number: 1 / 0)
    out = stage.train(train_config(features, data, tmp_path / "out", n_episodes=40, end_after=5))
    assert read_json(out / "config.json")["config"]["ended_after"] == 28
    assert not (out / "checkpoint.pt").exists()


def test_both_commands(tmp_path, data, files):
    model = tmp_path / "matching"
    flags = ["--features", files["train"], "--split", files["split"], "--n_episodes", 5, "--accelerator", "cpu"]
    done = run_script("matching_network.py", "train", *flags, "--out", model)
    assert done.returncode == 0, done.stderr
    assert (model / "model.pt").exists() and not (model / "checkpoint.pt").exists()
    flags = [word for name, path in files.items() for word in (f"--{name}", path)]
    flags += ["--rows_per_class", 4, "--shots", "[1,3]", "--model", model, "--out", tmp_path / "result.json"]
    done = run_script("matching_network.py", "test", *flags)
    assert done.returncode == 0, done.stderr
    result = read_json(tmp_path / "result.json")
    assert result["method"] == "matching_network" and result["protocol"]["setting"] == "inductive"
    assert [(run["trial"], run["n_shot"]) for run in result["trials"]] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert all(0 <= value <= 1 for run in result["trials"] for name, value in run.items() if name.startswith("top"))


def test_results_are_those_of_every_run_alone(tmp_path, trained, files, monkeypatch):
    """With batched runs and queries, the ranks equal those of one run and one query at a time."""
    config = stage.TestConfig(model=trained, out=tmp_path / "whole.json", rows_per_class=4, shots=[1, 2, 3], **files)
    whole = read_json(stage.test(config))["trials"]
    monkeypatch.setattr("lowshot.matching.network._MOST_VALUES", 1)
    config.out = tmp_path / "single.json"
    assert read_json(stage.test(config))["trials"] == whole
    monkeypatch.setattr("lowshot.matching.network._MOST_VALUES", 2**26)
    stamp = config.out.stat().st_mtime_ns
    assert stage.test(config).stat().st_mtime_ns == stamp, "existing results are left alone"
    part = stage.TestConfig(model=trained, out=tmp_path / "part.json", rows_per_class=4, shots=[3], trials=[2], **files)
    assert read_json(stage.test(part))["trials"] == [run for run in whole if (run["trial"], run["n_shot"]) == (2, 3)]


def test_test_labels_are_evaluated_over_all_classes(tmp_path, files, data):
    """A network with zero weights is a soft nearest neighbour classifier: it recognises separable features."""
    split = read_split(data / "split.json")
    made_from = {"stage": "save_features", "config": {}, "inputs": {}, "lineage": {}}
    for name in ("train", "test"):
        labels = read_features(files[name]).labels
        write_features(tmp_path / f"{name}.h5", 20 * np.eye(10, dtype=np.float32)[labels], labels, made_from)
    model = MatchingNetwork(10)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    (tmp_path / "model").mkdir()
    save_matching(tmp_path / "model", model, split.base_classes, {**made_from, "stage": "x"})
    paths = files | {"train": tmp_path / "train.h5", "test": tmp_path / "test.h5"}
    config = stage.TestConfig(model=tmp_path / "model", out=tmp_path / "r.json", rows_per_class=3, shots=[1], **paths)
    assert all(run["top1_all"] == 1 for run in read_json(stage.test(config))["trials"])


def test_models_that_do_not_fit_are_refused(tmp_path, data, files, trained):
    split, train = read_split(data / "split.json"), read_features(files["train"])
    wide = Features(np.zeros((2, train.dim + 1), np.float32), np.arange(2), "wide.h5")
    with pytest.raises(InputError, match=rf"trained on features of {train.dim} dimensions, but wide.h5 has"):
        load_matching(trained, split, wide)
    with pytest.raises(InputError, match="trained on features of another extractor"):
        load_matching(trained, split, Features(train.feats, train.labels, train.path, "other"))
    (tmp_path / "empty").mkdir()
    write_json(tmp_path / "empty" / "config.json", {"model": {"dim": 3}})
    with pytest.raises(InputError, match="not a matching network"):
        load_matching(tmp_path / "empty", split, train)
    assert load_matching(trained, split, train).dim == train.dim


def other_split(path, data):
    """The same data set with a base and a novel class swapped."""
    content = read_json(data / "split.json")
    base, novel = content["base_classes_1"][0], content["novel_classes_1"][0]
    swap = {base: novel, novel: base}
    for name, members in content.items():
        if "_classes" in name:
            content[name] = sorted(swap.get(c, c) for c in members)
    del content["digest"]
    write_json(path, content)
    return path


def test_another_split_is_refused(tmp_path, data, files, trained):
    paths = files | {"split": other_split(tmp_path / "split.json", data)}
    with pytest.raises(InputError, match="trained on another split"):
        stage.test(stage.TestConfig(model=trained, out=tmp_path / "r.json", shots=[1], **paths))
    draws = read_json(data / "draws.json")
    older = {name: one for name, one in draws.items() if name != "classes_digest"}
    for one in ({**draws, "classes_digest": "of other classes"}, older):
        write_json(tmp_path / "draws.json", one)
        paths["draws"] = tmp_path / "draws.json"
        with pytest.raises(InputError, match=r"draws\.json: was drawn for another split .* preprocessing run$"):
            stage.test(stage.TestConfig(model=trained, out=tmp_path / "r.json", shots=[1], **paths))
    assert not (tmp_path / "r.json").exists()


def test_a_base_class_without_rows_is_refused(tmp_path, data, files, trained):
    split, train = read_split(data / "split.json"), read_features(files["train"])
    gone = split.base_classes[0]
    left = train.labels != gone
    made_from = {"stage": "save_features", "config": {}, "inputs": {}, "lineage": {}}
    write_features(tmp_path / "train.h5", train.feats[left], train.labels[left], made_from)
    with pytest.raises(InputError, match=rf"no rows of class {gone} \({split.class_names[gone]}\)"):
        stage.train(train_config(tmp_path, data, tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))


def test_more_support_rows_than_a_class_has_are_refused(tmp_path, files, trained):
    with pytest.raises(
        InputError, match=r"rows_per_class 100: class \d+ \(.+\) has 10 training rows\. Use --rows_per_class 10"
    ):
        stage.test(stage.TestConfig(model=trained, out=tmp_path / "r.json", shots=[1], **files))


def test_bad_settings_are_one_line(tmp_path, data, files):
    flags = ["--features", files["train"], "--split", files["split"], "--out", tmp_path / "out"]
    assert_refused(run_script("matching_network.py", "train", *flags, "--n_way", 50), "n_way 50", "base classes")
    assert not list(tmp_path.iterdir())


def test_diverging_at_once_leaves_nothing(tmp_path, data, features):
    with pytest.raises(
        InputError, match=r"loss is .* at step .*: the training diverged \(no checkpoint yet\). Use a smaller"
    ):
        stage.train(train_config(features, data, tmp_path / "out", lr=1e30, n_episodes=100))
    assert not list(tmp_path.iterdir())
