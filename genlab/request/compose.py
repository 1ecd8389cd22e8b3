"""Compose a config from the words on the command line, by Hydra. The request is checked first.

For a wrong request, Hydra prints a paragraph or a traceback. Here every override is checked before Hydra gets it. For
an unknown group, choice or key, in every form (`key=`, `+key=`, `++key=`, `~key`; `overrides.py`), the message names
the nearest valid one. Values must be of the expected kind (`values.py`). Settings of Hydra itself, below `hydra.`, are
not checked.

Values and choices on the command line override those of an experiment. If an experiment has values for one model and
the command line chooses another model, the request is ambiguous, and a RequestError is raised.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from genlab.build.gate import trusted
from genlab.build.untrusted import check_plain
from genlab.core import RequestError, nearest
from genlab.request import length
from genlab.request.folder_check import check_folder
from genlab.request.folders import configs_folder, groups
from genlab.request.nodes import dotted_keys, format_error, keys_without_hydra, missing_keys, plain_values
from genlab.request.overrides import check_choice, check_key, of_hydra, parse, quote, quoted
from genlab.request.values import check_value, check_values, format_value, nearest_choice, nearest_key

LISTS = {"compare": "runs", "report": "runs"}  # verbs that take bare words, and the key of the list that these form
NO_EXPERIMENT = "experiment=null"  # the default, but Hydra does not let anybody say so


@dataclass
class Request:
    """One command line: the verb, the words after it, and the whole command as it is written into the run folder.

    `overrides`: the words for Hydra. `sweep`: True with -m. `folders`: genlab's configs, then those of --config-dir.
    """

    verb: str
    words: list[str]
    command: str
    overrides: list[str] = field(default_factory=list)
    sweep: bool = False
    folders: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folders = [configs_folder()]
        words, bare = iter(self.words), []
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
            elif self.verb in LISTS and ("=" not in word or "/" in word.partition("=")[0]):  # a folder may be seed=0
                bare.append(word)
            elif word != NO_EXPERIMENT:
                self.overrides.append(quoted(word))
        if bare:
            key = LISTS[self.verb]
            if any(word.startswith(f"{key}=") for word in self.overrides):
                raise RequestError(f"give either words or {key}=[…], not both: {bare[0]}")
            self.overrides.append(f"{key}=[{','.join(map(quote, bare))}]")

    def config(self) -> DictConfig:
        """The config of the verb, with Hydra's own section under `hydra`. Raises RequestError if a value is missing."""
        if self.sweep:
            raise RequestError(f"genlab {self.verb} runs once: -m is for genlab train")
        config = self.check(self.overrides)
        missing = missing_keys(config)
        if missing:
            names_run = missing[0] in ("ckpt", "classifier")
            what = "a run folder or a checkpoint file" if names_run else f"see genlab {self.verb} --help"
            raise RequestError(f"genlab {self.verb} needs {missing[0]}=…: {what}")
        return config

    def check(self, overrides: list[str]) -> DictConfig:
        """The config composed with `overrides`, after each of them has been checked. Values may be missing."""
        parsed = self.parse(overrides)
        if "hydra" not in _trusted_by(parsed):
            for folder in self.folders[1:]:
                check_folder(folder)
        several = next((o for o in parsed if o.is_sweep_override()), None)
        if several is not None:
            raise RequestError(f"{several.input_line} gives several values: add -m to train once for each")
        defaults = self._compose([])
        all_groups = groups(self.folders)
        choices = {g: names for g, names in all_groups.items() if g.split("/")[0] in defaults.hydra.runtime.choices}
        for o in parsed:
            check_choice(o, self.verb, choices, all_groups)
        chosen = [o for o in parsed if o.key_or_group in choices and not of_hydra(o)]
        kept = [o for o in chosen if not o.is_delete()]
        base = self._compose([str(o.input_line) for o in kept])
        valid = {*keys_without_hydra(base), *choices}
        for o in parsed:
            if o not in chosen and not of_hydra(o):
                check_key(o, self.verb, base, valid)
        self._check_experiment(chosen, {o.key_or_group for o in parsed})
        config = self._compose(overrides) if len(kept) < len(parsed) else base  # a tenth of a second each
        check_trust(config, parsed)
        self._check_values(defaults, base, config, choices)
        if self.verb == "train":
            length.choose(config, {o.key_or_group for o in parsed})
        return config

    def parse(self, overrides: list[str]) -> list[Override]:
        """The overrides as Hydra parses them. Raises RequestError for one that it cannot parse."""
        return parse(overrides)

    def compose_arguments(self) -> list[str]:
        """The override of Hydra's settings that adds the user's config folders."""
        extra = ",".join(f"file://{folder}" for folder in self.folders[1:])
        return [f"hydra.searchpath=[{extra}]"] if extra else []

    def _check_experiment(self, chosen: list[Override], keys: set[str]) -> None:
        """Raise RequestError if an experiment and a choice on the command line do not go together.

        That is the case if the experiment has values for another model or optimiser than the chosen one, or sets a
        value of the trainer that the chosen trainer also sets. Values that the command line gives as well (`keys`)
        are no conflict.
        """
        names = {o.key_or_group: str(o.value()) for o in chosen if not o.is_delete()}
        experiment = names.pop("experiment", None)
        if experiment is None:
            return
        set_by_experiment = self._keys_of_choice("experiment", experiment)
        of_experiment = self._compose([f"experiment={experiment}"]).hydra.runtime.choices
        for group in ("model", "optim", "trainer"):
            if group not in names or names[group] == of_experiment.get(group):
                continue
            set_by_choice = {f"{group}.{key}" for key in self._keys_of_choice(group, names[group])}
            conflicts = sorted(
                key for key in set_by_experiment
                if key.startswith(f"{group}.") and key not in keys and (group != "trainer" or key in set_by_choice)
                and not any(other.startswith(f"{key}.") for other in set_by_experiment)
            )  # fmt: skip
            if conflicts:
                raise RequestError(
                    f"experiment={experiment} sets {', '.join(conflicts[:4])}{' …' * (len(conflicts) > 4)} for "
                    f"{group}={of_experiment.get(group)}, not for {group}={names[group]}: leave one of the two out, or "
                    "give the values yourself"
                )

    def _keys_of_choice(self, group: str, name: str) -> set[str]:
        """The dotted keys that the file of a choice sets itself, without those of the files that it includes."""
        files = [folder / group / f"{name}.yaml" for folder in reversed(self.folders)]
        content = OmegaConf.load(next(file for file in files if file.is_file()))
        assert isinstance(content, DictConfig)
        content.pop("defaults", None)
        return set(dotted_keys(content))

    def _check_values(
        self, defaults: DictConfig, base: DictConfig, config: DictConfig, choices: dict[str, list[str]]
    ) -> None:
        """Raise RequestError if a section is missing, a key is unknown, or a value is not of the expected kind.

        `defaults`: the config of the verb without overrides. `base`: with its choices only. `config`: with everything.
        """
        usual, before, after = (plain_values(each) for each in (defaults, base, config))
        for key in usual:
            if key not in after:
                give = (
                    nearest_choice(None, key, choices[key])
                    if key in choices
                    else f"the default is {format_value(usual[key])}"
                )
                raise RequestError(f"genlab {self.verb} needs {key}: {give}")
        # `base` includes the user's own files, so its keys are compared with the defaults as well.
        for section in ("train", "trainer"):
            unknown = sorted(set(before.get(section) or ()) - set(usual.get(section) or ()))
            if unknown:
                suggestion = nearest(unknown[0], usual.get(section) or before)
                raise RequestError(f"there is no key {section}.{unknown[0]}: {suggestion}")
        unknown = sorted(before.keys() - usual.keys())
        if unknown:
            raise RequestError(f"genlab {self.verb} has no key {unknown[0]!r}: {nearest_key(unknown[0], set(usual))}")
        check_values(before, after)

    def _compose(self, overrides: list[str]) -> DictConfig:
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(config_dir=str(self.folders[0]), version_base="1.3"):
                config = compose(self.verb, [*overrides, *self.compose_arguments()], return_hydra_config=True)
        except Exception as error:  # Hydra raises half a dozen types; only the request can cause them here
            refusal = re.match(r"Could not override '(\w+)/(\w+)'", str(error))
            if refusal:
                group, part = refusal.groups()
                raise RequestError(f"{group}/{part}=…: this {group} has no {part} to choose") from error
            asked = re.match(r"Error resolving interpolation '(.*)', possible interpolation keys: (.*)", str(error))
            without = set(re.findall(r"\$\{(\w+)\}", asked[1])) - set(asked[2].split(", ")) if asked else set()
            if without:
                group = min(without)
                raise RequestError(f"~{group}: {group} cannot be taken away, choose another one") from error
            plugin = re.search(r"'hydra/(?:launcher|sweeper)/(joblib|optuna|submitit)\w*'", str(error))
            if plugin:
                package = f"hydra-{plugin[1]}-{'sweeper' if plugin[1] == 'optuna' else 'launcher'}"
                raise RequestError(f"this sweep needs {package}: pip install -e '.[sweep]'") from error
            raise RequestError(f"the request does not compose: {format_error(error)}") from error
        HydraConfig.instance().set_config(config)  # so that ${hydra:…} resolves
        return config


