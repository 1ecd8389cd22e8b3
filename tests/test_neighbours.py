"""Neighbours that the head reads: causal, step by step as in one pass, a linear prediction at the start."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from genlab.core import ImageSpec, to_steps
from genlab.heads import Categorical, LogisticMixture
from genlab.models import Autoregressive
from genlab.models.neighbours import OFFSETS, Neighbours, State, WithNeighbours
from genlab.nets import GatedPixelCNN, PixelCNN


def model(spec, chained, net=GatedPixelCNN):
    torch.manual_seed(0)
    head = LogisticMixture if chained else Categorical
    made = Autoregressive(spec, net=partial(net, width=6, depth=2), head=head, neighbours=True)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("shape", [(1, 5, 4), (3, 4, 5)])
def test_each_feature_is_the_pixel_that_the_docstring_names(shape, chained):
    spec = ImageSpec(*shape, levels=256)
    channels, height, width = shape
    x = torch.randint(256, (2, *shape))
    features = Neighbours(spec, channels if chained else 1)(x, torch.double)
    colours = 1 if chained else channels
    features = features.view(2, height, width, colours, -1)
    for row in range(height):
        for column in range(width):
            for colour in range(colours):
                expected = []
                for i in range(channels):
                    of = i if chained else (colour - i) % channels
                    for up, left in OFFSETS:
                        r, c = row - up, column - left
                        inside = r >= 0 and 0 <= c < width
                        expected.append(x[:, of, r, c] * 2 / 255 - 1 if inside else torch.zeros(2))
                if not chained:
                    for i in range(1, channels):
                        before = x[:, colour - i, row, column] * 2 / 255 - 1
                        expected.append(before if i <= colour else torch.zeros(2))
                torch.testing.assert_close(features[:, row, column, colour], torch.stack(expected, 1).double())


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("chained", [True, False])
def test_a_step_gives_the_features_of_the_whole_image(chained, rows):
    spec = ImageSpec(3, 4, 5, levels=256)
    made = model(spec, chained)
    x = torch.randint(256, (3, *spec.shape))
    values = to_steps(x, made.net.step_channels)
    with torch.no_grad():
        whole = torch.cat([made.net(x), made.neighbours(x, torch.float)], -1)
        net = WithNeighbours(made.net, made.neighbours)
        state = net.start(3, x.device, (x, rows))
        first = rows * values.shape[1] // spec.height
        for t in range(first, values.shape[1]):
            if t == first + 1:
                index = torch.tensor([2, 0, 1])
                state.reorder(index)
                values, whole = values[index], whole[index]
            h, state = net.step(None if t == first else values[:, t - 1], state)
            torch.testing.assert_close(h, whole[:, t], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("chained", "net"), [(True, GatedPixelCNN), (False, GatedPixelCNN), (False, PixelCNN)])
def test_the_likelihood_is_causal_and_sampling_follows_it(chained, net):
    spec = ImageSpec(3, 3, 4, levels=256)
    made = model(spec, chained, net)
    x = torch.randint(256, (1, *spec.shape))
    h = torch.cat([made.net(x), made.neighbours(x, torch.float)], -1)
    later = x.clone()
    later[:, :, 2, 1:] = torch.randint(256, (1, 3, 3))
    changed = torch.cat([made.net(later), made.neighbours(later, torch.float)], -1)
    steps = (2 * 4 + 1) * (1 if chained else 3) + 1
    torch.testing.assert_close(h[:, :steps], changed[:, :steps])
    assert not torch.equal(h, changed)
    known = torch.zeros(1, 3, 4, dtype=torch.bool)
    known[:, :2] = True
    completed = made.complete(x, known, generator=torch.Generator().manual_seed(0)).images
    assert torch.equal(completed[:, :, :2], x[:, :, :2])


def test_means_start_as_a_linear_prediction():
    spec = ImageSpec(3, 4, 4, levels=256)
    torch.manual_seed(0)
    made = Autoregressive(spec, net=partial(GatedPixelCNN, width=6, depth=2), head=LogisticMixture, neighbours=True)
    x = torch.full((1, *spec.shape), 200)
    mean = made.head(torch.cat([made.net(x), made.neighbours(x, torch.float)], -1)).mean()
    assert (mean[:, 5:8] - 200).abs().max() < 2  # a constant image is predicted, away from its border


def test_rows_of_a_state_are_the_newest_of_the_prefix():
    spec = ImageSpec(1, 4, 3, levels=2)
    net = model(spec, False)
    x = torch.randint(2, (1, *spec.shape))
    state = State(None, WithNeighbours(net.net, net.neighbours), 1, x.device, (x, 3))
    assert torch.equal(state.recent[0, 0, :2, 2:-2], 2.0 * x[0, 0, 1:3] - 1)
