"""The folder of a report: tables/, figures/ and report.html."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import pandas as pd

from lowshot.data.datasets.images import Images
from lowshot.data.features import Features
from lowshot.data.protocol import Split
from lowshot.evaluation.settings import SixAccuracies
from lowshot.report import charts, figures, generated, page, results, tables
from lowshot.report.by_class import class_table, confusion_table, wide_classes
from lowshot.report.judged import Judged, judged_files
from lowshot.report.mixture import Means, embedding_map, subclass_sizes
from lowshot.report.notes import identical_results, other_inputs
from lowshot.report.published import compared
from lowshot.report.results import PROTOCOL

# Metrics with tables of paired differences, besides the one that is shown first.
_PAIRED = (*get_args(SixAccuracies), "top1_harmonic_mean", "ausuc")


@dataclass
class Pictures:
    """The optional inputs of the pictures: sample sheet, feature map, and the pictures of a mixture and of a GAN."""

    split: Split | None = None
    images: Images | None = None
    features: Features | None = None
    mixture: Means | None = None
    gan: generated.TrainedGan | None = None


def write_report(
    folder: Path,
    name: str,
    files: dict[str, dict],
    metric: str,
    reference: str | None,
    pictures: Pictures,
    tolerance: float | None = None,
) -> None:
    """Write a report of the results `files` (see `read_files`) into `folder`. The page is called `name`.

    `metric` is shown first. The figure of paired differences compares all systems with `reference`, a system or a
    method. If it is None, or not among the systems of a protocol, their first system is used. With a `tolerance` in
    percentage points, published figures are put beside ours.
    """
    for part in ("figures", "tables"):
        (folder / part).mkdir()
    trials, episodes, history = results.trials(files), results.episodes(files), results.history(files)
    clustering = results.clustering(files)
    scores, over = results.scores(files), judged_files(files)
    by_split = results.over_splits(trials, sizes=dict(zip(over["split_digest"], over["size"])))
    shown = pd.concat([by_split, trials]) if len(by_split) else trials
    protocols = pd.concat([shown[PROTOCOL], episodes[PROTOCOL]]).drop_duplicates().itertuples(index=False, name=None)
    of_section = partial(_section, folder / "figures", files, over, shown, episodes, history)
    sections = [of_section(protocol, metric, reference) for protocol in protocols]
    by_class, confusions, base_novel = results.by_class(files), results.confusions(files), results.base_novel(files)
    for section in sections:
        _add_clustering(section, clustering)
        _add_classes(section, folder / "figures", by_class, confusions)
        _add_base_novel(section, folder / "figures", base_novel, trials)
    if tolerance is not None:
        _add_published(folder / "tables", sections, trials, episodes, tolerance)
    images, each = _image_score_tables(scores, pictures.split)
    _write_tables(folder / "tables", sections, images, each)
    _write_csv(folder / "tables", _without_few(trials, over), episodes, history, clustering, scores)
    _write_class_csv(folder / "tables", by_class, confusions)
    drawn = _draw_pictures(folder / "figures", pictures)
    records = [record for frame in (trials, episodes, scores) for record in page.provenance(files, frame)]
    scripts = charts.scripts() if any(section.curves for section in sections) else ""
    html = page.render(name, scripts, sections, images, each, drawn, records)
    (folder / "report.html").write_text(html, encoding="utf-8")


def _of(frame: pd.DataFrame, protocol: tuple) -> pd.DataFrame:
    return frame[(frame[PROTOCOL] == list(protocol)).all(axis=1)]


def _image_score_tables(scores: pd.DataFrame, split: Split | None) -> tuple[list[tables.Table], list[tables.Table]]:
    """Return the tables of image scores and the tables of FID per class.

    For each data set and reference, the former hold scores over class splits, and differences between GANs with the
    same number of shots or with none.
    """
    made, each = [], []
    overall = results.over_splits(scores[scores["class"] < 0].assign(n_shot=0), least=1)
    k_of = dict(zip(scores["system"], scores["k"]))
    for (dataset, reference), part in overall.groupby(PROTOCOL[:2], sort=False):
        pairs = results.paired_differences(part)
        ks = pairs[["system", "versus"]].apply(lambda names: names.map(k_of)).to_numpy()
        pairs = pairs[(ks[:, 0] == ks[:, 1]) | (ks == 0).any(axis=1)]
        made.append(tables.image_scores_table(part, dataset, reference))
        made += [tables.paired_scores_table(pairs, dataset, reference)] if len(pairs) else []
    for protocol, part in scores[scores["class"] >= 0].groupby(PROTOCOL, sort=False):
        known = split is not None and split.digest == protocol[2]
        each.append(tables.class_scores_table(part, dict(enumerate(split.class_names)) if known else {}, protocol))
    return made, each


def _section(
    folder: Path,
    files: dict[str, dict],
    over: pd.DataFrame,
    trials: pd.DataFrame,
    episodes: pd.DataFrame,
    history: pd.DataFrame,
    protocol: tuple,
    metric: str,
    reference: str | None,
) -> page.Section:
    trials, episodes, history = (_of(frame, protocol) for frame in (trials, episodes, history))
    unit, over = tables.unit_of(protocol).removesuffix("s"), over[_is_of(over, protocol)]
    of_trials = over[(over["kind"] == "trials") & over["system"].isin(trials["system"])]
    of_episodes = over[over["file"].isin(episodes["file"])]
    judged = Judged.of(of_trials if len(trials) else of_episodes)
    shown = (trials, "trial", unit) if len(trials) else (episodes, "episode", "episode")
    section = page.Section(protocol, page.facts(*shown, judged), trials["system"].unique().tolist())
    if len(episodes):
        _add_episode_tables(section, episodes, reference, of_episodes)
    if len(trials):
        main, pairs = _main_metric(metric, trials, judged), results.paired_differences(trials)
        notes = [*_in_place_of(metric, main), *other_inputs(trials, of_trials)]
        notes += identical_results(trials, pairs, files, unit)
        _add_tables(section, trials, pairs, notes, main, judged)
        _add_figures(section, folder, trials, pairs, main, reference, judged)
    if len(history):
        _add_steps(section, folder, trials, history, judged)
    return section


def _without_few(trials: pd.DataFrame, over: pd.DataFrame) -> pd.DataFrame:
    """Leave out top-5 of few classes (`Judged.shown`)."""
    kept = []
    for protocol, part in trials.groupby(PROTOCOL, sort=False):
        judged = Judged.of(over[_is_of(over, protocol) & (over["kind"] == "trials")])
        kept.append(part[part["metric"].isin(judged.shown(part["metric"].unique()))])
    return pd.concat(kept) if kept else trials


def _is_of(over: pd.DataFrame, protocol: tuple) -> pd.Series:
    """Mark the rows of `judged_files` that are of a protocol, or of the class splits that it joins."""
    of_dataset = (over[PROTOCOL[:2]] == list(protocol[:2])).all(axis=1)
    if tables.unit_of(protocol) != results.SPLITS:
        return of_dataset & (over["split_digest"] == protocol[2])
    _, _, size = protocol[2].partition(" of ")
    return of_dataset & ((over["size"] == size) if size else True)


def _main_metric(metric: str, trials: pd.DataFrame, judged: Judged) -> str:
    """Return the metric to show first: `metric`, or one that there is if it is not shown or older files lack it."""
    there = judged.shown(trials["metric"].unique())
    return next(one for one in (metric, metric.replace("top5", "top1"), "top1_novel") if one in there)


def _in_place_of(metric: str, main: str) -> list[str]:
    """Say that another metric than the one asked for is shown first."""
    asked = tables.metric_name(metric)
    return (
        [] if main == metric else [f"{asked}: not shown, for fewer than ten classes or for files of older revisions."]
    )


def _add_episode_tables(
    section: page.Section, episodes: pd.DataFrame, reference: str | None, over: pd.DataFrame
) -> None:
    """Add the accuracies for every kind of task, and the differences to the simplest system with such episodes.

    Repeated trainings are compared by seed. Tables over repeated trainings come before tables over episodes. `over` are
    the rows of `judged_files` of the episodes.
    """
    for task, part in episodes.groupby("task", sort=False):
        if task == results.GIVEN:
            section.episodes.append(tables.single_tasks_table(part, section.protocol))
            part = part if part["n_shot"].nunique() == 1 else part.assign(n_shot=0)  # one column for all
        repeats, chance = results.repeats(part), (1 / part["n_way"]).mean()
        judged = Judged.of(over[over["file"].isin(part["file"])])
        for frame, unit in ((repeats, "trainings"), (part, _unit(part))):
            if len(frame):
                section.episodes += _episode_tables(frame, task, section.protocol, unit, reference, judged, chance)


def _unit(episodes: pd.DataFrame) -> str:
    """Return the unit of intervals over episodes of one kind."""
    if episodes["task"].iloc[0] != results.GIVEN:
        return "episodes"
    tasks, clusters = episodes["episode"].nunique(), episodes["cluster"].nunique()
    return "tasks" if clusters == tasks else f"tasks in {clusters} clusters"


def _episode_tables(
    frame: pd.DataFrame,
    task: str,
    protocol: tuple,
    unit: str,
    reference: str | None,
    judged: Judged,
    chance: float,
) -> list[tables.Table]:
    pairs = results.differences_to(frame, reference)
    made = [tables.episode_table(_summary(frame, "task"), task, protocol, unit, judged, chance)]
    return made + ([tables.paired_episode_table(pairs, task, protocol, unit)] if len(pairs) else [])


def _add_clustering(section: page.Section, clustering: pd.DataFrame) -> None:
    for classes, part in _of(clustering, section.protocol).groupby("classes", sort=False):
        section.clustering.append(tables.clustering_table(_scores(part), classes, section.protocol))


def _scores(clustering: pd.DataFrame) -> pd.DataFrame:
    return results.summarise(clustering, [*PROTOCOL, "features", "classes", "n_clusters", "metric"])


def _add_classes(section: page.Section, folder: Path, by_class: pd.DataFrame, confusions: pd.DataFrame) -> None:
    """Add a chart of the accuracies of single classes, and for each system a table of them and one of confusions."""
    by_class, confusions = _of(by_class, section.protocol), _of(confusions, section.protocol)
    by_class = by_class.sort_values("system", key=lambda names: names.map(section.systems.index), kind="stable")
    for system, part in by_class.groupby("system", sort=False):
        wrong = confusions[confusions["system"] == system]
        section.classes[system] = [class_table(part, wrong, system, section.protocol)]
        if len(wrong):
            section.classes[system].append(confusion_table(part, wrong, system, section.protocol))
    if len(by_class):
        chart = charts.class_accuracies(wide_classes(by_class), sorted(by_class["n_shot"].unique().tolist()))
        caption = "Top-1 accuracy of single classes"
        section.class_chart = charts.draw(chart, caption, {folder / f"{_stem(section)}_classes.svg": {}})


def _add_base_novel(section: page.Section, folder: Path, curve: pd.DataFrame, trials: pd.DataFrame) -> None:
    """Add the base-novel curves, with the accuracies of the systems as they are."""
    curve = _of(curve, section.protocol)
    if curve.empty:
        return
    keys = ["system", "n_shot"]
    own = {"top1_base_class_mean": "base", "top1_novel_class_mean": "novel", "ausuc": "area"}
    means = curve.groupby([*keys, "place"], sort=False)[["base", "novel"]].mean().reset_index()
    trials = _of(trials, section.protocol).replace({"metric": own})
    trials = trials[trials["metric"].isin(own.values()) & trials["system"].isin(curve["system"])]
    there = trials.pivot_table("value", keys, "metric", "mean").reset_index()
    shots = sorted(means["n_shot"].unique().tolist())
    chart = charts.base_novel(means, there, section.systems)
    ends = {n: folder / f"{_stem(section)}_base_novel_n{n}.svg" for n in (shots[0], shots[-1])}
    caption = "Accuracy on base classes over accuracy on novel classes"
    section.base_novel = charts.draw(chart, caption, {path: {"n": tables.n_label(n)} for n, path in ends.items()})


def _add_published(
    folder: Path, sections: list[page.Section], trials: pd.DataFrame, episodes: pd.DataFrame, tolerance: float
) -> None:
    """Add the published figures of the data sets, and write published.csv."""
    parts = []
    for section in sections:
        found = compared(section.protocol, _of(trials, section.protocol), _of(episodes, section.protocol), tolerance)
        if found is not None:
            section.published = found.tables(tolerance)
            parts += [found.beside.assign(**dict(zip(PROTOCOL, section.protocol))), found.others]
    if parts:
        _save(pd.concat(parts), folder / "published.csv")


def _add_tables(
    section: page.Section, trials: pd.DataFrame, pairs: pd.DataFrame, notes: list[str], main: str, judged: Judged
) -> None:
    summary, there = _summary(trials, "metric"), set(trials["metric"])
    shown = [metric for metric in judged.shown(results.METRICS) if metric in there]
    six = get_args(SixAccuracies)
    made = {
        metric: tables.accuracy_table(
            summary, metric, section.protocol, notes if metric in (*six, main) else (), judged
        )
        for metric in shown
    }
    section.main = made.pop(main)
    for metric, table in made.items():
        (section.accuracy if metric in six else section.further).append(table)
    if len(pairs):
        section.main_paired = tables.paired_table(pairs, main, section.protocol)
        others = [metric for metric in shown if metric in _PAIRED and metric != main]
        section.paired = [tables.paired_table(pairs, metric, section.protocol) for metric in others]


def _add_figures(
    section: page.Section,
    folder: Path,
    trials: pd.DataFrame,
    pairs: pd.DataFrame,
    main: str,
    reference: str | None,
    judged: Judged,
) -> None:
    stem, first = _stem(section), charts.measure_and_panel(main)[0]
    shown = trials[trials["metric"].isin(judged.shown(results.METRICS))]
    chart = charts.curves(_summary(shown, "metric"), section.systems, first)
    measures = {rank: charts.measure_and_panel(f"{rank}_all")[0] for rank in _ranks(judged)}
    views = {folder / f"{stem}_{rank}.svg": {"measure": measure} for rank, measure in measures.items()}
    section.curves = charts.draw(chart, "Accuracy over the number of training images per novel class", views)
    section.reference = results.plainest(trials, reference)
    pairs = pairs[(pairs["versus"] == section.reference) & pairs["metric"].isin(shown["metric"])]
    if len(pairs):
        chart = charts.differences(pairs, section.systems, first)
        views = {folder / f"{stem}_differences.svg": {"measure": first}}
        section.differences = charts.draw(chart, f"Differences to {section.reference}", views)


def _ranks(judged: Judged) -> list[str]:
    """Return the ranks to show: top1, and top5 unless there are few classes."""
    return [metric.removesuffix("_all") for metric in judged.shown(["top1_all", "top5_all"])]


def _add_steps(
    section: page.Section, folder: Path, trials: pd.DataFrame, history: pd.DataFrame, judged: Judged
) -> None:
    """Add accuracy over steps, together with the simplest classifier of each extractor."""
    plain = [results.plain_system(trials, extractor) for extractor in history["extractor"].unique()]
    section.plain = [system for system in plain if system is not None]
    level = _summary(trials[trials["system"].isin(section.plain) & trials["n_shot"].isin(history["n_shot"])], "metric")
    summary, reported = _summary(history, "n_steps", "metric"), results.reported_steps(history, trials)
    for rank in _ranks(judged):
        chart = charts.steps(summary, level, reported, rank, section.systems)
        caption = f"{charts.measure_and_panel(f'{rank}_all')[0]} over the number of diffusion steps"
        section.step_curves.append(charts.draw(chart, caption, {folder / f"{_stem(section)}_{rank}_steps.svg": {}}))
        for classes in ("novel", "all"):
            metric = f"{rank}_{classes}"
            section.step_tables.append(tables.steps_table(summary, level, metric, section.protocol, judged))


def _stem(section: page.Section) -> str:
    """Return the prefix of the file names of a section's figures."""
    return re.sub(r"[^\w-]+", "_", f"{section.dataset}_{section.setup}_{section.split_digest[:8]}")