def check_trust(config: DictConfig, parsed: list[Override]) -> None:
    """Raise RequestError if a file sets `trust`. Only the command line may name the packages that may run code."""
    try:
        trust = trusted(config.get("trust"))
    except OmegaConfBaseException as error:
        raise RequestError(f"trust: {str(error).splitlines()[0]}") from error
    if trust != _trusted_by(parsed):
        raise RequestError(
            f"a config file says trust=[{','.join(trust)}], and packages are trusted on the command line alone: "
            f"add trust=[{','.join(trust)}] if you do"
        )


def _trusted_by(parsed: list[Override]) -> tuple[str, ...]:
    """The packages that `trust=` on the command line names; the last one counts."""
    values = [o.value() for o in parsed if o.key_or_group == "trust" and not o.is_delete()]
    return trusted(values[-1]) if values else ()


def split_hydra(config: DictConfig) -> tuple[DictConfig, DictConfig]:
    """(the config, resolved and without Hydra's section; that section). Fills in `names` where the config has it."""
    hydra = config.hydra
    plain = OmegaConf.create(plain_values(config))
    if "names" in plain:
        with open_dict(plain):
            plain.names = {name: hydra.runtime.choices.get(name) for name in ("model", "data", "experiment")}
        # It is written into run folders and checkpoints, which are read as plain values.
        check_plain(OmegaConf.to_container(plain), "the request")
    assert isinstance(plain, DictConfig)
    return plain, hydra


def check_sections(config: DictConfig) -> None:
    """Raise RequestError if a value under `train` or `trainer` is not of the kind of genlab's default.

    For the config of a run folder, which was not composed here. It may lack keys that are newer than the run.
    """
    folder = configs_folder()
    files = {"train": folder / "train.yaml", "trainer": folder / "trainer" / "auto.yaml"}
    usual: dict[str, Any] = {section: OmegaConf.to_container(OmegaConf.load(file)) for section, file in files.items()}
    usual["train"] = usual["train"]["train"]
    for section, defaults in usual.items():
        node = config.get(section)
        if not isinstance(node, DictConfig):
            raise RequestError(f"{section}={format_value(node)}: {section} is a section with keys of its own")
        for key, default in defaults.items():
            if key in node and node[key] != default:
                value = OmegaConf.to_container(node[key]) if OmegaConf.is_config(node[key]) else node[key]
                check_value(f"{section}.{key}", value, default)
