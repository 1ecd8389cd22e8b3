"""From words on the command line to a config: Hydra's composition, with requests checked first.

Hydra explains a wrong request in a paragraph or a traceback. Here every override is checked against the composed
defaults before Hydra sees it: unknown groups, choices and keys are named with the nearest valid one, however they are
spelled (`key=`, `+key=`, `++key=`, `~key`), and values with the kind that is expected (`values.py`). What is below
`hydra.` is left to Hydra.

Words of the command line win over an experiment: a value over its value, a choice over its choice. Where an experiment
sets values for a part that the command line has exchanged, nobody can say what is meant, and that is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from genlab.build.gate import trusted
from genlab.build.untrusted import check_plain
from genlab.core import RequestError, nearest
from genlab.request.folders import check_folder, configs_folder, groups
from genlab.request.values import check_value, check_values, nearest_choice, nearest_key, shown


@dataclass
class Request:
    """One command: verb, words after it, and the command itself for the record."""

    verb: str
    words: list[str]
    command: str
    overrides: list[str] = field(default_factory=list)
    sweep: bool = False
    folders: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folders = [configs_folder()]
        words = iter(self.words)
        for word in words:
            if word in ("-m", "--multirun"):
                self.sweep = True
            elif word in ("--config-dir", "-cd") or word.startswith("--config-dir="):
                folder = Path(word.partition("=")[2] if "=" in word else next(words, "")).expanduser()
                if not folder.is_dir():
                    raise RequestError(f"--config-dir {folder} is not a folder")
                self.folders.append(folder.resolve())
            elif word.startswith("-"):
                raise RequestError(
                    f"unknown option {word!r} of genlab {self.verb}: options are -m, --config-dir, --help"
                )
            else:
                self.overrides.append(quoted(word))

    def config(self) -> DictConfig:
        """The composed config of the verb, with Hydra's own part under `hydra`. Raises RequestError."""
        if self.sweep:
            raise RequestError(f"genlab {self.verb} runs once: -m is for genlab train")
        config = self.check(self.overrides)
        missing = [key for key in _keys(_without_hydra(config)) if OmegaConf.is_missing(*_parent(config, key))]
        if missing:
            raise RequestError(
                f"genlab {self.verb} needs {missing[0]}=…: see genlab {self.verb} --help"
                if missing[0] not in ("ckpt", "classifier")
                else f"genlab {self.verb} needs {missing[0]}=…: a run folder or a checkpoint file"
            )
        return config

    def check(self, overrides: list[str]) -> DictConfig:
        """Compose, after every override has been checked against what there is."""
        parsed = self.parse(overrides)
        if "hydra" not in _given_trust(parsed):
            for folder in self.folders[1:]:
                check_folder(folder)
        several = next((o for o in parsed if o.is_sweep_override()), None)
        if several is not None:
            raise RequestError(f"{several.input_line} gives several values: add -m to train once for each")
        defaults = self._compose([])
        choices = defaults.hydra.runtime.choices
        every = groups(self.folders)
        known = {g: names for g, names in every.items() if g.split("/")[0] in choices}
        for o in parsed:
            if o.key_or_group in every.keys() - known.keys() and not o.key_or_group.startswith("hydra"):
                # Hydra takes it for a choice, which this verb does not have.
                raise RequestError(
                    f"{o.input_line}: {o.key_or_group} is nothing that genlab {self.verb} lets you choose"
                )
            self._check_choice(o, known)
        chosen = [o for o in parsed if o.key_or_group in known and not o.key_or_group.startswith("hydra")]
        base = self._compose([str(o.input_line) for o in chosen if not o.is_delete()])
        keys = set(_keys(_without_hydra(base)))
        for o in parsed:
            if o not in chosen and not o.key_or_group.startswith("hydra"):
                self._check_key(o, base, keys | set(known))
        self._check_experiment(chosen, [o.key_or_group for o in parsed], known)
        config = self._compose(overrides)
        check_trust(config, parsed)
        self._check_values(defaults, base, config, known)
        return config

    def parse(self, overrides: list[str]) -> list[Override]:
        """Hydra's reading of the words."""
        parsed = []
        for word in overrides:
            try:
                parsed.append(OverridesParser.create().parse_override(word))
            except RecursionError as error:
                raise RequestError(f"cannot read {shown(word)}: too deeply nested") from error
            except (HydraException, ValueError) as error:  # ValueError: a number of thousands of digits
                if "=" not in word:
                    raise RequestError(f"cannot read {shown(word)!r}: give key=value, for example seed=1") from error
                raise RequestError(
                    f"cannot read {shown(word)}: brackets must close, and what is more than letters, digits and _-./ "
                    "is put into quotes, 'key=\"value\"'"
                ) from error
        return parsed

    def compose_arguments(self) -> list[str]:
        """Hydra override that adds the user's config folders."""
        extra = ",".join(f"file://{folder}" for folder in self.folders[1:])
        return [f"hydra.searchpath=[{extra}]"] if extra else []

    def _check_choice(self, o: Override, known: dict[str, list[str]]) -> None:
        group = o.key_or_group
        if o.package is not None and not group.startswith("hydra"):
            raise RequestError(f"{o.input_line}: genlab {self.verb} has one {group}: give {group}=…")
        if group not in known or o.is_delete():
            return
        name = o.value()
        if name is None or isinstance(name, (list, dict)) or str(name) not in known[group]:
            raise RequestError(f"{group}={shown(name)} does not exist: {nearest_choice(name, group, known[group])}")

    def _check_key(self, o: Override, base: DictConfig, valid: set[str]) -> None:
        """RequestError for a key that is not there, or that cannot be added or taken away."""
        key = o.key_or_group
        if key.split(".")[0] == "names":
            raise RequestError(f"{o.input_line}: genlab fills in the names itself; say model=, data= or experiment=")
        if o.is_delete():
            if key not in valid:
                raise RequestError(f"~{key}: genlab {self.verb} has no key {key!r}: {nearest_key(key, valid)}")
            return
        value, group = o.value(), key.replace(".", "/")
        adds = o.is_add() or o.is_force_add()
        if adds and key not in valid and "_target_" in (_above(base, key) or ()):
            return  # an argument of a constructor, which knows best
        if key not in valid:
            raise RequestError(f"genlab {self.verb} has no key {key!r}: {nearest_key(key, valid)}")
        if o.is_add():
            raise RequestError(f"+{key}={shown(value)}: the key is there already, leave out the +")
        if isinstance(value, str) and group != key and group in valid:
            raise RequestError(f"{key}={value}: a part is chosen by its group, {group}={value}")

    def _check_experiment(self, chosen: list[Override], given: list[str], known: dict[str, list[str]]) -> None:
        """RequestError where an experiment has values for another choice than the command line's, or other values than
        a trainer of the command line itself sets; those that the command line also gives do not count.
        """
        words = {o.key_or_group: str(o.value()) for o in chosen if not o.is_delete()}
        experiment = words.pop("experiment", None)
        if experiment is None:
            return
        recipe = set(_keys(self._body("experiment", experiment)))
        meant = self._compose([f"experiment={experiment}"]).hydra.runtime.choices
        for group in ("model", "optim", "trainer"):
            if group not in words or words[group] == meant.get(group):
                continue
            own = {f"{group}.{key}" for key in _keys(self._body(group, words[group]))}
            theirs = sorted(
                key for key in recipe
                if key.startswith(f"{group}.") and key not in given and (group != "trainer" or key in own)
                and not any(other.startswith(f"{key}.") for other in recipe)
            )  # fmt: skip
            if theirs:
                raise RequestError(
                    f"experiment={experiment} sets {', '.join(theirs[:4])}{' …' * (len(theirs) > 4)} for "
                    f"{group}={meant.get(group)}, not for {group}={words[group]}: leave one of the two out, or give "
                    "the values yourself"
                )

    def _body(self, group: str, name: str) -> DictConfig:
        """What a choice itself says, without what it includes."""
        files = [folder / group / f"{name}.yaml" for folder in reversed(self.folders)]
        body = OmegaConf.load(next(file for file in files if file.is_file()))
        assert isinstance(body, DictConfig)
        body.pop("defaults", None)
        return body

    def _check_values(
        self, defaults: DictConfig, base: DictConfig, config: DictConfig, known: dict[str, list[str]]
    ) -> None:
        """RequestError unless every section is there, without unknown keys, and every value is of its kind."""
        usual, before, after = (_plain(each) for each in (defaults, base, config))
        for key in usual:
            if key not in after:
                give = nearest_choice(None, key, known[key]) if key in known else f"the default is {shown(usual[key])}"
                raise RequestError(f"genlab {self.verb} needs {key}: {give}")
        for section in ("train", "trainer"):  # of a file of the user's, which `base` has read as well
            for key in set(before.get(section) or ()) - set(usual.get(section) or ()):
                raise RequestError(f"there is no key {section}.{key}: {nearest(key, usual.get(section) or before)}")
        for key in before.keys() - usual.keys():
            raise RequestError(f"genlab {self.verb} has no key {key!r}: {nearest_key(key, set(usual))}")
        check_values(before, after)

    def _compose(self, overrides: list[str]) -> DictConfig:
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(config_dir=str(self.folders[0]), version_base="1.3"):
                config = compose(self.verb, [*overrides, *self.compose_arguments()], return_hydra_config=True)
        except Exception as error:  # half a dozen types, and all that is done here is to read the request
            found = re.match(r"Could not override '(\w+)/(\w+)'", str(error))
            if found and found.group(0).count("/") == 1:
                group, part = found.groups()
                raise RequestError(f"{group}/{part}=…: this {group} has no {part} to choose") from error
            raise RequestError(f"the request does not compose: {shown_error(error)}") from error
        HydraConfig.instance().set_config(config)  # so that ${hydra:…} resolves
        return config


