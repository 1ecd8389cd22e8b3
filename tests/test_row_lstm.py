"""The Row LSTM is what the paper's equations say, pixel by pixel, and sees a triangle."""

from __future__ import annotations

import pytest
import torch

from genlab.core import ImageSpec, RequestError
from genlab.nets import RowLSTM
from genlab.nets.causal.pixelrnn import cell
from genlab.nets.causal.row_lstm import RowLSTMLayer


def random_layer(layer):
    for p in layer.parameters():
        p.data.normal_(0, 0.7)
    return layer.double()


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(4, 5), (1, 3), (3, 1)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_layer_is_one_lstm_cell_a_pixel(height, width, kernel, groups):
    torch.manual_seed(0)
    layer, r, units = random_layer(RowLSTMLayer(8, kernel, groups)), kernel // 2, 4
    h = torch.randn(1, 8, height, width, dtype=torch.double)
    weight = layer.inputs.masked_weight.view(4 * units, r + 1, 8)
    states = layer.states.view(4 * units, kernel, units)
    output, memory = {}, {}
    expected = h.clone()
    for y in range(height):
        for x in range(width):
            gates = layer.inputs.bias.flatten()
            for tap in range(r + 1):
                if x + tap - r >= 0:
                    gates = gates + weight[:, tap] @ h[0, :, y, x + tap - r]
            for tap in range(kernel):
                if (y - 1, x + tap - r) in output:
                    gates = gates + states[:, tap] @ output[y - 1, x + tap - r]
            o, f, i, g = gates.chunk(4)
            c = memory.get((y - 1, x), torch.zeros(units))
            memory[y, x] = f.sigmoid() * c + i.sigmoid() * g.tanh()
            output[y, x] = o.sigmoid() * memory[y, x].tanh()
            expected[0, :, y, x] += layer.up.masked_weight[:, :, 0, 0] @ output[y, x] + layer.up.bias
    torch.testing.assert_close(layer(h), expected, rtol=0, atol=1e-12)


def test_the_written_gradient_of_a_cell_is_the_gradient():
    torch.manual_seed(0)
    gates, memory = torch.randn(2, 12, 5, dtype=torch.double), torch.randn(2, 3, 5, dtype=torch.double)
    assert torch.autograd.gradcheck(cell, (gates.requires_grad_(), memory.requires_grad_()))


def test_the_context_is_a_triangle_that_layers_widen_to_the_left():
    spec = ImageSpec(1, 12, 20, 2)
    one, four = (RowLSTM(spec=spec, width=8, depth=d, kernel=3).receptive_field(8, 10) for d in (1, 4))
    assert not one[8, 10:].any()
    assert [int(row.nonzero().max()) for row in one[5:8]] == [13, 12, 11]  # one further right for each row up
    assert torch.equal(one[:8, 10:], four[:8, 10:])
    assert [int(row.nonzero().min()) for row in four[6:9]] == [3, 4, 5]
    assert [int(row.nonzero().min()) for row in one[6:9]] == [6, 7, 8]


@torch.no_grad()
def test_the_triangle_is_what_the_net_sees_on_a_larger_image():
    """By the gradient: no rounding, all pixels at once."""
    spec = ImageSpec(1, 6, 11, 2)
    net = random_layer(RowLSTM(spec=spec, width=6, depth=2, kernel=3, feature_width=8))
    for row, column in [(5, 2), (5, 9), (3, 5)]:
        seen = torch.zeros(6, 11, dtype=torch.bool)
        for seed in range(4):
            values = torch.randn(1, 1, 6, 11, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
            with torch.enable_grad():
                values.requires_grad_()
                h = net.first(values)
                for block in net.blocks:
                    h = block(h)
                h[0, :, row, column].sum().backward()
            seen |= values.grad[0, 0] != 0
        assert torch.equal(seen, net.receptive_field(row, column))


@torch.no_grad()
@pytest.mark.parametrize("sizes", [{"row_kernel": 1}, {"row_kernel": 5}, {"kernel": 3}, {"width": 7, "depth": 3}])
def test_sizes_of_its_own_step_as_they_run(sizes):
    spec = ImageSpec(3, 3, 4, 3)
    torch.manual_seed(0)
    net = random_layer(RowLSTM(spec=spec, **{"width": 9, "depth": 2, "feature_width": 5} | sizes))
    x = torch.randint(3, (2, 3, 3, 4))
    full, steps = net(x), x.permute(0, 2, 3, 1).reshape(2, -1, 1)
    for rows in range(3):
        state, previous = net.start(2, x.device, (x, rows)), None
        for t in range(12 * rows, 36):
            h, state = net.step(previous, state)
            torch.testing.assert_close(h, full[:, t], rtol=0, atol=1e-10)
            previous = steps[:, t]


@pytest.mark.parametrize(
    "bad", [{"width": 1}, {"depth": 0}, {"kernel": 4}, {"kernel": 1}, {"row_kernel": 2}, {"feature_width": 0}]
)
def test_impossible_sizes_are_refused(bad):
    with pytest.raises(RequestError):
        RowLSTM(spec=ImageSpec(1, 4, 4), **bad)
