"""Pictures that explain a model: its density, what a pixel sees, where it looks, its order, its bound, its times."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import zoo
from PIL import Image
from torch import nn

from genlab.core import ImageSpec, RequestError
from genlab.data import Half, Split, toy_data
from genlab.data.batches import Batch, take
from genlab.nets.causal.pixelsnail import earlier
from genlab.viz import bounds, density, generation, timing
from genlab.viz.pictures import PICTURES, everything
from genlab.viz.subject import Subject

SPEC = ImageSpec(1, 6, 6, 4)
HEADS = {"pixelcnnpp": "logistic_mixture", "pixelsnail": "conditional_categorical"}


class Table(nn.Module):
    """A model that is a table of log-probabilities; `noise`: of its log-weights, if it is a bound."""

    def __init__(self, table, noise=0.0):
        super().__init__()
        self.p = nn.Parameter(torch.as_tensor(table).log())
        self.exact, self.noise = noise == 0, noise

    def log_prob(self, x, context=None):
        values = x.flatten(1) if context is None else torch.cat([context.flatten(1), x.flatten(1)], 1)
        log_p = self.p[tuple(values.T)]
        if context is not None:
            log_p = log_p - self.p.logsumexp(1)[context.flatten()]
        return log_p + self.noise * torch.randn(len(x)) - self.noise**2 / 2


class Drawer(nn.Module):
    """A model without a likelihood that draws from a table."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.as_tensor(table))

    def sample(self, n, draw=None, *, seed=None, **keywords):
        cells = torch.multinomial(self.table.flatten(), n, True, generator=torch.Generator().manual_seed(seed))
        return torch.stack(torch.unravel_index(cells, self.table.shape), -1).view(n, 1, 1, -1)


def skewed(table):
    """Another table with the same cells above 0."""
    other = table * (1 + np.arange(table.size).reshape(table.shape))
    return other / other.sum()


@pytest.mark.parametrize("dims", [1, 2])
def test_the_divergence_is_that_of_the_tables(dims):
    data = toy_data(dims, "gaussians", 16)
    p, q = data.source.table, skewed(data.source.table)
    shown, bits, kind = density.divergence(Table(p), data)
    assert (round(bits, 9), kind) == (0, "")
    torch.testing.assert_close(shown, torch.from_numpy(p))
    _, bits, _ = density.divergence(Table(q), data)
    assert bits == pytest.approx((p * np.log2(p / q)).sum())


def test_the_divergence_of_a_bound_is_larger_by_its_gap():
    data = toy_data(2, "moons", 16)
    shown, bits, kind = density.divergence(Table(data.source.table, noise=0.5), data)
    gap = 0.125 / math.log(2)
    assert kind == "≤ "
    assert bits == pytest.approx(gap, abs=0.05)
    assert shown.sum() == pytest.approx(1, abs=0.02)


def test_a_model_without_a_likelihood_is_judged_by_its_drawings():
    data = toy_data(2, "histogram", 8)
    shown, bits, kind = density.divergence(Drawer(data.source.table), data)
    assert kind == "from drawings: "
    assert 0 < bits < 0.01
    assert (shown - torch.from_numpy(data.source.table)).abs().max() < 0.01
    with pytest.raises(RequestError, match="no distribution"):
        density.divergence(nn.Linear(1, 1), data)


def test_a_conditional_model_is_shown_with_the_true_first_coordinate():
    data = toy_data(2, "clusters", 16, context=Half())
    shown, bits, _ = density.divergence(Table(data.source.table), data)
    assert bits == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(shown, torch.from_numpy(data.source.table))


class Data:
    """Random images without classes."""

    class_names = ()

    def __init__(self, spec=SPEC, context=None):
        self.spec, self.given = spec, context

    def split(self, name):
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, self.spec.levels, (20, *self.spec.shape), generator=generator).to(torch.uint8)
        return Split(images, torch.zeros(len(images), dtype=torch.int64))

    def first(self, name, count):
        batch = take(self.split(name), torch.arange(count))
        return batch if self.given is None else Batch(*batch[:3], self.given[:count])


