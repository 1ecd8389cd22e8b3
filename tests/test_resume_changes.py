"""What may change when a run is resumed, what is refused, and that a refusal leaves the folder as it was.

Also new runs from the weights of another (init=RUN).
"""

from __future__ import annotations

import shutil

import pytest
import torch
from omegaconf import OmegaConf
from trainees import Crash, Dots, checkpoint, config, trained

from genlab.core import RequestError
from genlab.processes import launch, resume, training
from genlab.train import resume_state
from genlab.train.checkpoint import read


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    """A run that was killed after its checkpoint of step 8 of 12."""
    folder = tmp_path_factory.mktemp("crashed") / "run"
    with pytest.raises(Crash):
        trained(folder, data__crash_at=9)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config()))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run."""
    return trained(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(crashed, tmp_path):
    """A copy of the run that was killed."""
    return shutil.copytree(crashed, tmp_path / "run")


def content(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


# ---- refused


def text(name, change):
    def spoil(folder, monkeypatch):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return spoil


def state(change):
    def spoil(folder, monkeypatch):
        path = folder / "checkpoints" / "last.ckpt"
        made = torch.load(path, weights_only=True)
        change(made)
        torch.save(made, path)

    return spoil


def gone(folder, monkeypatch):
    def load(self, root):
        raise RequestError("data.root: the images are gone")

    monkeypatch.setattr(Dots, "load", load)


def a_rank_refuses(folder, monkeypatch):
    def ranks(*_, **__):
        (folder / "metrics.csv").write_text("")
        raise RequestError("data.root: not on this rank")

    monkeypatch.setattr(launch, "ranks", ranks)


REFUSED = {
    "data gone": (gone, [], "are gone"),
    "a rank refuses": (a_rank_refuses, ["trainer.devices=2", "trainer.strategy=ddp"], "not on this rank"),
    "zero bytes": (text("metrics.csv", lambda b: b.replace(b"5", b"\0", 1)), [], "damaged: .*zero bytes"),
    "no column step": (text("metrics.csv", lambda b: b.replace(b"step", b"stop", 1)), [], "it has no column step"),
    "semicolons": (text("metrics.csv", lambda b: b.replace(b",", b";")), [], "it has no column step"),
    "a row cut in the middle": (text("metrics.csv", lambda b: b.replace(b"\n5,", b"\n5\n5,", 1)), [], "row 3 has no"),
    "not text": (text("metrics.csv", lambda b: b"\xff\xfe" + b), [], "cannot be read"),
    "config is no YAML": (text("config.yaml", lambda b: b + b"\n  - : ["), [], "it is not YAML"),
    "config is a word": (text("config.yaml", lambda b: b"word"), [], "not a mapping"),
    "config lacks a key": (text("config.yaml", lambda b: b.replace(b"  ema: 0.9\n", b"")), [], "describe a run"),
    "config of another kind": (text("config.yaml", lambda b: b.replace(b"ema: 0.9", b"ema: [1]")), [], "train.ema"),
    "config with another model": (
        text("config.yaml", lambda b: b.replace(b"trainees.Tiny", b"trainees.Netless")), [], "net.* here; a run keeps",
    ),
    "checkpoint cut": (text("checkpoints/last.ckpt", lambda b: b[:5000]), [], "readable .*copy best.ckpt over it"),
    "checkpoint of weights alone": (state(lambda s: s.pop("optimizer_states")), [], "optimizer_states is not what"),
    "checkpoint without counters": (state(lambda s: s["genlab"].pop("updates")), [], "updates is not what"),
    "checkpoint with NaN": (
        state(lambda s: next(iter(s["state_dict"].values())).fill_(torch.nan)), [], "not finite numbers .*best.ckpt",
    ),
    "checkpoint of other data": (state(lambda s: s.update(Other=s.pop("DotsData"))), [], "another kind of data"),
    "checkpoint of another optimiser": (
        state(lambda s: s["optimizer_states"][0]["param_groups"].pop()), [], "does not fit the optimiser",
    ),
    "checkpoint that Lightning refuses": (state(lambda s: s["loops"].clear()), [], "cannot be resumed from"),
    "no validation so far": (
        lambda folder, _: (folder / "checkpoints" / "best.ckpt").unlink(), ["trainer.max_steps=5"], "no validation yet",
    ),
    "too few steps": (lambda folder, _: None, ["trainer.max_steps=0"], "max_steps=0"),
    "another model": (lambda folder, _: None, ["model.width=3"], "can only change .*train init=RUN"),
    "other images": (lambda folder, _: None, ["data.limit=5"], "can only change"),
    "no such logger": (lambda folder, _: None, ["logger=tensorbord"], "did you mean 'tensorboard'"),
    "bad rate": (lambda folder, _: None, ["optim.lr=-1"], "optim.lr=-1"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", REFUSED)
def test_a_refusal_touches_nothing(run, monkeypatch, how):
    spoil, overrides, sentence = REFUSED[how]
    (run / "results.json").write_text("{}\n")  # of a shorter run
    spoil(run, monkeypatch)
    before = content(run)
    changed = overrides if how.startswith("config ") else ["train.ema=0.8", *overrides]
    with pytest.raises(RequestError, match=sentence) as caught:
        resume.run(run, ["trust=[trainees]", *changed], "genlab resume")
    assert content(run) == before
    assert len(str(caught.value)) < 600


def test_a_byte_order_mark_is_read(run):
    (run / "metrics.csv").write_bytes(b"\xef\xbb\xbf" + (run / "metrics.csv").read_bytes())
    resume.run(run, ["trust=[trainees]"], "genlab resume")
    assert (run / "metrics.csv").read_text().startswith("step,")


@pytest.mark.slow
@pytest.mark.parametrize("tail", [b"9,1.0", b"9,\0\0\0"])
def test_an_incomplete_last_row_is_dropped(run, tail):
    with open(run / "metrics.csv", "ab") as file:
        file.write(tail)
    resume.run(run, ["trust=[trainees]"], "genlab resume")
    assert [line.split(",")[0] for line in (run / "metrics.csv").read_text().splitlines()][-3:] == ["9", "10", "12"]


def test_the_last_checkpoint_is_read_once(run, monkeypatch):
    """It is as large as model and optimiser together."""
    names = []
    monkeypatch.setattr(resume_state, "read", lambda path: names.append(path.name) or read(path))
    resume.run(run, ["trust=[trainees]"], "genlab resume")
    assert names == ["last.ckpt"]


# ---- changed


def test_averaging_can_end_and_begin(run):
    resume.run(run, ["trust=[trainees]", "train.ema=0"], "genlab resume")
    assert not [key for key in checkpoint(run)["state_dict"] if key.startswith("ema.")]
    assert "ema: 0\n" in (run / "config.yaml").read_text()
    resume.run(run, ["trust=[trainees]", "train.ema=0.99", "trainer.max_steps=13"], "genlab resume")
    state = checkpoint(run)
    assert state["genlab"]["updates"] == 1
    key = "ema.logits"
    new, old = state["state_dict"]["model.logits"], state["state_dict"][key]
    assert not torch.equal(new, old)  # the schedule has ended at a rate of 0 for 12 steps and goes on for 13
    assert (new - old).abs().max() < 0.05


def test_the_optimiser_takes_new_settings_and_keeps_its_moments(run):
    before = checkpoint(run)["optimizer_states"][0]
    overrides = ["optim.lr=0.01", "optim.betas=[0.8,0.95]", "optim.weight_decay=0.5", "optim.schedule=constant"]
    resume.run(run, ["trust=[trainees]", *overrides, "train.log_every=1"], "genlab resume")
    after = checkpoint(run)["optimizer_states"][0]
    assert [group["lr"] for group in after["param_groups"]] == [0.01, 0.01]
    assert {tuple(group["betas"]) for group in after["param_groups"]} == {(0.8, 0.95)}
    assert [group["weight_decay"] for group in after["param_groups"]] == [0.5, 0.0]
    assert int(after["state"][0]["step"]) == 12
    assert int(before["state"][0]["step"]) == 8


@pytest.mark.slow
@pytest.mark.parametrize(("size", "position"), [(4, 20), (5, 16), (8, 12)])
def test_the_position_counts_images(run, size, position):
    """64 images were seen. The four steps that are left take four batches of the new size from there on."""
    resume.run(run, ["trust=[trainees]", f"data.batch_size={size}", "data.eval_batch_size=3"], "genlab resume")
    assert checkpoint(run)["DotsData"]["position"] == position
    assert checkpoint(run)["genlab"]["batch_images"] == size
    assert f"batch_size: {size}\n" in (run / "config.yaml").read_text()


def test_another_logger_goes_on_beside_the_file(run):
    pytest.importorskip("tensorboard")
    resume.run(run, ["trust=[trainees]", "logger=tensorboard"], "genlab resume run=run logger=tensorboard")
    assert list((run / "tensorboard").iterdir())
    assert len((run / "metrics.csv").read_text().splitlines()) == 8
    assert (run / "command.txt").read_text().splitlines()[-1].endswith("logger=tensorboard")


def test_a_moved_folder_goes_on(run, tmp_path):
    moved = run.rename(tmp_path / "elsewhere")
    resume.run(moved, ["trust=[trainees]"], "genlab resume")
    assert (moved / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_final_test_is_done_on_resume(run, monkeypatch, error):
    def evaluate_split(*_, **__):
        raise error("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate_split", evaluate_split)
        with pytest.raises(error):
            resume.run(run, ["trust=[trainees]"], "genlab resume")
    assert not (run / "results.json").exists()
    resume.run(run, ["trust=[trainees]"], "genlab resume")
    assert (run / "results.json").exists()


# ---- begun anew from a run's weights


def first_value(folder):
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("valid/bits_per_dim")
    return float(next(row[column] for row in rows[1:] if row[column]))


def test_a_new_run_begins_where_the_other_ended(finished, tmp_path):
    """It begins at the averaged weights, with a new optimiser, here on images in another order."""
    changes = {"optim__lr": 1e-12, "optim__weight_decay": 0.0, "trainer__max_steps": 1, "seed": 9, "data__seed": 9}
    folder = trained(tmp_path / "run", init=str(finished), **changes)
    ended = checkpoint(finished, "best")["callbacks"]["Validation"]["value"]
    assert first_value(folder) == pytest.approx(ended, rel=1e-6)
    state = checkpoint(folder)
    assert {int(each["step"]) for each in state["optimizer_states"][0]["state"].values()} == {1}
    assert state["genlab"]["updates"] == 1
    torch.testing.assert_close(
        state["state_dict"]["ema.logits"], checkpoint(finished, "best")["state_dict"]["ema.logits"]
    )
    assert f"init: {finished}" in (folder / "config.yaml").read_text()


def test_it_resumes_without_the_other(finished, tmp_path):
    source = shutil.copytree(finished, tmp_path / "source")
    with pytest.raises(Crash):
        trained(tmp_path / "run", init=str(source), data__crash_at=5)
    shutil.rmtree(source)
    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(config(init=str(source))))
    resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    assert checkpoint(tmp_path / "run")["genlab"]["step"] == 12


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"model___target_": "trainees.Netless"}, "does not fit: net"), ({"init": "nowhere"}, "nowhere")],
)
def test_weights_that_do_not_fit(finished, tmp_path, changes, sentence):
    with pytest.raises(RequestError, match=sentence):
        trained(tmp_path / "run", **{"init": str(finished), **changes})
    assert not (tmp_path / "run").exists()
