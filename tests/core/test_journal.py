"""The journal of finished parts, and the stages that continue from it."""
# ruff: noqa: F401, F811 -- fixtures of other files

import json
import shutil
import zlib
from dataclasses import replace

import numpy as np
import pytest
from evaluation.test_episodes import config as episodes_config
from evaluation.test_low_shot import tiny_config
from matching.test_matching import files, trained
from photos.test_predict import classifier, photos, table

import episodes
import low_shot
import matching_network
import predict
from lowshot.classifiers.settings import LogisticOptions, MLPOptions, NearestMeanOptions, SGDOptions
from lowshot.core.artifacts import Recipe
from lowshot.core.errors import InputError
from lowshot.core.journal import Journal
from lowshot.core.locking import helper, lock
from lowshot.core.publishing import writing

MADE_FROM = Recipe({"stage": "try", "config": {"seed": 0}, "inputs": {}}, {}, lambda stored: stored)
OTHER = MADE_FROM.but(config={"seed": 1})


@pytest.fixture
def path(tmp_path):
    journal = Journal(tmp_path / "journal", MADE_FROM)
    for entry in ([1, 0.1], {"a": "ä\n"}, None):
        journal.append(entry)
    return journal.path


def test_entries_are_there_again(path):
    assert Journal(path, MADE_FROM) == [[1, 0.1], {"a": "ä\n"}, None]
    assert Journal(path, OTHER) == [] and not path.exists(), "work with another recipe is discarded"


@pytest.mark.parametrize("lost", [1, 5, 11])
def test_a_line_that_was_cut_off_does_not_count(path, lost):
    path.write_bytes(path.read_bytes()[:-lost])
    journal = Journal(path, MADE_FROM)
    assert journal == [[1, 0.1], {"a": "ä\n"}]
    journal.append("new")
    assert Journal(path, MADE_FROM) == [[1, 0.1], {"a": "ä\n"}, "new"]


def test_a_file_that_was_cut_off_in_its_first_entry(tmp_path):
    journal = Journal(tmp_path / "journal", MADE_FROM)
    journal.append(["first"])
    whole = journal.path.read_bytes()
    for length in range(len(whole)):
        journal.path.write_bytes(whole[:length])
        Journal(journal.path, MADE_FROM).append("new")
        again = Journal(journal.path, MADE_FROM)
        again.append("newer")
        assert Journal(journal.path, MADE_FROM) == ["new", "newer"]


def test_no_flipped_bit_changes_an_entry(path):
    whole, entries = path.read_bytes(), [[1, 0.1], {"a": "ä\n"}, None]
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found = list(Journal(path, MADE_FROM))
        assert found == entries[: len(found)] and len(found) < 3


@pytest.fixture
def stopping(monkeypatch):
    """`stopping(n)` interrupts what appends entry number n to a journal, counted from 0. Returns the number of entries
    that are appended.
    """
    real, count = Journal.append, []

    def stopping(at=None):
        def append(journal, entry):
            if len(count) == at:
                raise KeyboardInterrupt
            count.append(entry)
            real(journal, entry)

        count.clear()
        monkeypatch.setattr(Journal, "append", append)
        return count

    return stopping


def check_it_continues(stopping, main, config, name, at=1):
    """Interrupt a stage at a part, and run it again. Only the other parts are done, and the output is the same."""
    whole = stopping()
    expected = main(config).read_bytes()
    n_parts = len(whole)
    assert n_parts > at
    config = replace(config, out=config.out.with_name(f"again{config.out.suffix}"))
    stopping(at)
    with pytest.raises(KeyboardInterrupt) as stop:
        main(config)
    assert "the same command continues from" in stop.value.__notes__[0]
    count = stopping()
    out = main(config)
    assert len(count) == n_parts - at
    assert not list(out.parent.glob(f".lowshot/*{out.name}*"))
    if out.suffix == ".csv":
        assert out.read_bytes() == expected
    else:
        assert json.loads(out.read_bytes())[name] == json.loads(expected)[name]


@pytest.mark.parametrize(
    "classifier",
    [NearestMeanOptions(), LogisticOptions(), MLPOptions(max_epochs=2), SGDOptions(n_steps=20, batch_size=20)],
)
def test_low_shot_continues_after_its_runs(tmp_path, monkeypatch, capsys, stopping, classifier):
    monkeypatch.setattr("lowshot.classifiers.linear.available_cores", lambda: 1)
    config = replace(tiny_config(tmp_path), classifier=classifier)
    check_it_continues(stopping, low_shot.main, config, "trials")
    assert "continuing after" in capsys.readouterr().out


def test_low_shot_does_runs_again_whose_scores_were_lost(tmp_path, stopping):
    scores = tmp_path / "out" / "scores.h5"
    config = replace(tiny_config(tmp_path), classifier=NearestMeanOptions(), scores=scores)
    low_shot.main(config)
    expected = scores.read_bytes()
    without = replace(config, scores=None)
    # Two runs (and the scores of a third) with scores and two without; the file of scores deleted; nothing lost.
    cases = (config, without, False, 3), (config, config, True, 6), (config, config, False, 2)
    for first, second, lost, n_left in cases:
        scores.unlink()
        config.out.unlink()
        for one in (first, second):
            stopping(2)
            with pytest.raises(KeyboardInterrupt):
                low_shot.main(one)
        if lost:
            (config.out.parent / ".lowshot" / "scores.h5").unlink()
        count = stopping()
        low_shot.main(config)
        assert len(count) == n_left and scores.read_bytes() == expected


