"""T13, T19: what the best autoencoder is, is known, and training finds it.

Linear: the span of the principal components (Baldi & Hornik 1989). Denoising: the posterior mean of the clean image,
which for Gaussian data is linear and for any data is y + s^2 grad log p_s(y) (Tweedie; Miyasawa 1961). Images are
integers: 256 levels, whose rounding adds a variance of 1/12 level^2, 1e-3 of the smallest one here.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from genlab.build import build
from genlab.core import ImageSpec
from genlab.data import MNIST, ImageData, MNISTMini
from genlab.request.compose import Request

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import pca_check


def made(name, spec, **changes):
    """The yaml's own model, with other numbers."""
    config = OmegaConf.to_container(Request("train", [f"model={name}"], command="").config().model)
    torch.manual_seed(0)
    return build(config | changes, spec).train()


def trained(model, batches, steps, rate):
    """Adam with a rate that falls to zero, on the model's own objective."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for step in range(steps):
        optimiser.zero_grad()
        model.objective(batches(step))["loss"].mean().backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def placed(model, basis, mean):
    """A linear autoencoder that projects onto an orthonormal basis (D, L) around a mean (D,)."""
    encoder, decoder = model.encoder.layers[0], model.decoder.layers[0]
    with torch.no_grad():
        encoder.weight.copy_(basis.T)
        encoder.bias.copy_(-basis.T @ mean)
        decoder.weight.copy_(basis)
        decoder.bias.copy_(mean)
    return model


def fitted(model, x, iterations):
    """A linear autoencoder at the bottom of its objective on all images, the noise the same at every call; float64.

    From a random subspace: from torch's first weights the way leads past those that are all zero, where the loss is
    flat, and takes thousands of steps.
    """
    model, dims = model.double(), model.spec.dims
    basis = torch.linalg.qr(torch.randn(dims, model.latent_dim, generator=torch.Generator().manual_seed(0)).double()).Q
    placed(model, basis, model.scaled(x).flatten(1).mean(0))
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=iterations, history_size=30, line_search_fn="strong_wolfe",
        tolerance_grad=1e-9, tolerance_change=0,
    )  # fmt: skip

    def loss():
        optimiser.zero_grad()
        torch.manual_seed(0)
        value = model.objective(x)["loss"].mean()
        value.backward()
        return value

    optimiser.step(loss)
    return model.eval()


@pytest.fixture(scope="module")
def digits():
    """Real MNIST where it is at hand, else the few thousand digits of the package; the training split."""
    try:
        return ImageData(MNIST(), validation=5000).split("train").images
    except Exception:
        return ImageData(MNISTMini(), validation=200).split("train").images


@pytest.mark.slow
def test_a_linear_autoencoder_finds_the_principal_components(digits):
    """Six of 500 digits, every other row and column of them; `experiment=linear_ae_mnist` finds 32 of all."""
    x = digits[:500, :, ::2, ::2]
    found = pca_check.check(fitted(made("linear_ae", ImageSpec(1, 14, 14), latent_dim=6), x, 200), x)
    assert found.angle < 1e-2
    assert -1e-9 < found.excess < 1e-4


def test_the_check_sees_a_subspace_that_is_off(digits):
    """PCA itself passes, turned by 0.1 rad it does not."""
    x, model = digits[:500], made("linear_ae", ImageSpec(1, 28, 28), latent_dim=3).double()
    y = model.scaled(x).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(y.T, correction=0))
    kept, mean = vectors[:, -3:], y.mean(0)
    turned = kept.clone()
    turned[:, 0] = math.cos(0.1) * kept[:, 0] + math.sin(0.1) * vectors[:, 0]
    for basis, angle in ((kept, 0.0), (turned, 0.1)):
        found = pca_check.check(placed(model, basis, mean), x)
        assert found.angle == pytest.approx(angle, abs=1e-6)
        assert (abs(found.excess) < 1e-6) == (angle == 0)
    assert found.least == pytest.approx(values[:-3].sum().item(), rel=1e-6)


# ---- denoising

SPEC = ImageSpec(1, 2, 3, 256)
NOISE = {"_target_": "genlab.codes.Gaussian", "sigma": 0.1}


def gaussian_images(n):
    """Correlated values around unequal means, 4 standard deviations inside [0, 1]; integers (n, 1, 2, 3)."""
    mix = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    covariance = 0.004 * (mix @ mix.T / 6 + 0.5 * torch.eye(6))
    z = torch.randn(n, 6, generator=torch.Generator().manual_seed(2)) @ torch.linalg.cholesky(covariance).T
    y = z + torch.linspace(0.4, 0.6, 6)
    assert ((y > 0) & (y < 1)).float().mean() > 0.999
    return (y * 255).round().clamp(0, 255).long().view(n, 1, 2, 3)


def drawn(x, size, seed=0):
    """A random batch for every step."""
    return lambda step: x[torch.randint(len(x), (size,), generator=torch.Generator().manual_seed(seed + step))]


@pytest.mark.slow
def test_a_linear_denoiser_finds_the_best_one_for_gaussian_data():
    """mu + Sigma (Sigma + s^2 I)^-1 (y - mu), of the mean and covariance of the images themselves, within 2 %."""
    x = gaussian_images(40_000)
    model = fitted(made("linear_ae", SPEC, latent_dim=6, corruption=NOISE), x, 60)
    clean = model.scaled(x).flatten(1)
    mean, covariance = clean.mean(0), torch.cov(clean.T, correction=0)
    gain = covariance @ torch.linalg.inv(covariance + NOISE["sigma"] ** 2 * torch.eye(6).double())
    with torch.no_grad():
        noise = torch.randn(1000, 6, generator=torch.Generator().manual_seed(3)).double()
        y = clean[:1000] + NOISE["sigma"] * noise
        best = mean + (y - mean) @ gain.T
        found = model.decode(model.code(model.encoder(y.view(-1, 1, 2, 3))).h).flatten(1)
    assert ((found - best).square().mean() / (best - mean).square().mean()).sqrt() < 0.02
    assert ((found - clean[:1000]).square().mean() / (y - clean[:1000]).square().mean()) < 0.5  # it does denoise


@pytest.mark.slow
def test_a_denoiser_of_a_mixture_follows_the_score():
    """Two clouds of pixels: (r(y) - y) / s^2 is the gradient of log p_s, that of a mixture of two Gaussians."""
    spec, s, width = ImageSpec(1, 1, 2, 256), 0.2, 0.05
    centres = torch.tensor([[0.3, 0.35], [0.7, 0.6]])
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(4))
    clean = centres[torch.arange(4000) % 2] + width * noise
    x = (clean * 255).round().clamp(0, 255).long().view(-1, 1, 1, 2)
    sides = {
        side: {"_target_": f"genlab.nets.MLP{side.title()}", "_partial_": True, "hidden": [64]}
        for side in ("encoder", "decoder")
    }
    changes = {"latent_dim": 16, "corruption": {"_target_": "genlab.codes.Gaussian", "sigma": s}, **sides}
    changes["code"] = {"_target_": "genlab.codes.Dense", "_partial_": True, "activation": "tanh"}
    model = trained(made("denoising_ae", spec, **changes), drawn(x, 1024), 800, 1e-2)
    y = (clean + s * torch.randn(4000, 2, generator=torch.Generator().manual_seed(5))).requires_grad_()
    log_density = (-(y[:, None] - centres).square().sum(2) / (2 * (s**2 + width**2))).logsumexp(1)
    (score,) = torch.autograd.grad(log_density.sum(), y)
    with torch.no_grad():
        best = y + s**2 * score
        found = model.decode(model.code(model.encoder(y.view(-1, 1, 1, 2))).h).flatten(1)
    assert ((found - best).square().mean() / (best - best.mean(0)).square().mean()).sqrt() < 0.05
