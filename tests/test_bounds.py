"""The scripts that compare bounds, and rates with distortions."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from genlab.core import ImageSpec
from genlab.models import PPCA

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import bounds
import rate_distortion


def test_groups_of_draws_make_ordered_bounds_of_the_same_mean_weight():
    log_w = torch.randn(100, 7, generator=torch.Generator().manual_seed(0)).double()
    one, ten, hundred = bounds.bounds(log_w, [1, 10, 100])
    torch.testing.assert_close(one, log_w.mean(0))
    torch.testing.assert_close(hundred, log_w.exp().mean(0).log())
    assert (one < ten).all()
    assert (ten < hundred).all()
    by_hand = torch.stack([log_w[i : i + 10].exp().mean(0).log() for i in range(0, 100, 10)]).mean(0)
    torch.testing.assert_close(ten, by_hand)


def test_weights_of_ppca_are_for_the_same_y_as_the_exact_density():
    torch.manual_seed(0)
    model = PPCA(ImageSpec(1, 2, 2, 256), latent_dim=1, inference="encoder").double()
    x = torch.randint(256, (5, 1, 2, 2))
    log_w, exact = bounds.log_weights(model, x, 20_000)
    assert torch.allclose(log_w.logsumexp(0) - math.log(20_000), exact, atol=0.1)


def test_rates_and_distortions_come_from_the_run_folders(tmp_path):
    for i, beta in enumerate((4.0, 0.5)):
        run = tmp_path / str(i)
        run.mkdir()
        (run / "config.yaml").write_text(f"model:\n  beta: {beta}\n")
        valid = {"rate": 10.0 / beta, "distortion": 80.0 + beta, "active_units": 3 + i}
        (run / "results.json").write_text(json.dumps({"valid": valid}))
    records = rate_distortion.read([tmp_path])
    assert [r["beta"] for r in records] == [0.5, 4.0]
    assert rate_distortion.table(records).splitlines()[2] == "| 0.5 | 20.00 | 80.50 | 100.50 | 4 |"
    rate_distortion.plot(records, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert records[0]["rate"] == pytest.approx(20)
