"""Every signal that ends a process: training finishes the step, saves, stops and says how to resume it.

The resumed run must end as a run that was never interrupted.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import torch
from thin import every
from trainees import Dots, checkpoint, config, environment, outcome, same, trained

from genlab import cli
from genlab.core import Interrupted
from genlab.data import ImageData
from genlab.processes import launch, resume, training
from genlab.system import signals
from genlab.train.callbacks import Checkpoints, Validation
from genlab.train.learner import Learner
from genlab.train.pictures import Pictures


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The outcome of an uninterrupted run."""
    return outcome(trained(tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture(autouse=True)
def handlers():
    """Check that no test leaves a handler behind."""
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    yield
    assert before == {number: signal.getsignal(number) for number in signals.ENDING}
    assert signals.received == 0


def during(monkeypatch, owner, name, number, at=1, times=1):
    """Make the `at`-th call of a function begin with a signal to this process."""
    original, calls = getattr(owner, name), []

    def wrapped(*arguments, **options):
        calls.append(None)
        if len(calls) == at:
            for _ in range(times):
                signal.raise_signal(number)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.slow
@pytest.mark.parametrize("name", every(6, ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"]))
def test_every_signal_saves(tmp_path, whole, monkeypatch, name):
    folder, number = tmp_path / "run", signal.Signals[name]
    during(monkeypatch, Learner, "_terms", number, at=6)
    with pytest.raises(Interrupted) as caught:
        trained(folder)
    assert f"stopped by {signals.name(number)} at step 6 of 12" in str(caught.value)
    assert f"`genlab resume run={folder}`" in str(caught.value)
    assert caught.value.number == number
    assert checkpoint(folder)["genlab"]["step"] == 6
    monkeypatch.undo()
    resume.run(folder, ["trust=[trainees]"], "genlab resume")
    same(outcome(folder), whole)


WHEN = {
    "between the folder's opening and training": (Learner, "configure_optimizers", 1),
    "validation": (Validation, "act", 1),
    "pictures": (Pictures, "act", 1),
    "a checkpoint being written": (torch, "save", 3),
    "data being read": (ImageData, "batches", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("when", every(3, WHEN))
def test_a_signal_at_any_moment_of_training_loses_nothing(tmp_path, whole, monkeypatch, when):
    owner, name, at = WHEN[when]
    during(monkeypatch, owner, name, signal.SIGUSR1, at)
    with pytest.raises(Interrupted, match="stopped by SIGUSR1 at step"):
        trained(tmp_path / "run")
    monkeypatch.undo()
    assert checkpoint(tmp_path / "run")["genlab"]["step"] < 12
    resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    same(outcome(tmp_path / "run"), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name", "at"), [(Checkpoints, "act", 3), (training, "evaluate_split", 1)])
def test_after_the_last_step_only_the_test_is_left(tmp_path, whole, monkeypatch, owner, name, at):
    during(monkeypatch, owner, name, signal.SIGHUP, at)
    with pytest.raises(Interrupted, match=r"SIGHUP .*(only the test left|a test that is not done)"):
        trained(tmp_path / "run")
    monkeypatch.undo()
    assert checkpoint(tmp_path / "run")["genlab"]["step"] == 12
    assert not (tmp_path / "run" / "results.json").exists()
    monkeypatch.setattr(Learner, "_terms", None)  # no more training
    resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    same(outcome(tmp_path / "run"), whole)


def test_a_second_ctrl_c_stops_at_once(tmp_path, whole, monkeypatch):
    """In the middle of a checkpoint, whose previous version stays."""
    during(monkeypatch, torch, "save", signal.SIGINT, at=3, times=2)
    with pytest.raises(Interrupted, match=r"at once; .*from the last checkpoint"):
        trained(tmp_path / "run")
    monkeypatch.undo()
    assert checkpoint(tmp_path / "run")["genlab"]["step"] == 4
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert not (tmp_path / "run" / ".lock").exists()
    resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    same(outcome(tmp_path / "run"), whole)


def test_a_signal_before_the_run_folder_is_made_leaves_none(tmp_path, monkeypatch):
    signals_before = signals.install()
    try:
        during(monkeypatch, Dots, "load", signal.SIGTERM)
        with pytest.raises(signals.Stopped, match="SIGTERM"):
            trained(tmp_path / "run")
    finally:
        for number, handler in signals_before.items():
            signal.signal(number, handler)
    assert not (tmp_path / "run").exists()


def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path, monkeypatch, whole):
    """So that nohup works."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        during(monkeypatch, Learner, "_terms", signal.SIGHUP, at=6)
        same(outcome(trained(tmp_path / "run")), whole)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (Interrupted("stopped by SIGUSR2 at step 3", signal.SIGUSR2), 140, "stopped by SIGUSR2 at step 3"),
        (signals.Stopped(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (signals.Stopped(signal.SIGINT), 130, "stopped by Ctrl-C"),
    ],
)
def test_the_exit_status_is_that_of_a_shell(monkeypatch, capsys, raised, status, message):
    def dispatch(arguments):
        raise raised

    monkeypatch.setattr(cli, "_dispatch", dispatch)
    assert cli.run(["train"]) == status
    assert capsys.readouterr().err == f"genlab: {message}\n"


@pytest.mark.usefixtures("fresh")
def test_a_signal_during_imports_is_one_sentence():
    """Handlers are installed before torch is imported, so there is no traceback."""
    program = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGUSR1)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from genlab.cli import main\n"
        "main(['train'])\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGUSR1, "genlab: stopped by SIGUSR1\n")


@pytest.mark.slow
def test_a_signal_reaches_both_ranks(tmp_path):
    """The process that started them passes it on and exits with the status of the signal."""
    folder, number = tmp_path / "run", signal.SIGUSR2
    program = (
        "import sys; from pathlib import Path; from genlab import cli\n"
        "from genlab.system import signals; signals.install()\n"
        "def dispatch(words):\n"
        "    from trainees import config; from genlab.processes import training\n"
        "    asked = config(trainer__devices=2, trainer__strategy='ddp', data__sleep=0.1)\n"
        "    training.run(asked, Path(words[0]), 'genlab')\n"
        "cli._dispatch = dispatch; sys.exit(cli.run(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], env=environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert f"genlab: stopped by {signals.name(number)} at step" in stderr
    assert not (folder / ".lock").exists()


@pytest.mark.parametrize("job", ["jobs:stop_when_asked", "jobs:stop_at_once"])
def test_a_signal_that_comes_while_ranks_are_started_reaches_them(job):
    with signals.patiently():
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(Interrupted, match="stopped by SIGUSR1") as caught:
            launch.ranks(1, job)
    assert caught.value.number == signal.SIGUSR1


@pytest.mark.slow
def test_a_run_stopped_before_its_first_step_can_be_resumed(tmp_path, whole):
    asked = config()
    with signals.patiently():
        signal.raise_signal(signal.SIGXCPU)
        with pytest.raises(Interrupted, match="at step 1 of 12"):
            training.run(asked, tmp_path / "run", "genlab train")
    resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    same(outcome(tmp_path / "run"), whole)
