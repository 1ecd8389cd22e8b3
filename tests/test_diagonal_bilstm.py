"""The Diagonal BiLSTM is what the paper says, pixel by pixel, in both directions, and sees all of the past."""

from __future__ import annotations

import pytest
import torch

from genlab.core import ImageSpec, RequestError
from genlab.nets import DiagonalBiLSTM
from genlab.nets.causal.diagonal_bilstm import DiagonalLayer, diagonals


def random_layer(layer):
    for p in layer.parameters():
        p.data.normal_(0, 0.7)
    return layer.double()


def lstm(gates, states, units):
    """One direction, rightward, of gates (4 U, H, W) from below: outputs {(y, x): (U,)}."""
    output, memory = {}, {}
    nothing = torch.zeros(units, dtype=torch.double)
    for y in range(gates.shape[1]):
        for x in range(gates.shape[2]):
            read = torch.cat([output.get((y - 1, x), nothing), output.get((y, x - 1), nothing)])
            o, f, i, g = (gates[:, y, x] + states @ read).chunk(4)
            memory[y, x] = f.sigmoid() * memory.get((y, x - 1), nothing) + i.sigmoid() * g.tanh()
            output[y, x] = o.sigmoid() * memory[y, x].tanh()
    return output


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(4, 5), (5, 3), (1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_layer_is_two_lstms_a_pixel_at_a_time(height, width, groups):
    torch.manual_seed(0)
    layer, units = random_layer(DiagonalLayer(8, groups)), 4
    h = torch.randn(1, 8, height, width, dtype=torch.double)
    biases = [torch.randn(1, 4 * units, height, width, dtype=torch.double) for _ in range(2)]
    maps = [
        torch.einsum("gs,shw->ghw", inputs.masked_weight, h[0]) + inputs.bias.view(-1, 1, 1) + bias[0]
        for inputs, bias in zip(layer.inputs, biases, strict=True)
    ]
    right = lstm(maps[0], layer.states[0], units)
    left = lstm(maps[1].flip(2), layer.states[1], units)
    expected = h.clone()
    for y in range(height):
        for x in range(width):
            seen = right[y, x] + (left[y - 1, width - 1 - x] if y else 0)
            expected[0, :, y, x] += layer.up.masked_weight[:, :, 0, 0] @ seen + layer.up.bias
    torch.testing.assert_close(layer(h, biases), expected, rtol=0, atol=1e-12)


def test_the_gradient_finds_its_way_back_along_the_diagonals():
    torch.manual_seed(0)
    layer = random_layer(DiagonalLayer(4, 1))
    h = torch.randn(2, 4, 3, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (h,))


@pytest.mark.parametrize(("height", "width"), [(4, 5), (5, 3), (1, 4), (4, 1)])
def test_diagonals_hold_every_pixel_once(height, width):
    order, inverse, extents = diagonals(height, width, torch.device("cpu"))
    assert torch.equal(order[inverse], torch.arange(height * width))
    pixels = iter(order.tolist())
    for d, (first, last) in enumerate(extents):
        assert [next(pixels) for _ in range(first, last + 1)] == [r * width + d - r for r in range(first, last + 1)]
    assert next(pixels, None) is None


def seen_by(net, row, column):
    """Pixels (H, W) that features of a pixel change with."""
    height, width = net.spec.height, net.spec.width
    found = torch.zeros(height * width, dtype=torch.bool)
    for seed in range(4):
        x = torch.randint(2, (1, 1, height, width), generator=torch.Generator().manual_seed(seed))
        changed = x.repeat(height * width, 1, 1, 1)
        changed.view(height * width, -1).diagonal().sub_(1).neg_()
        features = net(changed) != net(x.repeat(height * width, 1, 1, 1))
        found |= features[:, row * width + column].any(1)
    return found.view(height, width)


@torch.no_grad()
def test_all_of_the_past_is_seen_and_without_a_pixels_own_values_all_but_one():
    """In the paper, no stream that the leftward LSTM reads has the last pixel of its row."""
    torch.manual_seed(0)
    net = random_layer(DiagonalBiLSTM(spec=ImageSpec(1, 4, 8, 2), width=8, depth=2, kernel=3, feature_width=8))
    past = net.receptive_field(2, 3)
    assert past.sum() == 2 * 8 + 3
    assert torch.equal(seen_by(net, 2, 3), past)
    net.own.weight.zero_()
    past[1, 7] = False
    assert torch.equal(seen_by(net, 2, 3), past)


@pytest.mark.parametrize("bad", [{"width": 1}, {"depth": 0}, {"kernel": 4}, {"kernel": 1}, {"feature_width": 0}])
def test_impossible_sizes_are_refused(bad):
    with pytest.raises(RequestError):
        DiagonalBiLSTM(spec=ImageSpec(1, 4, 4), **bad)
