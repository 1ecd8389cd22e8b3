"""SVHN, cropped digits: 73,257 + 26,032 house numbers, 32 x 32, RGB, 10 classes (Netzer et al. 2011).

Names, addresses and checksums are torchvision's. The digit 0 has the label 0 (it is 10 in the files). The 531,131
"extra" images are not used.

Shapes: images (N, 3, 32, 32), labels (N,).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import SVHN as Official

from genlab.data.files import File, locate
from genlab.data.source import Split, Splits

CONFIGURABLE = {"source": ("SVHN",)}


class SVHN:
    """73,257 + 26,032 photographed digits."""

    name = "svhn"
    class_names = tuple("0123456789")

    def load(self, root: Path | None) -> Splits:
        """Read `<root>/train_32x32.mat` and `<root>/test_32x32.mat`.

        Raises RequestError if they are missing and cannot be downloaded, or are damaged.
        """
        published = [Official.split_list[split] for split in ("train", "test")]
        files = [File(name, md5=md5, urls=(url,)) for url, name, md5 in published]
        train, test = map(read_mat, locate(files, root))
        return Splits(train, test, self.class_names)


def read_mat(path: Path) -> Split:
    """Read a MATLAB file with images X (32, 32, 3, N) and labels y (N, 1) in 1..10."""
    from scipy.io import loadmat  # slow to import, and no other data set needs it

    content = loadmat(path)
    images = np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1))
    return Split(torch.from_numpy(images), torch.from_numpy(content["y"].astype(np.int64).ravel() % 10))
