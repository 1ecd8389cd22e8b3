"""Chains of a denoiser: what they settle to on Gaussian data, in closed form; and the verbs that use them.

Data N(m, S), corruption sigma: r(y) = m + S (S + sigma^2)^-1 (y - m), and x given y has covariance
sigma^2 S (S + sigma^2)^-1.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import genlab
from genlab import cli
from genlab.core import Completer, RequestError, Sampler
from genlab.models.chain_sampler import ChainSampler
from genlab.models.chains import STEP, denoising_langevin, walkback_chain

CHAINS = 20000
SIGMA = 0.5
MEAN = torch.tensor([0.5, -0.2], dtype=torch.double)
COV = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.double)
GAIN = COV @ (COV + SIGMA**2 * torch.eye(2)).inverse()


def as_images(v):
    return v.view(len(v), 1, 1, 2)


def denoise(y):
    return as_images(MEAN + (y.flatten(1) - MEAN) @ GAIN.T)


def corrupt(y, generator):
    return y + SIGMA * torch.randn(y.shape, dtype=y.dtype, generator=generator)


def renew(y, generator):
    noise = torch.randn(len(y), 2, dtype=y.dtype, generator=generator) @ torch.linalg.cholesky(SIGMA**2 * GAIN).T
    return denoise(y) + as_images(noise)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def walked(renew, steps=100, x=None, known=None):
    generator = seeded()
    x = torch.zeros(CHAINS, 1, 1, 2, dtype=torch.double) if x is None else x
    return walkback_chain(
        x, corrupt=lambda y: corrupt(y, generator), renew=lambda y: renew(y, generator), steps=steps, known=known
    ).flatten(1)


def test_the_walk_settles_to_the_data_where_it_draws():
    x = walked(renew)
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), COV, rtol=0, atol=0.03)


def test_the_walk_varies_too_little_where_it_takes_the_mean():
    """V = A (V + sigma^2) A has V = S A (1 + A)^-1: here 0.46 of the largest variance is left, 0.22 of the smallest."""
    x = walked(lambda y, generator: denoise(y))
    expected = COV @ GAIN @ (torch.eye(2) + GAIN).inverse()
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("renewed", [renew, lambda y, generator: denoise(y)], ids=["draws", "means"])
def test_clamped_completion_has_the_mean_of_the_corrupted_density(renewed):
    """E[y_2 | y_1 = x_1]: the known value is read through its noise, so it is not E[x_2 | x_1]."""
    given = torch.full((CHAINS, 1, 1, 2), 2.0, dtype=torch.double)
    known = torch.tensor([True, False]).view(1, 1, 1, 2)
    x = walked(renewed, x=given, known=known)
    assert (x[:, 0] == 2).all()
    noisy = MEAN[1] + COV[1, 0] / (COV[0, 0] + SIGMA**2) * (2 - MEAN[0])
    right = MEAN[1] + COV[1, 0] / COV[0, 0] * (2 - MEAN[0])
    assert x[:, 1].mean().item() == pytest.approx(noisy.item(), abs=0.02)
    assert abs(right - noisy) > 0.1


def test_langevin_settles_to_the_smoothed_density_but_for_its_steps():
    """Along an eigenvector of T = S + sigma^2 the variance is T / (1 - e / (4 T)), e the step."""
    y = denoising_langevin(
        torch.zeros(CHAINS, 1, 1, 2, dtype=torch.double), denoise=denoise, sigma=SIGMA, steps=300, generator=seeded()
    ).flatten(1)
    smooth = COV + SIGMA**2 * torch.eye(2)
    values, vectors = torch.linalg.eigh(smooth)
    bias = 1 / (1 - STEP * SIGMA**2 / (4 * values))
    assert (bias <= 1 / (1 - STEP / 4)).all()
    torch.testing.assert_close(y.mean(0), MEAN, rtol=0, atol=0.04)
    torch.testing.assert_close(y.T.cov(), vectors * values * bias @ vectors.T, rtol=0, atol=0.04)


def test_a_langevin_step_too_large_shows_its_bias(monkeypatch):
    """One dimension without data, S = 0, and steps of 2 sigma^2: twice the variance, as the formula says."""
    monkeypatch.setattr("genlab.models.chains.STEP", 2.0)
    y = denoising_langevin(
        torch.zeros(CHAINS, 1, 1, 1), denoise=torch.zeros_like, sigma=SIGMA, steps=50, generator=seeded()
    )  # fmt: skip
    assert y.var().item() == pytest.approx(2 * SIGMA**2, rel=0.05)


TINY = ["trainer=smoke", "trainer.accelerator=cpu", "model.latent_dim=6", "train.samples=2"]
TINY += ["model.encoder.hidden=[8]", "model.decoder.hidden=[8]"]
RUNS = {
    "gaussian": ["model=denoising_ae"],
    "masking": ["model=denoising_ae", "model/corruption=masking", "model/head=logistic", "model.features=3"],
    "clean": ["model=bottleneck_ae"],
    "sparse": ["model=sparse_ae", "model.code.k=2", "model/corruption=salt_pepper"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Smoke runs by name, and a PixelCNN that was trained before. One draws its pictures at the end, as users' do."""
    folder = tmp_path_factory.mktemp("runs")
    for name, words in RUNS.items():
        with pytest.MonkeyPatch.context() as patch:
            if name != "gaussian":
                patch.setattr("genlab.processes.training.draw_pictures", lambda *_, **__: None)
            assert cli.run(["train", *words, *TINY, f"hydra.run.dir={folder / name}"]) == 0
    checkpoints = folder / "pixelcnn" / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "fixtures" / "checkpoints" / "pixelcnn.ckpt", checkpoints / "best.ckpt")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a picture."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)).save("whole.png")
    return tmp_path


