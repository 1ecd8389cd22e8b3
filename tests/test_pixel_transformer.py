"""What is particular to the pixel transformer: its attention is masked softmax, what each kind sees, its places."""

from __future__ import annotations

import pytest
import torch

from genlab.core import ImageSpec, RequestError, to_steps
from genlab.nets import PixelTransformer
from genlab.nets.causal.recompute import Recompute
from genlab.nets.layers.attention import make_attention, rotary_table, rotate

KINDS = ["full", "local_1d", "local_2d"]


def net_of(spec, kind, *, depth=2, **more):
    torch.manual_seed(0)
    sizes = {"width": 12, "attention_heads": 3, "block_length": 3, "block": [2, 3], "flange": [1, 1], "kernel": 3}
    net = PixelTransformer(spec=spec, attention=kind, depth=depth, **(sizes | more)).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, 0.5)
    return net


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "length", "block", "flange"),
    [
        ((5, 4), 3, (2, 3), (1, 1)),
        ((4, 5), 7, (1, 2), (2, 0)),
        ((6, 7), 1, (4, 1), (0, 3)),
        ((1, 5), 2, (2, 2), (1, 1)),
        ((5, 1), 4, (3, 2), (2, 2)),
        ((3, 3), 99, (9, 9), (9, 9)),
    ],
)
def test_fast_attention_is_masked_softmax(kind, size, length, block, flange):
    attend = make_attention(kind, ImageSpec(1, *size), length, block, flange)
    tokens = size[0] * size[1]
    q, k, v = torch.randn(3, 2, 3, tokens, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    scores = (q @ k.transpose(2, 3) / 2).masked_fill(~attend.allowed(tokens), -torch.inf)
    torch.testing.assert_close(attend(q, k, v), scores.softmax(3) @ v, rtol=1e-12, atol=1e-12)
    for rows in range(1, size[0]):  # the first rows alone, as a known prefix needs them
        n = rows * size[1]
        first = attend(q[:, :, :n], k[:, :, :n], v[:, :, :n])
        torch.testing.assert_close(first, (scores.softmax(3) @ v)[:, :, :n], rtol=1e-12, atol=1e-12)


def test_what_a_pixel_attends_to():
    spec = ImageSpec(1, 6, 8)
    token = 3 * 8 + 5  # row 3, column 5
    seen = make_attention("local_1d", spec, 10, (1, 1), (0, 0)).allowed(48)[token]
    assert seen.nonzero().flatten().tolist() == list(range(10, 30))  # the block from 20 and the one before
    seen = make_attention("local_2d", spec, 1, (2, 4), (1, 2)).allowed(48)[token].view(6, 8)
    expected = torch.zeros(6, 8, dtype=torch.bool)
    expected[1:3, 2:] = True  # a row above the rectangle from (2, 4), two columns on either side of it, cut at the edge
    expected[3, 2:6] = True  # its own row up to itself
    assert torch.equal(seen, expected)


def test_full_attention_sees_the_whole_past_and_local_attention_less():
    spec = ImageSpec(1, 5, 9)
    past = torch.arange(45).view(5, 9) < 3 * 9  # of the first pixel of row 3; the last one of row 2 included
    assert torch.equal(net_of(spec, "full", depth=1).receptive_field(3, 0), past)
    for kind in ("local_1d", "local_2d"):
        one, three = (net_of(spec, kind, depth=depth).receptive_field(3, 0) for depth in (1, 3))
        assert (one & ~past).sum() == 0
        assert one.sum() < three.sum() < past.sum()


def test_rotations_know_the_distance_alone():
    height, width, d = 5, 6, 8
    table = rotary_table(height, width, d).double()
    q, k = torch.randn(2, d, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    turned_q, turned_k = (rotate(x.expand(1, height * width, 1, d), table).view(height, width, d) for x in (q, k))
    products = torch.einsum("abd,xyd->abxy", turned_q, turned_k)
    torch.testing.assert_close(products[1:, 1:, 1:, 1:], products[:-1, :-1, :-1, :-1], rtol=1e-6, atol=1e-6)
    assert (products[0, 0, 0, 1] - products[0, 0, 1, 0]).abs() > 1e-3  # rows and columns are told apart


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 2, 3), (3, 2, 1), (2, 5, 7), (3, 4, 3), (1, 1, 1)])
def test_steps_of_any_image_equal_recomputed_steps(kind, size):
    spec = ImageSpec(*size, levels=7)
    net = net_of(spec, kind, context_width=4)
    for context in (torch.randn(2, 4, 1, 1), torch.randn(2, 4, *size[1:])):
        x = torch.randint(7, (2, *size))
        fast = net.start(2, x.device, context=context.double())
        slow, previous = Recompute.start(net, 2, x.device, context=context.double()), None
        for values in to_steps(x, size[0]).unbind(1):
            a, fast = net.step(previous, fast)
            b, slow = Recompute.step(net, previous, slow)
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
            previous = values


def test_dropout_is_for_training_only():
    net, x = net_of(ImageSpec(1, 4, 4), "full", dropout=0.5), torch.randint(256, (2, 1, 4, 4))
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))


@pytest.mark.parametrize(
    "bad",
    [
        {"depth": 0},
        {"attention_heads": 5},
        {"attention_heads": 6},
        {"kernel": 1},
        {"kernel": 4},
        {"attention": "local"},
        {"block": [4]},
        {"block": [0, 4]},
        {"flange": [-1, 0]},
        {"block_length": 0},
    ],
)
def test_impossible_sizes_are_refused(bad):
    with pytest.raises(RequestError):
        PixelTransformer(spec=ImageSpec(1, 4, 4), **({"width": 12, "attention_heads": 3} | bad))
