"""The low-shot benchmark: its input files, the rows to learn from and to evaluate on, and the results file.

Base and novel classes of a setup are evaluated together. A method learns from the training rows of the base classes and
from n shots of every novel class. Its accuracies (`lowshot.evaluation.metrics`) are on test images of both.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from lowshot.core import health
from lowshot.core.artifacts import Provenance, Recipe, stored_recipe
from lowshot.core.errors import InputError
from lowshot.core.files import check_suffix, digest, write_json
from lowshot.core.journal import Journal
from lowshot.core.publishing import open_journal, writing
from lowshot.data.additions import Run
from lowshot.data.features import Features, check_classes, check_same_space, constant_features, read_features
from lowshot.data.lineage import Judged, Lineage, Tags, judge, lineage_of, merged
from lowshot.data.protocol import (
    Setup,
    Split,
    check_draws,
    check_draws_of,
    draws_inputs,
    read_draws,
    read_split,
    setup_of,
)
from lowshot.evaluation.by_class import class_hits, confused, judged_classes, most_confused
from lowshot.evaluation.metrics import accuracies, base_novel_curve, chance, sampled
from lowshot.evaluation.outcomes import Columns, Outcomes
from lowshot.evaluation.settings import BenchmarkConfig

# (trial, n) -> outcomes (N,) of the test images of the setup.
Evaluated = dict[tuple[int, int], Outcomes]


def input_files(config: BenchmarkConfig) -> dict[str, Path]:
    """Return the files that `read_benchmark` reads, under their names in a recipe."""
    files = {name: getattr(config, name) for name in ("train", "test", "split")}
    return {**files, **draws_inputs(config.draws, config.trials)}


@dataclass(frozen=True)
class Benchmark:
    """One setup of the protocol with its rows.

    `train` and `draws` contain all classes, `test_features` float32 (N, D) and `test_labels` int64 (N,) only those of
    the setup. `draws` maps a trial to the shot rows of every class. `shots` are the numbers of shots to evaluate, and
    `seen` is what the features have seen, by file.
    """

    split: Split
    base_classes: np.ndarray
    novel_classes: np.ndarray
    train: Features
    draws: dict[int, list[np.ndarray]]
    test_features: np.ndarray
    test_labels: np.ndarray
    setup: Setup
    shots: list[int]
    seen: dict[str, Lineage]

    def tags(
        self,
        files: Iterable[Path] = (),
        methods: dict[str, Lineage] | None = None,
        of_runs: dict[tuple[int, int], Path] | None = None,
    ) -> tuple[Tags, Lineage]:
        """Return the tags of a result, and what it has seen besides the shots of its runs.

        Args:
            files: Artifacts that all runs are made from, besides the features.
            methods: What methods see, by their names.
            of_runs: Artifacts that single runs (trial, n) are made from.

        Raises InputError if the result is not admissible (`lowshot.data.lineage.judge`).
        """
        inputs = self.seen | {str(path): lineage_of(path) for path in files} | (methods or {})
        single = {run: {str(path): lineage_of(path)} for run, path in (of_runs or {}).items()}
        judged = Judged(
            self.split, self.setup, self.novel_classes, self.runs(self.shots), self.draws, self.train.images
        )
        tags = judge(inputs, judged)
        for run, made_from in single.items():
            tags |= judge(made_from, replace(judged, runs=[run]))
        seen = merged(chain(inputs.values(), *(one.values() for one in single.values())))
        return tags, replace(seen, shots=frozenset())

    @cached_property
    def classes(self) -> np.ndarray:
        """Base and novel classes, int64 (C,), ascending."""
        return np.sort(np.concatenate([self.base_classes, self.novel_classes]))

    @cached_property
    def base_rows(self) -> np.ndarray:
        """Rows of the base classes in `train`, in the order of the file: (rows,)."""
        return np.flatnonzero(np.isin(self.train.labels, self.base_classes))

    def runs(self, shots: list[int]) -> list[tuple[int, int]]:
        """Return (trial, n) of every run, trial after trial."""
        return [(trial, n) for trial in self.draws for n in shots]

    def shots_of_runs(self, shots: list[int]) -> Iterator[Run]:
        """Yield every run with its shots, class after class."""
        for trial, n in self.runs(shots):
            rows = self.shot_rows(trial, n).ravel()
            yield Run(trial, n, self.train.feats[rows], np.repeat(self.novel_classes, n))

    def shot_rows(self, trial: int, n_shot: int) -> np.ndarray:
        """Return the rows of `train` that are the shots of a run: (novel classes, n_shot)."""
        return np.stack([self.draws[trial][c][:n_shot] for c in self.novel_classes])

    def columns(self, of_setup: bool) -> Columns:
        """Return what the columns of scores stand for: the classes of the setup, or all classes of the split."""
        classes = self.classes if of_setup else np.arange(self.split.n_classes)
        return Columns.of(classes, self.base_classes, self.novel_classes)

    def accuracies(self, evaluated: Evaluated) -> list[dict]:
        """Return `trial`, `n_shot` and all metrics of every run."""
        truth = self.test_labels, self.base_classes, self.novel_classes
        return [{"trial": trial, "n_shot": n, **accuracies(one, *truth)} for (trial, n), one in evaluated.items()]


def check_settings(config: BenchmarkConfig) -> None:
    """Raise InputError if a setting is invalid. Reads no file."""
    for name, numbers in (("shots", config.shots), ("trials", config.trials)):
        if numbers is not None and (not numbers or len(set(numbers)) != len(numbers)):
            raise InputError(f"{name} {numbers}: must be one or more numbers without duplicates")
    check_suffix("--out", config.out, ".json")


def read_benchmark(config: BenchmarkConfig) -> Benchmark:
    """Read and check all inputs.

    Raises InputError if the inputs do not match, or if a class of the setup has no training or no test image.
    """
    split = read_split(config.split)
    train, test = (read_features(path, split.n_classes) for path in (config.train, config.test))
    check_same_space(train, test)
    base_classes, novel_classes = setup_of(split, config.setup, config.split)
    draws = read_draws(config.draws, config.trials)
    check_draws_of(config.draws, split)
    check_draws(draws, train.labels, novel_classes, max(config.shots), config.draws, config.train)
    classes = np.concatenate([base_classes, novel_classes])
    check_classes(train, base_classes, split.class_names)
    check_classes(test, classes, split.class_names)
    in_setup = np.isin(test.labels, classes)
    seen = {str(path): lineage_of(path) for path in (config.train, config.test)}
    benchmark = Benchmark(split, base_classes, novel_classes, train, draws, test.feats[in_setup],
                          test.labels[in_setup], config.setup, config.shots, seen)  # fmt: skip
    health.warn(constant_features(config.train))
    benchmark.tags()  # refuses features that have seen the novel classes
    return benchmark


def check_made_for(path: Path, config: BenchmarkConfig, files: dict[str, Path]) -> None:
    """Raise InputError unless the artifact `path` was made in the setup of `config` and from `files`.

    `files` are named as in the recipe of the artifact.
    """
    made_from = stored_recipe(path)
    if (setup := made_from["config"].get("setup")) != config.setup:
        state = f"made in the {setup} setup" if setup else "does not record its setup"
        own = f"Use --setup {setup} here, or make" if setup else "Make"
        raise InputError(f"{path}: {state}. {own} it again with --setup {config.setup}")
    for name, file in files.items():
        if made_from["inputs"].get(name) != digest(file):
            raise InputError(f"{path}: made from another {name} file. Make it again from {file}")


class Results:
    """The numbers of every run that is done.

    `journal` has a list of entries for each part of the runs, and `more` are further entries of the file.
    """

    def __init__(self, benchmark: Benchmark, journal: Journal, more: dict[str, object]) -> None:
        self.benchmark, self.journal, self.more = benchmark, journal, more

    @property
    def entries(self) -> dict[tuple[int, int], dict]:
        """(trial, n) -> entry of the results file."""
        return {(entry["trial"], entry["n_shot"]): entry for part in self.journal for entry in part}

    def add(self, evaluated: Evaluated) -> None:
        """Add runs."""
        accuracies = self.benchmark.accuracies(evaluated)
        self.journal.append([entry | self._further(one) for entry, one in zip(accuracies, evaluated.values())])

    def _further(self, outcomes: Outcomes) -> dict[str, object]:
        """Return what an entry holds besides metrics. The images that are `confused` are counted over all runs."""
        labels = self.benchmark.test_labels
        is_novel = np.isin(labels, self.benchmark.novel_classes)
        curve = base_novel_curve(outcomes.leads, outcomes.group_ranks == 0, labels, is_novel)
        return {
            "class_hits": class_hits(outcomes, labels),
            "base_novel": sampled(*curve),
            "confused": confused(outcomes, labels),
        }

    def to_json(self, runs: list[tuple[int, int]]) -> dict[str, object]:
        """Return the entries of the file for `runs`, pairs (trial, n)."""
        split, entries = self.benchmark.split, [dict(self.entries[run]) for run in runs]
        wrong = [(entry["n_shot"], entry.pop("confused", [])) for entry in entries]
        classes = judged_classes(split, self.benchmark.test_labels, self.benchmark.novel_classes)
        return {
            **self.more,
            "trials": entries,
            "classes": classes,
            "confusions": most_confused(wrong, split.class_names),
        }


@contextmanager
def writing_results(
    configs: Sequence[BenchmarkConfig],
    made_from: Recipe,
    benchmark: Benchmark,
    method: str,
    tags: Tags,
    provenance: Provenance,
    device: str,
    **more: object,
) -> Iterator[Results]:
    """Yield the results to add all runs of `configs` to, and write the results file when the block ends.

    `configs` differ in their settings and shots only. The results already contain the runs of an interrupted process
    with the same recipe. `method` is the name of the method, unless the config has a name. `tags` say what it uses
    besides labelled training images. `more` are further entries of the file.
    """
    config, runs = configs[0], [run for one in configs for run in benchmark.runs(one.shots)]
    with writing(config.out, made_from) as partial:
        results = Results(benchmark, open_journal(partial, made_from), more)
        if done := results.entries:
            print(f"{made_from['stage']}: continuing after {len(done)} of {len(runs)} runs", flush=True)
        yield results
        content = _content(config, made_from, benchmark, method, tags)
        write_json(partial, content | {"provenance": provenance.record(device), **results.to_json(runs)})
    health.warn(_finding(results.entries, benchmark))
    numbers = f"{len(benchmark.draws)} trials x {len(runs) // len(benchmark.draws)} numbers of shots"
    print(f"{made_from['stage']}: {content['method']}, {numbers} -> {config.out}")


def _finding(entries: dict[tuple[int, int], dict], benchmark: Benchmark) -> str | None:
    """Say at which n novel classes are not found."""
    means = {
        metric: {n: float(np.mean([one[metric] for (_, other), one in entries.items() if other == n]))
                 for n in dict.fromkeys(n for _, n in entries)}
        for metric in ("top1_novel", "top1_novel_among_novel")
    }  # fmt: skip
    sizes = len(benchmark.base_classes), len(benchmark.novel_classes)
    return health.novel_at_chance(*means.values(), *(chance(metric, *sizes) for metric in means))


def _content(
    config: BenchmarkConfig, made_from: Recipe, benchmark: Benchmark, method: str, tags: Tags
) -> dict[str, object]:
    """Return what a results file says about all of its runs."""
    return {
        **made_from,
        "method": config.name or method,
        "dataset": benchmark.split.dataset,
        "extractor": config.extractor or extractor_name(config.train),
        "protocol": {"setup": config.setup, **tags.to_json(), "split_digest": benchmark.split.digest},
    }


def extractor_name(train: Path) -> str:
    """Return the name of the folder of the features, or of its parent if the folder is called `features`."""
    folder = train.resolve().parent
    return folder.parent.name if folder.name == "features" else folder.name
