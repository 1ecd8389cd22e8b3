"""genlab quality, end to end on tiny models: what the file says, what is refused, and that no likelihood is needed."""

from __future__ import annotations

import json

import pytest
import torch

import genlab
from genlab import cli
from genlab.verbs import quality

pytestmark = pytest.mark.slow

CPU = ["trainer=smoke", "trainer.accelerator=cpu", "train.sample_every=0", "optim.lr=1e-3"]
SMALL = ["model.encoder.hidden=[8]", "model.decoder.hidden=[8]", "model.latent_dim=2"]
RUNS = {
    "eye": ["model=classifier", "model.net.widths=[4,8]"],
    "binary_eye": ["model=classifier", "model.net.widths=[4,8]", "data.binarize=static"],
    "plain": ["model=ppca", "model.latent_dim=3"],
    "label": ["model=latent_gaussian", "model/context=label", *SMALL],
    "half": ["model=latent_gaussian", "model/context=image", "data/context=lowres", "data.context.factor=4", *SMALL],
    "binary": ["model=latent_gaussian", "model/head=bernoulli", "data.binarize=static", *SMALL],
    "auto": ["model=linear_ae", "model.latent_dim=3"],
    "gan": ["model=gan", "model.generator.widths=[4]", "model.discriminator.widths=[4]"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a smoke run of each."""
    folder = tmp_path_factory.mktemp("runs")
    for name, words in RUNS.items():
        assert cli.run(["train", *words, *CPU, f"hydra.run.dir={folder}/{name}"]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(runs, model, *words, eye="eye"):
    """The exit status of a quality request."""
    return cli.run(
        ["quality", f"ckpt={runs / model}", f"classifier={runs / eye}", "n=40", "device=cpu", "batch_size=16", *words]
    )


def test_an_unconditional_model(runs, here, capsys):
    assert asked(runs, "plain") == 0
    found = json.loads((here / "quality.json").read_text())
    names = {"frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"}
    assert set(found["samples"]) == set(found["floor"]) == names
    assert found["samples"]["frechet_distance"]["error"] is None
    assert found["samples"]["kernel_distance"]["error"] > 0
    assert 0 < found["floor"]["coverage"]["value"] <= 1
    assert (found["n"], found["test_images"], found["data"], found["temperature"]) == (40, 100, "mnist_mini", 1)
    assert found["seconds_per_image"] > 0
    model = genlab.load(runs / "eye")
    assert found["classifier"]["sha256"] == quality.fingerprint(model)
    assert found["classifier"]["features"] == 8
    on_test = json.loads((runs / "eye/results.json").read_text())["test"]
    assert found["classifier"]["accuracy"] == pytest.approx(on_test["accuracy"])
    out = capsys.readouterr().out
    assert "frechet_distance" in out
    assert found["classifier"]["sha256"][:12] in out
    assert sorted(path.name for path in here.iterdir()) == ["quality.json"]


def test_it_is_a_function_of_the_seed(runs, here):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert asked(runs, "plain", f"seed={seed}", f"out={out}.json") == 0
    a, b, c = (json.loads((here / f"{name}.json").read_text()) for name in "abc")
    assert (a["samples"], a["floor"]) == (b["samples"], b["floor"])
    assert a["samples"] != c["samples"]


def test_a_class_conditional_model_and_its_accuracy_score(runs, here):
    assert asked(runs, "label", "cas=true", "temperature=0.5") == 0
    found = json.loads((here / "quality.json").read_text())
    for which in ("samples", "floor"):
        for name in ("label_accuracy", "accuracy_score"):
            assert 0 <= found[which][name]["value"] <= 1
    assert (found["conditioning"], found["temperature"]) == ("label", 0.5)
    assert sorted(path.name for path in here.iterdir()) == ["quality.json"]


def test_labels_are_balanced_and_asked_for(runs, here, monkeypatch):
    seen = []
    model_class = type(genlab.load(runs / "label"))
    sample = model_class.sample

    def spy(self, n, *, context=None, **others):
        seen.append(context)
        return sample(self, n, context=context, **others)

    monkeypatch.setattr(model_class, "sample", spy)
    assert asked(runs, "label") == 0
    assert torch.cat(seen).bincount().tolist() == [4] * 10


def test_samples_that_are_the_test_images_reach_what_is_possible(runs, here, monkeypatch):
    """A model that draws the test set itself: at distance 0, precise, complete; and as accurate as the classifier."""

    class Copier:
        def sample(self, n, *, context=None, temperature=1.0, generator=None):
            images = genlab_test_images(runs)
            self.at = getattr(self, "at", 0) + n
            return images[self.at - n : self.at].long()

    monkeypatch.setattr(quality, "sampler_of", lambda *_: (Copier(), ""))
    assert asked(runs, "plain", "n=50", "data.limit=50") == 0
    samples = json.loads((here / "quality.json").read_text())["samples"]
    assert samples["frechet_distance"]["value"] == pytest.approx(0, abs=1e-9)
    assert {samples[name]["value"] for name in ("precision", "recall", "coverage")} == {1}


def genlab_test_images(runs):
    """The test images of the runs."""
    from genlab.build import build_data, read_checkpoint

    return build_data(read_checkpoint(runs / "plain")[1]["data"]).split("test").images


def test_what_has_no_likelihood_is_measured_too(runs, here, capsys):
    assert asked(runs, "auto", "code=gaussian") == 0
    assert "not a part of the model" in json.loads((here / "quality.json").read_text())["stand_in"]
    assert asked(runs, "auto") == 2
    assert "code=gaussian|gmm" in capsys.readouterr().err


def test_binary_images_with_a_classifier_of_binary_images(runs, here):
    assert asked(runs, "binary", eye="binary_eye") == 0


def test_the_fingerprint_is_of_the_weights():
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert quality.fingerprint(a) != quality.fingerprint(b)
    b.load_state_dict(a.state_dict())
    assert quality.fingerprint(a) == quality.fingerprint(b)
    b.bias.data[0] += 1e-6
    assert quality.fingerprint(a) != quality.fingerprint(b)


WRONG = [
    ("plain", "eye", ["n=101"], "give n=100 or less"),
    ("plain", "eye", ["n=19"], "at least 20"),
    ("plain", "eye", ["data.limit=15", "n=20"], "give n=15 or less"),
    ("plain", "eye", ["temperature=0"], "above 0"),
    ("plain", "eye", ["seed=-1"], "from 0"),
    ("plain", "eye", ["out=x.png"], "ending in .json"),
    ("plain", "eye", ["cas=true"], "not conditioned on any"),
    ("plain", "eye", ["code=gmm"], "draws images by itself"),
    ("plain", "plain", [], "is model=ppca, not a classifier"),
    ("plain", "nowhere", [], "nowhere does not exist"),
    ("plain", "binary_eye", [], "1x28x28 with 2 levels, and this model draws images of 1x28x28 with 256 levels"),
    ("binary", "eye", [], "genlab train model=classifier data=mnist_mini"),
    ("half", "eye", [], "conditioned on a second image"),
    ("eye", "eye", [], "cannot draw images"),
]


@pytest.mark.parametrize(("model", "eye", "words", "sentence"), WRONG, ids=lambda v: str(v))
def test_wrong_requests_get_one_sentence(model, eye, words, sentence, runs, here, capsys):
    assert asked(runs, model, *words, eye=eye) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert list(here.iterdir()) == []


def test_a_classifier_must_be_named(here, capsys):
    assert cli.run(["quality", "ckpt=."]) == 2
    assert "needs classifier=…: a run folder" in capsys.readouterr().err


def test_a_classifier_of_other_images_is_refused(runs, here, capsys):
    """Same shape and alphabet, other things in the pictures."""
    checkpoint = torch.load(runs / "eye/checkpoints/best.ckpt", weights_only=True)
    checkpoint["genlab"]["config"] = checkpoint["genlab"]["config"].replace("data.MNISTMini", "data.FashionMNIST")
    (here / "sub").mkdir()
    torch.save(checkpoint, here / "sub/fashion.ckpt")
    assert asked(runs, "plain", eye=here / "sub/fashion.ckpt") == 2
    assert "was trained on fashion_mnist and this model on mnist_mini" in capsys.readouterr().err


def test_eval_of_a_gan_is_the_quality_of_its_samples(runs, here, capsys):
    assert asked(runs, "gan", "out=direct.json") == 0
    words = [f"ckpt={runs / 'gan'}", f"classifier={runs / 'eye'}", "n=40"]
    assert cli.run(["eval", *words]) == 0
    assert "a GAN has no likelihood" in capsys.readouterr().out
    direct, found = (json.loads((here / name).read_text()) for name in ("direct.json", "eval.json"))
    for name, each in found["samples"].items():
        assert each["value"] == pytest.approx(direct["samples"][name]["value"], rel=1e-4), name
    assert cli.run(["eval", *words, "split=valid", "out=no.json"]) == 2
    assert "samples are compared with test images" in capsys.readouterr().err
    assert cli.run(["eval", f"ckpt={runs / 'plain'}", words[1], "out=no.json"]) == 2
    assert "genlab quality ckpt=" in capsys.readouterr().err
    assert not (here / "no.json").exists()
