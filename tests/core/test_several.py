"""Several choices at once: in which order, with which settings, from a file, the line and a grid together."""

from dataclasses import dataclass, field
from typing import Annotated

import pytest

from lowshot.core.choices import Registry, Several
from lowshot.core.cli import parse
from lowshot.core.errors import InputError
from lowshot.core.settings import PositiveInt, build, nested, values_of


@dataclass
class Salt:
    grams: PositiveInt = 1
    coarse: bool = False


@dataclass
class Sugar:
    grams: PositiveInt = 2


SPICES = Registry("spice", {"salt": Salt, "sugar": Sugar}, "pour(dish)")


@dataclass
class Config:
    add: Annotated[dict, Several(SPICES)] = field(default_factory=dict)
    size: int = 1


@pytest.fixture
def mine(tmp_path):
    """The name of a class in a file of the user's own."""
    path = tmp_path / "mine.py"
    path.write_text("from dataclasses import dataclass\n\n\n@dataclass\nclass Pepper:\n    corns: int = 3\n\n"
                    "    def pour(self, dish):\n        return dish\n")  # fmt: skip
    return f"{path}:Pepper"


def added(*words, text=None, tmp_path=None):
    """What is added, in order: (name, settings)."""
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
        words = "--config", str(tmp_path / "c.yaml"), *words
    return [(name, vars(one)) for name, one in parse(Config, list(words)).add.items()]


def test_order_is_that_of_the_names(mine):
    assert [name for name, _ in added("--add", "sugar", mine, "salt")] == ["sugar", "Pepper", "salt"]
    assert [name for name, _ in added("--add", f'["salt", "{mine}"]')] == ["salt", "Pepper"]
    assert [name for name, _ in added("--add.sugar.grams", "3", "--add.salt", "4")] == ["sugar", "salt"]
    assert added() == added("--add", "[]") == []


def test_settings_on_the_line(mine):
    line = ["--add", "salt", mine, "--add.salt.coarse", "--add.Pepper.corns", "9"]
    assert added(*line) == [("salt", {"grams": 1, "coarse": True}), ("Pepper", {"corns": 9})]
    assert added("--add.Pepper.corns", "9", "--add", mine) == [("Pepper", {"corns": 9})]
    assert added("--add.salt", "7") == [("salt", {"grams": 7, "coarse": False})]


def test_the_line_changes_what_a_file_says(tmp_path, mine):
    text = f'add: {{salt: 5, "{mine}": {{corns: 2}}, sugar: {{grams: 4}}}}'
    assert added(text=text, tmp_path=tmp_path)[1] == ("Pepper", {"corns": 2})
    changed = added("--add.salt.grams", "6", "--add.Pepper.corns", "8", text=text, tmp_path=tmp_path)
    assert changed == [("salt", {"grams": 6, "coarse": False}), ("Pepper", {"corns": 8}), ("sugar", {"grams": 4})]
    assert added("--add.salt", "6", text=text, tmp_path=tmp_path)[0][1]["grams"] == 6


def test_names_on_the_line_take_the_place_of_those_in_a_file(tmp_path, mine):
    text = f'add: {{salt: 5, "{mine}": {{corns: 2}}, sugar: {{grams: 4}}}}'
    assert added("--add", "sugar", "salt", text=text, tmp_path=tmp_path) == [
        ("sugar", {"grams": 4}),  # with the settings that the file has for them
        ("salt", {"grams": 5, "coarse": False}),
    ]
    assert added("--add", "sugar", "--add.sugar.grams", "9", text=text, tmp_path=tmp_path) == [("sugar", {"grams": 9})]
    assert added("--add", "[]", text=text, tmp_path=tmp_path) == []
    assert added(text=f'add: [salt, "{mine}"]', tmp_path=tmp_path) == [
        ("salt", {"grams": 1, "coarse": False}),
        ("Pepper", {"corns": 3}),
    ]


def test_a_change_of_one_leaves_the_others(mine):
    """As the cells of a grid do."""
    before = parse(Config, ["--add", "sugar", mine, "salt", "--add.Pepper.corns", "9", "--add.salt.coarse"])
    after = build(Config, nested({"add.salt.grams": 8, "add.Pepper.corns": 4}), before)
    assert values_of(after)["add"] == {
        "names": ["sugar", "mine.py:Pepper", "salt"],
        "sugar": {"grams": 2}, "Pepper": {"corns": 4}, "salt": {"grams": 8, "coarse": True},
    }  # fmt: skip
    assert list(build(Config, {"add": ["salt"]}, before).add) == ["salt"]
    assert values_of(before)["add"]["salt"]["grams"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--add", "salt", "salt"], "'salt' is there twice"),
        (["--add", "pepper"], "no spice is called 'pepper'. Available: salt, sugar, or your own as file.py:Class"),
        (["--add.Pepper.corns", "3"], "--add.Pepper: no spice is called 'Pepper'"),
        (["--add.salt.grams", "0"], "--add.salt.grams: '0': must be an integer > 0"),
        (["--add.sugar.coarse"], r"--add.sugar.coarse: no setting of sugar \(it is one of salt\)"),
    ],
)
def test_refused(words, message):
    with pytest.raises(InputError, match=message):
        parse(Config, words)


def test_two_classes_of_one_name(tmp_path, mine):
    (tmp_path / "other.py").write_text((tmp_path / "mine.py").read_text())
    with pytest.raises(InputError, match="'Pepper' is there twice"):
        parse(Config, ["--add", mine, f"{tmp_path / 'other.py'}:Pepper"])


def test_order_with_settings_before_names_and_in_a_list(mine):
    assert [name for name, _ in added("--add.salt", "--add", mine)] == ["salt", "Pepper"]
    assert [name for name, _ in added("--add", mine, "--add.salt")] == ["Pepper", "salt"]
    in_a_list = [{"sugar": {"grams": 3}}, "salt"]
    assert list(build(Config, {"add": in_a_list}).add.items()) == [("sugar", Sugar(3)), ("salt", Salt())]


def test_a_recipe_tells_the_order_of_two_of_one_class():
    two = [{"b": {"name": "salt"}, "a": {"name": "salt"}}, {"a": {"name": "salt"}, "b": {"name": "salt"}}]
    orders = [values_of(build(Config, {"add": one}))["add"]["names"] for one in two]
    assert orders == [["b: salt", "a: salt"], ["a: salt", "b: salt"]]


def test_a_class_cannot_take_the_place_of_the_order():
    with pytest.raises(InputError, match="names: is taken"):
        build(Config, {"add": {"names": {"name": "salt"}}})
