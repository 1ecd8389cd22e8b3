"""A run that was killed and resumed ends exactly, to the bit, as a run that was never interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf
from thin import every
from trainees import Crash, checkpoint, config, environment, outcome, same, trained

from genlab.core import RequestError, RunError
from genlab.processes import resume, training
from genlab.train.optim import AdamW

STEPS = 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The outcomes of uninterrupted runs, by the number of batches in a step."""
    made = {}

    def run(accumulate):
        if accumulate not in made:
            folder = tmp_path_factory.mktemp(f"whole{accumulate}") / "run"
            made[accumulate] = outcome(trained(folder, trainer__accumulate_grad_batches=accumulate))
        return made[accumulate]

    return run


# log every 3, validate every 5, sample every 6, checkpoint every 4: each step has another mixture of what is due.
@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "batch"), every(4, [(1, 5), (1, 2), (1, 8), (1, 11), (2, 9), (2, 16)]))
def test_crashed_and_resumed(tmp_path, whole, accumulate, batch):
    changes = {"trainer__accumulate_grad_batches": accumulate}
    with pytest.raises(Crash):
        trained(tmp_path / "run", data__crash_at=batch, **changes)
    file = tmp_path / "run" / "config.yaml"
    file.write_text(OmegaConf.to_yaml(config(**changes)))  # the same run without the crash
    resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    same(outcome(tmp_path / "run"), whole(accumulate))


@pytest.mark.slow
def test_crashed_again_and_again(tmp_path, whole):
    with pytest.raises(Crash):
        trained(tmp_path / "run", data__crash_at=5)
    for batch in (6, 9, 10):
        (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(config(data__crash_at=batch)))
        with pytest.raises(Crash):
            resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(config()))
    resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    same(outcome(tmp_path / "run"), whole(1))


def start(folder, **changes):
    """Train in a process of its own."""
    file = folder.parent / "asked.yaml"
    file.write_text(OmegaConf.to_yaml(config(**changes)))
    program = (
        "import sys, torch; torch.set_num_threads(1); from pathlib import Path; from omegaconf import OmegaConf\n"
        "from genlab.core import RunError; from genlab.processes import training\n"
        "try: training.run(OmegaConf.load(sys.argv[1]), Path(sys.argv[2]), 'genlab train')\n"
        "except RunError as error: sys.exit(str(error))"
    )
    command = [sys.executable, "-c", program, str(file), str(folder)]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number", every(2, [signal.SIGKILL, signal.SIGTERM]))
def test_real_signals(tmp_path, whole, number):
    folder = tmp_path / "run"
    process = start(folder, data__sleep=0.1)
    wait_for(folder / "checkpoints" / "last.ckpt")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 1)
    if number != signal.SIGKILL:
        sentence = stderr.strip().splitlines()[-1]
        step = checkpoint(folder)["genlab"]["step"]
        assert f"stopped by SIGTERM at step {step} of {STEPS}" in sentence
        assert f"genlab resume run={folder}" in sentence
    assert checkpoint(folder)["genlab"]["step"] < STEPS
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config()))
    resume.run(folder, ["trust=[trainees]"], "genlab resume")
    same(outcome(folder), whole(1))


def test_signal_in_the_middle_of_an_accumulated_step(tmp_path, whole, monkeypatch):
    """The step is finished first, because a checkpoint has no half-summed gradients."""
    from genlab.train.learner import Learner

    terms = Learner._terms

    def interrupted(self, number, batch):
        if number == 12:  # the first of two batches of step 7
            signal.raise_signal(signal.SIGTERM)
        return terms(self, number, batch)

    monkeypatch.setattr(Learner, "_terms", interrupted)
    with pytest.raises(RunError, match="step 7 of"):
        trained(tmp_path / "run", trainer__accumulate_grad_batches=2)
    monkeypatch.undo()
    assert checkpoint(tmp_path / "run")["DotsData"]["position"] == 14
    resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    same(outcome(tmp_path / "run"), whole(2))


