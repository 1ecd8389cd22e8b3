"""The file format .glz: blocks of images, then a header that describes them.

    8 bytes     MAGIC
    ...         the blocks, one after another
    ...         the header: JSON, compressed by zlib
    8 bytes     its length, little endian
    32 bytes    its SHA-256
    8 bytes     END

The header comes last, so that blocks can be written as they are made. It lists for every block its place, its number
of images, how it was coded, and two hashes: of its bytes, and of the images that they decode to. So each block can be
decoded alone, and an altered, cut or foreign file is noticed before anything is written.

A file from a stranger cannot run code or ask for much memory: the header is plain JSON of limited size.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from genlab.core import RequestError

MAGIC, END, VERSION = b"\x93GLZ\r\n\x1a\n", b"\x93GLZEND\n", 1
MOST_HEADER = 2**28  # bytes of the header after decompression
MOST_IMAGES = 2**16  # of a block
CODERS = ("model", "lzma")


@dataclass(frozen=True)
class Block:
    """Where a block is in the file, and what it holds.

    `coder`: "model", or "lzma" for a block that the model could not code. `hash`: of the bytes. `images`: of the
    integers that they decode to. Both are BLAKE2b of 8 bytes in hexadecimal digits.
    """

    offset: int
    length: int
    count: int
    coder: str
    hash: str
    images: str


def digest(content: bytes) -> str:
    """BLAKE2b of 8 bytes, in hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


class Writer:
    """Writes a container to an open file: blocks in order, then `close`."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.blocks = file, list[Block]()
        self.offset = file.write(MAGIC)

    def add(self, content: bytes, count: int, coder: str, images: str) -> None:
        """Append a block of `count` images."""
        self.blocks.append(Block(self.offset, len(content), count, coder, digest(content), images))
        self.offset += self.file.write(content)

    def close(self, header: Mapping[str, Any]) -> int:
        """Write the header. Returns the length of the file in bytes."""
        blocks = [list(asdict(block).values()) for block in self.blocks]
        text = json.dumps({**header, "version": VERSION, "blocks": blocks}, allow_nan=False, separators=(",", ":"))
        packed = zlib.compress(text.encode(), 9)
        end = len(packed).to_bytes(8, "little") + hashlib.sha256(packed).digest() + END
        return self.offset + self.file.write(packed) + self.file.write(end)


class Reader:
    """A container on disk. Raises RequestError for a file that is none, is damaged, or is of a later version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self.header = self._read_header(file)
            self.blocks = [_block(entry) for entry in self.header.pop("blocks")]
        except OSError as error:
            raise RequestError(f"in={path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise RequestError(f"in={path} is damaged: {error}") from error
        for block in self.blocks:
            if block.offset + block.length > self.size:
                raise RequestError(f"in={path} is damaged: a block lies beyond its end")

    def content(self, number: int) -> bytes:
        """The bytes of a block, checked."""
        block = self.blocks[number]
        with open(self.path, "rb") as file:
            file.seek(block.offset)
            content = file.read(block.length)
        if digest(content) != block.hash:
            raise RequestError(f"in={self.path} is damaged: block {number} has other bytes than when it was written")
        return content

    def _read_header(self, file: BinaryIO) -> dict[str, Any]:
        self.size = file.seek(0, 2)
        file.seek(0)
        if file.read(len(MAGIC)) != MAGIC:
            raise RequestError(f"in={self.path} is no .glz file of genlab compress")
        tail = 8 + 32 + len(END)
        if self.size < len(MAGIC) + tail:
            raise ValueError("its end is missing")
        file.seek(self.size - tail)
        length = int.from_bytes(file.read(8), "little")
        sha, end = file.read(32), file.read()
        if end != END or length > self.size - tail - len(MAGIC):
            raise ValueError("its end is missing")
        file.seek(self.size - tail - length)
        packed = file.read(length)
        if hashlib.sha256(packed).digest() != sha:
            raise ValueError("its header has other bytes than when it was written")
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(packed, MOST_HEADER)
        if not unpacker.eof:
            raise ValueError("its header is too long")
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        if header.pop("version") != VERSION:
            raise RequestError(f"in={self.path} is of another version of the format: decompress it with a later genlab")
        return header


def _block(entry: Any) -> Block:
    """A block of the header, checked."""
    block = Block(*entry)
    numbers = (block.offset, block.length, block.count)
    if not all(type(number) is int and number >= 0 for number in numbers) or not 1 <= block.count <= MOST_IMAGES:
        raise ValueError("a block has impossible sizes")
    if block.coder not in CODERS or not isinstance(block.hash, str) or not isinstance(block.images, str):
        raise ValueError("a block is coded in an unknown way")
    return block
