"""The validation curves of runs, in panels of values that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genlab.results import settings
from genlab.results.groups import NO_NUMBER, NUMBERS, UNITS, Group
from genlab.results.run_folders import RunFolder, printable
from genlab.viz.plots import Curve

Points = list[tuple[int, float]]
TRAINING = {"data.batch_size", "data.eval_batch_size", "data.augment"}  # of these, validation values do not depend


def panels(groups: Sequence[Group]) -> tuple[dict[str, list[Curve]], list[str]]:
    """(title of a panel -> its curves; a sentence for every run that has none)."""
    titles = comparable(groups)
    found: dict[str, list[tuple[Group, Points]]] = {}
    missing = []
    for group in groups:
        for run in group.runs:
            name, points = validation(run)
            if name is None:
                why = "it has no number to compare" if run.results is not None else "it has not been validated yet"
                missing.append(f"no curve: {run.name} ({why})")
            else:
                found.setdefault(f"validation of runs measured in {titles[run.folder]}", []).append((group, points))
    return {title: _labelled(curves) for title, curves in found.items()}, missing


def comparable(groups: Sequence[Group]) -> dict[Path, str]:
    """Run folder -> what its curves measure. Runs with the same text can be compared.

    An unfinished run does not know it, and takes it from a finished run with the same data.
    """
    texts: dict[Path, str] = {}
    known: dict[tuple[str | None, str], str] = {}
    for group in groups:  # those with a number come first
        data = {key: value for key, value in group.settings.items() if key.startswith(("data", "names.data"))}
        identity = settings.identity({key: value for key, value in data.items() if key not in TRAINING})
        for run in group.runs:
            name, _ = validation(run)
            same = name, identity
            if group.measured is not None:
                texts[run.folder] = group.measured.short
                known.setdefault(same, texts[run.folder])
            elif same in known and name != "reconstruction":  # which is in nats or in squared errors
                texts[run.folder] = known[same]
            else:
                unit = UNITS.get(name, name) if name is not None else NO_NUMBER
                texts[run.folder] = f"{unit}, {printable(str(data.get('names.data')))}"
    return texts


def validation(run: RunFolder) -> tuple[str | None, Points]:
    """(the number that is compared, its curve on the validation split); (None, []) without a curve."""
    curves = run.curves()
    for name in (*dict.fromkeys(NUMBERS.values()), "loss"):
        if points := curves.get(f"valid/{name}"):
            return name, points
    return None, []


def _labelled(curves: Sequence[tuple[Group, Points]]) -> list[Curve]:
    """The curves of a panel, labelled by the settings in which these groups differ."""
    keys = settings.differing([group.settings for group, _ in curves])
    labels = [
        printable(settings.describe(group.settings, keys)) + " (upper bound)" * group.kind.startswith("bound")
        for group, _ in curves
    ]
    return [Curve(label, points) for label, (_, points) in zip(labels, curves, strict=True)]
