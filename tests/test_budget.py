"""The length of a run from a budget: equal to the bit to a run that was given the number of steps."""

from __future__ import annotations

import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from trainees import Crash, checkpoint, config, outcome, same, trained

from genlab.core import Interrupted, RequestError
from genlab.processes import launch, preparation, resume, sweep
from genlab.request import length
from genlab.train import budget, progress
from genlab.train.budget import Speed, steps_within
from genlab.train.learner import Learner
from genlab.train.plan import Plan
from genlab.train.run import Run

OPEN = {"trainer__max_steps": None, "train__valid_every": None, "train__sample_every": None}
BUDGET = {**OPEN, "train__minutes": 10}
# Of this speed, 13 steps with a validation before and after them and a picture take 581 s.
SPEED = Speed(start=0.0, step=38.0, validation=29.0, pictures=29.0, checkpoint=0.0, test=1.0)
TRUST = ["trust=[trainees]"]


def settings(folder):
    """The steps and intervals in the config of a run."""
    made = OmegaConf.load(folder / "config.yaml")
    return {
        "trainer__max_steps": made.trainer.max_steps,
        **{f"train__{key}": made.train[key] for key in budget.SHARES},
    }


def files(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture
def timed(monkeypatch):
    """A machine of known speed."""
    monkeypatch.setattr(budget, "measure", lambda *args, **kwargs: SPEED)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run on a machine of that speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "measure", lambda *args, **kwargs: SPEED)
        return trained(tmp_path_factory.mktemp("whole") / "run", **BUDGET)


@pytest.fixture
def finished(tmp_path, whole):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "run")


# ---- the run


@pytest.mark.slow
def test_a_repeat_with_the_number_of_steps_is_equal_to_the_bit(tmp_path, capsys):
    run = trained(tmp_path / "run", **OPEN, train__minutes=0.01)
    chosen = settings(run)
    assert f"train.minutes=0.01: {chosen['trainer__max_steps']:,} steps, about" in capsys.readouterr().err
    repeat = trained(tmp_path / "repeat", **chosen)
    same(outcome(run), outcome(repeat))
    assert files(run).keys() == files(repeat).keys()


def test_a_killed_run_goes_on_to_the_same_number(tmp_path, whole, timed, monkeypatch):
    with pytest.raises(Crash):
        trained(tmp_path / "run", **BUDGET, data__crash_at=9)
    chosen = settings(tmp_path / "run")
    assert chosen["trainer__max_steps"] == 13
    monkeypatch.delattr(budget, "measure")  # nothing is measured again
    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(config(**{**BUDGET, **chosen})))
    resume.run(tmp_path / "run", TRUST, "genlab resume")
    same(outcome(tmp_path / "run"), outcome(whole))
    assert settings(tmp_path / "run") == chosen


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_measures_itself_measures_again(tmp_path, whole, monkeypatch):
    def crash(*args):
        raise Crash

    monkeypatch.setattr(budget, "MOST_SECONDS", 0.0)
    monkeypatch.setattr(budget.Stopwatch, "_speed", crash)
    with pytest.raises(Crash):
        trained(tmp_path / "run", **BUDGET)
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == [
        "command.txt",
        "config.yaml",
        "versions.txt",
    ]
    monkeypatch.setattr(budget.Stopwatch, "_speed", lambda *args: SPEED)
    resume.run(tmp_path / "run", TRUST, "genlab resume")
    same(outcome(tmp_path / "run"), outcome(whole))


@pytest.mark.slow
def test_a_signal_ends_the_measuring_with_one_sentence(tmp_path, monkeypatch):
    def interrupted(self, number, batch):
        signal.raise_signal(signal.SIGTERM)
        return terms(self, number, batch)

    terms = Learner._terms
    monkeypatch.setattr(Learner, "_terms", interrupted)
    with pytest.raises(Interrupted, match=r"SIGTERM at once; nothing had been saved; `genlab resume .* begins anew"):
        trained(tmp_path / "run", **BUDGET)
    assert settings(tmp_path / "run")["trainer__max_steps"] is None


def test_measuring_leaves_no_trace(tmp_path):
    made = config(**OPEN, train__minutes=1)
    prepared = preparation.prepare(made)
    run = Run(prepared.model, prepared.data, OmegaConf.to_container(made), Plan.of(made.trainer), tmp_path)

    def state():
        return {
            "weights": {name: value.clone() for name, value in run.model.state_dict().items()},
            "flags": [(part.training, *(p.requires_grad for p in part.parameters())) for part in run.model.modules()],
            "gradients": [p.grad for p in run.model.parameters()],
            "position": run.data.position,
            "random": [torch.get_rng_state(), random.getstate(), list(np.random.get_state()[1])],
        }

    before = state()
    speed = budget.measure(run, 0.1, draw=lambda path, images, spec, columns, caption: path.write_bytes(b""))
    same(state(), before)
    assert files(tmp_path) == {}
    assert min(speed.start, speed.step, speed.validation, speed.pictures, speed.checkpoint, speed.test) > 0


def test_a_sweep_recognises_a_run_that_has_chosen_its_number(finished):
    assert sweep._status(finished, config(**BUDGET)) == "finished"
    with pytest.raises(RequestError, match="holds another run"):
        sweep._status(finished, config(**BUDGET, seed=4))


def test_a_long_run_says_how_long_it_will_train(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "FORECAST_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LONG_SECONDS", 0.0)
    trained(tmp_path / "run", trainer__max_steps=4, train__sample_every=0)
    lines = [line for line in capsys.readouterr().err.splitlines() if "train.minutes= changes it" in line]
    assert [line.startswith("4 steps: about ") for line in lines] == [True]


