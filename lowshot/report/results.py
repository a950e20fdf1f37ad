"""Results files as data frames, and the two statistics of a report: means over trials, and paired differences.

A *system* is an extractor and a method. Files of one job array (same settings, different trials or shots) are one
system. If two runs of the same extractor and method differ in a setting, the setting becomes part of their names.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy import stats

from lowshot.classifiers.settings import FeatureTransform
from lowshot.core.artifacts import flat
from lowshot.core.errors import InputError
from lowshot.core.files import missing
from lowshot.evaluation.older import results_today
from lowshot.evaluation.settings import Metric
from lowshot.report.files import FORMS, read_file, read_files

METRICS = get_args(Metric)
# Results are comparable only within one protocol; no table mixes protocols.
PROTOCOL = ["dataset", "setup", "split_digest"]
# Name of the protocol that joins several split digests.
SPLITS = "class splits"
COLUMNS = [*PROTOCOL, "setting", "extractor", "method", "system"]
# Kind of task of given tasks.
GIVEN = "given tasks"
# Settings that may differ between the tasks of one job array, or that are part of the system's name already.
_NOT_OF_THE_RUN = {"shots", "trials", "n_shots", "n_episodes", "name", "extractor", "clustering", "reference"}
# Settings that define the kind of task of episodes. Each kind has its own tables; they do not make another system.
_KIND = {"n_way", "n_queries", "dirichlet", "n_present", "within_superclass", "classes"}
# The simplest classifiers. They are shown first, and others are compared with them.
_PLAIN = r"(?:imprinting|linear_sgd|nearest_mean)\b"
# Suffix of the extractor's name that marks repeated trainings.
_SEED = r"_seed(\d{1,9})$"
# Prefixes of the inputs that all tasks of one run share. Draws and samples may be one file per trial.
_SHARED_INPUTS = ("test", "features", "add.generator.", "graph", "scores", "code of ")


def read_results(
    source: str | Path,
    kind: Literal["trials", "by_class", "base_novel", "episodes", "history", "clustering", "scores"] = "trials",
) -> pd.DataFrame:
    """Read results files into one long table with a row for each value.

    Args:
        source: a results file, or a folder of results files at any depth without other .json files.
        kind: accuracies of every trial and n ("trials"), the same of every class ("by_class"), for all biases
            ("base_novel"), of every episode ("episodes"), or after every step of diffusion ("history"); scores of
            clusterings ("clustering") or of generated images ("scores"). For the columns see the function of that name.

    Raises InputError for a file that is not a results file, or if there is nothing of that kind.
    """
    kinds = {"trials": trials, "by_class": by_class, "base_novel": base_novel, "episodes": episodes,
             "history": history, "clustering": clustering, "scores": scores}  # fmt: skip
    if kind not in kinds:
        raise InputError(f"kind '{kind}': not a kind of result. Available: {', '.join(kinds)}")
    source = Path(source)
    if not source.exists():
        raise missing(source, "no such file or folder")
    files = {source.name: read_file(source)} if source.is_file() else read_files(source)
    if not any(kind in content for content in files.values()):
        held = [name for name in kinds if any(name in content for content in files.values())]
        raise InputError(f"{source}: contains no {kind}. Available: {', '.join(held)}")
    return kinds[kind](files)


def trials(files: dict[str, dict]) -> pd.DataFrame:
    """Return trials in long form: one row per trial, n and metric, with systems in display order.

    Columns: dataset, setup, split_digest, setting, extractor, method, system, trial, n_shot, metric, value, draws
    (digest of the draws, empty if unknown) and file.
    """
    return _long_form(files, "trials")


def episodes(files: dict[str, dict]) -> pd.DataFrame:
    """Return episodes in long form. The only metric is accuracy.

    Columns as in `trials`, with episode, n_way and task (kind of task, in words) instead of trial. draws is the digest
    of the tasks: if it is equal, episodes with the same number have the same images. If there are given tasks, name is
    the name of the task and cluster that of its cluster; drawn tasks are their own clusters.
    """
    return _long_form(files, "episodes")


def repeats(episodes: pd.DataFrame) -> pd.DataFrame:
    """Average episodes per training, for extractors that are repeats of one training: NAME_seed0, NAME_seed1.

    The seed replaces the episode number, the value is the mean over episodes, and names are without the seed.
    """
    seeds = training_seeds(episodes)
    frame = episodes[seeds != ""].assign(episode=seeds[seeds != ""].astype(int))
    names = frame["extractor"].str.replace(_SEED, "", regex=True)
    rest = [system.removeprefix(name) for system, name in zip(frame["system"], frame["extractor"])]
    frame = frame.assign(extractor=names, system=names + rest)
    keys = [*COLUMNS, "episode", "task", "n_shot", "metric", "draws"]
    means = frame.groupby(keys, sort=False)["value"].agg(value="mean", count="count").reset_index()
    means["draws"] += means["count"].map(", {} episodes".format)  # pair equal numbers of episodes only
    repeated = means.groupby(["system", "task"])["episode"].transform("nunique") > 1
    return means[repeated].drop(columns="count")


def training_seeds(frame: pd.DataFrame) -> pd.Series:
    """Return the training seed of each row from the name of its extractor (NAME_seed0), as text; empty if none."""
    return frame["extractor"].str.extract(_SEED)[0].fillna("")


def by_class(files: dict[str, dict]) -> pd.DataFrame:
    """Return the accuracies of single classes, with a row for each trial, n and class.

    Columns: those of `trials` up to system, trial, n_shot, class, name and group (base or novel) of the class,
    n_images, value and file.
    """
    columns = [*COLUMNS, "trial", "n_shot", "class", "name", "group", "n_images", "value", "file"]
    return _with_system(files, "by_class", columns)


def base_novel(files: dict[str, dict]) -> pd.DataFrame:
    """Return the base-novel curve of every trial and n, with a row for each place on the curve, from the lowest to the
    highest bias on the scores of novel classes.

    Columns: those of `trials` up to system, trial, n_shot, place, base and novel (accuracies, means over classes) and
    file.
    """
    return _with_system(files, "base_novel", [*COLUMNS, "trial", "n_shot", "place", "base", "novel", "file"])


def confusions(files: dict[str, dict]) -> pd.DataFrame:
    """Return the most frequent wrong predictions of every class and n over the trials.

    Columns: those of `trials` up to system, n_shot, class, predicted and name (of the predicted class), n_images and
    file.
    """
    columns = [*COLUMNS, "n_shot", "class", "predicted", "name", "n_images", "file"]
    return _with_system(files, "confusions", columns)


def about(content: dict) -> dict[str, str]:
    """Return the columns of the protocol, the setting, the extractor and the method of a results file."""
    about = {key: str(content[key]) for key in ("dataset", "extractor", "method")}
    protocol = {key: str(content["protocol"][key]) for key in ("setup", "split_digest")}
    return about | protocol | {"setting": _setting(content)}


def _with_system(files: dict[str, dict], kind: str, columns: list[str]) -> pd.DataFrame:
    names = system_names(files)
    parts = [content[kind].assign(**about(content), system=names[file], file=file)
             for file, content in files.items() if len(content.get(kind, ()))]  # fmt: skip
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def history(files: dict[str, dict]) -> pd.DataFrame:
    """Return the trials of step-wise methods after every number of steps (column n_steps, from 0), in long form."""
    return _long_form(files, "history")


def clustering(files: dict[str, dict]) -> pd.DataFrame:
    """Return scores of clusterings against classes in long form: one row per seed and score.

    Columns: dataset, setup, split_digest, features (extractor, and the transform in brackets), classes (novel or all),
    n_clusters, seed, metric, value and file. A clustering that is in several files counts once.
    """
    names, parts = _clustered_features(files), []
    for file, name in names.items():
        content = files[file]
        about = dict(zip(PROTOCOL, _protocol(content)))
        about |= {"features": name, "classes": content["config"].get("classes") or "novel", "file": file}
        parts.append(content["clustering"].melt(list(FORMS["clustering"].integers), var_name="metric").assign(**about))
    same = [*PROTOCOL, "features", "classes", "n_clusters", "seed", "metric"]
    if not parts:
        return pd.DataFrame(columns=[*same, "value", "file"])
    frame = pd.concat(parts, ignore_index=True)[[*same, "value", "file"]]
    _refuse_conflicts(frame, same)
    return frame.drop_duplicates(same, ignore_index=True)


def scores(files: dict[str, dict]) -> pd.DataFrame:
    """Return scores of generated images against real ones in long form: one row per file, class and score.

    Columns: those of `trials` up to system, where setup is the reference (which real images); trial and k of the GAN's
    shots (0 for none); class (-1 for all together), n_images, metric, value, draws (the reference) and file.
    """
    names, parts = system_names(files), []
    for file, content in files.items():
        if "scores" in content:
            part = content["scores"].melt(["class", "n_images"], var_name="metric")
            columns = about(content) | {"setup": str(content["config"].get("reference", "unknown"))}
            columns |= {key: (content.get("gan") or {}).get(key) or 0 for key in ("trial", "k")}
            parts.append(part.assign(**columns, system=names[file], draws=columns["setup"], file=file))
    columns = [*COLUMNS, "trial", "k", "class", "n_images", "metric", "value", "draws", "file"]
    if not parts:
        return pd.DataFrame(columns=columns)
    frame = pd.concat(parts, ignore_index=True)[columns]
    frame["class"] = frame["class"].fillna(-1).astype(int)
    _refuse_conflicts(frame, [*PROTOCOL, "system", "trial", "class", "metric"])
    order = [*PROTOCOL[:2], "setting", "k", "system", *PROTOCOL[2:], "trial", "class"]
    return frame.sort_values(order, kind="stable", ignore_index=True)


def over_splits(frame: pd.DataFrame, least: int = 2, sizes: dict[str, str] | None = None) -> pd.DataFrame:
    """Average `frame` (long form, with n_shot) per class split, for data sets with at least `least` splits.

    The value is the mean over the trials of a split. "NUMBER class splits" replaces the digest, and the number of the
    split replaces the trial. A system may lack some splits: tables show the count, and only common splits are paired.
    Splits are joined if their `sizes` (split digest -> numbers of classes in words) are equal.
    """
    keys = [*COLUMNS, "n_shot", "metric"]
    means = frame.groupby(keys, sort=False)["value"].mean().reset_index()
    means["size"] = [(sizes or {}).get(digest, "") for digest in means["split_digest"]]
    n_sizes = means.groupby(PROTOCOL[:2])["size"].transform("nunique")
    group = means.groupby([*PROTOCOL[:2], "size"])["split_digest"]
    means["trial"] = group.transform(lambda digests: pd.factorize(digests)[0])
    count = group.transform("nunique")
    several = (n_sizes > 1) & (means["size"] != "")
    of_size = [f" of {size}" if told else "" for size, told in zip(means["size"], several)]
    means["split_digest"] = [f"{n} {SPLITS}{words}" for n, words in zip(count, of_size)]
    return means[count >= least].drop(columns="size").assign(draws="")


def _protocol(content: dict) -> tuple[str, str, str]:
    protocol = content["protocol"]
    return str(content["dataset"]), str(protocol["setup"]), str(protocol["split_digest"])


def _clustered_features(files: dict[str, dict]) -> dict[str, str]:
    """Name the clustered features of each file. Features of the same name but different content get distinct names."""
    runs: dict[tuple, dict[str, dict]] = {}
    for file, content in files.items():
        if "clustering" in content:
            stored = content["config"].get("transform") or {}
            transform = FeatureTransform(**{f.name: stored.get(f.name, f.default) for f in fields(FeatureTransform)})
            name = content["extractor"] + (f" ({', '.join(transform.steps)})" if transform.steps else "")
            inputs = content.get("inputs", {})
            digests = {key: str(value)[:8] for key, value in inputs.items() if key.startswith("features")}
            runs.setdefault((*_protocol(content), name), {})[file] = digests
    named = [_distinguish(name, prints) for (*_, name), prints in runs.items()]
    return {file: name for names in named for file, name in names.items()}


def _long_form(files: dict[str, dict], kind: str) -> pd.DataFrame:
    numbers, names, parts = list(FORMS[kind].integers), system_names(files), []
    keys = [*numbers, "task"] if kind == "episodes" else numbers
    given = ["name", "cluster"] if any("cluster" in content.get(kind, ()) for content in files.values()) else []
    for file, content in files.items():
        if kind in content:
            known = [name for name in given if name in content[kind]]
            part = content[kind].melt([*numbers, *known], var_name="metric")
            if kind == "episodes":
                part["task"] = _task_names(content["config"], part)
                part = part.assign(**{name: part["episode"].astype(str) for name in given if name not in known})
            parts.append(part.assign(**about(content), system=names[file], draws=_draws(content, part), file=file))
    columns = [*COLUMNS, *keys, *given, "metric", "value", "draws", "file"]
    if not parts:
        return pd.DataFrame(columns=columns)
    frame = pd.concat(parts, ignore_index=True)[columns]
    same = [*PROTOCOL, "system", *keys, "metric"]
    _refuse_conflicts(frame, same)
    frame["n_augmentations"] = frame["method"].str.count(r" \+ ")
    frame["elaborate"] = ~frame["method"].str.match(_PLAIN)
    frame["is_unknown"] = frame["setting"].str.startswith("unknown")
    order = [*PROTOCOL, "is_unknown", "extractor", "n_augmentations", "setting", "elaborate", "system", *keys]
    return frame.drop_duplicates(same).sort_values(order, kind="stable", ignore_index=True)[columns]


def _task_names(config: dict, part: pd.DataFrame) -> pd.Series:
    """Describe the kind of task of each row in words, from the settings."""
    if "cluster" in part:
        return pd.Series(GIVEN, part.index)
    inside = " of all classes" if config.get("classes") == "all" else ""
    inside += " within a superclass" if config.get("within_superclass") else ""
    ways = part["n_way"].astype(str) if config.get("n_way") != "all" else pd.Series("all", part.index)
    alpha, present, n_queries = (config.get(name) for name in ("dirichlet", "n_present", "n_queries"))
    on_average = " on average" if alpha or present else ""
    queries = f", {n_queries} queries a class{on_average}" if n_queries else ""
    queries += f", shares from Dirichlet({alpha:g})" if alpha else ""
    queries += f", of {present} classes only" if present else ""
    return ways + "-way" + inside + queries


def _draws(content: dict, part: pd.DataFrame) -> pd.Series | str:
    """Return the digest of the draws (or tasks) of each row; empty if unknown."""
    inputs = content.get("inputs", {})
    if "episode" in part:
        return content["protocol"].get("tasks_digest", "")
    if "draws" in inputs or "trial" not in part:
        return inputs.get("draws", "")
    return part["trial"].map(lambda trial: inputs.get(f"draws_{trial}", ""))


def _refuse_conflicts(frame: pd.DataFrame, same: list[str]) -> None:
    differing = frame.groupby(same, sort=False)["value"].transform("nunique") > 1
    if differing.any():
        first = frame[differing].iloc[0]
        rivals = frame[(frame[same] == first[same]).all(axis=1)].drop_duplicates("value")
        row = ", ".join(f"{key} {first[key]}" for key in same[len(PROTOCOL) :])
        files = " and ".join(dict.fromkeys(rivals["file"]))
        raise InputError(f"{files}: different values for {row}. Remove one of the files, or give the runs a --name")


def system_names(files: dict[str, dict]) -> dict[str, str]:
    """Name the system of each file: "extractor: method", plus the settings in which runs differ, in brackets."""
    runs: dict[tuple, dict[str, dict]] = {}
    for file, content in files.items():
        protocol = content["protocol"]
        kind = " and ".join(kind for kind in ("trials", "episodes", "scores") if kind in content)
        key = [kind, content["dataset"], protocol["setup"], protocol["split_digest"]]
        key += [content["config"].get("reference"), content["extractor"], content["method"]]
        runs.setdefault(tuple(map(str, key)), {})[file] = _fingerprint(content)
    named = [_distinguish(f"{extractor}: {method}", prints) for (*_, extractor, method), prints in runs.items()]
    return {file: name for names in named for file, name in names.items()}


def _fingerprint(content: dict) -> dict[str, str]:
    """What two files must share to be parts of one run. Digests distinguish extractors or generators of one name."""
    today = results_today({"stage": content.get("stage"), "config": content["config"], "inputs": {}, **content})
    # A setting that is None equals a setting that is missing, as in files from before it existed.
    chosen = {key: value for key, value in flat(today["config"]).items() if value is not None}
    chosen = {
        key: json.dumps(value) for key, value in chosen.items() if key.split(".")[0] not in _NOT_OF_THE_RUN | _KIND
    }
    names = _SHARED_INPUTS
    if "classifier.extractor" in today["inputs"]:  # each run's head has its own features
        names = [name for name in names if name != "test"]
    shared = {key: str(value)[:8] for key, value in today["inputs"].items() if key.startswith(tuple(names))}
    return {**chosen, **shared, "setting": _setting(content)}


def _setting(content: dict) -> str:
    """Return the setting with its tags, such as "inductive, superclasses, imagenet".

    It is unknown for files of older revisions, which do not say what their inputs have seen.
    """
    protocol = content["protocol"]
    if "outside" not in protocol:
        return "unknown"
    superclasses = ["superclasses"] if protocol.get("superclasses") else []
    return ", ".join([protocol["setting"], *superclasses, *map(str, protocol.get("outside", []))])


def _distinguish(name: str, prints: dict[str, dict[str, str]]) -> dict[str, str]:
    keys = sorted({key for one in prints.values() for key in one})
    differing = [key for key in keys if len({one.get(key) for one in prints.values()}) > 1]
    if not differing:
        return dict.fromkeys(prints, name)
    settings = {file: [f"{key}={one.get(key, 'unset')}" for key in differing] for file, one in prints.items()}
    return {file: f"{name} ({', '.join(what)})" for file, what in settings.items()}


def summarise(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Average `value` over each combination of the columns `by`, in order of appearance.

    Rows of one `cluster`, if there is such a column, are not independent: the interval is over clusters.

    Returns the columns `by`, mean, interval (half width of the 95 % t-interval; NaN for a single trial) and trials.
    """
    if "cluster" in frame:
        return _summarise_clusters(frame, by)
    groups = frame.groupby(by, sort=False)["value"].agg(["mean", "std", "count"]).reset_index()
    count = groups["count"]
    interval = stats.t.ppf(0.975, np.where(count > 1, count - 1, np.nan)) * groups["std"] / np.sqrt(count)
    return groups[by].assign(mean=groups["mean"], interval=interval, trials=count)