@pytest.mark.slow
def test_a_finished_run_is_refused_unless_it_gets_more_steps(tmp_path, whole):
    folder = trained(tmp_path / "run", optim__schedule="constant")
    with pytest.raises(RequestError, match=r"is finished at step 12: train longer with trainer\.max_steps=24"):
        resume.run(folder, ["trust=[trainees]"], "genlab resume")
    resume.run(folder, ["trust=[trainees]", "trainer.max_steps=17"], "genlab resume run=run trainer.max_steps=17")
    assert checkpoint(folder)["genlab"]["step"] == 17
    assert "max_steps: 17" in (folder / "config.yaml").read_text()
    assert (folder / "command.txt").read_text().splitlines()[-1] == "genlab resume run=run trainer.max_steps=17"
    longer = trained(tmp_path / "longer", trainer__max_steps=17, optim__schedule="constant")
    for part in ("state_dict", "optimizer_states"):
        same(checkpoint(folder)[part], checkpoint(longer)[part])


def test_a_longer_schedule_goes_on_from_its_own_rate(tmp_path):
    """The cosine had ended at 0. Stretched to 24 steps, it has step 13 in its middle."""
    folder = trained(tmp_path / "run")
    resume.run(folder, ["trust=[trainees]", "trainer.max_steps=24", "train.log_every=1"], "genlab resume")
    rows = (folder / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/lr")
    rate = float(next(row.split(",")[column] for row in rows if row.startswith("13,")))
    assert rate == pytest.approx(0.05 * AdamW(warmup=2).factor(12, 24))
    assert rate > 0.02


def test_a_missing_evaluation_of_a_finished_run_is_done(tmp_path, whole):
    folder = trained(tmp_path / "run")
    (folder / "results.json").unlink()
    resume.run(folder, ["trust=[trainees]"], "genlab resume")
    same(outcome(folder), whole(1))


@pytest.mark.slow
def test_an_early_stop_is_remembered(tmp_path):
    folder = trained(tmp_path / "run", train__patience=1, train__valid_every=1, optim__lr=1e-9, train__ema=0)
    stopped = checkpoint(folder)["genlab"]
    assert stopped["stopped_early"]
    assert stopped["step"] < STEPS
    with pytest.raises(RequestError, match=r"train longer with train\.patience=null"):
        resume.run(folder, ["trust=[trainees]"], "genlab resume")
    (folder / "results.json").unlink()
    resume.run(folder, ["trust=[trainees]"], "genlab resume")
    assert checkpoint(folder)["genlab"]["step"] == stopped["step"]
    resume.run(folder, ["trust=[trainees]", "train.patience=null"], "genlab resume")
    assert checkpoint(folder)["genlab"]["step"] == STEPS


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.width=3"], "can only change trainer"),
        (["seed=1"], "can only change trainer"),
        (["trainer.max_step=30"], "did you mean 'trainer.max_steps'"),
        (["trainer.max_steps=-1"], "trainer.max_steps=-1"),
    ],
)
def test_bad_overrides_change_nothing(tmp_path, overrides, sentence):
    with pytest.raises(Crash):
        trained(tmp_path / "run", data__crash_at=5)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RequestError, match=sentence):
        resume.run(tmp_path / "run", ["trust=[trainees]", *overrides], "genlab resume")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_no_run_to_resume(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        resume.run(tmp_path / "none", ["trust=[trainees]"], "genlab resume")
    with pytest.raises(RequestError, match="holds no run"):
        resume.run(tmp_path, ["trust=[trainees]"], "genlab resume")


def test_two_runs_in_one_process(tmp_path, whole):
    first, second = trained(tmp_path / "a"), trained(tmp_path / "b")
    same(outcome(first), whole(1))
    same(outcome(second), whole(1))
    with pytest.raises(RequestError, match="already holds a run"):
        training.run(config(), first, "genlab train")
    assert json.loads((first / "results.json").read_text())["model"] == "tiny"
