"""Linear probes: accuracy 1 for separable features, chance for shuffled labels, no choice by test images; the verbs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import zoo
from sklearn.linear_model import LogisticRegression

from genlab import cli
from genlab.core import RequestError
from genlab.measure import probe, probe_controls
from genlab.measure.layers import pooled
from genlab.measure.probe import Labelled, Probe


def separable(n, classes=3, seed=0, noise=0.1):
    """Features around the corners of a simplex, in units that differ a thousandfold, one of them constant."""
    random = np.random.default_rng(seed)
    y = random.integers(classes, size=n)
    x = np.eye(classes)[y] + noise * random.normal(size=(n, classes))
    return Labelled(np.hstack([x * 10.0 ** np.arange(classes), np.ones((n, 1))]).astype(np.float32), y)


def test_separable_features_are_separated_whatever_their_scale():
    result = probe.probe("a", separable(200), separable(50, seed=1), separable(50, seed=2))
    assert (result.valid, result.test, result.width) == (1, 1, 4)
    assert result.converged


def test_shuffled_labels_give_chance():
    train, valid, test = (separable(n, seed=n) for n in (300, 300, 600))
    shuffled = [Labelled(of.x, np.random.default_rng(9).permutation(of.y)) for of in (train, valid, test)]
    assert abs(probe.probe("a", *shuffled).test - 1 / 3) < 0.1


def test_no_choice_depends_on_the_test_images():
    train, valid, test = (separable(n, seed=n, noise=1.0) for n in (60, 60, 60))
    wrong = Labelled(test.x, (test.y + 1) % 3)
    a, b = probe.probe("a", train, valid, test), probe.probe("a", train, valid, wrong)
    assert a._replace(test=0) == b._replace(test=0)
    assert a.test != b.test


def test_the_penalty_is_per_image():
    train, valid, test = (separable(n, seed=n, noise=1.0) for n in (60, 60, 60))
    result = probe.probe("a", train, valid, test)
    mean, scale = train.x.mean(0), np.where(train.x.std(0) > 0, train.x.std(0), 1)
    alone = LogisticRegression(C=1 / (result.penalty * 60), max_iter=2000).fit((train.x - mean) / scale, train.y)
    assert alone.score((test.x - mean) / scale, test.y) == pytest.approx(result.test, abs=0.02)


def test_the_search_ends_when_weaker_penalties_do_no_better(monkeypatch):
    train, valid, test = separable(200), separable(50, seed=1), separable(50, seed=2)
    fits = []
    fit = LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", lambda self, *data: (fits.append(self.C), fit(self, *data))[1])
    assert probe.probe("a", train, valid, test).penalty == probe.PENALTIES[0]
    np.testing.assert_allclose(fits, [1 / (penalty * 200) for penalty in probe.PENALTIES[: 1 + probe.PATIENCE]])


def test_a_fit_without_convergence_is_reported(monkeypatch):
    train, valid, test = (separable(n, seed=n, noise=1.0) for n in (60, 60, 60))
    monkeypatch.setattr(probe, "MAX_ITERATIONS", 1)
    assert not probe.probe("a", train, valid, test).converged


def test_one_class_is_refused():
    train = separable(30)
    with pytest.raises(RequestError, match="30 labelled training images are all of one class"):
        probe.probe("a", Labelled(train.x, 0 * train.y), separable(50, seed=1), separable(50, seed=2))


def test_the_layer_is_chosen_on_validation_by_all_seeds():
    def seed(a, b):
        """Validation accuracies of two layers, which the test accuracies contradict."""
        return {name: Probe(name, 1, 1.0, valid=v, test=1 - v, converged=True) for name, v in (("a", a), ("b", b))}

    assert probe.best_layer([seed(0.9, 0.8), seed(0.5, 0.7)]) == "b"
    assert probe.best_layer([seed(0.9, 0.8), seed(0.7, 0.7)]) == "a"


def test_interval_has_both_variances():
    assert probe.interval([0.5], 100) == pytest.approx(1.96 * 0.05)
    assert probe.interval([0.4, 0.6], 100) == pytest.approx(1.96 * np.sqrt(0.0025 + 0.02 / 2))


def test_the_subset_has_exactly_the_requested_size():
    y = np.repeat([0, 1, 2], [5, 9, 7])
    a, b = (probe.labelled_subset(y, seed, per_class=4) for seed in (0, 1))
    assert np.bincount(y[a]).tolist() == [4, 4, 4]
    assert len(set(a)) == 12
    assert list(a) == sorted(a) != list(b)
    assert set(probe.labelled_subset(y, 0, per_class=2)) < set(a)
    some = probe.labelled_subset(y, 0, count=10)
    assert list(some) == sorted(set(some))
    assert len(some) == 10
    assert set(probe.labelled_subset(y, 0, count=6)) < set(some)
    assert list(probe.labelled_subset(y, 0)) == list(range(21))
    with pytest.raises(RequestError, match="only 5"):
        probe.labelled_subset(y, 0, per_class=6)
    with pytest.raises(RequestError, match="only 21"):
        probe.labelled_subset(y, 0, count=22)


def test_pooling():
    h = torch.randn(2, 3, 4, 5)
    assert torch.equal(pooled(h[:, :, 0, 0]), h[:, :, 0, 0])
    torch.testing.assert_close(pooled(h), h.flatten(2).mean(2))
    torch.testing.assert_close(pooled(h.flatten(2).mT), h.flatten(2).mean(2))


def images(n, shape=(3, 9, 8)):
    """Random images by split."""
    return {split: torch.randint(256, (n, *shape), dtype=torch.uint8) for split in ("train", "valid", "test")}


def test_components_are_white_on_the_training_images_and_come_from_them():
    of = images(300)
    result = probe_controls.components(of, 5)
    assert {split: x.shape for split, x in result.items()} == dict.fromkeys(of, (300, 5))
    np.testing.assert_allclose(np.cov(result["train"].T), np.eye(5), atol=1e-3)
    other = probe_controls.components({**of, "test": of["valid"]}, 5)
    np.testing.assert_array_equal(other["test"], result["valid"])


@pytest.mark.slow
def test_patch_features_of_an_image_do_not_depend_on_the_others():
    of = images(210)
    result = probe_controls.patches(of, 256, seed=0)
    assert result["train"].shape == (210, 8 * probe_controls.FILTERS)
    alone = probe_controls.patches({**of, "test": of["test"][7:8]}, 256, seed=0)
    np.testing.assert_allclose(alone["test"][0], result["test"][7], rtol=1e-4, atol=1e-5)
    brighter = {**of, "test": (of["test"] // 2 + 50).to(torch.uint8)}  # contrast and brightness hardly matter
    close = np.abs(probe_controls.patches(brighter, 256, seed=0)["test"] - result["test"]).mean()
    assert close < 0.1 * np.abs(result["test"]).mean()
    assert not np.allclose(probe_controls.patches(of, 256, seed=1)["test"], result["test"])


def test_blank_patches_are_not_used_as_filters():
    """Images that are blank but for a corner: blank filters would all give the same numbers."""
    of = {split: torch.zeros_like(x) for split, x in images(50, (1, 20, 20)).items()}
    for split, x in images(50, (1, 8, 8)).items():
        of[split][:, :, :8, :8] = x
    upper_left = probe_controls.patches(of, 256, seed=0)["test"].reshape(50, 2 * probe_controls.FILTERS, 4)[:, :, 0]
    assert len(np.unique(upper_left.round(6), axis=1).T) > 1.6 * probe_controls.FILTERS  # a few look alike by chance


@pytest.mark.slow
def test_patch_features_do_not_depend_on_the_number_of_levels():
    of = {split: x // 255 * 255 for split, x in images(40).items()}
    binary = {split: x // 255 for split, x in of.items()}
    result, again = probe_controls.patches(of, 256, seed=0), probe_controls.patches(binary, 2, seed=0)
    np.testing.assert_allclose(result["test"], again["test"], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("case", zoo.nets({"grey": zoo.GREY, "rgb": zoo.RGB}))
def test_the_features_of_every_net_are_the_outputs_of_its_blocks(case):
    """No later block writes into the output of a block; pooled, there is one row for each image."""
    model, x = case.tiny(), zoo.random_images(case.spec, 3)
    outputs = []
    for block in model.net.blocks:
        block.register_forward_hook(
            lambda _, __, out: outputs.append((out[-1] if isinstance(out, tuple) else out).clone())
        )
    result = model.features(x)
    assert list(result) == [f"block{i}" for i in range(len(model.net.blocks))]
    assert all(torch.equal(h, then) for h, then in zip(result.values(), outputs, strict=True))
    assert {pooled(h).shape for h in result.values()} == {(3, model.net.width)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Smoke runs of an autoencoder, an autoregressive net, and one that is conditioned on labels."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "here").mkdir()
    for name, words in {
        "ae": ["model=bottleneck_ae", "model.latent_dim=5"],
        "ar": ["model=gated_pixelcnn", "model.net.width=8", "model.net.depth=2"],
        "label": ["model=pixelcnn", "model.net.width=8", "model.net.depth=2", "model/context=label"],
    }.items():
        fast = ["trainer=smoke", "trainer.max_steps=2", "train.sample_every=0", f"hydra.run.dir={folder / name}"]
        assert cli.run(["train", *fast, *words]) == 0
    return folder


@pytest.fixture
def here(runs, monkeypatch):
    """The working directory of the commands, beside the runs."""
    monkeypatch.chdir(runs / "here")
    return runs / "here"


@pytest.mark.slow
def test_features_verb(here):
    assert cli.run(["features", "ckpt=../ae", "out=features.npz", "split=valid", "data.limit=40"]) == 0
    result = np.load("features.npz")
    assert result["features"].shape == (40, 5)
    assert result["features"].dtype == np.float32
    assert len(result["labels"]) == len(result["index"]) == 40
    assert cli.run(["features", "ckpt=../ar", "layer=all", "data.limit=3", "out=all.npz"]) == 0
    assert set(np.load("all.npz")) == {"block0", "block1", "labels", "index"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ae", "ar"])
def test_probe_verb(here, name, capsys):
    words = ["per_class=3", "seeds=2", "data.limit=100", "layer=all", f"out={name}.json"]
    assert cli.run(["probe", f"ckpt=../{name}", "out=probe.json", *words]) == 0
    result = json.loads((here / f"{name}.json").read_text())
    records = {r["features"]: r for r in result["records"]}
    assert list(records) == ["network", "raw pixels", "PCA", "random patches", "untrained network"]
    assert (result["labelled_images"], result["valid_images"], result["test_images"]) == (30, 100, 100)
    for r in records.values():
        assert r["seeds"] == len(r["probes"]) == 2
        assert 0 < r["accuracy"] < 1
        assert {p["layer"] for p in r["probes"]} == {r["layer"]}
        assert r["layers"][r["layer"]]["valid"] == max(of["valid"] for of in r["layers"].values())
    assert len(records["network"]["layers"]) > 1
    assert records["network"]["layers"] != records["untrained network"]["layers"]
    # 100 images span 99 directions about their mean.
    assert records["PCA"]["width"] == min(99, records["network"]["width"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + sum(len(r["layers"]) for r in records.values())
    assert sum("(chosen)" in line for line in lines) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("words", "labels"), [([], 64), (["train=40"], 40)])
def test_features_that_no_seed_changes_are_probed_once(here, words, labels):
    assert (
        cli.run(
            [
                "probe",
                "ckpt=../ae",
                "out=probe.json",
                "overwrite=true",
                "seeds=2",
                "layer=code",
                "data.limit=64",
                *words,
            ]
        )
        == 0
    )
    result = json.loads((here / "probe.json").read_text())
    assert result["labelled_images"] == labels
    fixed = 1 if labels == 64 else 2
    assert {r["features"]: r["seeds"] for r in result["records"]} == {
        "network": fixed, "raw pixels": fixed, "PCA": fixed, "random patches": 2, "untrained network": 2,
    }  # fmt: skip
    untrained = result["records"][-1]["probes"]
    assert untrained[0] != untrained[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["probe", "ckpt=../label"], "conditioned on the label"),
        (["probe", "ckpt=../ae", "layer=encodr0"], "did you mean 'encoder0'"),
        (["probe", "ckpt=../ae", "per_class=100000"], "smallest class"),
        (["probe", "ckpt=../ae", "train=100000"], "train=100000"),
        (["probe", "ckpt=../ae", "train=10", "per_class=1"], "give one"),
        (["probe", "ckpt=../ae", "seeds=0"], "seeds=0"),
        (["features", "ckpt=../ar", "layer=block7"], "layer=block7"),
        (["features", "ckpt=../ar", "out=features.csv"], "ending in .npz"),
    ],
)
def test_wrong_requests(here, capsys, words, sentence):
    before = sorted(here.iterdir())
    assert cli.run(words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert sorted(here.iterdir()) == before
