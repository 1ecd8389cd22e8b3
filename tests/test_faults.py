"""The quick part of scripts/faults. The scripts say what each does, and are run for minutes by hand.

What forks or kills has a process of its own, because a fork of a process with threads may inherit a lock for ever.
The quick part of nan_rank is in test_launch.py.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from trainees import environment

FAULTS = Path(__file__).parents[1] / "scripts" / "faults"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("fuzzed_requests", 10), ("checkpoints", 8), ("pictures", 6)])
def test_hostile_input_is_read_right_or_refused_in_one_sentence(name, count, monkeypatch):
    monkeypatch.syspath_prepend(FAULTS)
    import harness

    tally = harness.Tally()
    __import__(name).run(tally, count, random.Random(7))
    assert tally.tried == count
    assert not tally.kinds, tally.line()


@pytest.mark.slow
def test_nothing_grows(monkeypatch):
    monkeypatch.syspath_prepend(FAULTS)
    import flat
    import harness

    tally = harness.Tally()
    flat.run(tally, 60, random.Random(7))
    assert not tally.kinds, tally.line()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("kills", 1), ("many_runs", 1)])
def test_processes(name, count):
    command = [sys.executable, FAULTS / f"{name}.py", f"--count={count}", "--seed=7"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none wrong" in done.stdout
