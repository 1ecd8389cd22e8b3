"""Training of two players in turns: what `Learner` promises of steps holds for turns as well."""

from __future__ import annotations

import csv
import json
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import trainees
from omegaconf import OmegaConf
from PIL import Image
from trainees import Crash, checkpoint, outcome, same

import genlab
from genlab import cli
from genlab.build import build
from genlab.core import RequestError, RunError
from genlab.processes import launch, resume, sweep_table, training
from genlab.processes.preparation import prepare
from genlab.train import ema, fit
from genlab.train.adversarial import AdversarialLearner
from genlab.train.learner import step_seed
from genlab.train.optim import AdamW
from genlab.verbs import evaluate

SMALL = {
    "_target_": "genlab.models.GAN",
    "generator": {"_target_": "genlab.nets.DCGANGenerator", "_partial_": True, "widths": [3, 4], "kernel": 4},
    "discriminator": {"_target_": "genlab.nets.DCGANDiscriminator", "_partial_": True, "widths": [3, 4], "kernel": 4},
    "latent_dim": 3,
    "critic_steps": 2,
}
STEPS = 12
TWO = {"trainer__devices": 2, "trainer__strategy": "ddp"}


def config(**changes):
    """A GAN of a few hundred weights on 4 x 4 images, 12 turns."""
    own = {"train__samples": 2, "train__sample_every": 12, "optim__discriminator_lr": 0.02}
    made = trainees.config(**{**own, **changes})
    made.model = {**SMALL, **{k: v for k, v in made.model.items() if k != "_target_"}}
    return made


def trained(folder, **changes):
    training.run(config(**changes), folder, "genlab train")
    return folder


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def player(state, part, which="model"):
    """Weights of a player in a checkpoint, without running statistics."""
    keep = ("weight", "bias", "original")
    prefix = f"{which}.{part}."
    return {k: v for k, v in state["state_dict"].items() if k.startswith(prefix) and k.endswith(keep)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    return trained(tmp_path_factory.mktemp("whole") / "run")


# ---- turns


@pytest.mark.slow
def test_turns_and_the_average_of_the_generator(tmp_path):
    """Steps are d d g d d g …; a player without a turn stays as it was; the generator is averaged at its turns."""
    learner_states = []

    def spy(self, *args, **kwargs):
        step(self, *args, **kwargs)
        copy = {k: v.clone() for k, v in self.state_dict().items()}
        learner_states.append((self.player, {"state_dict": copy}))

    step = AdversarialLearner.optimizer_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdversarialLearner, "optimizer_step", spy)
        folder = trained(tmp_path / "run", trainer__max_steps=7, train__valid_every=7, train__sample_every=0)
    assert [who for who, _ in learner_states] == ["discriminator", "discriminator", "generator"] * 2 + ["discriminator"]
    average, t = None, 0
    for (_, before), (who, after) in pairwise(learner_states):
        for part in ("generator", "discriminator"):
            a, b = player(before, part), player(after, part)
            moved = [not torch.equal(a[k], b[k]) for k in a]
            assert all(moved) if part == who else not any(moved), (part, who)
        same(*(dict(enumerate(player(after, "discriminator", which).values())) for which in ("model", "ema")))
        if average is None:
            average = dict(player(before, "generator", "ema"))
        if who == "generator":
            t += 1
            share = 1 - ema.decay_at(t, 0.9)
            for key, new in player(after, "generator").items():
                key = key.replace("model.", "ema.", 1)
                average[key] = torch.lerp(average[key], new, share)
        for key, value in player(after, "generator", "ema").items():
            torch.testing.assert_close(value, average[key])
    assert checkpoint(folder)["genlab"]["updates"] == 2


def test_two_time_scales():
    optim = AdamW(lr=0.01, discriminator_lr=0.04)
    g, d = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    groups = optim.optimizer(g, fused=False, discriminator=d).param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert [rate[id(p)] for p in [*g.parameters(), *d.parameters()]] == [0.01, 0.01, 0.04, 0.04]
    groups = AdamW(lr=0.01).optimizer(g, fused=False, discriminator=d).param_groups
    assert {group["lr"] for group in groups} == {0.01}
    with pytest.raises(RequestError, match="discriminator_lr=0 must be above 0"):
        AdamW(discriminator_lr=0)


@pytest.mark.slow
def test_metrics_are_means_over_the_images_of_a_players_turns(tmp_path):
    """The losses are recomputed from the seeds alone, of weights that hardly move."""
    still = {"optim__lr": 1e-12, "optim__weight_decay": 0.0, "train__sample_every": 0}
    folder = trained(tmp_path / "run", trainer__max_steps=3, **still)
    settings = config(**still)
    prepared = prepare(settings)
    data, model = prepared.data, prepared.model
    model.train()
    seen = {"discriminator": [], "generator": []}
    with torch.no_grad():
        for number, who in enumerate(("discriminator", "discriminator", "generator")):
            torch.manual_seed(step_seed(3, 0, number))
            seen[who].append(model.turn(who, data.training_batch(number).images)["loss"])
    row = rows(folder)[1]  # the first is the untrained model
    for who, losses in seen.items():
        assert float(row[f"train/{who}_loss"]) == pytest.approx(torch.cat(losses).mean().item(), rel=0.05)
    assert "train/loss" not in row
    assert "train/bits_per_dim" not in row


