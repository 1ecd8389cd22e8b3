"""Read a picture file as 8-bit pixels, the same for `data=folder`, `image=`, `context=` and `known=`.

Only the formats named here are opened, because Pillow opens some others by calling other programs. A picture's size is
in its header, so its pixels are counted before any is decoded. Then every mode of Pillow is either converted correctly
or refused in one sentence:

- 1, L, LA, P, PA, RGB, RGBA, RGBX, CMYK, YCbCr: as Pillow converts them; colour profiles are not applied.
- 16-bit grey and colours: the upper byte, so 0..65535 becomes 0..255. 12-bit TIFF: the upper 8 of its 12 bits. A 16-bit
  picture without a value above 4095 probably comes from a 12-bit camera. It is read as 16 bits, nearly black, and a
  note says so.
- Floats: 0..1 becomes 0..255, rounded. Other floats have no agreed black and white and are refused. So are LAB, 32-bit
  integers and signed integers.

A picture is turned upright by its EXIF orientation. Of several frames the first is read. Colours are laid on
white, and the transparency is kept beside them, H x W.
"""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # JPEG includes the several-picture JPEG of phones
EXTENSIONS = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
MAX_PIXELS = 2**26  # 67 megapixels, 8192 x 8192: more than most cameras have, and below a gigabyte while it is read
CONVERTED = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # modes that occur in files
ADVICE = "save it as grey or RGB with 8 bits"


class Unreadable(ValueError):
    """A file cannot be used as a picture. The message says why and does not name the file."""


class TooLarge(Unreadable):
    """A picture has more pixels than allowed."""


class Picture(NamedTuple):
    """A picture.

    `colours`: mode L or RGB, upright, laid on white. `alpha`: uint8 (H, W), 255 where opaque; None if all is opaque.
    `notes`: what the user should know about how it was read; each completes the sentence "it has …".
    """

    colours: Image.Image
    alpha: np.ndarray | None
    notes: tuple[str, ...]


def read(path: Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture file. Raises Unreadable with one sentence if it cannot be used."""
    check_file(path)
    try:
        # An open file, not a path: Pillow may map a path into memory, and then a rotated TIFF becomes noise.
        with _bounded(max_pixels), open(path, "rb") as file, Image.open(file, formats=FORMATS) as opened:
            notes = _frames(opened)
            raw = str([tile[3] for tile in opened.tile])  # not available any more once the pixels are decoded
            ImageOps.exif_transpose(opened, in_place=True)  # this decodes the pixels
            picture = _on_white(_eight_bits(opened, raw))
    except Unreadable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"it has more than {max_pixels:,} pixels") from error
    except UnidentifiedImageError as error:
        raise Unreadable(f"its content is none of {', '.join(FORMATS)}") from error
    except MemoryError as error:
        raise Unreadable("it does not fit into memory") from error
    except Exception as error:  # damaged files make Pillow's decoders fail in many ways
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error
    if ";16" in raw and 0 < np.asarray(picture.colours).max() < 16:
        notes += ("16 bits but no value above 4095, nearly black: if 12 bits are meant, scale them to 16",)
    return picture._replace(notes=notes)


def check_file(path: Path) -> None:
    """Raise Unreadable unless this is a regular file. A folder cannot be read, and reading a pipe would block."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise Unreadable("it is a link to nothing" if path.is_symlink() else "it does not exist") from error
    except (OSError, ValueError) as error:
        raise Unreadable(getattr(error, "strerror", None) or str(error)) from error
    if stat.S_ISDIR(mode):
        raise Unreadable("it is a folder")
    if not stat.S_ISREG(mode):
        raise Unreadable("it is not a regular file")


def printable(path: object) -> str:
    """A path as text for any terminal or file. Bytes that are not UTF-8 become escapes."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@contextmanager
def _bounded(max_pixels: int) -> Iterator[None]:
    """Set the bound of Pillow's check of the size to ours and make it an error. Ignore Pillow's other warnings."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _frames(image: Image.Image) -> tuple[str, ...]:
    """A note if there are several frames. (The second picture in a phone's JPEG is a copy of the first.)"""
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    return ("several frames, of which the first is read",) if frames > 1 else ()


def _eight_bits(image: Image.Image, raw: str) -> Image.Image:
    """Convert a decoded picture to a mode of 8 bits. `raw`: Pillow's name for the format of the values in the file."""
    tags: Any = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    if 2 in tags.get(SAMPLEFORMAT, (1,)):
        raise Unreadable(f"its values have a sign: {ADVICE}")
    inverted = tags.get(PHOTOMETRIC_INTERPRETATION) == 0  # white is zero; Pillow corrects this up to 8 bits only
    if image.mode == "F":
        values = np.asarray(image)
        if (
            inverted or not (values >= 0).all() or not (values <= 1).all()
        ):  # NaN is refused, too: comparisons with it are false
            raise Unreadable(f"its floats are not within 0..1: {ADVICE}")
        return Image.fromarray((values * 255 + 0.5).astype(np.uint8))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image)
        eight = (values >> (4 if "I;12" in raw else 8)).astype(np.uint8)
        grey = Image.fromarray(255 - eight if inverted else eight)
        if "transparency" in image.info:
            grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
        return grey
    if image.mode not in CONVERTED:
        kind = {"LAB": "in LAB colours", "I": "whole numbers of 32 bits"}.get(image.mode, f"of the mode {image.mode}")
        raise Unreadable(f"its pixels are {kind}: {ADVICE}")
    if ";16" in raw and "transparency" in image.info:
        raise Unreadable(f"one of its 16-bit colours is transparent: {ADVICE}")
    return image


def _on_white(image: Image.Image) -> Picture:
    """Lay the colours on white. The opacity becomes `alpha`."""
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if not image.has_transparency_data:
        return Picture(image.convert(mode), None, ())
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    alpha = np.array(image.getchannel("A"))
    return Picture(Image.alpha_composite(white, image).convert(mode), None if alpha.min() == 255 else alpha, ())
