"""metrics.csv, none, and the trackers: TensorBoard, Weights & Biases offline, Trackio."""

from __future__ import annotations

import io
import json
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from trainees import Crash, config, trained
from trainees import environment as trainees_environment

from genlab.core import RequestError
from genlab.processes import resume
from genlab.train import loggers
from genlab.train.metrics_file import MetricsFile, read_metrics


def test_union_of_columns_one_row_a_step(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.log_metrics({"a": 1.5}, 1)
    file.log_metrics({"a": 2.5}, 2)
    file.log_metrics({"b": 3}, 2)
    file.log_metrics({"b": 0.1 + 0.2}, 3)
    file.save()
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b\n1,1.5,\n2,2.5,3\n3,,0.30000000000000004\n"


def test_resume_drops_later_rows_and_their_columns(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)
    file.log_metrics({"a": 1}, 1)
    file.log_metrics({"a": 2, "b": 2}, 2)
    file.save()
    with open(path, "a") as torn:
        torn.write("1")  # a row cut short
    MetricsFile(path, step=1)
    assert path.read_text() == "step,a\n1,1\n"
    MetricsFile(path, step=0)
    assert path.read_text() == ""


def test_a_run_that_begins_anew_has_one_row_of_the_untrained_model(tmp_path):
    """It was killed before its first checkpoint."""
    with pytest.raises(Crash):
        trained(tmp_path / "run", data__crash_at=2)
    (tmp_path / "run" / "metrics.csv").write_text("step,valid/bits_per_dim\n0,8.0\n")
    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(config()))
    resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.csv")][:2] == ["0", "3"]


def test_none_writes_nothing(tmp_path):
    folder = trained(tmp_path / "run", logger__kind="none")
    assert not (folder / "metrics.csv").exists()
    assert (folder / "results.json").exists()


def crashed_and_resumed(folder, kind):
    with pytest.raises(Crash):
        trained(folder, logger__kind=kind, data__crash_at=7)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config(logger__kind=kind)))
    resume.run(folder, ["trust=[trainees]"], "genlab resume")


def test_tensorboard_has_curves_pictures_config_and_the_test(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    crashed_and_resumed(folder, "tensorboard")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("valid/bits_per_dim")] == [0, 5, 10, 12]
    assert [event.step for event in events.Scalars("train/bits_per_dim")] == [3, 6, 9, 12]
    assert [event.step for event in events.Scalars("test/bits_per_dim")] == [12]
    for kind in ("samples", "completions"):
        pictures = events.Images(kind)
        assert [event.step for event in pictures] == [6, 12]
        for event in pictures:
            shown = Image.open(io.BytesIO(event.encoded_image_string))
            written = Image.open(folder / kind / f"step={event.step:06d}.png").convert("RGB")
            assert (np.asarray(shown) == np.asarray(written)).all()
    config_text = events.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "max_steps: 12" in config_text
    assert (folder / "metrics.csv").exists()


@pytest.mark.slow
def test_wandb_offline_continues_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    offline(monkeypatch)
    folder = tmp_path / "run"
    crashed_and_resumed(folder, "wandb")
    identity = (folder / "wandb" / "id.txt").read_text().strip()
    written = list((folder / "wandb").glob(f"offline-run-*-{identity}/*.wandb"))
    assert written
    assert all(file.stat().st_size > 0 for file in written)
    assert (folder / "metrics.csv").exists()


@pytest.mark.slow
def test_wandb_offline_keeps_the_runs_of_a_sweep_apart(tmp_path, monkeypatch):
    """In one process, as in a sweep: each run has its own pictures, numbers of the test, and end."""
    pytest.importorskip("wandb")
    offline(monkeypatch)
    identities = set()
    for number in (0, 1):
        folder = trained(tmp_path / str(number), logger__kind="wandb", seed=number)
        (run,) = (folder / "wandb").glob("offline-run-*")
        identities.add(run.name.split("-")[-1])
        pictures = list(run.glob("files/media/images/*.png"))
        assert len(pictures) == 4  # samples and completions at two steps
        originals = {path.read_bytes() for kind in ("samples", "completions") for path in (folder / kind).glob("*.png")}
        assert {path.read_bytes() for path in pictures} <= originals
        records = next(run.glob("*.wandb")).read_bytes()
        assert all(name in records for name in (b"valid/bits_per_dim", b"test/bits_per_dim", b"max_steps"))
    assert len(identities) == 2


def offline(monkeypatch):
    """Weights & Biases without a network and without an account."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.mark.slow
def test_trackio_has_curves_pictures_config_and_the_test(tmp_path):
    pytest.importorskip("trackio")
    script = """if True:
        import sys
        from pathlib import Path
        sys.path.insert(0, "tests")
        from test_logger import crashed_and_resumed
        crashed_and_resumed(Path(sys.argv[1]) / "run", "trackio")
    """
    environment = {**trainees_environment(), "TRACKIO_DIR": str(tmp_path / "store"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("\n") == 2  # the result and the folder alone
    (store,) = (tmp_path / "store").glob("*.db")
    rows = [json.loads(row) for (row,) in sqlite3.connect(store).execute("select metrics from metrics order by step")]
    assert any("test/bits_per_dim" in row for row in rows)
    assert sum("samples" in row for row in rows) >= 2
    assert list((tmp_path / "store" / "media").rglob("*.png"))


@pytest.mark.parametrize("kind", ["tensorboard", "trackio"])
def test_a_missing_package_is_one_sentence_that_names_the_extra(monkeypatch, kind):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=rf"logger={kind} needs the package {kind}: pip install -e '.\[{kind}\]'"):
        loggers.check(kind)


class Failing:
    """A tracker whose disk is full after some numbers."""

    package, install = "json", ""

    def __init__(self, folder, step, project, config):
        self.left = 2

    def numbers(self, metrics, step):
        """Fail at the third call."""
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")

    def picture(self, name, path, step):
        """Not called after a failure."""
        assert self.left >= 0

    def close(self, status):
        """Not called after a failure."""
        raise AssertionError


def test_a_tracker_that_fails_is_left_out_with_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(loggers.TRACKERS, "tensorboard", Failing)
    folder = trained(tmp_path / "run", logger__kind="tensorboard")
    message = capsys.readouterr().err
    assert message.count("logger=tensorboard failed at step") == 1
    assert "No space left" in message
    assert (folder / "results.json").exists()


def test_a_tracker_that_cannot_begin_is_refused_before_training(tmp_path, monkeypatch):
    def refuse(*args):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setitem(loggers.TRACKERS, "tensorboard", refuse)
    monkeypatch.setattr(loggers, "check", lambda kind: None)
    with pytest.raises(RequestError, match=r"cannot begin \(ConnectionError: no network\); .* logger=csv"):
        trained(tmp_path / "run", logger__kind="tensorboard")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_only_rank_zero_logs_pictures(tmp_path, capfd):
    pytest.importorskip("tensorboard")
    folder = trained(
        tmp_path / "run", logger__kind="tensorboard", trainer__devices=2, trainer__strategy="ddp", trainer__max_steps=6
    )
    assert len(list((folder / "tensorboard").glob("events*"))) == 1
    assert len(list((folder / "samples").glob("*.png"))) == 1
