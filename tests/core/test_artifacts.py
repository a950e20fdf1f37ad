"""The stage contract: complete or absent, skipped when made from the same, refused when made differently."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from lowshot.core.artifacts import name_today, read_recipe, recipe, renamed
from lowshot.core.choices import Registry
from lowshot.core.errors import InputError
from lowshot.core.files import digest, missing, read_json, read_yaml, write_json
from lowshot.core.publishing import is_done, partial_path, writing
from lowshot.core.settings import RunOnly, build


@dataclass
class Inner:
    flip: bool = False


@dataclass
class Config:
    out: Path
    lr: float = 0.1
    inner: Inner = field(default_factory=Inner)
    overwrite: RunOnly[bool] = False


@dataclass
class Sgd:
    lr: float = 0.1
    momentum: float = 0.9


@dataclass
class Adam:
    lr: float = 0.001
    start: Path | None = None


Sgd.__module__ = Adam.__module__ = "lowshot.tests"  # as if they were ours, whose code no recipe holds
OPTIMIZERS = Registry("optimizer", {"sgd": Sgd, "adam": Adam}, "steps(parameters)")


@dataclass(kw_only=True)
class Choosing:
    optimizer: Annotated[Any, OPTIMIZERS] = field(default_factory=Sgd)
    epochs: int = 90
    depth: int | None = None

    renamed = {"optimizer": "optimizer.name", "lr": "optimizer.lr", "momentum": "optimizer.momentum"}  # noqa: RUF012


def chosen(inputs=None, **values):
    return recipe("stage", build(Choosing, values), inputs or {})


def made(tmp_path, **changes):
    return recipe("stage", Config(tmp_path / "out.json", **changes), {})


def test_settings_leave_out_paths_and_what_only_changes_the_run(tmp_path):
    assert made(tmp_path)["config"] == {"lr": 0.1, "inner": {"flip": False}}


def test_a_file_appears_only_when_complete(tmp_path):
    out = tmp_path / "new" / "out.json"
    with pytest.raises(RuntimeError), writing(out, made(tmp_path)) as partial:
        partial.write_text("half")
        assert not out.exists()
        raise RuntimeError
    assert not out.parent.exists()
    with writing(out, made(tmp_path)) as partial:
        partial.write_text("whole")
    assert out.read_text() == "whole" and list(out.parent.iterdir()) == [out]


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    out = tmp_path / "folder"
    for name in ("first", "second"):
        with writing(out, made(tmp_path)) as partial:
            partial.mkdir()
            (partial / name).touch()
    assert sorted(p.name for p in out.iterdir()) == ["SHA256SUMS", "second"] and [
        p.name for p in tmp_path.iterdir()
    ] == ["folder"]


def test_a_resumable_leftover_stays_only_for_the_same_recipe(tmp_path):
    out, recipes = tmp_path / "out.json", [made(tmp_path), made(tmp_path, lr=0.2)]
    with pytest.raises(RuntimeError), writing(out, recipes[0], resumable=True) as partial:
        write_json(partial, recipes[0])
        raise RuntimeError
    with pytest.raises(RuntimeError), writing(out, recipes[0], resumable=True) as partial:
        assert partial.exists()
        raise RuntimeError
    with writing(out, recipes[1], resumable=True) as partial:
        assert not partial.exists()
        write_json(partial, recipes[1])


def test_done_same_other_unknown(tmp_path, capsys):
    out, same = tmp_path / "out.json", made(tmp_path)
    assert not is_done(out, same, overwrite=False)
    write_json(out, same)
    assert is_done(out, same, overwrite=False) and "already exists" in capsys.readouterr().out
    assert not is_done(out, same, overwrite=True)
    with pytest.raises(InputError, match=r"setting inner\.flip was False, now True"):
        is_done(out, made(tmp_path, inner=Inner(True)), overwrite=False)
    (tmp_path / "input").write_text("x")
    with pytest.raises(InputError, match="input data is new"):
        is_done(out, recipe("stage", Config(out), {"data": tmp_path / "input"}), overwrite=False)
    with pytest.raises(InputError, match="it is an output of stage"):
        is_done(out, recipe("other", Config(out), {}), overwrite=False)
    write_json(out, {"mine": 1})
    with pytest.raises(InputError, match="does not record what made it"):
        is_done(out, same, overwrite=False)


def test_digest_of_a_folder_follows_its_content_not_its_logs(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = digest(tmp_path)
    (tmp_path / "log.jsonl").write_text("x")
    assert digest(tmp_path) == before
    (tmp_path / "model.pt").write_text("x")
    assert digest(tmp_path) != before
    with pytest.raises(InputError, match="no such file"):
        digest(tmp_path / "none")


def test_recipe_of_foreign_files_is_none(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    assert read_recipe(tmp_path / "list.json") is None
    assert partial_path(Path("a/train.h5")) == Path("a/.lowshot/train.h5")


def test_a_recipe_by_hand(tmp_path):
    (tmp_path / "start.json").write_text("{}")
    whole = chosen({"data": tmp_path / "start.json", "known": "abc", "none": None}, optimizer="sgd")
    empty = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # SHA-256 of "{}"
    assert whole == {"stage": "stage", "inputs": {"data": empty, "known": "abc"},
                     "config": {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}, "epochs": 90,
                                "depth": None}}  # fmt: skip
    started = chosen(optimizer={"name": "adam", "start": tmp_path / "start.json"})
    assert started["inputs"] == {"optimizer.start": empty}
    assert started["config"]["optimizer"] == {"name": "adam", "lr": 0.001}
    assert recipe("stage", Choosing(), {}, seen=[1, 2])["config"]["seen"] == [1, 2]


def stored(**config):
    return {"stage": "stage", "config": config, "inputs": {}}


ALIKE = {
    "today's form": {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}, "epochs": 90, "depth": None},
    "older names": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "epochs": 90},
    "a setting that came later": {"optimizer": "sgd", "lr": 0.1},
    "null for what has no value": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "depth": None},
}
OTHERS = {
    "setting optimizer.lr was 0.2, now 0.1": {"optimizer": "sgd", "lr": 0.2},
    "setting optimizer.lr was 0.001, now 0.1; setting optimizer.name was adam, now sgd": {
        "optimizer": "adam",
        "lr": 0.001,
    },
    "setting epochs was 5, now 90": {"optimizer": "sgd", "lr": 0.1, "epochs": 5},
    "setting depth was 3, now None": {"optimizer": "sgd", "lr": 0.1, "depth": 3},
    "setting gone was 3, now not set": {"optimizer": "sgd", "lr": 0.1, "gone": 3},
}


@pytest.mark.parametrize("case", ALIKE)
def test_recipes_of_older_revisions_count_as_the_same(case):
    assert chosen().difference(stored(**ALIKE[case])) is None


@pytest.mark.parametrize("difference", OTHERS)
def test_what_differs_is_named(difference):
    assert chosen().difference(stored(**OTHERS[difference])) == difference


def test_settings_of_a_choice_that_was_not_at_work_are_no_difference():
    """Older recipes hold those of all choices; today's hold what the choice has."""
    older = {"optimizer": "adam", "lr": 0.001, "momentum": 0.5, "epochs": 90}
    assert chosen(optimizer="adam").difference(stored(**older)) is None
    assert chosen(optimizer={"name": "sgd", "lr": 0.001}).difference(stored(**older)) is not None