@pytest.mark.slow
def test_epochs(tmp_path):
    run = trained(tmp_path / "run", **OPEN, train__epochs=1.5, trainer__accumulate_grad_batches=2)
    assert checkpoint(run)["genlab"]["step"] == 8  # 1.5 * 80 images, 16 in a step
    assert settings(run) == {
        "trainer__max_steps": 8, "train__valid_every": 300, "train__sample_every": 300, "train__checkpoint_every": 4
    }  # fmt: skip


def test_a_paused_run_goes_on_as_if_it_had_never_stopped(tmp_path, whole, timed, capsys):
    run = trained(tmp_path / "run", **BUDGET, train__pause_after=1e-9)
    assert "paused at step 1 of 13; everything is saved" in capsys.readouterr().out
    assert not (run / "results.json").exists()
    assert resume.run(run, TRUST, "genlab resume") == {}
    assert checkpoint(run)["genlab"]["step"] == 2
    resume.run(run, [*TRUST, "train.pause_after=null"], "genlab resume")
    same(outcome(run), outcome(whole))


def numbers(folder):
    """What each of several ranks does: choose the length and write it down."""
    from genlab.processes import group

    group.join("cpu")
    made = config(**OPEN, train__minutes=0.02)
    prepared = preparation.prepare(made)
    plan = replace(Plan.of(made.trainer), devices=2)
    run = Run(prepared.model, prepared.data, OmegaConf.to_container(made), plan, Path(folder))
    from genlab.processes.environment import environment

    chosen, _ = budget.settle(run, environment=environment())
    Path(folder, str(group.this_rank().rank)).write_text(str(chosen))


@pytest.mark.slow
def test_all_ranks_choose_the_number_of_rank_zero(tmp_path):
    launch.ranks(2, "test_budget:numbers", folder=str(tmp_path))
    first, second = ((tmp_path / rank).read_text() for rank in "01")
    assert first == second


# ---- the number


@pytest.mark.parametrize("every", [None, 7])
@pytest.mark.parametrize("seconds", [1.0, 33.3, 5000.0])
def test_one_step_more_would_not_fit(seconds, every):
    speed = Speed(start=0, step=0.7, validation=3.0, pictures=1.0, checkpoint=0.1, test=0)
    train = {"valid_every": every, "sample_every": 0 if every else None, "checkpoint_every": 10}
    chosen, duration = steps_within(seconds, speed, train)
    steps = chosen["max_steps"]
    events = {key: -(-steps // chosen[key]) if chosen[key] else 0 for key in train}
    costs = {"valid_every": 3.0, "sample_every": 1.0, "checkpoint_every": 0.1}
    assert duration == pytest.approx(0.7 * steps + 3.0 + sum(events[key] * costs[key] for key in costs))
    assert steps == 1 or seconds - 4 - 0.8 < duration <= seconds
    assert all(chosen[key] == value for key, value in train.items() if value is not None)
    if every is None:
        assert events["valid_every"] == 1 or 3.0 * (1 + events["valid_every"]) <= 0.1 * seconds
        assert events["sample_every"] == 1 or 1.0 * events["sample_every"] <= 0.05 * seconds


# ---- the request


def request(**values):
    made = OmegaConf.create({"trainer": {"max_steps": None}, "train": {"minutes": None, "epochs": None}})
    for key, value in values.items():
        OmegaConf.update(made, key.replace("__", "."), value)
    return made


def chosen(made):
    return {key: OmegaConf.select(made, key) for key in length.KEYS if OmegaConf.select(made, key) is not None}


def test_the_length_on_the_command_line_counts():
    made = request(trainer__max_steps=600, train__minutes=2)
    length.choose(made, {"train.minutes", "seed"})
    assert chosen(made) == {"train.minutes": 2}


def test_without_a_length_a_run_takes_an_hour():
    made = request()
    length.choose(made, {"trainer.max_steps"})
    assert chosen(made) == {"train.minutes": length.USUAL_MINUTES}


@pytest.mark.parametrize("given", [(), ("trainer.max_steps", "train.epochs")])
def test_two_lengths_are_refused(given):
    with pytest.raises(RequestError, match=r"trainer\.max_steps=600 and train\.epochs=3 each say how long"):
        length.choose(request(trainer__max_steps=600, train__epochs=3), given)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["train.minutes=3"], r"train\.minutes=3: this run has trainer\.max_steps=13"),
        (["train.epochs=3"], r"train\.epochs=3: this run has trainer\.max_steps=13"),
        (["trainer.max_steps=null"], r"trainer\.max_steps=null: .* is at step 13"),
        (["train.pause_after=0"], r"train\.pause_after=0 must be a number above 0"),
    ],
)
def test_a_run_keeps_its_number_unless_it_gets_another(finished, words, answer):
    before = files(finished)
    with pytest.raises(RequestError, match=answer):
        resume.run(finished, [*TRUST, *words], "genlab resume")
    assert files(finished) == before


@pytest.mark.slow
def test_a_new_number_of_steps_replaces_the_budget(finished):
    resume.run(finished, [*TRUST, "trainer.max_steps=15"], "genlab resume")
    made = OmegaConf.load(finished / "config.yaml")
    assert (made.trainer.max_steps, made.train.minutes) == (15, None)
    assert checkpoint(finished)["genlab"]["step"] == 15
