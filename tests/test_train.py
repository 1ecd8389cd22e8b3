"""Training on a few tiny images: schedule, logged numbers, gradient guard, files, requests that are refused."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from trainees import DotsData, Tiny, checkpoint, config, environment, same, trained

from genlab.core import ImageSpec, RequestError, RunError
from genlab.measure.bits import bits_per_dim
from genlab.processes.preparation import check_config
from genlab.system.atomic import write_text
from genlab.train import callbacks, fit, provenance
from genlab.train.callbacks import Checkpoints
from genlab.train.checkpoint import AtomicCheckpointIO
from genlab.train.learner import step_seed
from genlab.train.optim import AdamW
from genlab.train.running_sums import RunningSums


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---- schedule and optimiser


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", 1.0), ("linear", 0.75), ("cosine", 0.5 * (1 + math.cos(math.pi / 4)))],
)
def test_schedule(schedule, expected):
    optim = AdamW(warmup=4, schedule=schedule)
    assert [optim.factor(step, 104) for step in range(4)] == [0.2, 0.4, 0.6, 0.8]
    assert optim.factor(4, 104) == 1
    assert optim.factor(29, 104) == pytest.approx(expected)
    assert optim.factor(104, 104) == pytest.approx(1.0 if schedule == "constant" else 0.0)


def test_a_trapezoid_falls_at_the_end():
    """Over the last 40 % of the 100 steps after the warm-up."""
    optim = AdamW(warmup=4, schedule="trapezoid")
    factors = [optim.factor(step, 104) for step in (4, 50, 64, 84, 94, 104)]
    assert factors == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.25, 0.0])


def test_logged_rate_is_the_one_used(tmp_path):
    folder = trained(tmp_path / "run", train__log_every=1)
    optim = AdamW(warmup=2)
    rates = [float(row["train/lr"]) for row in rows(folder)[1:]]
    assert rates == pytest.approx([0.05 * optim.factor(step, 12) for step in range(12)])


def test_only_matrices_decay():
    groups = AdamW(weight_decay=0.1).optimizer(torch.nn.Linear(2, 3), fused=True).param_groups
    assert [(group["params"][0].ndim, group["weight_decay"]) for group in groups] == [(2, 0.1), (1, 0.0)]


# ---- numbers


def test_train_metric_is_the_mean_over_images(tmp_path):
    """The losses of the first three batches are recomputed here from the seeds alone."""
    folder = trained(tmp_path / "run", optim__lr=1e-12, train__ema=0, optim__weight_decay=0.0)
    data = DotsData(validation=16, batch_size=8, seed=3)
    torch.manual_seed(3)
    model = Tiny(data.spec)
    losses, fuss = [], []
    for batch in range(3):
        torch.manual_seed(step_seed(3, 0, batch))
        terms = model.objective(data.training_batch(batch).images)
        losses.append(terms["loss"])
        fuss.append(terms["fuss"])
    first = rows(folder)[1]
    expected = bits_per_dim(-torch.cat(losses).double(), data.spec).mean().item()
    assert float(first["train/bits_per_dim"]) == pytest.approx(expected, rel=1e-6)
    assert float(first["train/fuss"]) == pytest.approx(torch.cat(fuss).mean().item(), rel=1e-4)


def test_the_first_row_is_the_untrained_model(tmp_path):
    """It is what the same code says of the initial weights, and it is never the best."""
    folder = trained(tmp_path / "run", optim__lr=1e-12, optim__weight_decay=0.0)
    first, *later = [row for row in rows(folder) if row["valid/bits_per_dim"]]
    assert first["step"] == "0"
    assert float(first["valid/bits_per_dim"]) == pytest.approx(float(later[0]["valid/bits_per_dim"]), rel=1e-6)
    assert json.loads((folder / "results.json").read_text())["best_step"] > 0


def test_an_untrained_model_without_a_finite_value_is_trained_all_the_same(tmp_path, monkeypatch, capsys):
    def evaluate(model, *args, **kwargs):
        if not (tmp_path / "run" / "checkpoints").exists():
            raise RunError("log-likelihood is not finite")
        return evaluate_split(model, *args, **kwargs)

    evaluate_split = callbacks.evaluate_split
    monkeypatch.setattr(callbacks, "evaluate_split", evaluate)
    monkeypatch.setattr(Checkpoints, "due", lambda *args: True)
    folder = trained(tmp_path / "run")
    assert capsys.readouterr().err.count("the untrained model has no validation value: log-likelihood") == 1
    assert [row["step"] for row in rows(folder) if row["valid/bits_per_dim"]] == ["5", "10", "12"]


def test_versions_name_the_machine(tmp_path):
    lines = dict(line.split(" ", 1) for line in provenance.versions().splitlines())
    assert lines["threads"] == str(torch.get_num_threads())
    assert lines["gpu"] == "none" or torch.cuda.get_device_name(0) in lines["gpu"]
    assert len(lines["cpu"]) > 2


def test_early_stopping_says_where_the_best_is(tmp_path, capsys):
    folder = trained(
        tmp_path / "run", optim__lr=1e-12, train__patience=1, train__valid_every=1, optim__weight_decay=0.0
    )
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stopped early at step")]
    best = json.loads((folder / "results.json").read_text())
    assert line.endswith(f"the best is {best['valid']['bits_per_dim']:.4f} bits/dim at step {best['best_step']}")


def test_compilation_says_that_it_is_on_and_how_long_the_first_step_took(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit, "compile_networks", lambda model: None)  # the words alone are asked here
    trained(tmp_path / "run", compile=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("compile=true: the first step compiles the network") == 1
    assert len([line for line in lines if re.fullmatch(r"compile=true: the first step took \d+ seconds", line)]) == 1


def test_running_sums_do_not_depend_on_the_batches():
    """Small integers, whose sums are exact in any order. What `gathered` returns can be loaded on one of two ranks."""
    values = torch.arange(12.0)
    whole, parts = RunningSums(), RunningSums()
    whole.add_values({"loss": values, "other": 2 * values})
    for batch in values.split([1, 4, 7]):
        step = RunningSums()
        step.add_values({"loss": batch, "other": 2 * batch})
        parts.add(step.sums)
    assert parts.gathered() == whole.gathered() == {"loss": [66.0, 12.0], "other": [132.0, 12.0]}
    ranks = RunningSums(), RunningSums()
    for rank, sums in enumerate(ranks):
        sums.load(whole.gathered(), rank)
    ranks[0].add(ranks[1].sums)
    assert ranks[0].gathered() == whole.gathered()


def test_every_step_has_its_own_randomness():
    seeds = {step_seed(seed, rank, batch) for seed in range(4) for rank in range(4) for batch in range(50)}
    assert len(seeds) == 800
    assert len({seed % 2**32 for seed in seeds}) == 800  # the CPU generator reads 32 bits


def test_a_run_folder(tmp_path, capsys):
    folder = trained(tmp_path / "run")
    out = capsys.readouterr()
    results = json.loads((folder / "results.json").read_text())
    assert out.out == f"test bits/dim {results['test']['bits_per_dim']:.4f} ± " + out.out.split("± ")[1]
    assert out.out.splitlines()[0].endswith("(exact, 20 images)")
    assert out.out.splitlines()[1] == str(folder)
    assert "step 12/12" in out.err
    assert "Warning" not in out.err
    assert "💡" not in out.err
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names == {
        "config.yaml", "command.txt", "versions.txt", "metrics.csv", "results.json",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "samples/step=000006.png", "samples/step=000012.png",
        "completions/step=000006.png", "completions/step=000012.png",
    }  # fmt: skip
    assert [row["step"] for row in rows(folder)] == ["0", "3", "5", "6", "9", "10", "12"]
    assert results["test"]["n"] == 20
    assert results["valid"]["n"] == 16
    assert results["parameters"] == sum(p.numel() for p in Tiny(ImageSpec(1, 4, 4)).parameters())
    assert OmegaConf.load(folder / "config.yaml") == config()


def test_checkpoint_content(tmp_path):
    folder = trained(tmp_path / "run")
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    card = state["genlab"]
    assert OmegaConf.create(card["config"]) == config()
    assert ImageSpec(**card["spec"]) == ImageSpec(1, 4, 4)
    assert card["step"] == 12
    assert isinstance(card["version"], str)
    assert state["DotsData"] == {"position": 12}


def test_fp32_bf16_and_no_clipping_train(tmp_path):
    same(
        checkpoint(trained(tmp_path / "a", trainer__gradient_clip_val=None))["genlab"]["step"],
        checkpoint(trained(tmp_path / "b", trainer__precision="bf16-mixed"))["genlab"]["step"],
    )


def test_accumulated_batches_are_one_large_batch(tmp_path):
    """Without noise and running statistics two batches of 8 give the gradient of one of 16."""
    quiet = {"optim__warmup": 0, "trainer__max_steps": 2, "train__ema": 0, "trainer__gradient_clip_val": None}
    small = checkpoint(trained(tmp_path / "a", trainer__accumulate_grad_batches=2, **quiet))
    large = checkpoint(trained(tmp_path / "b", data__batch_size=16, **quiet))
    torch.testing.assert_close(small["state_dict"]["model.logits"], large["state_dict"]["model.logits"])


# ---- non-finite steps


def test_bad_steps_are_skipped_and_counted(tmp_path):
    folder = trained(tmp_path / "run", data__poison=[2, 7])
    state = checkpoint(folder)
    assert state["genlab"]["bad_steps"] == 2
    assert state["genlab"]["updates"] == 10
    assert all(value.isfinite().all() for value in state["state_dict"].values())  # running statistics as well
    assert {int(s["step"]) for s in state["optimizer_states"][0]["state"].values()} == {10}
    assert [row["train/bad_steps"] for row in rows(folder)] == ["", "1", "", "1", "2", "", "2"]
    assert all(math.isfinite(float(row["train/bits_per_dim"])) for row in rows(folder) if row["train/bits_per_dim"])


def test_a_skipped_step_changes_nothing(tmp_path):
    """Two batches are poisoned: the weights stay as they were before them."""
    folder, before = tmp_path / "run", trained(tmp_path / "before", trainer__max_steps=4, optim__schedule="constant")
    trained(folder, trainer__max_steps=6, data__poison=[4, 5], optim__schedule="constant")
    for part in ("state_dict", "optimizer_states"):
        same(checkpoint(folder)[part], checkpoint(before)[part])


def test_bad_batch_spoils_its_whole_accumulated_step(tmp_path):
    state = checkpoint(trained(tmp_path / "run", data__poison=[2], trainer__accumulate_grad_batches=2))
    assert state["genlab"]["bad_steps"] == 1
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_too_many_bad_steps_stop_the_run(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RunError) as caught:
        trained(folder, data__poison=[2, 6, 9])
    sentence = str(caught.value)
    assert "stopped at step 10: 3 steps" in sentence
    assert "the first such number came out of trap;" in sentence
    assert str(folder / "checkpoints" / "last.ckpt") in sentence
    state = checkpoint(folder)
    assert state["genlab"]["step"] == 8
    assert state["genlab"]["bad_steps"] == 2
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    assert not (folder / "results.json").exists()


def test_a_bad_gradient_is_named(tmp_path, monkeypatch):
    """The loss is finite and its gradient is not: the square root at 0."""
    objective = Tiny.objective
    monkeypatch.setattr(
        Tiny, "objective", lambda self, x, c=None: {"loss": objective(self, x)["loss"] + (0 * self.logits.sum()).sqrt()}
    )
    with pytest.raises(RunError, match="number came out of the gradient of logits; no checkpoint had been written"):
        trained(tmp_path / "run")


# ---- files


def holding(value):
    """The smallest content that is read as a checkpoint of genlab."""
    return {"genlab": {"spec": {}, "config": ""}, "state_dict": {"value": torch.tensor(value)}}


def test_kill_while_writing_leaves_the_last_good_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(holding(1), path)
    program = (
        "import os, signal, sys, torch; from pathlib import Path; from genlab.train import checkpoint\n"
        "def half(state, file): Path(file).write_bytes(b'PK half a file'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "torch.save = half\n"
        "checkpoint.AtomicCheckpointIO().save_checkpoint({}, sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], env=environment())
    assert done.returncode == -signal.SIGKILL
    assert AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["value"] == 1
    assert len(list(tmp_path.iterdir())) == 2
    AtomicCheckpointIO().save_checkpoint(holding(3), path)
    assert AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["value"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_failed_write_is_one_sentence_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(holding(1), path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"could not write .*last\.ckpt: .*No space left"):
        AtomicCheckpointIO().save_checkpoint(holding(2), path)
    assert AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["value"] == 1


def test_no_code_in_checkpoints(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch evil",)

    torch.save({"state": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(RequestError, match="not a readable checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt")


def test_text_files_are_whole(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "one\n")
    assert (tmp_path / "a" / "b.txt").read_text() == "one\n"


# ---- requests


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trainer__max_steps": 0}, "trainer.max_steps=0"),
        ({"trainer__max_steps": -1}, "trainer.max_steps=-1"),
        ({"trainer__precision": "fp16"}, "did you mean 'fp16-mixed'"),
        ({"trainer__precision": "fp16-mixed"}, "needs a GPU"),
        ({"trainer__accelerator": "gpu", "trainer__devices": 99}, "GPU"),
        ({"trainer__devices": 0}, "trainer.devices=0"),
        ({"trainer__strategy": "dpp"}, "did you mean 'ddp'"),
        ({"trainer__num_nodes": 2}, "torchrun or srun"),
        ({"trainer__gradient_clip_val": -1}, "gradient_clip_val"),
        ({"trainer__accumulate_grad_batches": 0}, "accumulate_grad_batches"),
        ({"optim__schedule": "cosin"}, "did you mean 'cosine'"),
        ({"optim__momentum": 0.9}, "momentum"),
        ({"optim__lr": -1.0}, "optim.lr"),
        ({"train__ema": 1.0}, "train.ema"),
        ({"train__valid_every": 0}, "train.valid_every"),
        ({"logger__kind": "tensorbord"}, "did you mean 'tensorboard'"),
        ({"model___target_": "os.system"}, "os.system"),
        ({"compile": True, "model___target_": "trainees.Netless"}, "compile=true needs"),
    ],
)
def test_wrong_requests_create_nothing(tmp_path, changes, sentence):
    with pytest.raises(RequestError, match=sentence):
        trained(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"hydra\.run\.dir=.* cannot be written"):
        trained(tmp_path / "file" / "run")


@pytest.mark.slow
def test_configs_compose_and_fit_the_code():
    """The yaml files hold exactly the keys that the code reads."""
    from pathlib import Path

    from hydra import compose, initialize_config_dir

    folder = Path(__file__).parents[1] / "configs"
    with initialize_config_dir(str(folder), version_base="1.3"):
        for trainer in ("auto", "cpu", "ddp_cpu", "smoke"):
            made = compose("train", [f"trainer={trainer}"])
            plan = check_config(made)
            assert plan.processes == (2 if trainer == "ddp_cpu" else 1)
            for section in ("train", "trainer", "optim"):
                assert made[section].keys() == config()[section].keys()
        assert (made.trainer.max_steps, made.data.limit) == (6, 100)
        for trainer in ("gpu", "ddp", "fsdp"):
            assert compose("train", [f"trainer={trainer}"]).trainer.accelerator == "gpu"
