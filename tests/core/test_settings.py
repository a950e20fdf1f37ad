"""Settings: built from plain values, merged, described and turned back into plain values."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from lowshot.core.choices import Registry, Several
from lowshot.core.errors import InputError
from lowshot.core.parts import describe, parts_of
from lowshot.core.settings import (
    BadSetting,
    ClosedUnitInterval,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RunOnly,
    build,
    checked,
    choices_in,
    defaults_of,
    flat,
    merge,
    nested,
    paths_of,
    values_of,
)


@dataclass
class Plain:
    """No settings."""


@dataclass
class Sgm:
    weight: PositiveFloat = 0.02
    squared: bool = False


@dataclass
class Net:
    name: str
    width: PositiveFloat = 1.0


@dataclass
class Wide(Net):
    depth: PositiveInt = 2


@dataclass
class Stored:
    file: Path
    n: PositiveInt = 3


LOSSES = Registry("loss", {"plain": Plain, "sgm": Sgm}, "__call__(scores)")
NETS = Registry("network", {"small": Net, "large": Net, "wide": Wide, "timm:": Net})


@dataclass
class Labelled:
    by: Annotated[Any, LOSSES] = field(default_factory=lambda: Sgm(0.3))
    share: PositiveFloat = 1.0


SOURCES = Registry("source", {"sgm": Sgm, "stored": Stored, "plain": Plain, "labelled": Labelled}, "extend(run)")


@dataclass
class Copies:
    n: PositiveInt
    shift: NonNegativeInt = 0


@dataclass
class Optimiser:
    lr: PositiveFloat = 0.1
    loss: Annotated[Any, LOSSES] = field(default_factory=Sgm)


@dataclass
class Config:
    out: Path
    n: PositiveInt = 5
    share: ClosedUnitInterval | None = None
    kind: Literal["a", "b"] = "a"
    shots: list[PositiveInt] = field(default_factory=lambda: [1, 5])
    sizes: list[PositiveInt] | Literal["all"] = "all"
    label: str | None = None
    switch: bool = False
    device: RunOnly[str] = "auto"
    optimiser: Optimiser = field(default_factory=Optimiser)
    copies: Copies | None = None
    loss: Annotated[Any, LOSSES] = field(default_factory=Plain)
    second: Annotated[Any, LOSSES] | None = None
    net: Annotated[Any, NETS] = field(default_factory=lambda: Net("small"))
    add: Annotated[dict, Several(SOURCES)] = field(default_factory=dict)
    built: int = field(init=False, default=7)


OUT = {"out": "x"}


def made(**values: object) -> Config:
    return build(Config, OUT | values)


def refused(cause: str, **values: object) -> None:
    with pytest.raises(BadSetting) as error:
        made(**values)
    assert str(error.value) == cause


# --- values


def test_what_is_not_given_is_the_default():
    config = made()
    assert config == Config(Path("x")) and isinstance(config.out, Path)
    assert config.optimiser == Optimiser() and config.copies is None and config.built == 7


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("n", "3", 3),
        ("share", "0.5", 0.5),
        ("share", 1, 1.0),
        ("share", "null", None),
        ("share", None, None),
        ("shots", "[1, 2]", [1, 2]),
        ("shots", ["1", "2"], [1, 2]),
        ("shots", "4", [4]),
        ("shots", 4, [4]),
        ("sizes", "all", "all"),
        ("sizes", "[2]", [2]),
        ("label", 5, "5"),
        ("switch", "true", True),
        ("switch", False, False),
        ("out", "a/b", Path("a/b")),
    ],
)
def test_texts_and_plain_values_are_taken(name, given, value):
    found = getattr(made(**{name: given}), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"n": "0"}, "n: '0': must be an integer > 0"),
        ({"n": 1.5}, "n: 1.5: must be an integer > 0"),
        ({"label": True}, "label: true: must be text or null"),
        ({"n": True}, "n: true: must be an integer > 0"),
        ({"share": 1.2}, "share: 1.2: must be a number >= 0 and <= 1 or null"),
        ({"share": "nan"}, "share: 'nan': must be a number >= 0 and <= 1 or null"),
        ({"kind": "c"}, "kind: 'c': must be one of a, b"),
        ({"shots": "[1, 0]"}, "shots: '[1, 0]': must be integers > 0, such as 1 5 (YAML: [1, 5])"),
        ({"shots": []}, None),
        ({"sizes": "some"}, "sizes: 'some': must be integers > 0, such as 1 5 (YAML: [1, 5]) or all"),
        ({"switch": "maybe"}, "switch: 'maybe': must be true or false"),
        ({"nn": 1}, "nn: no such setting, did you mean 'n'?"),
        ({"built": 1}, "built: no such setting"),
        ({"optimiser": {"rate": 1}}, "optimiser.rate: no such setting"),
        ({"optimiser": {"lr": -1}}, "optimiser.lr: -1: must be a number > 0"),
        ({"copies": {"shift": 1}}, "copies.n: is required (an integer > 0)"),
    ],
)
def test_what_cannot_be_is_named(values, cause):
    if cause is None:
        assert made(**values).shots == []
    else:
        refused(cause, **values)


def test_what_must_be_given():
    with pytest.raises(BadSetting, match=r"^out: is required \(a path\)$") as error:
        build(Config, {})
    assert (error.value.key, error.value.cause) == ("out", "is required (a path)")


# --- groups


def test_a_single_value_is_that_of_the_first_setting():
    assert made(copies=4).copies == Copies(4) == made(copies={"n": "4"}).copies
    assert made(copies={"": "4", "shift": 2}).copies == Copies(4, 2)
    assert made(optimiser=0.5).optimiser == Optimiser(0.5)
    assert made(optimiser="true").optimiser == made(optimiser=True).optimiser == Optimiser()


def test_a_group_may_be_absent():
    base = made(copies=4)
    assert build(Config, {"copies": None}, base).copies is None
    assert build(Config, {"copies": {"shift": 1}}, base).copies == Copies(4, 1)
    assert build(Config, {}, base) == base


# --- choices


def test_a_choice_by_its_name():
    assert made(loss="sgm").loss == Sgm() == made(loss={"name": "sgm"}).loss
    assert made(loss={"name": "sgm", "weight": "0.1"}).loss == Sgm(0.1) == made(loss={"": "sgm", "weight": 0.1}).loss
    assert made(optimiser={"loss": "plain"}).optimiser.loss == Plain()
    assert made(second="plain").second == Plain() and made(second="null").second is None


def test_settings_of_a_choice_without_its_name_are_of_the_default():
    assert made(optimiser={"loss": {"weight": 1}}).optimiser.loss == Sgm(1.0)
    base = replace(made(), loss=Sgm(0.5, True))
    assert build(Config, {"loss": {"weight": 1}}, base).loss == Sgm(1.0, True)
    assert build(Config, {"loss": {"name": "sgm", "weight": 1}}, base).loss == Sgm(1.0, True)
    assert build(Config, {"loss": "plain"}, base).loss == Plain()


def test_a_class_of_several_names_knows_its_own():
    assert made(net="large").net == Net("large")
    assert made(net={"width": 0.5}).net == Net("small", 0.5)
    base = made(net={"name": "large", "width": 0.5})
    assert build(Config, {"net": "small"}, base).net == Net("small")  # nothing of the other's
    assert build(Config, {"net": {"name": "wide", "depth": 3}}, base).net == Wide("wide", 1.0, 3)
    assert made(net="timm:vit").net == Net("timm:vit")


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"loss": "sgn"}, "loss: no loss is called 'sgn', did you mean 'sgm'? Available: plain, sgm, or your own as "
         "file.py:Class"),
        ({"loss": {"weight": 1}}, "loss.weight: no setting of plain (it is one of sgm); its settings are: none"),
        ({"loss": {"name": "sgm", "wieght": 1}}, "loss.wieght: no setting of sgm, did you mean 'weight'?; its settings "
         "are: weight, squared"),
        ({"loss": {"name": "sgm", "weight": 0}}, "loss.weight: 0: must be a number > 0"),
        ({"second": {"weight": 1}}, "second.name: is required (plain, sgm, or your own as file.py:Class)"),
        ({"net": {"depth": 3}}, "net.depth: no setting of small (it is one of wide); its settings are: width"),
        ({"net": "file.py:Net"}, "net: no network is called 'file.py:Net'. Available: small, large, wide, timm:"),
        ({"optimiser": {"loss": {"name": "sgm", "weight": 0}}}, "optimiser.loss.weight: 0: must be a number > 0"),
    ],
)  # fmt: skip
def test_settings_that_a_choice_has_not(values, cause):
    refused(cause, **values)


# --- several


def test_several_in_order():
    assert made(add="sgm").add == {"sgm": Sgm()}
    assert list(made(add=["plain", "sgm"]).add) == list(made(add="[plain, sgm]").add) == ["plain", "sgm"]
    config = made(add={"stored": {"file": "f", "n": 2}, "sgm": {"weight": 1}, "plain": None})
    assert config.add == {"stored": Stored(Path("f"), 2), "sgm": Sgm(1.0), "plain": Plain()}


def test_a_single_value_of_one_of_several_is_its_first_setting():
    assert made(add={"stored": "f"}).add == {"stored": Stored(Path("f"))}
    assert made(add={"": ["plain", "stored"], "stored": {"": "f", "n": 2}}).add == {
        "plain": Plain(), "stored": Stored(Path("f"), 2)}  # fmt: skip


def test_names_and_what_is_given_of_one_go_together():
    assert made(add={"": ["plain", "sgm"], "sgm": {"weight": 1}}).add == {"plain": Plain(), "sgm": Sgm(1.0)}
    known = "sgm, stored, plain, labelled, or your own as file.py:Class"
    refused(f"add.other: no source is called 'other'. Available: {known}", add="other")
    refused("add.stored.file: is required (a path)", add="stored")


# --- sources together


def merged(older: dict, newer: dict) -> Config:
    return build(Config, merge(Config, OUT | older, newer))


def test_what_is_newer_goes_first():
    assert merged({"n": 1, "kind": "b"}, {"n": 2}) == made(n=2, kind="b")
    assert merged({"shots": [1, 2]}, {"shots": "3"}).shots == [3]
    assert merged({"optimiser": {"lr": 1}}, {"optimiser": {"loss": "plain"}}).optimiser == Optimiser(1.0, Plain())
    assert merged({"copies": 4}, {"copies": {"shift": 1}}).copies == Copies(4, 1)
    assert merged({"copies": {"n": 4, "shift": 2}}, {"copies": "5"}).copies == Copies(5, 2)
    assert merged({"copies": 4}, {"copies": "null"}).copies is None
    assert merged({"copies": None}, {"copies": 4}).copies == Copies(4)


def test_another_choice_leaves_nothing_of_the_older_one():
    assert merged({"loss": {"name": "sgm", "weight": 1}}, {"loss": "plain"}).loss == Plain()
    assert merged({"net": {"name": "large", "width": 2}}, {"net": {"name": "wide"}}).net == Wide("wide")
    assert merged({"second": "sgm"}, {"second": None}).second is None


def test_the_same_choice_keeps_its_settings():
    assert merged({"loss": "sgm"}, {"loss": {"weight": 1}}).loss == Sgm(1.0)
    assert merged({"loss": {"name": "sgm", "weight": 1}}, {"loss": {"squared": "true"}}).loss == Sgm(1.0, True)
    assert merged({"loss": {"name": "sgm", "weight": 1}}, {"loss": "sgm"}).loss == Sgm(1.0)
    older = {"optimiser": {"loss": {"weight": 1}}}  # of the default choice
    assert merged(older, {"optimiser": {"loss": "sgm"}}).optimiser.loss == Sgm(1.0)
    assert merged(older, {"optimiser": {"loss": "plain"}}).optimiser.loss == Plain()


def test_several_of_two_sources():
    older = {"add": {"sgm": {"weight": 1}}}
    assert merged(older, {"add": {"sgm": {"squared": True}, "plain": None}}).add == {
        "sgm": Sgm(1.0, True), "plain": Plain()}  # fmt: skip
    assert merged(older, {"add": ["plain"]}).add == {"plain": Plain()}
    assert merged({"add": ["stored", "sgm"]}, {"add": {"stored": "f"}}).add == {
        "stored": Stored(Path("f")), "sgm": Sgm()}  # fmt: skip


def test_a_choice_inside_one_of_several():
    given = {
        "add": {"labelled": {"": "sgm", "by": {"weight": "0.5"}}}
    }  # --add.labelled sgm --add.labelled.by.weight 0.5
    assert made(**given).add == {"labelled": Labelled(Sgm(0.5))}
    assert made(add={"labelled": {"by": {"squared": True}}}).add == {"labelled": Labelled(Sgm(0.3, True))}
    older = {"add": {"labelled": {"by": {"name": "sgm", "weight": 1}}}}
    assert merged(older, {"add": {"labelled": {"by": {"squared": True}}}}).add == {"labelled": Labelled(Sgm(1.0, True))}
    assert merged(older, {"add": {"labelled": {"by": "plain"}}}).add == {"labelled": Labelled(Plain())}


def test_dotted_names_and_nested_values():
    values = {"a": 1, "b": {"c": 2, "d": {"e": [3]}}}
    assert flat(values) == {"a": 1, "b.c": 2, "b.d.e": [3]} and nested(flat(values)) == values
    both = {"loss": {"": "sgm", "weight": 1}}
    assert nested({"loss": "sgm", "loss.weight": 1}) == nested({"loss.weight": 1, "loss": "sgm"}) == both


# --- and back


def test_plain_values_of_settings():
    config = made(copies=2, second="sgm", net="large", device="cpu", add={"stored": "f", "sgm": None}, shots=[1])
    assert values_of(config) == {
        "n": 5, "share": None, "kind": "a", "shots": [1], "sizes": "all", "label": None, "switch": False,
        "optimiser": {"lr": 0.1, "loss": {"name": "sgm", "weight": 0.02, "squared": False}},
        "copies": {"n": 2, "shift": 0}, "loss": {"name": "plain"},
        "second": {"name": "sgm", "weight": 0.02, "squared": False}, "net": {"name": "large", "width": 1.0},
        "add": {"names": ["stored", "sgm"], "stored": {"n": 3}, "sgm": {"weight": 0.02, "squared": False}},
    }  # fmt: skip
    assert values_of(made())["second"] is None and values_of(made())["add"] == {"names": []}


def test_defaults_are_those_of_the_choices_at_work():
    sgm = {"name": "sgm", "weight": 1}
    config = made(n=1, copies=2, loss=sgm, second=sgm, optimiser={"loss": {"weight": 1}},
                  net={"name": "wide", "depth": 9}, add={"sgm": {"weight": 1}})  # fmt: skip
    defaults = defaults_of(config)
    assert defaults["n"] == 5 and not {"out", "device"} & set(defaults)
    assert defaults["loss"] == {"name": "plain", "weight": 0.02, "squared": False}
    assert defaults["second"] == {"weight": 0.02, "squared": False}
    assert defaults["net"] == {"name": "small", "width": 1.0, "depth": 2}
    assert defaults["optimiser"]["loss"] == {"name": "sgm", "weight": 0.02, "squared": False}
    assert defaults["copies"] == {"shift": 0}
    assert defaults["add"] == {"names": [], "sgm": {"weight": 0.02, "squared": False}}


@dataclass
class Places:
    one: Path
    none: Path | None = None
    many: list[Path] = field(default_factory=list)
    run_only: RunOnly[Path] = Path("r")
    text: str = "t"


def test_paths_are_no_values_but_inputs():
    places = Places(Path("a"), many=[Path("b")])
    assert values_of(places) == {"text": "t"}
    assert paths_of(places) == {"one": Path("a"), "many.0": Path("b")}


def test_all_choices_at_work():
    config = made(second="sgm", add=["plain", "sgm"])
    assert dict(choices_in(config)) == {
        "optimiser.loss": Sgm(), "loss": Plain(), "second": Sgm(), "net": Net("small"), "add.plain": Plain(),
        "add.sgm": Sgm(),
    }  # fmt: skip


def test_what_a_file_holds_is_checked():
    assert checked(Sgm, {"weight": 1}, Path("config.json")) == Sgm(1.0)
    for values, cause in [
        ({"weight": "much"}, "config.json: weight: 'much': must be a number > 0"),
        ({"width": 1}, "config.json: width: no such setting"),
        ([1], r"config.json: \[1\] instead of named settings"),
    ]:
        with pytest.raises(InputError, match=cause):
            checked(Sgm, values, Path("config.json"))


# --- in words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("out", "a path"),
        ("n", "an integer > 0"),
        ("share", "a number >= 0 and <= 1 or null"),
        ("kind", "one of a, b"),
        ("shots", "integers > 0, such as 1 5 (YAML: [1, 5])"),
        ("sizes", "integers > 0, such as 1 5 (YAML: [1, 5]) or all"),
        ("label", "text or null"),
        ("switch", "true or false"),
        ("device", "text"),
        ("optimiser", "settings"),
        ("loss", "plain, sgm, or your own as file.py:Class"),
        ("net", "small, large, wide, timm:"),
        ("add", "sgm, stored, plain, labelled, or your own as file.py:Class"),
    ],
)
def test_what_a_setting_may_be(name, words):
    assert describe(parts_of(Config)[name]) == words


# --- what a class itself refuses


@dataclass
class Ordered:
    low: int = 0
    high: int = 1

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")


@dataclass
class Outer:
    inner: Ordered = field(default_factory=Ordered)


def test_an_error_of_the_class_names_where_it_stands():
    with pytest.raises(BadSetting, match=r"^inner: low 2 is above high 1$"):
        build(Outer, {"inner": {"low": 2}})
    with pytest.raises(InputError, match=r"^low 2 is above high 1$"):
        build(Ordered, {"low": 2})
