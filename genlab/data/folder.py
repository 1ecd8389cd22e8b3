"""A folder of the user's own images: PNG, JPEG, WebP, BMP, GIF, TIFF, PPM, PGM, of any size and colour.

Sub-folders are classes, in alphabetical order; without them all labels are 0 and there are no classes. With `train/`
and `test/` inside (and then nothing else is read) those are the splits, class folders within; else a fixed tenth, at
least one image, is the test split. At least three images are needed: one to train on, one to validate, one to test.

An image that is not already `size` x `size` is cut to its central square and resized with an antialiasing filter.
Transparency is laid on white. Shapes: images (N, channels, size, size), labels (N,).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from genlab.core import ImageSpec, RequestError
from genlab.data.files import process_rank
from genlab.data.source import Split, Splits, cut

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
NAMED = 3  # unreadable files named in a message; the rest is counted


class Folder:
    """The images below `path`, each (channels, size, size)."""

    def __init__(self, path: str | Path | None, *, size: int, channels: int, skip_bad: bool) -> None:
        if not path:
            raise RequestError("data=folder needs data.path=FOLDER, the folder of your images")
        if channels not in (1, 3):
            raise RequestError(f"data.channels={channels} is not possible: 1 is grey, 3 is colour")
        if size < 1:
            raise RequestError(f"data.size={size} is not possible: it is the height and width in pixels, at least 1")
        ImageSpec(channels, size, size)  # its bounds, before images are made as large as that
        self.path = Path(path).expanduser()
        self.name = f"folder-{self.path.resolve().name}"
        self.size, self.channels, self.skip_bad = size, channels, skip_bad

    def load(self, root: Path | None) -> Splits:
        """Read `path`; `root` does not matter."""
        if not self.path.is_dir():
            raise RequestError(f"data.path={self.path} is not a folder")
        halves = [self.path / "train", self.path / "test"]
        parts = halves if all(half.is_dir() for half in halves) else [self.path]
        files = [(part, path) for part in parts for path in image_files(part)]
        if not files:
            raise RequestError(f"data.path={self.path} holds no images (looked for {', '.join(sorted(EXTENSIONS))})")
        class_names = class_folders(files)
        images = self.read_all([path for _, path in files])
        splits = [self.stack(part, [p for of, p in files if of == part], images, class_names) for part in parts]
        train, test = splits if len(splits) == 2 else cut(splits[0], max(1, len(splits[0].labels) // 10))
        if len(train.labels) < 2 or len(test.labels) < 1:
            raise RequestError(
                f"data.path={self.path} holds {len(train.labels)} images to train and validate on and "
                f"{len(test.labels)} to test on: at least 2 and 1 are needed"
            )
        return Splits(train, test, tuple(class_names))

    def read_all(self, paths: list[Path]) -> dict[Path, np.ndarray]:
        """Path -> (H, W, C) of every readable file; the others are an error, or a warning with `skip_bad`."""
        images, bad = {}, []
        quiet, console = process_rank() > 0, Console(stderr=True)
        hidden = quiet or not console.is_terminal
        for path in track(paths, "reading images", console=console, transient=True, disable=hidden):
            try:
                images[path] = read_image(path, self.size, self.channels)
            except Exception as error:  # damaged files make Pillow's decoders fail in many ways
                bad.append(f"{path} ({error})")
        if bad:
            count = f"{len(bad)} of {len(paths)} images in {self.path} cannot be read"
            names = ", ".join(bad[:NAMED]) + (", …" if len(bad) > NAMED else "")
            if not self.skip_bad:
                raise RequestError(f"{count}: {names}; mend or remove them, or leave them out with data.skip_bad=true")
            if not quiet:
                print(f"warning: {count} and are left out: {names}", file=sys.stderr)
        return images

    def stack(self, part: Path, paths: list[Path], images: dict[Path, np.ndarray], class_names: list[str]) -> Split:
        """The readable images of one split; a label is the number of the class folder."""
        paths = [path for path in paths if path in images]
        labels = [class_names.index(path.relative_to(part).parts[0]) if class_names else 0 for path in paths]
        pixels = np.array([images[path] for path in paths], np.uint8).reshape(-1, self.size, self.size, self.channels)
        return Split(
            torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
            torch.tensor(labels, dtype=torch.int64),
        )


def folder_data(path: str | Path | None, size: int, channels: int, skip_bad: bool, **options: Any) -> Any:
    """What `data=folder` builds: the user's folder as ImageData; `options` are ImageData's."""
    from genlab.data.module import ImageData  # here, so that reading images does not need Lightning

    return ImageData(Folder(path, size=size, channels=channels, skip_bad=skip_bad), **options)


def read_image(path: Path, size: int, channels: int) -> np.ndarray:
    """One file -> uint8 (size, size, channels)."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)  # upright, as cameras mean it
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 255 instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floats")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels)


def image_files(folder: Path) -> list[Path]:
    """All images at any depth, in alphabetical order, hidden files and folders apart."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    visible = (path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(visible, key=lambda path: path.relative_to(folder).as_posix())


def class_folders(files: list[tuple[Path, Path]]) -> list[str]:
    """(split folder, image) pairs -> names of the class folders; images beside them would belong to no class."""
    parts = [(path, path.relative_to(part).parts) for part, path in files]
    names = sorted({inside[0] for _, inside in parts if len(inside) > 1})
    loose = [str(path) for path, inside in parts if len(inside) == 1]
    if names and loose:
        raise RequestError(
            f"some images are in class folders ({', '.join(names[:NAMED])}) and {len(loose)} are not "
            f"({', '.join(loose[:NAMED])}): move those into a folder"
        )
    return names
