"""Read untrusted configs and checkpoints, with limits on their size and without running any code in them.

A config is YAML with plain values. It is parsed once, and nothing in it is looked up or computed: a value that contains
`${` is an error, in every notation of YAML. Length, depth and number of values (with every alias counted in
full) are checked before any value is created.

A checkpoint is the zip file that torch writes. Its entries must be uncompressed, so that they cannot be larger than the
file. Each entry must have the checksum that the zip records for it, which torch does not check. The file is read twice,
both times by torch's restricted unpickler (`weights_only=True`). The first time the numbers stay in the file (`mmap`),
and every tensor is checked: it must lie within the file and have as many values as its shape says.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from genlab.core import ImageSpec, RequestError

CHARACTERS = 100_000  # in the text of a config; genlab's own have about 2,000
VALUES = 10_000  # in a config, each alias counted in full
DEPTH = 30
STRUCTURE = 8 << 20  # bytes of the pickle that lists a checkpoint's tensors; a large model needs 100,000
OBJECTS = 1_000_000  # containers and values in a checkpoint
LARGEST_COUNT = 2**62

PLAIN = (bool, int, float, str, type(None))


def plain_config(text: Any, where: str) -> dict[str, Any]:
    """The config in a YAML text: a mapping of str keys to lists, mappings, text, numbers, true, false and null.

    Raises RequestError for anything else. `where`: the origin of the text, which begins the message.
    """
    config = bounded_yaml(text, where)
    check_plain(config, where)
    return config


def config_file(path: Path) -> dict[str, Any]:
    """The config in a YAML file, as `plain_config` reads it."""
    return plain_config(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a config file.

    Raises RequestError if it is not UTF-8, longer than a config may be, or cannot be read.
    """
    try:
        if path.stat().st_size > 4 * CHARACTERS:
            raise RequestError(f"{path} is not a config that genlab reads: it is longer than {CHARACTERS:,} characters")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not a config that genlab reads: it is not UTF-8 text") from error
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error


def bounded_yaml(text: Any, where: str) -> Any:
    """The content of a YAML text. Raises RequestError if it is not YAML or larger than a config may be."""
    try:
        if not isinstance(text, str) or len(text) > CHARACTERS:
            raise ValueError(f"it is not a text of at most {CHARACTERS:,} characters")
        _count(text)
        return yaml.load(text, _Plain)  # a SafeLoader
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        why = "it is not YAML" if isinstance(error, yaml.YAMLError) else error
        raise RequestError(f"{where} is not a config that genlab reads: {why}") from error


def check_plain(config: Any, where: str) -> None:
    """Raise RequestError unless a config is a mapping of plain values, without `${` and missing values (???)."""
    try:
        _check_plain(config)
    except ValueError as error:
        raise RequestError(f"{where} is not a config that genlab reads: {error}") from error


def checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a genlab checkpoint, its tensors on the CPU.

    Checked are the file, its weights and the fields that genlab writes about the run. Raises RequestError if one is
    wrong. `describe` reads the config and the spec in it.
    """
    try:
        _check_zip(Path(path))
        _check_content(torch.load(str(path), map_location="cpu", weights_only=True, mmap=True), Path(path))
        content = torch.load(str(path), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RequestError(f"there is no checkpoint {path}") from None
    except Exception as error:  # for damaged files, torch raises half a dozen types
        why = error if isinstance(error, _Damaged) else type(error).__name__
        what = "damaged, cut off, or holding more than tensors and primitives"
        raise RequestError(f"{path} is not a readable checkpoint ({what}): {why}") from error
    if not isinstance(content, dict) or not isinstance(content.get("genlab"), dict):
        raise RequestError(f"{path} is not a genlab checkpoint: it does not say which model it holds")
    try:
        _check_card(content["genlab"])
        _check_weights(content.get("state_dict"))
    except _Damaged as error:
        raise RequestError(f"{path} has a damaged description of its model: {error}") from error
    return content


def describe(content: dict[str, Any], where: str | Path) -> tuple[dict[str, Any], ImageSpec]:
    """(config of the run, spec of its images). The config has `model`, `data`, `names` and the `spec` in any case."""
    config = plain_config(content["genlab"]["config"], f"{where}: its config")
    try:
        spec = ImageSpec(**content["genlab"]["spec"])
        for part in ("model", "data"):
            _need(isinstance(config.setdefault(part, {}), dict), f"{part} is not a part")
        names = config.setdefault("names", {})
        _need(isinstance(names, dict), "names are not a mapping")
        for name in ("model", "data", "experiment"):
            _need(_is_name(names.setdefault(name, None)), f"names.{name} is not a name")
    except (TypeError, ValueError) as error:
        raise RequestError(f"{where} has a damaged description of its model: {error}") from error
    config["spec"] = spec
    return config, spec


class _Damaged(ValueError):
    """A file is damaged. The message says how and is put at the end of a sentence."""


class _Plain(yaml.SafeLoader):
    """Loads plain values only. As in the configs that Hydra reads, dates stay text and 1e-3 is a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith("timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Plain.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _count(text: str) -> None:
    """Raise ValueError for a text that is nested too deeply or has too many values.

    They are counted from the parser's events, before any value is created.
    """
    sizes: dict[str, int] = {}  # anchor -> number of values that an alias of it stands for
    open_: list[tuple[str | None, int]] = []  # of every open collection: its anchor, the number of values up to it
    total = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError("it refers to itself")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            total += 1
            open_.append((event.anchor, total))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = total - before + 1
        if len(open_) > DEPTH:
            raise ValueError(f"it is nested more than {DEPTH} deep")
        if total > VALUES:
            raise ValueError(f"it has more than {VALUES:,} values")


def _check_plain(config: Any) -> None:
    if not isinstance(config, dict):
        raise ValueError("it is not a mapping of keys to values")
    waiting: list[Any] = [config]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if not all(isinstance(key, str) for key in node):
                raise ValueError("it has keys that are not text")
            waiting += [*node, *node.values()]
        elif isinstance(node, list):
            waiting += node
        elif not isinstance(node, PLAIN):
            raise ValueError(f"it has a value of type {type(node).__name__}")
        elif node == "???":
            raise ValueError("it has a value that is missing (???)")
        elif isinstance(node, str) and "${" in node:
            raise ValueError("it has unresolved values ($ and a brace), which genlab neither writes nor looks up")


def _check_zip(path: Path) -> None:
    """Raise _Damaged unless all entries are uncompressed and unique, have the right checksum, and fit into the file."""
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        raise _Damaged("it is not the zip file that torch writes")
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise _Damaged("its entries are compressed, and genlab never compresses them")
        if sum(entry.file_size for entry in entries) > size:
            raise _Damaged(f"its entries are larger than the file of {size:,} bytes")
        if any(entry.file_size > STRUCTURE for entry in entries if entry.filename.endswith(".pkl")):
            raise _Damaged("it has too many parts")
        if len(set(file.namelist())) < len(entries):  # zipfile and torch might not read the same one of the two
            raise _Damaged("it has two entries of one name")
        if (changed := file.testzip()) is not None:  # it reads a piece at a time
            raise _Damaged(f"the bytes of {changed} are not those that were written (their checksum is another)")


def _check_content(content: Any, path: Path) -> None:
    """Raise _Damaged unless the content is primitives and tensors, and the file holds all values of every tensor."""
    storages, claimed = {}, 0
    for node in _nodes(content):
        if isinstance(node, Tensor):
            if type(node) not in (Tensor, torch.nn.Parameter) or node.layout != torch.strided or node.is_quantized:
                raise _Damaged("it has tensors of a kind that genlab never writes")
            if node.device.type != "cpu":
                raise _Damaged("it has tensors without values")
            storage = node.untyped_storage()
            if node.numel() * node.element_size() > storage.nbytes():
                raise _Damaged(f"it has a tensor of shape {tuple(node.shape)} with fewer values in the file")
            storages[storage._cdata] = storage.nbytes()
            claimed += node.numel() * node.element_size()
    size = path.stat().st_size
    # Weights that two layers share are in the file only once, so tensors may claim more than is stored.
    if sum(storages.values()) > size or claimed > 4 * size:
        raise _Damaged(f"its tensors are larger than the file of {size:,} bytes")


def _nodes(content: Any) -> Iterator[Any]:
    """Every object in the content, once. Raises _Damaged for an object of a type that genlab does not write."""
    waiting, seen = [content], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, (dict, list, tuple)):
            if id(node) in seen:
                continue
            seen.add(id(node))
            waiting += [*node, *node.values()] if isinstance(node, dict) else node
        elif not isinstance(node, (*PLAIN, Tensor, bytes, complex, torch.dtype, torch.device)):
            raise _Damaged(f"it holds a {type(node).__name__}")
        if len(seen) + len(waiting) > OBJECTS:
            raise _Damaged("it has too many parts")
        yield node


def _check_card(card: dict[Any, Any]) -> None:
    """Check the fields that genlab writes about a run. A field may be absent, because older checkpoints have fewer."""
    _need(isinstance(card.get("config"), str), "its config is not a text")
    spec = card.get("spec")
    _need(isinstance(spec, dict) and all(isinstance(key, str) for key in spec), "its spec is not a mapping")
    card.setdefault("step", None)
    checks = {
        "version": _is_name, "commit": _is_name, "stopped_early": lambda v: isinstance(v, bool),
        "step": lambda v: v is None or is_count(v), "bad_steps": is_count, "updates": is_count, "seconds": is_number,
        "sums": lambda v: isinstance(v, dict) and all(_is_name(k) and _is_pair(pair) for k, pair in v.items()),
        "class_names": lambda v: isinstance(v, (list, tuple)) and all(_is_name(name) for name in v),
        "fingerprints": lambda v: isinstance(v, dict) and all(_is_name(n) for pair in v.items() for n in pair),
    }  # fmt: skip
    for name, is_right in checks.items():
        _need(name not in card or is_right(card[name]), f"{name} is not what genlab writes there")


def _check_weights(state: Any) -> None:
    named = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    _need(named, "its weights are not named tensors")


def is_count(value: Any) -> bool:
    """Returns True for a whole number from 0 to `LARGEST_COUNT`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_COUNT


def is_number(value: Any) -> bool:
    """Returns True for a number, also inf or NaN: the running sum of a training term may have overflowed."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_number, value))


def _is_name(value: Any) -> bool:
    """Returns True for None and for a short printable text. Names are printed on a terminal as they are."""
    return value is None or (isinstance(value, str) and len(value) <= 1000 and value.isprintable())


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _Damaged(otherwise)
