"""genlab quality, end to end on tiny models: what the JSON file holds, and which requests are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import genlab
from genlab import cli
from genlab.measure.feature_extractor import weights_hash
from genlab.verbs import quality

pytestmark = pytest.mark.slow

FIXTURES = Path(__file__).parent / "fixtures" / "checkpoints"
CPU = ["trainer=smoke", "trainer.max_steps=2", "trainer.accelerator=cpu", "train.sample_every=0", "optim.lr=1e-3"]
SMALL = ["model.encoder.hidden=[8]", "model.decoder.hidden=[8]", "model.latent_dim=2"]
RUNS = {
    "classifier": ["model=classifier", "model.net.widths=[4,8]"],
    "binary_classifier": ["model=classifier", "model.net.widths=[4,8]", "data.binarize=static"],
    "ppca": ["model=ppca", "model.latent_dim=3"],
    "class_conditional": ["model=latent_gaussian", "model/context=label", *SMALL],
    "binary": ["model=latent_gaussian", "model/head=bernoulli", "data.binarize=static", *SMALL],
    "autoencoder": ["model=linear_ae", "model.latent_dim=3"],
    "gan": ["model=gan", "model.generator.widths=[4]", "model.discriminator.widths=[4]"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a smoke run of every entry of `RUNS`."""
    folder = tmp_path_factory.mktemp("runs")
    for name, words in RUNS.items():
        assert cli.run(["train", *words, *CPU, f"hydra.run.dir={folder}/{name}"]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quality_of(runs, model, *words, classifier="classifier"):
    """The exit status of a quality request."""
    return cli.run(
        [
            "quality",
            f"ckpt={runs / model}",
            f"classifier={runs / classifier}",
            "n=40",
            "device=cpu",
            "batch_size=16",
            "out=quality.json",
            "overwrite=true",
            *words,
        ]
    )


def test_an_unconditional_model(runs, here, capsys):
    assert quality_of(runs, "ppca") == 0
    result = json.loads((here / "quality.json").read_text())
    names = {"frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"}
    assert set(result["samples"]) == set(result["floor"]) == names
    assert result["samples"]["frechet_distance"]["error"] is None
    assert result["samples"]["kernel_distance"]["error"] > 0
    assert 0 < result["floor"]["coverage"]["value"] <= 1
    assert (result["n"], result["test_images"], result["data"], result["temperature"]) == (40, 100, "mnist_mini", 1)
    assert result["seconds_per_image"] > 0
    model = genlab.load(runs / "classifier")
    assert result["classifier"]["sha256"] == weights_hash(model)
    assert result["classifier"]["features"] == 8
    on_test = json.loads((runs / "classifier/results.json").read_text())["test"]
    assert result["classifier"]["accuracy"] == pytest.approx(on_test["accuracy"])
    out = capsys.readouterr().out
    assert "frechet_distance" in out
    assert result["classifier"]["sha256"][:12] in out
    assert sorted(path.name for path in here.iterdir()) == ["quality.json"]


def test_it_is_a_function_of_the_seed(runs, here):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert quality_of(runs, "ppca", f"seed={seed}", f"out={out}.json") == 0
    a, b, c = (json.loads((here / f"{name}.json").read_text()) for name in "abc")
    assert (a["samples"], a["floor"]) == (b["samples"], b["floor"])
    assert a["samples"] != c["samples"]


def test_a_class_conditional_model_and_its_accuracy_score(runs, here):
    assert quality_of(runs, "class_conditional", "cas=true", "temperature=0.5") == 0
    result = json.loads((here / "quality.json").read_text())
    for which in ("samples", "floor"):
        for name in ("label_accuracy", "accuracy_score"):
            assert 0 <= result[which][name]["value"] <= 1
    assert (result["conditioning"], result["temperature"]) == ("label", 0.5)
    assert sorted(path.name for path in here.iterdir()) == ["quality.json"]


def test_the_samples_are_drawn_with_balanced_labels(runs, here, monkeypatch):
    seen = []
    model_class = type(genlab.load(runs / "class_conditional"))
    sample = model_class.sample

    def spy(self, n, *, context=None, **others):
        seen.append(context)
        return sample(self, n, context=context, **others)

    monkeypatch.setattr(model_class, "sample", spy)
    assert quality_of(runs, "class_conditional") == 0
    assert torch.cat(seen).bincount().tolist() == [4] * 10


def test_samples_that_are_the_test_images_get_the_best_values(runs, here, monkeypatch):
    """A model that draws the test images themselves: distance 0; precision, recall and coverage 1."""

    class Copier:
        def sample(self, n, *, context=None, temperature=1.0, generator=None):
            images = mnist_test_images(runs)
            self.at = getattr(self, "at", 0) + n
            return images[self.at - n : self.at].long()

    monkeypatch.setattr(quality, "sampler_of", lambda *_: (Copier(), ""))
    assert quality_of(runs, "ppca", "n=50", "data.limit=50") == 0
    samples = json.loads((here / "quality.json").read_text())["samples"]
    assert samples["frechet_distance"]["value"] == pytest.approx(0, abs=1e-9)
    assert {samples[name]["value"] for name in ("precision", "recall", "coverage")} == {1}


def mnist_test_images(runs):
    """The test images of mnist_mini."""
    from genlab.build import build_data, read_checkpoint

    return build_data(read_checkpoint(runs / "ppca")[1]["data"]).split("test").images


def test_an_autoencoder_is_measured_with_a_density_of_its_codes(runs, here, capsys):
    assert quality_of(runs, "autoencoder", "code=gaussian") == 0
    assert "not a part of the model" in json.loads((here / "quality.json").read_text())["stand_in"]
    assert quality_of(runs, "autoencoder") == 2
    assert "code=gaussian|gmm" in capsys.readouterr().err


def test_binary_images_with_a_classifier_of_binary_images(runs, here):
    assert quality_of(runs, "binary", classifier="binary_classifier") == 0


def test_the_hash_depends_on_the_weights_only():
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert weights_hash(a) != weights_hash(b)
    b.load_state_dict(a.state_dict())
    assert weights_hash(a) == weights_hash(b)
    b.bias.data[0] += 1e-6
    assert weights_hash(a) != weights_hash(b)


WRONG = [
    ("ppca", "classifier", ["n=101"], "give n=100 or less"),
    ("ppca", "classifier", ["n=19"], "at least 20"),
    ("ppca", "classifier", ["data.limit=15", "n=20"], "give n=15 or less"),
    ("ppca", "classifier", ["out=x.png"], "ending in .json"),
    ("ppca", "classifier", ["cas=true"], "not conditioned on any"),
    ("ppca", "classifier", ["code=gmm"], "draws images by itself"),
    ("ppca", "ppca", [], "is model=ppca, not a classifier"),
    ("ppca", "nowhere", [], "nowhere does not exist"),
    ("ppca", "binary_classifier", [], "1x28x28 with 2 levels, and this model draws images of 1x28x28 with 256 levels"),
    ("binary", "classifier", [], "genlab train model=classifier data=mnist_mini"),
    (FIXTURES / "pixelcnn_half.ckpt", "classifier", [], "conditioned on a second image"),
    ("classifier", "classifier", [], "cannot draw images"),
]


@pytest.mark.parametrize(("model", "classifier", "words", "sentence"), WRONG, ids=lambda v: Path(str(v)).name)
def test_wrong_requests_get_one_sentence(model, classifier, words, sentence, runs, here, capsys):
    assert quality_of(runs, model, *words, classifier=classifier) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert list(here.iterdir()) == []


def test_a_classifier_must_be_named(here, capsys):
    assert cli.run(["quality", "ckpt=."]) == 2
    assert "needs classifier=…: a run folder" in capsys.readouterr().err


def test_a_classifier_of_other_images_is_refused(runs, here, capsys):
    """Same shape and alphabet, other things in the pictures."""
    checkpoint = torch.load(runs / "classifier/checkpoints/best.ckpt", weights_only=True)
    checkpoint["genlab"]["config"] = checkpoint["genlab"]["config"].replace("data.MNISTMini", "data.FashionMNIST")
    (here / "sub").mkdir()
    torch.save(checkpoint, here / "sub/fashion.ckpt")
    assert quality_of(runs, "ppca", classifier=here / "sub/fashion.ckpt") == 2
    assert "was trained on fashion_mnist and this model on mnist_mini" in capsys.readouterr().err


def test_eval_of_a_gan_is_the_quality_of_its_samples(runs, here, capsys):
    assert quality_of(runs, "gan", "out=direct.json") == 0
    words = [f"ckpt={runs / 'gan'}", f"classifier={runs / 'classifier'}", "n=40"]
    assert cli.run(["eval", *words, "out=eval.json"]) == 0
    assert "a GAN has no likelihood" in capsys.readouterr().out
    direct, result = (json.loads((here / name).read_text()) for name in ("direct.json", "eval.json"))
    for name, each in result["samples"].items():
        assert each["value"] == pytest.approx(direct["samples"][name]["value"], rel=1e-4), name
    assert cli.run(["eval", *words, "split=valid", "out=no.json"]) == 2
    assert "samples are compared with test images" in capsys.readouterr().err
    assert cli.run(["eval", f"ckpt={runs / 'ppca'}", words[1], "out=no.json"]) == 2
    assert "genlab quality ckpt=" in capsys.readouterr().err
    assert not (here / "no.json").exists()
