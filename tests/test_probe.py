"""Probes: separable features give 1, labels that mean nothing give chance, test images choose nothing; the verbs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from genlab import cli, probe
from genlab.core import RequestError
from genlab.probe import Labelled, Probe


def separable(n, classes=3, seed=0, noise=0.1):
    """Features around the corners of a simplex, in units that differ a thousandfold, one of them constant."""
    random = np.random.default_rng(seed)
    y = random.integers(classes, size=n)
    x = np.eye(classes)[y] + noise * random.normal(size=(n, classes))
    return Labelled(np.hstack([x * 10.0 ** np.arange(classes), np.ones((n, 1))]).astype(np.float32), y)


def test_separable_features_are_separated_whatever_their_scale():
    found = probe.probe("a", separable(200), separable(50, seed=1), separable(50, seed=2))
    assert (found.valid, found.test, found.width) == (1, 1, 4)
    assert found.converged


def test_labels_that_mean_nothing_give_chance():
    train, valid, test = (separable(n, seed=n) for n in (300, 300, 600))
    shuffled = [Labelled(of.x, np.random.default_rng(9).permutation(of.y)) for of in (train, valid, test)]
    assert abs(probe.probe("a", *shuffled).test - 1 / 3) < 0.1


def test_test_images_choose_nothing():
    train, valid, test = (separable(n, seed=n, noise=1.0) for n in (60, 60, 60))
    wrong = Labelled(test.x, (test.y + 1) % 3)
    a, b = probe.probe("a", train, valid, test), probe.probe("a", train, valid, wrong)
    assert a._replace(test=0) == b._replace(test=0)
    assert a.test != b.test


def test_the_penalty_is_per_image():
    train, valid, test = (separable(n, seed=n, noise=1.0) for n in (60, 60, 60))
    found = probe.probe("a", train, valid, test)
    mean, scale = train.x.mean(0), np.where(train.x.std(0) > 0, train.x.std(0), 1)
    alone = LogisticRegression(C=1 / (found.penalty * 60), max_iter=2000).fit((train.x - mean) / scale, train.y)
    assert alone.score((test.x - mean) / scale, test.y) == pytest.approx(found.test, abs=0.02)


def test_the_layer_is_chosen_on_validation():
    better = Probe("a", 1, 1.0, valid=0.9, test=0.1, converged=True)
    assert probe.chosen([better._replace(layer="b", valid=0.8, test=0.9), better]) == better


def test_interval_has_both_variances():
    assert probe.interval([0.5], 100) == pytest.approx(1.96 * 0.05)
    assert probe.interval([0.4, 0.6], 100) == pytest.approx(1.96 * np.sqrt(0.0025 + 0.02 / 2))


def test_few_takes_exactly_so_many_of_each_class():
    y = np.repeat([0, 1, 2], [5, 9, 7])
    a, b = probe.few(y, 4, seed=0), probe.few(y, 4, seed=1)
    assert np.bincount(y[a]).tolist() == [4, 4, 4]
    assert len(set(a)) == 12
    assert list(a) != list(b)
    with pytest.raises(RequestError, match="only 5"):
        probe.few(y, 6, seed=0)


def test_pooling():
    h = torch.randn(2, 3, 4, 5)
    assert torch.equal(probe.pooled(h[:, :, 0, 0]), h[:, :, 0, 0])
    torch.testing.assert_close(probe.pooled(h), h.flatten(2).mean(2))
    torch.testing.assert_close(probe.pooled(h.flatten(2).mT), h.flatten(2).mean(2))


def images(n, shape=(3, 9, 8)):
    """Random images by split."""
    return {split: torch.randint(256, (n, *shape), dtype=torch.uint8) for split in ("train", "valid", "test")}


def test_components_are_white_on_the_training_images_and_come_from_them():
    of = images(300)
    found = probe.components(of, 5)
    assert {split: x.shape for split, x in found.items()} == dict.fromkeys(of, (300, 5))
    np.testing.assert_allclose(np.cov(found["train"].T), np.eye(5), atol=1e-3)
    other = probe.components({**of, "test": of["valid"]}, 5)
    np.testing.assert_array_equal(other["test"], found["valid"])


def test_patches_see_every_image_alike():
    of = images(210)
    found = probe.patches(of, seed=0)
    assert found["train"].shape == (210, 8 * probe.FILTERS)
    alone = probe.patches({**of, "test": of["test"][7:8]}, seed=0)
    np.testing.assert_allclose(alone["test"][0], found["test"][7], rtol=1e-4, atol=1e-5)
    brighter = {**of, "test": (of["test"] // 2 + 50).to(torch.uint8)}  # contrast and brightness hardly matter
    close = np.abs(probe.patches(brighter, seed=0)["test"] - found["test"]).mean()
    assert close < 0.1 * np.abs(found["test"]).mean()
    assert not np.allclose(probe.patches(of, seed=1)["test"], found["test"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An autoencoder, an autoregressive net, one that is given labels: a few steps each."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "here").mkdir()
    for name, words in {
        "ae": ["model=bottleneck_ae", "model.latent_dim=5"],
        "ar": ["model=gated_pixelcnn", "model.net.width=8", "model.net.depth=2"],
        "label": ["model=pixelcnn", "model.net.width=8", "model.net.depth=2", "model/context=label"],
    }.items():
        assert cli.run(["train", "trainer=smoke", *words, f"hydra.run.dir={folder / name}"]) == 0
    return folder


@pytest.fixture
def here(runs, monkeypatch):
    """The folder that commands are given in, beside the runs."""
    monkeypatch.chdir(runs / "here")
    return runs / "here"


def test_features_verb(here):
    assert cli.run(["features", "ckpt=../ae", "split=valid", "data.limit=40"]) == 0
    found = np.load("features.npz")
    assert found["features"].shape == (40, 5)
    assert found["features"].dtype == np.float32
    assert len(found["labels"]) == len(found["index"]) == 40
    assert cli.run(["features", "ckpt=../ar", "layer=all", "data.limit=3", "out=all.npz"]) == 0
    assert set(np.load("all.npz")) == {"block0", "block1", "labels", "index"}


@pytest.mark.parametrize("name", ["ae", "ar"])
def test_probe_verb(here, name):
    words = ["per_class=5", "seeds=2", "data.limit=150", "layer=all", f"out={name}.json"]
    assert cli.run(["probe", f"ckpt=../{name}", *words]) == 0
    found = json.loads((here / f"{name}.json").read_text())
    records = {r["features"]: r for r in found["records"]}
    assert list(records) == ["network", "raw pixels", "PCA", "random patches", "untrained network"]
    assert found["labelled_images"] == 50
    for r in records.values():
        assert r["seeds"] == len(r["probes"]) == 2
        assert 0 < r["accuracy"] < 1
    assert len(records["network"]["layers"]) > 1
    assert records["network"]["layers"] != records["untrained network"]["layers"]
    assert records["PCA"]["probes"][0]["width"] <= records["network"]["probes"][0]["width"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["probe", "ckpt=../label"], "given the label"),
        (["probe", "ckpt=../ae", "layer=encodr0"], "did you mean 'encoder0'"),
        (["probe", "ckpt=../ae", "per_class=100000"], "smallest class"),
        (["probe", "ckpt=../ae", "seeds=0"], "seeds=0"),
        (["features", "ckpt=../ar", "layer=block7"], "layer=block7"),
        (["features", "ckpt=../ar", "split=tset"], "did you mean 'test'"),
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
