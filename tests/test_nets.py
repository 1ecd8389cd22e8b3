"""What is particular to a net: the blind spot of the PixelCNN, colour groups of any width, bad sizes refused."""

from __future__ import annotations

import pytest
import torch

from genlab.core import ImageSpec, RequestError
from genlab.nets import PixelCNN
from genlab.nets.layers.masked import MaskedConv2d, group_of_channel, group_sizes


def test_pixelcnn_has_the_blind_spot_of_the_paper():
    net = PixelCNN(spec=ImageSpec(1, 12, 16, 2), width=8, depth=3, kernel=3)
    seen = net.receptive_field(8, 4)
    past = torch.zeros(12, 16, dtype=torch.bool)
    past[:8] = True
    past[8, :4] = True
    assert not (seen & ~past).any()
    blind = past & ~seen
    assert blind[7, 9:].all()  # one row up, further right than 1 + depth columns: never seen
    # It is a wedge: wherever the right of a row is blind, so is all further right.
    assert all((row.long().diff() >= 0).all() for row in blind[5:8, 5:])


def test_a_kernel_of_one_pixel_sees_no_other_pixel():
    net = PixelCNN(spec=ImageSpec(3, 4, 5), width=6, depth=1, kernel=1)
    assert not net.first.pixels_read(torch.ones(4, 5, dtype=torch.bool)).any()
    assert not net.receptive_field(0, 0).any()


@torch.no_grad()
@pytest.mark.parametrize("width", [6, 7, 8, 11])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_colour_groups_of_any_width(width, kernel):
    """Features of a colour see earlier colours of their pixel, never their own or later ones."""
    spec = ImageSpec(3, 3, 4, 5)
    seen = torch.zeros(3, 3, dtype=torch.bool)
    for seed in range(8):  # a ReLU may be off in one net, not in many
        torch.manual_seed(seed)
        net = PixelCNN(spec=spec, width=width, depth=2, kernel=kernel, feature_width=5).double()
        for p in net.parameters():
            p.normal_()
        x = torch.randint(5, (1, 3, 3, 4))
        for c in range(3):
            changed = x.clone()
            changed[:, c, 1, 1] = (x[:, c, 1, 1] + 1) % 5
            seen[:, c] |= (net(changed) != net(x)).view(3, 4, 3, -1)[1, 1].any(-1)
    assert torch.equal(seen, torch.ones(3, 3).tril(-1).bool())


def test_groups_are_blocks_as_even_as_possible():
    assert group_sizes(11, 3) == [4, 4, 3]
    assert group_of_channel(5, 2).tolist() == [0, 0, 0, 1, 1]
    with pytest.raises(RequestError, match="3 colour groups"):
        group_sizes(2, 3)


def test_mask_is_applied_in_the_computation_and_not_saved():
    conv = MaskedConv2d("A", 1, 2, 3, groups=1)
    assert set(conv.state_dict()) == {"weight", "bias"}
    conv.weight.data.fill_(1)
    y = conv(torch.ones(1, 1, 3, 3)).sum()
    y.backward()
    assert (conv.weight.grad[:, :, 2] == 0).all()
    assert (conv.weight == 1).all()


@pytest.mark.parametrize("bad", [{"width": 1}, {"depth": 0}, {"kernel": 4}, {"feature_width": 0}])
def test_impossible_sizes_are_refused(bad):
    with pytest.raises(RequestError):
        PixelCNN(spec=ImageSpec(1, 4, 4), **bad)


@pytest.mark.gpu
@torch.no_grad()
def test_captured_rows_equal_eager_rows_on_a_gpu():
    from functools import partial

    from genlab.heads import Categorical
    from genlab.models import Autoregressive

    model = Autoregressive(ImageSpec(3, 6, 5, 8), net=partial(PixelCNN, width=24, depth=3), head=Categorical)
    for p in model.parameters():
        p.normal_(0, 0.3)
    model = model.double().cuda()
    captured = model.sample(7, generator=torch.Generator().manual_seed(0))
    model.net.rows_alike = False
    eager = model.sample(7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(captured, eager)
    assert torch.equal(model.cpu().sample(7, generator=torch.Generator().manual_seed(0)), eager.cpu())
