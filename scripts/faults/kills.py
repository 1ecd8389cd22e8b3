"""Kill a training run at random moments and resume it: the result must be that of an undisturbed run, to the bit.

A run gets SIGKILL once or twice, at moments drawn uniformly over its length: while the folder is opened, between and
during writes of checkpoints and pictures, in the final test. One run in eight is a process of its own, which can be
killed in its imports too; the others are forks of this process, which has imported everything. After each kill every
checkpoint must be readable and results.json complete. After the last resume the folder must hold the same files as that
of the undisturbed run. A run that is killed after its results.json has ended: then only its last pictures may be
missing, which `genlab show` draws, and its lock may be left. 100 kills take one core 5 minutes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import TINY, Tally, difference, environment, forked, main, preload
from trainees import checkpoint, outcome

WORDS = ["train", "trainer=smoke", *TINY, "data.batch_size=8", "trainer.max_steps=12", "train.checkpoint_every=2"]
WORDS += ["train.log_every=1", "optim.warmup=2", "seed=3"]


def start(words: list[str], place: Path, whole: bool) -> int:
    """Start `genlab words…` in the folder `place`; `whole`: as a process of its own, imports and all."""
    if not whole:
        return forked(words, place)
    with open(place.parent / "out", "w") as out, open(place.parent / "err", "w") as err:
        command = [sys.executable, "-m", "genlab", *words]
        return subprocess.Popen(command, cwd=place, env=environment(), stdout=out, stderr=err).pid


def end(child: int, patience: float) -> int | None:
    """Wait for a child; its exit status, None if it had to be killed."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def damage(run: Path) -> str | None:
    """What cannot be read in the folder of a killed run, None if everything can."""
    try:
        for file in (run / "checkpoints").glob("*.ckpt"):
            checkpoint(run, file.stem)
        if (run / "results.json").exists():
            json.loads((run / "results.json").read_text())
    except Exception as error:
        return f"damaged: {error}"
    return None


def names(run: Path) -> set[str]:
    """Every file of a run."""
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


def trial(place: Path, moments: list[float], whole: bool, expected: tuple[dict, set[str]]) -> str | None:
    """Train in place/run, kill it after each of `moments` (seconds), resume to the end; what is wrong."""
    run, ended = place / "run", False
    for moment in [*moments, 300.0]:
        words = ["resume", "run=run"] if (run / "config.yaml").exists() else [*WORDS, "hydra.run.dir=run"]
        ended = (run / "results.json").exists()
        if ended:
            break  # before the kill
        status = end(start(words, place, whole), moment)
        wrong = damage(run) if run.exists() else None
        if wrong is None and status not in (None, 0):
            wrong = f"{words[0]} ended with {status}: {(place.parent / 'err').read_text()[-300:]}"
        if wrong is None and status is None and moment == 300:
            wrong = "does not end"
        if wrong:
            return wrong
    other = names(run) ^ expected[1]
    if ended:
        other = {name for name in other if not name.startswith("pictures/") and name != ".lock"}
    if other:
        return f"other files: {sorted(other)}"
    ours = outcome(run)
    return difference(ours, {name: value for name, value in expected[0].items() if name in ours or not ended})


def run(tally: Tally, count: int, rng: random.Random) -> None:
    """`count` kills."""
    preload()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "undisturbed")
        place.mkdir()
        lengths = {}
        for whole in (True, False) if count >= 8 else (False,):
            began = time.monotonic()
            name = "whole" if whole else "run"
            status = end(start([*WORDS, f"hydra.run.dir={name}"], place, whole), 300)
            assert status == 0, Path(folder, "err").read_text()
            lengths[whole] = time.monotonic() - began
        expected = outcome(place / "run"), names(place / "run")
        if len(lengths) == 2:
            tally.add("two undisturbed runs", difference(outcome(place / "whole"), expected[0]))
        kills = 0
        while kills < count:
            whole = True in lengths and rng.random() < 1 / 8
            moments = [rng.uniform(0, lengths[whole]) for _ in range(min(rng.choice((1, 1, 2)), count - kills))]
            kills += len(moments)
            place = Path(folder, f"killed{kills}")
            place.mkdir()
            after = " and ".join(f"{moment:.3f}" for moment in moments)
            wrong = trial(place, moments, whole, expected)
            for _ in moments:
                tally.add(f"kill after {after} of {lengths[whole]:.1f} s", wrong)


if __name__ == "__main__":
    main(run, 100)
