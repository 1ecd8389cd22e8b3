"""The classifier: probabilities of labels, features that they are read off, a toy set learnt; images that move."""

from __future__ import annotations

import json

import pytest
import torch
import zoo

from genlab import cli
from genlab.build import build
from genlab.core import Classifier, ImageSpec, Likelihood, RequestError, Sampler
from genlab.data import Batch
from genlab.measure import bits

SPECS = {"grey": zoo.GREY, "rgb": zoo.RGB, "binary": zoo.BINARY}


def tiny(spec, shift=1, **net):
    """A small classifier as initialised."""
    torch.manual_seed(0)
    net = {"_target_": "genlab.nets.ConvNet", "_partial_": True, "widths": [6, 5], "depth": 1, **net}
    return build({"_target_": "genlab.models.ImageClassifier", "net": net, "shift": shift}, spec)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_probabilities_of_labels_sum_to_one(spec):
    model = tiny(spec).eval()
    x, labels = zoo.random_images(spec, 7), torch.arange(7) % spec.classes
    reading = model.read(x)
    torch.testing.assert_close(reading.log_probs.exp().sum(1), torch.ones(7))
    assert reading.features.shape == (7, 5)
    torch.testing.assert_close(model.last(reading.features).log_softmax(1), reading.log_probs)
    torch.testing.assert_close(model.features(x)["penultimate"], reading.features)
    found = model.objective(x, labels)
    torch.testing.assert_close(found["loss"], -reading.log_probs[torch.arange(7), labels])
    assert torch.equal(found["accuracy"].bool(), reading.log_probs.argmax(1) == labels)


def test_it_is_no_generative_model_and_is_told_the_labels():
    model = tiny(zoo.GREY)
    assert isinstance(model, Classifier)
    assert not isinstance(model, (Likelihood, Sampler))
    labels = torch.tensor([2, 1])
    assert bits.context_of(model, Batch(zoo.random_images(zoo.GREY, 2), labels, labels)) is labels


def test_a_reading_does_not_depend_on_the_other_images():
    model = tiny(zoo.GREY).eval()
    x = zoo.random_images(zoo.GREY, 6)
    torch.testing.assert_close(model.read(x).features[:2], model.read(x[:2]).features)


def test_training_images_are_moved_each_by_its_own_number_of_pixels():
    spec = ImageSpec(2, 6, 7, 256, classes=2)
    model = tiny(spec, shift=2)
    y = torch.arange(spec.dims).float().view(1, *spec.shape).expand(200, -1, -1, -1)
    torch.manual_seed(1)
    moved = model._shifted(y)
    # Inside, where no border shows, a move by (a, b) adds 7 a + b to every value.
    offsets = (moved - y)[:, :, 2:-2, 2:-2].flatten(1)
    assert (offsets == offsets[:, :1]).all()
    assert set(offsets[:, 0].tolist()) == {7 * a + b for a in range(-2, 3) for b in range(-2, 3)}
    assert moved.max() <= y.max()
    assert moved.shape == y.shape


def test_it_is_still_when_not_in_training():
    model = tiny(zoo.GREY).eval()
    x, labels = zoo.random_images(zoo.GREY, 5), torch.zeros(5, dtype=torch.long)
    assert torch.equal(model.objective(x, labels)["loss"], model.objective(x, labels)["loss"])


def test_it_learns_a_toy_set():
    """Three classes by their brightest row, at random columns."""
    spec = ImageSpec(1, 6, 6, 4, classes=3)
    labels = torch.arange(60) % 3
    x = torch.zeros(60, *spec.shape, dtype=torch.long)
    x[torch.arange(60), 0, 2 * labels, torch.randint(6, (60,), generator=torch.Generator().manual_seed(0))] = 3
    model = tiny(spec, shift=0, widths=[16, 16])
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(80):
        optimiser.zero_grad()
        model.objective(x, labels)["loss"].mean().backward()
        optimiser.step()
    assert model.eval().objective(x, labels)["accuracy"].mean() > 0.95


@pytest.mark.parametrize(
    ("spec", "config", "sentence"),
    [
        (ImageSpec(1, 4, 4), {}, "images with labels"),
        (zoo.GREY, {"shift": 4}, "shift=4"),
        (zoo.GREY, {"shift": -1}, "shift=-1"),
        (zoo.GREY, {"widths": []}, "widths >= 1"),
        (zoo.GREY, {"depth": 0}, "depth >= 1"),
    ],
)
def test_what_cannot_be_built_says_so(spec, config, sentence):
    with pytest.raises(RequestError, match=sentence):
        tiny(spec, **config)


@pytest.mark.slow
def test_training_and_eval_report_the_accuracy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["model=classifier", "model.net.widths=[4,8]", "trainer=smoke", "trainer.accelerator=cpu"]
    assert cli.run(["train", *words, "hydra.run.dir=run"]) == 0
    assert cli.run(["eval", "ckpt=run", "out=eval.json", "trainer=cpu"]) == 0
    first = json.loads((tmp_path / "run/results.json").read_text())["test"]
    again = json.loads((tmp_path / "eval.json").read_text())
    assert first["accuracy"] == again["accuracy"]
    assert again["kind"] == "classification"
    assert 0 <= again["accuracy"] <= 1
    out = capsys.readouterr().out
    assert out.count("test accuracy") == 2
    assert "autoencoder" not in out
    assert "valid/accuracy" in (tmp_path / "run/metrics.csv").read_text()
    assert cli.run(["sample", "ckpt=run"]) == 2
    assert "cannot draw images" in capsys.readouterr().err
