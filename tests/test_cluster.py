"""Rank and group from the environment of torchrun and srun; ranks find one another, and end together."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from trainees import environment

from genlab import cli
from genlab.core import RequestError
from genlab.processes import failure_detector, group, launch
from genlab.processes.environment import RankEnvironment
from genlab.processes.failure_detector import FailureDetector
from genlab.processes.rank_info import RankInfo, first_host, ports, rank_info, tasks_per_node

BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NNODES": "1"}
STEP = {
    **BATCH, "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NODELIST": "gpu[07,09]",
}  # fmt: skip


# ---- the environment


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, (0, 1, 0, 1)),
        (BATCH, (0, 1, 0, 1)),  # sbatch --ntasks=2, without srun
        ({**BATCH, "SLURM_NTASKS_PER_NODE": "2"}, (0, 1, 0, 1)),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, (0, 1, 0, 1)),  # srun -n 1, submitit
        (STEP, (5, 8, 1, 4)),
        ({**STEP, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (1, 2, 1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1, 0, 1)),
    ],
    ids=["alone", "batch", "batch per node", "one task", "step", "ranks in a step", "torchrun of one"],
)
def test_variables_of_the_step_count_and_not_those_of_the_job(env, expected):
    here = rank_info(env)
    assert (here.rank, here.world_size, here.local_rank, here.local_world_size) == expected


def test_machines_with_different_numbers_of_tasks_are_refused():
    with pytest.raises(RequestError, match=r"4, 4, 1 tasks.*ntasks-per-node"):
        rank_info({**STEP, "SLURM_STEP_TASKS_PER_NODE": "4(x2),1"})


def test_lists_of_slurm():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    hosts = {"vm": "vm", "a,b": "a", "gpu[03-05,9]-ib,login": "gpu03-ib", "r[1-2]n[4,7]": "r1n4", "": ""}
    assert {text: first_host(text) for text in hosts} == hosts


def test_rank_zero_is_on_the_first_machine():
    assert rank_info(STEP).address == "gpu07"
    assert rank_info({**STEP, "MASTER_ADDR": "gpu07-ib"}).address == "gpu07-ib"
    assert rank_info({**STEP, "SLURM_STEP_TASKS_PER_NODE": "8"}).address == "127.0.0.1"  # whatever names resolve to


def test_two_steps_use_different_ports():
    keys = {rank_info({**STEP, **change}).key for change in ({}, {"SLURM_STEP_ID": "4"}, {"SLURM_JOB_ID": "17"})}
    keys.add(rank_info({**STEP, "SLURM_RESTART_COUNT": "1"}).key)
    assert len({tuple(ports(key)) for key in keys}) == 4
    assert next(iter(ports("a", "1234"))) == 1234
    assert all(15000 <= port < 32000 for key in keys for port in ports(key))


def test_lightning_gets_the_ranks():
    ranks = RankEnvironment(rank_info(STEP))
    assert (ranks.world_size(), ranks.global_rank(), ranks.local_rank(), ranks.node_rank()) == (8, 5, 1, 1)
    assert ranks.creates_processes_externally


@pytest.mark.parametrize(("gpus", "expected"), [(0, (1, 4)), (1, (0, 1)), (4, (1, 4))])
def test_a_task_that_sees_one_gpu_uses_it(monkeypatch, gpus, expected):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert (group.this_rank().local_rank, group.this_rank().local_world_size) == expected


# ---- refusals before anything is started


def test_more_ranks_than_cores(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("GENLAB_OVERSUBSCRIBE", raising=False)
    monkeypatch.setattr(launch, "ranks", lambda *_, **__: pytest.fail("started"))  # 99 would take the machine down
    words = ["trainer=ddp_cpu", "trainer.devices=99", f"hydra.run.dir={tmp_path / 'run'}"]
    assert cli.run(["train", *words]) == 2
    assert "trainer.devices=99: this process may use" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    launch.check_cores(99, "gpu")
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    launch.check_cores(99, "cpu")  # srun has started them


def test_a_verb_of_one_process_refuses_ranks(monkeypatch, capsys):
    for name, value in {**STEP, "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert cli.run(["sample", "ckpt=x"]) == 2
    assert "genlab sample is one process" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(SystemExit) as silent:
        cli.run(["sample", "ckpt=x"])
    assert silent.value.code == 2
    assert capsys.readouterr().err == ""


# ---- meeting


def meet(keys):
    """One detector for each (key, rank), one after the other, in threads."""
    lines = {}

    def one(key, rank):
        lines[key, rank] = FailureDetector(RankInfo("srun", rank, 2, key=key), {}, timeout=20)

    threads = [threading.Thread(target=one, args=each) for each in keys]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    return lines


@pytest.mark.slow
def test_ranks_of_two_steps_on_the_same_ports_find_their_own(monkeypatch):
    """The worst case: both steps have the same ports, and another program listens on the first of them."""
    wanted = list(ports("somebody"))[:4]
    monkeypatch.setattr(failure_detector, "ports", lambda key, preferred: wanted)
    monkeypatch.setattr(failure_detector, "ANSWER_SECONDS", 1.0)
    stranger = failure_detector._listen_on_first_free(wanted)
    with stranger:
        lines = meet([("a", 0), ("b", 1), ("b", 0), ("a", 1)])
        assert len(lines) == 4
        for key in "ab":
            lines[key, 0].store.set("step", key)
            assert lines[key, 1].store.get("step").decode() == key
    for line in lines.values():
        line.report_done()


TEAM = """
import os, signal, sys, time
import torch, torch.distributed as dist
from genlab import cli
from genlab.core import RequestError
from genlab.processes import failure_detector, group
from genlab.verbs import train
how = sys.argv[1]
def command(request):
    group.join("cpu")
    dist.barrier()
    if dist.get_rank() == int(how[-1]):
        if how.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if how.startswith("failed"):
            raise RequestError("because of that")
    if how.startswith("failed1"):
        time.sleep(1000)  # in something that never hears of it
    dist.barrier()
train.command = command
failure_detector.GRACE_SECONDS = 0.5
cli.main(["train"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["failed1", "killed0", "killed1"])
def test_a_rank_that_dies_ends_all_with_one_sentence(how, tmp_path):
    step = {**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_JOB_ID": str(tmp_path)}
    ranks = []
    for rank in ("0", "1"):
        env = {**environment(), **step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        command = [sys.executable, "-c", TEAM, how]
        ranks.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, cwd=Path.cwd()))
    said = "".join(process.communicate(timeout=120)[1] for process in ranks)
    codes = [process.returncode for process in ranks]
    sentence = {
        "failed1": "because of that",
        "killed0": "rank 0 of 2 is gone: it was killed, most often for want of memory",
        "killed1": "rank 1 of 2 is gone: it was killed, most often for want of memory",
    }[how]
    assert [line for line in said.splitlines() if line.startswith("genlab:")] == [f"genlab: {sentence}"], said
    assert "Traceback" not in said
    assert sorted(codes) == {"failed1": [2, 2]}.get(how, [-9, 1])
