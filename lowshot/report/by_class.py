"""Single classes: their accuracies, and what their images are taken for."""

import math

import pandas as pd

from lowshot.report.tables import Table, n_label, protocol_name

# Number of classes that a table and a chart of single classes show, and number of rows of a table of confusions.
_MOST_CLASSES, _MOST_BARS, _MOST_CONFUSIONS = 50, 100, 40


def class_table(
    accuracies: pd.DataFrame, confusions: pd.DataFrame, system: str, protocol: tuple[str, str, str]
) -> Table:
    """Table of the accuracy of single classes of one system, in percent, and of what they are taken for at the smallest
    and at the largest n: novel classes first, the least accurate first.

    Args:
        accuracies: rows of `results.by_class` of the system.
        confusions: rows of `results.confusions` of the system.
    """
    keys, n_files = ["group", "class", "name", "n_images"], accuracies["file"].nunique()
    wide = accuracies.pivot_table("value", keys, "n_shot", "mean").reset_index()
    shots = sorted(accuracies["n_shot"].unique())
    wide = wide.assign(mean=wide[shots].mean(axis=1)).sort_values(["group", "mean"], ascending=[False, True])
    shown = wide.head(_MOST_CLASSES)
    frame = pd.DataFrame({"Class": shown["name"], "Group": shown["group"]})
    for n_shot in sorted({shots[0], shots[-1]}):
        taken = _taken_for(confusions[confusions["n_shot"] == n_shot], accuracies[accuracies["n_shot"] == n_shot])
        frame[f"Taken for, {n_label(n_shot)}"] = [taken.get(c, "") for c in shown["class"]]
    frame["Images"] = shown["n_images"].astype(str)
    for n_shot in shots:
        frame[n_label(n_shot)] = (100 * shown[n_shot]).map("{:.1f}".format)
    left_out = f" The first {len(shown)} of {len(wide)} classes." if len(shown) < len(wide) else ""
    several = " Of several files, the five most frequent confusions of each are added." if n_files > 1 else ""
    note = f"Novel classes first, the least accurate first.{left_out}{several} All: class_accuracy.csv, confusions.csv."
    return Table(f"{system}: {protocol_name(protocol)}; top-1 accuracy of single classes, %", frame, [note])


def wide_classes(accuracies: pd.DataFrame) -> pd.DataFrame:
    """Return the means over trials, with a row for each system and class and a column for each n.

    At most 100 classes are returned, the same of all systems: novel classes first, the least accurate first. Columns:
    system, group, class (its name; with its number if names repeat) and the values of n.
    """
    order = accuracies.groupby(["group", "class"])["value"].mean().reset_index()
    first = order.sort_values(["group", "value"], ascending=[False, True])["class"].head(_MOST_BARS)
    shown = accuracies[accuracies["class"].isin(first)]
    names = shown.drop_duplicates("class").set_index("class")["name"]
    names = names.where(~names.duplicated(keep=False), names + " (" + names.index.astype(str) + ")")
    frame = shown.assign(name=shown["class"].map(names))
    wide = frame.pivot_table("value", ["system", "group", "name"], "n_shot", "mean", sort=False).reset_index()
    return wide.rename(columns={"name": "class"}).rename_axis(columns=None)


def confusion_table(
    accuracies: pd.DataFrame, confusions: pd.DataFrame, system: str, protocol: tuple[str, str, str]
) -> Table:
    """Table of the most frequent wrong predictions of one system, as shares of the images of the true class in percent.

    The arguments are those of `class_table`.
    """
    classes = accuracies.drop_duplicates("class").set_index("class")
    images = accuracies.groupby(["class", "n_shot"])["n_images"].sum().rename("all_images").reset_index()
    counts = confusions.groupby(["class", "predicted", "name", "n_shot"])["n_images"].sum().reset_index()
    counts = counts.merge(images, on=["class", "n_shot"])
    counts["share"] = 100 * counts["n_images"] / counts["all_images"]
    wide = counts.pivot_table("share", ["class", "predicted", "name"], "n_shot").reset_index()
    shots = sorted(counts["n_shot"].unique())
    wide = wide.assign(mean=wide[shots].fillna(0).mean(axis=1)).sort_values("mean", ascending=False, kind="stable")
    shown = wide.head(_MOST_CONFUSIONS)
    frame = pd.DataFrame({"Class": shown["class"].map(classes["name"]), "Taken for": shown["name"]})
    groups = (shown[column].map(classes["group"]).fillna("other") for column in ("class", "predicted"))
    frame["Groups"] = [f"{true} as {predicted}" for true, predicted in zip(*groups)]
    for n_shot in shots:
        frame[n_label(n_shot)] = ["–" if math.isnan(share) else f"{share:.1f}" for share in shown[n_shot]]
    note = f"The {len(shown)} most frequent of {len(wide)}, by the mean over n. –: not among the five most frequent of "
    note += "the class. Groups: of the true and of the predicted class. All: confusions.csv."
    what = "wrong predictions, % of the images of the class"
    return Table(f"{system}: {protocol_name(protocol)}; {what}", frame, [note])


def _taken_for(confusions: pd.DataFrame, accuracies: pd.DataFrame) -> dict[int, str]:
    """Return the three most frequent wrong predictions of each class in words, with their share of its images."""
    images = accuracies.groupby("class")["n_images"].sum()
    counts = confusions.groupby(["class", "name"], sort=False)["n_images"].sum().reset_index()
    counts = counts.sort_values("n_images", ascending=False, kind="stable")
    counts["words"] = [_with_share(one.name, one.n_images / images[one[1]]) for one in counts.itertuples()]
    return {c: ", ".join(part["words"].head(3)) for c, part in counts.groupby("class")}


def _with_share(name: str, share: float) -> str:
    """Isolate the name, so that the number stays behind names in scripts that run from right to left."""
    return f"\u2068{name}\u2069 {100 * share:.0f}\u00a0%"
