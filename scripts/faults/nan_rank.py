"""NaN on one of two processes: both skip the same steps, or stop together with one sentence.

A run on two CPU ranks (gloo) gets batches with NaN at random steps. Whichever rank gets them, the same steps must be
skipped, so that the run ends with the same weights, to the bit. With more bad steps than allowed, the run must fail
soon, with one sentence that names the module, and leave no process behind. One try is three runs and takes one core 45
seconds.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Tally, difference, environment, main
from omegaconf import OmegaConf
from trainees import checkpoint, config

STEPS, ALLOWED = 8, 3
PROGRAM = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
from genlab.core import RequestError, RunError
from genlab.processes import training
try:
    training.run(OmegaConf.load(sys.argv[1]), Path(sys.argv[2]), "genlab train")
except (RequestError, RunError) as error:
    sys.exit(f"genlab: {error}")
"""


def trained(folder: Path, poison: list[int], rank: int) -> tuple[int, str]:
    """Train on two ranks, with NaN in these batches of one of them: (status, standard error)."""
    asked = config(
        trainer__devices=2, trainer__strategy="ddp", trainer__max_steps=STEPS, train__max_bad_steps=ALLOWED,
        data__poison=poison, data__poisoned_rank=rank, train__sample_every=0, optim__schedule="constant",
    )  # fmt: skip
    file = folder.with_suffix(".yaml")
    file.write_text(OmegaConf.to_yaml(asked))
    command = [sys.executable, "-c", PROGRAM, str(file), str(folder)]
    done = subprocess.run(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=120)
    return done.returncode, done.stderr.decode()


def left_running(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder) in (process / "cmdline").read_text() and int(process.name) != os.getpid():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def trial(place: Path, rng: random.Random) -> str | None:
    """The same poisoned steps on rank 0 and on rank 1, then too many of them; what is wrong."""
    steps = sorted(rng.sample(range(STEPS), ALLOWED - 1))
    states = []
    for rank in (0, 1):
        run = place / f"rank{rank}"
        status, said = trained(run, steps, rank)
        if status:
            return f"poison on rank {rank} at steps {steps}: status {status}, {said[-300:]}"
        state = checkpoint(run)
        if state["genlab"]["bad_steps"] != len(steps):
            return f"poison on rank {rank} at {steps}: {state['genlab']['bad_steps']} steps skipped"
        states.append(state["state_dict"])
    wrong = difference(*states)
    if wrong:
        return f"rank 0 and rank 1 poisoned at the same steps: {wrong}"
    rank = rng.randrange(2)
    status, said = trained(place / "stopped", list(range(2, STEPS)), rank)
    told = ("step ", "dots: ")  # progress, and what data was found
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(told)]
    if status != 1 or len(lines) != 1 or not lines[0].startswith("genlab: ") or "trap" not in lines[0]:
        return f"too much poison on rank {rank}: status {status}, {lines[-3:]}"
    if left_running(place):
        return f"processes are left: {left_running(place)}"
    return None


def run(tally: Tally, count: int, rng: random.Random) -> None:
    """`count` sets of poisoned steps."""
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            tally.add(f"try {number}", trial(Path(folder), rng))


if __name__ == "__main__":
    main(run, 10)