def test_what_a_finished_training_says_of_its_run_is_no_difference():
    assert chosen().difference(stored(optimizer="sgd", ended_after=3)) is None


@pytest.mark.parametrize(
    ("name", "today"),
    [("loss", "loss.name"), ("loss.weight", "loss.weight"), ("sgd.lr", "classifier.lr"), ("sgd", "classifier"),
     ("methods.cosine.lr", "classifier.lr"), ("methods.other.lr", "methods.other.lr"), ("sgdr", "sgdr")],
)  # fmt: skip
def test_names_of_today_by_a_table(name, today):
    names = {"loss": "loss.name", "sgd": "classifier", "methods": "methods", "methods.cosine": "classifier"}
    assert name_today(names, name) == today
    assert renamed(names, stored(**{name: 1}))["config"] == {today: 1}


def test_files_in_groups_and_lists_of_a_choice_are_inputs(tmp_path):
    @dataclass
    class Files:
        more: list[Path]
        either: str | Path = ""

    @dataclass
    class Own:
        files: Files

    files = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path in files:
        path.write_text(path.name)
    registry = Registry("kind", {"own": Own}, "run()")

    @dataclass
    class Chosen:
        kind: Annotated[Any, registry]

    values = {"name": "own", "files": {"more": [str(files[0]), str(files[1])], "either": str(files[2])}}
    made_from = recipe("stage", build(Chosen, {"kind": values}), {})
    names = ("kind.files.more.0", "kind.files.more.1", "kind.files.either")
    assert [made_from["inputs"][name] for name in names] == [digest(path) for path in files]


