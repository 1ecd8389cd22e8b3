"""What the scripts of this folder share: count the tries, call a verb and judge how it ended, list a folder.

A verb may end in two ways: with status 0, or with a refusal. A refusal is status 1 or 2, one line on standard error
that is a sentence and not "unexpected", and every file as it was. Everything else is wrong, and so is a request that
takes more than `SECONDS` or `MEMORY`.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import io
import os
import random
import re
import resource
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
# `trainees` compares two run folders to the bit, and has a model and data that train in milliseconds. genlab itself is
# imported from this checkout, in children too.
sys.path[1:1] = [str(ROOT), str(ROOT / "tests")]

SECONDS = 30  # what one request may take here, where models and data are tiny
MEMORY = 6 * 2**30  # bytes of address space that requests may add to what the process has before the first
LONGEST = 600  # characters of a sentence
TINY = ["model.net.width=4", "model.net.depth=1", "model.net.feature_width=4"]  # of a pixelcnn


@dataclass
class Tally:
    """How many were tried, and what was wrong: kind -> (how often, the shortest that showed it)."""

    tried: int = 0
    wrong: int = 0
    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, fault: str | None) -> None:
        """Count one more try; `fault` says what was wrong with it, None if nothing."""
        self.tried += 1
        if fault is None:
            return
        self.wrong += 1
        what, fault = (text if len(text) < 300 else f"{text[:280]} … {text[-20:]}" for text in (what, fault))
        kind = re.sub(r"\d+", "#", re.sub(r"'[^']*'|\"[^\"]*\"|\S*/\S*", "…", fault))[:90]
        count, shortest = self.kinds.get(kind, (0, f"{what}: {fault}"))
        self.kinds[kind] = (count + 1, min(shortest, f"{what}: {fault}", key=len))

    def line(self) -> str:
        """The summary."""
        first = f"first wrong: {next(iter(self.kinds.values()))[1]}" if self.kinds else "none wrong"
        return f"{self.tried} tried, {self.tried - self.wrong} right, {first}"

    def end(self) -> int:
        """Print notes, faults and, last, the summary; returns the exit status."""
        for note in self.notes:
            print(note)
        if len(self.kinds) > 1 or self.wrong > 1:
            for count, example in self.kinds.values():
                print(f"  {count} x {example}")
        print(self.line())
        return bool(self.wrong)


def main(run: Callable[[Tally, int, random.Random], None], count: int) -> None:
    """The command line of a script: `--count`, `--seed`. `run` gets a Tally, the count and a generator."""
    parser = argparse.ArgumentParser(description=str(sys.modules["__main__"].__doc__).splitlines()[0])
    parser.add_argument("--count", type=int, default=count, help="how many to try (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    tally = Tally()
    warnings.simplefilter("ignore")  # what a user is shown is judged by real processes
    run(tally, asked.count, random.Random(asked.seed))
    sys.exit(tally.end())


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `raised` names the exception that it raised instead of returning a status."""

    status: int | None
    out: str
    err: str
    raised: str = ""


class Overrun(BaseException):
    """A request took too long."""


def call(words: list[str], folder: Path, seconds: int = SECONDS) -> Outcome:
    """`genlab words…` in this process with `folder` as the working folder; a traceback is an outcome too."""
    from genlab import cli

    def overrun(number: int, frame: object) -> None:
        raise Overrun(f"more than {seconds} s")

    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(folder)
    handler = signal.signal(signal.SIGALRM, overrun)
    try:
        signal.alarm(seconds)
        faulthandler.dump_traceback_later(10 * seconds, exit=True)  # for code in which not even a signal is handled
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.run(words)
        return Outcome(status, out.getvalue(), err.getvalue())
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome(None, out.getvalue(), err.getvalue(), f"{type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, handler)
        os.chdir(before)


def fault(outcome: Outcome, before: dict[str, str], after: dict[str, str], *, refused: bool = False) -> str | None:
    """What is wrong with how a command ended, None if nothing. `refused`: only a refusal is right."""
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    if outcome.raised:
        return f"raised {outcome.raised[:200]}"
    if "Traceback" in outcome.err:
        return "traceback"
    if outcome.status == 0:
        return "was not refused" if refused else None
    if outcome.status not in (1, 2):
        return f"status {outcome.status}"
    if not lines or not lines[-1].startswith("genlab: "):
        return f"no sentence, but {lines[-1:]}"
    if lines[-1].startswith("genlab: unexpected"):
        return lines[-1][:300]
    if len(lines) > 1:
        return f"{len(lines)} lines: {lines[0][:200]}"
    if len(lines[0]) > LONGEST:
        return f"a sentence of more than {LONGEST} characters: {lines[0][:200]}"
    if before != after:
        return f"left behind: {sorted(path for path in before | after if before.get(path) != after.get(path))[:4]}"
    return None


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder: path -> hash of a file's content, or "folder" for the rest."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[os.fsencode(path.relative_to(folder)).decode(errors="replace")] = content
    return found


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder to work in. Inside the block the memory of this process is bounded."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    bound = pages * resource.getpagesize() + MEMORY
    with tempfile.TemporaryDirectory() as folder:
        resource.setrlimit(resource.RLIMIT_AS, (bound, limits[1]))
        try:
            yield Path(folder)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)


def forked(words: list[str], folder: Path) -> int:
    """Start a fork that runs `genlab words…` in `folder`, with everything imported already; its process id.

    It exits with the status of the command. Its standard output and error go to `out` and `err` beside `folder`.
    """
    from genlab import cli

    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setsid()
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder.parent / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        status = cli.run(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def preload() -> None:
    """Import now what a run needs, so that forked children need not."""
    import importlib

    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    for module in ("train", "resume", "evaluate", "sample"):
        importlib.import_module(f"genlab.verbs.{module}")


def environment() -> dict[str, str]:
    """Environment of a child process: this checkout, one thread."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def difference(ours: Any, theirs: Any) -> str | None:
    """Where two values of `trainees.outcome` differ, None if they are equal to the bit."""
    from trainees import same

    try:
        same(ours, theirs)
    except AssertionError as error:
        return f"differs at {str(error).splitlines()[0]}"
    return None
