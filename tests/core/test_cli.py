"""The command line: what it takes, what it shows, and how it refuses."""

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from conftest import assert_refused, run_script

from lowshot.core import cli
from lowshot.core.choices import Registry, Several
from lowshot.core.errors import InputError
from lowshot.core.settings import PositiveFloat, PositiveInt, RunOnly, build


@dataclass
class Plain:
    """No settings."""


@dataclass
class Steps:
    lr: PositiveFloat = 0.1
    """Learning rate."""
    shift: float = 0.0
    """Any number."""


@dataclass
class Margin:
    weight: float
    """Of the margin."""


@dataclass
class Inner:
    k: PositiveInt = 30
    """Neighbours."""
    flip: bool = False
    """Mirrored."""


@dataclass
class Copies:
    n: PositiveInt = 3
    """How many."""
    file: Path | None = None
    """Where they are."""


RULES = Registry("rule", {"plain": Plain, "steps": Steps, "margin": Margin}, "apply(x)")


@dataclass(kw_only=True)
class Config:
    """Work that needs settings."""

    seed: int = 0
    """Of all that is drawn."""
    out: Path
    """Where to write."""
    mode: Literal["one", "two"] = "one"
    """Which of both."""
    label: str | None = None
    """A name."""
    shots: list[PositiveInt] = field(default_factory=lambda: [1, 5])
    """Numbers of shots."""
    files: list[Path] = field(default_factory=list)
    """What to read."""
    inner: Inner = field(default_factory=Inner)
    """What is inside."""
    copies: Copies | None = None
    """Copies, if wanted."""
    rule: Annotated[Any, RULES] = field(default_factory=Steps)
    """How it goes."""
    second: Annotated[Any, RULES] | None = None
    """Another one."""
    add: Annotated[dict, Several(RULES)] = field(default_factory=dict)
    """More of them, in order."""
    memory: RunOnly[PositiveFloat | None] = None
    """Changes no result."""
    overwrite: RunOnly[bool] = False
    """Make it again."""

    renamed = {"rate": "rule.lr", "rule": "rule.name", "old": "inner"}  # noqa: RUF012 -- no field
    moved = {"elsewhere": "other.py"}  # noqa: RUF012 -- no field


OWN = '''from dataclasses import dataclass

@dataclass
class Mine:
    size: int = 2
    """Of mine."""

    def apply(self, x):
        return x
'''


def parse(*words):
    """What the line gives, `out` being given too."""
    return cli.parse(Config, ["--out", "o", *map(str, words)])


def refused(*words, match):
    with pytest.raises(InputError, match=match) as caught:
        cli.parse(Config, ["--out", "o", *map(str, words)])
    assert "\n" not in str(caught.value)


