"""Many runs started at the same moment in one directory: each must get a folder of its own.

`--count` processes wait for the same moment and then train with different seeds and the default run folder, whose name
is the time in seconds. Each must end with status 0 and print a folder of its own. The config, command, checkpoints and
metrics in it must be those of its seed, and equal to those of the same run by itself. 16 take one core a minute.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

from harness import TINY, Tally, difference, forked, main, preload
from omegaconf import OmegaConf
from trainees import checkpoint, outcome

WORDS = ["train", "trainer=smoke", *TINY, "train.sample_every=0"]


def started(places: list[Path], at_once: bool) -> list[str]:
    """Train once in each place (they may be the same), with its index as seed; what each printed, or how it failed."""
    said = []
    children: list[tuple[int, Path]] = []
    when = time.time() + (0.5 + 0.05 * len(places) if at_once else 0)
    when = int(when) + 1.02 if at_once else when  # early in a second, so that all choose the same name
    for seed, place in enumerate(places):
        beside = place.parent / f"io{seed}" / "cwd"  # where `forked` puts what is printed
        beside.parent.mkdir(exist_ok=True)
        if not beside.exists():
            beside.symlink_to(place)
        child = os.fork()
        if child == 0:
            time.sleep(max(0, when - time.time()))
            _, status = os.waitpid(forked([*WORDS, f"seed={seed}"], beside), 0)
            os._exit(os.waitstatus_to_exitcode(status))
        children.append((child, beside.parent))
        if not at_once:
            said.append(_ended(*children[-1]))
    return said if not at_once else [_ended(*child) for child in children]


def _ended(child: int, io: Path) -> str:
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return (io / "out").read_text() if code == 0 else f"status {code}: {(io / 'err').read_text()[-300:]}"


def folder_of(place: Path, said: str) -> Path | str:
    """The folder that a run printed, or what is wrong."""
    last = said.strip().splitlines()[-1] if said.strip() else ""
    folder = place / last
    return folder if last and (folder / "results.json").is_file() else f"no run folder, but {said[-300:]!r}"


def consistent(folder: Path, seed: int, alone: dict) -> str | None:
    """What in a folder does not belong to the run with this seed, None if all does."""
    config = (folder / "config.yaml").read_text()
    if OmegaConf.create(config).seed != seed:
        return "the config of another run"
    if (folder / "command.txt").read_text().split()[-1] != f"seed={seed}":
        return "the command of another run"
    if any(checkpoint(folder, name)["genlab"]["config"] != config for name in ("best", "last")):
        return "the checkpoint of another run"
    return difference(outcome(folder), alone)


def run(tally: Tally, count: int, rng: random.Random) -> None:
    """`count` runs at once."""
    preload()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary, "shared")
        place.mkdir()
        alone = [Path(temporary, f"alone{seed}", "cwd") for seed in range(count)]
        for folder in alone:
            folder.mkdir(parents=True)
        expected = [
            outcome(Path(folder_of(folder, said))) for folder, said in zip(alone, started(alone, False), strict=True)
        ]
        found = [folder_of(place, said) for said in started([place] * count, True)]
        for seed, folder in enumerate(found):
            wrong = folder if isinstance(folder, str) else None
            if wrong is None and found.count(folder) > 1:
                wrong = "a folder shared with another run"
            tally.add(f"run {seed}", wrong or consistent(Path(folder), seed, expected[seed]))
        made = sorted(path.parent for path in place.rglob("config.yaml"))
        tally.notes.append(f"{len(made)} folders of {count} runs")


if __name__ == "__main__":
    main(run, 16)
