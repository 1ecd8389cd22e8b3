"""Every model on a pretend device: nothing is mixed, the numbers are the CPU's to the bit, nobody waits in vain.

In one process of its own (`pretend_ops.py`), because a device is registered for good; it begins with a check of the
device itself. docs/gpu.md has the table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainees import environment

HERE = Path(__file__).parent
VERSION = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
pytestmark = pytest.mark.skipif(VERSION < (2, 10), reason="a device in Python needs torch 2.10")

ROWS, STEPS = 3, 36  # of the images: rows of pixels, and steps of those that make one value a step
# A step of EM is told how many components there are, which of them have images, and of each which cells are filled.
LOOKS_OF_EM = 8
LOOKS_OF_COMPLETION = 4  # of other models: two for each of the two masks


def table(which: str, folder: Path) -> dict:
    """{model: {device: {operation: row}}}"""
    out = folder / "table.json"
    done = subprocess.run(
        [sys.executable, str(HERE / "pretend_ops.py"), which, str(out)],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def allowed(model: str, operation: str) -> int | None:
    """How often the host may wait; None: as often as it likes, because it is no loop."""
    if operation == "train":
        return LOOKS_OF_EM if " em" in model else 1
    if operation.startswith(("sample", "complete, top")) or "flow" in model:
        return ROWS if "flow" not in model or operation.startswith("sample") else None
    if operation.startswith("complete"):
        return STEPS if any(net in model for net in ("pixel", "lstm", "made")) else LOOKS_OF_COMPLETION
    return 0 if operation in ("loss and gradient", "features", "reconstruct", "repair") else None


def complaints(found: dict) -> list[str]:
    """What is wrong with a table."""
    wrong = []
    for model, devices in found.items():
        assert devices["cpu"].keys() == devices["pretend"].keys()
        for operation, row in devices["pretend"].items():
            said = f"{model}: {operation}: "
            expected = devices["cpu"][operation]
            syncs = max(row["steps"][1:]) if operation == "train" and "steps" in row else row["syncs"]
            most = allowed(model, operation)
            if expected["error"] or row["error"]:
                wrong.append(f"{said}{row['error'] or expected['error']}")
            elif row["digest"] != expected["digest"]:
                wrong.append(f"{said}not the CPU's result")
            elif most is not None and syncs > most:
                wrong.append(f"{said}the host waits {syncs} times, {row['where']}")
    return wrong


@pytest.mark.slow
def test_a_model_of_every_kind_trains_resumes_and_draws_on_another_device(tmp_path):
    found = table("quick", tmp_path)
    assert len(found) == 6
    assert not complaints(found)


@pytest.mark.slow
def test_every_other_kind_of_model_does_everything_on_another_device(tmp_path):
    """`pretend_models.once` says which; scripts/pretend_table.py takes all."""
    found = table("rest", tmp_path)
    assert len(found) >= 55
    assert not complaints(found)
