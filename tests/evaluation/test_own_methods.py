"""Classifiers, few-shot methods and additions of the user's own in the scripts. Names of an older revision: the error
names the current one."""

import numpy as np
import pytest
from conftest import assert_refused, run_script
from test_low_shot import tiny_config

from lowshot.core.choices import own_class
from lowshot.core.errors import InputError
from lowshot.core.files import read_json, read_yaml

CODE = '''
from dataclasses import dataclass

import numpy as np
import torch

from lowshot.data.additions import RowsOfFile


@dataclass
class Means:
    """Nearest class mean. All rows of a class have the same weight."""

    power: float = 2.0

    def fit(self, problem, seed, device):
        means = torch.full((len(problem.runs), problem.n_classes, problem.dim), 1e6)
        for i, run in enumerate(problem.runs):
            for feats, labels in ((problem.base_feats, problem.base_labels), (run.feats, run.labels)):
                for c in np.unique(labels):
                    means[i, c] = torch.from_numpy(feats[labels == c].mean(0))
        return lambda feats: -((feats[None, :, None] - means[:, None]).abs() ** self.power).sum(-1)


@dataclass
class MeansOfTasks:
    power: float = 2.0
    squeeze: bool = False

    def score(self, tasks, seed):
        ways = torch.arange(tasks.n_way)
        mine = (tasks.support_labels[:, :, None] == ways).float()
        means = mine.mT @ tasks.support_features / mine.sum(1)[..., None]
        scores = -((tasks.query_features[:, :, None] - means[:, None]).abs() ** self.power).sum(-1)
        return scores[0] if self.squeeze else scores


@dataclass
class SeesAll(MeansOfTasks):
    transductive = True


@dataclass
class Doubled:
    """Adds every row a second time, shifted by `shift`."""

    shift: float = 0.0
    returns: str = "all"
    label = "doubled rows"

    def extend(self, run, benchmark, seed):
        more = run.joined(run.feats + np.float32(self.shift), run.labels)
        return {"all": more, "nothing": None, "feats": more.feats}[self.returns]


@dataclass
class MyRows(RowsOfFile):
    """A class that inherits from one of ours and behaves differently."""

    def extend(self, run, benchmark, seed):
        return run.joined(run.feats - 9, run.labels)


@dataclass
class FromUnlabelled(Doubled):
    setting = "semi_supervised"


@dataclass
class FromTestImages(Doubled):
    setting = "transductive"


@dataclass
class FromWhat(Doubled):
    setting = "semi-supervised"


class NoDataclass:
    def score(self, tasks, seed):
        pass


@dataclass
class NoMethod:
    power: float = 2.0


@dataclass
class WrongFit:
    returns: str = "nothing"

    def fit(self, problem, seed, device):
        n_runs = len(problem.runs)
        return {"nothing": None, "flat": lambda feats: torch.zeros(n_runs, len(feats)),
                "list": lambda feats: [0.0], "wide": lambda feats: torch.zeros(n_runs, len(feats), 99)}[self.returns]
'''


@pytest.fixture
def config(tmp_path):
    (tmp_path / "my_code.py").write_text(CODE)
    return tiny_config(tmp_path)


def low_shot_by(config, *more):
    """Run low_shot.py in the folder with the user's code."""
    names = ("train", "test", "split", "draws", "out")
    files = [word for name in names for word in (f"--{name}", str(getattr(config, name)))]
    return run_script("low_shot.py", *files, "--shots", "1", "5", *more, folder=config.split.parent)


def episodes_by(config, *more):
    files = ["--features", config.test, "--split", config.split, "--out", config.out, "--n_way", "2"]
    return run_script("episodes.py", *files, "--n_episodes", "8", "--n_queries", "5", *more, folder=config.split.parent)


def made(done, config):
    assert done.returncode == 0, done.stderr
    return read_json(config.out)


# --- in the scripts ---


@pytest.mark.parametrize("name", ["Means", "MeansOfTasks"])
def test_a_classifier_of_ones_own_gives_the_numbers_of_ours(config, name):
    """Nearest means, as a classifier of all classes or as a method for tasks of the setup's classes."""
    ours = made(low_shot_by(config, "--classifier", "nearest_mean"), config)
    own = made(low_shot_by(config, "--classifier", f"my_code.py:{name}", "--overwrite"), config)
    assert own["trials"] == ours["trials"] or name == "Means"  # its top-5 is among all classes of the split
    for one, other in zip(own["trials"], ours["trials"]):
        assert all(one[key] == other[key] for key in one if key.startswith("top1"))
    assert own["method"] == f"my_code.py:{name}" and own["protocol"]["setting"] == "inductive"
    assert own["config"]["classifier"]["name"] == f"my_code.py:{name}" and own["config"]["classifier"]["power"] == 2.0
    assert len(own["inputs"]["code of classifier"]) == 64 and "code of classifier" not in ours["inputs"]


