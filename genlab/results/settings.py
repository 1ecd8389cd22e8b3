"""The settings of a run as one flat dictionary, and the settings in which groups of runs differ.

    {"names.model": "pixelcnn", "model": "genlab.models.Autoregressive", "model.net.width": 48, …}

The value of a section with a `_target_` is this target. Left out are the seeds, and the keys in `NOT_SETTINGS`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from genlab.request.values import format_value

SEEDS = ("seed", "data.seed")
# These say how a run is started, kept and watched. They do not change what it computes.
NOT_SETTINGS = {
    *SEEDS, "trust", "names.experiment", "logger.kind", "logger.project", "data.root", "train.pause_after",
    "train.log_every", "train.sample_every", "train.samples", "train.checkpoint_every",
}  # fmt: skip
EXACT = 2**53  # smaller whole numbers are floats without rounding
CHOSEN_BY_BUDGET = {"trainer.max_steps", "train.valid_every"}  # with train.minutes, a run measures itself and sets them


def flat(config: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Dotted key -> value, of the whole config."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if key == "_target_":
            values[within.removesuffix(".")] = value
        elif isinstance(value, Mapping) and value:
            values |= flat(value, f"{within}{key}.")
        elif key != "_partial_":
            values[f"{within}{key}"] = value
    return values


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """`flat` without what two runs of the same setting may differ in."""
    values = flat(config)
    chosen = CHOSEN_BY_BUDGET if values.get("train.minutes") is not None else set()
    return {key: value for key, value in sorted(values.items()) if key not in NOT_SETTINGS | chosen}


def identity(values: Mapping[str, Any]) -> str:
    """A text that is equal for equal settings. A key that is null may also be absent: older runs have fewer keys."""
    return json.dumps({key: _comparable(value) for key, value in sorted(values.items()) if value is not None})


def differing(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which the settings of several groups differ.

    Two models have different sizes, losses and so on, but this follows from their names. So a key is compared only
    among groups in which the sections around it are of the same kind.
    """
    keys = dict.fromkeys(key for values in groups for key in values)
    found = []
    for key in keys:
        by_context: dict[str, set[str]] = defaultdict(set)
        for values in groups:
            context = [values.get(outer) for outer in _around(key)]
            by_context[json.dumps(context)].add(json.dumps(_comparable(values.get(key))))
        if any(len(different) > 1 for different in by_context.values()):
            found.append(key)
    names = [key for key in ("names.model", "names.data") if key in found]
    return [*names, *(key for key in found if key not in names)]


def title(key: str) -> str:
    """The name of a setting as its user gives it on the command line."""
    return key.removeprefix("names.")


def cell(values: Mapping[str, Any], key: str) -> str:
    """The value of a setting as its user would type it; "-" if the group has no such setting."""
    value = values.get(key, "-")
    if isinstance(value, str) and value.startswith("genlab."):
        return value.rpartition(".")[2]  # a constructor, by the last part of its name
    return format_value(value)


def describe(values: Mapping[str, Any], keys: Sequence[str]) -> str:
    """A group in one line: the settings `keys` in which it differs from others."""
    shown = [key for key in keys if key in values]
    return ", ".join(
        cell(values, key) if key.startswith("names.") else f"{title(key)}={cell(values, key)}" for key in shown
    )


def _around(key: str) -> list[str]:
    """The keys of the sections around a key, and the name of the chosen model or data set."""
    parts = key.split(".")
    outer = [".".join(parts[:end]) for end in range(1, len(parts))]
    return [*outer, f"names.{parts[0]}"] if parts[0] in ("model", "data") else outer


def _comparable(value: Any) -> Any:
    """The value with whole numbers as floats, because 0 and 0.0 are the same setting."""
    if isinstance(value, (list, tuple)):
        return [_comparable(each) for each in value]
    return float(value) if type(value) is int and abs(value) < EXACT else value
