"""The command line: requests are checked before anything is written, and wrong ones are answered in one sentence."""

from __future__ import annotations

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from thin import every

from genlab import cli

FAST = ["trainer=smoke", "trainer.max_steps=2", "trainer.accelerator=cpu", "model.net.width=8", "model.net.depth=1"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A smoke run of the default model."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    assert cli.run(["train", *FAST, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(here):
    """Write pictures of MNIST's size, of other sizes and a corrupt one. Returns the pixels of the grey one."""
    x = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(x).save(here / "whole.png")
    Image.fromarray(x[:14]).save(here / "half.png")
    opaque = np.where(np.arange(28) < 9, 255, 0).astype(np.uint8)[:, None].repeat(28, 1)
    Image.fromarray(np.stack([x, x, x, opaque], -1)).save(here / "transparent.png")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(here / "colour.png")
    Image.fromarray(np.zeros((40, 28), np.uint8)).save(here / "tall.png")
    (here / "corrupt.png").write_bytes((here / "whole.png").read_bytes()[:100])
    return x


WRONG = [
    (["trian"], "did you mean 'train'"),
    (["train", "model=pixelcn"], "did you mean 'pixelcnn'"),
    (["train", "modle=pixelcnn"], "did you mean 'model'"),
    (["train", "trainer.max_stps=3"], "did you mean 'trainer.max_steps'"),
    (["train", "max_steps=3"], "did you mean 'trainer.max_steps'"),
    (["train", "seed=abc"], "expected a whole number"),
    (["train", "seed"], "key=value"),
    (["train", "--fast"], "unknown option"),
    (["train", "model.net.width=-3"], "width >= 2"),
    (["train", "model.net.width=16,32"], "add -m"),
    (["train", "+model.net.foo=3"], "PixelCNN takes no 'foo'"),
    (["train", "model/head=bernoulli"], "2 levels"),
    (["train", "model._target_=os.system"], "nothing was run"),
    (["train", "data/context=gray"], "did you mean 'grey'"),
    (["train", "data.context=half"], "data/context=half"),
    (["train", "model.context=label"], "model/context=label"),
    (["train", "model/context=image"], "add data/context=grey"),
    (["train", "data/context=half"], "add model/context=image"),
    (["train", "data/context=label"], "add model/context=label"),
    (["train", "data/context=label", "model/context=image"], "add data/context=grey"),
    (["train", "data/context=grey", "model/context=image"], "colour images"),
    (["train", "data/context=lowres", "data.context.factor=5", "model/context=image"], "28x28"),
    (["train", "data/context=lowres", "data.context._target_=os.getcwd"], "nothing was run"),
    (["train", "data.binarize=foo"], "choose from"),
    (["train", "data=folder"], "data.path"),
    (["train", "trainer.max_steps=0"], "at least 1"),
    (["train", "trainer.devices=99", "trainer.accelerator=gpu"], "GPU"),
    (["train", "hydra.run.dir=/proc/nowhere"], "cannot be written"),
    (["train", "-m", "model=pixelcnn,pixelsnial"], "pixelsnial"),
    (["resume"], "needs run=DIR"),
    (["resume", "run=nowhere"], "does not exist"),
    (["sample"], "needs ckpt="),
    (["sample", "ckpt=nowhere"], "does not exist"),
    (["sample", "ckpt=.", "m=3"], "no key 'm'"),
    (["sample", "ckpt=.", "-m"], "runs once"),
    (["sample", "ckpt=."], "without checkpoints"),
    (["complete", "ckpt=."], "needs image="),
    (["list", "modl"], "did you mean 'model'"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "answer"), every(4, WRONG), ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_wrong_requests_get_one_sentence_and_leave_nothing(words, answer, here, capsys):
    assert cli.run(words) == 2
    err = capsys.readouterr().err
    assert answer in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert list(here.iterdir()) == []


WRONG_WITH_CHECKPOINT = [
    (["sample", "n=0"], "at least 1"),
    (["sample", "n=2.5"], "whole number"),
    (["sample", "temperature=0"], "above 0"),
    (["sample", "label=12"], "classes 0 to 9"),
    (["sample", "label=3"], "unconditional"),
    (["sample", "seed=-1"], "from 0"),
    (["sample", "out=/proc/x.png"], "cannot write"),
    (["sample", "out=nowhere/x.png"], "does not exist"),
    (["sample", "out=x.jpeg"], ".png"),
    (["sample", "weights=best"], "ema or raw"),
    (["sample", "device=gpu"], "auto, cpu or cuda"),
    (["complete", "image=missing.png"], "does not exist"),
    (["complete", "image=corrupt.png"], "not a readable picture"),
    (["complete", "image=colour.png"], "grey"),
    (["complete", "image=tall.png"], "40x28"),
    (["complete", "image=whole.png"], "known=top:0.5"),
    (["complete", "image=whole.png", "known=top"], "not understood"),
    (["complete", "image=whole.png", "known=top:2"], "from 0 to 1"),
    (["complete", "image=whole.png", "known=box:1,2,3"], "y,x,h,w"),
    (["complete", "image=whole.png", "known=box:20,20,20,20"], "inside 28x28"),
    (["complete", "image=whole.png", "known=half.png"], "14x28"),
    (["complete", "image=half.png", "known=top:0.5"], "already leaves pixels open"),
    (["complete", "image=half.png", "label=3"], "unconditional"),
    (["complete", "image=half.png", "context=whole.png"], "unconditional"),
    (["complete", "image=half.png", "particles=0"], "at least 1"),
    (["eval", "split=tset"], "did you mean 'test'"),
    (["eval", "draws=0"], "at least 1"),
]


@pytest.mark.parametrize(
    ("words", "answer"), every(4, WRONG_WITH_CHECKPOINT), ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_wrong_requests_about_a_checkpoint_get_one_sentence_and_leave_nothing(words, answer, run_folder, here, capsys):
    pictures(here)
    before = sorted(here.iterdir())
    assert cli.run([words[0], f"ckpt={run_folder}", *words[1:]]) == 2
    err = capsys.readouterr().err
    assert answer in err
    assert err.count("\n") == 1
    assert sorted(here.iterdir()) == before


def test_a_run_folder_holds_its_config_checkpoints_curves_and_results(run_folder):
    for name in ("config.yaml", "command.txt", "versions.txt", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
                 "metrics.csv", "results.json"):  # fmt: skip
        assert (run_folder / name).stat().st_size > 0
    assert list((run_folder / "samples").glob("step=*.png"))
    results = json.loads((run_folder / "results.json").read_text())
    assert results["test"]["kind"] == "exact"
    assert results["test"]["data"] == "mnist_mini"
    assert results["model"] == "pixelcnn"


def test_sampling_twice_gives_the_same_files(run_folder, here, capsys):
    for out in ("a.png", "b.png"):
        assert cli.run(["sample", f"ckpt={run_folder}", "n=3", f"out={out}", "device=cpu"]) == 0
    assert capsys.readouterr().out.count("\n") == 2
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    images = np.load(here / "a.npy")
    assert images.shape == (3, 1, 28, 28)
    assert images.dtype == np.uint8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "rows", "columns"),
    [
        (["image=half.png"], 14, 28),
        (["image=transparent.png"], 9, 28),
        (["image=whole.png", "known=top:0.25"], 7, 28),
        (["image=whole.png", "known=left:0.5", "particles=2"], 28, 14),
    ],
)
def test_completion_keeps_the_known_pixels(words, rows, columns, run_folder, here):
    x = pictures(here)
    assert cli.run(["complete", f"ckpt={run_folder}", "n=2", "out=completion.png", *words]) == 0
    images = np.load(here / "completion.npy")
    assert (images[:, 0, :rows, :columns] == x[:rows, :columns]).all()
    assert (images[0] != images[1]).any()
    assert (here / "completion.png").exists()


def test_file_names_may_hold_characters_of_hydras_grammar(run_folder, here):
    pictures(here)
    os.rename("half.png", "step=1, (a)'s {half}.png")
    assert cli.run(["complete", f"ckpt={run_folder}", "image=step=1, (a)'s {half}.png", "n=1", "out=b c.png"]) == 0
    assert (here / "b c.png").exists()


@pytest.mark.slow
def test_evaluation_repeats_the_test_number_of_the_run(run_folder, here, capsys):
    assert cli.run(["eval", f"ckpt={run_folder}", "trainer=cpu", "out=eval.json"]) == 0
    assert "exact, 100 images" in capsys.readouterr().out
    again = json.loads((here / "eval.json").read_text())
    first = json.loads((run_folder / "results.json").read_text())["test"]
    assert again["bits_per_dim"] == pytest.approx(first["bits_per_dim"], abs=1e-9)


@pytest.mark.slow
def test_evaluation_is_the_same_on_one_and_three_processes(run_folder, here, capfd):
    """40 images in batches of 7: neither can be divided by 3 processes. (Two are in test_eval_autoencoder.py.)"""
    values = []
    for devices in (1, 3):
        words = ["trainer=ddp_cpu", f"trainer.devices={devices}", "data.limit=40", "batch_size=7"]
        words += [f"out={devices}.json"]
        assert cli.run(["eval", f"ckpt={run_folder}", *words]) == 0
        result = json.loads((here / f"{devices}.json").read_text())
        assert result["n"] == 40
        values.append(result["bits_per_dim"])
    assert values[1] == pytest.approx(values[0], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (["sweep=joblib", "seed=0,1"], 2),
        (["sweep=optuna", "hydra.sweeper.n_trials=2"], 2),
        (["trainer.devices=2", "trainer.strategy=ddp", "seed=0,1"], 2),
    ],
    ids=["joblib", "optuna", "ddp"],
)
def test_a_sweep_ends_in_one_table_best_first(words, runs, here, capfd):
    assert (
        cli.run(["train", "-m", *FAST, "data.limit=32", "train.sample_every=0", *words, "hydra.sweep.dir=sweep"]) == 0
    )
    with open(here / "sweep" / "sweep.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == runs
    assert [float(row["valid"]) for row in rows] == sorted(float(row["valid"]) for row in rows)
    folders = {path.name for path in (here / "sweep").iterdir() if path.is_dir()}
    assert folders == {str(i) for i in range(runs)}
    assert {path.name for path in here.iterdir()} == {"sweep"}
    assert "sweep.csv" in capfd.readouterr().out


@pytest.mark.slow
def test_a_failing_job_is_named_and_the_others_go_on(here, capfd):
    words = [*FAST, "data.limit=32", "train.sample_every=0", "model.net.kernel=4,3", "hydra.sweep.dir=sweep"]
    assert cli.run(["train", "-m", *words]) == 1
    with open(here / "sweep" / "sweep.csv") as file:
        rows = list(csv.DictReader(file))
    assert "odd kernel" in rows[-1]["failed"]
    assert float(rows[0]["valid"]) < 9
    assert {path.name for path in here.iterdir()} == {"sweep"}


def test_list_and_help_explain_themselves(capsys):
    assert cli.run(["list"]) == 0
    out = capsys.readouterr().out
    assert "model=pixelcnn" in out
    assert "data=mnist_mini" in out
    for verb in cli.VERBS:
        assert cli.run([verb, "--help"]) == 0
        assert verb in capsys.readouterr().out
    assert cli.run(["--help"]) == 0
    assert cli.run(["--version"]) == 0


@pytest.mark.slow
def test_configs_and_packages_of_the_user(here, run_folder, monkeypatch):
    """--config-dir adds a model whose class lives in the user's package; it is used only when trusted."""
    (here / "mine.py").write_text("from genlab.nets import PixelCNN\nclass Net(PixelCNN):\n    '''Ours.'''\n")
    (here / "conf" / "model").mkdir(parents=True)
    (here / "conf" / "model" / "ours.yaml").write_text("defaults: [pixelcnn, _self_]\nnet: {_target_: mine.Net}\n")
    monkeypatch.syspath_prepend(str(here))
    words = ["train", "--config-dir", "conf", "model=ours", *FAST, "train.sample_every=0", "hydra.run.dir=run"]
    assert cli.run(words) == 2
    assert not (here / "run").exists()
    assert cli.run([*words, "trust=[mine]"]) == 0
    assert cli.run(["sample", "ckpt=run", "n=1"]) == 2
    assert cli.run(["sample", "ckpt=run", "n=1", "trust=[mine]"]) == 0


def test_python_api(run_folder):
    import genlab

    model = genlab.load(run_folder)
    images = model.sample(2, generator=torch.Generator().manual_seed(0))
    assert images.shape == (2, *model.spec.shape)
    assert model.log_prob(images).shape == (2,)
    assert model.spec == genlab.ImageSpec(1, 28, 28, 256, 10)


def test_the_composed_config_has_the_comments_of_the_files(capsys, here):
    """It is YAML that says what a run would do, with what the files say of a key beside it."""
    words = ["model=gated_pixelcnn", "model/head=logistic_mixture", "optim.lr=0.5", "trainer=smoke"]
    assert cli.run(["train", *words, "--cfg", "job"]) == 0
    out = capsys.readouterr().out
    config = yaml.safe_load(out)
    assert config["model"]["net"]["_target_"] == "genlab.nets.GatedPixelCNN"
    assert config["optim"]["lr"] == 0.5
    assert config["trainer"]["max_steps"] == 6
    assert config["names"]["model"] == "gated_pixelcnn"
    lines = out.splitlines()
    assert any(line.strip().startswith("# model=gated_pixelcnn: Gated PixelCNN") for line in lines)
    assert any("model/head=logistic_mixture" in line for line in lines)
    (depth,) = [line for line in lines if line.strip().startswith("depth:")]
    assert "#" in depth
    assert cli.run(["train", *words, "--help"]) == 0
    assert all(line in capsys.readouterr().out for line in [depth.strip()])
    assert cli.run(["sample", "n=3", "--cfg=job"]) == 0  # a missing checkpoint is shown as ???
    sample = yaml.safe_load(capsys.readouterr().out)
    assert (sample["n"], sample["ckpt"]) == (3, "???")
    for wrong, answer in ((["--cfg", "all"], "--cfg job"), (["-m", "--cfg", "job"], "leave out -m"),
                          (["modle=gan", "--cfg", "job"], "did you mean 'model'")):  # fmt: skip
        assert cli.run(["train", *wrong]) == 2
        assert answer in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_list_shows_the_configs_of_the_user_too(capsys, here):
    (here / "conf" / "model").mkdir(parents=True)
    (here / "conf" / "model" / "ours.yaml").write_text("# Our own.\ndefaults: [pixelcnn, _self_]\n")
    (here / "conf" / "model" / "gan.yaml").write_text("# Our GAN.\n")
    assert cli.run(["list", "model", "--config-dir", "conf"]) == 0
    out = capsys.readouterr().out
    assert "model=ours\tOur own." in out
    assert "model=gan\tOur GAN." in out
    assert "model=ppca\t" in out
    assert cli.run(["list", "--config-dir=nowhere"]) == 2
    assert "not a folder" in capsys.readouterr().err
    assert cli.run(["train", "--config-dir", "conf", "model=ours", "--cfg", "job"]) == 0
    out = capsys.readouterr().out
    assert "# model=ours: Our own." in out
    assert "residual blocks" in out  # from the model that it extends


def test_verbs_write_into_the_folder_of_the_run_and_replace_nothing(run_folder, here, tmp_path_factory, capsys):
    run = tmp_path_factory.mktemp("copies") / "run"
    shutil.copytree(run_folder, run)
    before = {path.name for path in run.iterdir()}

    def sampled(*words, ckpt=run):
        status = cli.run(["sample", f"ckpt={ckpt}", "n=1", "device=cpu", *words])
        return status, capsys.readouterr()

    for seed in (0, 1):
        status, said = sampled(f"seed={seed}")
        assert status == 0
        assert said.out.startswith(f"{run}/samples{'-2' * seed}.png and samples{'-2' * seed}.npy")
    (run / "samples-3.npy").write_bytes(b"mine")
    assert sampled("seed=2", ckpt=run / "checkpoints" / "best.ckpt")[0] == 0
    after = {path.name for path in run.iterdir()}
    numbers = {f"samples{number}.{ending}" for number in ("", "-2", "-4") for ending in ("png", "npy")}
    assert after - before == {*numbers, "samples-3.npy"}
    assert (run / "samples-3.npy").read_bytes() == b"mine"

    first = (run / "samples.npy").read_bytes()
    assert sampled("seed=3", "overwrite=true")[0] == 0
    assert (run / "samples.npy").read_bytes() != first
    assert {path.name for path in run.iterdir()} == after

    assert list(here.iterdir()) == []
    (here / "a.npy").write_bytes(b"mine")  # beside a.png, which is free
    status, said = sampled("out=a.png")
    assert status == 2
    assert "a.npy exists already; give another name, or overwrite=true" in said.err
    assert (here / "a.npy").read_bytes() == b"mine"
    assert not (here / "a.png").exists()
    assert sampled("out=a.png", "overwrite=true")[0] == 0
    assert np.load(here / "a.npy").shape == (1, 1, 28, 28)
    assert sampled("out=a.png", "overwrite=3")[0] == 2

    shutil.copy(run / "checkpoints" / "best.ckpt", here / "alone.ckpt")
    assert sampled(ckpt="alone.ckpt")[0] == 0
    assert (here / "samples.png").exists()


def test_show_draws_into_the_pictures_of_the_run(run_folder, here, tmp_path_factory):
    run = tmp_path_factory.mktemp("copies") / "run"
    shutil.copytree(run_folder, run)
    drawn = (run / "pictures" / "filters.png").read_bytes()
    assert cli.run(["show", f"ckpt={run}", "what=filters", "units=1"]) == 0
    assert (run / "pictures" / "filters.png").read_bytes() == drawn
    assert (run / "pictures-2" / "filters.png").read_bytes() != drawn
    assert list(here.iterdir()) == []
