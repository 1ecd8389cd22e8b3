"""`genlab completion bash|zsh|fish`: a script by which the shell completes verbs, groups, choices, keys and files.

The script asks `genlab completion words LINE` for what can follow a line, so that it also knows the user's own configs
(--config-dir). Hydra's completion is not used: it is for programs without verbs, and takes seconds for each press of
the key. Here only the standard library and PyYAML are imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from genlab.request.folders import configs_folder, groups

OPTIONS = ("--help", "--cfg", "--config-dir", "-m")
# Keys whose value is a file or a folder.
PATHS = {
    "ckpt", "classifier", "init", "run", "image", "images", "context", "known", "in", "of", "out", "maps", "background",
    "data.path", "data.root", "hydra.run.dir", "hydra.sweep.dir",
}  # fmt: skip

BASH = """\
# genlab: completion for bash. To install: eval "$(genlab completion bash)" in ~/.bashrc
_genlab() {
    local line="${COMP_LINE:0:COMP_POINT}" before="" found
    local word="${line##*[[:space:]]}"
    if [[ "$COMP_WORDBREAKS" == *=* ]]; then before="${word%"${word##*=}"}"; fi  # bash wants what follows the last =
    COMPREPLY=()
    while IFS= read -r found; do
        found="$(printf %q "$found")"
        COMPREPLY+=("${found#"$before"}")
    done < <(genlab completion words "$line" 2>/dev/null)
    if [[ "${COMPREPLY[0]}" == *[=./] ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -F _genlab genlab
"""
ZSH = """\
#compdef genlab
# genlab: completion for zsh. To install: eval "$(genlab completion zsh)" in ~/.zshrc, after compinit
_genlab() {
    local -a found
    found=("${(@f)$(genlab completion words "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    compadd -S '' -- ${(M)found:#*[=./]}
    compadd -- ${found:#*[=./]}
}
compdef _genlab genlab
"""
FISH = """\
# genlab: completion for fish. To install: genlab completion fish > ~/.config/fish/completions/genlab.fish
complete -c genlab --no-files -a '(genlab completion words (commandline --cut-at-cursor | string collect))'
"""
SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def run(words: list[str], verbs: Iterable[str]) -> None:
    """Print the script of a shell or, for the script, a line for each way to complete the last word of a line."""
    if len(words) == 2 and words[0] == "words":
        for word in completions(words[1], list(verbs)):
            print(word)
        return
    if len(words) != 1 or words[0] not in SHELLS:
        from genlab.core import RequestError  # here, because it imports torch, which takes seconds

        raise RequestError(f"genlab completion {' '.join(words)}: give one of {', '.join(SHELLS)}")
    print(SHELLS[words[0]], end="")


def completions(line: str, verbs: list[str]) -> list[str]:
    """All words by which the last word of a command line can be continued, which is empty after a space."""
    *before, word = line.split(" ")
    given = [each for each in before if each][1:]
    if not given:
        return _beginning(word, [*verbs, "--help", "--version"])
    verb, given = given[0], given[1:]
    folders = [configs_folder(), *_own_folders(given)]
    if verb == "completion":
        return _beginning(word, SHELLS)
    if verb == "list":
        return _beginning(word, [*groups(folders), "--config-dir"])
    if given and given[-1] in ("--config-dir", "-cd"):
        return _files("", word)
    if given and given[-1] == "--cfg":
        return _beginning(word, ["job"])
    if word.startswith("-"):
        return _beginning(word, OPTIONS)
    if verb not in verbs:
        return []
    words = _Words.of(verb, given, folders)
    key, equals, value = word.partition("=")
    if not equals:
        found = _beginning(word, [*(f"{group}=" for group in words.choices), *(f"{key}=" for key in words.keys)])
        return list(dict.fromkeys(_up_to_next_dot(each, len(word)) for each in found))
    if key in words.choices:
        first = value[: value.rfind(",") + 1]  # the values of a sweep
        return _beginning(word, [f"{key}={first}{name}" for name in words.choices[key]])
    if key in PATHS:
        return _files(f"{key}=", value)
    if isinstance(words.keys.get(key), bool):
        return _beginning(word, [f"{key}=true", f"{key}=false"])
    return []


class _Words:
    """What a verb takes: its groups with their choices, and its keys with their values in the files."""

    def __init__(self, choices: dict[str, list[str]], keys: dict[str, Any]) -> None:
        self.choices, self.keys = choices, keys

    @classmethod
    def of(cls, verb: str, given: list[str], folders: list[Path]) -> _Words:
        """The words of a verb; the keys are those of the choices that are given, or else of the default ones."""
        content = _load(folders, "", verb)
        chosen = {"run": {}} if verb == "resume" else _defaults(content)
        choices = {group: names for group, names in groups(folders).items() if group.split("/")[0] in chosen}
        keys = {"run": None} if verb == "resume" else dict(_flat(content))
        chosen |= {key: value for key, _, value in (word.partition("=") for word in given) if key in choices}
        for group, name in chosen.items():
            keys |= _of_choice(folders, group, str(name))
        return cls(choices, keys)


def _defaults(content: Mapping[str, Any]) -> dict[str, Any]:
    """{group: name} of the list of defaults of a config."""
    entries = [entry for entry in content.get("defaults") or () if isinstance(entry, dict)]
    pairs = [(str(group).removeprefix("optional "), name) for entry in entries for group, name in entry.items()]
    return {group: name for group, name in pairs if not group.startswith("override ")}


def _load(folders: list[Path], group: str, name: str) -> dict[str, Any]:
    """The content of a config; {} if there is none."""
    file = next((f for folder in reversed(folders) if (f := folder / group / f"{name}.yaml").is_file()), None)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError, yaml.YAMLError):
        content = {}
    return content if isinstance(content, dict) else {}


def _of_choice(folders: list[Path], group: str, name: str) -> dict[str, Any]:
    """{dotted key: value} of a choice, and of the choices of its group that it extends."""
    content, found = _load(folders, group, name), dict[str, Any]()
    for base in content.get("defaults") or ():
        if isinstance(base, str) and base not in ("_self_", name):
            found |= _of_choice(folders, group, base)
    return {**found, **dict(_flat(content, group.replace("/", ".") + "."))}


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(dotted key, value) of all values, without what is not for the command line."""
    for key, value in content.items():
        if str(key).startswith("_") or key in ("defaults", "names", "hydra"):
            continue
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _up_to_next_dot(key: str, typed: int) -> str:
    """`train.` of `train.minutes=` if less than that has been typed: sections first, then what is in them."""
    dot = key.find(".", typed)
    return key if dot < 0 else key[: dot + 1]


def _own_folders(given: list[str]) -> list[Path]:
    pairs = zip(given, [*given[1:], ""], strict=False)
    named = [word.partition("=")[2] or after for word, after in pairs if word.partition("=")[0] == "--config-dir"]
    return [folder for name in named if (folder := Path(name).expanduser()).is_dir()]


def _files(prefix: str, value: str) -> list[str]:
    """The files and folders whose path begins with `value`."""
    head, slash, tail = value.rpartition("/")
    try:
        paths = sorted(Path(f"{head}{slash}" or ".").expanduser().iterdir())
    except OSError:
        return []
    names = [f"{path.name}/" if path.is_dir() else path.name for path in paths]
    return [f"{prefix}{head}{slash}{name}" for name in names if name.startswith(tail) and (tail or name[0] != ".")]


def _beginning(word: str, candidates: Iterable[str]) -> list[str]:
    return [candidate for candidate in candidates if candidate.startswith(word)]