def _summarise_clusters(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return what `summarise` does, with the cluster-robust standard error of a mean (Liang & Zeger, 1986):
    sqrt(k / (k - 1) sum over clusters of (sum of deviations from the mean)^2) / n, with k - 1 degrees of freedom."""
    groups = frame.groupby(by, sort=False)["value"]
    deviations = frame.assign(value=frame["value"] - groups.transform("mean"))
    of_clusters = deviations.groupby([*by, "cluster"], sort=False)["value"].sum().reset_index()
    squares = of_clusters.assign(value=of_clusters["value"] ** 2).groupby(by, sort=False)["value"].agg(["sum", "count"])
    table = groups.agg(["mean", "count"])
    k = squares["count"].where(squares["count"] > 1).reindex(table.index)
    error = np.sqrt(k / (k - 1) * squares["sum"].reindex(table.index)) / table["count"]
    table = table.assign(interval=stats.t.ppf(0.975, k - 1) * error).reset_index()
    return table[[*by, "mean", "interval"]].assign(trials=table["count"])


def is_reference(frame: pd.DataFrame, reference: str | None) -> pd.Series:
    """Mark the rows of `frame` (long form) of `reference`: a system, a method, or an extractor (its seed optional)."""
    names = frame[["system", "method", "extractor"]]
    training = frame["extractor"].str.replace(_SEED, "", regex=True)
    return names.eq(reference).any(axis=1) | training.eq(reference)


def check_reference(reference: str | None, frames: list[pd.DataFrame]) -> None:
    """Raise InputError, naming all systems, if `reference` is in none of `frames` (long form)."""
    if reference is None or any(is_reference(frame, reference).any() for frame in frames):
        return
    known = ", ".join(f"'{system}'" for system in dict.fromkeys(name for frame in frames for name in frame["system"]))
    raise InputError(f"--reference '{reference}': no such system. Available: {known}")


def plainest(frame: pd.DataFrame, reference: str | None = None) -> str:
    """Return the system that others of `frame` (long form) are compared with: the first of `reference`, or the first of
    all systems if `reference` is None or absent."""
    named = frame.loc[is_reference(frame, reference), "system"]
    return (named if len(named) else frame["system"]).iloc[0]


def differences_to(frame: pd.DataFrame, reference: str | None) -> pd.DataFrame:
    """Return `paired_differences` of every system to one of `reference`, or to the simplest system if it is None.

    A system is compared with the one of its own training seed, or of none; among these with its own method, if any.
    """
    systems = frame.drop_duplicates("system").assign(seed=training_seeds)
    known = systems[is_reference(systems, reference)] if reference is not None else systems
    versus: dict[str, list[str]] = {}
    for one in systems.itertuples():
        rivals = known[known["seed"].isin([one.seed, ""])]
        alike = rivals[rivals["method"] == one.method]
        rivals = alike if reference is not None and len(alike) else rivals
        for rival in rivals["system"][:1]:
            versus.setdefault(rival, []).append(one.system)
    parts = [paired_differences(frame[frame["system"].isin([rival, *one])], rival) for rival, one in versus.items()]
    return pd.concat(parts) if parts else paired_differences(frame[:0])


def plain_system(trials: pd.DataFrame, extractor: str) -> str | None:
    """Return the simplest classifier on the features of `extractor`, or None if no simple one was run on them."""
    plain = trials["method"].str.match(_PLAIN) & ~trials["method"].str.contains(" + ", regex=False)
    return next(iter(trials.loc[plain & (trials["extractor"] == extractor), "system"]), None)


def reported_steps(history: pd.DataFrame, trials: pd.DataFrame) -> pd.Series:
    """Return, by system and n, the smallest number of steps after which the accuracies equal those of `trials`.

    Both frames are of one protocol. There is no entry if they never agree, as with fused scores.
    """
    keys = ["system", "n_shot", "trial", "metric"]
    both = history.merge(trials[[*keys, "value"]].rename(columns={"value": "reported"}), on=keys)
    both["agrees"] = np.isclose(both["value"], both["reported"], rtol=0, atol=1e-9)
    agreeing = both.groupby(["system", "n_shot", "n_steps"], as_index=False)["agrees"].all()
    return agreeing[agreeing["agrees"]].groupby(["system", "n_shot"])["n_steps"].min()


def paired_differences(frame: pd.DataFrame, versus: str | None = None) -> pd.DataFrame:
    """Return `system` minus `versus` over common trials (or episodes, per kind of task), for every ordered pair of
    systems of one protocol, or only for the given `versus`.

    Trials with different draws are not paired. Columns: the protocol's, (task,) system, versus, metric, n_shot, mean,
    interval, trials (in common) and differs (whether the interval excludes zero; False for a single trial).
    """
    task = ["task"] if "task" in frame else []
    keys = [*PROTOCOL, *task, "metric", "n_shot", "episode" if task else "trial"]
    renamed = {"system": "versus", "value": "subtracted", "draws": "other_draws"}
    others = frame if versus is None else frame[frame["system"] == versus]
    pairs = frame.merge(others[[*keys, *renamed]].rename(columns=renamed), on=keys)
    same_draws = (pairs["draws"] == pairs["other_draws"]) | (pairs["draws"] == "") | (pairs["other_draws"] == "")
    pairs = pairs[(pairs["system"] != pairs["versus"]) & same_draws]
    pairs = pairs.assign(value=pairs["value"] - pairs["subtracted"])
    table = summarise(pairs, [*PROTOCOL, *task, "system", "versus", "metric", "n_shot"])
    return table.assign(differs=table["mean"].abs() > table["interval"])
