"""The results book: CSV files from results files, and pages that quote nothing else."""

import pandas as pd
import pytest
from conftest import ROOT
from report.test_report import content, write

from lowshot.core.errors import InputError
from lowshot.report import read_files, results
from lowshot.report.book import Measured, Numbers, collect, collect_episodes, pages, read_rows, runs_path, typed_numbers

VALUES = {"plain": [0.2, 0.4, 0.3], "better": [0.35, 0.5, 0.42], "alike": [0.1, 0.6, 0.3]}
DOCS = ROOT / "docs"


def of(values, n_shot=1):
    return {(trial, n_shot): value for trial, value in enumerate(values, 1)}


def kept(folder, name="some"):
    """Write the numbers of results files, and read them again."""
    values, runs = collect(read_files(folder))
    path = folder / f"{name}.csv"
    values.to_csv(path, index=False)
    runs.to_csv(runs_path(path), index=False)
    return Numbers.read(path)


@pytest.fixture
def numbers(tmp_path):
    return kept(write(tmp_path, **{name: content(name, of(values)) for name, values in VALUES.items()}))


def test_means_and_differences_are_those_of_a_report(numbers, tmp_path):
    trials = results.read_results(write(tmp_path / "same", **{n: content(n, of(v)) for n, v in VALUES.items()}))
    mean = results.summarise(trials[trials["metric"] == "top1_novel"], ["method"]).set_index("method").loc["better"]
    assert numbers.value("better", "top1_novel", 1) == f"{100 * mean['mean']:.1f} ± {100 * mean['interval']:.1f}"
    assert numbers.gap("better", "plain", "top1_novel", 1) == "+12.3 ± 6.3"


def test_the_best_is_marked_where_its_intervals_exclude_zero(numbers):
    runs = ["plain", "better"]
    assert numbers.is_best("better", "top1_novel", 1, runs)
    assert not numbers.is_best("better", "top1_novel", 1, [*runs, "alike"])  # above it by 9 ± 38
    assert not numbers.is_best("plain", "top1_base", 1, runs)  # equal
    table = numbers.table("top1_novel", [1, 2], runs)
    assert table.splitlines()[2:] == [
        "| plain | inductive | 30.0 ± 24.8 | missing |",
        "| better | inductive | **42.3 ± 18.6** | missing |",
    ]


def test_files_of_one_name_are_class_splits_and_of_shots_one_run(tmp_path):
    for seed, split in enumerate(("a" * 64, "b" * 64)):
        protocol = {**content()["protocol"], "split_digest": split}
        parts = {f"plain-k{k}": content(values=of([0.1 * (seed + 1)], k), protocol=protocol) for k in (5, 15)}
        write(tmp_path / f"seed{seed}", **parts)
    numbers = kept(tmp_path)
    assert numbers.split == f"{'a' * 12}, {'b' * 12}"
    assert [numbers.mean("plain", "top1_novel", n) for n in (5, 15)] == ["15.0", "15.0"]
    assert numbers.minutes("plain") == 4 * 1.5


def test_differences_of_episodes_are_on_the_same_episodes(tmp_path):
    def of_episodes(method, values):
        rows = [{"episode": i, "n_way": 5, "n_shot": 1, "accuracy": value} for i, value in enumerate(values)]
        one = content(method, episodes=rows)
        del one["trials"]
        return one

    write(tmp_path, a=of_episodes("nearest_mean", [0.2, 0.4]), b=of_episodes("other", [0.3, 0.5]))
    path = tmp_path / "some.csv"
    collect_episodes(read_files(tmp_path)).to_csv(path, index=False)
    measured = Measured.read(path)
    other = {"system": "other", "task": "5-way", "n_shot": 1}
    assert measured.value(**other, minus="").startswith("40.0 ± ")
    assert measured.value(**other, minus="nearest_mean") == "+10.00 ± 0.00"
    table = measured.where(minus="").table(["system", "setting"], ["task", "n_shot"])
    assert "| other | inductive | 40.0" in table and "5-way, n = 1 |" in table
    with pytest.raises(InputError, match=r"some\.csv: 2 rows of"):
        measured.value(**other)
    with pytest.raises(InputError, match=r"some\.csv: has no row of n_shot 5"):
        measured.value(n_shot=5)


def test_a_page_quotes_only_numbers_that_there_are(tmp_path, numbers):
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "PAGE.md.j2").write_text("{{ numbers('some').mean('better', 'top1_novel', 1) }} %\n")
    assert [*pages(templates, tmp_path).values()] == ["42.3 %\n"]
    (templates / "PAGE.md.j2").write_text("{{ numbers('some').mean('better', 'top1_novel', 2) }} %\n")
    with pytest.raises(InputError, match=r"some\.csv: has no better, top1_novel, 2"):
        pages(templates, tmp_path)


@pytest.mark.parametrize("text", ["it gains 3 points", "85.2", "12 %", "1.4x", "4 minutes", "twice in 30 s"])
def test_numbers_in_the_text_of_a_template_are_found(text):
    assert typed_numbers(text)


@pytest.mark.parametrize("text", ["5-way 1-shot, n = 20", "{{ gap }} points", "`--rate 0.1`", "a 95 % interval"])
def test_what_is_not_measured_is_left_alone(text):
    assert not typed_numbers(text)


def test_pages_are_those_of_their_numbers():
    for name, text in pages(DOCS / "templates", DOCS / "results").items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name}: run scripts/results.sh"


@pytest.mark.parametrize("path", sorted((DOCS / "templates").rglob("*.j2")), ids=lambda path: path.name)
def test_no_number_of_a_page_is_typed(path):
    assert not typed_numbers(path.read_text(encoding="utf-8"))


def test_numbers_of_other_pages_have_a_source():
    """Pages that are written by hand: settings, sizes, and a few times with their commands."""
    made = {str(name) for name in pages(DOCS / "templates", DOCS / "results")} | {
        "docs/results/earlier.md",
        "docs/LOG.md",
    }
    by_hand = {path.relative_to(ROOT).as_posix(): path for path in [ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]}
    typed = {(name, number) for name, path in by_hand.items() if name not in made
             for number in typed_numbers(path.read_text(encoding="utf-8"))}  # fmt: skip
    quoted = read_rows(DOCS / "results/quoted.csv")
    assert {(row["page"], row["number"]) for row in quoted} == typed
    assert all(row["source"] for row in quoted)


def test_every_file_of_numbers_is_readable():
    for path in (DOCS / "results").glob("*.csv"):
        assert len(pd.read_csv(path)), path
