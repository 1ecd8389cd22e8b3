"""Wrong requests of every kind: one sentence, the right exit status, no files left. And the names of classes."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from omegaconf import OmegaConf
from thin import every

from genlab import cli
from genlab.core import ImageSpec, RequestError, RunError
from genlab.request.compose import Request
from genlab.request.contexts import Classes
from genlab.request.values import format_value
from genlab.system.failures import LONGEST, explained, shortened
from genlab.train.metrics_file import MetricsFile

TINY = ["trainer=smoke", "trainer.max_steps=1", "trainer.accelerator=cpu", "data.limit=20", "train.checkpoint_every=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: an unconditional PixelCNN, and a latent model conditioned on the label, with all pictures."""
    folder = tmp_path_factory.mktemp("runs")
    small = ["model.net.width=8", "model.net.depth=1", "train.sample_every=0"]
    assert cli.run(["train", *TINY, *small, f"hydra.run.dir={folder / 'none'}"]) == 0
    latent = ["model=latent_gaussian", "model/context=label", "train.samples=3", "train.sample_every=1"]
    latent += ["model.encoder.hidden=[8]", "model.decoder.hidden=[8]", "model.latent_dim=2"]
    assert cli.run(["train", *TINY, *latent, f"hydra.run.dir={folder / 'label'}"]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(words, capsys, status=2):
    """Run a command that must fail with one sentence, and return the sentence."""
    capsys.readouterr()
    assert cli.run(words) == status, words
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "unexpected" not in err
    assert "Traceback" not in err
    assert len(err) <= LONGEST + len("genlab: \n")
    return err


WRONG = {
    # a home folder of nobody
    "--config-dir=~nobody-of-that-name": "no user of that name",
    # something else in place of a section, a part, a list
    "optim=null": "choose from adamw",
    "model=null": "genlab list model",
    "logger=[]": "choose from csv",
    "logger.kind=csw": "did you mean",
    "data=[mnist,cifar10]": "does not exist",
    "data@x=mnist": "has one data",
    "train=text": "section",
    "model.net=3": "section",
    "names.model=3": "fills in the names",
    "trust=0": "expected names of packages, like trust=[mypackage]",
    "optim.betas=3": "expected a list",
    "optim.betas=[1,2]": "below 1",
    # values of another kind
    "seed=null": "a whole number",
    "seed=-1": "from 0",
    "seed=" + 5000 * "9": "cannot read",
    "model.net.width=9999999999999999999999": "too large",
    "model.net.width=[1]": "a whole number",
    "train.ema=null": "a number",
    "train.ema=???": "a number",
    "train.patience=often": "or null",
    "optim.lr=nan": "a number",
    "optim.weight_decay=-1": "0 or more",
    "optim.discriminator_lr=text": "no key",
    "compile=3": "true or false",
    "data.binarize=null": "a word",
    # keys that do not exist, in every spelling
    "foo=1": "no key 'foo'",
    "+foo=1": "no key 'foo'",
    "++foo=1": "no key 'foo'",
    "+foo.bar=1": "no key 'foo.bar'",
    "+trainer.limit_val_batches=1": "no key 'trainer.limit_val_batches'",
    "++trainer.max_steps=text": "a whole number",
    "+trainer.max_steps=3": "leave out the +",
    "+model.net.foo=1": "keys beside it are depth",
    "+data.foo=1": "keys beside it are",
    "~logger": "needs logger",
    "~data": "cannot be taken away",
    "~model": "cannot be taken away",
    "~train.ema": "cannot be taken away",
    "~foo": "no key 'foo'",
    "~hydra.run": "does not compose",
    "hydra.run.dir=null": "does not compose",
    "model/head=null": "choose from bernoulli",
    "model/head=none": "needs a model/head",
    # words that cannot be parsed
    "seed=[1,2": "brackets",
    "seed=${nope}": "does not resolve",
    "x=" + 1000 * "[": "cannot read",
}


@pytest.mark.slow
@pytest.mark.parametrize("word", every(5, WRONG), ids=format_value)
def test_a_wrong_word_is_one_sentence(word, here, capsys):
    assert WRONG[word] in refused(["train", word], capsys)
    assert list(here.iterdir()) == []


WRONG_ABOUT_A_RUN = {
    "sample temperature=1e20": "from 1e-09",
    "sample n=text": "a whole number",
    "sample data=text": "has no choice of",
    "sample data.limit=text": "or null",
    "sample weights=[ema]": "a word",
    "sample +foo=1": "no key 'foo'",
    "sample ~seed": "needs seed",
    "eval draws=nan": "a whole number",
    "probe controls=3": "true or false",
    "show units=[1]": "or null",
    "show what=null": "a word",
    "resume train.ema=text": "a number",
    "resume train.ema=[1": "cannot read",
    "resume trainer.devices=text": "or auto",
}


@pytest.mark.slow
@pytest.mark.parametrize("request_", WRONG_ABOUT_A_RUN)
def test_a_wrong_word_about_a_run_is_one_sentence(request_, runs, here, capsys):
    verb, *words = request_.split(" ")
    run = runs / "none"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    err = refused([verb, f"{'run' if verb == 'resume' else 'ckpt'}={run}", *words], capsys)
    assert WRONG_ABOUT_A_RUN[request_] in err
    assert list(here.iterdir()) == []
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_too_few_images_for_a_mixture_are_refused_before_a_folder_is_made(here, capsys):
    err = refused(["train", "model=gaussian_mixture", "trainer=smoke", "data.limit=50"], capsys)
    assert "model.components=50 or fewer" in err
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_the_command_line_wins_over_an_experiment_or_is_refused(here):
    def composed(*words):
        return Request("train", ["experiment=pixelcnn_cifar10", *words], command="").config()

    assert composed("trainer=smoke", "trainer.max_steps=3").trainer.max_steps == 3
    config = composed("trainer=ddp_cpu", "data=svhn", "model=pixelcnn")
    assert (config.trainer.max_steps, config.trainer.devices) == (100000, 2)
    assert "svhn" in config.data.source._target_.lower()
    assert config.model.net.width == 256  # the same choice is no conflict
    for word in ("model=row_lstm", "optim=two_timescale"):
        with pytest.raises(RequestError, match=f"not for {word}"):
            composed(word)
    (here / "trainer").mkdir()
    (here / "trainer" / "mine.yaml").write_text("defaults: [auto]\nmax_steps: 7\n")
    mine = ["--config-dir", str(here), "trainer=mine"]
    with pytest.raises(RequestError, match=r"trainer\.max_steps"):
        composed(*mine)
    assert composed(*mine, "trainer.max_steps=7").trainer.max_steps == 7


@pytest.mark.slow
def test_a_file_of_the_user_may_not_have_unknown_keys(here, capsys):
    (here / "experiment").mkdir()
    for text, answer in (("train: {emma: 1}", "train.emma"), ("trianer: {max_steps: 1}", "'trianer'")):
        (here / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
        assert answer in refused(["train", "--config-dir", str(here), "experiment=mine"], capsys)


# ---- names


def test_a_class_has_a_name_and_a_number():
    classes = Classes(("cat", "china", "7"))
    assert [classes.number(label) for label in ("china", 0, "2", "7", 7)] == [1, 0, 2, 2, 2]
    assert str(classes) == "classes cat, china, 7"
    with pytest.raises(RequestError, match="did you mean 'china'"):
        classes.number("chine")
    shuffled = Classes(("1", "0"))
    assert shuffled.number(1) == 0, "a name comes before a number"
    digits = Classes.of({}, ImageSpec(1, 2, 2, classes=10))
    assert str(digits) == "classes 0 to 9"
    with pytest.raises(RequestError, match="classes 0 to 9"):
        digits.number("china")


@pytest.mark.slow
def test_a_class_is_chosen_and_printed_by_its_name(runs, here, capsys):
    checkpoint = torch.load(runs / "label" / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["genlab"]["class_names"] = ["cat", "china, old", *(f"class {i}" for i in range(2, 10))]
    torch.save(checkpoint, "named.ckpt")
    for label in ("cat", "china, old", "1"):
        assert cli.run(["sample", "ckpt=named.ckpt", "out=samples.png", "overwrite=true", f"label={label}", "n=2"]) == 0
    out = capsys.readouterr().out
    assert "2 images of class cat in" in out
    assert out.count("2 images of class china, old in") == 2
    assert "did you mean 'cat'" in refused(["sample", "ckpt=named.ckpt", "label=cats"], capsys)
    assert "give label=cat" in refused(["complete", "ckpt=named.ckpt", "image=x.png"], capsys)
    assert "model=latent_gaussian is conditioned on a class label" in refused(
        ["sample", "ckpt=named.ckpt", "context=x.png"], capsys
    )


@pytest.mark.slow
def test_a_latent_model_given_the_label_goes_through_every_verb(runs, here, capsys):
    run = runs / "label"
    assert {"samples", "completions", "reconstructions", "pictures"} <= {path.name for path in run.iterdir()}
    for verb, words in {
        "reconstruct": ["n=3"],
        "show": ["data.limit=20"],
        "features": ["data.limit=20"],
        "sample": ["n=2"],
        "eval": ["data.limit=20"],
    }.items():
        assert cli.run([verb, f"ckpt={run}", *words]) == 0, verb
    from PIL import Image

    Image.new("L", (28, 28)).save("mine.png")
    assert cli.run(["reconstruct", f"ckpt={run}", "image=mine.png", "label=3", "out=mine_too.png"]) == 0
    assert "give label=" in refused(["reconstruct", f"ckpt={run}", "image=mine.png"], capsys)
    assert "goes with image=" in refused(["reconstruct", f"ckpt={run}", "label=3"], capsys)


# ---- failures of the machine


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"),
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        PermissionError(errno.EACCES, "no", "x"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=str,
)
def test_a_failure_of_the_machine_is_no_bug(error):
    assert isinstance(explained(error), RunError)
    wrapped = ValueError("while handling it")
    wrapped.__cause__ = error
    assert isinstance(explained(wrapped), RunError)
    assert explained(ValueError("a bug")) is None


def test_a_failure_of_the_machine_ends_a_run_with_its_sentence(here, capsys, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")

    monkeypatch.setattr(MetricsFile, "save", refuse)
    capsys.readouterr()
    words = ["model=linear_ae", "model.latent_dim=2", "train.sample_every=0", "hydra.run.dir=run"]
    assert cli.run(["train", *TINY, *words]) == 1
    assert "No space left on device" in capsys.readouterr().err


def test_a_sentence_is_one_short_line():
    text = shortened("first\n\tword\x00 " + "x" * 5000 + " and the end")
    assert len(text) <= LONGEST
    assert "\n" not in text
    assert text.startswith("first word")
    assert text.endswith("and the end")


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "says"), [(float("nan"), "weights that are not finite"), (1e30, "not finite")])
def test_a_model_with_numbers_that_are_not_finite_draws_nothing(damage, says, runs, here, capsys):
    checkpoint = torch.load(runs / "none" / "checkpoints" / "best.ckpt", weights_only=True)
    for weight in checkpoint["state_dict"].values():
        if weight.is_floating_point():
            weight.mul_(damage)
    torch.save(checkpoint, "wrong.ckpt")
    for verb in ("sample", "show"):
        assert says in refused([verb, "ckpt=wrong.ckpt"], capsys, status=1)
    assert {path.name for path in here.iterdir()} == {"wrong.ckpt"}


def test_values_in_messages_look_as_they_are_typed():
    assert format_value([1, None, {"a": True}]) == "[1,null,{a:true}]"
    assert len(format_value("x" * 1000)) < 100
    assert OmegaConf.create({"x": format_value(3)}).x == "3"
