"""The reader of pictures: every mode is read correctly or refused, by data=folder, image=, context= and known=."""

from __future__ import annotations

import os
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from genlab.core import ImageSpec, RequestError
from genlab.data import Folder, reader
from genlab.data.folder import read_image
from genlab.data.reader import Unreadable, read
from genlab.request.masks import known_mask
from genlab.request.pictures import context_image, partial_image, read_picture

H, W = 6, 6
RAMP = np.linspace(0, 255, H * W).astype(np.uint8).reshape(H, W)
COLOURS = np.random.RandomState(0).randint(0, 256, (H, W, 3)).astype(np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows, *extra):
    """A PNG file, chunk by chunk."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sixteen(values, colour=0, *extra):
    """A PNG of 16-bit values (H, W[, C])."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, colour, rows, *extra)


def tiff(values, bits, sample_format=1, white_is_zero=False):
    """A little-endian grey TIFF of one strip whose bytes are `values`."""
    tags = [(256, 3, W), (257, 3, H), (258, 3, bits), (259, 3, 1), (262, 3, 0 if white_is_zero else 1)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 3, H), (279, 4, len(values)), (339, 3, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + struct.pack("<H", len(tags)) + entries + bytes(4)


def twelve_bits(values):
    """12-bit values, two of them in three bytes, a row at a time."""
    flat = values.reshape(-1, 2).astype(int)
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in flat)


def saved(mode, source, **options):
    return lambda path: Image.fromarray(source).convert(mode).save(path, **options)


def written(content):
    return lambda path: path.write_bytes(content)


WIDE = (RAMP.astype(np.uint16) << 8) + 37
GREYISH = {
    "L.png": (saved("L", RAMP), RAMP),
    "L.bmp": (saved("L", RAMP), RAMP),
    "L.gif": (saved("L", RAMP), RAMP),
    "L.tiff": (saved("L", RAMP), RAMP),
    "L.pgm": (saved("L", RAMP), RAMP),
    "1.png": (saved("1", (RAMP > 99) * np.uint8(255)), (RAMP > 99) * np.uint8(255)),
    "1.tif": (saved("1", (RAMP > 99) * np.uint8(255)), (RAMP > 99) * np.uint8(255)),
    "LA.png": (saved("LA", RAMP), RAMP),
    "16.png": (written(sixteen(WIDE)), RAMP),
    "16.pgm": (written(b"P5 6 6 65535\n" + WIDE.astype(">u2").tobytes()), RAMP),
    "16 with 12 bits of range.pgm": (written(b"P5 6 6 4095\n" + (WIDE >> 4).astype(">u2").tobytes()), RAMP),
    "16.tif": (written(tiff(WIDE.astype("<u2").tobytes(), 16)), RAMP),
    "16B.tif": (lambda path: Image.frombytes("I;16B", (W, H), WIDE.astype(">u2").tobytes()).save(path), RAMP),
    "16 white is zero.tif": (written(tiff((65535 - WIDE).astype("<u2").tobytes(), 16, 1, True)), RAMP),
    "12.tif": (written(tiff(twelve_bits(WIDE >> 4), 12)), RAMP),
    "float.tif": (lambda path: Image.fromarray(RAMP.astype(np.float32) / 255).save(path), RAMP),
}
COLOURFUL = {
    "RGB.png": (saved("RGB", COLOURS), COLOURS),
    "RGB.webp": (saved("RGB", COLOURS, lossless=True), COLOURS),
    "RGB.tiff": (saved("RGB", COLOURS), COLOURS),
    "RGB.bmp": (saved("RGB", COLOURS), COLOURS),
    "RGB.ppm": (saved("RGB", COLOURS), COLOURS),
    "RGBA.png": (saved("RGBA", COLOURS), COLOURS),
    "RGBX.tif": (saved("RGBX", COLOURS), COLOURS),
    "P.png": (lambda path: Image.fromarray(COLOURS).quantize(64).save(path), None),
    "P.gif": (lambda path: Image.fromarray(COLOURS).quantize(64).save(path), None),
    "CMYK.tif": (saved("CMYK", COLOURS), COLOURS),
    "CMYK.jpg": (saved("CMYK", COLOURS, quality=95), None),
    "YCbCr.jpg": (saved("RGB", COLOURS, quality=95), None),
    "YCbCr.jfif": (saved("RGB", COLOURS, format="JPEG"), None),
    "16.png": (written(sixteen((COLOURS.astype(np.uint16) << 8) + 9, 2)), COLOURS),
}
REFUSED = {
    "LAB.tif": (lambda path: Image.frombytes("LAB", (W, H), COLOURS.tobytes()).save(path), "LAB"),
    "I.tif": (lambda path: Image.fromarray(RAMP.astype(np.int32) << 20).save(path), "32 bits|sign"),
    "unsigned 32.tif": (written(tiff(WIDE.astype("<u4").tobytes(), 32)), "32 bits"),
    "signed 16.tif": (written(tiff(WIDE.astype("<i2").tobytes(), 16, 2)), "sign"),
    "float.tif": (lambda path: Image.fromarray(RAMP.astype(np.float32)).save(path), "0..1"),
    "nan.tif": (lambda path: Image.fromarray(RAMP.astype(np.float32) * np.nan).save(path), "0..1"),
    "doubles.tif": (written(tiff((RAMP / 255).tobytes(), 64, 3)), "none of PNG"),
    "a 16-bit colour transparent.png": (
        written(sixteen(COLOURS.astype(np.uint16), 2, chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)))),
        "transparent",
    ),
    "truncated.png": (written(sixteen(WIDE)[:80]), "."),
    "eps.png": (lambda path: Image.fromarray(COLOURS).save(path, format="EPS"), "none of PNG"),
    "text.png": (written(b"not a picture"), "none of PNG"),
    "empty.png": (written(b""), "none of PNG"),
    "folder.png": (lambda path: path.mkdir(), "folder"),
    "pipe.png": (os.mkfifo, "regular"),
    "link.png": (lambda path: path.symlink_to("nothing"), "link to nothing"),
}