def test_a_few_shot_method_of_ones_own(config):
    ours = made(episodes_by(config, "--method", "nearest_mean"), config)
    own = made(episodes_by(config, "--method", "my_code.py:MeansOfTasks", "--overwrite"), config)
    assert own["episodes"] == ours["episodes"] and own["method"] == "my_code.py:MeansOfTasks"
    words = ("--method", "my_code.py:MeansOfTasks", "--method.power", "1", "--overwrite")
    named = made(episodes_by(config, *words), config)
    assert named["method"] == "my_code.py:MeansOfTasks (power=1.0)"
    assert named["config"]["method"] == {"name": "my_code.py:MeansOfTasks", "power": 1.0, "squeeze": False}
    assert len(named["inputs"]["code of method"]) == 64


def test_a_transductive_method_of_ones_own_is_called_one(config):
    assert made(episodes_by(config, "--method", "my_code.py:SeesAll"), config)["protocol"]["setting"] == "transductive"
    done = low_shot_by(config, "--classifier", "my_code.py:SeesAll", "--overwrite")
    assert made(done, config)["protocol"]["setting"] == "transductive"


def test_an_addition_of_ones_own(config):
    """A repeated row does not change the mean. A shifted row does."""
    mean = ("--classifier", "nearest_mean")
    plain = made(low_shot_by(config, *mean), config)
    own = made(low_shot_by(config, *mean, "--add", "my_code.py:Doubled", "--overwrite"), config)
    assert own["trials"] == plain["trials"] and own["method"] == "nearest_mean + doubled rows"
    assert own["config"]["add"] == {"names": ["my_code.py:Doubled"], "Doubled": {"shift": 0.0, "returns": "all"}}
    assert len(own["inputs"]["code of add.Doubled"]) == 64 and own["protocol"]["setting"] == "inductive"
    more = ("--add", "my_code.py:FromUnlabelled", "--add.FromUnlabelled.shift", "-9", "--overwrite")
    moved = made(low_shot_by(config, *mean, *more), config)
    assert moved["trials"] != plain["trials"] and moved["protocol"]["setting"] == "semi_supervised"
    seen = made(low_shot_by(config, *mean, "--add", "my_code.py:FromTestImages", "--overwrite"), config)
    assert seen["protocol"]["setting"] == "transductive"


def test_a_class_that_inherits_ours_does_what_it_says(config):
    mean = ("--classifier", "nearest_mean", "--overwrite")
    moved = made(low_shot_by(config, *mean, "--add", "my_code.py:Doubled", "--add.Doubled.shift", "-9"), config)
    words = ("--add", "my_code.py:MyRows", "--add.MyRows", str(config.split))  # a file that the addition does not read
    assert made(low_shot_by(config, *mean, *words), config)["trials"] == moved["trials"]


def test_ours_and_ones_own_in_the_order_of_the_line(config):
    def made_with(*names):
        words = ("--classifier", "nearest_mean", "--add", *names, "--add.repetition.max_per_label", "3",
                 "--add.Doubled.shift", "-2", "--overwrite")  # fmt: skip
        return made(low_shot_by(config, *words), config)

    one, two = made_with("repetition", "my_code.py:Doubled"), made_with("my_code.py:Doubled", "repetition")
    assert one["method"] == "nearest_mean + repetition + doubled rows"
    assert two["method"] == "nearest_mean + doubled rows + repetition"
    assert one["config"]["add"]["names"] == ["repetition", "my_code.py:Doubled"]
    assert one["trials"] != two["trials"]  # 3 original and 3 shifted rows, or 2 original and 1 shifted
    assert_refused(
        low_shot_by(config, "--classifier", "nearest_mean", "--add", "repetition", "my_code.py:Doubled",
                    "--add.repetition.max_per_label", "3", "--add.Doubled.shift", "-2"),
        "made differently (setting add.names was ['my_code.py:Doubled', 'repetition'], now ['repetition', ",
    )  # fmt: skip


