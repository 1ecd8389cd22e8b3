"""PixelSNAIL: strict attention is the explicit masked softmax, the whole past is seen, whole pixels from the cache."""

from __future__ import annotations

import pytest
import torch

from genlab.core import ImageSpec, RequestError, to_steps
from genlab.nets import PixelSNAIL
from genlab.nets.causal.pixelsnail import earlier


def random_net(spec, seed=0, **sizes):
    """A small net with random weights everywhere."""
    torch.manual_seed(seed)
    net = PixelSNAIL(spec=spec, **{"width": 12, "depth": 2, "layers": 2, "key_width": 5} | sizes).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, 0.5)
    return net


def explicit(query, keys, values, heads):
    """Attention to earlier pixels with a T x T mask, a head at a time: the slow, obvious version."""
    out = []
    for q, k, v in zip(*(x.flatten(2).chunk(heads, 1) for x in (query, keys, values)), strict=True):
        scores = torch.einsum("bct,bcs->bts", q, k) / q.shape[1] ** 0.5
        past = torch.ones(scores.shape[1:], dtype=torch.bool).tril(-1)
        weights = torch.zeros_like(scores)
        weights[:, 1:] = scores.masked_fill(~past, -torch.inf)[:, 1:].softmax(-1)  # the first pixel: nothing
        out.append(torch.einsum("bts,bcs->bct", weights, v))
    return torch.cat(out, 1).view(values.shape)


@pytest.mark.parametrize(("key_width", "value_width"), [(16, 24), (5, 3), (4, 4)])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5), (9, 8)])
def test_attention_is_the_explicit_strictly_masked_softmax(size, heads, key_width, value_width):
    torch.manual_seed(0)
    query, keys = torch.randn(2, 3, heads * key_width, *size, dtype=torch.double)
    values = torch.randn(3, heads * value_width, *size, dtype=torch.double)
    inputs = [x.contiguous(memory_format=torch.channels_last).requires_grad_() for x in (query, keys, values)]
    fast, slow = earlier(*inputs, heads), explicit(*inputs, heads)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    assert (fast[:, :, 0, 0] == 0).all()
    if size != (1, 1):
        weigh = torch.randn_like(slow)
        for a, b in zip(*(torch.autograd.grad(result, inputs, weigh) for result in (fast, slow)), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert fast.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_one_block_sees_all_of_the_past_far_beyond_its_convolutions():
    spec = ImageSpec(1, 9, 11, 4)
    net = random_net(spec, depth=1, layers=1)
    x = torch.randint(4, (1, 1, 9, 11))
    reference = net(x)[0, -1]
    for row, column in ((0, 0), (0, 10), (4, 0), (4, 10), (8, 0), (8, 9)):
        changed = x.clone()
        changed[..., row, column] = (x[..., row, column] + 1) % 4
        assert not torch.equal(net(changed)[0, -1], reference)
        assert net.receptive_field(8, 10)[row, column]


@torch.no_grad()
def test_equal_pixels_have_features_of_their_place():
    features = random_net(ImageSpec(1, 6, 7, 4))(torch.zeros(1, 1, 6, 7, dtype=torch.long))[0]
    assert torch.pdist(features).min() > 1e-6


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("context", [None, (1, 1), (4, 3)])
@pytest.mark.parametrize(
    "sizes", [{}, {"attention_heads": 3}, {"width": 7, "layers": 1, "depth": 3}, {"key_width": 20}]
)
def test_whole_pixels_of_three_colours_from_the_cache(sizes, context):
    spec = ImageSpec(3, 4, 3, 5)
    net = random_net(spec, context_width=4 if context else 0, **sizes)
    context_features = torch.randn(2, 4, *context, dtype=torch.double) if context else None
    x = torch.randint(5, (2, 3, 4, 3))
    steps, full = to_steps(x, 3), net(x, context_features)
    for rows in range(4):
        state, previous = net.start(2, x.device, (x, rows), context_features), None
        for t in range(rows * 3, 12):
            h, state = net.step(previous, state)
            torch.testing.assert_close(h, full[:, t], rtol=0, atol=1e-10)
            previous = steps[:, t]


@torch.no_grad()
def test_particles_are_reordered_with_their_keys_values_and_contexts():
    spec = ImageSpec(2, 3, 4, 5)
    net = random_net(spec, attention_heads=2, context_width=3)
    x, context_features = torch.randint(5, (4, 2, 3, 4)), torch.randn(4, 3, 3, 4, dtype=torch.double)
    state, previous = net.start(4, x.device, (x, 1), context_features), None
    for t in range(4, 12):
        order = torch.randint(4, (4,))
        state.reorder(order)
        x, context_features = x[order], context_features[order]
        previous = None if previous is None else previous[order]
        h, state = net.step(previous, state)
        torch.testing.assert_close(h, net(x, context_features)[:, t], rtol=0, atol=1e-10)
        previous = to_steps(x, 2)[:, t]


@torch.no_grad()
@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (4, 1), (5, 2)])
def test_small_and_odd_images(size, placed):
    net = random_net(ImageSpec(1, *size, 2), context_width=3 if placed else 0)
    x, context_features = (
        torch.randint(2, (3, 1, *size)),
        torch.randn(3, 3, *size, dtype=torch.double) if placed else None,
    )
    state, previous, full = net.start(3, x.device, None, context_features), None, net(x, context_features)
    for t in range(full.shape[1]):
        h, state = net.step(previous, state)
        torch.testing.assert_close(h, full[:, t], rtol=0, atol=1e-10)
        previous = to_steps(x, 1)[:, t]


def test_dropout_is_off_when_evaluating():
    net = random_net(ImageSpec(1, 4, 4, 4), dropout=0.5)
    x = torch.randint(4, (2, 1, 4, 4))
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))


@pytest.mark.parametrize(
    "bad", [{"width": 1}, {"depth": 0}, {"layers": 0}, {"key_width": 0}, {"attention_heads": 0}, {"attention_heads": 5}]
)
def test_impossible_sizes_are_refused(bad):
    with pytest.raises(RequestError, match="pixelsnail needs"):
        PixelSNAIL(spec=ImageSpec(1, 4, 4), **{"width": 12} | bad)


@pytest.mark.gpu
@torch.no_grad()
def test_cache_and_forward_pass_on_a_gpu():
    spec = ImageSpec(3, 5, 6, 8)
    net = random_net(spec).cuda()
    x = torch.randint(8, (3, 3, 5, 6)).cuda()
    full, state, previous = net(x), net.start(3, x.device), None
    torch.testing.assert_close(full.cpu(), net.cpu()(x.cpu()), rtol=0, atol=1e-10)
    net.cuda()
    for t in range(30):
        h, state = net.step(previous, state)
        torch.testing.assert_close(h, full[:, t], rtol=0, atol=1e-10)
        previous = to_steps(x, 3)[:, t]
