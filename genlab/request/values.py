"""Checks of the values in a request: each must be of the kind of its default, and every key must be known.

The composed config is compared with the same config before any value was changed. `KINDS` lists the keys whose default
is null and the keys that accept more than one kind of value. Keys beside a `_target_` are arguments of a constructor:
others may be added and any may be left out, because the constructor itself checks them. Arguments of
a class of another package are not checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from genlab.core import RequestError, nearest

LARGEST = 2**63 - 1  # the largest integer of torch
MOST_CHOICES = 12  # that a message lists
MOST_CHARACTERS = 80  # of a value in a message


class Kind(NamedTuple):
    """The values that a key accepts: those of `types`, the words `words`, and null if `null`. `what`: for messages."""

    what: str
    types: tuple[type, ...]
    null: bool = False
    words: tuple[str, ...] = ()


FLAG, WHOLE, NUMBER = Kind("true or false", (bool,)), Kind("a whole number", (int,)), Kind("a number", (int, float))
TEXT = Kind("a word", (str, int, float))  # a name may look like a number; code that needs a word uses str(value)
COUNT = Kind("a whole number or null", (int,), null=True)
NUMBER_OR_NULL = Kind("a number or null", (int, float), null=True)
NAME = Kind("a word or null", (str, int, float), null=True)

# Keys whose default is null or does not show all that they accept. Listed is the whole key or its last part.
KINDS = {
    "trainer.devices": Kind("a whole number or auto", (int,), words=("auto",)),
    "data.validation": NUMBER,  # a count or a share
    "corrupted": Kind("true, false or null", (bool,), null=True),
    **dict.fromkeys(("trainer.gradient_clip_val", "optim.discriminator_lr"), NUMBER_OR_NULL),
    **dict.fromkeys(("train.minutes", "train.epochs", "train.pause_after"), NUMBER_OR_NULL),
    **dict.fromkeys(("trainer.max_steps", "train.valid_every", "train.sample_every", "train.checkpoint_every"), COUNT),
    **dict.fromkeys(("train.patience", "batch_size", "limit", "per_class", "train", "particles", "levels"), COUNT),
    **dict.fromkeys(("train.repeat", "components", "steps", "units", "block"), COUNT),
    **dict.fromkeys(
        ("image", "context", "known", "classifier", "layer", "label", "code", "chain", "maps", "background"), NAME
    ),
    **dict.fromkeys(("root", "path", "model", "data", "experiment"), NAME),
}


def check_values(default: Mapping[str, Any], config: Mapping[str, Any], within: str = "") -> None:
    """Raise RequestError for a value of `config` that is not of the kind of its `default`, an unknown key or a missing
    key.

    `config` holds plain values. `within`: the section that both are, with a dot at its end.
    """
    target = config.get("_target_", default.get("_target_"))
    if within and target is not None and not str(target).startswith("genlab."):
        return
    for key, usual in default.items():
        name = f"{within}{key}"
        if key not in config:
            if target is None or key == "_target_":
                raise RequestError(f"{name} cannot be taken away: the default is {format_value(usual)}")
        elif isinstance(usual, Mapping):
            value = config[key]
            if isinstance(value, Mapping):
                check_values(usual, value, f"{name}.")
            elif target is None or value is not None:  # an argument of a constructor may be null
                raise RequestError(
                    f"{name}={format_value(value)}: {name} is a section with the keys {listed(usual, name)}"
                )
        elif usual != config[key] or type(usual) is not type(config[key]):
            check_value(name, config[key], usual)
    for key in config.keys() - default.keys():
        if target is None:
            known = [f"{within}{each}" for each in default]
            raise RequestError(f"there is no key {within}{key}: {nearest(f'{within}{key}', known)}")
        check_finite(f"{within}{key}", config[key])


def check_value(key: str, value: Any, default: Any) -> None:
    """Raise RequestError unless `key` accepts this kind of `value`. The kind is that of its default or in `KINDS`."""
    if isinstance(default, (list, tuple)):
        if value is None and key.startswith(("model.", "data.")):
            return
        kind = TEXT if key in ("trust", "against", "runs") else (_kind(key, default[0]) if default else None) or WHOLE
        if not isinstance(value, (list, tuple)):
            raise RequestError(
                f"{key}={format_value(value)}: expected a list, like the default {format_value(default)}"
            )
        if not all(_fits(each, kind) for each in value):
            raise RequestError(f"{key}={format_value(value)}: expected a list in which each value is {kind.what}")
    else:
        accepted = _kind(key, default)
        if accepted is not None and not _fits(value, accepted):
            like = "" if default is None else f", like the default {format_value(default)}"
            raise RequestError(f"{key}={format_value(value)}: expected {accepted.what}{like}")
    check_finite(key, value)


def check_finite(key: str, value: Any) -> None:
    """Raise RequestError for a number in `value`, at any depth, that is not finite or too large for a torch integer."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            check_finite(f"{key}.{name}", each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            check_finite(key, each)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RequestError(f"{key}={value}: expected a finite number")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise RequestError(f"{key}={format_value(value)}: the number is too large")


def format_value(value: Any, most: int = MOST_CHARACTERS) -> str:
    """A value as its user would type it, for messages: its middle is cut out if it has more than `most` characters."""
    if isinstance(value, (list, tuple)):
        text = f"[{','.join(format_value(each) for each in value[:most])}]"
    elif isinstance(value, Mapping):
        text = f"{{{','.join(f'{key}:{format_value(each)}' for key, each in value.items())}}}"
    else:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"


def listed(section: Mapping[str, Any], name: str) -> str:
    """The keys of a section as a list in a message."""
    return ", ".join(f"{name}.{key}" for key in section if not str(key).startswith("_"))


def _kind(key: str, default: Any) -> Kind | None:
    """The kind of value that a key accepts; None if that is not known."""
    kind = KINDS.get(key) or (KINDS.get(key.rpartition(".")[2]) if default is None else None)
    if kind is not None:
        return kind
    return {bool: FLAG, int: WHOLE, float: NUMBER, str: TEXT}.get(type(default))


def _fits(value: Any, kind: Kind) -> bool:
    if value is None:
        return kind.null
    if isinstance(value, str) and value in kind.words:
        return True
    if isinstance(value, bool):
        return bool in kind.types
    if isinstance(value, float) and not math.isfinite(value) and str not in kind.types:
        return False
    return isinstance(value, kind.types)


def nearest_choice(name: Any, group: str, names: list[str]) -> str:
    """A suggestion for a wrong choice: the closest one, or else all choices, or the command that lists them."""
    if isinstance(name, str) and get_close_matches(name, names, 1, 0.5):
        return nearest(name, names)
    return f"choose from {', '.join(names)}" if len(names) <= MOST_CHOICES else f"genlab list {group} shows what does"


def nearest_key(key: str, valid: set[str]) -> str:
    """A suggestion for a wrong key: one with the same last part, or else the closest key of the nearest section."""
    same_end = sorted(k for k in valid if k.split(".")[-1] == key.split(".")[-1])
    if same_end:
        return f"did you mean {same_end[0]!r}?"
    section = key
    while section:
        section = section.rpartition(".")[0]
        neighbours = {k for k in valid if k.rpartition(".")[0] == section and ("/" not in k or "/" in key)}
        if neighbours:
            return nearest(key, neighbours)
    return nearest(key, {k for k in valid if "." not in k and "/" not in k})
