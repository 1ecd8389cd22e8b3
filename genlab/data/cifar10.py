"""CIFAR-10: 50,000 + 10,000 photographs, 32 x 32, RGB, 10 classes (Krizhevsky 2009).

Names and checksums are torchvision's. We read its unpacked folder `cifar-10-batches-py`, or else the published
archive, or the same files in another archive. Archives are read without unpacking them to the disk. A batch is a
pickle, and unpickling an unknown file can run code. So we check the md5 of exactly the bytes that are unpickled,
and read no more of an archive than a batch can have.

Shapes: images (N, 3, 32, 32), labels (N,).
"""

from __future__ import annotations

import lzma
import pickle
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import torch
from torchvision.datasets import CIFAR10 as Official

from genlab.core import RequestError
from genlab.data.files import MAX_UNPACKED, File, check_md5, find, locate
from genlab.data.source import Split, Splits

CONFIGURABLE = {"source": ("CIFAR10",)}

STEMS = (Official.filename.removesuffix(".tar.gz"), Official.base_folder)
ENDINGS = (".tgz", ".tar", ".tar.xz", ".tar.bz2", ".zip")  # of archives that are read but never downloaded


class CIFAR10:
    """50,000 + 10,000 small photographs."""

    name = "cifar10"
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def load(self, root: Path | None) -> Splits:
        """Read `<root>/cifar-10-batches-py/*`, else `<root>/cifar-10-python.tar.gz` (or `.tar`, `.tar.xz`, `.zip` …).

        Raises RequestError if the files are missing and cannot be downloaded, or are damaged.
        """
        md5s = dict(Official.train_list + Official.test_list)
        paths = {name: find(File(name, folder=Official.base_folder), root) for name in md5s}
        if None in paths.values():
            published = File(Official.filename, md5=Official.tgz_md5, urls=(Official.url,), by_content=True)
            others = (find(File(stem + ending), root) for stem in STEMS for ending in ENDINGS)
            archive = next((path for path in others if path), None) or locate([published], root)[0]
            blobs = read_archive(archive, md5s)
            paths = {name: archive / name for name in md5s}
        else:
            blobs = {name: path.read_bytes() for name, path in paths.items() if path}
        for name, md5 in md5s.items():
            check_md5(blobs[name], md5, paths[name] or name)
        train = [read_batch(blobs[name]) for name, _ in Official.train_list]
        test = [read_batch(blobs[name]) for name, _ in Official.test_list]
        return Splits(join(train), join(test), self.class_names)


def read_archive(path: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Read these files from a tar or zip archive, in whichever folder they are: name -> content.

    Reads at most `MAX_UNPACKED` bytes of each. Raises RequestError if the archive is damaged or lacks one of them.
    """
    contents = {}
    try:
        for name, file in members(path):
            if name in names:
                contents[name] = file.read(MAX_UNPACKED)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise RequestError(f"{path} is damaged: {error}; delete or replace it") from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise RequestError(f"{path} is not an archive of CIFAR-10: it lacks {', '.join(missing)}; delete or replace it")
    return contents


def members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield (name without folders, open file) for every file of an archive."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                with archive.open(item) as file:
                    yield PurePosixPath(item.filename).name, file
        return
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content:
                yield PurePosixPath(member.name).name, content


def read_batch(blob: bytes) -> Split:
    """Decode one pickled batch, whose md5 has been checked: rows of 1024 red, 1024 green and 1024 blue values."""
    with warnings.catch_warnings():  # NumPy warns about the format of dtypes that were pickled in 2009
        warnings.simplefilter("ignore")
        batch = pickle.loads(blob, encoding="bytes")
    images = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
    return Split(torch.from_numpy(images), torch.tensor(batch[b"labels"], dtype=torch.int64))


def join(splits: list[Split]) -> Split:
    """Concatenate batches."""
    return Split(torch.cat([split.images for split in splits]), torch.cat([split.labels for split in splits]))