# Keys whose value is a path or a text of its own: Hydra would read commas, spaces and = in it as grammar.
_TEXTS = {"ckpt", "classifier", "init", "image", "context", "known", "out", "label"}
_TEXTS |= {"data.path", "data.root", "hydra.run.dir", "hydra.sweep.dir"}


def quoted(word: str) -> str:
    """A word with its value quoted, where the value is a text."""
    key, equals, value = word.partition("=")
    if key not in _TEXTS or not value or value == "null" or value[0] in "'\"":
        return word
    ending = value[len(value.rstrip("\\")) :]  # only before a quote does a backslash mean something
    escaped = value.removesuffix(ending).replace("'", "\\'")
    return f"{key}{equals}'{escaped}{ending * 2}'"


def check_trust(config: DictConfig, parsed: list[Override]) -> None:
    """RequestError for `trust` out of a file: what may run on this machine is said on its command line alone."""
    try:
        trust = trusted(config.get("trust"))
    except OmegaConfBaseException as error:
        raise RequestError(f"trust: {str(error).splitlines()[0]}") from error
    if trust != _given_trust(parsed):
        raise RequestError(
            f"a config file says trust=[{','.join(trust)}], and packages are trusted on the command line alone: "
            f"add trust=[{','.join(trust)}] if you do"
        )


