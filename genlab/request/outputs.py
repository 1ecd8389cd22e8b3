"""The files that a verb writes. They are checked before any work is done, and written completely or not at all.

Without `out=` they go into the folder of the run, or of a checkpoint file that is in no run folder, into the current
one. Nothing is replaced unless the request says overwrite=true: a name of ours that is taken gets a number, and one
that the user has given is refused.
"""

from __future__ import annotations

import csv
import itertools
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from torch import Tensor

from genlab.build import find_checkpoint
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


def run_folder(ckpt: object) -> Path:
    """The folder of the run that `ckpt` names; the current folder if it is a checkpoint file that is in no run folder.

    Raises RequestError if there is no checkpoint.
    """
    path = Path(str(ckpt)).expanduser()
    file = find_checkpoint(path)
    if path.is_dir():
        return path
    file = file if len(file.parts) > 2 else file.absolute()
    run = file.parent.parent
    return run if file.parent.name == "checkpoints" and (run / "config.yaml").is_file() else Path()


def output(config: DictConfig, name: str, *beside: str) -> Path:
    """The path of the file that a verb writes: that of `out=`, or `name` in the folder of the run.

    `beside`: the endings of files that it writes under the same name. Raises RequestError if a file cannot be written,
    or exists already and was named by the user.
    """
    suffixes = (Path(name).suffix, *beside)
    if config.out is None:
        stem = free(run_folder(config.ckpt) / Path(name).stem, suffixes, overwrites(config))
    else:
        out = writable("out", config.out, suffixes[0])
        stem = out.with_suffix("")
        refuse_taken([out.with_suffix(suffix) for suffix in suffixes], overwrites(config))
    for suffix in suffixes:
        writable("out", f"{stem}{suffix}", suffix)
    return Path(f"{stem}{suffixes[0]}") if config.out is None else out


def output_folder(config: DictConfig, name: str, files: Iterable[str]) -> Path:
    """The folder into which a verb writes `files`: that of `out=`, which exists, or `name` in the folder of the run.

    Checked as in `output`.
    """
    if config.out is not None:
        folder = Path(str(config.out)).expanduser()
        paths = [writable("out", str(folder / file), Path(file).suffix) for file in files]
        refuse_taken(paths, overwrites(config))
        return folder
    folder = free(run_folder(config.ckpt) / name, [f"/{file}" for file in files], overwrites(config))
    writable("out", f"{folder}.png", ".png")  # the folder itself is made when its first file is written
    return folder


def free(stem: Path, endings: Sequence[str], overwrite: bool) -> Path:
    """`stem`, or the first of stem-2, stem-3, … with none of whose `endings` there is a file."""
    for number in itertools.count(1):
        candidate = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        if overwrite or not any(Path(f"{candidate}{ending}").exists() for ending in endings):
            return candidate
    raise AssertionError


def refuse_taken(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise RequestError if a file that the user has named exists, and is not to be overwritten."""
    taken = next((path for path in paths if path.exists()), None)
    if taken is not None and not overwrite:
        raise RequestError(f"out=: {taken} exists already; give another name, or overwrite=true to replace it")


def overwrites(config: DictConfig) -> bool:
    """The value of `overwrite=`."""
    if not isinstance(config.overwrite, bool):
        raise RequestError(f"overwrite={config.overwrite}: expected true or false")
    return config.overwrite


def check_drawing(config: DictConfig, name: str) -> Path:
    """Check `n`, `temperature`, `seed` and `out` of a verb that draws images. Returns the path of the PNG, which is
    called `name` by default; the .npy file is beside it.
    """
    check_at_least(config, "n", 1)
    check_temperature(config)
    check_seed(config)
    return output(config, name, ".npy")


def save_columns(out: Path, names: Any, columns: Mapping[str, np.ndarray]) -> None:
    """Write a CSV file with a row for every image i, `names.name(i)`, and its number in every column (N,)."""
    with atomically(out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *columns])
        for i, row in enumerate(zip(*columns.values(), strict=True)):
            writer.writerow([names.name(i), *(f"{value:.6g}" for value in row)])


def save_images(
    out: Path,
    images: Tensor,
    spec: ImageSpec,
    grid: Tensor,
    grid_spec: ImageSpec,
    columns: int | None,
    caption: str,
) -> None:
    """Write a PNG and, beside it, a .npy file.

    The PNG is a grid of the images `grid` (N', C', H', W'), which may contain more than was drawn, with a caption. The
    .npy file holds
    `images` (N, C, H, W) as integers, uint8 if they fit.
    """
    save_grid(out, grid, grid_spec, columns, caption)
    path = out.with_suffix(".npy")
    with atomically(path) as temporary, open(temporary, "wb") as file:
        np.save(file, images.cpu().numpy().astype(np.uint8 if spec.levels <= 256 else np.int64))
