"""Python: train, load and data do what the command line does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import genlab
from genlab import cli
from genlab.build.zoo import from_zoo, sums, zoo_folder
from genlab.core import RequestError

SMALL = {"width": 4, "depth": 1, "feature_width": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python") / "run"
    words = ["trainer=smoke", "trainer.max_steps=2", "model/head=bernoulli", "data.levels=2"]
    return genlab.train(*words, f"hydra.run.dir={folder}", model="pixelcnn", data="mnist_mini", seed=3, **SMALL), folder


def test_train_returns_the_folder_of_the_run_that_was_asked_for(run):
    path, folder = run
    assert path == folder
    config = (path / "config.yaml").read_text()
    assert "width: 4" in config
    assert "seed: 3" in config
    assert "model.net.width=4" in (path / "command.txt").read_text()


def test_a_run_is_loaded_and_its_data_opened(run):
    path, _ = run
    images = genlab.load(path).sample(2, seed=0)
    assert images.shape == (2, 1, 28, 28)
    assert images.max() <= 1
    split = genlab.data(path).split("test")
    assert len(split.labels) == len(split.images) > 0
    assert int(split.images.max()) == 1


@pytest.mark.parametrize(
    ("words", "settings", "answer"),
    [
        ([], {"model": "pixelcn"}, "did you mean 'pixelcnn'"),
        ([], {"widht": 4}, "did you mean"),
        ([], {"batch_size": "many"}, "whole number"),
        ([], {"model": "bottleneck_ae", "hidden": [8]}, "model.encoder.hidden or model.decoder.hidden"),
    ],
)
def test_a_wrong_call_is_one_sentence(words, settings, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=answer):
        genlab.train(*words, **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("fresh")
def test_the_packages_of_these_names_can_be_imported_in_any_order():
    code = "from genlab.data import MNISTMini; import genlab.train.muon as m; import genlab, genlab.data as d"
    code += "; assert d.MNISTMini is MNISTMini and callable(genlab.data) and callable(genlab.train) and m.STEPS == 5"
    code += "; import sys; assert sys.modules['genlab.data'] is d is genlab.data"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("fresh")
def test_importing_genlab_does_not_import_torch():
    code = "import sys, genlab; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the zoo


def test_every_file_of_the_zoo_is_the_published_one_and_small():
    assert sums()
    sizes = {name: from_zoo(name).stat().st_size for name in sums()}
    assert max(sizes.values()) <= 4_000_000
    assert sum(sizes.values()) <= 25_000_000
    assert set(sizes) == {path.stem for path in zoo_folder().glob("*.ckpt")}


def test_a_model_of_the_zoo_is_loaded_by_its_name():
    model = genlab.load("zoo:mnist")
    assert model.weights == "ema"
    assert torch.equal(model.sample(1, seed=0), genlab.load(zoo_folder() / "mnist.ckpt").sample(1, seed=0))


@pytest.mark.slow
def test_eval_repeats_the_number_of_the_zoo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["eval", "ckpt=zoo:mnist_mini", "trainer.accelerator=cpu"]) == 0
    found = json.loads((tmp_path / "eval.json").read_text())["bits_per_dim"]
    published = json.loads((zoo_folder() / "mnist_mini.json").read_text())["test"]["bits_per_dim"]
    assert found == pytest.approx(published, abs=2e-6)


def test_what_is_not_in_the_zoo_or_was_changed_is_refused(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match="did you mean 'mnist'"):
        genlab.load("zoo:mnits")
    with pytest.raises(RequestError, match="leave out weights=raw"):
        genlab.load("zoo:mnist", weights="raw")
    (tmp_path / "SHA256SUMS").write_text((zoo_folder() / "SHA256SUMS").read_text())
    content = (zoo_folder() / "mnist.ckpt").read_bytes()
    monkeypatch.setattr("genlab.build.zoo.zoo_folder", lambda: tmp_path)
    with pytest.raises(RequestError, match="is missing"):
        genlab.load("zoo:mnist")
    (tmp_path / "mnist.ckpt").write_bytes(content[:-1])
    with pytest.raises(RequestError, match="SHA-256"):
        genlab.load("zoo:mnist")