def _summary(frame: pd.DataFrame, *what: str) -> pd.DataFrame:
    return results.summarise(frame, [*PROTOCOL, "system", "setting", *what, "n_shot"])


def _write_tables(
    folder: Path, sections: list[page.Section], images: list[tables.Table], each: list[tables.Table]
) -> None:
    main = [section.main for section in sections if section.main is not None]
    main += [table for section in sections for table in section.published[:1]]
    main += images
    main += [table for section in sections for table in [*section.episodes, *section.clustering]]
    everything = [*images, *each, *(table for section in sections for table in section.tables)]
    for name, chosen, write in (
        ("main.md", main, tables.to_markdown),
        ("tables.md", everything, tables.to_markdown),
        ("tables.tex", everything, tables.to_latex),
    ):
        (folder / name).write_text("\n".join(map(write, chosen)), encoding="utf-8")


def _write_csv(
    folder: Path,
    trials: pd.DataFrame,
    episodes: pd.DataFrame,
    history: pd.DataFrame,
    clustering: pd.DataFrame,
    scores: pd.DataFrame,
) -> None:
    """Write CSV files of fractions, not percent: all values (long form), table cells (wide form), all differences."""
    if len(trials):
        _save(trials, folder / "trials.csv")
        _save(tables.wide(_summary(trials, "metric")), folder / "accuracy.csv")
        _save(results.paired_differences(trials), folder / "paired_differences.csv")
    if len(history):
        _save(history, folder / "steps.csv")
        _save(tables.wide(_summary(history, "n_steps", "metric")), folder / "accuracy_over_steps.csv")
    repeats = results.repeats(episodes)
    for name, frame, unit in (("episode", episodes, "episodes"), ("training", repeats, "trainings")):
        if len(frame):
            count = {"trials": unit}
            _save(_summary(frame, "task").rename(columns=count), folder / f"{name}_accuracy.csv")
            pairs = results.paired_differences(frame).rename(columns=count)
            _save(pairs, folder / f"{name}_differences.csv")
    if len(episodes):
        _save(episodes, folder / "episodes.csv")
    if len(scores):
        _save(scores.drop(columns="draws"), folder / "image_scores.csv")
    if len(clustering):
        _save(clustering, folder / "clustering.csv")
        _save(_scores(clustering).rename(columns={"trials": "seeds"}), folder / "clustering_scores.csv")


