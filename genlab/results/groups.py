"""Groups of runs that differ in their seed alone, and statistics over them.

Numbers of two groups can be compared only if they measure the same thing on the same images: `Measured` says what. An
exact number and an upper bound can stand beside each other, as long as the bound is marked as one.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from genlab.build import read_checkpoint
from genlab.core import RequestError
from genlab.results import settings
from genlab.results.run_folders import RunFolder, printable

# Kind of the results -> the number that is compared. A GAN has none, because its losses do not measure its samples.
NUMBERS = {
    "exact": "bits_per_dim", "bound": "bits_per_dim", "reconstruction": "reconstruction", "classification": "accuracy",
}  # fmt: skip
LARGEST = 1e300  # a number beyond it is damage
NO_NUMBER = "no likelihood"
UNITS = {"bits_per_dim": "bits/dim", "loss": "nats"}
GIVEN = {"label": " given the label", "image": " given the second image"}


class Measured(NamedTuple):
    """What a number measures: its unit, the data, the number of test images and a hash of them if they are a user's."""

    unit: str
    data: str
    images: int
    fingerprint: str = ""

    def __str__(self) -> str:
        better = "higher" if self.unit == "accuracy" else "lower"
        return f"{self.unit} of {self._images()}; {better} is better"

    @property
    def short(self) -> str:
        """The same for titles and cells."""
        return f"{self.unit}, {self._images()}"

    def _images(self) -> str:
        which = f" (version {self.fingerprint[:6]})" if self.fingerprint else ""
        return f"{self.images:,} test images of {self.data}{which}"


@dataclass(frozen=True)
class Statistic:
    """Mean and standard deviation over runs; the deviation is None for a single run."""

    mean: float
    deviation: float | None

    @classmethod
    def over(cls, numbers: Iterable[float | None]) -> Statistic | None:
        """Of the numbers that are there; None if there is none."""
        known = [number for number in numbers if number is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


@dataclass(frozen=True)
class Group:
    """Runs of one setting. `settings`: see `settings.settings`.

    `measured`: what their test values measure; None without a value. `counted`: the finished ones, one for each seed.
    `repeats`: other finished ones, whose seed is among these. `open`: runs that are unfinished or failed.
    """

    settings: dict[str, Any]
    measured: Measured | None
    counted: list[RunFolder] = field(default_factory=list)
    repeats: list[RunFolder] = field(default_factory=list)
    open: list[RunFolder] = field(default_factory=list)

    @property
    def runs(self) -> list[RunFolder]:
        """All of them."""
        return [*self.counted, *self.repeats, *self.open]

    @property
    def kind(self) -> str:
        """How the number is known (exact, bound, reconstruction, …); "-" without a finished run."""
        return kind(self.counted[0]) if self.counted else "-"

    def value(self, split: str) -> Statistic | None:
        """Of the value of a split, over seeds."""
        return Statistic.over(value(run, split) for run in self.counted)

    def error(self) -> float | None:
        """The standard error of the test value over images: the mean of those of the runs.

        It is not smaller for several runs, because all of them see the same images.
        """
        return self._mean(lambda run: number(run.result("test"), "standard_error")) if self.measured else None

    def cost(self, key: str) -> float | None:
        """Mean of an entry of results.json: parameters, steps, seconds."""
        return self._mean(lambda run: number(run.results or {}, key))

    def _mean(self, entry: Callable[[RunFolder], float | None]) -> float | None:
        statistic = Statistic.over(entry(run) for run in self.counted)
        return None if statistic is None else statistic.mean


def grouped(runs: Iterable[RunFolder]) -> list[Group]:
    """The groups: what can be compared stands together, the best validation value first."""
    groups: dict[tuple[str, Measured | None], Group] = {}
    of_setting: dict[str, Group] = {}
    seeds: set[tuple[int, int, str]] = set()
    for run in sorted(runs, key=lambda run: run.results is None):  # the finished ones first
        values = settings.settings(run.config)
        setting = settings.identity(values)
        if run.results is None:
            of_setting.setdefault(setting, Group(values, None)).open.append(run)
            continue
        what = measured(run)  # the same setting may have met other images in a user's folder
        group = groups.setdefault((setting, what), Group(values, what))
        of_setting.setdefault(setting, group)
        seed = (id(group), run.seed, str(run.config["data"].get("seed")))
        (group.repeats if seed in seeds else group.counted).append(run)
        seeds.add(seed)
    unfinished = [group for group in of_setting.values() if not group.counted]
    return sorted([*groups.values(), *unfinished], key=_order)


def value(run: RunFolder, split: str) -> float | None:
    """The number by which a run is compared; None if it has none."""
    name = number_name(run)
    return None if name is None else number(run.result(split), name)


def number_name(run: RunFolder) -> str | None:
    """The name of this number in results.json and metrics.csv; None if there is none."""
    if run.results is None:
        return None
    word = run.result("test").get("kind")
    if word == "adversarial":
        return None
    return NUMBERS.get(word, "loss") if isinstance(word, str) else "loss"


def kind(run: RunFolder) -> str:
    """How the number of a finished run is known, in a word or two."""
    if number_name(run) is None:
        return NO_NUMBER
    word = printable(str(run.result("test").get("kind", "loss")))
    draws = number(run.result("test"), "draws")
    return f"{word}, {draws:,.0f} draws" if word == "bound" and draws and draws > 1 else word


def measured(run: RunFolder) -> Measured | None:
    """What the test value of a finished run measures; None if it has none."""
    test, name = run.result("test"), number_name(run)
    if name is None or value(run, "test") is None:
        return None
    unit = f"reconstruction ({test.get('measured_in', 'nats')})" if name == "reconstruction" else UNITS.get(name, name)
    data = f"{test.get('data')}{GIVEN.get(str(test.get('conditioning')), '')}"
    return Measured(printable(unit), printable(data), int(number(test, "n") or 0), _fingerprint(run))


def number(values: dict[str, Any], key: str) -> float | None:
    """A finite number in results.json; None if there is none under this key."""
    found = values.get(key)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not abs(found) < LARGEST:
        return None
    return float(found)


def notes(groups: Iterable[Group]) -> list[str]:
    """A sentence for every run that is not counted, and why."""
    lines = []
    for group in groups:
        for run in group.open:
            resume = shlex.quote(f"run={run.name}")
            how = f"it failed: {run.failed}" if run.failed else f"unfinished, `genlab resume {resume}` goes on"
            lines.append(f"not counted: {run.name} ({how})")
        for run in group.repeats:
            lines.append(f"not counted: {run.name} (another run of seed {run.seed} in the same setting is)")
    return lines


def _fingerprint(run: RunFolder) -> str:
    """A hash of the test images if they are in a folder of the user, where they may change; otherwise empty."""
    if run.config["data"].get("path") is None:
        return ""
    try:
        card = read_checkpoint(run.folder)[0]["genlab"]
    except RequestError:  # the checkpoints may have been deleted to save space
        return ""
    return str(card.get("fingerprints", {}).get("test", ""))


def _order(group: Group) -> tuple[bool, bool, Any, float]:
    """Likelihoods come first, groups without a number last; within a set the best validation value is first."""
    valid = group.value("valid")
    if group.measured is None or valid is None:
        return True, False, (), 0.0
    unit = group.measured.unit
    return False, unit != "bits/dim", group.measured, -valid.mean if unit == "accuracy" else valid.mean
