"""The line that a run begins with, and the sentence about few images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn
from trainees import config, trained

from genlab.data import folder_data
from genlab.processes.opening import few_images, length, opening
from genlab.train.plan import Plan
from genlab.train.run import Run

NAMES = {"model": "pixelcnn", "data": "folder", "experiment": None}


@pytest.fixture
def run(tmp_path):
    """A run on four photographs, of a model with 6 parameters."""
    for i in range(4):
        Image.fromarray(np.full((8, 8), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    data = folder_data(tmp_path, 8, 1, False, validation=1)
    train = {"minutes": None, "epochs": None, "patience": None}
    return Run(nn.Linear(2, 2), data, {"names": NAMES, "train": train}, Plan.of(config().trainer), Path("runs/a"))


def said(run, train=None, steps=0, begun=None):
    run = replace(run, plan=replace(run.plan, max_steps=steps), checkpoint=begun and {"genlab": {"step": begun}})
    run.config = {**run.config, "train": {**run.config["train"], **(train or {})}}
    return length(run)


def test_one_line_says_model_data_length_and_folder(run):
    first, second = opening(run, "by choice").splitlines()
    assert first.startswith("pixelcnn, 6 parameters; folder-")
    assert first.endswith(f"4 images, no classes: 2 train, 1 valid, 1 test; {length(run)}; by choice; runs/a")
    assert second == few_images(run)


def test_the_length_is_that_of_the_request(run):
    assert said(run, steps=5000) == "5,000 steps"
    assert said(run, steps=5000, begun=300) == "step 300 to 5,000"
    assert said(run, {"minutes": 0.5}) == "0.5 minutes"
    assert said(run, {"epochs": 20, "patience": 3}) == "at most 20 epochs"


def test_few_images_are_told_what_helps_and_is_not_in_use(run, monkeypatch):
    assert few_images(run).startswith("2 training images are few")
    for part in ("experiment=cpu_pixelcnn_folder", "data.augment=hflip", "train.patience=5", "a smaller model"):
        assert part in few_images(run)
    run.config["train"]["patience"] = 3
    run.config["names"] = {**NAMES, "experiment": "some"}
    run.data.augment = "hflip"
    assert few_images(run).endswith("what helps: a smaller model")
    monkeypatch.setattr("genlab.processes.opening.FEW", 2)
    assert few_images(run) == ""


def test_other_data_are_no_folder_and_the_line_comes_first(tmp_path, capsys):
    folder = trained(tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert " parameters; " in lines[0]
    assert lines[0].endswith(str(folder))
    assert sum(" parameters; " in line for line in lines) == 1
    assert not any("are few" in line for line in lines)
