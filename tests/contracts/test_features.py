"""Features: every block has a name and gives a map of the image."""

from __future__ import annotations

import pytest
import torch
import zoo

CASES = [pytest.param(m, h, s, id=i) for i, m, h, s in zoo.cases(zoo.SPECS)]


@torch.no_grad()
@pytest.mark.parametrize(("model", "head", "spec"), CASES)
def test_features_have_names_and_one_row_an_image(model, head, spec):
    made = zoo.tiny(model, head, spec)
    found = made.features(zoo.random_images(spec, 3))
    assert found
    assert all(len(h) == 3 and h.isfinite().all() for h in found.values())
    assert torch.equal(made.log_prob(zoo.random_images(spec, 3)), made.log_prob(zoo.random_images(spec, 3)))