@pytest.fixture
def file(tmp_path):
    """Writes a YAML file; returns its path."""

    def write(text, name="settings.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def stage(monkeypatch, capsys):
    """Runs a stage of `Config` with the words of a line: (exit code, stdout, stderr)."""

    def run(*words, main=print, start=lambda main: cli.run(main, Config, "What it does.")):
        monkeypatch.setattr(sys, "argv", ["/somewhere/stage.py", *map(str, words)])
        code = 0
        try:
            start(main)
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return run


def test_defaults():
    assert parse() == Config(out=Path("o"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seed", "7"], {"seed": 7}),
        (["--seed=7"], {"seed": 7}),
        (["--seed", "-7"], {"seed": -7}),
        (["--seed", "1", "--seed", "2"], {"seed": 2}),
        (["--rule.shift", "-1e-3"], {"rule": Steps(shift=-0.001)}),
        (["--label", "a b=c"], {"label": "a b=c"}),
        (["--label=--x"], {"label": "--x"}),
        (["--label="], {"label": ""}),
        (["--label", "5"], {"label": "5"}),
        (["--label", "null"], {"label": None}),
        (["--mode", "two"], {"mode": "two"}),
        (["--shots", "2", "10"], {"shots": [2, 10]}),
        (["--shots", "[2,10]"], {"shots": [2, 10]}),
        (["--shots", "[2, 10]"], {"shots": [2, 10]}),
        (["--shots=[2]"], {"shots": [2]}),
        (["--shots", "2"], {"shots": [2]}),
        (["--files", "a", "b c"], {"files": [Path("a"), Path("b c")]}),
        (["--files", '["a", "b"]'], {"files": [Path("a"), Path("b")]}),
        (["--files", "[]"], {"files": []}),
        (["--overwrite"], {"overwrite": True}),
        (["--overwrite", "--seed", "1"], {"overwrite": True, "seed": 1}),
        (["--overwrite", "true"], {"overwrite": True}),
        (["--overwrite", "false"], {"overwrite": False}),
        (["--memory", "2.5"], {"memory": 2.5}),
        (["--memory", "null"], {"memory": None}),
        (["--inner.k", "8", "--inner.flip"], {"inner": Inner(8, True)}),
        (["--copies"], {"copies": Copies()}),
        (["--copies", "5"], {"copies": Copies(5)}),
        (["--copies.n", "5"], {"copies": Copies(5)}),
        (["--copies", "5", "--copies.file", "f"], {"copies": Copies(5, Path("f"))}),
        (["--copies.file", "f", "--copies", "5"], {"copies": Copies(5, Path("f"))}),
        (["--copies", "null"], {"copies": None}),
        (["--rule", "plain"], {"rule": Plain()}),
        (["--rule", "margin", "--rule.weight", "-2"], {"rule": Margin(-2)}),
        (["--rule.weight", "2", "--rule", "margin"], {"rule": Margin(2)}),
        (["--rule.lr", "2"], {"rule": Steps(2)}),
        (["--second", "plain"], {"second": Plain()}),
        (["--second", "null"], {"second": None}),
        (["--add", "plain", "steps"], {"add": {"plain": Plain(), "steps": Steps()}}),
        (["--add", "[steps,plain]"], {"add": {"steps": Steps(), "plain": Plain()}}),
        (["--add.margin.weight", "1", "--add.plain"], {"add": {"margin": Margin(1), "plain": Plain()}}),
        (["--add.margin", "1"], {"add": {"margin": Margin(1)}}),
    ],
    ids=str,
)
def test_the_line(words, expected):
    assert parse(*words) == Config(out=Path("o"), **expected)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--seed"], "^--seed: a value is missing: must be an integer$"),
        (["--seed", "x"], "^--seed: 'x': must be an integer"),
        (["--seed", "1.5"], "^--seed: '1.5': must be an integer"),
        (["--seed", "1", "2"], "^--seed: takes one value, not 2 .1, 2.$"),
        (["--seed", "null"], "^--seed: 'null': must be an integer"),
        (["--label"], "^--label: a value is missing: must be text or null$"),
        (["--files"], "^--files: a value is missing: must be paths, such as A B .YAML: .A, B..$"),
        (["--mode", "three"], "^--mode: 'three': must be one of one, two"),
        (["--shots", "0"], "^--shots: '0': must be integers > 0, such as 1 5 .YAML: .1, 5..$"),
        (["--shots", "true"], "^--shots: 'true': must be integers > 0"),
        (["--shots", "[1, true]"], "^--shots: .*must be integers > 0"),
        (["--overwrite", "maybe"], "^--overwrite: 'maybe': must be true or false"),
        (["--inner.k", "0"], "^--inner.k: '0': must be an integer > 0"),
        (["--rule.lr", "0"], "^--rule.lr: '0': must be a number > 0"),
        (["--rule.lr", "nan"], "^--rule.lr: 'nan': must be a number > 0"),
        (["--rule.lr", "inf"], "^--rule.lr: 'inf': must be a number > 0"),
        (["--sed", "1"], "^--sed: no such setting, did you mean 'seed'"),
        (["--inner.kk", "1"], "^--inner.kk: no such setting, did you mean 'k'"),
        (["--rule", "step"], "^--rule: no rule is called 'step', did you mean 'steps'.*plain, steps, margin"),
        (["--rule"], "^--rule: a value is missing: is required.* .plain, steps, margin"),
        (["--lr", "1"], "^--lr: no such setting, did you mean .rule.lr"),
        (["--rule.weight", "1"], r"^--rule.weight: no setting of steps \(it is one of margin\).*lr, shift"),
        (["--rule", "plain", "--rule.lr", "1"], r"^--rule.lr: no setting of plain \(it is one of steps\).*none"),
        (["--rule", "margin"], r"^--rule.weight: is required: Of the margin \(a number"),
        (["--second.lr", "1"], r"^--second.name: is required \(plain, steps, margin"),
        (["--add", "other"], "^--add.other: no rule is called 'other'"),
        (["--add.margin"], r"^--add.margin.weight: is required: Of the margin \(a number"),
        (["--copies.n", "x"], "^--copies.n: 'x': must be an integer > 0"),
        (["--copies", "x"], "^--copies.n: 'x': must be an integer > 0"),
        (["--config"], "^--config: a value is missing: a YAML file"),
        (["--config", "none.yaml"], "^none.yaml: no such file"),
        (["--rate", "1"], "^--rate: is called rule.lr now"),
        (["--old.k", "1"], "^--old.k: is called inner.k now"),
        (["--elsewhere.k", "1"], "^--elsewhere: is a setting of other.py now"),
    ],
    ids=str,
)
def test_refusals(words, match):
    refused(*words, match=match)


