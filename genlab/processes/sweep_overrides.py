"""Read and check the overrides of `genlab train -m`: the values of each key, and the jobs of the sweep.

Hydra's sweepers find most errors themselves, but some only after hours and with a traceback. So every override is
checked here first. A wrong one raises an error with one sentence, before a folder exists.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from genlab.core import RequestError
from genlab.request.compose import Request
from genlab.request.folders import groups

MAX_RUNS = 10_000  # of one sweep


def check(request: Request) -> DictConfig:
    """The config of the first job, its `hydra` section included. Raises RequestError for overrides that cannot work."""
    parsed = request.parse(request.overrides)
    swept = {o.get_key_element() for o in parsed if o.is_sweep_override()}
    for following, o in enumerate(parsed, 1):
        key = o.get_key_element()
        # Hydra takes the last override of a key, and silently drops the values of earlier ones.
        if o.is_sweep_override() and any(later.get_key_element() == key for later in parsed[following:]):
            raise RequestError(f"{key} is given twice: give all its values at once, {key}=a,b")
        if key in swept and (key.split(".")[0].split("/")[0] in ("hydra", "sweep")):
            raise RequestError(
                f"{o.input_line}: all runs of a sweep are started in the same way, so {key} takes one value"
            )
        if key == "hydra.run.dir":
            raise RequestError("hydra.run.dir is the folder of one run: with -m give hydra.sweep.dir")
    covering = _covering_jobs(request, parsed)
    first = request.check(covering[0])
    search = is_search(first)
    _check_launcher_and_sweeper(first)
    if not search and number(request) > MAX_RUNS:
        raise RequestError(f"that is {number(request):,} runs, and a sweep may have at most {MAX_RUNS:,}")
    for o in parsed:
        if o.is_interval_sweep() and not search:
            raise RequestError(
                f"{o.input_line} is a range to search in: add sweep=optuna, or list the values, "
                f"{o.get_key_element()}=a,b"
            )
    configs = [first, *(request.check(each) for each in covering[1:])]
    params = _parameters(request, first)
    if params:
        fixed = [word for word in covering[0] if word.partition("=")[0] not in {o.get_key_element() for o in params}]
        configs += [request.check([*fixed, *each]) for each in _covering_jobs(request, params)]
    if search:
        for config in configs:
            _check_searchable(config)
        _check_one_space(first, swept)
    return first


def jobs(request: Request) -> list[list[str]] | None:
    """The overrides of every job in Hydra's order; None if they are not known beforehand (a search, a shuffle)."""
    parsed = request.parse(request.overrides)
    if any(o.is_interval_sweep() or getattr(o.value(), "shuffle", False) for o in parsed):
        return None
    values = {o.get_key_element(): _assignments(request, o) for o in parsed if not o.is_hydra_override()}
    return [list(words) for words in itertools.product(*values.values())]


def _covering_jobs(request: Request, parsed: list[Override]) -> list[list[str]]:
    """The fewest jobs, as lists of overrides, in which every value of every key occurs at least once."""
    choices = [_assignments(request, o) for o in parsed]
    # For a range, it is enough to check its two ends.
    choices = [w[:1] + w[-1:] if o.is_range_sweep() else w for o, w in zip(parsed, choices, strict=True)]
    most = max((len(values) for values in choices), default=0)
    return [[values[min(i, len(values) - 1)] for values in choices if values] for i in range(max(most, 1))]


def _assignments(request: Request, o: Override) -> list[str]:
    """`key=value` for each value of one override; for an interval, only for its two ends."""
    if not o.is_sweep_override():
        return [str(o.input_line)]
    value: Any = o.value()
    values: list[Any]
    if isinstance(value, IntervalSweep):
        values = [value.start, value.end]
        if not value.start < value.end or ("log" in value.tags and value.start <= 0):  # type: ignore[operator]
            raise RequestError(
                f"{o.input_line}: give the smaller end of an interval first; with tag(log, …) it must be above 0"
            )
    elif isinstance(value, Glob):
        values = value.filter(groups(request.folders).get(o.key_or_group, []))
    else:
        if isinstance(value, RangeSweep):
            _check_range(o, value)
        values = list(o.sweep_string_iterator())
    if not values:
        raise RequestError(f"{o.input_line} gives no value")
    return [f"{o.get_key_element()}={value}" for value in values]


def _check_range(o: Override, value: RangeSweep) -> None:
    start, stop, step = value.start or 0, value.stop or 0, value.step
    if not all(math.isfinite(number) for number in (start, stop, step)) or step == 0:
        raise RequestError(f"{o.input_line} never ends: give range(start,stop,step) with a step above 0")
    count = math.ceil((stop - start) / step)
    if count > MAX_RUNS:
        raise RequestError(f"{o.input_line} is {count:,} runs, and a sweep may have at most {MAX_RUNS:,}")


def number(request: Request) -> int:
    """The number of jobs in a grid."""
    return math.prod(len(_assignments(request, o)) for o in request.parse(request.overrides))


def is_search(config: DictConfig) -> bool:
    """True if the sweeper chooses values by the results of earlier runs."""
    return "optuna" in str(config.hydra.sweeper.get("_target_", "")).lower()


def _parameters(request: Request, config: DictConfig) -> list[Override]:
    """The keys that the sweeper's own yaml sweeps over, without those that the command line sets."""
    params: Any = OmegaConf.to_container(config.hydra.sweeper).get("params") or {}  # type: ignore[union-attr]
    overridden = {o.get_key_element() for o in request.parse(request.overrides)}
    return request.parse([f"{key}={value}" for key, value in params.items() if key not in overridden])


def _check_launcher_and_sweeper(config: DictConfig) -> None:
    """Raise RequestError for settings with which Hydra's launchers and sweepers would fail."""
    sweeper, launcher = config.hydra.sweeper, config.hydra.launcher
    for key, node, name in (
        ("sweeper.n_trials", sweeper, "n_trials"),
        ("sweeper.n_jobs", sweeper, "n_jobs"),
        ("sweeper.max_batch_size", sweeper, "max_batch_size"),
        ("launcher.timeout_min", launcher, "timeout_min"),
    ):
        if node.get(name) is not None and node.get(name) < 1:
            raise RequestError(f"hydra.{key}={node.get(name)} must be at least 1")
    if launcher.get("n_jobs") == 0:
        raise RequestError("hydra.launcher.n_jobs=0 must be at least 1, or -1 for all cores")
    if is_search(config) and str(sweeper.direction).lower().split(".")[-1] != "minimize":
        raise RequestError(f"hydra.sweeper.direction={sweeper.direction}: bits/dim and loss are better when small")


def _check_searchable(config: DictConfig) -> None:
    target = str(config.model.get("_target_", ""))
    if target.startswith("genlab.") and hasattr(get_class(target), "turn"):  # a core.Adversarial
        raise RequestError(
            f"model={config.hydra.runtime.choices.get('model')} has no likelihood, so sweep=optuna has nothing to "
            "minimise: list the values, for example optim.lr=1e-4,2e-4"
        )


def _check_one_space(config: DictConfig, swept: set[str]) -> None:
    """Raise RequestError for a search over models, if the keys that are searched are those of one model."""
    several = sorted(swept & {"model", "experiment"})
    if several and config.hydra.runtime.choices.get("sweep/space") != "none":
        raise RequestError(
            f"sweep=optuna searches keys that belong to one model, and {several[0]} has several values: add "
            "sweep/space=none, and it searches only optim.lr and the keys that you give"
        )
