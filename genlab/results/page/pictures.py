"""The pictures that a run has drawn during training, as base64 for a page.

Only whole PNG files of moderate size are taken, and no links: a run folder from a stranger must not bring another file
into a page that its reader may pass on.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

from PIL import Image

KINDS = ("samples", "completions", "reconstructions")
MOST = 24  # pictures of a kind and a run, evenly spread over training
LARGEST = 4 << 20  # bytes of a picture
MOST_PIXELS = 1 << 24
STEP = re.compile(r"step=(\d{1,12})\.png")


def pictures(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """Kind -> (step, base64 of the PNG), by step."""
    found = {kind: _spread(_steps(folder / kind)) for kind in KINDS}
    encoded = {
        kind: [(step, text) for step, path in each if (text := _encoded(path)) is not None]
        for kind, each in found.items()
    }
    return {kind: each for kind, each in encoded.items() if each}


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of the pictures in a folder."""
    if not folder.is_dir() or folder.is_symlink():
        return []
    named = [(STEP.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), path) for match, path in named if match is not None)


def _spread(found: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """At most `MOST` of them, with the first and the last."""
    if len(found) <= MOST:
        return found
    return [found[round(i * (len(found) - 1) / (MOST - 1))] for i in range(MOST)]


def _encoded(path: Path) -> str | None:
    """The file in base64; None if it is no whole PNG, too large, or a link."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
            return None
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            image.verify()
        return base64.b64encode(path.read_bytes()).decode()
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ):  # SyntaxError: Pillow's word for a damaged PNG
        return None