WAYS = [
    ("clean", ["code=gaussian"], "a Gaussian fitted to those of 100 training images"),
    ("clean", ["code=gaussian", "temperature=0.5"], "rounded"),
    ("clean", ["code=gmm", "components=3"], "3 Gaussians"),
    ("masking", ["code=gaussian"], "p(x | code)"),
    ("sparse", ["code=gmm", "components=2"], "2 largest units set to 0; 33% of the units on, 33% in training images"),
    ("gaussian", ["chain=walkback", "steps=3"], "walk-back chains of 3 steps from noise"),
    ("masking", ["chain=walkback", "steps=3"], "draw a clean image from p(x | corrupted)"),
    ("gaussian", ["chain=langevin", "steps=3"], "3 Langevin steps"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words", "says"), WAYS, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_every_way_draws_images_says_what_it_is_and_repeats_them(name, words, says, runs, here, capsys):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert (
            cli.run(["sample", f"ckpt={runs / name}", "n=3", f"seed={seed}", f"out={out}.png", "batch_size=2", *words])
            == 0
        )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(says in line for line in lines)
    a, b, c = (np.load(here / f"{out}.npy") for out in "abc")
    assert a.shape == (3, 1, 28, 28)
    assert a.dtype == np.uint8
    assert (a == b).all()
    assert (a != c).any()
    assert len({image.tobytes() for image in a}) == 3
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian", "masking", "sparse"])
@pytest.mark.parametrize("known", ["top:0.5", "random:0.3"])
def test_completion_keeps_what_is_known_and_says_that_it_is_approximate(name, known, runs, here, capsys):
    Image.fromarray(np.where(np.arange(28)[:, None] < 14, 255, 0).astype(np.uint8).repeat(28, 1)).save("mask.png")
    known = "mask.png" if known.startswith("top") else known
    assert (
        cli.run(
            [
                "complete",
                f"ckpt={runs / name}",
                "out=completion.png",
                "image=whole.png",
                f"known={known}",
                "n=3",
                "steps=2",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "(approximate: chains of 2 steps" in said
    assert "exact" not in said
    assert "effective" not in said
    images, x = np.load(here / "completion.npy"), np.asarray(Image.open("whole.png"))
    kept = (images == x).all((0, 1))
    assert kept.mean() >= (0.5 if known == "mask.png" else 0.2)
    assert known != "mask.png" or kept[:14].all()
    assert len({image.tobytes() for image in images}) == 3


WRONG = [
    ("clean", ["sample"], "no probability of codes: sample code=gaussian|gmm"),
    ("gaussian", ["sample"], "chain=walkback|langevin"),
    ("clean", ["sample", "code=gausian"], "did you mean 'gaussian'"),
    ("gaussian", ["sample", "chain=gibbs"], "choose from langevin, walkback"),
    ("gaussian", ["sample", "chain=walkback", "code=gmm"], "two ways"),
    ("clean", ["sample", "code=gaussian", "components=3"], "only code=gmm"),
    ("clean", ["sample", "code=gmm", "components=0"], "at least 1"),
    ("clean", ["sample", "code=gmm", "components=101"], "only 100 training images"),
    ("clean", ["sample", "code=gmm", "temperature=0.5"], "only code=gaussian has one"),
    ("clean", ["sample", "code=gaussian", "steps=3"], "only chain="),
    ("clean", ["sample", "code=gaussian", "label=3"], "unconditional"),
    ("clean", ["sample", "code=gaussian", "data.path=x"], "data.root="),
    ("clean", ["sample", "chain=walkback"], "trained on clean images"),
    ("masking", ["sample", "chain=langevin"], "only with gaussian corruption"),
    ("gaussian", ["sample", "chain=langevin", "steps=0"], "at least 1"),
    ("gaussian", ["sample", "chain=walkback", "temperature=2"], "only code=gaussian has one"),
    ("gaussian", ["sample", "chain=walkback", "data.limit=3"], "only code= reads data"),
    ("pixelcnn", ["sample", "code=gaussian"], "draws images by itself"),
    ("pixelcnn", ["sample", "steps=3"], "draws images by itself"),
    ("pixelcnn", ["sample", "data.limit=3"], "draws images by itself"),
    ("clean", ["complete", "image=whole.png", "known=top:0.5"], "only a denoising one"),
    ("gaussian", ["complete", "image=whole.png", "known=top:0.5", "particles=4"], "no likelihood"),
    ("gaussian", ["complete", "image=whole.png", "known=top:0.5", "temperature=2"], "has none"),
    ("gaussian", ["complete", "image=whole.png", "known=top:0.5", "steps=0"], "at least 1"),
    ("pixelcnn", ["complete", "image=whole.png", "known=top:0.5", "steps=3"], "without a chain of denoising steps"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words", "answer"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_wrong_requests_get_one_sentence_and_leave_nothing(name, words, answer, runs, here, capsys):
    assert cli.run([words[0], f"ckpt={runs / name}", *words[1:]]) == 2
    err = capsys.readouterr().err
    assert answer in err
    assert err.count("\n") == 1
    assert os.listdir(here) == ["whole.png"]


def test_an_autoencoder_is_no_sampler_by_itself(runs):
    """Training draws no pictures by what stands in, and nothing counts a completion as conditional."""
    model = genlab.load(runs / "gaussian")
    assert not isinstance(model, (Sampler, Completer))
    assert not (runs / "gaussian" / "samples").exists()


def test_drawing_from_the_head_follows_its_probabilities(runs):
    """Sample means of many draws are the head's expected image."""
    model = genlab.load(runs / "masking")
    h = torch.randn(1, 6, generator=seeded())
    x = model.draw(h.expand(300, -1), seeded(1))
    assert x.dtype == torch.long
    assert 0 <= x.min() <= x.max() <= 255
    expected = model.decode(h)[0] * 255
    spread = x.double().std(0) / 600**0.5
    assert ((x.double().mean(0) - expected).abs() / spread).max() < 5


@pytest.mark.slow
def test_temperature_is_that_of_the_pixels_too(runs):
    """Each value drawn given a code follows p(x | h)^(1/T) over its levels."""
    model = genlab.load(runs / "masking")
    h = torch.randn(1, 6, generator=seeded())
    levels = torch.stack([torch.full((1, 784, 1), k) for k in range(256)])
    pixels = model.head(model._decoded(h))
    log_p = torch.stack([pixels.log_prob(x) for x in levels], -1).double()  # (1, T, K)
    for temperature in (0.3, 2.0):
        p = (log_p / temperature).softmax(-1)[0]
        mean = p @ torch.arange(256).double()
        deviation = (p @ torch.arange(256).double().square() - mean.square()).sqrt()
        x = model.draw(h.expand(60, -1), seeded(1), temperature).double().flatten(1)
        assert ((x.mean(0) - mean) / deviation.clamp(min=0.1) * 60**0.5).abs().max() < 5
        assert (x.std(0) / deviation).median().item() == pytest.approx(1, abs=0.02)


def test_a_chain_refuses_a_temperature(runs):
    model = genlab.load(runs / "gaussian")
    chain, x = ChainSampler(model, 2), torch.zeros(1, 1, 28, 28, dtype=torch.long)
    assert chain.complete(x, x[:, 0] == 1, seed=0).effective_particles is None
    for refused in (
        lambda: chain.sample(1, temperature=0.5),
        lambda: chain.complete(x, x[:, 0] == 1, temperature=2.0),
    ):
        with pytest.raises(RequestError, match="temperature"):
            refused()


def test_corruption_repeats_with_its_generator():
    for corruption in (
        genlab.codes.Gaussian(sigma=0.3),
        genlab.codes.Masking(share=0.5),
        genlab.codes.SaltPepper(share=0.5),
    ):
        y = torch.rand(4, 1, 5, 5)
        a, b, c = (corruption(y, seeded(seed))[0] for seed in (0, 0, 1))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_a_chain_never_leaves_the_range_of_images(runs):
    """A denoiser that exaggerates (ten times its weights) would otherwise run away to no number at all."""
    model = genlab.load(runs / "gaussian")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10)
    x = torch.rand(4, 1, 28, 28, generator=seeded())
    for renewed in (model.renew, model.denoise):
        y = walkback_chain(x, corrupt=lambda y: model.corruption(y, seeded())[0], renew=renewed, steps=20)
        assert 0 <= y.min() <= y.max() <= 1
    y = denoising_langevin(x, denoise=model.denoise, sigma=model.corruption.sigma, steps=200, generator=seeded())
    assert y.abs().max() < 4