def test_a_wrong_value_comes_before_what_is_missing():
    with pytest.raises(InputError, match=r"^--overwrite: 'maybe': must be true or false$"):
        cli.parse(Config, ["--overwrite", "maybe"])


def test_what_must_be_given():
    with pytest.raises(InputError, match=r"^--out: is required: Where to write \(a path\)$"):
        cli.parse(Config, [])


@pytest.mark.parametrize("word", ["x", "-s", "--"])
def test_a_value_without_a_setting(word):
    with pytest.raises(
        InputError, match=f"^'{word}': does not belong to a setting; settings are given as --name value"
    ):
        cli.parse(Config, [word])


def test_a_file(file):
    given = """
seed: 3
shots: [2]
files: [a, b]
inner: {k: 8}
copies: 5
rule: {name: margin, weight: 1}
second: plain
add: [steps, plain]
memory: null
overwrite: true
"""
    expected = Config(
        out=Path("o"), seed=3, shots=[2], files=[Path("a"), Path("b")], inner=Inner(8), copies=Copies(5),
        rule=Margin(1), second=Plain(), add={"steps": Steps(), "plain": Plain()}, overwrite=True,
    )  # fmt: skip
    assert parse("--config", file(given)) == expected


@pytest.mark.parametrize(
    "given",
    [
        "rule.name: margin\nrule.weight: 1",
        "rule: margin\nrule.weight: 1",
        "rule.weight: 1\nrule: margin",
        "rule.weight: 1\nrule: {name: margin}",
    ],
)
def test_a_file_may_have_dotted_names(file, given):
    assert parse("--config", file(given)).rule == Margin(1)


def test_several_files_in_order_and_the_line_before_any(file):
    first, second = file("seed: 1\ninner: {k: 1, flip: true}", "a.yaml"), file("seed: 2\ninner: {k: 2}", "b.yaml")
    assert parse("--config", first, second).seed == parse("--config", first, "--config", second).seed == 2
    assert parse("--config", second, first).seed == parse("--config", second, f"--config={first}").seed == 1
    assert parse("--config", first, second).inner == Inner(2, True)
    assert parse("--seed", "3", "--config", first, "--inner.k", 9).inner == Inner(9, True)


