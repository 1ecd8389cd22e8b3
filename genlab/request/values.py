"""Check the values of a request: each must be of the kind of its default, and every key must be known.

The composed config is compared with the same config before any value was changed. A key whose default is null, or that
accepts more than one kind of value, is listed here. Keys beside a `_target_` are arguments of its constructor: others
may be added and any may be left out, because the constructor itself refuses what it does not know. Arguments of a class
of another package are not checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from genlab.core import RequestError, nearest

LARGEST = 2**63 - 1  # the largest integer of torch
MANY = 12  # the largest number of choices that a sentence lists
SHOWN = 80  # characters of a value in a sentence


class Kind(NamedTuple):
    """What a key accepts: values of these `types`, these `words`, and null if `null`. `what` says it to the user."""

    what: str
    types: tuple[type, ...]
    null: bool = False
    words: tuple[str, ...] = ()


FLAG, WHOLE, NUMBER = Kind("true or false", (bool,)), Kind("a whole number", (int,)), Kind("a number", (int, float))
TEXT = Kind("a word", (str, int, float))  # Hydra reads 32 as a number; code that needs a word uses str(value)
COUNT = Kind("a whole number or null", (int,), null=True)
NAME = Kind("a word or null", (str, int, float), null=True)

# Keys whose default is null, or does not show all that they accept; by the whole key, or by its last part.
KINDS = {
    "trainer.devices": Kind("a whole number or auto", (int,), words=("auto",)),
    "trainer.gradient_clip_val": Kind("a number or null", (int, float), null=True),
    "optim.discriminator_lr": Kind("a number or null", (int, float), null=True),
    "data.validation": NUMBER,  # a count or a share
    "corrupted": Kind("true, false or null", (bool,), null=True),
    **dict.fromkeys(("train.patience", "batch_size", "limit", "per_class", "train", "particles"), COUNT),
    **dict.fromkeys(("components", "steps", "units"), COUNT),
    **dict.fromkeys(("image", "context", "known", "classifier", "layer", "label", "code", "chain"), NAME),
    **dict.fromkeys(("root", "path", "model", "data", "experiment"), NAME),
}


def check_values(default: Mapping[str, Any], given: Mapping[str, Any], within: str = "") -> None:
    """RequestError for the first value of `given` (plain, resolved) that is not of the kind of its `default`, for an
    unknown key, and for a missing one.
    """
    target = given.get("_target_", default.get("_target_"))
    if within and target is not None and not str(target).startswith("genlab."):
        return
    for key, usual in default.items():
        name = f"{within}{key}"
        if key not in given:
            if target is None or key == "_target_":
                raise RequestError(f"{name} cannot be taken away: the default is {shown(usual)}")
        elif isinstance(usual, Mapping):
            value = given[key]
            if isinstance(value, Mapping):
                check_values(usual, value, f"{name}.")
            elif target is None or value is not None:  # a constructor may do without a part
                raise RequestError(f"{name}={shown(value)}: {name} is a section with the keys {listed(usual, name)}")
        elif usual != given[key] or type(usual) is not type(given[key]):
            check_value(name, given[key], usual)
    for key in given.keys() - default.keys():
        if target is None:
            known = [f"{within}{each}" for each in default]
            raise RequestError(f"there is no key {within}{key}: {nearest(f'{within}{key}', known)}")
        check_finite(f"{within}{key}", given[key])


def check_value(key: str, value: Any, default: Any) -> None:
    """RequestError unless `value` is of the kind that `key` accepts, as its default or `KINDS` says."""
    if isinstance(default, (list, tuple)):
        if value is None and key.startswith(("model.", "data.")):
            return
        of = TEXT if key == "trust" else (_kind(key, default[0]) if default else None) or WHOLE
        if not isinstance(value, (list, tuple)):
            raise RequestError(f"{key}={shown(value)}: expected a list, like the default {shown(default)}")
        wrong = [each for each in value if not _fits(each, of)]
        if wrong:
            raise RequestError(f"{key}={shown(value)}: expected a list of which each is {of.what}")
    else:
        kind = _kind(key, default)
        if kind is not None and not _fits(value, kind):
            like = "" if default is None else f", like the default {shown(default)}"
            raise RequestError(f"{key}={shown(value)}: expected {kind.what}{like}")
    check_finite(key, value)


def check_finite(key: str, value: Any) -> None:
    """RequestError for a number in `value`, however deep, that is not finite or too large for an integer of torch."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            check_finite(f"{key}.{name}", each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            check_finite(key, each)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RequestError(f"{key}={value}: expected a finite number")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise RequestError(f"{key}={shown(value)}: the number is too large")


def shown(value: Any, most: int = SHOWN) -> str:
    """A value as the user would type it, cut in the middle to `most` characters."""
    if isinstance(value, (list, tuple)):
        text = f"[{','.join(shown(each) for each in value[:most])}]"
    elif isinstance(value, Mapping):
        text = f"{{{','.join(f'{key}:{shown(each)}' for key, each in value.items())}}}"
    else:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"


def listed(section: Mapping[str, Any], name: str) -> str:
    """The keys of a section, for a sentence."""
    return ", ".join(f"{name}.{key}" for key in section if not str(key).startswith("_"))


def _kind(key: str, default: Any) -> Kind | None:
    """What a key accepts; None where that is not known."""
    found = KINDS.get(key) or (KINDS.get(key.rpartition(".")[2]) if default is None else None)
    if found is not None:
        return found
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
    """The closest choice, else all of them or, if they are many, the command that lists them."""
    if isinstance(name, str) and get_close_matches(name, names, 1, 0.5):
        return nearest(name, names)
    return f"choose from {', '.join(names)}" if len(names) <= MANY else f"genlab list {group} shows what does"


def nearest_key(key: str, valid: set[str]) -> str:
    """The closest key; a key that is only misplaced is found by its last part."""
    same_end = sorted(k for k in valid if k.split(".")[-1] == key.split(".")[-1])
    if same_end:
        return f"did you mean {same_end[0]!r}?"
    above = key
    while above:
        above = above.rpartition(".")[0]
        here = {k for k in valid if k.rpartition(".")[0] == above and ("/" not in k or "/" in key)}
        if here:
            return nearest(key, here)
    return nearest(key, {k for k in valid if "." not in k and "/" not in k})
