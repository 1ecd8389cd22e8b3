"""`genlab train -m`: many runs, with Hydra's own launcher and sweeper, joblib, submitit or Optuna; then one table.

Each job is an ordinary run in its own folder, which also holds the command that repeats this run alone. A job that
fails is listed in the table and does not stop the others. A job whose folder holds its run already resumes the run, or
does nothing if it is finished; so a sweep, or a SLURM job, can be started again. A signal ends the whole sweep: the
runs in progress save, the others are not started.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import math
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genlab.build import untrusted
from genlab.core import Interrupted, RequestError, RunError
from genlab.processes import group, resume, sweep_overrides, sweep_table, sweep_workers, training
from genlab.processes.sweep_table import FAILED
from genlab.processes.sweep_workers import signal_listener
from genlab.request import length
from genlab.request.compose import Request, check_trust, quoted, split_hydra
from genlab.system import signals
from genlab.system.atomic import write_text
from genlab.system.failures import explained, shortened
from genlab.train.budget import SHARES
from genlab.train.plan import Plan


def run(request: Request) -> int:
    """Check every value of the sweep, let Hydra run the jobs, show the table. Returns exit status 1 if a job failed."""
    if group.world_size() > 1:
        raise RequestError("-m starts its runs itself: call it once, without torchrun or srun, and set trainer.devices")
    config = sweep_overrides.check(request)
    folder = Path(config.hydra.sweep.dir)
    assignment = next((word for word in request.overrides if word.startswith("hydra.sweep.dir=")), None)
    named = assignment is not None
    if assignment == "hydra.sweep.dir=":
        raise RequestError("hydra.sweep.dir= must name a folder")
    launcher = _launcher(config)
    if launcher == "submitit" and "slurm" in config.hydra.launcher._target_.lower() and not shutil.which("sbatch"):
        raise RequestError("sweep=slurm: this machine has no sbatch, so no SLURM to send jobs to; try sweep=joblib")
    total = _number(request, config)
    if named and folder.exists():
        _check_same_sweep(request, config, folder)
    else:
        folder = _new_folder(folder, named)
    limit = config.hydra.launcher.get("timeout_min")
    if limit is not None:
        print(f"a job may take {limit} minutes (hydra.launcher.timeout_min)", file=sys.stderr)
    # joblib kills workers when their parent is interrupted. So they are asked to stop through a file, and waited for.
    on_first = functools.partial(sweep_workers.request_stop, folder) if launcher == "joblib" else None
    (folder / sweep_workers.STOP).unlink(missing_ok=True)
    try:
        with signal_listener(on_first) as first_signal:
            try:
                _run_hydra(request, folder)
            except BaseException as error:
                if not first_signal():
                    raise
                if launcher == "submitit":
                    raise _left_to_slurm(folder, first_signal()) from error
            stopped = first_signal()
    finally:
        (folder / sweep_workers.STOP).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    rows = sweep_table.report(folder) if folder.is_dir() else []
    if stopped:
        finished = sum(row["valid"] is not None or not row["failed"] for row in rows)
        begun = sum(row["failed"] == sweep_table.UNFINISHED for row in rows)
        raise Interrupted(
            f"the sweep was stopped by {signals.name(stopped)}: {finished} of {total} runs finished, {begun} saved, "
            f"{total - len(rows)} not started; the same command with hydra.sweep.dir={folder} goes on",
            stopped,
        )
    return 1 if any(row["failed"] for row in rows) else 0


def job(config: DictConfig) -> float | None:
    """Do one run of the sweep. Returns the validation value that the sweeper minimises, infinity if the run failed."""
    settings = HydraConfig.get()
    folder, launcher = Path(settings.runtime.output_dir), _launcher(OmegaConf.create({"hydra": settings}))
    if launcher == "joblib":
        sweep_workers.initialise_worker(folder.parent)
    if sweep_workers.stop_requested(folder.parent):
        return None
    task, _ = split_hydra(OmegaConf.merge({"hydra": settings}, config))  # type: ignore[arg-type]
    words = list(settings.overrides.task)
    parsed = Request("train", [], command="").parse(words)
    check_trust(task, parsed)
    length.choose(task, {o.key_or_group for o in parsed})
    print(f"[{folder.name}] {' '.join(words)}", file=sys.stderr)
    requeue = launcher == "submitit" and signal.getsignal(signal.SIGUSR2)  # submitit's handler
    with signal_listener() as first_signal:
        try:
            if launcher == "joblib":
                sweep_workers.reserve_gpus(task.trainer, settings.job.num)
            results = group.run_verb("train", lambda: _results(task, folder, shlex.join(["genlab", "train", *words])))
            return sweep_table.objective(results["valid"]) if results else math.inf  # {}: it has paused
        except (Exception, signals.Stopped) as error:
            if first_signal() and launcher == "joblib":
                return None  # the parent has received the signal as well, or has ended
            if first_signal() and launcher == "submitit":
                if first_signal() != signal.SIGUSR2 or not callable(requeue):
                    print(f"[{folder.name}] {error}", file=sys.stderr)
                    raise SystemExit(128 + first_signal()) from error  # cancelled, or SLURM itself starts it again
                return _failed(folder, words, _requeue(requeue), launcher)
            if first_signal():
                raise signals.Stopped(first_signal()) from error
            return _failed(folder, words, error, launcher)


def _results(task: DictConfig, folder: Path, command: str) -> dict[str, Any]:
    """Begin, resume or skip the run, depending on its folder. Returns the content of results.json."""
    if group.world_size() > 1:
        group.join(Plan.of(task.trainer).accelerator)
    status = group.from_rank_zero(lambda: _status(folder, task))
    if status == "finished":
        print(f"[{folder.name}] is finished already", file=sys.stderr)
        results = json.loads((folder / "results.json").read_text())
    elif status == "begun":
        trust = [f"trust=[{','.join(task.trust)}]"] if task.trust else []
        results = resume.run(folder, trust, command)
    else:
        results = training.run(task, folder, command)
    if group.is_rank_zero():
        (folder / FAILED).unlink(missing_ok=True)
    return results


def _status(folder: Path, task: DictConfig) -> str:
    """The state of the run: "new", "begun" or "finished".

    Raises RequestError if the folder holds another run than `task`.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        for name in (FAILED, "command.txt"):  # of a job that failed before its run began
            (folder / name).unlink(missing_ok=True)
        return "new"
    existing: Any = OmegaConf.create(untrusted.config_file(file))
    requested: Any = OmegaConf.create(OmegaConf.to_yaml(task, resolve=True))
    for section, names in (("trainer", ("max_steps",)), ("train", tuple(SHARES))):
        for name in names:  # which the run has chosen itself
            if requested[section].get(name) is None:
                requested[section][name] = existing[section].get(name)
    if existing != requested:
        key = next(key for key in {**requested, **existing} if requested.get(key) != existing.get(key))
        raise RequestError(f"{folder} holds another run (its {key} differs): give another hydra.sweep.dir")
    return "finished" if (folder / "results.json").is_file() else "begun"