def test_another_choice_leaves_nothing_of_a_files(file):
    with_options = file("rule: {name: steps, lr: 3}\ncopies: {n: 4, file: f}\nadd: {margin: 1}")
    assert parse("--config", with_options, "--rule", "plain").rule == Plain()
    assert parse("--config", with_options, "--rule", "steps").rule == Steps(3)
    assert parse("--config", with_options, "--rule.shift", 1).rule == Steps(3, 1)
    assert parse("--config", with_options, "--copies", "null").copies is None
    assert parse("--config", file("copies: 1", "one.yaml")).copies == Copies(1)
    assert parse("--config", with_options, "--copies", 6).copies == Copies(6, Path("f"))
    assert parse("--config", with_options, "--add.plain").add == {"margin": Margin(1), "plain": Plain()}
    assert parse("--config", with_options, "--add", "plain").add == {"plain": Plain()}


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("seed: x", "seed: 'x': must be an integer"),
        ("seed: true", "seed: true: must be an integer"),
        ("label: yes", "label: true: must be text or null"),
        ("seed: null", "seed: null: must be an integer"),
        ("shots: [1, true]", "shots: .*must be integers > 0"),
        ("inner: {k: 0}", "inner.k: 0: must be an integer > 0"),
        ("inner: {kk: 1}", "inner.kk: no such setting, did you mean 'k'"),
        ("copies: x", "copies.n: 'x': must be"),
        ("rule: other", "rule: no rule is called 'other'"),
        ("rule: {name: other, lr: 1}", "rule: no rule is called 'other'"),
        ("rule: {name: plain, lr: 1}", "rule.lr: no setting of plain"),
        ("rule: {lr: .inf}", "rule.lr: .*must be a number > 0"),
        ("add: [other]", "add.other: no rule is called 'other'"),
        ("add: {margin: {weight: x}}", "add.margin.weight: 'x'"),
        ("rate: 1", "rate: is called rule.lr now"),
        ("old: {k: 1}", "old.k: is called inner.k now"),
        ("elsewhere: {k: 1}", "elsewhere: is a setting of other.py now"),
        ("- 1", "holds no settings"),
        ("", "holds no settings"),
        ("a: [", "not valid YAML"),
    ],
)
def test_refusals_name_the_file(file, given, match):
    path = file(given)
    refused("--config", file("seed: 1", "sound.yaml"), path, match=f"^{path}: {match}")


def test_the_file_that_is_named_is_the_one_to_blame(file):
    first, second = file("rule: {name: other}", "a.yaml"), file("rule: {lr: x}", "b.yaml")
    refused("--config", first, match=f"^{first}: rule: no rule")
    refused("--config", first, "--rule.lr", "1", match=f"^{first}: rule: no rule")
    refused("--config", second, "--rule.shift", "y", match=f"^{second}: rule.lr: 'x'")
    refused("--config", second, "--rule.lr", "y", match="^--rule.lr: 'y'")
    refused("--config", second, "--rule", "margin", match="^--rule.weight: is required")


FULL = """
label: '5'
seed: -3
files: [a, b]
rule: {name: margin, weight: 1.0e-05}
second: steps
add: {margin: 1, plain: null}
copies: 7
"""


@pytest.mark.parametrize("given", ["seed: 0", FULL])
def test_printed_settings_are_read_back(file, stage, given):
    code, shown, _ = stage("--config", file(given), "--out", "o", "--print_config")
    assert code == 0 and yaml.safe_load(shown)["out"] == "o"
    assert cli.parse(Config, ["--config", str(file(shown, "shown.yaml"))]) == parse("--config", file(given))


def test_printed_settings_say_what_is_switched_off(file, stage):
    @dataclass
    class WithCopies:
        copies: Copies | None = field(default_factory=Copies)

    _, shown, _ = stage("--copies", "null", "--print_config", start=lambda main: cli.run(main, WithCopies, ""))
    assert cli.parse(WithCopies, ["--config", str(file(shown))]).copies is None


