"""VQ-VAE: codes are nearest vectors, gradients go where they should, the bound is one, known pixels are kept."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from genlab.core import ImageSpec, RequestError
from genlab.heads import Bernoulli, Categorical
from genlab.models import VQVAE, Autoregressive
from genlab.models.codebook import Codebook
from genlab.nets import GridDecoder, GridEncoder, PixelCNN

SPEC = ImageSpec(1, 4, 4, 2)
PRIOR = partial(Autoregressive, net=partial(PixelCNN, width=8, depth=1, feature_width=4), head=Categorical)


def vqvae(spec=SPEC, head=Bernoulli, codes=3, **changes):
    torch.manual_seed(0)
    encoder, decoder = (partial(net, widths=[6], depth=1) for net in (GridEncoder, GridDecoder))
    words = {"codes": codes, "code_width": 4, "features": 4} | changes
    return VQVAE(spec, encoder=encoder, decoder=decoder, head=head, prior=PRIOR, **words).double()


def images(n, seed=0):
    return torch.randint(0, 2, (n, *SPEC.shape), generator=torch.Generator().manual_seed(seed))


def test_codes_are_the_nearest_vectors_and_gradients_pass_straight_through():
    book = Codebook(5, 3).double()
    e = torch.randn(2, 3, 4, 4, dtype=torch.double, requires_grad=True)
    codes = book.nearest(e)
    distances = (e.permute(0, 2, 3, 1)[..., None, :] - book.vectors).square().sum(-1)
    assert torch.equal(codes[:, 0], distances.argmin(-1))
    z, cost = book.straight_through(e, codes, 0.25)
    torch.testing.assert_close(z, book.look_up(codes))
    weights = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((z * weights).sum(), e, retain_graph=True)
    torch.testing.assert_close(gradient, weights)
    to_encoder, to_book = torch.autograd.grad(cost.sum(), (e, book.vectors))
    torch.testing.assert_close(to_encoder, 0.25 * 2 * (e - z))
    pulled = torch.zeros_like(book.vectors).index_add_(
        0, codes.flatten(), 2 * (z - e).detach().permute(0, 2, 3, 1).flatten(0, 2)
    )
    torch.testing.assert_close(to_book, pulled)


@torch.no_grad()
def test_the_bound_is_below_the_sum_over_all_codes():
    model, x = vqvae().eval(), images(20)
    grids = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 1, 2, 2)
    log_prior = model.prior.log_prob(grids)
    assert log_prior.exp().sum() == pytest.approx(1)
    z = model.codebook.look_up(grids)
    for each in x:
        terms = model._log_likelihood(each.expand(len(z), -1, -1, -1), z) + log_prior
        bound = model.log_prob(each[None])
        assert bound <= terms.logsumexp(0)
        assert (terms - bound).abs().min() < 1e-9  # it is one of the terms
    loss = model.objective(x)
    torch.testing.assert_close(loss["loss"], -model.log_prob(x))
    torch.testing.assert_close(loss["loss"], loss["distortion"] + loss["rate"])


def test_the_prior_learns_without_moving_the_codes():
    model = vqvae().train()
    rate = -model.prior.log_prob(model.codes(images(8)))
    rate.sum().backward()
    assert model.codebook.vectors.grad is None
    assert all(p.grad is None for p in model.encoder.parameters())
    model.objective(images(8))["loss"].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@torch.no_grad()
def test_the_codebook_begins_as_outputs_of_the_encoder():
    model, x = vqvae(codes=6), images(50)
    model.prime(x, seed=1)
    outputs = model._encoded(model.scaled(x)).permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.cdist(model.codebook.vectors, outputs).amin(1).max() < 0.02 * outputs.std()
    before = model.codebook.vectors.clone()
    model.prime(x, seed=1)
    assert torch.equal(model.codebook.vectors, before)


@torch.no_grad()
def test_completions_keep_the_codes_of_known_places():
    model, x = vqvae().eval(), images(6)
    known = torch.zeros(6, 4, 4, dtype=torch.bool)
    known[:, :2] = True  # the upper row of places
    assert model._whole_places(known)[:, 0].all()
    assert not model._whole_places(known)[:, 1].any()
    known[:, 2, 0] = True  # a part of a place is not enough
    assert not model._whole_places(known)[:, 1].any()
    done = model.complete(x, known, seed=0).images
    assert torch.equal(done[known[:, None]], x[known[:, None]])


def test_training_makes_the_bound_better():
    model, x = vqvae(code_width=2), images(1).expand(16, -1, -1, -1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = model.objective(x)["loss"].mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("changes", [{"codes": 1}, {"code_width": 0}, {"commitment": 0.0}, {"head": None}])
def test_impossible_sizes_are_one_sentence(changes):
    with pytest.raises(RequestError, match="VQ-VAE needs"):
        vqvae(**changes)
