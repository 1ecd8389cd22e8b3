"""`genlab compress` and `decompress`: what goes in comes out, and a file that is altered never comes out wrong."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch
from PIL import Image

from genlab import cli
from genlab.coding.container import Reader

FAST = ["trainer=smoke", "trainer.max_steps=2", "trainer.accelerator=cpu", "train.sample_every=0"]
NET = ["model=gated_pixelcnn", "model.net.width=8", "model.net.depth=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A smoke run on mnist_mini."""
    folder = tmp_path_factory.mktemp("runs") / "grey"
    assert cli.run(["train", *NET, *FAST, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """A smoke run on small pictures in colour."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
    words = [*NET, "model/head=logistic_mixture", "data=folder", f"data.path={folder}/photos", "data.size=8"]
    assert cli.run(["train", *words, *FAST, f"hydra.run.dir={folder}/run"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    """64 images in blocks of 20."""
    out = tmp_path_factory.mktemp("files") / "images.glz"
    words = ["in=data:mnist_mini/test", "data.limit=64", "block=20", f"out={out}"]
    assert cli.run(["compress", f"ckpt={run}", *words]) == 0
    return out


@pytest.fixture(scope="module")
def small(run, tmp_path_factory):
    """6 images in blocks of 2."""
    out = tmp_path_factory.mktemp("files") / "small.glz"
    assert cli.run(["compress", f"ckpt={run}", "in=data:mnist_mini/test", "data.limit=6", "block=2", f"out={out}"]) == 0
    return out


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def images(limit=64):
    """The first test images of mnist_mini."""
    from genlab.build import build_data
    from genlab.request.compose import Request

    return build_data(Request("train", [], command="").config().data).split("test").images[:limit].numpy()


def test_images_come_back(run, file, here, capsys):
    assert cli.run(["decompress", f"ckpt={run}", f"in={file}", "out=x.npy"]) == 0
    assert (np.load("x.npy") == images()).all()
    said = capsys.readouterr().out
    assert "64 images" in said
    assert f"sha256 of the images: {hashlib.sha256(images().tobytes()).hexdigest()}" in said


def test_images_come_back_as_pictures(run, file, here):
    assert cli.run(["decompress", f"ckpt={run}", f"in={file}", "out=pictures"]) == 0
    files = sorted((here / "pictures").iterdir())
    assert len(files) == 64
    assert (np.stack([np.asarray(Image.open(f)) for f in files]) == images()[:, 0]).all()


def test_a_block_is_decoded_alone(run, file, here):
    assert cli.run(["decompress", f"ckpt={run}", f"in={file}", "out=x.npy", "block=1"]) == 0
    assert (np.load("x.npy") == images()[20:40]).all()


@pytest.mark.slow
def test_two_processes_share_the_work(run, file, here):
    words = ["in=data:mnist_mini/test", "data.limit=64", "block=20", "workers=2", "out=shared.glz"]
    assert cli.run(["compress", f"ckpt={run}", *words]) == 0
    assert (here / "shared.glz").read_bytes() == file.read_bytes()


def test_pictures_of_any_size_come_back_with_their_names(colour, here, capsys):
    noise = np.random.default_rng(1)
    (here / "in").mkdir()
    pictures = {"a.png": (20, 13, 3), "b.png": (8, 8), "c.bmp": (3, 30, 3), "a.bmp": (1, 1, 3)}
    pixels = {name: noise.integers(0, 256, shape, dtype=np.uint8) for name, shape in pictures.items()}
    for name, values in pixels.items():
        Image.fromarray(values).save(here / "in" / name)
    assert cli.run(["compress", f"ckpt={colour}", "in=in", "out=x.glz", "block=4"]) == 0
    assert cli.run(["decompress", f"ckpt={colour}", "in=x.glz", "out=out"]) == 0
    assert "out: 4 pictures in" in capsys.readouterr().out  # of more tiles
    found = {path.name: np.asarray(Image.open(path)) for path in (here / "out").iterdir()}
    assert set(found) == {"a.png", "a-2.png", "b.png", "c.png"}
    assert (found["a.png"] == pixels["a.bmp"]).all()  # alphabetical order
    for name, original in (("a-2.png", "a.png"), ("b.png", "b.png"), ("c.png", "c.bmp")):
        assert np.array_equal(found[name], pixels[original])


def test_an_array_comes_back(run, here):
    np.save("in.npy", images(5)[:, 0])
    assert cli.run(["compress", f"ckpt={run}", "in=in.npy", "out=x.glz", "portable=true"]) == 0
    assert cli.run(["decompress", f"ckpt={run}", "in=x.glz", "out=out.npy"]) == 0
    assert (np.load("out.npy") == images(5)).all()


def test_the_report_compares_codecs(run, here, capsys):
    words = ["in=data:mnist_mini/test", "data.limit=8", "report=true", "verify=false"]
    assert cli.run(["compress", f"ckpt={run}", *words]) == 0
    said = capsys.readouterr().out
    for name in ("log2 1/p(x) of the model", "the whole file", "PNG, each image", "WebP, a mosaic", "xz", "zlib"):
        assert name in said


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["in=data:mnist_mini/tset"], "data:mnist_mini/test"),
        (["in=data:cifar99/test"], "cifar99"),
        (["in=nothing/*.png"], "no pictures"),
        (["in=data:mnist_mini/test", "label=3"], "no label"),
        (["in=data:mnist_mini/test", "out=x.zip"], ".glz"),
        (["in=data:mnist_mini/test", "block=0"], "block"),
        (["in=wide.npy"], "28x28"),
        (["in=colour.png"], "colours"),
        (["in=clear.png"], "transparency"),
        (["in=deep.png"], "8 bits"),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_wrong_requests_are_refused(run, here, capsys, words, part):
    np.save("wide.npy", np.zeros((2, 1, 28, 29), np.uint8))
    Image.new("RGB", (28, 28), (1, 2, 3)).save("colour.png")
    Image.new("LA", (28, 28), (1, 2)).save("clear.png")
    Image.fromarray(np.full((28, 28), 300, np.uint16)).save("deep.png")
    before = set(here.iterdir())
    assert cli.run(["compress", f"ckpt={run}", *words]) == 2
    said = capsys.readouterr().err
    assert part in said
    assert said.count("\n") == 1
    assert set(here.iterdir()) == before


def test_another_model_is_refused(colour, file, here, capsys):
    assert cli.run(["decompress", f"ckpt={colour}", f"in={file}"]) == 2
    assert "another model" in capsys.readouterr().err
    assert not any(here.iterdir())


def test_nothing_is_overwritten(run, file, here, capsys):
    (here / "images").mkdir()
    (here / "images" / "mine.txt").write_text("mine")
    np.save(here / "mine.npy", np.zeros(3))
    for out in ("images", "mine.npy"):
        assert cli.run(["decompress", f"ckpt={run}", f"in={file}", f"out={out}"]) == 2
        assert "exists already" in capsys.readouterr().err
    assert np.load(here / "mine.npy").shape == (3,)
    assert (here / "images" / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_altered_files_are_refused_or_decoded_right(run, small, here):
    """A thousand of them: bytes changed, inserted, removed, cut off, exchanged. None comes out wrong."""
    from genlab.coding.opened import decode_block, open_codec
    from genlab.core import RequestError
    from genlab.verbs.decompress import checked, described

    whole, right, rng = small.read_bytes(), torch.from_numpy(images(6)), random.Random(0)
    opened = open_codec(str(run), "ema", [], False, None, "cpu")
    refused = 0
    for number in range(1_000):
        altered = alter(bytearray(whole), rng, number % 5)
        (here / "x.glz").write_bytes(altered)
        try:
            reader = Reader(here / "x.glz")
            assert checked(reader)["model"] == opened.fingerprint
            contents = [reader.content(i) for i in range(len(reader.blocks))]
        except RequestError:
            refused += 1
            continue
        blocks = [decode_block(opened, content, *described(reader, i)) for i, content in enumerate(contents)]
        assert torch.equal(torch.cat(blocks), right)
    assert refused > 900  # the rest exchanged equal bytes


@pytest.mark.parametrize("kind", range(5))
def test_nothing_is_written_of_an_altered_file(run, file, here, capsys, kind):
    altered = alter(bytearray(file.read_bytes()), random.Random(kind), kind)
    (here / "x.glz").write_bytes(altered)
    assert cli.run(["decompress", f"ckpt={run}", "in=x.glz"]) == 2
    assert "in=x.glz" in capsys.readouterr().err
    assert {path.name for path in here.iterdir()} == {"x.glz"}


def alter(content, rng, kind):
    """One of five kinds of damage."""
    at = rng.randrange(len(content))
    if kind == 0:
        content[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del content[at : at + rng.randrange(1, 50)]
    elif kind == 2:
        content[at:at] = rng.randbytes(rng.randrange(1, 50))
    elif kind == 3:
        del content[at:]
    else:
        other = rng.randrange(len(content))
        length = rng.randrange(1, 100)
        content[at : at + length], content[other : other + length] = (
            content[other : other + length],
            content[at : at + length],
        )
    return bytes(content)


def test_the_header_is_checked_even_if_its_hash_is_right(run, file, here, capsys):
    """A file from a stranger: a valid container with an absurd header."""
    from genlab.coding.container import Writer

    reader = Reader(file)
    for change in (
        {"count": 10**9},
        {"spec": {"channels": -1}},
        {"spec": {**reader.header["spec"], "levels": 2}},
        {"at_once": 0},
        {"pictures": [{"name": 3}]},
    ):
        with open("x.glz", "wb") as out:
            writer = Writer(out)
            for i, block in enumerate(reader.blocks):
                writer.add(reader.content(i), block.count, block.coder, block.images)
            writer.close({**reader.header, **change})
        assert cli.run(["decompress", f"ckpt={run}", "in=x.glz", "out=x.npy"]) == 2
        assert "damaged" in capsys.readouterr().err
    assert {p.name for p in here.iterdir()} == {"x.glz"}


def test_a_file_of_another_kind_of_machine_says_so(run, file, here, capsys, monkeypatch):
    """If a plain file does not decode, the sentence names what differs, and nothing is written."""
    from genlab.coding import codec

    monkeypatch.setattr(
        codec.Machine, "here", classmethod(lambda cls, device: cls("9.9", "CPU", "NONE", "x", True, "0"))
    )
    monkeypatch.setattr(codec.Codec, "decode", lambda self, block, coder, n: torch.zeros(n, 1, 28, 28).long())
    assert cli.run(["decompress", f"ckpt={run}", f"in={file}", "out=x.npy"]) == 2
    said = capsys.readouterr().err
    assert "portable=true" in said
    assert "9.9" in said
    assert not any(here.iterdir())
