"""How a net reads pixel values (`nets/layers/values.py`)."""

import pytest
import torch

from genlab.core import ImageSpec, RequestError
from genlab.nets.layers.values import Values

SPEC = ImageSpec(3, 4, 5, 256)


def test_put_writes_what_forward_computes():
    values = Values(SPEC, 4)
    x = torch.randint(0, 256, (2, 3, 4, 5))
    whole = values(x)
    into = torch.zeros(2, 20)[:, 3:11]  # two colours, inside a larger buffer
    with torch.no_grad():
        values.put(x[:, 1:, 2, 3], into)
    assert whole.shape == (2, 12, 4, 5)
    assert torch.equal(into, whole[:, 4:, 2, 3])


def test_a_value_of_width_1_is_its_intensity_without_parameters():
    values = Values(SPEC, 1)
    x = torch.randint(0, 256, (2, 3, 4, 5))
    assert torch.allclose(values(x), x / 127.5 - 1, atol=1e-6)
    assert not list(values.parameters())
    assert not values.state_dict()


def test_initial_levels_are_distinct_and_neighbours_are_close():
    table = Values(SPEC, 8).table.detach()
    steps = (table[1:] - table[:-1]).norm(dim=1)
    assert steps.min() > 0
    assert steps.max() < 0.2 < (table[0] - table[128]).norm()


def test_the_width_is_at_most_the_number_of_levels_minus_1():
    assert Values(ImageSpec(1, 4, 4, 2), 8).width == 1
    assert Values(ImageSpec(1, 4, 4, 4), 8).width == 3
    with pytest.raises(RequestError, match="value_width"):
        Values(SPEC, 0)
