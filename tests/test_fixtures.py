"""Checkpoints and a run folder of older versions: they load, draw, evaluate and go on as they did when they were made.

The files in tests/fixtures are what `genlab train` wrote at the commit that `checkpoint["genlab"]["commit"]` names
(scripts/make_checkpoint_fixtures.py); they are never made anew to let a test pass. On the machine and PyTorch that
made them the images are equal. Elsewhere a sum in another order may move a float by its last bit, and so a pixel whose
noise fell on the border of two levels, and later pixels of the same image: a few in a hundred at most.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from thin import every

from genlab import cli

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = json.loads((FIXTURES / "checkpoints" / "expected.json").read_text())
KINDS = sorted(path.stem for path in (FIXTURES / "checkpoints").glob("*.ckpt"))
TIGHT = {"bits_per_dim", "nats", "loss", "generator_loss", "discriminator_loss"}  # the others are small differences


def here() -> str:
    """As `machine` of the script that made the fixtures."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"torch {torch.__version__}, {model}, {torch.backends.cpu.get_cpu_capability()}"


def test_every_kind_is_there_and_complete():
    assert set(EXPECTED) == {*KINDS, "machine"}
    for kind in KINDS:
        checkpoint = torch.load(FIXTURES / "checkpoints" / f"{kind}.ckpt", weights_only=True)
        assert {"state_dict", "optimizer_states", "loops", "callbacks", "genlab"} <= set(checkpoint)
        assert {"config", "spec", "version", "commit", "step"} <= set(checkpoint["genlab"])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "pixels" in EXPECTED[kind]])
def test_draws_the_same_images(kind, tmp_path):
    words = ["code=gaussian"] if kind == "bottleneck_ae" else []
    file, out = FIXTURES / "checkpoints" / f"{kind}.ckpt", tmp_path / "four.png"
    assert cli.run(["sample", f"ckpt={file}", "n=4", "seed=0", "device=cpu", f"out={out}", *words]) == 0
    drawn = np.load(out.with_suffix(".npy"))
    kept = np.frombuffer(bytes.fromhex(EXPECTED[kind]["pixels"]), np.uint8).reshape(drawn.shape)
    moved = (drawn != kept).mean()
    assert moved <= (0 if here() == EXPECTED["machine"] else 0.05), f"{moved:.2%} of the pixels are others"


@pytest.mark.slow
@pytest.mark.parametrize("kind", every(4, KINDS))
def test_evaluates_to_the_same_number(kind, tmp_path):
    file, out = FIXTURES / "checkpoints" / f"{kind}.ckpt", tmp_path / "eval.json"
    assert cli.run(["eval", f"ckpt={file}", "data.limit=100", "trainer.accelerator=cpu", f"out={out}"]) == 0
    told = json.loads(out.read_text())
    for key, value in EXPECTED[kind]["eval"].items():
        assert told[key] == pytest.approx(value, rel=1e-5 if key in TIGHT else 1e-3, abs=1e-9), key


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_end(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(FIXTURES / "run", run)
    # The run was made in float32, before a run kept what `auto` had chosen.
    assert cli.run(["resume", f"run={run}", "trainer.precision=32"]) == 0
    expected = json.loads((FIXTURES / "run-expected.json").read_text())
    results = json.loads((run / "results.json").read_text())
    for key in ("steps", "best_step", "bad_steps"):
        assert results[key] == expected["results"][key]
    for split in ("test", "valid"):
        assert results[split]["n"] == expected["results"][split]["n"]
        assert results[split]["bits_per_dim"] == pytest.approx(expected["results"][split]["bits_per_dim"], rel=1e-5)
    ours = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    theirs = list(csv.DictReader(expected["metrics"].splitlines()))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for key, value in other.items():
            assert mine[key] == value or float(mine[key]) == pytest.approx(float(value), rel=1e-4), (key, mine)


@pytest.mark.slow
def test_no_path_of_the_machine_that_made_them():
    texts = [(FIXTURES / "run" / name).read_text() for name in ("config.yaml", "command.txt", "versions.txt")]
    for kind in KINDS:
        checkpoint = torch.load(FIXTURES / "checkpoints" / f"{kind}.ckpt", weights_only=True)
        assert OmegaConf.create(checkpoint["genlab"]["config"]).data.root is None
        texts.append(repr({key: value for key, value in checkpoint.items() if key != "state_dict"}))
    assert not [text for text in texts if any(f"{root}/" in text for root in ("/work", "/home", "/root", "/tmp"))]
