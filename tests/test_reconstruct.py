"""`genlab reconstruct`: the order of the images in its grid, and the requests that it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import genlab
from genlab import cli
from genlab.codes import Masking

FAST = ["trainer=smoke", "trainer.max_steps=2", "trainer.accelerator=cpu"]
MLP = ["model.latent_dim=8", "model.encoder.hidden=[]", "model.decoder.hidden=[]", *FAST]
FIRST = ["split=valid", "device=cpu"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A smoke run of an autoencoder."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    assert cli.run(["train", "model=bottleneck_ae", "train.sample_every=0", *MLP, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def denoising(tmp_path_factory):
    """A smoke run of a denoising autoencoder with masking noise."""
    folder = tmp_path_factory.mktemp("runs") / "denoising"
    words = ["model=denoising_ae", "model/corruption=masking", "train.sample_every=2"]
    assert cli.run(["train", *words, *MLP, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiles(path, count):
    """The first `count` 28 x 28 images of a grid, row by row."""
    pixels = np.asarray(Image.open(path))[::2, ::2]  # the grid shows them twice as large
    columns = pixels.shape[1] // 30
    at = [(2 + i // columns * 30, 2 + i % columns * 30) for i in range(count)]  # 2 pixels lie between images
    return np.stack([pixels[row : row + 28, column : column + 28] for row, column in at])


def first(n, split="valid"):
    """Images of the data that the runs were trained on."""
    from genlab.build import build_data
    from genlab.request.compose import Request

    return build_data(Request("train", ["data.limit=64"], command="").config().data).first(split, n).images


@pytest.mark.slow
def test_an_image_stands_before_its_reconstruction(plain, here):
    assert cli.run(["reconstruct", f"ckpt={plain}", "out=reconstructions.png", "n=5", *FIRST]) == 0
    grid, x = tiles(here / "reconstructions.png", 10), first(5)
    reconstructions = genlab.load(plain).reconstruct(x)
    assert (grid[::2] == x[:, 0].numpy()).all()
    assert (grid[1::2] == reconstructions[:, 0].numpy()).all()
    saved = np.load(here / "reconstructions.npy")
    assert saved.dtype == np.uint8
    assert (saved == reconstructions.numpy()).all()
    assert {path.name for path in here.iterdir()} == {"reconstructions.png", "reconstructions.npy"}


@pytest.mark.slow
def test_a_denoising_model_shows_clean_corrupted_denoised(denoising, here, capsys):
    assert cli.run(["reconstruct", f"ckpt={denoising}", "n=3", "seed=4", "out=a.png", *FIRST]) == 0
    assert "clean, corrupted, denoised" in capsys.readouterr().out
    grid, x, model = tiles(here / "a.png", 9), first(3), genlab.load(denoising)
    torch.manual_seed(4)
    corrupted, repaired = model.repair(x)
    assert (grid[0::3] == x[:, 0].numpy()).all()
    assert (grid[1::3] == corrupted[:, 0].numpy()).all()
    assert (grid[2::3] == repaired[:, 0].numpy()).all()
    assert (np.load(here / "a.npy") == repaired.numpy()).all()


def test_repair_reconstructs_the_corrupted_copies(denoising):
    model, x = genlab.load(denoising), first(4)
    assert isinstance(model.corruption, Masking)
    torch.manual_seed(1)
    corrupted, repaired = model.repair(x)
    assert ((corrupted == x) | (corrupted == 0)).all()
    assert (corrupted != x).any()
    # masking leaves integers, so the corrupted copies can go in again as images
    assert torch.equal(repaired, model.reconstruct(corrupted))
    assert not torch.equal(repaired, model.reconstruct(x))


@pytest.mark.slow
def test_the_seed_sets_the_noise_and_corrupted_false_uses_clean_images(denoising, here):
    for name, words in {"a": ["seed=1"], "b": ["seed=1"], "c": ["seed=2"], "d": ["corrupted=false"]}.items():
        assert cli.run(["reconstruct", f"ckpt={denoising}", "n=2", f"out={name}.png", *words, *FIRST]) == 0
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    assert (here / "a.npy").read_bytes() == (here / "b.npy").read_bytes()
    assert (here / "a.png").read_bytes() != (here / "c.png").read_bytes()
    x = first(2)
    assert (np.load(here / "d.npy") == genlab.load(denoising).reconstruct(x).numpy()).all()
    assert (tiles(here / "d.png", 4)[::2] == x[:, 0].numpy()).all()


@pytest.mark.slow
def test_the_users_own_picture(plain, here):
    x = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(x).save("mine.png")
    assert cli.run(["reconstruct", f"ckpt={plain}", "image=mine.png", "out=out.png"]) == 0
    assert (tiles(here / "out.png", 2)[0] == x).all()
    assert np.load(here / "out.npy").shape == (1, 1, 28, 28)


def test_training_writes_grids_of_reconstructions(denoising):
    grid, x = tiles(denoising / "reconstructions" / "step=000002.png", 12), first(4)
    assert (grid[0::3] == x[:, 0].numpy()).all()
    assert (grid[1::3] != x[:, 0].numpy()).any()


WRONG = [
    (["n=101"], "has 100 images"),
    (["split=vlid"], "did you mean 'valid'"),
    (["out=x.jpeg"], ".png"),
    (["out=nowhere/x.png"], "does not exist"),
    (["corrupted=maybe"], "true, false or null"),
    (["corrupted=true"], "trained on clean images"),
    (["image=half.png"], "whole image"),
    (["image=colour.png"], "grey"),
    (["image=tall.png"], "40x28"),
    (["data.path=here"], "data.root"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "answer"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_wrong_requests_get_one_sentence_and_leave_nothing(words, answer, plain, here, capsys):
    Image.fromarray(np.zeros((14, 28), np.uint8)).save("half.png")
    Image.fromarray(np.zeros((40, 28), np.uint8)).save("tall.png")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (28, 28, 3), dtype=np.uint8)).save("colour.png")
    before = sorted(here.iterdir())
    assert cli.run(["reconstruct", f"ckpt={plain}", *words]) == 2
    err = capsys.readouterr().err
    assert answer in err
    assert err.count("\n") == 1
    assert sorted(here.iterdir()) == before


@pytest.mark.slow
def test_models_without_a_code_are_refused(here, capsys):
    assert cli.run(["reconstruct", f"ckpt={Path(__file__).parent / 'fixtures' / 'checkpoints' / 'pixelcnn.ckpt'}"]) == 2
    assert "model=pixelcnn cannot reconstruct images" in capsys.readouterr().err
    assert not list(here.iterdir())
