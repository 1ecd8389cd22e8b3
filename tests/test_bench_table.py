"""README's table of speeds is what its file says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import bench_table  # noqa: E402


def test_the_readme_has_the_table_of_the_file():
    readme = (ROOT / "README.md").read_text()
    found = json.loads(bench_table.FILE.read_text())
    assert bench_table.written(readme, bench_table.table(found), "bench") == readme, (
        "run: python scripts/bench_table.py"
    )


def test_what_was_not_measured_is_a_dash():
    figure = {"median": 2.0, "low": 1.0, "high": 3.0}
    case = {"model": "m", "data": "1x2x2", "depth": 1, "width": 2}
    keys = ("seconds", "speedup", "forward_passes", "half_completion")
    training = [{**case, "data": shape, "precision": "32-true", "images_per_second": figure, "share_of_ceiling": figure}
                for shape in ("1x2x2", "3x2x2")]  # fmt: skip
    sampling = [{**case, "n": n, **dict.fromkeys(keys, figure)} for n in (1, 16)]
    *_, first, second = bench_table.table({"training": training, "sampling": sampling}).splitlines()
    assert "2,000 / 2,000 | 2.0 / 2.0 |" in first
    assert "- / - | - / -" in second
