"""Files in pieces: a run folder that travels as files of a limited size, and CIFAR-10 as xz files."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from genlab.system.atomic import write_json

PREFIX, MANIFEST = "run.tar.", "run.json"


class Splitter(io.RawIOBase):
    """A file to write to, which is kept as PREFIX000, PREFIX001, … of at most `size` bytes each."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.bytes, self.hash, self.file = 0, hashlib.sha256(), None

    def write(self, data: Any) -> int:
        """Append to the current piece and begin new ones."""
        view = memoryview(data).cast("B")
        self.hash.update(view)
        at = 0
        while at < len(view):
            number, filled = divmod(self.bytes, self.size)
            if filled == 0:
                self.close_piece()
                self.file = open(self.folder / f"{PREFIX}{number:03d}", "wb")  # noqa: SIM115
            count = min(self.size - filled, len(view) - at)
            self.file.write(view[at : at + count])
            self.bytes, at = self.bytes + count, at + count
        return len(view)

    def close_piece(self) -> None:
        """Close the piece that is being written."""
        if self.file:
            self.file.close()


class Joined(io.RawIOBase):
    """The pieces as one file to read."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.file = list(paths), None

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the current piece or the next."""
        while True:
            if self.file is None:
                if not self.paths:
                    return 0
                self.file = open(self.paths.pop(0), "rb")  # noqa: SIM115
            if count := self.file.readinto(buffer):
                return count
            self.file.close()
            self.file = None


def pack(run: Path, out: Path, size: int) -> dict[str, Any]:
    """Write a run folder to `out` in pieces of at most `size` bytes, and run.json with its length and SHA-256."""
    for old in out.glob(f"{PREFIX}*"):
        old.unlink()
    writer = Splitter(out, size)
    with tarfile.open(fileobj=writer, mode="w|") as archive:  # type: ignore[call-overload]
        archive.add(run, arcname=run.name)
    writer.close_piece()
    pieces = len(list(out.glob(f"{PREFIX}*")))
    manifest = {"bytes": writer.bytes, "pieces": pieces, "sha256": writer.hash.hexdigest()}
    write_json(out / MANIFEST, manifest)
    return manifest


def unpack(folder: Path, target: Path) -> bool:
    """Put the run folder `target` together from its pieces in `folder`; False if there are none.

    Raises ValueError if they are not what `pack` wrote. Then nothing is written.
    """
    if not (folder / MANIFEST).exists():
        return False
    manifest = json.loads((folder / MANIFEST).read_text())
    paths = sorted(folder.glob(f"{PREFIX}*"))
    digest = hashlib.sha256()
    with io.BufferedReader(Joined(paths)) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if len(paths) != manifest["pieces"] or digest.hexdigest() != manifest["sha256"]:
        raise ValueError(
            f"{folder}: the {len(paths)} files {PREFIX}* are not the {manifest['pieces']} that {MANIFEST} describes "
            "(SHA-256); copy them again"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as place, io.BufferedReader(Joined(paths)) as file:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            archive.extractall(place, filter="data")
        os.rename(next(Path(place).iterdir()), target)
    return True


def unpack_cifar10(root: str | None) -> None:
    """Unpack the xz files of the folder cifar-10-batches-py below the data folder, where the file itself is missing."""
    for packed in sorted(Path(root, "cifar-10-batches-py").glob("*.xz")) if root else ():
        target = packed.with_suffix("")
        if not target.exists():
            partial = target.with_name(target.name + ".partial")
            partial.write_bytes(lzma.decompress(packed.read_bytes()))
            partial.rename(target)
