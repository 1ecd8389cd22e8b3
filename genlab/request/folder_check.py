"""Check that a user's folder of configs (`--config-dir`) is safe, before Hydra composes anything from it.

The settings of Hydra itself can run code: they name callbacks, launchers, sweepers and loggers, and they set
environment variables. So no file of such a folder may contain `hydra` in its path, its package directive, its defaults
or its keys. Its defaults may not contain an interpolation either, because it could produce any text. All of this is
allowed on the command line, and `trust=[hydra]` on the command line allows it in the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genlab.build.untrusted import bounded_yaml, read_text
from genlab.core import RequestError

MOST_FILES = 2_000
PACKAGE = re.compile(r"^\s*#\s*@package\s+(.*)$", re.MULTILINE)


def check_folder(folder: Path) -> None:
    """Raise RequestError if a file in the folder could make Hydra run code."""
    for count, path in enumerate(_files(folder)):
        if count == MOST_FILES:
            raise RequestError(
                f"--config-dir {folder} has more than {MOST_FILES:,} yaml files: give a folder of configs"
            )
        text = read_text(path)
        content = bounded_yaml(text, str(path))
        defaults = content.get("defaults") if isinstance(content, dict) else None
        path_parts = path.relative_to(folder).with_suffix("").parts
        words = [*path_parts, *PACKAGE.findall(text), *_texts(defaults), *_keys(content)]
        if any("hydra" in word for word in words) or any("${" in word for word in _texts(defaults)):
            raise RequestError(
                f"{path} sets up Hydra itself, which can run code: give hydra.… on the command line, or allow it in "
                "the files of --config-dir with trust=[hydra]"
            )


def _files(folder: Path) -> Iterator[Path]:
    """The yaml files at any depth. Links are followed, as Hydra follows them, and every folder is read once."""
    seen = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(here))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(here, name)) not in seen]
        yield from (Path(here, name) for name in names if name.endswith(".yaml"))


def _texts(node: Any) -> Iterator[str]:
    """All strings at any depth, keys as well as values."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node


def _keys(node: Any) -> Iterator[str]:
    """All keys at any depth."""
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _keys(value)
    if isinstance(node, dict):
        yield from map(str, node)
