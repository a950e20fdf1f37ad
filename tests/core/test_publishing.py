"""Outputs have one writer, appear whole, and never cost the user a file."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT

from lowshot.core import exchange, publishing
from lowshot.core.artifacts import Recipe, Sources
from lowshot.core.errors import InputError
from lowshot.core.files import content_digest, digest, write_json
from lowshot.core.ownership import check_out
from lowshot.core.publishing import building, is_done, open_journal, partial_path, writing
from lowshot.core.training import refuse_other_run

RECIPE = Recipe({"stage": "test", "config": {"lr": 1}, "inputs": {}}, {}, lambda stored: stored)


def write_file(out, text="new"):
    with writing(out, RECIPE) as partial:
        write_json(partial, {**RECIPE, "text": text})


def write_folder(out, *names):
    with writing(out, RECIPE) as partial:
        partial.mkdir()
        write_json(partial / "config.json", RECIPE)
        for name in names:
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(name)


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_nothing_is_left_beside_the_output(tmp_path):
    write_file(tmp_path / "new" / "r.json")
    write_folder(tmp_path / "new" / "model", "model.pt", "logs/a.txt")
    write_folder(tmp_path / "new" / "model", "model.pt")
    assert names_in(tmp_path / "new") == ["model/SHA256SUMS", "model/config.json", "model/model.pt", "r.json"]


# --- one writer ---

HOLD = """
    import sys, pathlib
    from lowshot.core.artifacts import Recipe
    from lowshot.core.publishing import writing
    made_from = Recipe({"stage": "test", "config": {"lr": 1}, "inputs": {}}, {}, lambda stored: stored)
    with writing(pathlib.Path(sys.argv[1]), made_from) as partial:
        partial.write_text(sys.argv[2])
        print("holding", flush=True)
        sys.stdin.readline()
