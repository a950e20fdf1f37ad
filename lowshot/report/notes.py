"""Notes below the accuracy tables: systems with other shots or test images, and systems with identical results."""

from typing import get_args

import pandas as pd

from lowshot.core.artifacts import flat
from lowshot.evaluation.older import results_today
from lowshot.evaluation.settings import SixAccuracies


def identical_results(
    trials: pd.DataFrame, pairs: pd.DataFrame, files: dict[str, dict], unit: str = "trial"
) -> list[str]:
    """Return a sentence for each pair of systems whose six accuracies are equal in every common trial at some n.

    Of several equal systems, only the pair with the first one is named. The sentence states the reason if the additions
    of the two systems differ only in some that add no rows at these n (`max_per_label`).

    Args:
        trials: long form of one protocol (see `results.trials`).
        pairs: `results.paired_differences` of `trials`.
        files: content of the results files by name.
        unit: "trial" or "class split".
    """
    order = {system: place for place, system in enumerate(trials["system"].unique())}
    pairs = pairs[pairs["metric"].isin(get_args(SixAccuracies))]
    later = pairs[pairs["system"].map(order) > pairs["versus"].map(order)]
    # The interval of a single trial is NaN.
    later = later.assign(equal=(later["mean"] == 0) & ~(later["interval"] > 0))
    equal = later.groupby(["system", "versus", "n_shot"], as_index=False)["equal"].all().query("equal")
    equal = equal.sort_values(["system", "versus"], key=lambda names: names.map(order), kind="stable")
    equal = equal.drop_duplicates(["system", "n_shot"])
    additions = _additions(trials, files)
    reasons = [_reason(*row, additions) for row in equal[["system", "versus", "n_shot"]].itertuples(index=False)]
    return [
        f"Identical in every {unit} at n = {', '.join(map(str, sorted(part['n_shot'])))}: "
        f"{system} and {versus}{reason}."
        for (system, versus, reason), part in equal.assign(reason=reasons).groupby(
            ["system", "versus", "reason"], sort=False
        )
    ]


def other_inputs(trials: pd.DataFrame, judged: pd.DataFrame) -> list[str]:
    """Return a sentence for systems with other shots or other numbers of test images than the first system.

    Args:
        trials: long form of one protocol.
        judged: rows of `judged_files` of the same protocol.
    """
    known = trials[trials["draws"] != ""].groupby("system", sort=False)["draws"].agg(frozenset)
    images = judged.groupby("system", sort=False)[["novel_images", "base_images"]].agg(frozenset).apply(tuple, axis=1)
    images = images.reindex([system for system in trials["system"].unique() if system in images.index])
    notes = {
        "Other shots than {first}, so not paired with it: {others}.": known,
        "Other test images than {first}: {others}.": images,
    }
    return [
        note.format(first=of.index[0], others=", ".join(of.index[differing]))
        for note, of in notes.items()
        if len(of) and (differing := [one != of.iloc[0] for one in of]).count(True)
    ]


def _additions(trials: pd.DataFrame, files: dict[str, dict]) -> dict[str, dict[str, dict]]:
    """Settings and inputs of each addition of each system; none for means over class splits, which have no file."""
    known = trials.dropna(subset="file").drop_duplicates("system")
    additions: dict[str, dict[str, dict]] = {}
    for system, name in zip(known["system"], known["file"]):
        today = results_today({"stage": None, "inputs": {}, **files[name]})
        stored, additions[system] = {**flat(today["config"]), **today["inputs"]}, {}
        for addition in stored.get("add.names") or []:
            addition = addition.rpartition(":")[2]  # file.py:Class has the settings add.Class
            prefix = f"add.{addition}."
            own = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
            additions[system][addition] = own
    return additions


def _reason(system: str, versus: str, n_shot: int, additions: dict[str, dict[str, dict]]) -> str:
    """State why two systems are equal at `n_shot`, or return an empty string if their settings do not explain it."""
    one, other = additions.get(system, {}), additions.get(versus, {})
    differing = sorted(name for name in one | other if one.get(name) != other.get(name))
    limits = {name: max(of[name].get("max_per_label") or n_shot + 1 for of in (one, other) if name in of)
              for name in differing}  # fmt: skip
    if not limits or max(limits.values()) > n_shot:
        return ""
    return "; " + " and ".join(
        f"{name} adds no rows to classes with {limit} or more shots (max_per_label {limit})"
        for name, limit in limits.items()
    )
