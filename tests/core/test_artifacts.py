"""The stage contract: complete or absent, skipped when made from the same, refused when made from others."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lowshot.core.artifacts import digest, is_done, partial_path, read_recipe, recipe, settings, write_json, writing
from lowshot.core.errors import InputError


@dataclass
class Inner:
    flip: bool = False


@dataclass
class Config:
    out: Path
    lr: float = 0.1
    inner: Inner = field(default_factory=Inner)
    overwrite: bool = False


def made(tmp_path, **changes):
    return recipe("stage", Config(tmp_path / "out.json", **changes), {})


def test_settings_leave_out_paths_and_what_only_changes_the_run(tmp_path):
    assert settings(Config(tmp_path)) == {"lr": 0.1, "inner": {"flip": False}}


def test_a_file_appears_only_when_complete(tmp_path):
    out = tmp_path / "new" / "out.json"
    with pytest.raises(RuntimeError), writing(out) as partial:
        partial.write_text("half")
        assert not out.exists()
        raise RuntimeError
    assert not list(out.parent.iterdir())
    with writing(out) as partial:
        partial.write_text("whole")
    assert out.read_text() == "whole" and list(out.parent.iterdir()) == [out]


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    out = tmp_path / "folder"
    for name in ("first", "second"):
        with writing(out) as partial:
            partial.mkdir()
            (partial / name).touch()
    assert [p.name for p in out.iterdir()] == ["second"] and [p.name for p in tmp_path.iterdir()] == ["folder"]


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
    assert is_done(out, same, overwrite=False) and "is there already" in capsys.readouterr().out
    assert not is_done(out, same, overwrite=True)
    with pytest.raises(InputError, match=r"setting inner\.flip was False, now True"):
        is_done(out, made(tmp_path, inner=Inner(True)), overwrite=False)
    (tmp_path / "input").write_text("x")
    with pytest.raises(InputError, match="input data has another content"):
        is_done(out, recipe("stage", Config(out), {"data": tmp_path / "input"}), overwrite=False)
    with pytest.raises(InputError, match="it is an output of stage"):
        is_done(out, recipe("other", Config(out), {}), overwrite=False)
    write_json(out, {"mine": 1})
    with pytest.raises(InputError, match="does not say what made it"):
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
    assert partial_path(Path("a/train.h5")) == Path("a/train.partial.h5")