def test_printed_names_of_own_classes_are_found_from_anywhere(file, stage, tmp_path, monkeypatch):
    file(OWN, "mine.py")
    monkeypatch.chdir(tmp_path)
    _, shown, _ = stage("--out", "o", "--rule", "mine.py:Mine", "--add", "mine.py:Mine", "--print_config")
    monkeypatch.chdir("/")
    config = cli.parse(Config, ["--config", str(file(shown))])
    assert config.rule.size == 2 and config.add["Mine"] == config.rule


def test_the_help(stage):
    code, shown, _ = stage("--help")
    lines = shown.splitlines()
    assert code == 0 and lines[:3] == [lines[0], "", "What it does."] and lines[0].startswith("usage: stage.py ")
    assert max(map(len, lines)) <= 120
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["required:", "optional:", "--inner.*: What is inside:", "--copies:", "--rule steps:",
                      "run (no influence on the result, unless stated):"]  # fmt: skip
    for said in (
        "required:\n  --out PATH                    Where to write.\n\noptional:",
        "  --seed N                      Of all that is drawn. (default: 0)",
        "  --mode one|two                Which of both. (default: one)",
        "  --label TEXT                  A name.\n",
        "  --shots N ...                 Numbers of shots. (> 0; default: 1 5)",
        "  --inner.flip                  Mirrored.\n",
        "  --copies N                    Copies, if wanted.\n",
        "  --copies.n N                  How many. Short form: --copies. (> 0; default: 3)",
        "  --rule NAME                   How it goes. (one of plain, steps, margin, or your own as file.py:Class; ",
        "  --rule.lr X                   Learning rate. (> 0; default: 0.1)",
        "  --add NAME ...                More of them, in order. (any of plain, steps, margin, or your own as "
        "file.py:Class)",
        "run (no influence on the result, unless stated):\n  --memory X                    Changes no result. (> 0)\n"
        "  --overwrite ",
    ):
        assert said in shown
    assert "--rule.weight" not in shown and "--second." not in shown
    assert stage("-h")[1] == stage("--help", "--print_config")[1] == shown


def test_the_help_has_every_setting_once(stage):
    shown = stage("--second", "margin", "--add", "steps", "--help")[1]
    names = [line.split()[0] for line in shown.splitlines() if line.startswith("  --")]
    own = [name for name in Config.__dataclass_fields__ if name != "inner"]
    below = ["inner.k", "inner.flip", "copies.n", "copies.file", "rule.lr", "rule.shift", "second.weight"]
    assert sorted(names) == sorted(f"--{name}" for name in [*own, *below, "add.steps.lr", "add.steps.shift"])


def test_the_help_shows_the_choices_that_are_given(stage, file, tmp_path):
    shown = stage("--rule", "margin", "--second.name", "steps", "--add", "margin", "--help")[1]
    assert "--rule.weight X               Of the margin. (required)" in shown and "--rule.lr" not in shown
    assert "--second.lr" in shown and "--add.margin.weight" in shown
    assert "--rule.weight" in stage("--config", file("rule: margin"), "--help")[1]
    file(OWN, "mine.py")
    assert "--rule.size N                 Of mine. (default: 2)" in stage(
        "--rule", f"{tmp_path}/mine.py:Mine", "--help")[1]  # fmt: skip
    assert stage("--rule", "other", "--help")[::2] == (
        2, "stage.py: error: no rule is called 'other'. Available: plain, steps, margin, or your own as file.py:Class\n"
    )  # fmt: skip


def test_the_work_is_given_its_settings(stage):
    given = []
    assert stage("--out", "o", "--seed", "2", main=given.append)[0] == 0
    assert given == [Config(out=Path("o"), seed=2)]


