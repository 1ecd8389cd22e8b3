"""The files that `out=` names. They are checked before any work is done, and written completely or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

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
