"""A folder of the user's own images: PNG, JPEG, WebP, BMP, GIF, TIFF, PPM, PGM, of any size and colour.

Classes: sub-folders are classes, in alphabetical order. Without sub-folders there are no classes and all labels are 0.

Splits: if there is a folder `train/`, then `train/`, `val/` (or `valid/`, `validation/`) and `test/` are the splits, in
upper or lower case. The class folders are inside them, and nothing outside them is read. (A folder `train/` beside
folders with other names is a class.) A split without a folder is cut from the training images.

The split of an image that is cut depends only on the path of its file below the folder. A hash of the path gives a
number in [0, 1), and images whose number is below 0.1 are test images. So adding, removing or changing an image does
not move the others, and the test split has about a tenth of the images. There are two exceptions: a split that would be
empty gets the image with the lowest number, and at least two images are kept for training and validation. So at least
three images are needed, one for each split.

Pixels: an image that is not already `size` x `size` is cropped to its central square and resized with an antialiasing
filter. Transparent images are laid on white. `reader.py` describes how files become pixels.

Shapes: images (N, channels, size, size), labels (N,).
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from genlab.core import ImageSpec, RequestError
from genlab.data.files import process_rank
from genlab.data.module import ImageData
from genlab.data.reader import EXTENSIONS, MAX_PIXELS, TooLarge, Unreadable, printable, read
from genlab.data.source import Split, Splits, lowest, numbers_of
from genlab.data.tree import Tree, listed, scan_folder

CONFIGURABLE = {"data": ("folder_data",), "source": ("Folder",)}

SPLIT_OF_FOLDER = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
TEST_SHARE = 0.1


class Folder:
    """The images below the folder `path`, each (channels, size, size).

    `skip_bad`: leave out files that cannot be read, instead of raising RequestError. `max_pixels`: an image with more
    pixels is not decoded and counts as one that cannot be read.
    """

    def __init__(
        self, path: str | Path | None, *, size: int, channels: int, skip_bad: bool, max_pixels: int = MAX_PIXELS
    ) -> None:
        if path is None or path == "":
            raise RequestError("data=folder needs data.path=FOLDER, the folder of your images")
        if printable(path) != str(path):
            raise RequestError(
                f"data.path={printable(path)} is not UTF-8, and the config of a run could not hold it: link to it "
                "(names of files inside may have any bytes)"
            )
        if channels not in (1, 3):
            raise RequestError(f"data.channels={channels} is not possible: 1 is grey, 3 is colour")
        for key, value, meaning in (
            ("size", size, "the height and width in pixels"),
            ("max_pixels", max_pixels, "how many pixels a picture may have"),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RequestError(f"data.{key}={value} is not possible: it is {meaning}, at least 1")
        ImageSpec(channels, size, size)  # checks the size before any image is read
        self.path = Path(str(path)).expanduser()
        self.name = f"folder-{printable(self.path.resolve().name)}"
        self.size, self.channels, self.skip_bad, self.max_pixels = size, channels, skip_bad, max_pixels

    def load(self, root: Path | None) -> Splits:
        """Read the folder `path`. `root` is not used.

        Raises RequestError if the folder cannot be read, or does not hold enough images.
        """
        if not os.path.isdir(self.path):
            raise RequestError(f"data.path={self.path} is not a folder")
        tree = scan_folder(self.path)
        folders = self.split_folders()
        located = {path: self.locate(path, folders) for path in tree.images}  # (split, path inside the split)
        files = [path for path in tree.images if located[path][0]]
        if not files and not tree.unreadable:
            raise RequestError(f"data.path={self.path} holds no images (looked for {', '.join(sorted(EXTENSIONS))})")
        class_names = class_folders(files, located)
        images, remarks = self.read_all(files, tree)
        if len(files) < len(tree.images):
            remarks.append(f"{len(tree.images) - len(files):,} images outside {', '.join(folders)} are not read")

        def split(paths: list[Path]) -> Split:
            labels = [class_names.index(located[path][1].split("/")[0]) if class_names else 0 for path in paths]
            pixels = np.array([images[path] for path in paths], np.uint8)
            pixels = pixels.reshape(-1, self.size, self.size, self.channels).transpose(0, 3, 1, 2)
            return Split(torch.from_numpy(pixels.copy()), torch.tensor(labels, dtype=torch.int64))

        has_valid, has_test = "valid" in folders.values(), "test" in folders.values()
        paths = {name: [path for path in images if located[path][0] == name] for name in ("train", "valid", "test")}
        if not has_test:
            most = len(paths["train"]) - (1 if has_valid else 2)
            is_test = lowest(self.numbers("test", paths["train"]), TEST_SHARE, 1, most).tolist()
            paths["test"] = [path for path, test in zip(paths["train"], is_test, strict=True) if test]
            paths["train"] = [path for path, test in zip(paths["train"], is_test, strict=True) if not test]
        self.check_counts({name: len(paths_of_split) for name, paths_of_split in paths.items()}, has_valid)
        return Splits(
            split(paths["train"]),
            split(paths["test"]),
            tuple(map(printable, class_names)),
            valid=split(paths["valid"]) if has_valid else None,
            numbers=self.numbers("valid", paths["train"]),
            remarks=tuple(remarks),
        )

    def split_folders(self) -> dict[str, str]:
        """Find the folders that are splits: folder name -> split. {} if there are none."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.path) if os.path.isdir(entry))
        except OSError as error:
            raise RequestError(f"data.path={self.path} cannot be listed: {error.strerror}") from error
        visible = [name for name in names if not name.startswith(".")]
        folders = {name: SPLIT_OF_FOLDER[name.lower()] for name in visible if name.lower() in SPLIT_OF_FOLDER}
        if "train" not in folders.values() or (len(folders) == 1 and len(visible) > 1):
            return {}
        if len(set(folders.values())) < len(folders):
            raise RequestError(f"data.path={self.path} has two folders for one split: {', '.join(folders)}; keep one")
        return folders

    def locate(self, path: Path, folders: dict[str, str]) -> tuple[str, str]:
        """Find the split of an image and its path inside the split.

        `folders`: the result of `split_folders`. If it is {}, all images are in "train". The split is "" for an image
        outside these folders.
        """
        name = path.relative_to(self.path).as_posix()
        if not folders:
            return "train", name
        first, _, inside = name.partition("/")
        return (folders.get(first, ""), inside) if inside else ("", name)

    def numbers(self, purpose: str, paths: list[Path]) -> torch.Tensor:
        """A number in [0, 1) for every file, float64 (N,). It depends only on the path below the folder."""
        return numbers_of(purpose, [path.relative_to(self.path).as_posix() for path in paths])

    def check_counts(self, counts: dict[str, int], has_valid: bool) -> None:
        """Raise RequestError if a split is too small. `counts`: split -> number of images."""
        held = f"data.path={self.path} holds {counts['train']} images to train {'' if has_valid else 'and validate '}on"
        if has_valid and min(counts.values()) < 1:
            raise RequestError(
                f"{held}, {counts['valid']} to validate on and {counts['test']} to test on: at least 1 of each is "
                "needed, and 2 to train on where the test images are cut from them"
            )
        if not has_valid and (counts["train"] < 2 or counts["test"] < 1):
            raise RequestError(f"{held} and {counts['test']} to test on: at least 2 and 1 are needed")

    def read_all(self, paths: list[Path], tree: Tree) -> tuple[dict[Path, np.ndarray], list[str]]:
        """Read the files: (path -> pixels (H, W, C), remarks for the user).

        Files that cannot be read are left out with `skip_bad`; otherwise they raise RequestError.
        """
        images, bad, notes, too_large = {}, list(tree.unreadable), Counter[str](), False
        console = Console(stderr=True)
        hidden = process_rank() > 0 or not console.is_terminal
        for path in track(paths, "reading images", console=console, transient=True, disable=hidden):
            try:
                images[path], notes_of_file = read_image(path, self.size, self.channels, self.max_pixels)
                notes.update(notes_of_file)
            except Unreadable as error:
                bad.append(f"{path} ({error})")
                too_large |= isinstance(error, TooLarge)
        remarks = [f"{count:,} images have {note}" for note, count in notes.items()]
        if tree.skipped:
            remarks.append("skipped " + ", ".join(f"{count:,} {kind}" for kind, count in tree.skipped.most_common()))
        if bad:
            count = f"{len(bad)} of {len(paths) + len(tree.unreadable)} images or folders in {self.path} cannot be read"
            if not self.skip_bad:
                advice = "; data.max_pixels= lifts the bound on pixels" if too_large else ""
                raise RequestError(
                    f"{count}: {listed(bad)}; mend or remove them, or leave them out with data.skip_bad=true{advice}"
                )
            remarks.append(f"{count} and are left out: {listed(bad)}")
        return images, remarks


