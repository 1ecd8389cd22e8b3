"""2,000 steps of training and 200 evals in one process: memory, open files and threads do not grow.

They are read from /proc at every log row and after every eval, and printed. Only growth after the first third counts,
because allocators and caches fill in that third. `--count` is the number of steps; a tenth as many evals follow, of
which every second one is a sampling. 2,000 steps take one core 2 minutes.
"""

from __future__ import annotations

import os
import random
import resource
import statistics
import threading
from pathlib import Path
from unittest import mock

from harness import FIXTURES, TINY, Tally, call, main, preload, workplace

ALLOWED = 8 * 2**20  # bytes that the memory may grow by


def reading() -> tuple[int, int, int]:
    """(bytes in memory, open files, threads) of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize(), len(os.listdir("/proc/self/fd")), threading.active_count()


def judge(tally: Tally, what: str, readings: list[tuple[int, int, int]]) -> None:
    """Compare the middle third with the last one."""
    third = max(1, len(readings) // 3)
    middle, last = readings[third : 2 * third], readings[2 * third :]
    for i, (name, allowed) in enumerate((("bytes of memory", ALLOWED), ("open files", 0), ("threads", 0))):
        before = statistics.median(row[i] for row in middle)
        after = statistics.median(row[i] for row in last)
        tally.notes.append(f"{what}: {name} {before:,.0f}, later {after:,.0f}, over {len(readings)} readings")
        tally.add(f"{name} of {what}", f"grew by {after - before:,.0f}" if after - before > allowed else None)


def run(tally: Tally, count: int, rng: random.Random) -> None:
    """`count` steps."""
    preload()
    from genlab.train.callbacks import Log

    readings: list[tuple[int, int, int]] = []
    act = Log.act

    def and_read(self: Log, *arguments: object) -> None:
        act(self, *arguments)  # type: ignore[arg-type]
        readings.append(reading())

    every = [f"train.{key}_every={max(1, count // n)}" for key, n in (("log", 60), ("valid", 12), ("checkpoint", 30))]
    words = ["train", *TINY, "data.limit=64", "data.batch_size=8", f"trainer.max_steps={count}", *every]
    words += [f"train.sample_every={max(1, count // 12)}", "train.samples=2", "hydra.run.dir=run"]
    ckpt = FIXTURES / "checkpoints" / "pixelcnn.ckpt"
    with workplace() as place, mock.patch.object(Log, "act", and_read):
        outcome = call(words, place, seconds=600)
        tally.add("training", None if outcome.status == 0 else f"{outcome}")
        judge(tally, f"{count} steps of training", readings)
        readings = []
        for number in range(max(3, count // 10)):
            verb = ["sample", "n=1", "overwrite=true"] if number % 2 else ["eval", "data.limit=20", "overwrite=true"]
            outcome = call([verb[0], f"ckpt={ckpt}", *verb[1:]], place)
            readings.append(reading())
            if outcome.status != 0:
                tally.add(" ".join(verb), f"{outcome}")
        judge(tally, f"{len(readings)} evals and samplings", readings)


if __name__ == "__main__":
    main(run, 2000)
