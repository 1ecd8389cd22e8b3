"""`genlab train -m`: overrides are checked first, a signal ends the sweep, a second start resumes it, one table."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from trainees import environment

from genlab import cli
from genlab.core import Interrupted, RunError
from genlab.processes import sweep, sweep_overrides, sweep_table, sweep_workers
from genlab.request.compose import Request
from genlab.system import signals
from genlab.system.signals import Stopped

FAST = [
    "trainer=smoke", "trainer.max_steps=2", "trainer.accelerator=cpu", "model.net.width=8", "model.net.depth=1",
    "data.limit=32", "train.sample_every=0",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pretended(monkeypatch):
    """Replace runs by ones that take no time: in each, `what(number)` is called and returns the validation value."""

    def use(what):
        def run(config, folder, command):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "command.txt").write_text(command + "\n")
            (folder / "config.yaml").write_text(sweep.OmegaConf.to_yaml(config, resolve=True))
            results = {"valid": {"loss": what(int(folder.name))}, "test": {}, "steps": 1, "seconds": 1.0}
            (folder / "results.json").write_text(json.dumps(results))
            return results

        monkeypatch.setattr(sweep.training, "run", run)
        monkeypatch.setattr(
            sweep.resume, "run", lambda folder, *_: run(sweep.OmegaConf.load(folder / "config.yaml"), folder, "again")
        )

    return use


def rows_of(folder):
    with open(folder / "sweep.csv", newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


# ---- words


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["optim.lr=interval(0.1,1)"], "add sweep=optuna"),
        (["sweep=optuna", "optim.lr=tag(log,interval(0,1))"], "above 0"),
        (["sweep=optuna", "optim.lx=interval(0,1)"], "optim.lx"),
        (["sweep=optuna", "model=pixelcnn,gan"], "nothing to minimise"),
        (["sweep=optuna", "model=pixelcnn,ppca"], "add sweep/space=none"),
        (["sweep=optuna", "hydra.sweeper.direction=maximize"], "better when small"),
        (["sweep=optuna", "hydra.sweeper.n_trials=0"], "at least 1"),
        (["sweep=joblib", "hydra.launcher.n_jobs=0"], "at least 1"),
        (["hydra.launcher.n_jobs=1,2"], "one value"),
        (["hydra.run.dir=x", "seed=0,1"], "hydra.sweep.dir"),
        (["hydra.sweep.dir=", "seed=0,1"], "must name a folder"),
        (["seed=0,1", "seed=2"], "given twice"),
        (["seed=range(0,10,0)"], "never ends"),
        (["seed=range(5,1)"], "no value"),
        (["model=glob(zz*)"], "no value"),
        (["seed=range(0,1000000000)"], "1,000,000,000 runs"),
        (["seed=range(0,200)", "optim.lr=range(0,1,0.01)"], "20,000 runs"),
        (["seed=range(1"], "cannot read"),
        (["seed=choice(0,a)"], "whole number"),
        (["seed=sort(2,1)", "model=xx"], "model=xx"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_odd_sweeps_are_one_sentence(words, sentence, here, capfd):
    assert cli.run(["train", "-m", *words]) == 2
    said = capfd.readouterr().err.strip()
    assert sentence in said
    assert said.count("\n") == 0
    assert not list(here.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        (["seed=range(0,3)"], ["seed=0", "seed=1", "seed=2"]),
        (["seed=sort(3,1)"], ["seed=1", "seed=3"]),
        (["seed=choice(1,2)", "compile=true"], ["seed=1 compile=true", "seed=2 compile=true"]),
        (["seed=1,2", "data.seed=3,4"], [f"seed={a} data.seed={b}" for a in (1, 2) for b in (3, 4)]),
        (["seed=tag(x,choice(1,2))"], ["seed=1", "seed=2"]),
        (["model=glob(pixelcnn*)"], ["model=pixelcnn", "model=pixelcnnpp"]),
        (["seed=5"], ["seed=5"]),
    ],
    ids=lambda value: value[0],
)
def test_all_notations_of_values(words, jobs):
    request = Request("train", ["-m", *words], command="")
    sweep_overrides.check(request)
    assert [" ".join(job) for job in sweep_overrides.jobs(request)] == jobs
    assert sweep_overrides.number(request) == len(jobs)


def test_slurm_jobs_have_a_time_limit():
    launcher = Request("train", ["sweep=slurm"], command="").config().hydra.launcher
    assert launcher.timeout_min > 60
    assert launcher.max_num_timeout > 0


# ---- the folder


def test_sixteen_sweeps_begun_in_the_same_second_have_sixteen_folders(tmp_path):
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(sweep._new_folder(tmp_path / "a" / "12-00-00", named=False)))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == len(list((tmp_path / "a").iterdir())) == 16


@pytest.mark.slow
def test_a_second_start_goes_on(here, pretended, capfd):
    words = ["train", "-m", "seed=0,1", "hydra.sweep.dir=sweep"]
    calls = []

    def first(number):
        calls.append(number)
        if number == 1:
            raise RunError("the disk was full")
        return 1.0

    pretended(first)
    assert cli.run(words) == 1
    assert rows_of(here / "sweep")["1"]["failed"] == "the disk was full"
    calls.clear()
    pretended(lambda number: calls.append(number) or 0.5)
    assert cli.run(words) == 0
    assert calls == [1]
    assert not (here / "sweep" / "1" / "error.txt").exists()
    assert rows_of(here / "sweep")["1"]["valid"] == "0.5"
    capfd.readouterr()
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    for other, sentence in (
        (["seed=0,3"], "sweep/1 holds another run (its seed differs)"),
        (["seed=0"], "holds 1, which is no run of this sweep"),
        (["seed=shuffle(range(0,2))"], "searches or shuffles"),
    ):
        assert cli.run(["train", "-m", *other, "hydra.sweep.dir=sweep"]) == 2
        assert sentence in capfd.readouterr().err
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    assert calls == [1]


# ---- signals


@pytest.mark.slow
@pytest.mark.parametrize(("number", "patient"), [(signal.SIGINT, True), (signal.SIGUSR1, False)])
def test_a_signal_ends_the_sweep(number, patient, here, pretended, capfd):
    """While a run handles the signal itself (patient), and while only the sweep does."""
    begun = []

    def run(job):
        begun.append(job)
        if job == 1:
            if patient:
                before = signal.signal(number, lambda *_: None)
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            signal.signal(number, before)
            raise Interrupted("saved", number)
        return 1.0

    pretended(run)
    handlers = {n: signal.getsignal(n) for n in signals.ENDING}
    assert cli.run(["train", "-m", "seed=0,1,2", "hydra.sweep.dir=sweep"]) == 128 + number
    assert begun == [0, 1]
    assert {n: signal.getsignal(n) for n in signals.ENDING} == handlers
    rows = rows_of(here / "sweep")
    assert [rows[run]["failed"] for run in ("0", "1")] == ["", "not finished"]
    said = capfd.readouterr().err
    assert "1 of 3 runs finished, 1 saved, 1 not started; the same command with hydra.sweep.dir=sweep goes on" in said


@pytest.mark.slow
def test_a_signal_ends_a_sweep_of_joblib(here):
    words = [
        "trainer.max_steps=1000000",
        "train.valid_every=1000000",
        "train.checkpoint_every=1000000",
        "train.log_every=2",
    ]
    command = [sys.executable, "-m", "genlab", "train", "-m", *FAST, *words, "sweep=joblib", "seed=0,1,2,3"]
    process = subprocess.Popen(
        [*command, "hydra.sweep.dir=sweep"], env=environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not all((here / "sweep" / run / "metrics.csv").exists() for run in "01"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "0 of 4 runs finished, 2 saved, 2 not started" in said
    assert "Traceback" not in said
    assert all((here / "sweep" / run / "checkpoints" / "last.ckpt").exists() for run in "01")
    assert not (here / "sweep" / sweep_workers.STOP).exists()


def test_workers_stop_when_they_are_told(here):
    assert not sweep_workers.stop_requested(here / "sweep")
    sweep_workers.request_stop(here / "sweep")
    assert sweep_workers.stop_requested(here / "sweep")


def test_the_first_signal_is_passed_on_and_the_second_ends_all():
    told = []
    with sweep_workers.signal_listener(lambda: told.append(1)) as first_signal:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert told == [1]
        assert first_signal() == signal.SIGTERM
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)


# ---- SLURM's jobs, without SLURM


def test_a_failed_slurm_job_has_a_status_of_failure(tmp_path, monkeypatch):
    """submitit writes the result to a file; SLURM sees the exit status of the process."""
    registered = []
    monkeypatch.setattr(sweep.atexit, "register", lambda *call: registered.append(call))
    sweep._failed(tmp_path / "0", ["seed=0"], RunError("no"), "basic")
    assert registered == []
    sweep._failed(tmp_path / "0", ["seed=0"], RunError("no"), "submitit")
    assert registered == [(sweep_workers.exit_now, 1)]
    assert (tmp_path / "0" / "error.txt").read_text() == "no\n"


def test_a_job_out_of_time_is_queued_again_or_the_reason_is_reported():
    def requeues(number, frame):
        raise SystemExit(-1)

    def refuses(number, frame):
        raise RuntimeError("Job not requeued because: timed-out too many times.")

    with pytest.raises(SystemExit):
        sweep._requeue(requeues)
    assert "timed-out too many times" in str(sweep._requeue(refuses))


# ---- the table


def test_the_table_is_sorted_by_validation_value(tmp_path, capsys):
    for name, valid in (("0", {"loss": 2.0}), ("1", {"kind": "adversarial"}), ("2", {"bits_per_dim": 1.0})):
        (tmp_path / name).mkdir()
        results = {"valid": valid, "test": valid, "steps": 1, "seconds": 0.1}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
        (tmp_path / name / "command.txt").write_text(f"genlab train seed={name}\n")
    for name, mark in (("3", "error.txt"), ("4", "config.yaml")):
        (tmp_path / name).mkdir()
        (tmp_path / name / mark).write_text("why\n")
    (tmp_path / "0" / "error.txt").write_text("it has succeeded since\n")
    rows = sweep_table.report(tmp_path)
    assert [row["run"] for row in rows] == ["2", "0", "1", "4", "3"]
    assert [row["failed"] for row in rows] == ["", "", "", "not finished", "why"]
    assert [row["valid"] for row in rows] == [1.0, 2.0, None, None, None]
    printed = capsys.readouterr().out
    assert "run\toverrides\tvalid\tfailed\ttest" in printed
    assert "1\tseed=1\t-\t\t-" in printed


# ---- GPUs


def test_workers_take_different_gpus(monkeypatch, tmp_path):
    trainer = {
        "accelerator": "gpu", "devices": 2, "strategy": "auto", "precision": "32", "num_nodes": 1, "max_steps": 1,
        "accumulate_grad_batches": 1, "gradient_clip_val": None,
    }  # fmt: skip
    monkeypatch.setattr("torch.cuda.device_count", lambda: 5)
    monkeypatch.setattr(sweep_workers.tempfile, "gettempdir", lambda: str(tmp_path))
    taken, kept = [], []
    for number in (0, 3, 5):  # a worker's first job
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(sweep_workers, "_gpu_lock", [])
        sweep_workers.reserve_gpus(trainer, number)
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
        sweep_workers.reserve_gpus(trainer, number + 1)  # its next job stays there
        assert os.environ["CUDA_VISIBLE_DEVICES"] == taken[-1]
        kept.append(sweep_workers._gpu_lock)
    assert taken == ["0,1", "2,3", "2,3"]  # the third shares: there is no third pair
    monkeypatch.setattr(sweep_workers, "_gpu_lock", [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    sweep_workers.reserve_gpus({**trainer, "accelerator": "cpu"}, 0)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert sweep_workers.gpu_groups(["3", "GPU-1"], 1) == ["3", "GPU-1"]


# ---- trackers


@pytest.mark.slow
def test_each_job_ends_its_own_tracker_run(here, monkeypatch):
    """Weights & Biases without a network: of two jobs the second fails, and both tracker runs are ended."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    finished, finish = [], wandb.finish
    monkeypatch.setattr(wandb, "finish", lambda *a, **k: finished.append(k["exit_code"]) or finish(*a, **k))
    words = ["logger=wandb", "optim.lr=0.001,1e30", "train.max_bad_steps=1", "trainer.max_steps=4"]
    assert cli.run(["train", "-m", *FAST, *words, "hydra.sweep.dir=sweep"]) == 1
    assert finished == [0, 1]
    assert wandb.run is None
    for job in "01":
        assert len(list((here / "sweep" / job / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.slow
def test_a_sweep_without_slurm_or_without_its_plugin_says_what_is_missing(here, capfd, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert cli.run(["train", "-m", "sweep=slurm", "seed=0,1"]) == 2
    assert "has no sbatch" in capfd.readouterr().err
    for name, package in (("joblib", "hydra-joblib-launcher"), ("optuna", "hydra-optuna-sweeper")):
        kind = "launcher" if name == "joblib" else "sweeper"

        def missing(*args, name=name, kind=kind, **keywords):
            raise ValueError(f"In 'hydra/config': Could not find 'hydra/{kind}/{name}'")

        monkeypatch.setattr("genlab.request.compose.compose", missing)
        assert cli.run(["train", "-m", f"sweep={name}", "seed=0,1"]) == 2
        said = capfd.readouterr().err
        assert f"this sweep needs {package}: pip install -e '.[sweep]'" in said
        assert said.count("\n") == 1
    assert not list(here.iterdir())
