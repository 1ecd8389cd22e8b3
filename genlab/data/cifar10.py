"""CIFAR-10: 50,000 + 10,000 photographs, 32 x 32, RGB, 10 classes (Krizhevsky 2009).

Names and checksums are torchvision's. Either its unpacked folder `cifar-10-batches-py` is there, or the published
archive is read as it is, without unpacking. A batch is a pickle, and unpickling a stranger's file runs his code: ours
verifies the md5 of the very bytes it unpickles. Shapes: images (N, 3, 32, 32), labels (N,).
"""

from __future__ import annotations

import pickle
import tarfile
import warnings
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torchvision.datasets import CIFAR10 as Official

from genlab.data.files import File, check_md5, find, locate
from genlab.data.source import Split, Splits


class CIFAR10:
    """50,000 + 10,000 small photographs."""

    name = "cifar10"
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def load(self, root: Path | None) -> Splits:
        """Read `<root>/cifar-10-batches-py/*` or else `<root>/cifar-10-python.tar.gz`."""
        md5s = dict(Official.train_list + Official.test_list)
        paths = {name: find(File(name, folder=Official.base_folder), root) for name in md5s}
        if None in paths.values():
            archive = File(Official.filename, md5=Official.tgz_md5, urls=(Official.url,))
            blobs = read_archive(locate([archive], root)[0])
        else:
            blobs = {name: path.read_bytes() for name, path in paths.items() if path}
        for name, md5 in md5s.items():
            check_md5(blobs[name], md5, paths[name] or name)
        train = [read_batch(blobs[name]) for name, _ in Official.train_list]
        test = [read_batch(blobs[name]) for name, _ in Official.test_list]
        return Splits(join(train), join(test), self.class_names)


def read_archive(path: Path) -> dict[str, bytes]:
    """Name -> content of the files of a tar archive."""
    with tarfile.open(path) as archive:
        files = ((member, archive.extractfile(member)) for member in archive)
        return {PurePosixPath(member.name).name: file.read() for member, file in files if file}


def read_batch(blob: bytes) -> Split:
    """One pickled batch, its md5 already verified: rows of 1024 red, 1024 green, 1024 blue values."""
    with warnings.catch_warnings():  # pickled by a NumPy of 2009, whose way to write a dtype is deprecated
        warnings.simplefilter("ignore")
        batch = pickle.loads(blob, encoding="bytes")
    images = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
    return Split(torch.from_numpy(images), torch.tensor(batch[b"labels"], dtype=torch.int64))


def join(splits: list[Split]) -> Split:
    """Batches one after the other."""
    return Split(torch.cat([split.images for split in splits]), torch.cat([split.labels for split in splits]))