def test_in_a_file_of_settings(config, tmp_path):
    (tmp_path / "c.yaml").write_text(
        'classifier: {name: "my_code.py:Means", power: 1}\nadd: {"my_code.py:Doubled": {shift: 0.5}, repetition: 4}\n'
    )
    own = made(low_shot_by(config, "--config", "c.yaml", "--add.Doubled.shift", "0.25"), config)
    assert own["config"]["classifier"] == {"name": "my_code.py:Means", "power": 1.0}
    assert own["config"]["add"]["Doubled"]["shift"] == 0.25
    assert own["config"]["add"]["repetition"] == {"max_per_label": 4}


def test_settings_of_ones_own_are_chosen_like_ours(config, tmp_path):
    (tmp_path / "grid.yaml").write_text("classifier.power: [1, 2]\nadd.Doubled.shift: [0, 1.5]\n")
    words = ("--classifier", "my_code.py:Means", "--add", "repetition", "my_code.py:Doubled", "--select", "grid.yaml")
    own = made(low_shot_by(config, *words), config)
    evidence = read_yaml(config.out.with_suffix(".selection.yaml"))
    assert [list(cell["values"].values()) for cell in evidence["cells"]] == [[p, s] for p in (1, 2) for s in (0, 1.5)]
    assert {"code of classifier", "code of add.Doubled"} <= evidence["inputs"].keys()
    assert own["config"]["add"]["names"] == ["repetition", "my_code.py:Doubled"]
    assert own["selection"]["chosen"] == evidence["chosen"]
    assert "already exists" in low_shot_by(config, *words).stdout


