"""The files that `out=` names. They are checked before any work is done, and written completely or not at all."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from torch import Tensor

from genlab.core import ImageSpec, RequestError
from genlab.request.numbers import check_at_least, check_seed, check_temperature
from genlab.system.atomic import atomically
from genlab.viz import save_grid


def writable(key: str, value: str, *suffixes: str) -> Path:
    """The path that config key `key` names. Raises RequestError unless its ending is one of `suffixes`, its folder
    exists and files can be written there.
    """
    path = Path(str(value)).expanduser()
    if path.suffix.lower() not in suffixes:
        raise RequestError(f"{key}={value}: expected a file name ending in {' or '.join(suffixes)}")
    folder = path.parent
    if not folder.is_dir():
        raise RequestError(f"{key}={value}: the folder {folder} does not exist")
    try:
        if path.is_dir():
            raise OSError
        # Permission bits do not show if a file system is read-only. Writing a file does.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RequestError(f"{key}={value}: cannot write there") from error
    return path


def new_folder(key: str, value: str) -> Path:
    """The folder that config key `key` names, which is not made yet. Raises RequestError unless it is new or empty."""
    path = Path(str(value)).expanduser()
    if not path.parent.is_dir():
        raise RequestError(f"{key}={value}: the folder {path.parent} does not exist")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RequestError(f"{key}={value} exists already and is not empty: give a new folder")
    return path


def check_drawing(config: DictConfig) -> Path:
    """Check `n`, `temperature`, `seed` and `out` of a verb that draws images. Returns the path of the PNG."""
    check_at_least(config, "n", 1)
    check_temperature(config)
    check_seed(config)
    return check_out(config)


def check_out(config: DictConfig) -> Path:
    """The path of the PNG that `out` names. It and the .npy file beside it are checked as in `writable`."""
    out = writable("out", config.out, ".png")
    writable("out", str(out.with_suffix(".npy")), ".npy")
    return out


def save_columns(out: Path, names: Any, columns: Mapping[str, np.ndarray]) -> None:
    """Write a CSV file with a row for every image i, `names.name(i)`, and its number in every column (N,)."""
    with atomically(out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *columns])
        for i, row in enumerate(zip(*columns.values(), strict=True)):
            writer.writerow([names.name(i), *(f"{value:.6g}" for value in row)])


def save_images(
    out: Path, images: Tensor, spec: ImageSpec, grid: Tensor, grid_spec: ImageSpec, columns: int | None = None
) -> None:
    """Write a PNG and, beside it, a .npy file.

    The PNG is a grid of the images `grid` (N', C', H', W'), which may contain more than was drawn. The .npy file holds
    `images` (N, C, H, W) as integers, uint8 if they fit.
    """
    save_grid(out, grid, grid_spec, columns)
    path = out.with_suffix(".npy")
    with atomically(path) as temporary, open(temporary, "wb") as file:
        np.save(file, images.cpu().numpy().astype(np.uint8 if spec.levels <= 256 else np.int64))
