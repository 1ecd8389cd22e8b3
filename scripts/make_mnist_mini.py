"""Write genlab/data/mnist_mini/: the first 10,000 training and 2,000 test images of MNIST, in MNIST's own format.

    python scripts/make_mnist_mini.py [FOLDER]

FOLDER holds (or receives) the original files, as `data.root` does. The same bytes every time: gzip without a date.
"""

import gzip
import io
import struct
import sys
from pathlib import Path

from torch import Tensor, uint8

from genlab.data import MNIST, MNISTMini
from genlab.data.mnist import IDX_FILES


def idx(values: Tensor) -> bytes:
    """Integers in 0..255 of any shape as a gzipped IDX file."""
    header = struct.pack(f">2xBB{values.ndim}I", 8, values.ndim, *values.shape)
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=out, mtime=0) as packed:
        packed.write(header + values.to(uint8).numpy().tobytes())
    return out.getvalue()


def main() -> None:
    """Read MNIST, write the four files."""
    official = MNIST().load(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    train, test = official.train.take(slice(10_000)), official.test.take(slice(2_000))
    arrays = [train.images.squeeze(1), train.labels, test.images.squeeze(1), test.labels]
    for name, values in zip(IDX_FILES, arrays, strict=True):
        (MNISTMini.folder / name).write_bytes(idx(values))


if __name__ == "__main__":
    main()
