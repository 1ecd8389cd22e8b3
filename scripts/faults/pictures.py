"""Mutated pictures through image=, context=, known= and data=folder: each is read or refused in one sentence.

Pictures of 11 formats and many modes have bits flipped, are cut off or spliced with one another, get a wrong ending or
a header that promises another size (up to a terabyte of pixels), or are replaced by something else: text, nothing, a
folder, a symbolic link to itself. A refusal must leave nothing behind. 300 take one core 1 minute.
"""

from __future__ import annotations

import io
import random
import shutil
import struct
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
from harness import FIXTURES, TINY, Tally, call, fault, main, preload, tree, workplace
from PIL import Image

SIDE = 28  # of the models in tests/fixtures
MODES = {
    "png": ("L", "LA", "RGB", "RGBA", "P", "1", "I;16"), "jpg": ("L", "RGB", "CMYK"), "webp": ("RGB", "RGBA"),
    "bmp": ("L", "RGB", "1"), "gif": ("P", "L"), "tif": ("L", "RGB", "I;16", "F", "I", "CMYK", "LAB", "1"),
    "ppm": ("RGB",), "pgm": ("L",), "eps": ("L",), "ico": ("RGBA",), "tga": ("RGB",),
}  # fmt: skip
VERBS = ("complete image=", "complete known=", "sample context=", "data=folder")


def picture(ending: str, mode: str, size: tuple[int, int], rng: random.Random) -> bytes:
    """A file of that format with a grey ramp and a random EXIF orientation."""
    grey = (np.add.outer(np.arange(size[1]), np.arange(size[0])) * 4 % 256).astype(np.uint8)
    image = Image.fromarray(grey)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode in ("F", "I"):
        image = Image.fromarray(grey.astype(np.float32 if mode == "F" else np.int32))
    elif mode == "LAB":
        image = Image.merge("LAB", [image] * 3)
    else:
        image = image.convert(mode)
    file = io.BytesIO()
    kind = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(ending, ending.upper())
    exif = Image.Exif()
    exif[0x0112] = rng.randrange(1, 9)  # orientation
    image.save(file, kind, **({"exif": exif} if ending in ("jpg", "png", "tif", "webp") else {}))
    return file.getvalue()


def promised(content: bytes, rng: random.Random) -> bytes:
    """The file with another size in its header, and a valid check sum if there is one."""
    size = rng.choice(((0, 0), (1, 1), (27, 28), (28, 29), (10**4, 10**4), (10**6, 10**6), (2**31 - 1, 2**31 - 1)))
    if content.startswith(b"\x89PNG"):
        header = b"IHDR" + struct.pack(">II", *size) + content[24:29]
        return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    for pair in (struct.pack("<HH", SIDE, SIDE), struct.pack(">HH", SIDE, SIDE), b"%d %d" % (SIDE, SIDE)):
        if pair in content:
            words = b"%d %d" % size if b" " in pair else struct.pack("<HH", *(side % 65536 for side in size))
            return content.replace(pair, words, 1)
    return content.replace(struct.pack("<I", SIDE), struct.pack("<I", size[0]))


def mutated(content: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """(what was done, the bytes)."""
    how = rng.choice(("nothing", "bits", "bits", "cut", "cut", "spliced", "size", "size", "text", "empty", "zeros"))
    place = rng.randrange(len(content))
    if how == "bits":
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 4, 32))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return how, bytes(changed)
    if how == "zeros":
        return how, content[:place] + bytes(min(40, len(content) - place)) + content[place + 40 :]
    answers = {
        "nothing": content, "cut": content[:place], "spliced": content[:place] + other[place:], "text": b"<svg/>\n",
        "size": promised(content, rng), "empty": b"",
    }  # fmt: skip
    return how, answers[how]


def lay(path: Path, how: str, content: bytes, rng: random.Random) -> str:
    """Write the picture there, or now and then a folder or a link to itself; what was done."""
    odd = rng.random()
    if odd < 0.03:
        path.mkdir()
        return "a folder"
    if odd < 0.06:
        path.symlink_to(path.name)
        return "a link to itself"
    path.write_bytes(content)
    return how


def request(verb: str, name: str) -> list[str]:
    """The command line that uses the picture `name`."""
    if verb == "complete image=":
        ckpt = FIXTURES / "checkpoints" / "pixelcnn.ckpt"
        return ["complete", f"ckpt={ckpt}", f"image={name}", "known=top:0.9", "n=1", "out=out.png"]
    if verb == "complete known=":
        ckpt = FIXTURES / "checkpoints" / "ppca.ckpt"
        return ["complete", f"ckpt={ckpt}", "image=whole.png", f"known={name}", "n=1", "particles=2", "out=out.png"]
    if verb == "sample context=":
        ckpt = FIXTURES / "checkpoints" / "pixelcnn_half.ckpt"
        return ["sample", f"ckpt={ckpt}", f"context={name}", "n=1", "out=out.png"]
    words = ["data=folder", "data.path=pictures", "data.size=8", "data.channels=1", "hydra.run.dir=run"]
    return ["train", "trainer=smoke", *TINY, *words]


def run(tally: Tally, count: int, rng: random.Random) -> None:
    """`count` pictures. A train request stops when its data and model are made and its folder is opened."""
    preload()
    cases = [(ending, mode) for ending, modes in MODES.items() for mode in modes]
    with workplace() as folder, mock.patch("genlab.processes.training.start"):
        for number in range(count):
            verb, (ending, mode) = VERBS[number % len(VERBS)], rng.choice(cases)
            size = (SIDE // 2, SIDE) if verb == "sample context=" and rng.random() < 0.5 else (SIDE, SIDE)
            content, other = picture(ending, mode, size, rng), picture(*rng.choice(cases), size, rng)
            how, changed = mutated(content, other, rng)
            place = folder / "place"
            (place / "pictures").mkdir(parents=True)
            named = rng.choice(("png", "jpg", "tif", "webp")) if rng.random() < 0.15 else ending
            at = place / (f"pictures/odd.{named}" if verb == "data=folder" else f"odd.{named}")
            for other_name in ("whole.png", "pictures/a.png", "pictures/b.png", "pictures/c.png", "pictures/d.png"):
                (place / other_name).write_bytes(picture("png", "L", (SIDE, SIDE), random.Random(1)))
            how = lay(at, how, changed, rng)
            before = tree(place)
            outcome = call(request(verb, at.name), place)
            wrong = fault(outcome, before, tree(place))
            tally.add(f"{verb} of a {ending} in mode {mode} ({how}, named .{named})", wrong)
            shutil.rmtree(place)


if __name__ == "__main__":
    main(run, 300)