@pytest.mark.parametrize("name", [*GREYISH, *COLOURFUL])
def test_every_mode_is_right_and_all_readers_agree(tmp_path, name):
    path = tmp_path / name
    for table, channels in ((GREYISH, 1), (COLOURFUL, 3)):
        if name not in table:
            continue
        make, expected = table[name]
        make(path)
        pixels = np.array(read(path).colours).reshape(H, W, -1)
        if expected is not None:
            assert (pixels == expected.reshape(H, W, -1)).all()
        spec = ImageSpec(channels, H, W)
        wanted = torch.from_numpy(pixels[..., :channels]).permute(2, 0, 1)
        image, known = partial_image(path, spec)
        assert torch.equal(image, wanted.long())
        assert known.all()
        assert torch.equal(context_image(path, spec, spec)[0], wanted.long())
        if channels == 1 and expected.max() > 1:
            assert torch.equal(known_mask(str(path), spec, torch.Generator()), wanted[0] >= 128)
        of_folder, _ = read_image(path, H, channels)
        assert np.array_equal(of_folder.transpose(2, 0, 1), wanted)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_right_is_one_sentence_from_every_reader(tmp_path, name):
    make, message = REFUSED[name]
    make(tmp_path / name)
    spec = ImageSpec(1, H, W)
    with pytest.raises(RequestError, match=message) as error:
        partial_image(tmp_path / name, spec)
    assert "\n" not in str(error.value)
    with pytest.raises(RequestError, match=message):
        context_image(tmp_path / name, spec, spec)
    with pytest.raises(RequestError, match=message):
        known_mask(str(tmp_path / name), spec, torch.Generator())
    with pytest.raises(Unreadable, match=message):
        read_image(tmp_path / name, 4, 1)