# ---- as if never stopped


@pytest.mark.slow
@pytest.mark.parametrize("batch", [5, 6])
def test_crashed_and_resumed(tmp_path, whole, batch):
    """The run stops before a turn of the generator, or after it; `test_a_signal_saves_and_stops` between two turns of
    the discriminator.
    """
    with pytest.raises(Crash):
        trained(tmp_path / "run", data__crash_at=batch)
    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(config()))
    resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    same(outcome(tmp_path / "run"), outcome(whole))


@pytest.mark.slow
def test_batches_of_an_accumulated_step_are_one_turn(tmp_path):
    made = {"trainer__accumulate_grad_batches": 2, "trainer__max_steps": 6}
    with pytest.raises(Crash):
        trained(tmp_path / "a", data__crash_at=10, **made)
    (tmp_path / "a" / "config.yaml").write_text(OmegaConf.to_yaml(config(**made)))
    resume.run(tmp_path / "a", ["trust=[trainees]"], "genlab resume")
    same(outcome(tmp_path / "a"), outcome(trained(tmp_path / "b", **made)))
    assert checkpoint(tmp_path / "a")["genlab"]["updates"] == 2


def test_the_newest_weights_are_the_best(whole):
    """A GAN has no number by which to choose the best weights."""
    assert checkpoint(whole, "best")["genlab"]["step"] == STEPS
    results = json.loads((whole / "results.json").read_text())
    assert results["best_step"] == STEPS
    assert results["test"]["kind"] == "adversarial"
    assert results["test"]["n"] == 20
    assert "bits_per_dim" not in results["test"]
    assert "loss" not in results["test"]
    for row in rows(whole):
        if row["valid/generator_loss"]:
            assert {k for k, v in row.items() if k.startswith("valid/") and v} == {
                "valid/generator_loss", "valid/discriminator_loss", "valid/real_score", "valid/fake_score",
            }  # fmt: skip


@pytest.mark.slow
def test_patience_never_stops_a_gan(tmp_path):
    folder = trained(tmp_path / "run", train__patience=1, train__valid_every=2, train__sample_every=0)
    assert checkpoint(folder)["genlab"]["step"] == STEPS


@pytest.mark.slow
def test_a_non_finite_turn_is_skipped_and_counted(tmp_path, monkeypatch):
    """Weights, running statistics and power iterations are put back as they were."""
    states = []
    turn, step = genlab.models.GAN.turn, AdversarialLearner.optimizer_step

    def poisoned(self, who, x, context=None):
        terms = turn(self, who, x, context)
        return {**terms, "loss": terms["loss"] * float("nan")} if len(states) in (4, 5) else terms

    def spy(self, *args, **kwargs):
        step(self, *args, **kwargs)
        states.append({k: v.clone() for k, v in self.state_dict().items()})

    monkeypatch.setattr(genlab.models.GAN, "turn", poisoned)
    monkeypatch.setattr(AdversarialLearner, "optimizer_step", spy)
    folder = trained(tmp_path / "run", train__valid_every=12, train__sample_every=0)
    same(states[5], states[3])
    assert any(not torch.equal(states[6][k], states[5][k]) for k in states[5])
    assert checkpoint(folder)["genlab"]["bad_steps"] == 2
    assert checkpoint(folder)["genlab"]["updates"] == 3  # the turn of step 6 never counted
    states.clear()
    with pytest.raises(RunError, match=r"stopped at step 6: 2 steps .* the gradient of generator.first.weight"):
        trained(tmp_path / "again", train__max_bad_steps=2, train__valid_every=12, train__sample_every=0)


@pytest.mark.slow
def test_a_signal_saves_and_stops(tmp_path, monkeypatch, whole):
    turn = AdversarialLearner._terms

    def interrupted(self, number, batch):
        if number == 6:
            signal.raise_signal(signal.SIGTERM)
        return turn(self, number, batch)

    monkeypatch.setattr(AdversarialLearner, "_terms", interrupted)
    with pytest.raises(RunError, match="stopped by SIGTERM at step 7 of 12"):
        trained(tmp_path / "run")
    monkeypatch.undo()
    resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    same(outcome(tmp_path / "run"), outcome(whole))


# ---- elsewhere


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["hinge", "wgan_gp"])
def test_bf16_trains(tmp_path, loss):
    folder = trained(tmp_path / "run", trainer__precision="bf16-mixed", model__loss=loss, train__sample_every=0)
    state = checkpoint(folder)
    assert state["genlab"]["bad_steps"] == 0
    assert all(v.dtype != torch.bfloat16 for v in state["state_dict"].values())


