"""A set of images that the user names: `in=` or `images=` of the verbs that compress and score.

    data:NAME/SPLIT      a split of a data set, as `data=NAME` gives it
    FILE.npy             integers (N, C, H, W), or (N, H, W) grey
    GLOB or FOLDER       picture files, in alphabetical order

To compress a picture without loss, it is cut into tiles of the model's size, row by row; tiles at the right and lower
edge are filled up with copies of the last column and row (`Files`). To score it, it is cropped and resized to the
model's images as in data=folder (`Fitted`). A picture of the model's size is one tile and does not change.

N tiles, C channels, H x W pixels of the model, K levels.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from genlab.build import build_data
from genlab.core import ImageSpec, RequestError
from genlab.data.folder import fitted
from genlab.data.reader import EXTENSIONS, FORMATS, Unreadable, printable, read
from genlab.data.tree import scan_folder
from genlab.request.compose import Request, split_hydra
from genlab.request.pictures import quantise

EXACT_MODES = ("1", "L", "P", "RGB")  # picture modes whose pixels `read` keeps exactly


@dataclass(frozen=True)
class Picture:
    """A picture of h x w pixels, grey (channels 1) or in colour (3). `name`: of its file, without folders."""

    name: str
    channels: int
    height: int
    width: int

    def tiles(self, spec: ImageSpec) -> tuple[int, int]:
        """How many tiles it has, (rows, columns)."""
        return -(-self.height // spec.height), -(-self.width // spec.width)


class ImageSet:
    """N tiles for a model. `source`: as the user gave it. `labels` (N,) or None. `pictures`: of files, in order."""

    def __init__(self, source: str, spec: ImageSpec, labels: Tensor | None, pictures: list[Picture] | None) -> None:
        self.source, self.spec, self.labels, self.pictures = source, spec, labels, pictures

    def __len__(self) -> int:
        raise NotImplementedError

    def part(self, start: int, stop: int) -> Tensor:
        """Tiles start … stop - 1: integers (n, C, H, W)."""
        raise NotImplementedError

    def name(self, i: int) -> str:
        """The file of image i, or its number."""
        return str(i)

    @property
    def values(self) -> int:
        """The number of values of all images; what fills up tiles is not counted."""
        return len(self) * self.spec.dims

    def whole(self) -> Iterator[np.ndarray]:
        """The images one after another as arrays (h, w) or (h, w, C); pictures as they are, not as tiles."""
        for i in range(len(self)):
            yield self.part(i, i + 1)[0].permute(1, 2, 0).squeeze(2).contiguous().numpy()


class Images(ImageSet):
    """Images in memory (N, C, H, W)."""

    def __init__(self, source: str, spec: ImageSpec, images: Tensor, labels: Tensor | None = None) -> None:
        super().__init__(source, spec, labels, None)
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def part(self, start: int, stop: int) -> Tensor:
        """See `ImageSet`."""
        return self.images[start:stop]


class Fitted(ImageSet):
    """Picture files, decoded one at a time, cropped and resized to the model's images as in data=folder. N is their
    number.
    """

    def __init__(self, source: str, spec: ImageSpec, paths: list[Path]) -> None:
        super().__init__(source, spec, None, None)
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, start: int, stop: int) -> Tensor:
        """See `ImageSet`."""
        return torch.stack([self._image(path) for path in self.paths[start:stop]])

    def name(self, i: int) -> str:
        """See `ImageSet`."""
        return printable(self.paths[i])

    def _image(self, path: Path) -> Tensor:
        spec = self.spec
        try:
            pixels = fitted(read(path).colours, spec.height, spec.width, spec.channels)
        except Unreadable as error:
            raise RequestError(f"{printable(path)} is not a readable picture: {error}") from error
        return quantise(torch.from_numpy(pixels.copy()).permute(2, 0, 1), spec)


class Files(ImageSet):
    """Picture files, decoded one at a time, cut into tiles."""

    def __init__(self, source: str, spec: ImageSpec, paths: list[Path]) -> None:
        pictures = [_size(path, spec) for path in paths]
        super().__init__(source, spec, None, pictures)
        self.paths = paths
        counts = [int(np.prod(picture.tiles(spec))) for picture in pictures]
        self.ends = np.cumsum(counts)
        self._cached = lru_cache(maxsize=1)(self._tiles)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def part(self, start: int, stop: int) -> Tensor:
        """See `ImageSet`."""
        parts = []
        while start < stop:
            number = int(np.searchsorted(self.ends, start, side="right"))
            first = int(self.ends[number - 1]) if number else 0
            parts.append(self._cached(number)[start - first : stop - first])
            start += len(parts[-1])
        return torch.cat(parts)

    @property
    def values(self) -> int:
        """See `ImageSet`."""
        return sum(picture.channels * picture.height * picture.width for picture in self.pictures or ())

    def whole(self) -> Iterator[np.ndarray]:
        """See `ImageSet`."""
        for path in self.paths:
            yield np.array(read(path).colours)

    def _tiles(self, number: int) -> Tensor:
        colours = np.array(read(self.paths[number]).colours)
        pixels = torch.from_numpy(colours)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        return tiled(pixels.expand(self.spec.channels, -1, -1), self.spec)


def tiled(pixels: Tensor, spec: ImageSpec) -> Tensor:
    """A picture (C, h, w) -> tiles (n, C, H, W), row by row."""
    height, width = spec.height, spec.width
    rows, columns = -(-pixels.shape[1] // height), -(-pixels.shape[2] // width)
    down, right = rows * height - pixels.shape[1], columns * width - pixels.shape[2]
    filled = np.pad(pixels.numpy(), ((0, 0), (0, down), (0, right)), mode="edge")
    grid = torch.from_numpy(filled).view(spec.channels, rows, height, columns, width)
    return grid.permute(1, 3, 0, 2, 4).reshape(-1, *spec.shape)


def untiled(tiles: Tensor, picture: Picture, spec: ImageSpec) -> Tensor:
    """Inverse of `tiled`: (n, C, H, W) -> (C, h, w)."""
    rows, columns = picture.tiles(spec)
    grid = tiles.view(rows, columns, *spec.shape).permute(2, 0, 3, 1, 4)
    whole = grid.reshape(spec.channels, rows * spec.height, columns * spec.width)
    return whole[: picture.channels, : picture.height, : picture.width]


def read_image_set(
    key: str,
    source: str,
    spec: ImageSpec,
    places: Mapping[str, Any],
    trust: Any = (),
    *,
    limit: int | None = None,
    fit: bool = False,
) -> ImageSet:
    """The images that config key `key` names, for a model of `spec`.

    `places`: the keys root and path of a data set on this machine. `limit`: only the first images (of a data set or an
    array). `fit`: crop and resize pictures instead of cutting them into tiles. Raises RequestError if there are none,
    or if they do not fit the model.
    """
    if source.startswith("data:"):
        return _data_set(key, source, spec, places, trust, limit)
    path = Path(source).expanduser()
    if path.suffix == ".npy":
        return Images(source, spec, _array(key, path, spec)[:limit])
    paths = scan_folder(path).images if path.is_dir() else sorted(Path(p) for p in glob.glob(str(path), recursive=True))
    paths = [p for p in paths if p.is_file()][:limit]
    if not paths:
        raise RequestError(
            f"{key}={source}: there are no pictures; give data:NAME/SPLIT, a .npy file, a folder or a pattern such as "
            "'photos/*.png'"
        )
    other = [p for p in paths if p.suffix.lower() not in EXTENSIONS]
    if other:
        raise RequestError(f"{key}={source}: {printable(other[0])} is no picture file")
    if fit and spec.levels <= 256 and spec.channels in (1, 3):
        return Fitted(source, spec, paths)
    if spec.levels != 256 or spec.channels not in (1, 3):
        raise RequestError(
            f"{key}={source}: picture files have 256 levels and 1 or 3 channels, the model's images {spec.levels} "
            f"levels and {spec.channels} channels; give data:NAME/SPLIT or a .npy file"
        )
    return Files(source, spec, paths)


def _data_set(
    key: str, source: str, spec: ImageSpec, places: Mapping[str, Any], trust: Any, limit: int | None
) -> ImageSet:
    name, _, split = source.removeprefix("data:").partition("/")
    config: DictConfig = split_hydra(Request("train", [f"data={name}"], command="").config())[0].data
    for place in ("root", "path"):
        if places.get(place) is not None:
            if place not in config:
                raise RequestError(f"data.{place}={places[place]}: data={name} has no {place}")
            config[place] = places[place]
    data = build_data(config, trust)
    if split not in ("train", "valid", "test"):
        raise RequestError(f"{key}={source}: give one of data:{name}/train, data:{name}/valid and data:{name}/test")
    whole = data.split(split)
    _check_spec(key, source, spec, data.spec.shape, data.spec.levels)
    return Images(source, spec, whole.images[:limit], whole.labels[:limit])


def _array(key: str, path: Path, spec: ImageSpec) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RequestError(f"{key}={path} cannot be read as an array: {error}") from error
    if array.ndim == 3:
        array = array[:, None]
    if array.dtype.kind not in "ui" or array.ndim != 4 or not len(array):
        raise RequestError(f"{key}={path}: expected integers (N, C, H, W), got {array.dtype} {array.shape}")
    _check_spec(key, str(path), spec, array.shape[1:], spec.levels)
    if array.min() < 0 or array.max() >= spec.levels:
        raise RequestError(
            f"{key}={path}: values go from {array.min()} to {array.max()}, the model's from 0 to {spec.levels - 1}"
        )
    return torch.from_numpy(array.astype(np.uint8 if spec.levels <= 256 else np.int64))


def _check_spec(key: str, source: str, spec: ImageSpec, shape: Any, levels: int) -> None:
    if (tuple(shape), levels) != (spec.shape, spec.levels):
        raise RequestError(
            f"{key}={source}: its images are {'x'.join(map(str, shape))} with {levels} levels, the model's "
            f"{'x'.join(map(str, spec.shape))} with {spec.levels} levels"
        )


def _size(path: Path, spec: ImageSpec) -> Picture:
    """Kind and size of a picture. Raises RequestError if its pixels would not be kept exactly, or do not fit."""
    try:
        colours, alpha, _ = read(path)
        with Image.open(path, formats=FORMATS) as opened:
            mode, frames = opened.mode, 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
    except (Unreadable, OSError) as error:
        raise RequestError(f"{printable(path)} is not a readable picture: {error}") from error
    if mode not in EXACT_MODES or alpha is not None or frames != 1:
        raise RequestError(
            f"{printable(path)} is not 8 bits grey or RGB without transparency in one frame (it is {mode}): its pixels "
            "would not come back exactly"
        )
    channels = 1 if colours.mode == "L" else 3
    if channels > spec.channels:
        raise RequestError(f"{printable(path)} has colours, the model's images are grey")
    return Picture(path.name, channels, colours.height, colours.width)