def test_matching_network_continues_after_its_runs(tmp_path, trained, files, monkeypatch, stopping):
    monkeypatch.setattr("lowshot.matching.network._MOST_VALUES", 1)
    config = matching_network.TestConfig(
        model=trained, out=tmp_path / "r.json", rows_per_class=4, shots=[1, 2, 3], **files
    )
    check_it_continues(stopping, matching_network.test, config, "trials", at=2)


def test_episodes_continue_after_those_that_are_done(episodes_config, monkeypatch, stopping):
    monkeypatch.setattr("lowshot.evaluation.episodes._GATHERED_BYTES", {"cpu": 1})
    check_it_continues(stopping, episodes.main, replace(episodes_config, n_shots=[1, 2]), "episodes", at=7)


def test_episodes_continue_with_parts_of_another_size(episodes_config, monkeypatch, stopping):
    """As on another device."""
    config = replace(episodes_config, n_shots=[1, 2])
    expected = json.loads(episodes.main(config).read_text())["episodes"]
    config.out.unlink()
    for at, n_bytes in ((4, 1), (1, 9 * 28 * 4 * 5)):
        monkeypatch.setattr("lowshot.evaluation.episodes._GATHERED_BYTES", {"cpu": n_bytes})
        stopping(at)
        with pytest.raises(KeyboardInterrupt):
            episodes.main(config)
    monkeypatch.undo()
    assert json.loads(episodes.main(config).read_text())["episodes"] == expected


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_classify_continues_after_the_images_that_are_done(
    tmp_path,
    classifier,
    photos,
    monkeypatch,
    stopping,
    suffix,
):
    monkeypatch.setattr(predict, "_BLOCK", 20)
    out = tmp_path / "p" / f"p{suffix}"
    config = predict.ClassifyConfig(classifier=classifier, images=photos / "new", out=out, batch_size=10)
    check_it_continues(stopping, predict.classify, config, "predictions", at=3)


def test_a_photo_that_changes_before_an_interruption_is_noticed(tmp_path, classifier, photos, monkeypatch):
    monkeypatch.setattr(predict, "_BLOCK", 20)
    images = shutil.copytree(photos / "new", tmp_path / "new")
    out = tmp_path / "p" / "p.csv"
    config = predict.ClassifyConfig(classifier=classifier, images=images, out=out, batch_size=10)
    real, photo = Journal.append, images / "class9" / "13.png"
    before = photo.read_bytes()

    def append(journal, entry):
        real(journal, entry)
        photo.write_bytes((images / "class0" / "5.png").read_bytes())

    monkeypatch.setattr(Journal, "append", append)
    with pytest.raises(InputError, match=r"13\.png: was changed while it was read"):
        predict.classify(config)
    monkeypatch.setattr(Journal, "append", real)
    photo.write_bytes(before)
    predict.classify(config)
    undisturbed = replace(config, out=tmp_path / "undisturbed.csv")
    assert table(out) == table(predict.classify(undisturbed))


def test_a_journal_survives_another_writer_of_the_scores(tmp_path, stopping, monkeypatch):
    config = replace(tiny_config(tmp_path), classifier=NearestMeanOptions(), scores=tmp_path / "out" / "scores.h5")
    stopping(3)
    with pytest.raises(KeyboardInterrupt):
        low_shot.main(config)
    with lock(config.scores), pytest.raises(InputError, match="is being written by"):
        low_shot.main(config)
    count = stopping()
    low_shot.main(config)
    assert len(count) == 3


def test_what_is_thrown_away_is_said(path, capsys):
    path.write_bytes(path.read_bytes()[:-3] + b"x\n\n")
    assert len(Journal(path, MADE_FROM)) == 2
    assert "after 2 parts, what follows is thrown away" in capsys.readouterr().err


@pytest.mark.parametrize(
    "entry", [b"5", b"{}", b'{"stage": 1, "config": [], "inputs": {}}', b"\xff", b"[" * 100_000, b"x"]
)
def test_other_lines_are_no_journal(path, entry):
    line = b"%08x %s\n" % (zlib.crc32(entry), entry)
    path.write_bytes(line)
    assert Journal(path, MADE_FROM) == []


def test_links_are_not_followed(tmp_path):
    target = tmp_path / "theirs"
    Journal(target, MADE_FROM).append(1)
    before = target.read_bytes()
    (tmp_path / "link").symlink_to(target)
    Journal(tmp_path / "link", MADE_FROM).append(2)
    assert target.read_bytes() == before and not (tmp_path / "link").is_symlink()


def test_other_settings_start_again_and_bad_input_leaves_nothing(tmp_path, stopping):
    config = replace(tiny_config(tmp_path), classifier=NearestMeanOptions())
    stopping(4)
    with pytest.raises(KeyboardInterrupt):
        low_shot.main(config)
    count = stopping()
    low_shot.main(replace(config, seed=1))
    assert len(count) == 6
    with pytest.raises(InputError), writing(config.out, MADE_FROM) as partial:
        Journal(helper(partial, "journal"), MADE_FROM).append(1)
        raise InputError("bad")
    assert not (config.out.parent / ".lowshot").exists()


def test_what_a_kill_left_beside_a_complete_output_is_removed(tmp_path):
    config = replace(tiny_config(tmp_path), classifier=NearestMeanOptions())
    low_shot.main(config)
    made_from = low_shot._recipe(config)
    for recipe, is_left in ((made_from, False), (made_from.but(config={"seed": 9}), True)):
        folder = config.out.parent / ".lowshot"
        folder.mkdir(mode=0o700, exist_ok=True)
        Journal(folder / "~r.json.journal", recipe).append([])
        low_shot.main(config)
        assert (folder / "~r.json.journal").exists() == is_left
    (folder / "~r.json.journal").write_text("cut o")
    low_shot.main(config)
    assert not folder.exists()
    assert np.isfinite(json.loads(config.out.read_text())["trials"][0]["top1_all"])