def test_a_classifier_of_ones_own_among_others(config, tmp_path):
    """The folder is not part of the choice, but the code is."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "my_own.py").write_text(CODE)
    (tmp_path / "grid.yaml").write_text('classifier: [nearest_mean, "sub/my_own.py:MeansOfTasks"]\n')
    words = ("--select", "grid.yaml", "--select.criterion", "top1_all")
    made(low_shot_by(config, *words), config)
    evidence = read_yaml(config.out.with_suffix(".selection.yaml"))
    names = [cell["values"]["classifier.name"] for cell in evidence["cells"]]
    assert names == ["nearest_mean", "my_own.py:MeansOfTasks"] and "code of classifier.1" in evidence["inputs"]
    assert "already exists" in low_shot_by(config, *words).stdout
    (tmp_path / "sub" / "my_own.py").write_text(f"{CODE}\n# changed\n")
    assert_refused(
        low_shot_by(config, *words),
        "r.selection.yaml: exists, but was made differently (input code of classifier.1 has",
    )


def test_a_module_by_its_name(config):
    """The module is imported from the folder in which the command runs."""
    (config.split.parent / "a_module_of_mine.py").write_text(CODE)
    own = made(low_shot_by(config, "--classifier", "a_module_of_mine:MeansOfTasks"), config)
    assert own["method"] == "a_module_of_mine:MeansOfTasks" and len(own["inputs"]["code of classifier"]) == 64


# --- existing results, and changed code ---


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--classifier", "my_code.py:Means"], "code of classifier"),
        (["--classifier", "nearest_mean", "--add", "my_code.py:Doubled"], "code of add.Doubled"),
    ],
)
def test_changed_code_makes_another_result(config, words, name):
    assert low_shot_by(config, *words).returncode == 0
    again = low_shot_by(config, *words)
    assert again.returncode == 0 and "already exists" in again.stdout
    (config.split.parent / "my_code.py").write_text(f"{CODE}\n# changed\n")
    assert_refused(low_shot_by(config, *words), f"r.json: exists, but was made differently (input {name} has changed)")


def test_the_folder_of_the_code_is_no_part_of_the_results(config, tmp_path):
    by_name = low_shot_by(config, "--classifier", "my_code.py:Means")
    assert by_name.returncode == 0, by_name.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "my_code.py").write_text(CODE)
    again = low_shot_by(config, "--classifier", f"{elsewhere / 'my_code.py'}:Means")
    assert again.returncode == 0 and "already exists" in again.stdout, again.stderr
    assert_refused(low_shot_by(config, "--classifier", "nearest_mean"), "exists, but was made differently (")


# --- errors ---

WRONG, DOUBLED = ["--classifier", "my_code.py:WrongFit", "--classifier.returns"], ["--add", "my_code.py:Doubled"]
BAD = [
    (["--classifier", "my_code.py:NoDataclass"], "my_code.py:NoDataclass: is not a dataclass"),
    (["--classifier", "my_code.py:NoMethod"], "NoMethod: defines no fit(problem, seed, device) or score(tasks, seed)"),
    (["--classifier", "my_code.py:Doubled"], "Doubled: defines no fit(problem, seed, device) or score(tasks, seed)"),
    (["--classifier", "my_code.py:Mean"], "my_code.py defines no 'Mean', did you mean 'Means'?"),
    (["--classifier", "nowhere.py:Mean"], "nowhere.py:Mean: nowhere.py: no such file"),
    (["--classifier", "no_such_module:Mean"], "no_such_module:Mean: cannot be imported (ModuleNotFoundError"),
    (
        ["--classifier", "my_code.py:Means", "--classifier.power", "much"],
        "--classifier.power: 'much': must be a number",
    ),
    (["--classifier", "my_code.py:Means", "--classifier.lr", "1"], "--classifier.lr: no setting of my_code.py:Means"),
    ([*WRONG, "nothing"], "my_code.py:WrongFit: fit returned NoneType. Return a function of features (N, D)"),
    (
        [*WRONG, "list"],
        "my_code.py:WrongFit: the function from fit returned list. Return a tensor of scores of shape (6, ",
    ),
    (
        [*WRONG, "flat"],
        "my_code.py:WrongFit: the function from fit returned (6, 48). Return a tensor of scores of shape (6, 48, 8)",
    ),
    (
        [*WRONG, "wide"],
        "my_code.py:WrongFit: the function from fit returned (6, 48, 99). "
        "Return a tensor of scores of shape (6, 48, 8)",
    ),
    (
        ["--classifier", "my_code.py:MeansOfTasks", "--classifier.squeeze"],
        "score returned (48, 4). Return a tensor of scores of shape (1,",
    ),
    (["--add", "my_code.py:FromWhat"], "add.FromWhat: its 'setting' is 'semi-supervised', must be one of inductive, "),
    (["--add", "my_code.py:Means"], "my_code.py:Means: defines no extend(run, benchmark, seed)"),
    ([*DOUBLED, "--add.Doubled.shift", "x"], "--add.Doubled.shift: 'x': must be a number"),
    ([*DOUBLED, "--add.Doubled.shift", "inf"], "--add.Doubled.shift: 'inf': must be a number"),
    ([*DOUBLED, "--add.Doubled.by", "2"], "--add.Doubled.by: no setting of my_code.py:Doubled"),
    (
        [*DOUBLED, "--add.Doubled.returns", "nothing"],
        "add.Doubled: extend must return the Run of trial 1, n = 1, not NoneType",
    ),
    (
        [*DOUBLED, "--add.Doubled.returns", "feats"],
        "add.Doubled: extend must return the Run of trial 1, n = 1, not ndarray",
    ),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda one: one if isinstance(one, str) else "")
def test_refused_in_one_line(config, words, message):
    more = [] if "--classifier" in words else ["--classifier", "nearest_mean"]
    assert_refused(low_shot_by(config, *words, *more), message)
    assert not config.out.exists()


def test_an_error_in_ones_own_code_keeps_its_traceback(config):
    """An error in the user's method keeps its traceback. An error at import is reported in one line with its place."""
    (config.split.parent / "my_code.py").write_text(CODE.replace("ways = torch", "ways = nothing"))
    done = low_shot_by(config, "--classifier", "my_code.py:MeansOfTasks")
    assert done.returncode == 1 and "my_code.py" in done.stderr and "NameError" in done.stderr
    (config.split.parent / "broken.py").write_text("x = 1\ny = z\n")
    refused = low_shot_by(config, "--classifier", "broken.py:MeansOfTasks")
    assert_refused(refused, "broken.py:MeansOfTasks: cannot be imported (broken.py, line 2: NameError")


# --- in Python ---


def test_the_same_objects_serve_notebooks(config):
    import lowshot

    rng = np.random.default_rng(0)
    base, novel = rng.random((40, 3), np.float32), rng.random((8, 3), np.float32) + 5
    base_labels, novel_labels = np.repeat(["a", "b"], 20), np.repeat(["c", "d"], 4)
    means, tasks = (own_class(f"{config.split.parent / 'my_code.py'}:{name}") for name in ("Means", "MeansOfTasks"))
    own = lowshot.FewShotClassifier(tasks(power=2)).fit(novel, novel_labels)
    ours = lowshot.FewShotClassifier("nearest_mean").fit(novel, novel_labels)
    assert own.predict(novel).tolist() == ours.predict(novel).tolist()
    joint = lowshot.LowShotClassifier(means()).fit(base, base_labels, novel, novel_labels)
    assert set(joint.predict(novel)) <= {"c", "d"} and joint.classes_.tolist() == list("abcd")
    with pytest.raises(InputError, match=r"is not a classifier. Use a name, an instance of SGDOptions, "):
        lowshot.LowShotClassifier(tasks()).fit(base, base_labels, novel, novel_labels)
    with pytest.raises(
        InputError, match=r"my_code.py:MeansOfTasks: score returned \(8, 2\). Return a tensor of scores"
    ):
        lowshot.FewShotClassifier(tasks(squeeze=True)).fit(novel, novel_labels).predict(novel)


