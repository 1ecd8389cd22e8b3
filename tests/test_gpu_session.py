"""scripts/gpu_session.py at toy size on the CPU: failures do not end it, and a run travels in pieces."""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import gpu_pieces
import gpu_session
import gpu_stages


def run(out, stages, *words):
    """The report of a quick session."""
    return gpu_session.session(
        gpu_session.arguments([str(out), "--device=cpu", "--quick", f"--stages={stages}", *words])
    )


def test_a_failure_and_a_timeout_are_reported_and_the_next_stage_begins(tmp_path, monkeypatch, fresh):
    def tests(stage):
        raise RuntimeError("broken")

    def precision(stage):
        stage.add("- before")
        stage.run("sleep", "-c", "import time; time.sleep(60)")

    def bench(stage):
        stage.add("- measured", speed=3.0)

    monkeypatch.setattr(gpu_stages, "tests", tests)
    monkeypatch.setattr(gpu_stages, "precision", precision)
    monkeypatch.setattr(gpu_stages, "bench", bench)
    monkeypatch.setattr(gpu_session, "SHARES", {"tests": 1.0, "precision": 1.0, "bench": 9.0})
    run(tmp_path, "tests", "--budget=1")
    report = run(tmp_path, "bench,precision", "--budget=0.5")
    assert {name: record["status"] for name, record in report.items()} == {
        "tests": "failed", "precision": "out of time", "bench": "ok",
    }  # fmt: skip
    assert report["precision"]["lines"][0] == "- before"
    assert report["bench"]["figures"] == {"speed": 3.0}
    assert json.loads((tmp_path / "report.json").read_text()) == report
    page = (tmp_path / "report.md").read_text()
    assert "| tests | failed |" in page
    assert "RuntimeError: broken" in page
    assert page.index("## tests") < page.index("## precision") < page.index("## bench")


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        gpu_session.arguments(["out"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_travels_in_pieces_and_a_wrong_one_is_refused(tmp_path):
    source, out = tmp_path / "source" / "run", tmp_path / "out"
    (source / "checkpoints").mkdir(parents=True)
    out.mkdir()
    (source / "checkpoints" / "last.ckpt").write_bytes(bytes(range(256)) * 100)
    manifest = gpu_pieces.pack(source, out, 7000)
    pieces = sorted(out.glob("run.tar.*"))
    assert len(pieces) == manifest["pieces"] > 3
    assert max(piece.stat().st_size for piece in pieces) <= 7000
    assert gpu_pieces.unpack(out, tmp_path / "there" / "run")
    assert (tmp_path / "there/run/checkpoints/last.ckpt").read_bytes() == bytes(range(256)) * 100
    pieces[1].write_bytes(b"x" * 7000)
    with pytest.raises(ValueError, match="copy them again"):
        gpu_pieces.unpack(out, tmp_path / "other" / "run")
    assert not (tmp_path / "other").exists()
    assert not gpu_pieces.unpack(tmp_path, tmp_path / "other" / "run")


def test_xz_files_of_cifar10_are_unpacked_once(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch.xz").write_bytes(lzma.compress(b"images"))
    gpu_pieces.unpack_cifar10(str(tmp_path))
    assert (folder / "test_batch").read_bytes() == b"images"
    (folder / "test_batch").write_bytes(b"own")
    gpu_pieces.unpack_cifar10(str(tmp_path))
    assert (folder / "test_batch").read_bytes() == b"own"


@pytest.mark.slow
def test_a_training_is_paused_carried_and_finished(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(gpu_stages, "QUICK_MARGIN", 19.999)
        first = run(tmp_path / "a", "train", "--carry=1", "--budget=20", "--", "seed=5")["train"]
    assert first["status"] == "ok", first
    assert 0 < first["figures"]["steps"] < first["figures"]["goal"] == 100
    second = run(tmp_path / "b", "train", f"--carried={tmp_path / 'a'}", "--budget=20")["train"]
    assert "SHA-256 is right" in second["lines"][0]
    assert second["figures"]["steps"] == 100, second
    assert "seed: 5" in (tmp_path / "b" / "work" / "train" / "run" / "config.yaml").read_text()
    third = run(tmp_path / "b", "train", "--budget=20")["train"]
    assert (third["status"], third["lines"]) == ("skipped", ["- The run is finished."])


@pytest.mark.slow
def test_quick_stages_run_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_stages, "random_kills", lambda stage: None)  # test_faults.py runs it
    report = run(tmp_path, "environment,resume,sampling", "--budget=20")
    assert {record["status"] for record in report.values()} == {"ok"}, report
    assert report["resume"]["figures"]["killed"] is None
