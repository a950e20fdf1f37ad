"""verify.py: the state of all outputs below a folder."""

import os
import shutil

import pytest
from conftest import run_script, unfinished

from lowshot.core import audit as audit_module
from lowshot.core.artifacts import Recipe
from lowshot.core.audit import audit
from lowshot.core.errors import InputError
from lowshot.core.files import write_json
from lowshot.core.ownership import record_path
from lowshot.core.publishing import partial_path
from lowshot.core.sealing import sha256


@pytest.fixture
def outputs(tmp_path, data, extractor, features):
    """A data folder, an extractor trained on it, and their features."""
    for name, folder in (("data", data), ("model", extractor), ("features", features)):
        shutil.copytree(folder, tmp_path / "outputs" / name)
    (tmp_path / "outputs" / "notes.txt").write_text("not an output")
    return tmp_path / "outputs"


def states(folder):
    return {one.path.relative_to(folder).as_posix(): one.state for one in audit(folder)}


def verified(folder):
    done = run_script("verify.py", folder)
    assert done.stderr == ""
    return done.returncode, done.stdout.replace(f"{folder}/", "").splitlines()


def test_whole_outputs(outputs):
    expected = ["data", "features/test.h5", "features/train.h5", "model"]
    assert states(outputs) == dict.fromkeys(expected, "whole")
    assert verified(outputs) == (0, ["verify: 4 whole"])


def test_damage_is_named(outputs):
    for name, place in (("model/model.pt", 5000), ("features/train.h5", -3000)):
        content = bytearray((outputs / name).read_bytes())
        content[place] ^= 4
        (outputs / name).write_bytes(content)
    code, lines = verified(outputs)
    assert code == 1 and lines[-1] == "verify: 2 whole, 2 damaged"
    damaged = [line for line in lines if ": damaged" in line]
    assert damaged[0].startswith("features/train.h5: damaged (features/train.h5: damaged between bytes")
    assert damaged[1].startswith("model: damaged (model/model.pt: damaged or edited")


def test_what_was_made_from_something_that_is_gone(outputs):
    shutil.rmtree(outputs / "model")
    code, lines = verified(outputs)
    assert code == 0 and lines[-1] == "verify: 3 whole"
    assert lines[:-1] == [
        f"features/{part}.h5: whole; made from another extractor than any that is here" for part in ("test", "train")
    ]


def test_unfinished_outputs(outputs):
    unfinished(outputs / "features" / "test.h5")
    assert states(outputs)["features/.lowshot/test.h5"] == "unfinished"
    assert partial_path(outputs / "features" / "test.h5").exists()


def test_a_table_and_its_record(outputs):
    table = outputs / "predictions.csv"
    table.write_text("image,rank\n")
    made_from = Recipe({"stage": "predict", "config": {}, "inputs": {"images": "x"}}, {}, lambda stored: stored)
    write_json(record_path(table), {**made_from, "tables": [sha256(table)]})
    assert states(outputs)["predictions.csv.json"] == "whole" and verified(outputs) == (0, ["verify: 5 whole"])
    table.write_text("image,rang\n")
    code, lines = verified(outputs)
    assert code == 1 and "predictions.csv: damaged or edited, it is not the table" in lines[0]
    table.unlink()
    code, lines = verified(outputs)
    assert code == 0 and lines[0] == (
        "predictions.csv.json: orphaned (the record of predictions.csv, which is not here)"
    )


def test_results_whose_choice_is_gone(outputs):
    content = {"stage": "low_shot", "config": {}, "inputs": {"selection": "0" * 64}}
    write_json(outputs / "r.json", content)
    (outputs / "r.selection.yaml").write_text("mine: 1")
    assert verified(outputs)[1] == ["verify: 5 whole"]
    (outputs / "r.selection.yaml").unlink()
    assert verified(outputs)[1][0] == "r.json: whole; made from another selection than any that is here"


def test_a_journal_is_an_unfinished_output(outputs):
    workplace = outputs / "results" / ".lowshot"
    workplace.mkdir(parents=True)
    for name in ("~r.json.journal", "train.h5", "~train.h5.journal", "~train.h5.lock"):
        (workplace / name).write_text("")
    assert {name for name, state in states(outputs).items() if state == "unfinished"} == {
        "results/.lowshot/~r.json.journal", "results/.lowshot/train.h5"
    }  # fmt: skip


def test_files_without_checksums_and_other_files(outputs):
    (outputs / "model" / "SHA256SUMS").unlink()
    (outputs / "mine.json").write_text('{"a": 1}')
    assert states(outputs)["model"] == "without checksums" and "mine.json" not in states(outputs)


def test_strange_trees(outputs):
    """Files of the user that are no JSON, pipes, line breaks in names, and many levels."""
    (outputs / "mine.json").write_text('{"a": NaN}')
    (outputs / "mine.yaml").write_text("a: 1\n---\nb: 2\n")
    os.mkfifo(outputs / "pipe.json")
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]" for i in range(1, 12)]
    (outputs / "bomb.yaml").write_text("\n".join(bomb))
    deep = outputs
    for _ in range(60):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "cut.json").write_text('{\n "stage": "low_shot",\n "con')
    (outputs / "a\nverify: 9 whole\nb.json").write_text(
        '{"stage": "x", "config": {}, "inputs": {}, "checksum": "sha256:0"}'
    )
    code, lines = verified(outputs)
    assert code == 1 and len(lines) == 3 and lines[-1] == "verify: 2 damaged, 4 whole"


def test_no_outputs(tmp_path):
    assert verified(tmp_path) == (0, ["verify: no outputs"])
    with pytest.raises(InputError, match="nowhere: no such folder"):
        audit(tmp_path / "nowhere")


def test_stages_at_work_and_removed_outputs_are_no_error(outputs, monkeypatch):
    partial = partial_path(outputs / "other")
    partial.mkdir(parents=True)
    (partial / "SHA256SUMS").write_text("half a li")
    (outputs / "gone").mkdir()
    found = audit_module._outputs

    def vanishing(folder):
        for path in found(folder):
            if path.name == "test.h5":
                path.unlink()
            yield path

    monkeypatch.setattr(audit_module, "_outputs", vanishing)
    assert states(outputs) == {
        "data": "whole", "features/train.h5": "whole", "model": "whole", ".lowshot/other": "unfinished"
    }  # fmt: skip


def test_what_cannot_be_read_is_named(outputs, monkeypatch):
    closed = [outputs / "features" / "train.h5", outputs / "data"]
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path not in closed and access(path, mode))
    code, lines = verified(outputs)
    assert code == 1 and lines[0] == "data: not readable (permission denied)"
    assert lines[-1] == "verify: 2 not readable, 2 whole"


@pytest.mark.parametrize("left", [0, 1])
def test_a_list_of_checksums_that_is_cut_off(outputs, left):
    sums = outputs / "model" / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True)[:left]))
    code, lines = verified(outputs)
    assert code == 0 and lines[0].startswith("model: without checksums (") and "not in SHA256SUMS)" in lines[0]
