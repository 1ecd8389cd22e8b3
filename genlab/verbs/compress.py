"""`genlab compress`: images into one file without loss, in about as many bits as the model says.

With report=true the same images are also compressed by the usual codecs, and a table compares all of them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from torch import Tensor

from genlab.coding.codec import BLOCK, Codec, Machine, to_bytes
from genlab.coding.container import MOST_IMAGES, Writer
from genlab.coding.opened import already, encode_block, open_codec
from genlab.core import RequestError
from genlab.measure.code_lengths import classical_lengths, information
from genlab.processes import blocks, launch
from genlab.request.compose import Request, split_hydra
from genlab.request.image_set import ImageSet, read_image_set
from genlab.request.numbers import check_at_least
from genlab.request.outputs import output
from genlab.request.progress import with_progress
from genlab.request.set_labels import labels_of
from genlab.request.tables import print_table
from genlab.system.atomic import atomically


def command(request: Request) -> None:
    """Check the request, write the file and print a line, or a table."""
    config, _ = split_hydra(request.config())
    out = output(config, "images.glz")
    check_at_least(config, "workers", 1)
    for key in ("block", "batch_size"):
        if config[key] is not None:
            check_at_least(config, key, 1)
    if (config.block or 0) > MOST_IMAGES:
        raise RequestError(f"block={config.block}: a block has at most {MOST_IMAGES:,} images")
    for key in ("portable", "verify", "report"):
        if not isinstance(config[key], bool):
            raise RequestError(f"{key}={config[key]}: expected true or false")
    launch.check_cores(config.workers, "cpu")
    settings = (config.ckpt, config.weights, list(config.trust), config.portable, config.batch_size, config.device)
    opened = open_codec(*settings)
    codec = opened.codec
    images = read_image_set("in", str(config["in"]), codec.spec, config.data, config.trust, limit=config.data.limit)
    labels = labels_of(config, codec.model, opened.run, images, "in")
    size = config.block or BLOCK[codec.kind]
    header = {
        "model": opened.fingerprint, "kind": codec.kind, "portable": config.portable, "at_once": codec.at_once,
        "spec": asdict(codec.spec), "source": images.source, "count": len(images),
        "machine": Machine.here(codec.device).as_dict(),
        "pictures": None if images.pictures is None else [asdict(picture) for picture in images.pictures],
    }  # fmt: skip

    hasher = hashlib.sha256()

    def pieces() -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(images), size):
            stop = min(start + size, len(images))
            x = images.part(start, stop)
            hasher.update(to_bytes(x, codec.spec))
            yield x, None if labels is None else labels[start:stop], config.verify

    def write(advance):  # type: ignore[no-untyped-def]
        coded, by_lzma = 0, 0
        opening, arguments = (already, (opened,)) if config.workers == 1 else (open_codec, settings)
        with atomically(out) as temporary, open(temporary, "wb") as file:
            writer = Writer(file)
            for content, coder, image_hash, count in blocks.in_order(
                opening, arguments, encode_block, pieces(), config.workers
            ):
                writer.add(content, count, coder, image_hash)
                coded, by_lzma = coded + len(content), by_lzma + (coder == "lzma")
                advance(count)
            return coded, by_lzma, writer.close(header), len(writer.blocks)

    started = time.perf_counter()
    coded, by_lzma, length, number = with_progress("compressing", len(images), write)
    seconds = time.perf_counter() - started
    pictures = (
        f"{len(images.pictures):,} pictures as {len(images):,} tiles" if images.pictures else f"{len(images):,} images"
    )
    print(
        f"{out}: {pictures} in {length:,} bytes, {8 * length / images.values:.4f} bits/dim, "
        f"{len(images) / seconds:.1f} images/s{'' if config.verify else ' (not verified)'}"
    )
    print(f"sha256 of the images: {hasher.hexdigest()}")
    if by_lzma:
        print(f"{by_lzma} of {number} blocks could not be coded by the model and were compressed by LZMA")
    if not config.portable:
        print("to decompress it takes the same kind of machine and the same version of torch (see portable=)")
    if config.report:
        _report(codec, images, labels, coded, length)


def _report(codec: Codec, images: ImageSet, labels: Tensor | None, coded: int, length: int) -> None:
    """Print the table of code lengths."""
    n, dims = len(images.pictures or images), images.values

    def measure(advance):  # type: ignore[no-untyped-def]
        nats = information(codec.model, images, labels, advance)
        return nats, list(classical_lengths(images))

    nats, classical = with_progress("measuring", len(images), measure)
    exact = codec.kind == "autoregressive"
    name = "log2 1/p(x) of the model" if exact else "bound of the model"
    rows = [(name, nats), ("coded by the model", 8.0 * coded), ("the whole file", 8.0 * length)]
    rows += [(name, 8.0 * size) for name, size in classical]
    cells = [(name, f"{bits / 8:,.0f}", f"{bits / n:,.1f}", f"{bits / dims:.4f}") for name, bits in rows]
    lines = [f"{name}: {size} bytes, {image} bits/image, {dim} bits/dim" for name, size, image, dim in cells]
    print_table(f"{n:,} images of {images.source}", ("code", "bytes", "bits/image", "bits/dim"), cells, lines)
