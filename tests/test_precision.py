"""`trainer.precision=auto` is measured, written into the config and then the same for ranks and resumed runs."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from trainees import Crash, trained

from genlab.processes import resume
from genlab.train import precision

TRUST = ["trust=[trainees]"]


@pytest.fixture
def speed(monkeypatch):
    """Sets how many times as fast bf16 is."""
    return lambda gain: monkeypatch.setattr(precision, "bf16_gain", lambda threads: gain)


@pytest.mark.parametrize(("gain", "expected"), [(1.8, "bf16-mixed"), (1.0, "32"), (0.5, "32")])
def test_the_faster_precision_is_written_into_the_config_and_said(speed, gain, expected):
    speed(gain)
    config = OmegaConf.create({"trainer": {"precision": "auto"}})
    line = precision.settle(config, "cpu")
    assert config.trainer.precision == expected
    assert line.startswith(f"trainer.precision=auto: {expected}, because")


def test_a_precision_that_was_chosen_stays_and_is_not_measured(monkeypatch):
    monkeypatch.setattr(precision, "faster", None)
    config = OmegaConf.create({"trainer": {"precision": "bf16-mixed"}})
    assert precision.settle(config, "cpu") == ""
    assert config.trainer.precision == "bf16-mixed"


def test_the_measurement_is_positive_made_once_and_leaves_no_trace():
    precision.bf16_gain.cache_clear()
    before = torch.get_rng_state()
    gain = precision.bf16_gain(torch.get_num_threads())
    assert gain > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert precision.bf16_gain(torch.get_num_threads()) == gain


@pytest.mark.slow
def test_a_run_records_its_precision_and_a_resumed_one_keeps_it(speed, tmp_path, capsys):
    run = tmp_path / "run"
    speed(1.8)
    with pytest.raises(Crash):
        trained(run, trainer__precision="auto", data__crash_at=9)
    recorded = OmegaConf.load(run / "config.yaml")
    assert recorded.trainer.precision == "bf16-mixed"
    assert "trainer.precision=auto: bf16-mixed" in capsys.readouterr().err
    recorded.data.crash_at = None
    OmegaConf.save(recorded, run / "config.yaml")
    speed(0.5)
    assert resume.run(run, TRUST, "")["precision"] == "bf16-mixed"
    assert resume.run(run, [*TRUST, "trainer.precision=auto", "trainer.max_steps=14"], "")["precision"] == "32-true"
