"""Autoencoders through the verbs: they train, log what their units do, and eval reports their reconstruction."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
import zoo
from omegaconf import OmegaConf
from thin import every

import genlab
from genlab import cli
from genlab.build import build_data
from genlab.core import RunError
from genlab.measure.evaluation import evaluate_split
from genlab.train.checkpoint import read

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import models_table

FAST = ["trainer=smoke", "trainer.accelerator=cpu", "model.latent_dim=20", "trainer.precision=32"]
FAST += ["train.sample_every=0"]  # the pictures of a run are in test_show.py
SPARSE = ["model=sparse_ae", "model.code.k=3"]
WITH_HEAD = ["model=bottleneck_ae", "model/head=logistic", "model.features=2", "model/corruption=masking"]
NOTE = "an autoencoder gives images no probability, so there is no bits/dim"


def run(folder, *words):
    assert cli.run(["train", *FAST, *words, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module", params=[SPARSE, WITH_HEAD], ids=["squared error", "nats"])
def trained(request, tmp_path_factory):
    """A smoke run of an autoencoder."""
    return run(tmp_path_factory.mktemp("runs") / "run", *request.param)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(folder):
    return json.loads((folder / "results.json").read_text())


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def images(folder, split="test"):
    return build_data(OmegaConf.load(folder / "config.yaml").data).split(split).images


# ---- training


@pytest.mark.parametrize("model", every(6, zoo.family(*zoo.AUTOENCODERS)))
def test_every_autoencoder_trains(model, tmp_path, capsys):
    folder = run(tmp_path / "run", f"model={model}")
    out = capsys.readouterr().out
    assert out.startswith("test reconstruction ")
    assert "bits" not in out
    assert all(value.isfinite().all() for value in read(folder / "checkpoints/last.ckpt")["state_dict"].values())
    assert "bits_per_dim" not in results(folder)["test"]


@pytest.mark.slow
def test_what_is_logged(trained):
    """Of training batches and of the whole validation split; dead units need a whole split."""
    logged = rows(trained)[-1]
    each = {"loss", "reconstruction", "penalty", "active", "mean_activation"}
    with_head = "logistic" in (trained / "command.txt").read_text()
    asked = set() if with_head else {"asked_active"}
    trained_on = each | {"grad_norm", "lr", "bad_steps"} | (set() if with_head else {"squared_error"})
    assert {k for k in logged if k.startswith("train/")} == {f"train/{name}" for name in trained_on}
    whole = each | asked | {"squared_error", "dead_units", "dead_share"}
    assert {k for k in logged if k.startswith("valid/")} == {f"valid/{name}" for name in whole}
    assert all(logged[name] for name in logged)
    valid = results(trained)["valid"]
    for name in whole:
        assert float(logged[f"valid/{name}"]) == valid[name]
    assert whole <= results(trained)["test"].keys()


@torch.no_grad()
def test_numbers_of_the_split_are_means_over_its_images(trained):
    model, x, test = genlab.load(trained), images(trained), results(trained)["test"]
    terms = model.objective(x)
    for name in ("loss", "reconstruction", "penalty", "squared_error", "active", "mean_activation"):
        assert test[name] == pytest.approx(terms[name].double().mean().item(), rel=1e-5, abs=1e-9)
    h = model.encode(x)
    dead = int((h.abs() <= model.threshold).all(0).sum())
    assert (test["dead_units"], test["dead_share"], test["units"]) == (dead, dead / 20, 20)
    error = terms["reconstruction"].double().std().item() / len(x) ** 0.5
    assert test["standard_error"] == pytest.approx(error, rel=1e-4)
    assert (test["kind"], test["n"]) == ("reconstruction", len(x))
    if "sparse_ae" in (trained / "command.txt").read_text():
        assert test["measured_in"] == "half squared error"
        assert test["asked_active"] == 3 / 20
        assert test["active"] == pytest.approx(3 / 20)
        assert dead > 0
        y = x.float() / 255
        assert test["squared_error"] == pytest.approx((model.decode(h) - y).square().mean().item(), rel=1e-5)
        assert test["reconstruction"] == pytest.approx(test["squared_error"] * 784 / 2, rel=1e-5)
    else:
        assert test["measured_in"] == "nats"


def test_a_term_that_is_not_finite_is_an_error_that_names_it_and_the_image(trained):
    model = genlab.load(trained)
    data = build_data(OmegaConf.load(trained / "config.yaml").data)
    objective = model.objective
    model.objective = lambda x, context=None: objective(x) | {"penalty": torch.full((len(x),), torch.nan)}
    with pytest.raises(RunError, match="penalty is not finite for 100 of 100 images, first image 0"):
        evaluate_split(model, data, "test", weights="ema", seed=0)


# ---- genlab eval


@pytest.mark.slow
def test_eval_reports_the_reconstruction_and_says_that_there_is_no_likelihood(trained, here, capsys):
    assert cli.run(["eval", f"ckpt={trained}", "out=eval.json", "trainer=cpu"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    result, test = json.loads((here / "eval.json").read_text()), results(trained)["test"]
    assert first.startswith(NOTE)
    assert second.startswith(f"test reconstruction {test['reconstruction']:.4f} ± {test['standard_error']:.4f} ")
    assert f" {test['measured_in']} (100 images)" in second
    assert second.endswith(f"of 20 units on, {test['dead_units']} dead")
    for name, value in test.items():
        assert result[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
    assert result["checkpoint"].endswith("best.ckpt")
    assert not any("bits" in key for key in result)


def test_draws_of_an_autoencoder_are_refused(trained, here, capsys):
    assert cli.run(["eval", f"ckpt={trained}", "draws=5"]) == 2
    captured = capsys.readouterr()
    assert "draws=5: draws are those of a bound" in captured.err
    assert captured.err.count("\n") == 1
    assert not list(here.iterdir())


@pytest.mark.slow
def test_eval_is_the_same_on_two_processes(tmp_path, capfd, monkeypatch):
    """In batches of 7: with 5 images one process has no batch, and learns from the other which terms there are."""
    monkeypatch.chdir(tmp_path)
    folder, result = run(tmp_path / "run", *SPARSE), []
    capfd.readouterr()
    for devices in (1, 2):
        words = ["trainer=ddp_cpu", f"trainer.devices={devices}", "data.limit=5", "batch_size=7", "overwrite=true"]
        assert cli.run(["eval", f"ckpt={folder}", "out=eval.json", *words]) == 0
        assert capfd.readouterr().out.count("\n") == 2
        result.append(json.loads((tmp_path / "eval.json").read_text()))
    one, two = result
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name


# ---- beside the verbs


def test_a_row_of_the_table_does_not_present_a_reconstruction_as_a_likelihood(trained, tmp_path):
    (trained / "config.yaml").write_text((trained / "config.yaml").read_text().replace("limit: 100", "limit: null"))
    entry = models_table.collect(trained, None)
    (tmp_path / models_table.name(entry)).write_text(json.dumps(entry))
    row = models_table.table(tmp_path).splitlines()[-1]
    test = results(trained)["test"]
    assert f"no likelihood; reconstruction {test['reconstruction']:.4f} ±" in row
    assert test["measured_in"] in row


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path, capfd):
    """Half a batch each: the same objective, gradients and running means. (What is drawn, noise and the winners of a
    lifetime code, is each process's own.)
    """
    words = ["model=sparse_ae", "model/code=kl", "model.code.target=0.2", "model.code.weight=3"]
    words += ["train.ema=0.5", "trainer.gradient_clip_val=null"]
    one = run(tmp_path / "one", *words, "data.batch_size=16")
    two = run(tmp_path / "two", *words, "data.batch_size=8", "trainer.devices=2", "trainer.strategy=ddp")
    capfd.readouterr()
    assert (results(one)["processes"], results(two)["processes"]) == (1, 2)
    a, b = (read(folder / "checkpoints/last.ckpt")["state_dict"] for folder in (one, two))
    assert a.keys() == b.keys()
    assert "model.code.running" in a
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")
    for first, second in zip(rows(one), rows(two), strict=True):
        for name in set(first) - {"train/grad_norm"}:
            assert float(second[name] or 0) == pytest.approx(float(first[name] or 0), rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_compiling_is_for_encoder_and_decoder(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    run(tmp_path / "run", *SPARSE, "compile=true")
    assert compiled == ["MLPEncoder", "MLPDecoder"]
