"""Probes: separable features give 1, labels that mean nothing give chance, test images choose nothing; the verbs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import zoo
from sklearn.linear_model import LogisticRegression

from genlab import cli
from genlab.core import RequestError
from genlab.measure import probe
from genlab.measure.probe import Labelled, Probe


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


def test_the_search_ends_when_weaker_penalties_do_no_better(monkeypatch):
    train, valid, test = separable(200), separable(50, seed=1), separable(50, seed=2)
    fits = []
    fit = LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", lambda self, *data: (fits.append(self.C), fit(self, *data))[1])
    assert probe.probe("a", train, valid, test).penalty == probe.PENALTIES[0]
    np.testing.assert_allclose(fits, [1 / (penalty * 200) for penalty in probe.PENALTIES[: 1 + probe.PATIENCE]])


def test_what_has_not_converged_says_so(monkeypatch):
    train, valid, test = (separable(n, seed=n, noise=1.0) for n in (60, 60, 60))
    monkeypatch.setattr(probe, "ITERATIONS", 1)
    assert not probe.probe("a", train, valid, test).converged


def test_one_class_is_refused():
    train = separable(30)
    with pytest.raises(RequestError, match="30 labelled training images are all of one class"):
        probe.probe("a", Labelled(train.x, 0 * train.y), separable(50, seed=1), separable(50, seed=2))


def test_the_layer_is_chosen_on_validation_by_all_seeds():
    def seed(a, b):
        """Validation accuracies of two layers, which the test accuracies contradict."""
        return {name: Probe(name, 1, 1.0, valid=v, test=1 - v, converged=True) for name, v in (("a", a), ("b", b))}

    assert probe.chosen([seed(0.9, 0.8), seed(0.5, 0.7)]) == "b"
    assert probe.chosen([seed(0.9, 0.8), seed(0.7, 0.7)]) == "a"


def test_interval_has_both_variances():
    assert probe.interval([0.5], 100) == pytest.approx(1.96 * 0.05)
    assert probe.interval([0.4, 0.6], 100) == pytest.approx(1.96 * np.sqrt(0.0025 + 0.02 / 2))


def test_exactly_so_many_images_are_drawn():
    y = np.repeat([0, 1, 2], [5, 9, 7])
    a, b = (probe.drawn(y, seed, per_class=4) for seed in (0, 1))
    assert np.bincount(y[a]).tolist() == [4, 4, 4]
    assert len(set(a)) == 12
    assert list(a) == sorted(a) != list(b)
    assert set(probe.drawn(y, 0, per_class=2)) < set(a)
    some = probe.drawn(y, 0, count=10)
    assert list(some) == sorted(set(some))
    assert len(some) == 10
    assert set(probe.drawn(y, 0, count=6)) < set(some)
    assert list(probe.drawn(y, 0)) == list(range(21))
    with pytest.raises(RequestError, match="only 5"):
        probe.drawn(y, 0, per_class=6)
    with pytest.raises(RequestError, match="only 21"):
        probe.drawn(y, 0, count=22)


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
    found = probe.patches(of, 256, seed=0)
    assert found["train"].shape == (210, 8 * probe.FILTERS)
    alone = probe.patches({**of, "test": of["test"][7:8]}, 256, seed=0)
    np.testing.assert_allclose(alone["test"][0], found["test"][7], rtol=1e-4, atol=1e-5)
    brighter = {**of, "test": (of["test"] // 2 + 50).to(torch.uint8)}  # contrast and brightness hardly matter
    close = np.abs(probe.patches(brighter, 256, seed=0)["test"] - found["test"]).mean()
    assert close < 0.1 * np.abs(found["test"]).mean()
    assert not np.allclose(probe.patches(of, 256, seed=1)["test"], found["test"])


def test_blank_patches_are_no_filters():
    """Images that are blank but for a corner: blank filters would all give the same numbers."""
    of = {split: torch.zeros_like(x) for split, x in images(50, (1, 20, 20)).items()}
    for split, x in images(50, (1, 8, 8)).items():
        of[split][:, :, :8, :8] = x
    upper_left = probe.patches(of, 256, seed=0)["test"].reshape(50, 2 * probe.FILTERS, 4)[:, :, 0]
    assert len(np.unique(upper_left.round(6), axis=1).T) > 1.6 * probe.FILTERS  # a few look alike by chance


def test_patches_know_the_range_of_values():
    of = {split: x // 255 * 255 for split, x in images(40).items()}
    binary = {split: x // 255 for split, x in of.items()}
    found, again = probe.patches(of, 256, seed=0), probe.patches(binary, 2, seed=0)
    np.testing.assert_allclose(found["test"], again["test"], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("case", zoo.nets({"grey": zoo.GREY, "rgb": zoo.RGB}))
def test_every_net_names_its_blocks_and_gives_what_they_said(case):
    """Nothing later writes into what a block gave; pooled, it is a row an image."""
    made, x = case.tiny(), zoo.random_images(case.spec, 3)
    said = []
    for block in made.net.blocks:
        block.register_forward_hook(
            lambda _, __, out: said.append((out[-1] if isinstance(out, tuple) else out).clone())
        )
    found = made.features(x)
    assert list(found) == [f"block{i}" for i in range(len(made.net.blocks))]
    assert all(torch.equal(h, then) for h, then in zip(found.values(), said, strict=True))
    assert {probe.pooled(h).shape for h in found.values()} == {(3, made.net.width)}


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


@pytest.mark.slow
def test_features_verb(here):
    assert cli.run(["features", "ckpt=../ae", "split=valid", "data.limit=40"]) == 0
    found = np.load("features.npz")
    assert found["features"].shape == (40, 5)
    assert found["features"].dtype == np.float32
    assert len(found["labels"]) == len(found["index"]) == 40
    assert cli.run(["features", "ckpt=../ar", "layer=all", "data.limit=3", "out=all.npz"]) == 0
    assert set(np.load("all.npz")) == {"block0", "block1", "labels", "index"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ae", "ar"])
def test_probe_verb(here, name, capsys):
    words = ["per_class=5", "seeds=2", "data.limit=150", "layer=all", f"out={name}.json"]
    assert cli.run(["probe", f"ckpt=../{name}", *words]) == 0
    found = json.loads((here / f"{name}.json").read_text())
    records = {r["features"]: r for r in found["records"]}
    assert list(records) == ["network", "raw pixels", "PCA", "random patches", "untrained network"]
    assert (found["labelled_images"], found["valid_images"], found["test_images"]) == (50, 150, 150)
    for r in records.values():
        assert r["seeds"] == len(r["probes"]) == 2
        assert 0 < r["accuracy"] < 1
        assert {p["layer"] for p in r["probes"]} == {r["layer"]}
        assert r["layers"][r["layer"]]["valid"] == max(of["valid"] for of in r["layers"].values())
    assert len(records["network"]["layers"]) > 1
    assert records["network"]["layers"] != records["untrained network"]["layers"]
    # 150 images span 149 directions about their mean.
    assert records["PCA"]["width"] == min(149, records["network"]["width"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + sum(len(r["layers"]) for r in records.values())
    assert sum("(chosen)" in line for line in lines) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("words", "labels"), [([], 64), (["train=40"], 40)])
def test_what_no_seed_changes_is_probed_once(here, words, labels):
    assert cli.run(["probe", "ckpt=../ae", "seeds=2", "layer=code", "data.limit=64", *words]) == 0
    found = json.loads((here / "probe.json").read_text())
    assert found["labelled_images"] == labels
    fixed = 1 if labels == 64 else 2
    assert {r["features"]: r["seeds"] for r in found["records"]} == {
        "network": fixed, "raw pixels": fixed, "PCA": fixed, "random patches": 2, "untrained network": 2,
    }  # fmt: skip
    untrained = found["records"][-1]["probes"]
    assert untrained[0] != untrained[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["probe", "ckpt=../label"], "given the label"),
        (["probe", "ckpt=../ae", "layer=encodr0"], "did you mean 'encoder0'"),
        (["probe", "ckpt=../ae", "per_class=100000"], "smallest class"),
        (["probe", "ckpt=../ae", "train=100000"], "train=100000"),
        (["probe", "ckpt=../ae", "train=0"], "train=0"),
        (["probe", "ckpt=../ae", "train=10", "per_class=1"], "give one"),
        (["probe", "ckpt=../ae", "batch_size=0"], "batch_size=0"),
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
