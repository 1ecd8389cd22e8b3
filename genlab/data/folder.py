"""A folder of the user's own images: PNG, JPEG, WebP, BMP, GIF, TIFF, PPM, PGM, of any size and colour.

Sub-folders are classes, in alphabetical order; without them all labels are 0 and there are no classes. `train/` with
`val/` (or `valid/`, `validation/`) or `test/` or both beside it, in any case of the letters, are the splits, class
folders within, and then nothing else is read. What is missing of test and validation is cut from the training images.

Which split an image falls into is a function of its name below the folder: a hash of the name is a number in [0, 1),
and a test image is one whose number is below a tenth, so the shares are met on average. Adding, removing or mending
one image moves no other. Only where a split would be empty does it get the image with the lowest number, and a tenth
that would leave fewer than two images keeps the lowest. At least three images are needed: one for each split.

An image that is not already `size` x `size` is cut to its central square and resized with an antialiasing filter.
Transparency is laid on white. How a file becomes pixels is in `reader.py`. Shapes: images (N, channels, size, size),
labels (N,).
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
from genlab.data.reader import EXTENSIONS, MAX_PIXELS, TooLarge, Unreadable, printable, read
from genlab.data.source import Split, Splits, lowest, numbers_of
from genlab.data.tree import Tree, listed, walk

NAMES = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
TEST_SHARE = 0.1


class Folder:
    """The images below `path`, each (channels, size, size). `skip_bad`: leave out what cannot be read. `max_pixels`:
    an image with more is not decoded.
    """

    def __init__(
        self, path: str | Path | None, *, size: int, channels: int, skip_bad: bool, max_pixels: int = MAX_PIXELS
    ) -> None:
        if path is None or path == "":
            raise RequestError("data=folder needs data.path=FOLDER, the folder of your images")
        if printable(path) != str(path):
            raise RequestError(
                f"data.path={printable(path)} is not UTF-8, and the config of a run could not hold it: link to it "
                "(names inside may be what they like)"
            )
        if channels not in (1, 3):
            raise RequestError(f"data.channels={channels} is not possible: 1 is grey, 3 is colour")
        for key, value, what in (
            ("size", size, "the height and width in pixels"),
            ("max_pixels", max_pixels, "how many pixels a picture may have"),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RequestError(f"data.{key}={value} is not possible: it is {what}, at least 1")
        ImageSpec(channels, size, size)  # its bounds, before images are made as large as that
        self.path = Path(str(path)).expanduser()
        self.name = f"folder-{printable(self.path.resolve().name)}"
        self.size, self.channels, self.skip_bad, self.max_pixels = size, channels, skip_bad, max_pixels

    def load(self, root: Path | None) -> Splits:
        """Read `path`; `root` does not matter."""
        if not os.path.isdir(self.path):
            raise RequestError(f"data.path={self.path} is not a folder")
        tree = walk(self.path)
        places = self.split_folders()
        of = {path: self.place(path, places) for path in tree.images}  # image -> (split, name within it)
        files = [path for path in tree.images if of[path][0]]
        if not files and not tree.unreadable:
            raise RequestError(f"data.path={self.path} holds no images (looked for {', '.join(sorted(EXTENSIONS))})")
        class_names = class_folders(files, of)
        images, remarks = self.read_all(files, tree)
        if len(files) < len(tree.images):
            remarks.append(f"{len(tree.images) - len(files):,} images outside {', '.join(places)} are not read")

        def split(paths: list[Path]) -> Split:
            labels = [class_names.index(of[path][1].split("/")[0]) if class_names else 0 for path in paths]
            pixels = np.array([images[path] for path in paths], np.uint8)
            pixels = pixels.reshape(-1, self.size, self.size, self.channels).transpose(0, 3, 1, 2)
            return Split(torch.from_numpy(pixels.copy()), torch.tensor(labels, dtype=torch.int64))

        paths = {name: [path for path in images if of[path][0] == name] for name in ("train", "valid", "test")}
        if "test" not in places.values():
            most = len(paths["train"]) - (1 if "valid" in places.values() else 2)
            tested = lowest(self.numbers("test", paths["train"]), TEST_SHARE, 1, most).tolist()
            paths["test"] = [path for path, test in zip(paths["train"], tested, strict=True) if test]
            paths["train"] = [path for path, test in zip(paths["train"], tested, strict=True) if not test]
        self.check_counts({name: len(of_split) for name, of_split in paths.items()}, "valid" in places.values())
        return Splits(
            split(paths["train"]),
            split(paths["test"]),
            tuple(map(printable, class_names)),
            valid=split(paths["valid"]) if "valid" in places.values() else None,
            numbers=self.numbers("valid", paths["train"]),
            remarks=tuple(remarks),
        )

    def split_folders(self) -> dict[str, str]:
        """Folder name -> split, of the folders that are splits; {} where the split is ours to make."""
        try:
            folders = sorted(entry.name for entry in os.scandir(self.path) if os.path.isdir(entry))
        except OSError as error:
            raise RequestError(f"data.path={self.path} cannot be listed: {error.strerror}") from error
        visible = [name for name in folders if not name.startswith(".")]
        places = {name: NAMES[name.lower()] for name in visible if name.lower() in NAMES}
        if "train" not in places.values() or (len(places) == 1 and len(visible) > 1):
            return {}
        if len(set(places.values())) < len(places):
            raise RequestError(f"data.path={self.path} has two folders for one split: {', '.join(places)}; keep one")
        return places

    def place(self, path: Path, places: dict[str, str]) -> tuple[str, str]:
        """(split, name within it) of an image; the split is "train" where there are none, "" for an image in none."""
        name = path.relative_to(self.path).as_posix()
        if not places:
            return "train", name
        first, _, rest = name.partition("/")
        return (places.get(first, ""), rest) if rest else ("", name)

    def numbers(self, purpose: str, paths: list[Path]) -> torch.Tensor:
        """A number in [0, 1) of every file, of its name below the folder alone."""
        return numbers_of(purpose, [path.relative_to(self.path).as_posix() for path in paths])

    def check_counts(self, counts: dict[str, int], has_valid: bool) -> None:
        """Refuse splits that are too small."""
        held = f"data.path={self.path} holds {counts['train']} images to train {'' if has_valid else 'and validate '}on"
        if has_valid and min(counts.values()) < 1:
            raise RequestError(
                f"{held}, {counts['valid']} to validate on and {counts['test']} to test on: at least 1 of each is "
                "needed, and 2 to train on where the test images are cut from them"
            )
        if not has_valid and (counts["train"] < 2 or counts["test"] < 1):
            raise RequestError(f"{held} and {counts['test']} to test on: at least 2 and 1 are needed")

    def read_all(self, paths: list[Path], tree: Tree) -> tuple[dict[Path, np.ndarray], list[str]]:
        """(path -> (H, W, C) of every readable file, what should be said); others are an error or left out."""
        images, bad, notes, large = {}, list(tree.unreadable), Counter[str](), False
        console = Console(stderr=True)
        hidden = process_rank() > 0 or not console.is_terminal
        for path in track(paths, "reading images", console=console, transient=True, disable=hidden):
            try:
                images[path], said = read_image(path, self.size, self.channels, self.max_pixels)
                notes.update(said)
            except Unreadable as error:
                bad.append(f"{path} ({error})")
                large |= isinstance(error, TooLarge)
        remarks = [f"{count:,} images have {note}" for note, count in notes.items()]
        if tree.others:
            remarks.append("skipped " + ", ".join(f"{count:,} {kind}" for kind, count in tree.others.most_common()))
        if bad:
            count = f"{len(bad)} of {len(paths) + len(tree.unreadable)} images or folders in {self.path} cannot be read"
            if not self.skip_bad:
                lifted = "; data.max_pixels= lifts the bound on pixels" if large else ""
                raise RequestError(
                    f"{count}: {listed(bad)}; mend or remove them, or leave them out with data.skip_bad=true{lifted}"
                )
            remarks.append(f"{count} and are left out: {listed(bad)}")
        return images, remarks


def folder_data(
    path: str | Path | None, size: int, channels: int, skip_bad: bool, max_pixels: int = MAX_PIXELS, **options: Any
) -> Any:
    """What `data=folder` builds: the user's folder as ImageData; `options` are ImageData's."""
    from genlab.data.module import ImageData  # here, so that reading images does not need Lightning

    source = Folder(path, size=size, channels=channels, skip_bad=skip_bad, max_pixels=max_pixels)
    return ImageData(source, **options)


def read_image(
    path: Path, size: int, channels: int, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, tuple[str, ...]]:
    """One file -> (uint8 (size, size, channels), what should be said of it)."""
    colours, _, notes = read(path, max_pixels)
    image = colours.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels), notes


def class_folders(files: list[Path], of: dict[Path, tuple[str, str]]) -> list[str]:
    """Names of the class folders; images beside them would belong to no class."""
    names = sorted({of[path][1].split("/")[0] for path in files if "/" in of[path][1]})
    loose = [str(path) for path in files if "/" not in of[path][1]]
    if names and loose:
        raise RequestError(
            f"some images are in class folders ({listed(names)}) and {len(loose)} are not ({listed(loose)}): "
            "move those into a folder"
        )
    return names
