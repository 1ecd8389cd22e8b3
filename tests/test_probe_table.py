"""The page of representations is what its files say, and the files say nothing of the machine they come from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import probe_table  # noqa: E402


def record(kind, accuracy, width=5, layer="-"):
    return {"features": kind, "accuracy": accuracy, "interval": 0.01, "width": width, "layer": layer}


def test_the_page_has_the_tables_of_the_files():
    page = probe_table.PAGE.read_text()
    assert probe_table.written(page, probe_table.kept()) == page, "run: python scripts/probe_table.py"


def test_files_name_no_folder_and_a_probe_is_kept_once(tmp_path, monkeypatch):
    for path in probe_table.PROBES.glob("*.json"):
        assert "/" not in path.read_text().replace("features", "")
    monkeypatch.setattr(probe_table, "PROBES", tmp_path)
    found = {"data": "mnist", "labelled_images": 10, "checkpoint": "/somewhere/best.ckpt", "records": []}
    (tmp_path / "probe.json.in").write_text(json.dumps(found))
    for _ in range(2):
        probe_table.add(tmp_path / "probe.json.in", "Sparse, top-k")
    (kept,) = probe_table.kept()
    assert (tmp_path / "mnist-sparse_top_k-10.json").is_file()
    assert kept["name"] == "Sparse, top-k"
    assert "checkpoint" not in kept


def test_rows_are_what_was_trained_and_controls_come_first():
    controls = [record("raw pixels", 0.5), record("PCA", 0.4, 7)]
    few = {
        "name": "one",
        "labelled_images": 10,
        "records": [record("network", 0.9, layer="code"), *controls, record("untrained network", 0.2, layer="code")],
    }
    many = {"name": "one", "labelled_images": 1000, "records": [record("network", 0.95, layer="code")]}
    other = {"name": "two", "labelled_images": 10, "records": [record("network", 0.3), *controls]}
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in probe_table.table([few, many, other]).split("\n")
    ]
    assert rows[0] == ["features", "10 labels", "the same, untrained", "1,000 labels", "the same, untrained"]
    assert [row[0] for row in rows[2:]] == ["raw pixels", "PCA, 7 components", "one", "two"]
    assert rows[4][1:] == ["90.00 ± 1.00 (code)", "20.00 ± 1.00 (code)", "95.00 ± 1.00 (code)", "-"]
    assert rows[5][1:] == ["30.00 ± 1.00", "-", "-", "-"]