def _write_class_csv(folder: Path, by_class: pd.DataFrame, confusions: pd.DataFrame) -> None:
    """Write the accuracy of each class, averaged over trials, and what its images are taken for."""
    if len(by_class):
        of_class = [*results.COLUMNS, "class", "name", "group", "n_images", "n_shot"]
        _save(results.summarise(by_class, of_class), folder / "class_accuracy.csv")
    if len(confusions):
        _save(confusions.drop(columns="file"), folder / "confusions.csv")


def _save(frame: pd.DataFrame, path: Path) -> None:
    tables.without_formulas(frame).to_csv(path, index=False)


def _draw_pictures(folder: Path, pictures: Pictures) -> dict[str, Path]:
    """Draw all pictures whose inputs are given, and return their paths by name."""
    drawn, split, features, means = {}, pictures.split, pictures.features, pictures.mixture
    if pictures.images is not None:
        drawn["samples"] = folder / "samples.png"
        figures.sample_sheet(drawn["samples"], pictures.images, split)
    if features is not None:
        drawn["feature_map"] = folder / "feature_map.svg"
        figures.feature_map(drawn["feature_map"], features, split)
    if means is not None and features is not None:
        drawn["embedding_map"] = folder / "embedding_map.svg"
        embedding_map(drawn["embedding_map"], means, features, split)
    if means is not None and means.sizes is not None:
        drawn["subclass_sizes"] = folder / "subclass_sizes.svg"
        subclass_sizes(drawn["subclass_sizes"], means)
    if pictures.gan is not None:
        drawn |= _draw_gan(folder, pictures.gan, pictures.images)
    return drawn


def _draw_gan(folder: Path, gan: generated.TrainedGan, images: Images) -> dict[str, Path]:
    drawn = {name: folder / f"{name}.png" for name in ("generated", "between", "crossover")}
    drawn["gan_training"] = folder / "gan_training.svg"
    generated.samples_sheet(drawn["generated"], gan)
    generated.between_sheet(drawn["between"], gan, images)
    generated.crossover_sheet(drawn["crossover"], gan, images)
    generated.training_curves(drawn["gan_training"], gan)
    return drawn