def folder_data(
    path: str | Path | None, size: int, channels: int, skip_bad: bool, max_pixels: int = MAX_PIXELS, **options: Any
) -> ImageData:
    """Make the data module of `data=folder`. `options` are those of ImageData."""
    source = Folder(path, size=size, channels=channels, skip_bad=skip_bad, max_pixels=max_pixels)
    return ImageData(source, **options)


def read_image(
    path: Path, size: int, channels: int, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read one file: (uint8 (size, size, channels), notes for the user). Raises Unreadable."""
    colours, _, notes = read(path, max_pixels)
    return fitted(colours, size, size, channels), notes


def fitted(colours: Image.Image, height: int, width: int, channels: int) -> np.ndarray:
    """A picture cropped to its middle and resized, uint8 (height, width, channels); 1 channel is grey."""
    image = colours.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, channels)


def class_folders(files: list[Path], located: dict[Path, tuple[str, str]]) -> list[str]:
    """The names of the class folders. `located`: file -> (split, path inside the split).

    Raises RequestError if there are images beside the class folders, because they would have no class.
    """
    names = sorted({located[path][1].split("/")[0] for path in files if "/" in located[path][1]})
    loose = [str(path) for path in files if "/" not in located[path][1]]
    if names and loose:
        raise RequestError(
            f"some images are in class folders ({listed(names)}) and {len(loose)} are not ({listed(loose)}): "
            "move those into a folder"
        )
    return names