def _failed(folder: Path, words: list[str], error: BaseException, launcher: str) -> float:
    """Record in the folder why the job failed; returns infinity, the value that the sweeper gets for it."""
    if os.environ.get("GENLAB_DEBUG") == "1":
        raise error
    sentence = shortened(str(explained(error) or f"{type(error).__name__}: {error}"))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FAILED, sentence + "\n")
    if not (folder / "command.txt").exists():
        write_text(folder / "command.txt", shlex.join(["genlab", "train", *words]) + "\n")
    print(f"[{folder.name}] failed: {sentence}", file=sys.stderr)
    if launcher == "submitit":  # which writes the result to a file; SLURM sees only the exit status of the process
        atexit.register(sweep_workers.exit_now, 1)
    return math.inf


def _requeue(handler: Any) -> BaseException:
    """Let submitit queue this job again, which has saved at its time limit. Returns the reason if it does not."""
    try:
        handler(signal.SIGUSR2, None)
    except Exception as error:  # the job was queued too often
        return RunError(f"{error} Everything is saved; the same command with the same hydra.sweep.dir goes on")
    return RunError("submitit has not queued the job again")


def _run_hydra(request: Request, folder: Path) -> None:
    """Let Hydra run the sweep. Errors that Hydra would print are raised."""
    words = [word for word in request.overrides if not word.startswith("hydra.sweep.dir=")]
    GlobalHydra.instance().clear()
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["genlab", *words, *request.compose_arguments(), quoted(f"hydra.sweep.dir={folder}"), "-m"]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(version_base="1.3", config_path=str(request.folders[0]), config_name="train")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError(f"the sweep does not compose: {str(error).splitlines()[0]}") from error
    finally:
        sys.argv = before
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]


def _new_folder(folder: Path, named: bool) -> Path:
    """Make the folder. If it exists, take the next free name, unless the user has `named` it."""
    try:
        for number in itertools.count(1):
            candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            try:
                candidate.mkdir(parents=True)
                return candidate
            except FileExistsError:
                if named:
                    raise
    except OSError as error:
        raise RequestError(f"hydra.sweep.dir={folder} cannot be made: {error.strerror}") from error
    raise AssertionError


def _check_same_sweep(request: Request, config: DictConfig, folder: Path) -> None:
    """Raise RequestError if the runs in the folder are not those of this sweep. It is called before a job starts."""
    if not folder.is_dir():
        raise RequestError(f"hydra.sweep.dir={folder} is not a folder")
    existing = sweep_table.runs(folder)
    words = sweep_overrides.jobs(request) if not sweep_overrides.is_search(config) else None
    if not existing:
        return
    if words is None:
        raise RequestError(
            f"hydra.sweep.dir={folder} holds a sweep already, and one that searches or shuffles cannot be "
            "resumed: give another folder"
        )
    for path in existing:
        if not path.name.isdecimal() or int(path.name) >= len(words):
            raise RequestError(f"hydra.sweep.dir={folder} holds {path.name}, which is no run of this sweep")
        if (path / "config.yaml").is_file():
            hydra_words = [word for word in request.overrides if word.startswith("hydra")]
            _status(path, split_hydra(request.check([*words[int(path.name)], *hydra_words]))[0])


def _number(request: Request, config: DictConfig) -> int:
    """Number of runs of the sweep."""
    if sweep_overrides.is_search(config):
        return int(config.hydra.sweeper.n_trials)
    return sweep_overrides.number(request)


def _launcher(config: Any) -> str:
    """The launcher of the jobs: "joblib", "submitit", or "basic" (one after the other in this process)."""
    target = str(config.hydra.launcher.get("_target_", ""))
    return next((name for name in ("joblib", "submitit") if name in target), "basic")


def _left_to_slurm(folder: Path, number: int) -> Interrupted:
    """The error if a signal stops this process while it waits for jobs in SLURM."""
    names = sorted({path.name.split("_")[0] for path in (folder / ".submitit").glob("[0-9]*")})
    return Interrupted(
        f"no longer waiting; the jobs go on in SLURM (scancel {' '.join(names)} ends them), and the same command with "
        f"hydra.sweep.dir={folder} shows the table when they are done",
        number,
    )
