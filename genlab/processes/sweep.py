"""`genlab train -m`: many runs, with Hydra's own launcher and sweeper, joblib, submitit or Optuna; then one table.

Each job is an ordinary run in its own folder, with the command that would repeat it alone. A job that fails is named in
the table and does not take the others with it. A job whose folder holds its run already goes on with it (a SLURM job
that is started again, a sweep that is), or is finished already. A signal ends the sweep, not one run: what is running
saves, the rest is not started.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import math
import os
import shlex
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
from genlab.processes import launch, sweep_table, sweep_words, workers
from genlab.processes.sweep_table import FAILED
from genlab.processes.workers import listening
from genlab.request.compose import Request, check_trust, quoted, split_hydra
from genlab.system import signals
from genlab.system.atomic import write_text
from genlab.system.failures import explained, shortened
from genlab.train.plan import Plan
from genlab.verbs import resume, train


def run(request: Request) -> int:
    """Check every value of the sweep, hand over to Hydra, show the table. Exit status 1 if a job failed."""
    if launch.world() > 1:
        raise RequestError("-m starts its runs itself: call it once, without torchrun or srun, and set trainer.devices")
    config = sweep_words.check(request)
    folder = Path(config.hydra.sweep.dir)
    given = next((word for word in request.overrides if word.startswith("hydra.sweep.dir=")), None)
    named = given is not None
    if given == "hydra.sweep.dir=":
        raise RequestError("hydra.sweep.dir= must name a folder")
    asked = _number(request, config)
    if named and folder.exists():
        _check_going_on(request, config, folder)
    else:
        folder = _claim(folder, named)
    limit = config.hydra.launcher.get("timeout_min")
    if limit is not None:
        print(f"a job may take {limit} minutes (hydra.launcher.timeout_min)", file=sys.stderr)
    way = _launcher(config)
    # joblib kills workers when their parent is interrupted, so they are told in another way, and waited for.
    first = functools.partial(workers.stop, folder) if way == "joblib" else None
    (folder / workers.STOP).unlink(missing_ok=True)
    try:
        with listening(first) as heard:
            try:
                _hand_over(request, folder)
            except BaseException as error:
                if not heard():
                    raise
                if way == "submitit":
                    raise _left_to_slurm(folder, heard()) from error
            stopped = heard()
    finally:
        (folder / workers.STOP).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    rows = sweep_table.report(folder) if folder.is_dir() else []
    if stopped:
        finished = sum(row["valid"] is not None or not row["failed"] for row in rows)
        begun = sum(row["failed"] == sweep_table.UNFINISHED for row in rows)
        raise Interrupted(
            f"the sweep was stopped by {signals.name(stopped)}: {finished} of {asked} runs finished, {begun} saved, "
            f"{asked - len(rows)} not started; the same command with hydra.sweep.dir={folder} goes on",
            stopped,
        )
    return 1 if any(row["failed"] for row in rows) else 0


def job(config: DictConfig) -> float | None:
    """One run of the sweep; the validation value for the sweeper to minimise, infinite for a run that failed."""
    here = HydraConfig.get()
    folder, way = Path(here.runtime.output_dir), _launcher(OmegaConf.create({"hydra": here}))
    if way == "joblib":
        workers.settle(folder.parent)
    if workers.stopping(folder.parent):
        return None
    task, _ = split_hydra(OmegaConf.merge({"hydra": here}, config))  # type: ignore[arg-type]
    words = list(here.overrides.task)
    check_trust(task, Request("train", [], command="").parse(words))
    print(f"[{folder.name}] {' '.join(words)}", file=sys.stderr)
    ours = way == "submitit" and signal.getsignal(signal.SIGUSR2)
    with listening() as heard:
        try:
            if way == "joblib":
                workers.own_gpus(task.trainer, here.job.num)
            results = launch.together("train", lambda: _results(task, folder, shlex.join(["genlab", "train", *words])))
            return sweep_table.value(results["valid"])
        except (Exception, signals.Stopped) as error:
            if heard() and way == "joblib":
                return None  # its parent has heard as well, or is gone
            if heard() and way == "submitit":
                if heard() != signal.SIGUSR2 or not callable(ours):
                    print(f"[{folder.name}] {error}", file=sys.stderr)
                    raise SystemExit(128 + heard()) from error  # cancelled, or SLURM itself starts it again
                return _failed(folder, words, _start_again(ours), way)
            if heard():
                raise signals.Stopped(heard()) from error
            return _failed(folder, words, error, way)


def _results(task: DictConfig, folder: Path, command: str) -> dict[str, Any]:
    """Begin, go on or be finished already, as the folder stands; the content of results.json."""
    if launch.world() > 1:
        launch.join(Plan.of(task.trainer).accelerator)
    stands = launch.from_zero(lambda: _stands(folder, task))
    if stands == "finished":
        print(f"[{folder.name}] is finished already", file=sys.stderr)
        results = json.loads((folder / "results.json").read_text())
    elif stands == "begun":
        trust = [f"trust=[{','.join(task.trust)}]"] if task.trust else []
        results = resume.run(folder, trust, command)
    else:
        results = train.run(task, folder, command)
    if launch.is_zero():
        (folder / FAILED).unlink(missing_ok=True)
    return results


def _stands(folder: Path, task: DictConfig) -> str:
    """Whether it is "new", "begun" or "finished". RequestError if the folder holds another run than `task`."""
    file = folder / "config.yaml"
    if not file.is_file():
        for left in (FAILED, "command.txt"):  # of a job that failed before it was a run
            (folder / left).unlink(missing_ok=True)
        return "new"
    there = OmegaConf.create(untrusted.config_file(file))
    asked = OmegaConf.create(OmegaConf.to_yaml(task, resolve=True))
    if there != asked:
        key = next(key for key in {**asked, **there} if asked.get(key) != there.get(key))  # type: ignore[dict-item]
        raise RequestError(f"{folder} holds another run (its {key} differs): give another hydra.sweep.dir")
    return "finished" if (folder / "results.json").is_file() else "begun"


def _failed(folder: Path, words: list[str], error: BaseException, way: str) -> float:
    if os.environ.get("GENLAB_DEBUG") == "1":
        raise error
    sentence = shortened(str(explained(error) or f"{type(error).__name__}: {error}"))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FAILED, sentence + "\n")
    if not (folder / "command.txt").exists():
        write_text(folder / "command.txt", shlex.join(["genlab", "train", *words]) + "\n")
    print(f"[{folder.name}] failed: {sentence}", file=sys.stderr)
    if way == "submitit":  # its result is a file; what SLURM goes by is the status of the process
        atexit.register(workers.leave, 1)
    return math.inf


def _start_again(handler: Any) -> BaseException:
    """Have submitit queue this job once more: it has run out of time, and has saved. Why not, if it does not."""
    try:
        handler(signal.SIGUSR2, None)
    except Exception as error:  # too often
        return RunError(f"{error} Everything is saved; the same command with the same hydra.sweep.dir goes on")
    return RunError("submitit has not queued the job again")


def _hand_over(request: Request, folder: Path) -> None:
    """Let Hydra sweep, and raise what it would print."""
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


def _claim(folder: Path, named: bool) -> Path:
    """Make the folder; one that another sweep of this second has taken is passed by, unless it was chosen."""
    try:
        for number in itertools.count(1):
            wanted = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            try:
                wanted.mkdir(parents=True)
                return wanted
            except FileExistsError:
                if named:
                    raise
    except OSError as error:
        raise RequestError(f"hydra.sweep.dir={folder} cannot be made: {error.strerror}") from error
    raise AssertionError


def _check_going_on(request: Request, config: DictConfig, folder: Path) -> None:
    """RequestError, before anything starts, if the runs in the folder are not those of this sweep."""
    if not folder.is_dir():
        raise RequestError(f"hydra.sweep.dir={folder} is not a folder")
    held = sweep_table.runs(folder)
    words = sweep_words.jobs(request) if not sweep_words.is_search(config) else None
    if not held:
        return
    if words is None:
        raise RequestError(
            f"hydra.sweep.dir={folder} holds a sweep already, and one that searches or shuffles cannot be gone on "
            "with: give another folder"
        )
    for path in held:
        if not path.name.isdecimal() or int(path.name) >= len(words):
            raise RequestError(f"hydra.sweep.dir={folder} holds {path.name}, which is no run of this sweep")
        if (path / "config.yaml").is_file():
            hydra_words = [word for word in request.overrides if word.startswith("hydra")]
            _stands(path, split_hydra(request.check([*words[int(path.name)], *hydra_words]))[0])


def _number(request: Request, config: DictConfig) -> int:
    """How many runs were asked for."""
    if sweep_words.is_search(config):
        return int(config.hydra.sweeper.n_trials)
    return sweep_words.number(request)


def _launcher(config: Any) -> str:
    """What runs the jobs: "joblib", "submitit", or "basic", which is one after the other, here."""
    target = str(config.hydra.launcher.get("_target_", ""))
    return next((name for name in ("joblib", "submitit") if name in target), "basic")


def _left_to_slurm(folder: Path, number: int) -> Interrupted:
    names = sorted({path.name.split("_")[0] for path in (folder / ".submitit").glob("[0-9]*")})
    return Interrupted(
        f"no longer waiting; the jobs go on in SLURM (scancel {' '.join(names)} ends them), and the same command with "
        f"hydra.sweep.dir={folder} shows the table when they are done",
        number,
    )