_ERRORS = [
    InputError("a.h5: no\nsuch file"),
    OSError(28, "No space left", "x"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ...\nmore"),
    RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly"),
]


@pytest.mark.parametrize("error", _ERRORS)
def test_bad_input_and_a_full_disk_are_one_line(stage, error):
    def fail(config):
        raise error

    code, shown, errors = stage("--out", "o", main=fail)
    assert code == 2 and shown == "" and errors.startswith("stage.py: error: ") and errors.count("\n") == 1


def test_defects_of_ours_keep_their_traceback(stage):
    with pytest.raises(ZeroDivisionError):
        stage("--out", "o", main=lambda config: 1 / 0)


def test_a_refusal_comes_before_any_work(stage):
    code, shown, errors = stage("--out", "o", "--seed", "x", main=lambda config: 1 / 0)
    assert (code, shown, errors) == (2, "", "stage.py: error: --seed: 'x': must be an integer\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_says_what_is_kept(stage, number, code):
    before = signal.getsignal(signal.SIGINT)

    def work(config):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
        signal.raise_signal(number)

    def kept_work(config):
        try:
            work(config)
        except KeyboardInterrupt as stop:
            stop.add_note("the same command continues after epoch 3 of 9")
            raise

    said = "the same command runs it again"
    assert stage("--out", "o", main=work) == (code, "", f"stage.py: stopped; {said}\n")
    said = "the same command continues after epoch 3 of 9"
    assert stage("--out", "o", main=kept_work) == (code, "", f"stage.py: stopped; {said}\n")
    # Another Ctrl-C ends the process at once, without a traceback.
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    signal.signal(signal.SIGINT, before)


def test_the_next_step_is_ready_to_paste(stage, monkeypatch):
    def start(main):
        cli.run(main, Config, "", lambda config: ["other.py", "--data", config.out, "--k", 5])

    words = ("--out", "my results/o")
    monkeypatch.delenv("LOWSHOT_CHAIN", raising=False)
    assert stage(*words, main=str, start=start)[1] == "next: python /somewhere/other.py --data 'my results/o' --k 5\n"
    monkeypatch.setenv("LOWSHOT_CHAIN", "1")
    assert stage(*words, main=str, start=start)[1] == ""


def test_a_package_that_is_missing_is_one_line(stage):
    def missing(config):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    assert stage("--out", "o", main=missing) == (
        2, "", "stage.py: error: No module named 'torch'. Activate the environment: source .venv/bin/activate\n"
    )  # fmt: skip


@dataclass
class Other:
    """Work that needs less."""

    n: int = 1


def test_commands(stage):
    given = []
    commands = {"first": (given.append, Config), "second": (given.append, Other)}

    def run(*words):
        return stage(*words, start=lambda main: cli.run_commands(commands, "What they do."))

    assert run("second", "--n", "2")[0] == 0 and given == [Other(2)]
    assert run("second", "--n", "x")[2] == "stage.py: error: --n: 'x': must be an integer\n"
    code, shown, _ = run("--help")
    assert code == 0 and shown.startswith("usage: stage.py COMMAND --setting value")
    assert all(said in shown for said in ("What they do.", "Work that needs settings.", "Work that needs less."))
    assert run("second", "--help")[1].startswith("usage: stage.py second --setting value")
    assert run("secnd")[::2] == (
        2, "stage.py: error: no such command: 'secnd', did you mean 'second'? "
        "Use stage.py first|second --setting value ...\n"
    )  # fmt: skip
    assert run()[2] == "stage.py: error: the command is missing. Use stage.py first|second --setting value ...\n"


def test_settings_are_built_alike_from_a_line_and_from_plain_values():
    plain = {"out": "o", "rule": {"name": "margin", "weight": 2}, "shots": [3]}
    assert build(Config, plain) == parse("--rule", "margin", "--rule.weight", 2, "--shots", 3)


def test_a_stage_refuses_in_one_line():
    assert_refused(run_script("low_shot.py", "--clasifier", "mlp"), "--clasifier", "did you mean 'classifier'")