def test_only_the_documented_formats_are_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("another program"))
    opened, really = [], Image.open
    monkeypatch.setattr(
        reader.Image, "open", lambda file, formats: opened.append(formats) or really(file, "r", formats)
    )
    for name in ("x.eps", "x.png"):
        Image.fromarray(COLOURS).save(tmp_path / name, format="EPS")
        with pytest.raises(Unreadable, match="none of PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM"):
            read(tmp_path / name)
    assert opened == 2 * [("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_picture_is_turned_upright(tmp_path, orientation, suffix):
    if suffix == "webp" and not features.check("webp"):
        pytest.skip("no WebP")
    exif = Image.Exif()
    exif[274] = orientation
    plain = np.zeros((8, 16), np.uint8)
    plain[:4, :8] = 255
    options = {"quality": 100} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(plain).save(tmp_path / f"x.{suffix}", exif=exif, **options)
    turned = [plain, plain[:, ::-1], plain[::-1, ::-1], plain[::-1], plain.T, plain.T[:, ::-1]]
    turned += [plain.T[::-1, ::-1], plain.T[::-1]]
    upright = read_picture(tmp_path / f"x.{suffix}")[0][0].numpy()
    assert np.array_equal(upright > 128, turned[orientation - 1] > 128)


def test_twelve_bits_in_sixteen_and_several_frames_are_said(tmp_path, capsys):
    (tmp_path / "dark.png").write_bytes(sixteen(WIDE >> 4))
    partial_image(tmp_path / "dark.png", ImageSpec(1, H, W))
    assert "4095" in capsys.readouterr().err
    (tmp_path / "colours.png").write_bytes(sixteen(COLOURS.astype(np.uint16) << 4, 2))
    partial_image(tmp_path / "colours.png", ImageSpec(3, H, W))
    assert "4095" in capsys.readouterr().err
    frames = [Image.fromarray(np.full((H, W), value, np.uint8)) for value in (10, 200)]
    for name in ("a.gif", "a.tif", "a.png", "a.webp"):
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], **{"lossless": True} if "w" in name else {}
        )
        image, _ = partial_image(tmp_path / name, ImageSpec(1, H, W))
        assert (image == 10).all()
        assert "first" in capsys.readouterr().err
    for name in ("16.png", "L.png"):
        GREYISH[name][0](tmp_path / name)
        partial_image(tmp_path / name, ImageSpec(1, H, W))
        assert capsys.readouterr().err == ""


