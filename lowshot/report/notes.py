"""Notes below the accuracy tables: systems with other shots or test images, and systems with identical results."""

from typing import get_args

import pandas as pd

from lowshot.core.artifacts import flat
from lowshot.evaluation.older import results_today
from lowshot.evaluation.settings import SixAccuracies

# Settings that may differ between equal systems.
_OF_RUN = {"name", "shots", "trials", "selection"}


def identical_results(
    trials: pd.DataFrame, pairs: pd.DataFrame, files: dict[str, dict], unit: str = "trial"
) -> list[str]:
    """Return a sentence for each pair of systems whose six accuracies are equal in every common trial at some n.

    Of several equal systems, only the pair with the first one is named. The sentence states the reason if the additions
    of the two systems differ only in some that add no rows at these n (`max_per_label`), or if their settings are equal
    at these n (such as a bias that is chosen for every n).

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
    stored = _stored(trials, files)
    reasons = [_reason(*row, stored) for row in equal[["system", "versus", "n_shot"]].itertuples(index=False)]
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


def _stored(trials: pd.DataFrame, files: dict[str, dict]) -> dict[str, dict[str, object]]:
    """Settings and inputs of each system; none for means over class splits, which have no file."""
    known, stored = trials.dropna(subset="file").drop_duplicates("system"), {}
    for system, name in zip(known["system"], known["file"]):
        today = results_today({"stage": None, "inputs": {}, **files[name]})
        stored[system] = {**flat(today["config"]), **today["inputs"]}
    return stored


def _reason(system: str, versus: str, n_shot: int, stored: dict[str, dict[str, object]]) -> str:
    """State why two systems are equal at `n_shot`, or return an empty string if their settings do not explain it."""
    one, other = stored.get(system, {}), stored.get(versus, {})
    return _adds_nothing(_additions(one), _additions(other), n_shot) or _chosen_alike(one, other, n_shot)


def _additions(stored: dict[str, object]) -> dict[str, dict[str, object]]:
    """Settings and inputs of each addition of a system."""
    names = [name.rpartition(":")[2] for name in stored.get("add.names") or []]  # file.py:Class has settings add.Class
    return {name: {key: one for key, one in stored.items() if key.startswith(f"add.{name}.")} for name in names}


def _adds_nothing(one: dict[str, dict], other: dict[str, dict], n_shot: int) -> str:
    differing = sorted(name for name in one | other if one.get(name) != other.get(name))
    limits = {name: max(of[name].get(f"add.{name}.max_per_label") or n_shot + 1 for of in (one, other) if name in of)
              for name in differing}  # fmt: skip
    if not limits or max(limits.values()) > n_shot:
        return ""
    return "; " + " and ".join(
        f"{name} adds no rows to classes with {limit} or more shots (max_per_label {limit})"
        for name, limit in limits.items()
    )


def _chosen_alike(one: dict[str, object], other: dict[str, object], n_shot: int) -> str:
    at_n = [_at(of, n_shot) for of in (one, other)]
    chosen = [name for name in at_n[0] if name not in one or name not in other]
    if not chosen or at_n[0] != at_n[1]:
        return ""
    return "; the settings chosen there are the same: " + ", ".join(f"{name} {at_n[0][name]}" for name in chosen)


def _at(stored: dict[str, object], n_shot: int) -> dict[str, object]:
    """Return the settings and inputs at one n. Those of every n are stored as NAME.n."""
    shared = {key: one for key, one in stored.items() if not key.rpartition(".")[2].isdigit() and key not in _OF_RUN}
    suffix = f".{n_shot}"
    return shared | {key.removesuffix(suffix): one for key, one in stored.items() if key.endswith(suffix)}
