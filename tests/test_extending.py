"""docs/extending.md: the files and commands on the page work as printed, one after the other."""

import json
import os
import re
import shlex

import pytest
from conftest import ROOT, assert_refused, run_script

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.M | re.S))
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
    for line in block.replace("\\\n", " ").splitlines()
]


def script(word: str):
    """Return the path of a script: a file from the page is in the working folder, a stage in the repository."""
    return word if word in FILES else ROOT / word


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder after all files and commands of the page, run in order."""
    folder = tmp_path_factory.mktemp("page")
    for name, code in FILES.items():
        (folder / name).write_text(code)
    for _, name, *arguments in COMMANDS:
        path = folder / name if name in FILES else name
        done = run_script(path, *arguments, folder=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_every_block_is_run():
    assert len(FILES) == len(re.findall(r"^```python\n", PAGE, re.M)) == 8
    assert {words[0] for words in COMMANDS} == {"python"} and len(COMMANDS) >= 10
    named = {word.split(":")[0] for words in COMMANDS for word in words if re.match(r"my_\w+\.py:", word)}
    assert named == {name for name in FILES if name.startswith("my_")}


def test_the_table_lists_the_methods_that_the_registries_require():
    import low_shot
    from lowshot.classifiers.settings import CLASSIFIERS, METHODS
    from lowshot.data.datasets.settings import DATASETS
    from lowshot.representation.settings import AUGMENTATIONS, BACKBONES, LOSSES

    registries = [LOSSES, BACKBONES, AUGMENTATIONS, DATASETS, CLASSIFIERS, METHODS, low_shot.ADDITIONS]
    rows = re.findall(r"^\| \[([\w -]+)\].*\| `([^`]+)` \|$", PAGE, re.M)
    assert rows == [(one.kind, one.method) for one in registries]


def test_results_record_the_user_code(folder):
    for name, choice in {"ridge": "classifier", "nearest_neighbour": "method"}.items():
        content = json.loads((folder / f"outputs/own/results/{name}.json").read_text())
        made_with = content["config"][choice]["name"]
        assert (
            made_with in {"my_classifier.py:Ridge", "my_method.py:NearestNeighbour"} and made_with in content["method"]
        )
        assert f"code of {choice}" in content["inputs"]
    noise = json.loads((folder / "outputs/own/results/noise.json").read_text())
    assert noise["config"]["add"]["names"] == ["my_rows.py:Noise", "repetition"]
    rows = json.loads((folder / "outputs/own/results/rows.json").read_text())
    assert rows["protocol"]["setting"] == "semi_supervised"


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: f"{words[1]} {words[words.index('--out') + 1]}"
                         if "--out" in words else words[1])  # fmt: skip
def test_a_second_run_skips_everything(folder, words):
    if words[1] in FILES:
        pytest.skip("a file of the page, not a stage")
    assert "already exists" in run_script(words[1], *words[2:], folder=folder).stdout


def test_changed_code_makes_a_different_result(folder):
    words = next(words for words in COMMANDS if "my_classifier.py:Ridge" in words)
    file = folder / "my_classifier.py"
    before, times = file.read_text(), file.stat()
    try:
        file.write_text(before + "\n# changed\n")
        assert_refused(run_script(*words[1:], folder=folder), "code of classifier")
    finally:
        file.write_text(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_an_extractor_with_user_code_is_opened_only_on_request(folder):
    words = next(words for words in COMMANDS if "--code" in words)
    at = words.index("--code")
    asked = run_script(*words[1:at], *words[at + 2 :], "--overwrite", folder=folder)
    assert_refused(asked, "my_backbone.py:TwoLayers", "--code my_backbone.py:TwoLayers")