def test_transparency_of_every_kind(tmp_path):
    hole = np.full((H, W), 255, np.uint8)
    hole[1, 2:] = 0
    for name in ("RGBA", "LA"):
        picture = Image.fromarray(COLOURS).convert(name)
        picture.putalpha(Image.fromarray(hole))
        picture.save(tmp_path / f"{name}.png")
    palette = Image.fromarray((hole == 0).astype(np.uint8), "L").convert("P")
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.save(tmp_path / "P.png", transparency=1)
    palette.save(tmp_path / "P.gif", transparency=1)
    palette.save(tmp_path / "bytes.png", transparency=b"\xff\x00")
    Image.fromarray(np.where(hole == 0, 77, RAMP // 4)).save(tmp_path / "L.png", transparency=77)
    (tmp_path / "16.png").write_bytes(
        sixteen(np.where(hole == 0, 0x8123, 0x8124), 0, chunk(b"tRNS", struct.pack(">H", 0x8123)))
    )
    for path in tmp_path.iterdir():
        colours, opaque = read_picture(path)
        assert torch.equal(opaque, torch.from_numpy(hole > 0)), path
        assert (colours[:, ~opaque] == 255).all(), path  # laid on white
    assert np.array_equal(read_picture(tmp_path / "RGBA.png")[0][:, opaque].T, COLOURS[hole > 0])
    assert (read_picture(tmp_path / "16.png")[0][:, opaque] == 0x81).all()


def test_nearly_opaque_is_known_and_a_mask_may_be_of_0_and_1_or_of_alpha(tmp_path):
    spec, path = ImageSpec(1, H, W), tmp_path / "x.png"
    picture = Image.fromarray(RAMP)
    picture.putalpha(254)
    picture.save(path)
    image, known = partial_image(path, spec)
    assert known.all()
    assert (image[0] - torch.from_numpy(RAMP.astype(int))).abs().max() <= 1
    wanted = torch.from_numpy(RAMP > 99)
    masks = {
        "0 and 1": Image.fromarray((RAMP > 99).astype(np.uint8)),
        "0 and 255": Image.fromarray((RAMP > 99) * np.uint8(255)),
        "1 bit": Image.fromarray(RAMP > 99),
        "floats": Image.fromarray((RAMP > 99).astype(np.float32)),
        "white where opaque": Image.merge(
            "LA", [Image.new("L", (W, H), 255), Image.fromarray((RAMP > 99) * np.uint8(255))]
        ),
        "black where opaque": Image.merge(
            "LA", [Image.new("L", (W, H), 0), Image.fromarray((RAMP > 99) * np.uint8(255))]
        ),
    }
    for name, mask in masks.items():
        file = tmp_path / ("m.tif" if name == "floats" else "m.png")
        mask.save(file)
        assert torch.equal(known_mask(str(file), spec, torch.Generator()), wanted), name
    both = Image.merge(
        "LA", [Image.fromarray((RAMP > 50) * np.uint8(255)), Image.fromarray((RAMP <= 99) * np.uint8(255))]
    )
    both.save(path)
    known = known_mask(str(path), spec, torch.Generator())
    assert torch.equal(known, torch.from_numpy((RAMP > 50) & (RAMP <= 99)))
    for nothing in (Image.new("L", (W, H), 0), Image.new("LA", (W, H), (255, 0))):
        nothing.save(path)
        assert not known_mask(str(path), spec, torch.Generator()).any()


def bomb(side=13_000):
    """A picture of side x side pixels in a few kilobytes; its rows are never unpacked."""
    return png(side, side, 1, 0, bytes(side * (side // 8 + 1)))


def test_pixels_are_counted_before_any_is_decoded(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(bomb())
    assert (tmp_path / "bomb.png").stat().st_size < 25_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(RequestError, match="67,108,864 pixels"):
        partial_image(tmp_path / "bomb.png", ImageSpec(1, 8, 8))
    with pytest.raises(RequestError, match=r"67,108,864 pixels.*data.max_pixels="):
        Folder(tmp_path, size=8, channels=1, skip_bad=False).load(None)
    assert before == Image.MAX_IMAGE_PIXELS


def test_max_pixels_lifts_and_lowers_the_bound(tmp_path):
    for number in range(3):
        Image.fromarray(np.full((30, 30), number, np.uint8)).save(tmp_path / f"{number}.png")
    with pytest.raises(RequestError, match="more than 899 pixels"):
        Folder(tmp_path, size=8, channels=1, skip_bad=False, max_pixels=899).load(None)
    for most in (900, 10**12):
        assert len(Folder(tmp_path, size=8, channels=1, skip_bad=False, max_pixels=most).load(None).test.labels) == 1
    with pytest.raises(RequestError, match=r"data.max_pixels=0"):
        Folder(tmp_path, size=8, channels=1, skip_bad=False, max_pixels=0)


def test_a_bomb_of_text_is_refused(tmp_path):
    text = zlib.compress(bytes(30_000_000), 9)
    content = png(4, 4, 8, 0, bytes(20), chunk(b"zTXt", b"k\0\0" + text), chunk(b"iCCP", b"k\0\0" + text))
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(RequestError, match=r"x.png is not a readable picture"):
        partial_image(tmp_path / "x.png", ImageSpec(1, 4, 4))


def test_a_picture_of_any_bytes_is_read_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("genlab.request.pictures.read", partial(read, max_pixels=1_000_000))  # quicker
    random = np.random.RandomState(0)
    sources = []
    for name in ("x.png", "x.jpg", "x.gif", "x.bmp", "x.tif", "x.webp", "x.ppm", "p.png"):
        picture = Image.fromarray(COLOURS)
        (picture.quantize(8) if name[0] == "p" else picture).save(tmp_path / name)
        sources.append((tmp_path / name).read_bytes())
    sources += [sixteen(WIDE), tiff(WIDE.astype("<u2").tobytes(), 16)]
    read_whole = 0
    for number in range(300):
        content = bytearray(sources[number % len(sources)])
        for _ in range(random.randint(1, 8)):
            content[random.randint(len(content))] = random.randint(256)
        if random.rand() < 0.2:
            content = content[: random.randint(len(content))]
        path = tmp_path / "mutated.png"
        path.write_bytes(content)
        try:
            pixels, opaque = read_picture(path)
        except RequestError:
            continue
        read_whole += 1
        assert pixels.shape[1:] == opaque.shape
    assert 0 < read_whole < 300


def test_names_that_are_not_utf_8_and_paths_that_are_odd(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    Image.fromarray(RAMP).save(tmp_path / "plain.png")
    for odd in (name, "${seed}.png", "back\\slash\\.png", "a b=c,d.png"):
        (tmp_path / odd).write_bytes((tmp_path / "plain.png").read_bytes())
        assert partial_image(tmp_path / odd, ImageSpec(1, H, W))[1].all()
        assert known_mask(str(tmp_path / odd), ImageSpec(1, H, W), torch.Generator()).any()
    with pytest.raises(RequestError, match="home"):
        partial_image(Path("~nobody-of-that-name/x.png"), ImageSpec(1, H, W))
    with pytest.raises(RequestError, match="too long"):
        partial_image(tmp_path / ("x" * 300 + ".png"), ImageSpec(1, H, W))
