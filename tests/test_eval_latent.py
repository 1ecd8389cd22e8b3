"""Latent Gaussian models through the verbs: bounds are reported as bounds, and how the units are used."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch

import genlab
from genlab import cli
from genlab.measure.evaluation import latent_usage

FAST = [
    "trainer=smoke",
    "trainer.accelerator=cpu",
    "trainer.precision=32",
    "train.sample_every=0",
    "model.latent_dim=3",
]
SMALL = ["model=latent_gaussian", "model.encoder.hidden=[16]", "model.decoder.hidden=[16]", "data=mnist_mini"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A smoke run."""
    folder = tmp_path_factory.mktemp("latent") / "run"
    assert cli.run(["train", *FAST, *SMALL, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.mark.slow
def test_results_say_which_bound_and_how_the_units_are_used(trained):
    test = json.loads((trained / "results.json").read_text())["test"]
    assert (test["kind"], test["draws"]) == ("bound", 1)
    assert test["rate"] >= 0
    assert test["distortion"] > 0
    # Two estimates of one ELBO from different noise.
    assert test["rate"] + test["distortion"] == pytest.approx(-test["nats"], rel=0.02)
    assert len(test["kl_per_unit"]) == 3
    assert sum(test["kl_per_unit"]) == pytest.approx(test["rate"], abs=1e-3)
    with open(trained / "metrics.csv", newline="") as file:
        last = [row for row in csv.DictReader(file) if row.get("valid/rate")][-1]
    assert math.isfinite(float(last["valid/distortion"]))
    assert 0 <= int(float(last["valid/active_units"])) <= 3


@pytest.mark.slow
def test_a_bound_is_the_same_on_one_and_three_processes(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["trainer=ddp_cpu", "trainer.devices=3", "data.limit=20", "batch_size=7", "draws=4"]
    assert cli.run(["eval", f"ckpt={trained}", "out=eval.json", *words]) == 0
    result = json.loads((tmp_path / "eval.json").read_text())
    assert (result["kind"], result["draws"], result["n"]) == ("bound", 4, 20)
    assert cli.run(["eval", f"ckpt={trained}", "data.limit=20", "batch_size=7", "draws=4", "out=one.json"]) == 0
    one = json.loads((tmp_path / "one.json").read_text())
    for name in ("nats", "rate", "distortion", "active_units"):
        assert result[name] == pytest.approx(one[name], rel=1e-9), name
    assert (
        cli.run(
            [
                "eval",
                f"ckpt={trained}",
                "out=eval.json",
                "data.limit=20",
                "batch_size=7",
                "draws=4",
                "seed=1",
                "overwrite=true",
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "eval.json").read_text())["nats"] != one["nats"]


@pytest.mark.slow
def test_more_draws_are_a_tighter_bound(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = []
    for draws in (1, 20):
        assert (
            cli.run(["eval", f"ckpt={trained}", "out=eval.json", "data.limit=200", f"draws={draws}", "overwrite=true"])
            == 0
        )
        result.append(json.loads((tmp_path / "eval.json").read_text())["nats"])
    assert result[1] >= result[0] - 0.1


@pytest.mark.slow
def test_verbs_that_draw_work_from_a_checkpoint(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["sample", f"ckpt={trained}", "out=samples.png", "n=4"]) == 0
    assert cli.run(["reconstruct", f"ckpt={trained}", "n=4", "out=r.png"]) == 0
    assert cli.run(["features", f"ckpt={trained}", "out=features.npz", "data.limit=5"]) == 0
    (tmp_path / "pictures").mkdir()
    assert cli.run(["show", f"ckpt={trained}", "what=units", "data.limit=50", "out=pictures"]) == 0
    capsys.readouterr()
    genlab.load(trained)
    from PIL import Image

    Image.new("L", (28, 28), 255).save("white.png")
    assert (
        cli.run(
            [
                "complete",
                f"ckpt={trained}",
                "out=completion.png",
                "image=white.png",
                "known=left:0.5",
                "n=3",
                "particles=5",
            ]
        )
        == 0
    )
    assert "5 particles, at worst" in capsys.readouterr().out


def test_active_units_are_those_whose_mean_varies():
    class Model(torch.nn.Linear):
        latent_dim, conditioning = 2, "none"

        def posterior(self, x, context=None):
            mean = torch.stack([x.flatten(1)[:, 0].float(), torch.full((len(x),), 3.0)], 1)
            return mean, torch.zeros_like(mean)

        def kl_per_unit(self, x, context=None):
            return self.posterior(x)[0].square() / 2

        def objective(self, x, context=None):
            return {"distortion": torch.full((len(x),), 5.0)}

    class Batch:
        images, labels, context = torch.arange(4).view(4, 1, 1, 1), torch.zeros(4), None
        index = torch.arange(4)

    class Data:
        def batches(self, split):
            return [Batch]

    result = latent_usage(Model(1, 1), Data(), "valid", 0)
    assert result["active_units"] == 1
    assert result["distortion"] == 5
    assert result["kl_per_unit"] == [4.5, 1.75]
    assert result["rate"] == 6.25
    assert latent_usage(torch.nn.Linear(1, 1), Data(), "valid", 0) == {}