"""


def process(code, *words, **environment):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, words)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, cwd=ROOT, env=os.environ | environment, **pipes)


def test_a_second_writer_is_told_who_writes(tmp_path):
    holder = process(HOLD, tmp_path / "x.txt", "first")
    assert holder.stdout.readline() == "holding\n"
    with (
        pytest.raises(InputError, match=rf"x.txt: is being written by -c, process {holder.pid} on .*, since .* --wait"),
        writing(tmp_path / "x.txt", RECIPE) as partial,
    ):
        partial.write_text("second")
    with writing(tmp_path / "y.txt", RECIPE) as partial:  # another output
        partial.write_text("other")
    holder.communicate("\n")
    assert (tmp_path / "x.txt").read_text() == "first" and names_in(tmp_path) == ["x.txt", "y.txt"]


def test_a_second_writer_waits_if_told_to(tmp_path):
    holder = process(HOLD, tmp_path / "x.txt", "first")
    assert holder.stdout.readline() == "holding\n"
    waiting = process(HOLD, tmp_path / "x.txt", "second", LOWSHOT_WAIT="1")
    assert "waiting for it" in waiting.stderr.readline()
    holder.communicate("\n")
    assert waiting.stdout.readline() == "holding\n" and (tmp_path / "x.txt").read_text() == "first"


def test_the_lock_ends_with_its_process(tmp_path):
    holder = process(HOLD, tmp_path / "x.txt", "first")
    assert holder.stdout.readline() == "holding\n"
    holder.kill()
    holder.wait()
    write_file(tmp_path / "x.json")
    with writing(tmp_path / "x.txt", RECIPE) as partial:
        assert not partial.exists(), "an unfinished output without a recipe is thrown away"
        partial.write_text("second")
    assert names_in(tmp_path) == ["x.json", "x.txt"]


@pytest.mark.parametrize("name", ["r.old", "r.lock", "r.holder", "r.journal", "r.new"])
def test_outputs_whose_names_end_like_helpers(tmp_path, name):
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / name, RECIPE, resumable=True) as partial:
        partial.mkdir()
        write_json(partial / "config.json", RECIPE)
        raise KeyboardInterrupt
    for _ in range(2):
        write_folder(tmp_path / "r", "model.pt")
        assert names_in(tmp_path / "r") == ["SHA256SUMS", "config.json", "model.pt"]
    assert is_done(tmp_path / "r", RECIPE, False)
    with writing(tmp_path / name, RECIPE, resumable=True) as partial:
        assert (partial / "config.json").exists()


def test_what_another_process_has_made_meanwhile_is_not_replaced(tmp_path):
    other = RECIPE.but(config={"lr": 2})
    assert not is_done(tmp_path / "r.json", other, False)
    write_file(tmp_path / "r.json", "first")
    with (
        pytest.raises(InputError, match=r"r\.json: exists, but was made differently"),
        writing(tmp_path / "r.json", other),
    ):
        pass
    assert not is_done(tmp_path / "r.json", other, True)
    other.absent.clear()
    with writing(tmp_path / "r.json", other) as partial:  # --overwrite
        write_json(partial, other)


def test_a_living_run_with_other_settings_is_not_called_unfinished(tmp_path):
    other = RECIPE.but(config={"lr": 2})
    with writing(tmp_path / "r", RECIPE, resumable=True) as partial:
        partial.mkdir()
        write_json(partial / "config.json", RECIPE)
        refuse_other_run(tmp_path / "r", other)  # the lock decides
        with pytest.raises(InputError, match="is being written by"), writing(tmp_path / "r", other, True, False):
            pass
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "s", RECIPE, resumable=True) as partial:
        partial.mkdir()
        write_json(partial / "config.json", RECIPE)
        raise KeyboardInterrupt
    for refuse in (
        lambda: refuse_other_run(tmp_path / "s", other),
        lambda: writing(tmp_path / "s", other, True, False).__enter__(),
    ):
        with pytest.raises(InputError, match="an unfinished run that was made differently"):
            refuse()


def test_no_output_is_inside_another(tmp_path):
    write_folder(tmp_path / "r", "model.pt")
    for name in ("r/a.json", "r/deep/a.json"):
        with pytest.raises(InputError, match=r"is inside the output .*r[.] Use"):
            write_file(tmp_path / name)
    assert names_in(tmp_path) == ["r/SHA256SUMS", "r/config.json", "r/model.pt"]


@pytest.mark.parametrize("name", ["~r.json", "x" * 250])
def test_names_that_helpers_may_have(tmp_path, name):
    with pytest.raises(InputError, match=r"does not begin with ~|name is too long"):
        write_file(tmp_path / name)
    assert not list(tmp_path.iterdir())


# --- what is not ours ---


@pytest.mark.parametrize("name", ["r.old", "r.partial", "r.json.writing", "r.partial.json", ".r", "r.new", "r.lock"])
def test_files_of_the_user_beside_the_output_stay(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("years of work")
    for _ in range(2):
        write_folder(tmp_path / "r", "model.pt")
        write_file(tmp_path / "r.json")
    assert (tmp_path / name / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["thesis.tex", ".notes", "logs/notes.md", "config.json.bak", "tensorboard/notes.md"])
def test_a_folder_with_files_of_the_user_is_not_replaced(tmp_path, name):
    write_folder(tmp_path / "r", "model.pt", "logs/a.txt")
    (tmp_path / "r" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "r" / name).write_text("years of work")
    with pytest.raises(InputError, match=f"contains files that lowshot did not write .{name}.*not replaced"):
        write_folder(tmp_path / "r", "model.pt")
    assert (tmp_path / "r" / name).read_text() == "years of work"


def test_what_lowshot_did_not_write_is_not_replaced(tmp_path):
    (tmp_path / "a.json").write_text('{"mine": 1}')
    (tmp_path / "b").mkdir()
    (tmp_path / "c.h5").write_bytes(b"\x89HDF but not really")
    for name in ("a.json", "b", "c.h5"):
        with pytest.raises(InputError, match=f"{name}: exists, and lowshot did not write it"):
            write_file(tmp_path / name)
    assert names_in(tmp_path) == ["a.json", "c.h5"]


def test_a_file_that_appears_in_the_meantime_is_not_replaced(tmp_path):
    with pytest.raises(InputError, match="lowshot did not write it"), writing(tmp_path / "a.json", RECIPE) as partial:
        write_json(partial, RECIPE)
        (tmp_path / "a.json").write_text("mine")
    assert (tmp_path / "a.json").read_text() == "mine"


# --- links ---


def test_an_output_that_is_a_link_is_refused(tmp_path):
    write_folder(tmp_path / "target", "model.pt")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(InputError, match=r"link: is a symbolic link\. Name its target .*target"):
        write_folder(tmp_path / "link", "model.pt")
    assert names_in(tmp_path / "target") == ["SHA256SUMS", "config.json", "model.pt"]


def test_a_planted_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "r.json").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lowshot").symlink_to(victim)
    with pytest.raises(InputError, match=r"\.lowshot: must be a folder that only you can write to"):
        write_file(tmp_path / "out" / "r.json")
    (tmp_path / "out" / ".lowshot").unlink()
    (tmp_path / "out" / ".lowshot").mkdir(mode=0o777)
    (tmp_path / "out" / ".lowshot").chmod(0o777)
    with pytest.raises(InputError, match="only you can write to"):
        write_file(tmp_path / "out" / "r.json")
    assert (victim / "r.json").read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has no numbers of users")
def test_the_hidden_folder_of_another_user_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / ".lowshot").mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert partial_path(tmp_path / "r.json") == tmp_path / ".lowshot-12345" / "r.json"


# --- exchanging folders ---


def test_folders_are_exchanged_in_one_step(tmp_path, monkeypatch):
    """Where the system can: the name is never free, and the old output never under another name."""
    monkeypatch.setattr(exchange, "_old_path", lambda out: pytest.fail("two steps"))
    monkeypatch.setattr(publishing, "finish_exchange", lambda out: None)
    write_folder(tmp_path / "r", "first")
    write_folder(tmp_path / "r", "second")
    assert names_in(tmp_path / "r") == ["SHA256SUMS", "config.json", "second"]


@pytest.mark.parametrize("step", ["out", "partial", "none"])
def test_an_exchange_in_two_steps_is_finished_by_the_next_run(tmp_path, monkeypatch, step):
    """Where it cannot, the old output is moved away first. A kill between the steps loses nothing."""
    monkeypatch.setattr(exchange, "_exchanged", lambda partial, out: False)
    out, old = tmp_path / "r", tmp_path / ".lowshot" / "~r.old"
    write_folder(out, "first")
    if step != "none":
        old.parent.mkdir(mode=0o700)
        out.rename(old)
    if step == "partial":
        write_folder(tmp_path / "s", "second")
        (tmp_path / "s").rename(out)
    with pytest.raises(RuntimeError), writing(out, RECIPE):
        assert names_in(out)[-1] == ("second" if step == "partial" else "first") and not old.exists()
        raise RuntimeError
    write_folder(out, "third")
    assert names_in(tmp_path) == ["r/SHA256SUMS", "r/config.json", "r/third"]


def test_a_full_disk_names_the_output(tmp_path):
    with pytest.raises(OSError, match=r"No space left.*r\.json"), writing(tmp_path / "r.json", RECIPE):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_images_that_change_while_they_are_read(tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"1234")
    made_from = RECIPE.but()
    made_from.sources = Sources({"images": content_digest([image])})
    told = r"a\.png: was changed while it was read"
    with pytest.raises(InputError, match=told), writing(tmp_path / "r.json", made_from) as partial:
        write_json(partial, RECIPE)
        image.write_bytes(b"1235")
    assert not (tmp_path / "r.json").exists() and not (tmp_path / ".lowshot").exists()


def test_an_input_that_changes_while_it_is_read(tmp_path):
    source = tmp_path / "split.json"
    source.write_text("{}")
    made_from = RECIPE.but()
    made_from.sources = Sources({"split": source})
    told = r"split\.json: was changed while it was read"
    with pytest.raises(InputError, match=told), writing(tmp_path / "r.json", made_from) as partial:
        write_json(partial, RECIPE)
        source.write_text('{"a": 1}')
    assert not (tmp_path / "r.json").exists()
    made_from.sources = Sources({"split": source})
    with writing(tmp_path / "r.json", made_from) as partial:
        write_json(partial, RECIPE)
        source.unlink()  # was read before
    check_out(tmp_path / "r.json")


def test_an_output_is_no_input(tmp_path):
    source = tmp_path / "folder" / "train.h5"
    source.parent.mkdir()
    source.write_bytes(b"")
    made_from = RECIPE.but()
    made_from.sources = Sources()
    made_from.sources[source] = digest(source)
    (tmp_path / "folder" / "SHA256SUMS").write_text(f"{digest(source)}  train.h5\n")
    for out in (tmp_path / "folder", tmp_path / "folder" / ".." / "folder"):
        with pytest.raises(InputError, match=r"is where the input .*train\.h5 is"), writing(out, made_from):
            pass
    assert source.exists()


def test_a_cut_off_output_is_made_again(tmp_path, capsys):
    out = tmp_path / "r.json"
    for content in ('{\n "stage": "low_shot",\n "config": {"a', '{"mine": [1, 2'):
        out.write_text(content)
        with pytest.raises(InputError, match="not valid JSON"):
            is_done(out, RECIPE, False)
    with pytest.raises(InputError, match="not replaced"), writing(out, RECIPE):
        pass
    out.write_text('{\n "stage": "low_shot",\n "config": {"a')
    with writing(out, RECIPE) as partial:
        write_json(partial, RECIPE)
    assert is_done(out, RECIPE, False)


def test_a_file_system_without_permissions(tmp_path, monkeypatch):
    """FAT: all modes are 0777, whatever one asks for."""
    real = Path.mkdir

    def mkdir(path, mode=0o777, parents=False, exist_ok=False):
        is_new = not path.exists()
        real(path, mode, parents, exist_ok)
        if is_new:
            path.chmod(0o777)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), writing(tmp_path / "r.json", RECIPE, resumable=True) as partial:
            write_json(partial, RECIPE)
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == [".lowshot"]


def test_a_place_that_is_taken_meanwhile_costs_no_work(tmp_path):
    out = tmp_path / "new" / "r.json"
    with pytest.raises(InputError, match="lowshot did not write it"), writing(out, RECIPE) as partial:
        open_journal(partial, RECIPE).append("hours of work")
        write_json(partial, RECIPE)
        out.write_text("{}")
    out.unlink()
    with writing(out, RECIPE) as partial:
        assert open_journal(partial, RECIPE) == ["hours of work"]
        write_json(partial, RECIPE)
    assert [path.name for path in out.parent.iterdir()] == ["r.json"]


def test_folders_that_were_made_for_nothing_are_removed(tmp_path):
    with pytest.raises(InputError), writing(tmp_path / "a" / "b" / "r.json", RECIPE):
        raise InputError("bad")
    assert list(tmp_path.iterdir()) == []


def test_what_was_made_from_a_changed_input_is_not_continued(tmp_path):
    source = tmp_path / "train.h5"
    source.write_bytes(b"1")
    made_from = RECIPE.but()
    made_from.sources = Sources({"train": source})
    with pytest.raises(InputError, match="was changed"), building(tmp_path / "r.json", made_from) as partial:
        write_json(partial, RECIPE)
        source.write_bytes(b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["train.h5"]
