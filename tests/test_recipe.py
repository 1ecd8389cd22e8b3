"""A request without a length and an experiment takes the experiment of its model, its data and this kind of device."""

from __future__ import annotations

import pytest
import torch

from genlab.request import recipe
from genlab.request.compose import Request

PLAIN, COLOURS = ["model=pixelcnn", "data=mnist"], ["model=pixelcnn", "data=cifar10"]
ON_GPU = ["trainer.accelerator=gpu"]


def taken(*words):
    return recipe.taken(Request("train", list(words), "genlab train"))


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("words", "experiment"), [(PLAIN, "cpu_pixelcnn_mnist"), ([*COLOURS, *ON_GPU], "pixelcnn_cifar10")]
)
def test_the_experiment_of_the_device_is_taken_and_said(words, experiment):
    request, line = taken(*words)
    config = request.config()
    assert config.hydra.runtime.choices["experiment"] == experiment
    assert config.trainer.max_steps
    assert config.train.minutes is None
    assert line.startswith(f"experiment={experiment}: no length was given")


def test_a_gpu_of_this_machine_is_used_and_counts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert taken(*COLOURS)[1].startswith("experiment=pixelcnn_cifar10:")
    assert taken(*PLAIN, "trainer=cpu")[1].startswith("experiment=cpu_pixelcnn_mnist:")


def test_other_words_win_over_the_experiment():
    request, _ = taken(*PLAIN, "model.net.width=20", "data.batch_size=3", "model/context=label")
    config = request.config()
    assert (config.model.net.width, config.data.batch_size) == (20, 3)
    assert config.hydra.runtime.choices["model/context"] == "label"


@pytest.mark.parametrize("word", ["trainer.max_steps=5", "train.minutes=1", "train.epochs=1", "experiment=null"])
def test_who_gives_a_length_or_no_experiment_gets_the_plain_settings(word):
    request, line = taken(*PLAIN, word)
    assert line == ""
    assert request.config().hydra.runtime.choices["experiment"] is None


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["model=pixelcnn", "data=svhn"], "there is no experiment"),
        (["model=pixelcnn", "data=mnist_binary"], "there is no experiment"),
        ([*PLAIN, *ON_GPU], "experiment=pixelcnn_mnist is about binarised images"),
        ([*COLOURS, *ON_GPU, "optim=muon"], "it sets adamw's rate, which muon does not have"),
    ],
)
def test_without_a_fitting_experiment_the_run_has_the_usual_length(words, why):
    request, line = taken(*words)
    assert line == "no length was given, and train.minutes= changes it", why
    assert request.config().train.minutes == 55


def test_a_folder_of_images_gets_a_small_net_that_stops_early():
    request, line = taken("data=folder", "data.path=photos")
    config = request.config()
    assert line.startswith("experiment=cpu_pixelcnn_folder: no length was given")
    assert (config.data.path, config.data.augment, config.train.patience) == ("photos", "hflip", 5)
    request, line = taken("data=folder", "data.path=photos", "model=made")
    assert request.config().hydra.runtime.choices["experiment"] is None
    assert line.startswith("no length was given")


def test_data_with_a_length_of_their_own_take_none():
    request, line = taken("data=mnist_mini")
    assert line == ""
    assert request.config().trainer.max_steps == 600
