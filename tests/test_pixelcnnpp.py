"""What is particular to PixelCNN++: shifted windows, strides that stay causal, two streams, resolutions, skips."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from genlab.core import ImageSpec, RequestError, from_steps, to_steps
from genlab.nets import PixelCNNpp
from genlab.nets.causal.recompute import Recompute
from genlab.nets.layers.shifted import GatedResNet, ShiftedConv2d, ShiftedUp2d, shift_down, shift_right

SIZES = [(5, 4), (3, 5), (1, 2), (2, 1), (1, 1), (7, 6), (9, 10)]


def random_net(spec: ImageSpec, seed: int = 0, **sizes) -> PixelCNNpp:
    torch.manual_seed(seed)
    net = PixelCNNpp(spec=spec, **{"width": 5, "depth": 1, **sizes}).double().eval()
    for p in net.parameters():
        p.data.normal_(0, 0.5)
    return net


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_gradients_of_small_maps_are_right_in_bfloat16(height, width):
    """oneDNN's are wrong, or not finite, for a padded map of one column and a stride."""
    torch.manual_seed(0)
    conv = ShiftedConv2d(32, 32, (2, 3), kind="down", stride=2)
    x, weights = torch.randn(64, 32, height, width), torch.randn(64, 32, 1, 1)
    gradients = []
    for dtype in (torch.bfloat16, torch.double):
        conv.to(dtype).zero_grad()
        (conv(x.to(dtype)) * weights.to(dtype)).sum().backward()
        gradients.append(conv.weight.grad.double().clone())
    ours, right = gradients
    assert (ours - right).norm() < 0.05 * right.norm()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("kind", "kernel"),
    [("down", (2, 3)), ("down", (1, 3)), ("down_right", (2, 2)), ("down_right", (2, 1)), ("down_right", (1, 1))],
)
@pytest.mark.parametrize(("height", "width"), [(5, 4), (3, 5), (2, 1)])
def test_a_shifted_window_ends_at_its_position(kind, kernel, stride, height, width):
    conv = ShiftedConv2d(3, 2, kernel, kind=kind, stride=stride)
    x = torch.randn(1, 3, height, width, requires_grad=True)
    y = conv(x)
    assert y.shape[2:] == (-(-height // stride), -(-width // stride))
    for r, c in torch.cartesian_prod(torch.arange(y.shape[2]), torch.arange(y.shape[3])).tolist():
        (gradient,) = torch.autograd.grad(y[0, :, r, c].sum(), x, retain_graph=True)
        seen, bottom, right = torch.zeros(height, width, dtype=torch.bool), stride * r + 1, stride * c + 1
        right += kernel[1] // 2 if kind == "down" else 0
        seen[max(bottom - kernel[0], 0) : bottom, max(right - kernel[1], 0) : right] = True
        assert torch.equal((gradient[0] != 0).any(0), seen)


@pytest.mark.parametrize("kind", ["down", "down_right"])
@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3), (1, 1)])
def test_growing_reads_the_coarse_row_and_never_a_later_one(kind, height, width):
    grow = ShiftedUp2d(3, 2, kind=kind)
    x = torch.randn(1, 3, -(-height // 2), -(-width // 2), requires_grad=True)
    y = grow(x, (height, width))
    assert y.shape == (1, 2, height, width)
    for r in range(height):
        for c in range(width):
            (gradient,) = torch.autograd.grad(y[0, :, r, c].sum(), x, retain_graph=True)
            seen = torch.zeros(x.shape[2:], dtype=torch.bool)
            seen[r // 2, c // 2 : c // 2 + 1 + (c % 2 if kind == "down" else 0)] = True
            assert torch.equal((gradient[0] != 0).any(0), seen)


def test_shifts_bring_zeros_in():
    x = torch.arange(1, 7).view(1, 1, 2, 3)
    assert shift_down(x)[0, 0].tolist() == [[0, 0, 0], [1, 2, 3]]
    assert shift_right(x)[0, 0].tolist() == [[0, 1, 2], [0, 4, 5]]


def test_blocks_keep_the_scale_and_begin_near_the_identity():
    torch.manual_seed(0)
    block = GatedResNet(32, partial(ShiftedConv2d, kernel=(2, 2), kind="down_right"), side=16)
    x, side = torch.randn(8, 32, 16, 16), torch.randn(8, 16, 16, 16)
    assert 0.01 < (block(x, side) - x).std() < 0.1
    with torch.no_grad():
        block.first.weight.mul_(1000)  # weights are normalised: their length does not matter
    assert 0.01 < (block(x, side) - x).std() < 0.1
    assert GatedResNet(6)(torch.randn(2, 6, 3, 3)).shape == (2, 6, 3, 3)  # 1x1 convolutions


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("resolutions", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_size_and_number_of_resolutions_steps_as_it_runs(height, width, resolutions):
    spec = ImageSpec(2, height, width, 5)
    net = random_net(spec, resolutions=resolutions)
    x = torch.randint(5, (3, *spec.shape))
    steps, full = to_steps(x, 2), net(x)
    for rows in {0, 1, height // 2, height - 1} & {*range(height)}:
        state, previous = net.start(3, x.device, (x, rows)), None
        for t in range(rows * width, height * width):
            h, state = net.step(previous, state)
            torch.testing.assert_close(h, full[:, t], rtol=1e-12, atol=1e-12)
            previous = steps[:, t]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("resolutions", [1, 2, 3])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_pass_that_leaves_out_old_rows_gives_every_layer_its_newest_row(depth, resolutions):
    """To rounding: a row too few shows in the ninth digit or later, because far influences fade."""
    net = random_net(ImageSpec(1, 48, 2, 5), depth=depth, resolutions=resolutions, context_width=2)
    for name, p in net.named_parameters():
        if name.endswith("gain"):
            p.fill_(1.5)  # so that they fade less
    x, context = torch.randint(5, (2, 1, 48, 2)), torch.randn(2, 2, 48, 2).double()
    convs = {name: m for name, m in net.named_modules() if isinstance(m, (ShiftedConv2d, ShiftedUp2d))}
    for rows in range(33, 49):
        biases = [
            [tuple(bias[:, :, : -(-rows >> k)] for bias in pair) for pair in pairs]
            for k, pairs in enumerate(net.layer_biases(context))
        ]
        read: list[dict[str, torch.Tensor]] = [{}, {}]  # by every convolution, of the newest row
        for newest, inputs in zip((None, 1), read, strict=True):
            hooks = [
                conv.register_forward_pre_hook(lambda _, x, name=name, to=inputs: to.update({name: x[0][:, :, -1]}))
                for name, conv in convs.items()
            ]
            net.run(x[:, :, :rows], biases, newest)
            for hook in hooks:
                hook.remove()
        for name, whole in read[0].items():
            torch.testing.assert_close(read[1][name], whole, rtol=1e-13, atol=1e-13, msg=f"{rows} rows, {name}")


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("resolutions", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), SIZES[:-1])
def test_a_pixel_sees_what_is_declared_whatever_the_resolutions(height, width, resolutions):
    net = random_net(ImageSpec(1, height, width, 7), resolutions=resolutions)
    pixels = height * width
    x = torch.randint(7, (1, 1, height, width))
    changed = x.flatten() + torch.eye(pixels, dtype=torch.long)
    changed = changed.view(pixels, 1, height, width) % 7
    seen = (net(changed) != net(x.expand_as(changed).contiguous())).any(-1).T  # one shape, hence the same kernels
    declared = torch.stack([net.receptive_field(t // width, t % width).flatten() for t in range(pixels)])
    assert torch.equal(seen, declared)
    assert not declared.triu().any()


def test_resolutions_widen_the_view_and_there_is_no_blind_spot():
    spec = ImageSpec(1, 16, 16)
    one, three = (PixelCNNpp(spec=spec, width=2, depth=1, resolutions=n).receptive_field(15, 4) for n in (1, 3))
    assert three.sum() > one.sum()
    assert (three | ~one).all()
    deep = PixelCNNpp(spec=spec, width=2, depth=3).receptive_field(15, 4)
    past = torch.arange(256).view(16, 16) < 15 * 16 + 4
    assert torch.equal(deep, past)


@torch.no_grad()
def test_the_upper_stream_sees_whole_rows_above_alone():
    spec = ImageSpec(1, 6, 5, 8)
    net = random_net(spec)
    x = torch.randint(8, (1, *spec.shape))
    streams = []
    hook = net.blocks[-1].register_forward_hook(lambda _, __, out: streams.append(out[0]))
    net(x)
    changed = x.clone()
    changed[:, :, 3] = (changed[:, :, 3] + 1) % 8
    net(changed)
    hook.remove()
    assert torch.equal(streams[0][:, :, :4], streams[1][:, :, :4])
    assert not torch.equal(streams[0][:, :, 4], streams[1][:, :, 4])


def test_the_last_skip_comes_first():
    """Every block of the way back meets a skip of its own resolution, in reverse order; all are used once."""
    net = random_net(ImageSpec(1, 9, 12, 4), depth=3)
    skips, read = [], []
    there = net.depth * net.resolutions
    net.stem_u.register_forward_hook(lambda _, __, out: skips.append(tuple(out.shape[2:])))
    for module in (*net.blocks[:there], *net.shrink):
        module.register_forward_hook(lambda _, __, out: skips.append(out[0].data_ptr()))
    for pair in net.blocks[there:]:
        pair.register_forward_hook(lambda _, inputs, __: read.append(inputs[2][0].data_ptr()))
    net(torch.randint(4, (1, 1, 9, 12)))
    assert len(skips) == len(read) + 1
    assert skips[1:-1] == read[-2::-1]  # not the last, where the way back begins; the stem is shifted in between


@torch.no_grad()
def test_a_wider_context_enters_every_resolution():
    spec = ImageSpec(1, 5, 6, 4)
    net = random_net(spec, context_width=3)
    x, context = torch.randint(4, (2, *spec.shape)), torch.randn(2, 3, 5, 6).double()
    sizes = [{bias.shape[2:] for pair in level for bias in pair} for level in net.layer_biases(context)]
    assert sizes == [{(5, 6)}, {(3, 3)}, {(2, 2)}]
    fast, slow, previous = net.start(2, x.device, None, context), Recompute.start(net, 2, x.device, None, context), None
    for values in to_steps(x, 1).unbind(1):
        a, fast = net.step(previous, fast)
        b, slow = Recompute.step(net, previous, slow)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        previous = values
    assert torch.equal(from_steps(slow.steps, spec)[:, :, :-1], x[:, :, :-1])


def test_dropout_is_off_when_evaluating():
    net = random_net(ImageSpec(1, 4, 4, 4), dropout=0.5)
    x = torch.randint(4, (2, 1, 4, 4))
    assert torch.equal(net(x), net(x))
    assert not torch.equal(net.train()(x), net(x))


@pytest.mark.parametrize("bad", [{"width": 0}, {"depth": 0}, {"resolutions": 0}, {"dropout": 1.0}])
def test_impossible_sizes_are_refused(bad):
    with pytest.raises(RequestError, match="pixelcnnpp needs"):
        PixelCNNpp(spec=ImageSpec(1, 4, 4), **bad)
