"""`genlab decompress`: the images of a .glz file, as PNG files in a new folder or as integers in a .npy file.

Every block is checked before anything is written: its bytes, and the images that it decodes to.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from genlab.coding.codec import Codec, Machine, to_bytes
from genlab.coding.container import Reader
from genlab.coding.opened import already, decode_block, open_codec
from genlab.core import ImageSpec, RequestError
from genlab.processes import blocks, launch
from genlab.request.compose import Request, split_hydra
from genlab.request.image_set import Picture, untiled
from genlab.request.numbers import check_at_least
from genlab.request.outputs import free, new_folder, refuse_taken, run_folder, writable
from genlab.request.progress import with_progress
from genlab.system.atomic import atomically


def command(request: Request) -> None:
    """Check the request, decode the blocks, write the images and print one line."""
    config, _ = split_hydra(request.config())
    check_at_least(config, "workers", 1)
    launch.check_cores(config.workers, "cpu")
    path = Path(str(config["in"])).expanduser()
    reader, out = Reader(path), _destination(config)
    header = checked(reader)
    settings = (config.ckpt, config.weights, list(config.trust), header["portable"], header["at_once"], config.device)
    opened = open_codec(*settings)
    codec = opened.codec
    if header["model"] != opened.fingerprint:
        raise RequestError(
            f"in={path} was made with another model than ckpt={config.ckpt}: their fingerprints are "
            f"{header['model'][:12]} and {opened.fingerprint[:12]}"
        )
    if ImageSpec(**header["spec"]) != codec.spec:
        raise RequestError(f"in={path} is damaged: its images are not those of the model")
    numbers = _numbers(config, len(reader.blocks))
    pictures = header["pictures"] and [Picture(**entry) for entry in header["pictures"]]
    if config.block is not None and pictures:
        pictures = None  # a block of tiles need not hold whole pictures: its tiles are written
    difference = "" if header["portable"] else _other_machine(header["machine"], codec)

    hasher = hashlib.sha256()

    def decoded(advance) -> Iterator[Tensor]:  # type: ignore[no-untyped-def]
        pieces = ((reader.content(i), *described(reader, i)) for i in numbers)
        opening, arguments = (already, (opened,)) if config.workers == 1 else (open_codec, settings)
        results = blocks.in_order(opening, arguments, decode_block, pieces, config.workers)
        for number, images in zip(numbers, results, strict=True):
            if images is None:
                raise RequestError(f"block {number} of in={path} does not decode here{difference}")
            hasher.update(to_bytes(images, codec.spec))
            advance(len(images))
            yield images

    count = sum(reader.blocks[i].count for i in numbers)
    started = time.perf_counter()
    with_progress("decompressing", count, lambda advance: _write(out, decoded(advance), codec.spec, pictures, count))
    seconds = time.perf_counter() - started
    what = f"{len(pictures):,} pictures" if pictures else f"{count:,} images"
    print(f"{out}: {what} in {seconds:.1f} s, {count / seconds:.1f} images/s")
    print(f"sha256 of the images: {hasher.hexdigest()}")


def described(reader: Reader, number: int) -> tuple[str, int, str]:
    """How a block is coded, the number of its images, and their hash."""
    block = reader.blocks[number]
    return block.coder, block.count, block.images


def checked(reader: Reader) -> dict[str, Any]:
    """The header, if its entries are of the right kinds. Raises RequestError otherwise."""
    header, kinds = reader.header, {"model": str, "portable": bool, "at_once": int, "count": int, "machine": dict}
    try:
        fits = all(type(header[key]) is kind for key, kind in kinds.items()) and header["at_once"] >= 1
        spec = ImageSpec(**header["spec"])
        pictures = [Picture(**entry) for entry in header["pictures"] or ()]
        sizes = [size for p in pictures for size in (p.height, p.width)]
        fits &= all(type(size) is int and size >= 1 for size in sizes) and all(type(p.name) is str for p in pictures)
        fits &= all(p.channels in (1, 3) for p in pictures)
        tiles = sum(int(np.prod(p.tiles(spec))) for p in pictures) if pictures else header["count"]
        fits &= tiles == header["count"] == sum(block.count for block in reader.blocks)
    except (KeyError, TypeError, AttributeError, RequestError):
        fits = False
    if not fits:
        raise RequestError(f"in={reader.path} is damaged: its header is not one of genlab compress")
    return header


def _numbers(config: DictConfig, count: int) -> list[int]:
    """The blocks to decode: `block=`, or all."""
    if config.block is None:
        return list(range(count))
    if type(config.block) is not int or not 0 <= config.block < count:
        raise RequestError(f"block={config.block}: the file has the blocks 0 to {count - 1}")
    return [config.block]


def _other_machine(made_on: dict[str, Any], codec: Codec) -> str:
    """How this machine differs from the one that the file was made on, for a message."""
    here = Machine.here(codec.device).as_dict()
    different = [
        f"{key} {made_on.get(key)!r}, here {value!r}" for key, value in here.items() if made_on.get(key) != value
    ]
    if not different:
        return ", although it was made on such a machine"
    return f": it was made with {'; '.join(different)}; files of compress portable=true decode on any machine"


def _destination(config: DictConfig) -> Path:
    """The .npy file or the folder that `out` names, or a folder in that of the run. A file must be new, and a folder
    new or empty.
    """
    if config.out is None:
        return new_folder("out", str(free(run_folder(config.ckpt) / "images", [""], overwrite=False)))
    if str(config.out).endswith(".npy"):
        refuse_taken([Path(str(config.out)).expanduser()], overwrite=False)
        return writable("out", config.out, ".npy")
    return new_folder("out", config.out)


def _write(out: Path, decoded: Iterator[Tensor], spec: ImageSpec, pictures: list[Picture] | None, count: int) -> None:
    """Write all images, or nothing."""
    whole = _pictures(decoded, pictures, spec) if pictures else (image for part in decoded for image in part)
    if out.suffix == ".npy":
        sizes = {(p.channels, p.height, p.width) for p in pictures or ()} or {spec.shape}
        if len(sizes) > 1:
            raise RequestError(f"out={out}: the pictures have different sizes; give a folder")
        dtype = np.uint8 if spec.levels <= 256 else np.int32
        with atomically(out) as temporary:
            shape = (len(pictures) if pictures else count, *sizes.pop())
            array = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
            for i, image in enumerate(whole):
                array[i] = image.numpy()
            array.flush()
        return
    if spec.channels not in (1, 3):
        raise RequestError(f"out={out}: images of {spec.channels} channels are no pictures; give a .npy file")
    names = _file_names([p.name for p in pictures]) if pictures else (f"{i:05}.png" for i in range(count))
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}.", dir=out.parent))
    try:
        for name, image in zip(names, whole, strict=True):
            grey = image.long() * 255 // (spec.levels - 1) if spec.levels < 256 else image
            pixels = grey.to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy()
            Image.fromarray(pixels).save(folder / name)
        folder.chmod(0o777 & ~_umask())
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _pictures(decoded: Iterator[Tensor], pictures: list[Picture], spec: ImageSpec) -> Iterator[Tensor]:
    """Put the tiles of every picture together: (C, h, w) each."""
    waiting: list[Tensor] = []
    for picture in pictures:
        needed = int(np.prod(picture.tiles(spec)))
        while sum(map(len, waiting)) < needed:
            waiting.append(next(decoded))
        tiles = torch.cat(waiting)
        yield untiled(tiles[:needed], picture, spec)
        waiting = [tiles[needed:]] if len(tiles) > needed else []


def _file_names(names: list[str]) -> list[str]:
    """A PNG file name for every picture: safe, and no two that differ only in case."""
    taken: set[str] = set()
    found = []
    for name in names:
        stem = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in Path(name).stem)[:100]
        stem = stem.lstrip(".") or "picture"
        number, candidate = 1, stem
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{stem}-{number}"
        taken.add(candidate.casefold())
        found.append(f"{candidate}.png")
    return found


def _umask() -> int:

    mask = os.umask(0)
    os.umask(mask)
    return mask
