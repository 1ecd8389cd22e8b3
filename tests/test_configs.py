"""Every config begins with a description, composes and can be built."""

from __future__ import annotations

import pytest
import torch
import zoo
from omegaconf import OmegaConf

from genlab.core import ImageSpec
from genlab.processes import sweep_overrides
from genlab.request.compose import Request
from genlab.request.folders import configs_folder, groups
from genlab.train.plan import Plan

GROUPS = groups([configs_folder()])
SHAPES = "genlab.data.Shapes"  # without colours they have two levels
FILES = [(group, name) for group, names in GROUPS.items() for name in names]


@pytest.mark.parametrize(("group", "name"), FILES, ids=lambda v: v)
def test_a_config_begins_with_its_description(group, name):
    lines = (configs_folder() / group / f"{name}.yaml").read_text().splitlines()
    comments = [line for line in lines[:2] if line.startswith("# ") and "@package" not in line]
    assert comments
    assert all(len(line) <= 150 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_experiments_compose_and_build_and_trainer_smoke_shortens_them(name):
    config = Request("train", [f"experiment={name}", "trainer=smoke"], command="").config()
    binary = config.data.get("binarize", "none") != "none" or config.data.get("source") == {"_target_": SHAPES}
    spec = ImageSpec(3, 8, 8, 2 if binary else 256, classes=10)
    with torch.device("meta"):  # full width, of which only the shapes are computed
        assert zoo.accepted(OmegaConf.to_container(config.model), spec) is not None
    assert (config.trainer.max_steps, config.data.limit, config.train.valid_every) == (6, 100, 3)
    assert config.train.sample_every == 6
    assert config.optim.warmup == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS["model"])
def test_the_zoo_reads_a_model_as_hydra_composes_it(name):
    assert zoo._composed(name) == Request("train", [f"model={name}"], command="").config().model


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in GROUPS["trainer"] if n not in ("gpu", "ddp", "fsdp")])
def test_trainers_make_a_plan_on_a_cpu(name):
    config = Request("train", [f"trainer={name}", "trainer.accelerator=cpu"], command="").config()
    assert Plan.of(config.trainer).max_steps >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS["sweep"])
def test_sweeps_compose(name):
    assert Request("train", [f"sweep={name}"], command="").config().hydra.sweep.dir


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS["sweep/space/optuna"])
def test_a_search_space_has_keys_of_its_model_and_every_value_can_be_built(name):
    context = ["data/context=half"] if name == "mixture_density" else []
    words = ["sweep=optuna", f"model={name}", *context]
    params = dict(sweep_overrides.check(Request("train", words, "", sweep=True)).hydra.sweeper.params)
    assert len(params) > 1
    choices = {key: value[len("choice(") : -1].split(", ") for key, value in params.items() if key != "optim.lr"}
    spec = ImageSpec(1, 14, 28, context=ImageSpec(1, 14, 28)) if context else ImageSpec(3, 32, 32)
    for i in (0, -1):
        ends = [f"{key}={values[i]}" for key, values in choices.items()]
        config = Request("train", [f"model={name}", *context, *ends], "").config()
        with torch.device("meta"):
            assert zoo.accepted(OmegaConf.to_container(config.model), spec) is not None
