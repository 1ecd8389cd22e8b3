"""`genlab VERB … --help` and `--cfg job`: the keys of a verb with their values and comments, of what has been chosen.

Hydra composes a config from many files and drops their comments. Here every key gets back the comment that stands
beside it in the file that set it, and a chosen part, such as the model, the comment that its file begins with.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from genlab.core import RequestError
from genlab.processes import resume
from genlab.request import recipe, start_from
from genlab.request.compose import Request
from genlab.request.folders import description
from genlab.request.nodes import missing_keys, plain_values

WIDTH = 118


def composed(verb: str, words: list[str]) -> str:
    """The config that the words of a command line give, as YAML with comments. A missing value is "???"."""
    request = Request(verb, words, command="")
    if request.sweep:
        raise RequestError("--cfg and --help are about one run: leave out -m")
    if verb == "resume":
        return _of_run(request)
    config = request.check(request.overrides)
    if verb == "train" and not missing_keys(config):
        request, _ = recipe.taken(request)
        config = start_from.composed(request)
    choices = {str(group): name for group, name in config.hydra.runtime.choices.items() if name is not None}
    comments = {**_comments(request.folders, "", verb)}
    for group, name in choices.items():
        group, _, package = group.partition("@")
        if not group.startswith("hydra"):
            comments |= _comments(request.folders, group, name, package.removeprefix("_global_."))
    comments |= _comments(request.folders, "experiment", choices.get("experiment", ""))  # its values win
    plain = plain_values(config)
    if "names" in plain:
        plain["names"] = {name: choices.get(name) for name in plain["names"]}
    return "\n".join(_lines(plain, comments)) + "\n"


def _of_run(request: Request) -> str:
    """The config with which a run would be resumed. It was composed when the run began, so it has no comments."""
    folder = next((word.partition("=")[2] for word in request.overrides if word.startswith("run=")), "")
    file = Path(folder).expanduser() / "config.yaml"
    if not folder or not file.is_file():
        raise RequestError(f"genlab resume needs run=DIR, the folder that `genlab train` wrote; {folder!r} is none")
    config: DictConfig = resume.run_config(file)
    for word in request.overrides:
        if not word.startswith("run="):
            resume.apply_override(config, word)
    return OmegaConf.to_yaml(config)


def _lines(node: Mapping[str, Any], comments: Mapping[str, str], prefix: str = "", indent: str = "") -> Iterator[str]:
    """The lines of a section; the comments of keys beside each other begin in one column, where that fits."""
    entries = []
    for key, value in node.items():
        section = isinstance(value, dict) and bool(value)
        flow = "" if section else f" {yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)}"
        entries.append((key, value, section, f"{indent}{key}:{flow}".removesuffix("...\n").rstrip()))
    column = max((len(text) for _, _, section, text in entries if not section and len(text) < WIDTH // 3), default=0)
    for key, value, section, text in entries:
        comment = comments.get(f"{prefix}{key}", "")
        for part in (comments.get(f"{prefix}{key}/", ""), comment if section else ""):
            yield from textwrap.wrap(part, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        yield text if section or not comment else f"{text:<{column}}  # {comment}"
        if section:
            yield from _lines(value, comments, f"{prefix}{key}.", f"{indent}  ")


def _comments(folders: list[Path], group: str, name: str, package: str = "") -> dict[str, str]:
    """{dotted key: comment} of a choice, whose values are in `package` (empty: that of its group).

    Under the key "model/" is what the file of the chosen model says at its beginning.
    """
    file = next((f for folder in reversed(folders) if (f := folder / group / f"{name}.yaml").is_file()), None)
    if file is None:
        return {}
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text, yaml.SafeLoader)
    package = package or group.replace("/", ".")
    whole = not group or "@package _global_" in text
    found: dict[str, str] = {}
    if not whole:
        found[f"{package}/"] = f"{group}={name}: {description(text)}"
    if not isinstance(root, yaml.MappingNode):
        return found
    for key, value in root.value:
        if key.value == "defaults" and group and isinstance(value, yaml.SequenceNode):  # a choice that extends another
            for each in value.value:
                if isinstance(each, yaml.ScalarNode) and each.value != "_self_":
                    found = {**_comments(folders, group, each.value, package), **found}
    found |= _beside(root, text.splitlines(), "" if whole else f"{package}.")
    return found


def _beside(node: yaml.MappingNode, lines: list[str], prefix: str) -> dict[str, str]:
    """The comments at the ends of the lines of a mapping's keys."""
    found = {}
    for key, value in node.value:
        block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        mark = key.end_mark if block else value.end_mark
        _, hash_sign, comment = lines[mark.line][mark.column :].partition("#") if mark.line < len(lines) else ("",) * 3
        if hash_sign:
            found[f"{prefix}{key.value}"] = comment.strip()
        if isinstance(value, yaml.MappingNode):
            found |= _beside(value, lines, f"{prefix}{key.value}.")
    return found
