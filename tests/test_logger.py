"""metrics.csv, TensorBoard, Weights & Biases offline, and none."""

from __future__ import annotations

import pytest
from trainees import Crash, config, trained

from genlab.core import RequestError
from genlab.processes import resume
from genlab.train import loggers
from genlab.train.loggers import MetricsFile


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


def test_none_writes_nothing(tmp_path):
    folder = trained(tmp_path / "run", logger__kind="none")
    assert not (folder / "metrics.csv").exists()
    assert (folder / "results.json").exists()


def crashed_and_resumed(folder, kind):
    with pytest.raises(Crash):
        trained(folder, logger__kind=kind, data__crash_at=7)
    from omegaconf import OmegaConf

    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config(logger__kind=kind)))
    resume.run(folder, ["trust=[trainees]"], "genlab resume")


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    crashed_and_resumed(folder, "tensorboard")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("valid/bits_per_dim")] == [5, 10, 12]
    assert [event.step for event in events.Scalars("train/bits_per_dim")] == [3, 6, 9, 12]
    assert (folder / "metrics.csv").exists()


@pytest.mark.slow
def test_wandb_offline_continues_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    folder = tmp_path / "run"
    crashed_and_resumed(folder, "wandb")
    identity = (folder / "wandb" / "id.txt").read_text().strip()
    written = list((folder / "wandb").glob(f"offline-run-*-{identity}/*.wandb"))
    assert written
    assert all(file.stat().st_size > 0 for file in written)
    assert (folder / "metrics.csv").exists()


def test_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="logger=tensorboard needs the package tensorboard"):
        loggers.check("tensorboard")
