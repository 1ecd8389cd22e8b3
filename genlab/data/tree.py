"""Find the picture files below a folder, and count everything else, so that nothing is left out silently.

Links are followed. Every real folder is read once, so links cannot lead in circles. A folder that can be reached both
directly and through a link is read at its real place.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from genlab.data.reader import EXTENSIONS


@dataclass
class Tree:
    """What is below a folder.

    `images`: the picture files, in alphabetical order of their paths below the folder. `unreadable`: folders that
    cannot be listed and links to nothing, each with the reason. `skipped`: how many other entries of each kind.
    """

    images: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def scan_folder(top: Path) -> Tree:
    """List everything below `top`. Hidden files and folders are only counted."""
    tree, seen, folders = Tree(), set(), [top]
    links: list[Path] = []
    while folders or links:  # real folders first, then folders behind links
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                tree.skipped["links to folders that are read anyway"] += 1
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                sorted_entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            tree.unreadable.append(f"{folder} ({error.strerror})")
            continue
        for entry in sorted_entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                tree.skipped["hidden"] += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_symlink() and os.path.isdir(path):
                links.append(path)
            elif entry.is_symlink() and (why := _broken(path)):
                tree.unreadable.append(f"{path} (a link that leads nowhere: {why})")
            elif path.suffix.lower() in EXTENSIONS:
                tree.images.append(path)
            else:
                tree.skipped[path.suffix.lower() or "without an ending"] += 1
    tree.images.sort(key=lambda path: path.relative_to(top).as_posix())
    return tree


def _broken(link: Path) -> str | None:
    """The reason why a link cannot be followed; None if it can be."""
    try:
        link.stat()
    except OSError as error:
        return error.strerror
    return None


def listed(items: Iterable[str], most: int = 3) -> str:
    """The first `most` items, separated by commas, and … if there are more."""
    items = list(items)
    return ", ".join(items[:most]) + (", …" if len(items) > most else "")
