"""The words of a command line one by one: `key=value`, `group=choice`, `+key=`, `++key=`, `~key`.

Hydra parses them. Here each is checked against the existing choices and keys. For a wrong one, the message names the
nearest right one.
"""

from __future__ import annotations

from collections.abc import Mapping

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from genlab.core import RequestError
from genlab.request.nodes import section_of
from genlab.request.values import format_value, nearest_choice, nearest_key

# Keys whose value is a path or free text. In an unquoted value, Hydra would read commas, spaces and = as its grammar.
TEXT_KEYS = {"ckpt", "classifier", "init", "image", "context", "known", "out", "label"}
TEXT_KEYS |= {"data.path", "data.root", "hydra.run.dir", "hydra.sweep.dir"}


def quoted(word: str) -> str:
    """A word as Hydra should get it: with its value in quotes if the key is one of `TEXT_KEYS`."""
    key, equals, value = word.partition("=")
    if key not in TEXT_KEYS or not value or value == "null" or value[0] in "'\"":
        return word
    return f"{key}{equals}{quote(value)}"


def quote(value: str) -> str:
    """A text in quotes, as Hydra reads it."""
    # A backslash escapes only a quote, so of all backslashes only those before the closing quote are doubled.
    ending = value[len(value.rstrip("\\")) :]
    escaped = value.removesuffix(ending).replace("'", "\\'")
    return f"'{escaped}{ending * 2}'"


def parse(words: list[str]) -> list[Override]:
    """The overrides that words stand for, as Hydra parses them. Raises RequestError for a word that it cannot parse."""
    parsed = []
    for word in words:
        try:
            parsed.append(OverridesParser.create().parse_override(word))
        except RecursionError as error:
            raise RequestError(f"cannot read {format_value(word)}: too deeply nested") from error
        except (HydraException, ValueError) as error:  # ValueError: a number of thousands of digits
            if "=" not in word:
                raise RequestError(f"cannot read {format_value(word)!r}: give key=value, for example seed=1") from error
            raise RequestError(
                f"cannot read {format_value(word)}: close all brackets, and put a value with other characters than "
                "letters, digits and _-./ into quotes, 'key=\"value\"'"
            ) from error
    return parsed


def of_hydra(o: Override) -> bool:
    """Returns True for an override of Hydra's own settings, which are not checked here."""
    return o.key_or_group.startswith("hydra")


def check_choice(o: Override, verb: str, choices: Mapping[str, list[str]], all_groups: Mapping[str, list[str]]) -> None:
    """Raise RequestError for a group that the verb does not have, or a choice that its group does not have.

    `choices`: the groups of this verb, and the names to choose from in each. `all_groups`: the same of all verbs.
    """
    group = o.key_or_group
    if group in all_groups.keys() - choices.keys() and not of_hydra(o):
        raise RequestError(f"{o.input_line}: genlab {verb} has no choice of {group}")
    if o.package is not None and not of_hydra(o):
        raise RequestError(f"{o.input_line}: genlab {verb} has one {group}: give {group}=…")
    if group not in choices or o.is_delete():
        return
    name = o.value()
    if name is None or isinstance(name, (list, dict)) or str(name) not in choices[group]:
        raise RequestError(
            f"{group}={format_value(name)} does not exist: {nearest_choice(name, group, choices[group])}"
        )


def check_key(o: Override, verb: str, config: DictConfig, valid: set[str]) -> None:
    """Raise RequestError for a key that does not exist, and for one that cannot be added or taken away.

    `config`: composed of the choices that were made. `valid`: its keys and the verb's groups.
    """
    key = o.key_or_group
    if key.split(".")[0] == "names":
        raise RequestError(f"{o.input_line}: genlab fills in the names itself; give model=, data= or experiment=")
    if o.is_delete():
        if key not in valid:
            raise RequestError(f"~{key}: genlab {verb} has no key {key!r}: {nearest_key(key, valid)}")
        return
    value, group = o.value(), key.replace(".", "/")
    adds = o.is_add() or o.is_force_add()
    if adds and key not in valid and "_target_" in (section_of(config, key) or ()):
        return  # an argument of a constructor, which raises an error if it does not take it
    if key not in valid:
        raise RequestError(f"genlab {verb} has no key {key!r}: {nearest_key(key, valid)}")
    if o.is_add():
        raise RequestError(f"+{key}={format_value(value)}: the key is there already, leave out the +")
    if isinstance(value, str) and group != key and group in valid:
        raise RequestError(f"{key}={value}: a part is chosen by its group, {group}={value}")
