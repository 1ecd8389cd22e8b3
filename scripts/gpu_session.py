"""A session on a GPU in stages, each with a time limit and its own part of a report (scripts/gpu_session.sh).

    python scripts/gpu_session.py OUT [--budget MINUTES] [--stages NAME,NAME] [--experiment NAME] [--carry MIB]
        [--carried FOLDER] [--work FOLDER] [--device cuda|cpu] [--quick] [-- key=value …]

OUT gets report.md and report.json, written anew after every stage. A stage that fails or runs out of time is reported,
and the next one begins. A second call with the same OUT adds its stages to the report, and continues the training. What
follows `--` are words of `genlab train`, for the training alone.

A stage may use its share (`SHARES`) of the time that is left. So time that one stage saves goes to those after it, and
training, which is last, gets all that is left.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_pieces
import gpu_stages
import torch

from genlab.system.atomic import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
# The stages in their order, each with its minutes in a session of 25.
SHARES = {
    "environment": 0.5, "tests": 2.0, "precision": 4.0, "compile": 4.0, "sampling": 2.0, "resume": 3.0,
    "distributed": 1.5, "bench": 3.0, "train": 5.0,
}  # fmt: skip
PATIENCE = 20.0  # seconds that a process has to save and end after SIGTERM


class OutOfTime(Exception):
    """A stage has used up its time."""


@dataclass
class Stage:
    """One stage. It adds to `lines` (Markdown) and `figures` (for report.json) as it goes.

    `deadline`: on the clock of time.monotonic. `work`: the folder of this stage's runs and logs.
    """

    name: str
    args: argparse.Namespace
    work: Path
    deadline: float
    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    status: str = "ok"

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def add(self, line: str, **figures: Any) -> None:
        """Add a line to the report, and figures that belong to it."""
        self.lines.append(line)
        self.figures |= figures
        print(line, flush=True)

    def start(self, name: str, *words: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen:
        """Start a Python process, `python words…`, in a process group of its own; it writes to NAME.log."""
        self.work.mkdir(parents=True, exist_ok=True)
        with open(self.work / f"{name}.log", "w") as log:
            return subprocess.Popen(
                [sys.executable, *map(str, words)], cwd=ROOT, env={**os.environ, **(env or {})}, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def run(self, name: str, *words: str | Path, env: dict[str, str] | None = None, check: bool = True) -> str:
        """Run `python words…` and return what it printed. Raises OutOfTime, or RuntimeError if it fails."""
        process = self.start(name, *words, env=env)
        try:
            process.wait(max(1.0, self.left))
        except subprocess.TimeoutExpired:
            end(process)
            raise OutOfTime(f"{name} was stopped at the end of the stage's time") from None
        except BaseException:
            end(process)
            raise
        text = (self.work / f"{name}.log").read_text(errors="replace").replace("\r", "\n")
        if check and process.returncode:
            last = " / ".join([line for line in text.splitlines() if line.strip()][-3:])
            raise RuntimeError(f"{name} ended with status {process.returncode}: {last[-600:]}")
        return text


def end(process: subprocess.Popen) -> None:
    """End a process that `Stage.start` has started, and its children: with a chance to save first."""
    for number, seconds in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0], allow_abbrev=False)
    parser.add_argument("out", type=Path, help="folder of the report")
    parser.add_argument("--budget", type=float, default=25.0, help="minutes for everything (default %(default)s)")
    parser.add_argument("--stages", default=",".join(SHARES), help="names with commas between them (default: all)")
    parser.add_argument("--experiment", default="pixelcnnpp_cifar10", help="what is trained (default %(default)s)")
    parser.add_argument("--work", type=Path, help="folder of runs and logs (default OUT/work)")
    parser.add_argument("--carry", type=int, metavar="MIB", help="pack the run into files of this size in OUT")
    parser.add_argument("--carried", type=Path, help="folder with the files of an earlier --carry (default OUT)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="toy sizes: does every stage run?")
    words = sys.argv[1:] if words is None else words
    end_of_options = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:end_of_options])
    args.words = words[end_of_options + 1 :]
    args.stages = [name for name in args.stages.split(",") if name]
    unknown = [name for name in args.stages if name not in SHARES]
    if unknown or not args.stages:
        parser.error(f"--stages: {', '.join(unknown) or 'none given'}; there are {', '.join(SHARES)}")
    if args.budget <= 0 or (args.carry is not None and args.carry < 1):
        parser.error("--budget must be above 0 and --carry at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "gpu_session: PyTorch sees no GPU on this machine; --device cpu --quick tries the stages out\n")
    args.out = args.out.absolute()
    args.work = (args.work or args.out / "work").absolute()
    args.carried = (args.carried or args.out).absolute()
    return args


def session(args: argparse.Namespace) -> dict[str, Any]:
    """Run the stages; returns the content of report.json."""
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "report.json"
    report: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    finish = time.monotonic() + 60 * args.budget
    names = [name for name in SHARES if name in args.stages]
    for i, name in enumerate(names):
        print(f"== {name}", flush=True)
        began = time.monotonic()
        share = SHARES[name] / sum(SHARES[other] for other in names[i:])
        stage = Stage(name, args, args.work / name, began + share * max(0.0, finish - began))
        carry_out(stage)
        report[name] = {
            "status": stage.status, "seconds": round(time.monotonic() - began, 1),
            "date": time.strftime("%Y-%m-%d %H:%M"), "device": device_name(args.device), "lines": stage.lines,
            "figures": stage.figures,
        }  # fmt: skip
        write_json(file, report)
        write_text(args.out / "report.md", markdown(report))
    return report


def carry_out(stage: Stage) -> None:
    """Run a stage; whatever goes wrong in it is noted, and does not end the session."""
    if stage.name != "train":  # whose run goes on
        shutil.rmtree(stage.work, ignore_errors=True)
    try:
        if stage.left < 1:
            raise OutOfTime("no time was left for it")
        getattr(gpu_stages, stage.name)(stage)
    except gpu_stages.Skipped as reason:
        stage.status = "skipped"
        stage.add(f"- {reason}")
    except OutOfTime as reason:
        stage.status = "out of time"
        stage.add(f"- {reason}")
    except Exception as error:
        stage.status = "failed"
        stage.add(f"- {type(error).__name__}: {error}")


def device_name(device: str) -> str:
    """The name of the card. Asked of the driver in a process of its own: this one must leave the card alone."""
    if device == "cpu":
        return "CPU"
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "GPU"


def markdown(report: dict[str, Any]) -> str:
    """report.md: a table of the stages, then the lines of each."""
    parts = ["# GPU session\n", "| stage | result | seconds | on | date |\n| --- | --- | --- | --- | --- |"]
    done = {name: report[name] for name in SHARES if name in report}
    for name, record in done.items():
        cells = (name, record["status"], record["seconds"], record["device"], record["date"])
        parts.append(f"| {' | '.join(map(str, cells))} |")
    for name, record in done.items():
        parts.append(f"\n## {name}\n")
        parts += record["lines"]
    return "\n".join(parts) + "\n"


def terminated(number: int, frame: Any) -> None:
    """SIGTERM ends the session as Ctrl-C does, so that it ends its processes too."""
    raise KeyboardInterrupt


def main() -> int:
    """Exit status 0, or 1 if a stage failed or ran out of time."""
    args = arguments()
    signal.signal(signal.SIGTERM, terminated)
    gpu_pieces.unpack_cifar10(os.environ.get("GENLAB_DATA"))
    report = session(args)
    print((args.out / "report.md").read_text())
    return int(any(report[name]["status"] not in ("ok", "skipped") for name in args.stages))


if __name__ == "__main__":
    sys.exit(main())
