"""The table over every family is what its files say; what does not compare is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import families  # noqa: E402

EYE = {"sha256": "a" * 64, "features": 64, "accuracy": 0.99}


def entry(name, bits=None, kind="exact", sha="a" * 64, n=10000, label=None):
    test = {"data": "toy"}
    if bits is not None:
        likelihood = {"bits_per_dim": bits, "standard_error": 0.01, "nats": -1.0, "n": 5, "kind": kind, "draws": 7}
        test = {**test, **likelihood, "split": "test", "weights": "ema", "precision": "32", "conditioning": "none"}
    measured = {"frechet_distance": {"value": 2.0, "error": None}, "kernel_distance": {"value": 0.001, "error": 1e-4}}
    if label is not None:
        measured["label_accuracy"] = {"value": label, "error": 0.01}
    quality = {
        "n": n, "test_images": 9, "device": "cpu", "seconds_per_image": 0.002, "data": "toy", "model": "m", "step": 3,
        "classifier": {**EYE, "sha256": sha}, "samples": measured, "floor": measured,
    }  # fmt: skip
    return {"name": name, "model": "m", "parameters": 1234, "minutes": 5.0, "test": test, "quality": quality}


def test_the_page_has_the_tables_of_the_files():
    page = families.PAGE.read_text()
    assert families.written(page) == page, "run: python scripts/families.py"
    for path in families.FAMILIES.glob("*.json"):
        assert '"/' not in path.read_text(), f"{path.name} names a folder of a machine"


def test_rows_go_by_bits_per_dim_say_their_kind_and_those_without_come_last():
    rows = families.table([entry("none"), entry("bound", 1.5, "bound", label=0.5), entry("exact", 1.0)]).splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in rows[2:6]] == [
        "training images: the floor",
        "exact",
        "bound",
        "none",
    ]
    assert "(exact, 5 images)" in rows[3]
    assert "upper bound, 7 draws" in rows[4]
    assert "no likelihood" in rows[5]
    assert "50 ± 1" in rows[4]
    assert "1 ± 0.1" in rows[3], "kernel distances are in thousandths"
    assert "2 (cpu) | 1,234 | 5" in rows[3]


@pytest.mark.parametrize("other", [{"sha": "b" * 64}, {"n": 10}])
def test_samples_measured_differently_are_not_comparable(other):
    with pytest.raises(SystemExit, match="not comparable"):
        families.table([entry("one", 1.0), entry("two", 2.0, **other)])


@pytest.mark.parametrize(
    ("changed", "why"), [({"data": "other"}, "of other"), ({"model": "x"}, "not of"), ({"step": 9}, "not of")]
)
def test_a_quality_of_another_run_is_refused_and_files_name_no_folder(changed, why, tmp_path, monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    run = {**entry("-", 1.0), "data": "toy", "steps": 5, "command": "genlab train"}
    monkeypatch.setattr(families, "collect", lambda path, note: run)
    made = {**run["quality"], "checkpoint": "/somewhere/best.ckpt"}
    made["classifier"] = {**made["classifier"], "checkpoint": "/somewhere/else.ckpt"}
    path = tmp_path / "quality.json.in"
    path.write_text(json.dumps({**made, **changed}))
    with pytest.raises(SystemExit, match=why):
        families.add(tmp_path, path, "A model", None)
    path.write_text(json.dumps(made))
    families.add(tmp_path, path, "A model", None)
    (kept,) = (tmp_path / "kept").glob("*.json")
    assert kept.name == "toy-a_model.json"
    assert "somewhere" not in kept.read_text()


def test_names_that_are_one_file_do_not_overwrite_each_other(tmp_path, monkeypatch):
    run = {key: entry("a", 1.0)[key] for key in ("model", "parameters", "minutes", "test")}
    monkeypatch.setattr(families, "FAMILIES", tmp_path)
    monkeypatch.setattr(families, "collect", lambda *_: {**run, "steps": 3, "data": "toy", "command": "genlab train"})
    drawn = entry("a", 1.0)["quality"]
    (tmp_path / "quality.json").write_text(json.dumps({**drawn, "classifier": {**EYE, "checkpoint": "eye"}}))
    for name in ("CNN", "CNN++", "CNN"):
        families.add(tmp_path, tmp_path / "quality.json", name, None)
    assert {path.stem for path in tmp_path.glob("toy-*.json")} == {"toy-cnn", "toy-cnnpp"}
    with pytest.raises(SystemExit, match=r"toy-cnnpp.json is CNN\+\+ already"):
        families.add(tmp_path, tmp_path / "quality.json", "CNNpp", None)
