"""`train init=RUN`: what is taken from the run, what the command line changes, and what is refused."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from genlab import cli
from genlab.request import start_from
from genlab.request.compose import Request, split_hydra

FAST = ["trainer=smoke", "trainer.max_steps=2", "trainer.accelerator=cpu", "train.sample_every=0"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small run with another model and other data than the defaults."""
    folder = tmp_path_factory.mktemp("source") / "a run, of mine"
    words = ["model=gated_pixelcnn", "model.net.width=8", "model.net.depth=2", "model/head=bernoulli"]
    words += ["data.binarize=static", "data.batch_size=16", "optim.weight_decay=0.25", "seed=4"]
    assert cli.run(["train", *FAST, *words, f"hydra.run.dir={folder}"]) == 0
    return folder


def config_from(source, *words):
    """The config of `genlab train init=SOURCE` with these words."""
    return split_hydra(start_from.composed(Request("train", [*FAST, f"init={source}", *words], "")))[0]


@pytest.mark.slow
def test_the_run_folder_holds_the_same_config(tmp_path, source, capsys):
    assert cli.run(["train", *FAST, f"init={source}", f"hydra.run.dir={tmp_path}/run", "seed=4"]) == 0
    recorded, composed = OmegaConf.load(tmp_path / "run" / "config.yaml"), config_from(source, "seed=4")
    composed.trainer.precision = recorded.trainer.precision  # auto, as it is composed
    assert recorded == composed


@pytest.mark.slow
def test_model_data_and_optimiser_are_those_of_the_run(source):
    config, before = config_from(source, "optim.lr=1e-5"), OmegaConf.load(source / "config.yaml")
    assert config.model == before.model
    assert config.names.model == "gated_pixelcnn"
    assert {**config.data, "seed": 4} == dict(before.data)
    assert config.data.seed == config.seed == 0
    assert (config.optim.lr, config.optim.weight_decay, config.optim.warmup) == (1e-5, 0.25, 2)
    assert config.init == str(source / "checkpoints" / "best.ckpt")


@pytest.mark.slow
def test_a_word_changes_the_value_that_it_names(source):
    config = config_from(source, "data.batch_size=4", "data.seed=7", "data.limit=32", "seed=5")
    assert (config.data.batch_size, config.data.seed, config.data.limit) == (4, 7, 32)
    assert (config.data.binarize, config.seed) == ("static", 5)


@pytest.mark.slow
def test_a_group_that_is_chosen_replaces_that_of_the_run(source):
    config = config_from(source, "data=mnist_mini", "data.binarize=threshold", "optim=adamw")
    assert (config.data.batch_size, config.data.binarize, config.optim.weight_decay) == (32, "threshold", 0.0)
    assert config.model == OmegaConf.load(source / "config.yaml").model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["model=pixelcnn", "model/head=bernoulli"], "does not fit"),
        (["data=mnist_mini"], "levels"),
        (["init=nowhere"], "nowhere does not exist"),
        (["init=null"], None),
    ],
)
def test_a_run_that_does_not_fit_is_one_sentence(tmp_path, source, capsys, words, answer):
    words = [f"init={source}", f"hydra.run.dir={tmp_path}/run", *words]
    words = words[1:] if words[-1].startswith("init") else words
    small = ["model.net.width=8", "model.net.depth=1"] if answer is None else []
    assert cli.run(["train", *FAST, *words, *small]) == (2 if answer else 0)
    if answer:
        err = capsys.readouterr().err
        assert answer in err
        assert err.count("\n") == 1
        assert not (tmp_path / "run").exists()
