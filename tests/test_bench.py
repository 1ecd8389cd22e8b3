"""scripts/bench.py at toy size: every part runs, every figure is there and is a positive number. No time is judged."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FIELDS = {
    "training": {"images_per_second", "flops_per_image", "share_of_ceiling"},
    "sampling": {"seconds", "speedup", "forward_passes", "times_floor", "half_completion"},
    "memory": {"peak_bytes", "before_bytes"},
    "overhead": {"images_per_second", "bare_images_per_second"},
}


def numbers(value):
    """The numbers of a figure: itself, or its median and range."""
    return list(value.values()) if isinstance(value, dict) else [value]


def bench(out, *words):
    """What is printed, and what is in the file."""
    done = subprocess.run(
        [
            sys.executable, ROOT / "scripts" / "bench.py", "--quick", "--device=cpu", "--threads=1",
            f"--out={out}", *words,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


@pytest.mark.slow
def test_quick_bench_writes_every_figure(tmp_path):
    printed, found = bench(tmp_path / "a.json", "--models", "pixelcnn:kernel=3")
    assert found["machine"]["torch"]
    assert found["machine"]["threads"] == 1
    assert set(found["ceilings_flops"]) == {"32-true", "bf16-mixed"}
    for part, fields in FIELDS.items():
        assert part in printed
        assert found[part]
        for record in found[part]:
            assert {"model", "data", "width", "depth", *fields} <= set(record)
            assert all(0 < number < math.inf for field in fields for number in numbers(record[field])), record
    assert all(math.isfinite(record["overhead"]) for record in found["overhead"])
