"""From words on the command line to a config: Hydra's composition, with requests checked first.

Hydra explains a wrong request in a paragraph or a traceback. Here every override is checked against the composed
defaults before Hydra sees it: unknown groups, choices and keys are named with the nearest valid one, values
with the kind that is expected. What Hydra alone understands (`+key=…`, `~key`, `hydra.…`) is left to it.
"""

from __future__ import annotations

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

from genlab.core import RequestError, nearest


def configs_folder() -> Path:
    """Where genlab's configs are: in the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def groups(folders: list[Path]) -> dict[str, list[str]]:
    """Config groups and their choices: {"model": ["pixelcnn", …], "model/head": …}."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.rglob("*.yaml"):
            group = file.parent.relative_to(folder).as_posix()
            if group != ".":
                found.setdefault(group, set()).add(file.stem)
    return {group: sorted(names) for group, names in found.items()}


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
                self.overrides.append(_quoted(word))

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
        several = next((o for o in parsed if o.is_sweep_override()), None)
        if several is not None:
            raise RequestError(f"{several.input_line} gives several values: add -m to train once for each")
        choices = self._compose([]).hydra.runtime.choices
        known = {g: names for g, names in groups(self.folders).items() if g.split("/")[0] in choices}
        for o in parsed:
            self._check_choice(o, known)
        chosen = [o for o in parsed if o.key_or_group in known and not o.key_or_group.startswith("hydra")]
        base = self._compose([o.input_line for o in chosen if o.input_line])
        keys = set(_keys(_without_hydra(base)))
        for o in parsed:
            if o not in chosen and not o.key_or_group.startswith("hydra") and not o.is_add() and not o.is_delete():
                self._check_key(o, base, keys | set(known))
        return self._compose(overrides)

    def parse(self, overrides: list[str]) -> list[Override]:
        """Hydra's reading of the words."""
        try:
            return OverridesParser.create().parse_overrides(overrides)
        except HydraException as error:
            wrong = next((word for word in overrides if "=" not in word), None)
            if wrong is None:
                raise RequestError(f"cannot read the request: {str(error).splitlines()[0]}") from error
            raise RequestError(f"cannot read {wrong!r}: give key=value, for example seed=1") from error

    def compose_arguments(self) -> list[str]:
        """Hydra override that adds the user's config folders."""
        extra = ",".join(f"file://{folder}" for folder in self.folders[1:])
        return [f"hydra.searchpath=[{extra}]"] if extra else []

    def _check_choice(self, o: Override, known: dict[str, list[str]]) -> None:
        group = o.key_or_group
        if group not in known or o.is_delete():
            return
        value = o.value()
        names = value if isinstance(value, list) else [value]
        for name in names:
            if name is not None and str(name) not in known[group]:
                raise RequestError(f"{group}={name} does not exist: {nearest(str(name), known[group])}")

    def _check_key(self, o: Override, base: DictConfig, valid: set[str]) -> None:
        key, value = o.key_or_group, o.value()
        if key not in valid:
            raise RequestError(f"genlab {self.verb} has no key {key!r}: {_nearest_key(key, valid)}")
        group = key.replace(".", "/")
        if isinstance(value, str) and group != key and group in valid:
            raise RequestError(f"{key}={value}: a part is chosen by its group, {group}={value}")
        try:
            default = OmegaConf.select(base, key)
        except OmegaConfBaseException:
            return
        kind = next((name for type_, name in _KINDS if type(default) is type_), None)
        fits = {
            "true or false": isinstance(value, bool),
            "a whole number": isinstance(value, int) and not isinstance(value, bool),
            "a number": isinstance(value, (int, float)) and not isinstance(value, bool),
        }
        if kind and value is not None and value != "auto" and not fits[kind]:
            raise RequestError(f"{key}={value}: expected {kind}, like the default {default}")

    def _compose(self, overrides: list[str]) -> DictConfig:
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(config_dir=str(self.folders[0]), version_base="1.3"):
                config = compose(self.verb, [*overrides, *self.compose_arguments()], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise RequestError(f"the request does not compose: {str(error).splitlines()[0]}") from error
        HydraConfig.instance().set_config(config)  # so that ${hydra:…} resolves
        return config


# Keys whose value is a path or a text of its own: Hydra would read commas, spaces and = in it as grammar.
_TEXTS = {"ckpt", "classifier", "init", "image", "context", "known", "out"}
_TEXTS |= {"data.path", "data.root", "hydra.run.dir", "hydra.sweep.dir"}


def _quoted(word: str) -> str:
    """A word with its value quoted, where the value is a text."""
    key, equals, value = word.partition("=")
    if key not in _TEXTS or not value or value == "null" or value[0] in "'\"":
        return word
    return f"{key}{equals}'{value.replace(chr(39), chr(92) + chr(39))}'"


_KINDS = ((bool, "true or false"), (int, "a whole number"), (float, "a number"))


def split_hydra(config: DictConfig) -> tuple[DictConfig, DictConfig]:
    """(the config resolved and without `hydra`, Hydra's own part). Fills in the names of model, data, experiment."""
    hydra = config.hydra
    try:
        plain = OmegaConf.create(OmegaConf.to_container(_without_hydra(config), resolve=True))
    except OmegaConfBaseException as error:
        raise RequestError(f"the config does not resolve: {str(error).splitlines()[0]}") from error
    if "names" in plain:
        with open_dict(plain):
            plain.names = {name: hydra.runtime.choices.get(name) for name in ("model", "data", "experiment")}
    assert isinstance(plain, DictConfig)
    return plain, hydra


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


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


def _nearest_key(key: str, valid: set[str]) -> str:
    """The closest key; a key that is only misplaced is found by its last part."""
    same_end = sorted(k for k in valid if k.split(".")[-1] == key.split(".")[-1])
    if same_end:
        return f"did you mean {same_end[0]!r}?"
    here = {k for k in valid if k.rpartition(".")[0] == key.rpartition(".")[0]}
    return nearest(key, here or {k for k in valid if "." not in k})
