"""`data.batch_size=null` is chosen for the device, written into the config and kept by a resumed run."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from genlab.train import batch_size


@pytest.mark.parametrize(("accelerator", "expected"), [("cpu", 16), ("gpu", 128)])
def test_null_is_replaced_and_a_number_is_kept(accelerator, expected):
    for given, settled in ((None, expected), (7, 7)):
        config = OmegaConf.create({"data": {"batch_size": given}})
        batch_size.settle(config, accelerator)
        assert config.data.batch_size == settled


def test_data_of_the_user_without_batches_stay_as_they_are():
    config = OmegaConf.create({"data": {"_target_": "mine.Data"}})
    batch_size.settle(config, "cpu")
    assert list(config.data) == ["_target_"]
