"""Several processes: the same weights on every rank, one sentence when one of them fails, nothing left running."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from trainees import checkpoint, config, environment, outcome, same, trained

from genlab.core import RequestError, RunError
from genlab.processes import launch, resume

TWO = {"trainer__devices": 2, "trainer__strategy": "ddp"}


# ---- jobs that need more than jobs.py


def same_weights(folder):
    """Train on this rank, then compare this rank's weights with rank zero's."""
    from genlab.processes import training
    from genlab.train import fit

    kept = []
    learner = fit.Learner
    fit.Learner = lambda *a, **k: kept.append(learner(*a, **k)) or kept[-1]
    training.work(folder, trust=["trainees"])
    mine = torch.cat([p.detach().flatten() for p in kept[0].parameters()])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    Path(folder, f"equal{dist.get_rank()}").write_text(str(all(torch.equal(mine, other) for other in everyone)))


# ---- launching


def test_ranks_meet(tmp_path):
    launch.ranks(2, "jobs:write_rank", folder=str(tmp_path))
    assert (tmp_path / "0").read_text() == "2 3 True"
    assert (tmp_path / "1").read_text() == "2 3 False"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "kind", "sentence"),
    [
        ("request", RequestError, "because of request"),
        ("bug", RunError, "ZeroDivisionError: because of bug"),
        ("disk", RunError, "No space left on device (the disk is full)"),
        ("signal", RunError, "rank 1 of 2 was killed by SIGKILL"),
    ],
)
def test_a_failing_rank_is_one_sentence(tmp_path, capfd, how, kind, sentence):
    with pytest.raises(kind) as caught:
        launch.ranks(2, "jobs:fail", how=how, folder=str(tmp_path))
    assert str(caught.value) == sentence
    assert capfd.readouterr().err.count("Traceback") == (1 if how == "bug" else 0)
    if (tmp_path / "pid").exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


def test_an_error_of_rank_zero_reaches_all_ranks():
    with pytest.raises(RequestError, match="zero says no"):
        launch.ranks(2, "jobs:fail_on_zero")


# ---- training on two


@pytest.mark.slow
def test_two_ranks_hold_equal_weights_and_validate_like_one(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config(**TWO, trainer__max_steps=5)))
    launch.ranks(2, "test_launch:same_weights", folder=str(folder))
    assert [(folder / f"equal{rank}").read_text() for rank in (0, 1)] == ["True", "True"]
    from trainees import DotsData

    from genlab.build import restore
    from genlab.measure.evaluation import evaluate_split

    model, _ = restore(folder, trust=["trainees"])
    alone = evaluate_split(model, DotsData(validation=16, eval_batch_size=5, seed=3), "valid", weights="ema", seed=3)
    with open(folder / "metrics.csv", newline="") as file:
        logged = [row["valid/bits_per_dim"] for row in csv.DictReader(file) if row["valid/bits_per_dim"]]
    assert float(logged[-1]) == pytest.approx(alone.value, rel=1e-12)


@pytest.mark.slow
def test_guard_on_two_ranks(tmp_path):
    """A non-finite loss on one rank skips the step on both; too many of them stop both with one sentence."""
    folder = tmp_path / "run"
    with pytest.raises(RunError, match=r"stopped at step 10: 3 steps .* such number came out of trap; .*last\.ckpt"):
        trained(folder, **TWO, data__poison=[2, 6, 9], data__poisoned_rank=1)
    state = checkpoint(folder)
    assert state["genlab"]["bad_steps"] == 2
    assert state["genlab"]["updates"] == 6
    assert all(value.isfinite().all() for value in state["state_dict"].values())


@pytest.mark.slow
def test_two_ranks_resume(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RunError, match="a rank stopped with status 1"):
        trained(folder, **TWO, data__crash_at=7)
    whole = trained(tmp_path / "whole", **TWO)
    (folder / "config.yaml").write_text((whole / "config.yaml").read_text())
    resume.run(folder, ["trust=[trainees]"], "genlab resume")
    same(outcome(folder), outcome(whole))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_end_of_the_parent_saves_and_ends_all(tmp_path, number):
    folder, asked = tmp_path / "run", tmp_path / "asked.yaml"
    asked.write_text(OmegaConf.to_yaml(config(**TWO, data__sleep=0.1)))
    program = (
        "import sys; from pathlib import Path; from omegaconf import OmegaConf\n"
        "from genlab.core import RunError; from genlab.processes import training\n"
        "try: training.run(OmegaConf.load(sys.argv[1]), Path(sys.argv[2]), 'genlab train')\n"
        "except RunError as error: sys.exit(str(error))"
    )
    command = [sys.executable, "-c", program, str(asked), str(folder)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)  # until the last rank has closed its standard error
    if number == signal.SIGTERM:
        assert process.returncode == 1
        assert stderr.strip().splitlines()[-1].startswith("stopped by SIGTERM at step")
    assert "Traceback" not in stderr
    assert checkpoint(folder)["genlab"]["step"] < 12


# ---- started by somebody else


def rank_of_torchrun(config_file, folder):
    """What each process of `torchrun … genlab train` does. The folders differ, as names made from clocks do."""
    from genlab.processes import training

    training.run(OmegaConf.load(config_file), Path(folder + os.environ["RANK"]), "genlab train")


@pytest.mark.slow
def test_started_by_torchrun(tmp_path):
    asked = tmp_path / "asked.yaml"
    asked.write_text(OmegaConf.to_yaml(config(trainer__max_steps=5)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = f"import test_launch; test_launch.rank_of_torchrun({str(asked)!r}, {str(tmp_path / 'run')!r})"
    ranks = []
    for rank in ("0", "1"):
        env = {
            **environment(), "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        ranks.append(subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate(timeout=90)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    assert printed[0].startswith("test bits/dim")
    assert printed[1] == ""
    assert (tmp_path / "run0" / "results.json").exists()
    assert not (tmp_path / "run1").exists()


# ---- sharded


@pytest.mark.slow
def test_sharded_training_equals_replicated_and_resumes(tmp_path):
    """FSDP2 over two CPU ranks: the checkpoint is one file with all weights, and they are those of DDP."""
    options = {**TWO, "trainer__gradient_clip_val": None}
    replicated = trained(tmp_path / "ddp", **options)
    sharded = trained(tmp_path / "fsdp", **{**options, "trainer__strategy": "fsdp"})
    a, b = checkpoint(replicated)["state_dict"], checkpoint(sharded)["state_dict"]
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    resume.run(sharded, ["trust=[trainees]", "trainer.max_steps=14"], "genlab resume")
    assert checkpoint(sharded)["genlab"]["step"] == 14