@pytest.mark.parametrize("content", [{"config": []}, {"inputs": None}, {"config": 3}])
def test_a_recipe_of_another_form_is_none(tmp_path, content):
    write_json(tmp_path / "a.json", {"stage": "x", "config": {}, "inputs": {}} | content)
    assert read_recipe(tmp_path / "a.json") is None


def test_a_folder_that_no_stage_made_is_told_so(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="does not record what made it"):
        is_done(tmp_path / "mine", made(tmp_path), overwrite=False)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("lr: 1\nsteps: {n: 1, n: 2}\n", r"line 2: 'n' is there twice"),
        ("lr: 1\nlr: 2\n", "line 2: 'lr' is there twice"),
        ("a: [\n", "line 2: .*"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("a: &x {b: *x}\n", "an anchor contains itself"),
    ],
)
def test_yaml_that_is_refused(tmp_path, text, cause):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"a\.yaml: not valid YAML \({cause}\)$"):
        read_yaml(tmp_path / "a.yaml")


def test_an_output_needs_a_name():
    with pytest.raises(InputError, match=r"^--out \.: must have a name"):
        partial_path(Path())


def test_an_input_that_is_not_there_is_told_with_the_way_out(tmp_path):
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "train.h5").touch()
    for path, said in (
        ("features", "is a folder, not a file; it holds train.h5"),
        ("features/train.h5/config.json", "is a file, not a folder with a config.json"),
        ("features/trian.h5", "no such file, did you mean 'train.h5'?"),
        ("nowhere/images.h5", "nowhere: no such folder (preprocessing.py writes images.h5)"),
        ("nowhere/x", "nowhere: no such folder"),
        ("features/split.json", "no such file (preprocessing.py writes split.json)"),
        ("features/missing.h5", "missing.h5: no such file"),
    ):
        error = str(missing(tmp_path / path))
        assert error.endswith(said) and "\n" not in error, error


def test_what_text_files_may_not_be(tmp_path):
    """Anchors that stand for billions of values, half of a surrogate pair, and pipes, of which reading never ends."""
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]" for i in range(1, 12)]
    (tmp_path / "a.yaml").write_text("\n".join(bomb))
    with pytest.raises(InputError, match=r"its anchors stand for \d+ values"):
        read_yaml(tmp_path / "a.yaml")
    for name, read in (("b.json", read_json), ("b.yaml", read_yaml)):
        (tmp_path / name).write_text('{"a": "\\ud800"}')
        with pytest.raises(InputError, match="not valid"):
            read(tmp_path / name)
    (tmp_path / "c.json").write_text('{"a": "\\ud83d\\ude00"}')
    assert read_json(tmp_path / "c.json") == {"a": "\U0001f600"}
    os.mkfifo(tmp_path / "pipe.json")
    for read in (read_json, digest):
        with pytest.raises(InputError, match="is a pipe or a device, not a file"):
            read(tmp_path / "pipe.json")
