"""Choices by name, and classes of the user's own: from files, from modules, and what they are refused for."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lowshot.core.artifacts import recipe
from lowshot.core.choices import Registry, code_file, is_own, named_class, own_class, own_name, suggestion
from lowshot.core.errors import InputError
from lowshot.core.parts import parts_of
from lowshot.core.settings import build, values_of
from lowshot.gan.settings import FixedChanges


@dataclass
class Plain:
    weight: float = 1.0


@dataclass
class Net:
    name: str


REGISTRY = Registry("loss", {"plain": Plain, "small": Net, "large": Net, "timm:": Net}, "score(rows)")
CLOSED = Registry("network", {"small": Net})
EITHER = Registry("classifier", {}, "score(tasks) or fit(problem)")
CALLED = Registry("augmentation", {}, "__call__(images)")

MINE = '''
from dataclasses import dataclass, field
from typing import Annotated, Any

import helper


@dataclass
class Smooth:
    """A loss."""

    epsilon: float = 0.1

    def score(self, rows):
        return helper.TEN


@dataclass
class Fitted:
    def fit(self, problem):
        ...


@dataclass
class Called:
    def __call__(self, images):
        ...


@dataclass
class Heir(Called):
    ...


@dataclass
class Empty:
    ...


@dataclass
class Named:
    name: str = "x"

    def score(self, rows):
        ...


class NoDataclass:
    def score(self, rows):
        ...


def function(rows):
    ...
'''


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """A file of the user's own with a module beside it, in the folder at work."""
    (tmp_path / "helper.py").write_text("TEN = 10\n")
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "mine.py"
    sys.modules.pop("helper", None)
    sys.modules.pop("mine", None)


def refused(cause: str, call, *arguments: object) -> None:
    with pytest.raises(InputError) as error:
        call(*arguments)
    assert str(error.value) == cause


# --- ours


def test_ours_by_name():
    assert REGISTRY.find("plain") is Plain and REGISTRY.find("small") is REGISTRY.find("large") is Net
    assert REGISTRY.find("timm:resnet50.a1_in1k") is Net
    assert REGISTRY.name_of(Plain()) == "plain" and REGISTRY.name_of(Net("large")) == "large"
    assert REGISTRY.name_of(Net("timm:vit")) == "timm:vit"
    assert not is_own(FixedChanges(0.5)) and is_own(Plain())


def test_names_there_are_not():
    there = "Available: plain, small, large, timm:, or your own as file.py:Class"
    refused(f"no loss is called 'plane', did you mean 'plain'? {there}", REGISTRY.find, "plane")
    refused(f"no loss is called 'x'. {there}", REGISTRY.find, "x")
    refused("no network is called 'mine.py:Net'. Available: small", CLOSED.find, "mine.py:Net")
    assert (REGISTRY.names, CLOSED.names) == (there.removeprefix("Available: "), "small")


def test_suggestions():
    assert (
        suggestion("epsilom", ["epsilon", "weight"]) == ", did you mean 'epsilon'?" and suggestion("x", ["abc"]) == ""
    )


# --- the user's own


def test_a_class_of_a_file(mine):
    found = REGISTRY.find("mine.py:Smooth")
    assert found(0.2).score(None) == 10, "the module beside the file is imported"
    assert found is REGISTRY.find(f"{mine}:Smooth"), "the same file is one module"
    assert (own_name(found), code_file(found)) == ("mine.py:Smooth", mine.resolve())
    assert REGISTRY.name_of(found()) == "mine.py:Smooth" and is_own(found())
    assert str(mine.parent) not in sys.path and "mine" not in sys.modules, "it shadows nothing"


def test_a_class_of_a_module(mine):
    found = REGISTRY.find("mine:Smooth")
    assert (own_name(found), code_file(found)) == ("mine:Smooth", mine)
    assert REGISTRY.name_of(found()) == "mine:Smooth" and is_own(found())


def test_files_of_one_name_are_two_modules(mine, tmp_path):
    other = tmp_path / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text(MINE.replace("epsilon: float = 0.1", "epsilon: float = 0.3"))
    assert [REGISTRY.find(f"{file}:Smooth")().epsilon for file in (mine, other)] == [0.1, 0.3]


def test_a_changed_file_is_read_anew(mine):
    assert REGISTRY.find("mine.py:Smooth")().epsilon == 0.1
    mine.write_text(MINE.replace("epsilon: float = 0.1", "epsilon: float = 0.3"))
    assert REGISTRY.find("mine.py:Smooth")().epsilon == 0.3