def subject(model, tmp_path, data=None):
    return Subject(model.requires_grad_(False), data or Data(model.spec), "valid", tmp_path / "metrics.csv")


def net_case(name, kind="full"):
    variant = f"-{kind}" if name == "pixel_transformer" else ""
    return zoo.Case(name, variant, HEADS.get(name, "categorical"), "none", SPEC).tiny(dtype=torch.float)


@pytest.mark.parametrize(
    "name", ["pixelcnn", "gated_pixelcnn", "pixelcnnpp", "pixelsnail", "pixel_transformer", "made"]
)
def test_a_pixel_is_reached_only_by_what_its_net_declares(name, tmp_path):
    model = net_case(name)
    row, column = 3, 3
    names, maps = generation._influences(subject(model, tmp_path), row, column)
    declared = model.net.receptive_field(row, column)
    assert len(names) == len(maps)
    for influence in maps:
        reached = influence > 0
        reached[row, column] = False  # a layer may have read the pixel for the pixels after it
        assert not (reached & ~declared).any()
    generation.receptive_field(subject(model, tmp_path))(tmp_path / "field.png")
    assert (tmp_path / "field.png").exists()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["full", "local_1d", "local_2d"])
def test_attention_of_a_transformer_is_what_its_blocks_compute(kind):
    net = net_case("pixel_transformer", kind).double().net
    seen = []
    hook = net.attend.register_forward_hook(lambda module, inputs, out: seen.append((inputs[2], out)))
    x = zoo.random_images(SPEC, 2, 0)
    net(x)
    hook.remove()
    weights = net.attention_weights(x)
    assert len(weights) == len(net.blocks) == len(seen)
    for each, (values, out) in zip(weights, seen, strict=True):
        torch.testing.assert_close(each.sum(-1), torch.ones_like(each.sum(-1)))
        assert not each.triu(1).any()
        torch.testing.assert_close(each @ values, out)


@torch.no_grad()
def test_attention_of_pixelsnail_is_what_its_blocks_compute():
    net = net_case("pixelsnail").double().net
    x = zoo.random_images(SPEC, 2, 0)
    weights = net.attention_weights(x)
    raw, place, biases = net._inputs(x, None)
    _, query, keys, values = net.blocks[0].look(net.stem(raw), raw, place, biases[0])
    v = values.flatten(2).unflatten(1, (net.blocks[0].heads, -1)).mT
    expected = earlier(query, keys, values, net.blocks[0].heads)
    torch.testing.assert_close((weights[0] @ v).mT.flatten(1, 2).view_as(expected), expected)
    assert not weights[0].triu().any()


@pytest.mark.parametrize("name", ["pixel_transformer", "pixelsnail"])
def test_the_other_pictures_of_generation_are_drawn(name, tmp_path):
    model = net_case(name)
    about = subject(model, tmp_path)
    for picture in ("attention", "order", "timing"):
        PICTURES[picture](about)(tmp_path / f"{picture}.png")
    assert np.asarray(Image.open(tmp_path / "order.png")).any()
    assert {"receptive_field", "attention", "order"} <= set(everything(model))
    assert not any(p.requires_grad for p in model.parameters())


def test_pictures_that_a_model_cannot_have_are_refused_in_a_sentence(tmp_path):
    table = Table(np.full((4, 4), 1 / 16))
    table.spec = SPEC
    for name, why in (("order", "pixel by pixel"), ("density", "toy1d"), ("bounds", "exact")):
        with pytest.raises(RequestError, match=why):
            PICTURES[name](subject(table, tmp_path))
    with pytest.raises(RequestError, match="no attention"):
        PICTURES["attention"](subject(net_case("pixelcnn"), tmp_path))


def test_a_bound_grows_with_its_draws():
    log_w = torch.randn(bounds.DRAWS, 50, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    values = [float(bounds._bound(log_w, k)) for k in (1, 4, 64, 256)]
    assert values[0] == pytest.approx(float(log_w.mean()))
    assert values == sorted(values)
    assert values[-1] == pytest.approx(0.5, abs=0.05)


def test_times_are_measured_for_every_way(tmp_path):
    model = net_case("pixelcnn")
    assert all(seconds > 0 for seconds in timing.seconds(model, 2, None))
