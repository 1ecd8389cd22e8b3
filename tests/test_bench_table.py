"""The tables of docs/speed.md hold what their file says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import bench_table  # noqa: E402


def test_the_page_has_the_tables_of_the_file():
    page = bench_table.PAGE.read_text()
    assert bench_table.page(page, json.loads(bench_table.FILE.read_text())) == page, (
        "run: python scripts/bench_table.py"
    )


def test_a_cell_is_one_number_and_what_was_not_measured_is_a_dash():
    figure = {"median": 2.0, "low": 1.0, "high": 3.0}
    case = {"model": "m", "data": "1x2x2", "depth": 1, "width": 2}
    keys = ("seconds", "speedup", "forward_passes", "half_completion")
    training = [{**case, "data": shape, "precision": "32-true", "images_per_second": figure, "share_of_ceiling": figure}
                for shape in ("1x2x2", "3x2x2")]  # fmt: skip
    sampling = [{**case, "n": n, **dict.fromkeys(keys, figure)} for n in (1, 16)]
    results = {"training": training, "sampling": sampling}
    *_, first, second = bench_table.sampling(results).splitlines()
    assert first.endswith("| 2,000 | 125 |")  # milliseconds an image, of 1 and of 16 at once
    assert second.endswith("| - | - |")
    assert bench_table.training(results).splitlines()[-1].endswith("| 2.0 | 200 |")
    assert bench_table.comparison(results).splitlines()[-1].endswith("| 2.0 | 2.0 | 2.0 |")