def test_which_method_makes_it_one(mine):
    assert {EITHER.find(f"mine.py:{name}").__name__ for name in ("Smooth", "Fitted")} == {"Smooth", "Fitted"}
    assert {CALLED.find(f"mine.py:{name}").__name__ for name in ("Called", "Heir")} == {"Called", "Heir"}
    refused("mine.py:Empty: defines no score(tasks) or fit(problem), which makes it a classifier",
            EITHER.find, "mine.py:Empty")  # fmt: skip
    refused("mine.py:Empty: defines no __call__(images), which makes it an augmentation", CALLED.find, "mine.py:Empty")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("none.py:Smooth", "none.py:Smooth: none.py: no such file"),
        ("mine.py:Smoth", "mine.py:Smoth: mine.py defines no 'Smoth', did you mean 'Smooth'?"),
        ("mine.py:_x", "mine.py:_x: mine.py defines no '_x'"),
        ("mine.py:function", "mine.py:function: is not a dataclass, whose fields would be the settings of a loss"),
        ("mine:NoDataclass", "mine:NoDataclass: is not a dataclass, whose fields would be the settings of a loss"),
        ("mine.py:Empty", "mine.py:Empty: defines no score(rows), which makes it a loss"),
        ("mine.py:Named", "mine.py:Named: has a setting 'name', which is the class itself here; give it another name"),
        ("nowhere:Smooth", "nowhere:Smooth: cannot be imported (ModuleNotFoundError: No module named 'nowhere')"),
    ],
)  # fmt: skip
def test_what_is_no_choice(mine, name, cause):
    refused(cause, REGISTRY.find, name)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("\n1 / 0\n", "broken.py, line 2: ZeroDivisionError: division by zero"),
        ("import nowhere\n", "broken.py, line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("def f():\n    raise ValueError('bad')\n\nf()\n", "broken.py, line 2: ValueError: bad"),
        ("import faulty\n", "faulty.py, line 1: NameError: name 'x' is not defined"),
        (
            "import json\n\njson.loads('{')\n",
            "broken.py, line 3: JSONDecodeError: Expecting property name enclosed in "
            "double quotes: line 1 column 2 (char 1)",
        ),
        ("x = (\n", "SyntaxError: '(' was never closed (broken.py, line 1)"),
    ],
)
def test_errors_in_the_users_code_name_its_line(mine, code, cause):
    mine.with_name("broken.py").write_text(code)
    mine.with_name("faulty.py").write_text("x\n")
    refused(f"broken.py:Loss: cannot be imported ({cause})", REGISTRY.find, "broken.py:Loss")
    refused(f"broken.py:Loss: cannot be imported ({cause})", own_class, "broken.py:Loss")  # and again
    assert str(mine.parent) not in sys.path


def test_annotations_that_mean_nothing(mine):
    code = "from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n@dataclass\nclass Loss:\n"
    mine.with_name("unknown.py").write_text(
        f"{code}    weight: Weight = 1\n\n    def score(self, rows):\n        ...\n"
    )
    cause = "unknown.py:Loss: an annotation is none (NameError: name 'Weight' is not defined)"
    refused(cause, REGISTRY.find, "unknown.py:Loss")


def test_annotations_as_texts(mine):
    code = "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom pathlib import Path\n\n\n"
    code += "@dataclass\nclass Loss:\n    file: Path\n    weight: int | None = None\n\n"
    code += "    def score(self, rows):\n        ...\n"
    mine.with_name("later.py").write_text(code)
    assert build(REGISTRY.find("later.py:Loss"), {"file": "a", "weight": "2"}).weight == 2


def test_what_an_artifact_was_made_with_is_imported_if_the_command_names_it(mine):
    where = Path("extractor")
    assert named_class(REGISTRY, "plain", [], where) is Plain
    assert named_class(REGISTRY, "timm:vit", [], where) is Net
    refused("extractor: was made with mine.py:Smooth, code of your own; --code mine.py:Smooth lets it be imported",
            named_class, REGISTRY, "mine.py:Smooth", [], where)  # fmt: skip
    found = named_class(REGISTRY, "mine.py:Smooth", ["mine:Smooth", f"{mine}:Smooth"], where)
    assert found is REGISTRY.find("mine.py:Smooth")


def test_code_is_an_input_of_a_recipe(mine):
    from typing import Annotated, Any

    @dataclass
    class Config:
        loss: Annotated[Any, REGISTRY]

    assert parts_of(Config)["loss"].kind == "choice"
    config = build(Config, {"loss": {"name": "mine.py:Smooth", "epsilon": 0.5}})
    assert values_of(config) == {"loss": {"name": "mine.py:Smooth", "epsilon": 0.5}}
    made_from = recipe("stage", config, {})
    assert list(made_from["inputs"]) == ["code of loss"]
    mine.write_text(MINE + "# changed\n")
    changed = recipe("stage", build(Config, {"loss": {"name": "mine.py:Smooth", "epsilon": 0.5}}), {})
    assert changed.difference(dict(made_from)) == "input code of loss has changed"
    older = build(Config, {"loss": {"epsilon": 0.7}}, config)
    assert older.loss.epsilon == 0.7, "settings alone are of the class at work"


def test_code_is_named_by_a_prefix_of_ours_no_more_than_by_another_name(tmp_path, monkeypatch):
    """`timm:evil.py:Net` in an artifact is a name below `timm:`, not a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm:evil.py").write_text("raise SystemExit('imported')")
    registry = Registry("backbone", {"timm:": Plain}, "build(n_channels, image_size)")
    assert named_class(registry, "timm:evil.py:Net", [], Path("config.json")) is Plain
    assert registry.find("timm:evil.py:Net") is Plain


def test_code_for_several_choices_is_told_apart(mine):
    """--code names all that an artifact was made with; each choice takes its own."""
    other = "from dataclasses import dataclass\n@dataclass\nclass Other:\n    a: int = 1\n"
    mine.with_name("other.py").write_text(other)
    code = [f"{mine.with_name('other.py')}:Other", f"{mine}:Smooth"]
    assert own_name(named_class(REGISTRY, "mine.py:Smooth", code, Path("config.json"))) == "mine.py:Smooth"


@pytest.mark.parametrize("code", ["import sys\nsys.exit()", "raise SystemExit(0)"])
def test_code_that_ends_the_process_is_refused(tmp_path, code):
    (tmp_path / "ends.py").write_text(code)
    with pytest.raises(InputError, match=r"cannot be imported .*SystemExit"):
        own_class(f"{tmp_path}/ends.py:Loss")


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="make_dataclass sets the module of its class there")
def test_a_class_of_no_file_is_refused(tmp_path):
    (tmp_path / "made.py").write_text("from dataclasses import make_dataclass\nL = make_dataclass('L', [('a', int)])")
    with pytest.raises(InputError, match="write it as a class"):
        REGISTRY.find(f"{tmp_path}/made.py:L")