# --- names of an older revision ---

OLDER = {
    "sgd.lr": ("0.5", "classifier.lr"),
    "logistic.weight_decay": ("0.5", "classifier.weight_decay"),
    "mlp.hidden": ("4", "classifier.hidden"),
    "methods.cosine.lr": ("1", "classifier.lr"),
    "head": ("extractor", "classifier.extractor"),
    "generator": ("folder", "add.generator"),
    "pairs": ("features", "add.generator.pairs"),
    "pair_scope": ("all", "add.generator.pair_scope"),
    "propagated": ("rows.h5", "add.propagated"),
    "samples": ("rows.h5", "add.samples"),
    "samples_per_shot": ("2", "add.samples.per_shot"),
    "repetition": ("true", "add.repetition"),
    "max_per_label": ("5", "add.ADDITION.max_per_label"),
    "criterion": ("top1_all", "select.criterion"),
    "select_per_shot": ("true", "select.per_shot"),
}


@pytest.mark.parametrize("older", OLDER)
def test_an_older_name_is_answered_with_todays(config, tmp_path, older):
    value, today = OLDER[older]
    answer = f"{older}: is called {today} now"
    assert_refused(low_shot_by(config, f"--{older}", value), f"low_shot.py: error: --{answer}")
    *groups, name = older.split(".")
    text = "".join(f"{'  ' * i}{group}:\n" for i, group in enumerate(groups)) + f"{'  ' * len(groups)}{name}: {value}\n"
    (tmp_path / "c.yaml").write_text(text)
    assert_refused(low_shot_by(config, "--config", "c.yaml"), f"c.yaml: {answer}")
    if older.startswith(("criterion", "select")):
        return
    (tmp_path / "grid.yaml").write_text(f"{older}: [{value}]\n")
    assert_refused(low_shot_by(config, "--select", "grid.yaml"), f"grid.yaml: {answer}")
    assert not config.out.parent.exists()


def test_older_names_of_episodes(config, tmp_path):
    answer = "methods.cosine.lr: is called method.lr now"
    assert_refused(episodes_by(config, "--methods.cosine.lr", "1"), f"episodes.py: error: --{answer}")
    (tmp_path / "c.yaml").write_text("method: cosine\nmethods: {cosine: {lr: 1}}\n")
    assert_refused(episodes_by(config, "--config", "c.yaml"), f"c.yaml: {answer}")


def test_older_names_of_predict():
    done = run_script("predict.py", "fit", "--methods.cosine.lr", "1", "--images", "photos", "--out", "c")
    assert_refused(done, "predict.py: error: --methods.cosine.lr: is called method.lr now")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--classifier", "nearest_mean", "--classifier.lr", "1"],
            "--classifier.lr: no setting of nearest_mean (it is",
        ),
        (["--classifier.hidden", "1"], "--classifier.hidden: no setting of imprinting (it is one of mlp)"),
        (["--classifier", "own_head"], "--classifier.extractor: is required"),
        (["--classifier.lr", "0"], "--classifier.lr: '0': must be a number > 0"),
        (["--add", "generator"], "--add.generator.folder: is required"),
        (["--add.repetition.pairs", "all"], "--add.repetition.pairs: no setting of repetition (it is one of gen"),
        (["--add.repetition", "none"], "--add.repetition.max_per_label: 'none': must be an integer > 0"),
        (
            ["--add", "svm"],
            "--add.svm: no addition is called 'svm'. Available: propagated, pool, generator, calibrated",
        ),
    ],
)
def test_settings_of_another_choice(config, words, message):
    assert_refused(low_shot_by(config, *words), message)
    assert not config.out.parent.exists()


def test_the_method_of_an_episode_has_its_own_settings(config):
    done = episodes_by(config, "--method", "nearest_mean", "--method.lr", "1")
    assert_refused(
        done, "--method.lr: no setting of nearest_mean (it is one of cosine, tim, alpha_tim); its settings are: metric"
    )