def _given_trust(parsed: list[Override]) -> tuple[str, ...]:
    given = [o.value() for o in parsed if o.key_or_group == "trust" and not o.is_delete()]
    return trusted(given[-1]) if given else ()


def split_hydra(config: DictConfig) -> tuple[DictConfig, DictConfig]:
    """(the config resolved and without `hydra`, Hydra's own part). Fills in the names of model, data, experiment."""
    hydra = config.hydra
    try:
        plain = OmegaConf.create(OmegaConf.to_container(_without_hydra(config), resolve=True))
    except OmegaConfBaseException as error:
        raise RequestError(f"the config does not resolve: {shown_error(error)}") from error
    if "names" in plain:
        with open_dict(plain):
            plain.names = {name: hydra.runtime.choices.get(name) for name in ("model", "data", "experiment")}
        check_plain(OmegaConf.to_container(plain), "the request")  # it is kept, and read as values alone
    assert isinstance(plain, DictConfig)
    return plain, hydra


def check_sections(config: DictConfig) -> None:
    """RequestError unless what a config says under `train` and `trainer` is of the kind of genlab's own defaults. A
    config from a file has not been held against them, and may lack keys that are newer.
    """
    folder = configs_folder()
    files = {"train": folder / "train.yaml", "trainer": folder / "trainer" / "auto.yaml"}
    usual: dict[str, Any] = {section: OmegaConf.to_container(OmegaConf.load(file)) for section, file in files.items()}
    usual["train"] = usual["train"]["train"]
    for section, defaults in usual.items():
        given = config.get(section)
        if not isinstance(given, DictConfig):
            raise RequestError(f"{section}={shown(given)}: {section} is a section with keys of its own")
        for key, default in defaults.items():
            if key in given and given[key] != default:
                check_value(f"{section}.{key}", _unwrapped(given[key]), default)


def _unwrapped(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _plain(config: DictConfig) -> dict[str, Any]:
    """The config without `hydra`, resolved, as plain values; what is missing is "???"."""
    try:
        plain: Any = OmegaConf.to_container(_without_hydra(config), resolve=True)
    except OmegaConfBaseException as error:
        raise RequestError(f"the config does not resolve: {shown_error(error)}") from error
    return plain


def _above(config: DictConfig, key: str) -> Any:
    """The section that a dotted key is in; None where there is no such section."""
    above = key.rpartition(".")[0]
    try:
        found = OmegaConf.select(config, above) if above else config
    except OmegaConfBaseException:
        return None
    return found if isinstance(found, DictConfig) else None


def shown_error(error: BaseException) -> str:
    """What a library says, as one short line."""
    return shown(" ".join(str(error).split()) or type(error).__name__, 240)


def _parent(config: DictConfig, key: str) -> tuple[Any, str]:
    """(the node that holds a dotted key, the last part of the key)."""
    above, _, name = key.rpartition(".")
    return (OmegaConf.select(config, above) if above else config), name


def _keys(node: Any, prefix: str = "") -> list[str]:
    """All dotted keys of a config."""
    keys: list[str] = []
    for key in node:
        keys.append(f"{prefix}{key}")
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            keys += _keys(child, f"{prefix}{key}.")
    return keys