def same_everywhere(folder):
    """Train on this rank, then compare its averaged and trained weights, and its buffers, with those of rank zero."""
    kept = []
    learner = fit.AdversarialLearner
    fit.AdversarialLearner = lambda *a, **k: kept.append(learner(*a, **k)) or kept[-1]
    training.work(folder, trust=["trainees"])
    with kept[0].evaluation_model() as model:
        state = [*model.state_dict().values(), *kept[0].model.parameters()]
        mine = torch.cat([value.detach().float().flatten() for value in state])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    Path(folder, f"equal{dist.get_rank()}").write_text(str(all(torch.equal(mine, other) for other in everyone)))


@pytest.mark.slow
def test_two_ranks_are_one_model(tmp_path):
    """Each rank sees images of its own, and both take the same turns."""
    folder = tmp_path / "run"
    folder.mkdir()
    made = config(**TWO, trainer__max_steps=4, train__valid_every=4, train__sample_every=0)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(made))
    launch.ranks(2, "test_adversarial:same_everywhere", folder=str(folder))
    assert [(folder / f"equal{rank}").read_text() for rank in (0, 1)] == ["True", "True"]
    state = checkpoint(folder)
    assert state["genlab"]["updates"] == 1
    turns = [int(own["step"]) for own in state["optimizer_states"][0]["state"].values()]
    assert sorted(set(turns)) == [1, 3]  # Adam has seen one turn of the one and three of the other


@pytest.mark.slow
def test_two_ranks_resume(tmp_path):
    """The run stops between two logged rows, so the checkpoint holds sums over both ranks."""
    folder = tmp_path / "run"
    with pytest.raises(RunError, match="a rank stopped with status 1"):
        trained(folder, **TWO, data__crash_at=5, train__log_every=5)
    whole = trained(tmp_path / "whole", **TWO, train__log_every=5)
    (folder / "config.yaml").write_text((whole / "config.yaml").read_text())
    resume.run(folder, ["trust=[trainees]"], "genlab resume")
    same(outcome(folder), outcome(whole))


def test_a_checkpoint_rebuilds_its_model(whole):
    model = genlab.load(whole)
    state = checkpoint(whole, "best")["state_dict"]
    assert all(torch.equal(v, state[f"ema.{k}"]) for k, v in model.state_dict().items())
    assert model.sample(3).shape == (3, 1, 4, 4)
    raw = genlab.load(whole, weights="raw")
    assert any(not torch.equal(a, b) for a, b in zip(raw.parameters(), model.parameters(), strict=True))


@pytest.mark.slow
def test_the_verbs(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["eval", f"ckpt={whole}", "out=eval.json", "trust=[trainees]", "trainer.accelerator=cpu"]) == 0
    out = capsys.readouterr().out
    assert evaluate.NOTE_GAN in out
    assert "a GAN has no likelihood" in out
    assert json.loads((tmp_path / "eval.json").read_text())["kind"] == "adversarial"
    assert cli.run(["eval", f"ckpt={whole}", "trust=[trainees]", "draws=2"]) == 2
    assert "this model does not have" in capsys.readouterr().err
    assert cli.run(["sample", f"ckpt={whole}", "out=samples.png", "trust=[trainees]", "n=3", "device=cpu"]) == 0
    assert np.load("samples.npy").shape == (3, 1, 4, 4)
    assert cli.run(["sample", f"ckpt={whole}", "trust=[trainees]", "n=3", "label=1"]) == 2
    Image.fromarray(np.arange(0, 160, 10, dtype=np.uint8).reshape(4, 4)).save("image.png")
    capsys.readouterr()
    assert (
        cli.run(
            [
                "complete",
                f"ckpt={whole}",
                "out=completion.png",
                "trust=[trainees]",
                "n=2",
                "image=image.png",
                "known=top:0.5",
            ]
        )
        == 0
    )
    assert "(approximate: the image nearest to the known pixels" in capsys.readouterr().out


@pytest.mark.slow
def test_what_cannot_be_trained(tmp_path):
    for changes, sentence in (
        ({"trainer__strategy": "fsdp"}, "trainer.strategy=fsdp"),
        ({"model__loss": "wgan_gp", "compile": True}, "compile=true"),
    ):
        with pytest.raises(RequestError, match=sentence):
            trained(tmp_path / "run", **changes)
        assert not (tmp_path / "run").exists()
    with pytest.raises(RequestError, match="discriminator_lr"):
        training.run(trainees.config(optim__discriminator_lr=0.1), tmp_path / "run", "genlab train")


def test_a_sweep_has_nothing_to_sort_by():
    assert sweep_table.objective({"kind": "adversarial"}) is None


def test_data_and_model_agree_on_the_label():
    spec = genlab.core.ImageSpec(1, 4, 4)
    label = {"_target_": "genlab.nets.LabelContext", "_partial_": True, "width": 2}
    with pytest.raises(RequestError, match="needs images with labels"):
        build({**SMALL, "context": label}, spec)
