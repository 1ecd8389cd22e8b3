"""Features: every block has a name and gives a representation of the image."""

from __future__ import annotations

import pytest
import torch
import zoo


@torch.no_grad()
@pytest.mark.parametrize("case", zoo.nets({"grey": zoo.GREY, "rgb": zoo.RGB}, ("none", "label")))
def test_features_have_names_and_one_row_an_image(case):
    made, x = case.tiny(), zoo.random_images(case.spec, 3)
    found = made.features(x, case.given(3))
    assert found
    assert all(len(h) == 3 and h.isfinite().all() for h in found.values())
    assert torch.equal(made.log_prob(x, case.given(3)), made.log_prob(x, case.given(3)))
