"""Write tests/fixtures: small checkpoints of every kind of model as this version writes them, and what comes of them.

tests/test_fixtures.py asks for ever after that they load, draw the same images and evaluate to the same number, and
that the run folder is resumed to the same end. So this script is run once for a version whose checkpoints are to be
kept, from a clean checkout of its commit, and never to make a test pass:

    git worktree add ../base COMMIT && PYTHONPATH=../base python scripts/make_checkpoint_fixtures.py tests/fixtures

Every checkpoint is what `genlab train` writes, optimiser, averages and all, after six steps of a tiny model on the
handwritten digits that genlab brings along. No path of this machine is in them.

The files of pixelcnnpp, pixel_transformer and row_lstm were written by ae0bab6, the last version before the rooms of
the package were moved and the caches rewritten; all others by e5c9442.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from genlab import cli
from genlab.train.callbacks import Checkpoints

SMALL = {"width": 4, "depth": 1, "feature_width": 8}
NARROW = ["model.encoder.hidden=[4]", "model.decoder.hidden=[4]", "model.latent_dim=2"]
KINDS = {
    "pixelcnn": [f"model.net.{key}={value}" for key, value in SMALL.items()],
    "gated_pixelcnn_label": [
        "model=gated_pixelcnn", "model/context=label", "data/context=label", "model.net.width=4", "model.net.depth=1",
        "model.net.feature_width=6", "model.net.value_width=2",
    ],
    "pixelcnnpp": ["model=pixelcnnpp", "model.net.width=4", "model.net.depth=1", "model.net.resolutions=1"],
    "pixel_transformer": [
        "model=pixel_transformer", "model.net.width=8", "model.net.depth=1", "model.net.attention_heads=2",
    ],
    "row_lstm": ["model=row_lstm", "model.net.width=4", "model.net.depth=1", "model.net.feature_width=4"],
    "pixelcnn_half": [
        *[f"model.net.{key}={value}" for key, value in SMALL.items()], "model/context=image", "data/context=half",
        "model.context.width=4", "model.context.depth=1",
    ],
    "latent_gaussian": ["model=latent_gaussian", *NARROW, "model.features=1"],
    "flow": [
        "model=flow", "model.flow.levels=2", "model.flow.steps=1", "model.net.width=4", "model.net.depth=1",
        "model/coupling=affine", "model/dequantisation=uniform",
    ],
    "gan": ["model=gan", "model.generator.widths=[4]", "model.discriminator.widths=[4]", "model.latent_dim=4"],
    "ppca": ["model=ppca", "model.latent_dim=2"],
    "gaussian_mixture": ["model=gaussian_mixture", "model.components=3"],
    "bottleneck_ae": ["model=bottleneck_ae", *NARROW],
}  # fmt: skip
LIMIT = 100  # test images that are evaluated
RUN = ["train", "trainer=smoke", *KINDS["pixelcnn"], "trainer.max_steps=9"]  # the run folder, interrupted at step 6


def genlab(*words: str) -> None:
    """Run one command. It must succeed."""
    assert cli.run(list(words)) == 0, words


def machine() -> str:
    """What has to be the same for floats to be: PyTorch and the kind of processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"torch {torch.__version__}, {model}, {torch.backends.cpu.get_cpu_capability()}"


def expected(file: Path, kind: str) -> dict:
    """What the base makes of a checkpoint: 4 images at seed 0 and the numbers of the first test images."""
    found: dict = {}
    for name in ("four.png", "four.npy", "eval.json"):  # of the checkpoint before, which no verb overwrites
        Path(name).unlink(missing_ok=True)
    if kind not in ("pixelcnn_half",):  # which needs a picture
        code = ["code=gaussian"] if kind == "bottleneck_ae" else []
        genlab("sample", f"ckpt={file}", "n=4", "seed=0", "device=cpu", "out=four.png", *code)
        found["pixels"] = np.load("four.npy").tobytes().hex()
    genlab("eval", f"ckpt={file}", f"data.limit={LIMIT}", "trainer.accelerator=cpu")
    told = json.loads(Path("eval.json").read_text())
    found["eval"] = {key: value for key, value in told.items() if isinstance(value, float)}
    return found


def interrupted_run(place: Path) -> dict:
    """A run folder as it stands after step 6 of 9, in `place`; what the base makes of it at the end."""
    act = Checkpoints.act

    def and_keep(self, trainer, learner, step):
        act(self, trainer, learner, step)
        if step == 6:
            shutil.copytree("run", place)

    with mock.patch.object(Checkpoints, "act", and_keep):
        genlab(*RUN, "hydra.run.dir=run")
    results = json.loads(Path("run/results.json").read_text())
    keys = ("test", "valid", "steps", "best_step", "bad_steps")
    return {"results": {key: results[key] for key in keys}, "metrics": Path("run/metrics.csv").read_text()}


def main() -> None:
    """Make them all in an empty folder."""
    out = Path(sys.argv[1]).resolve()
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    shutil.rmtree(out / "run", ignore_errors=True)
    (out / "checkpoints").mkdir(parents=True)
    torch.set_num_threads(1)
    told: dict = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for kind, words in KINDS.items():
            genlab("train", "trainer=smoke", "data.limit=64", *words, f"hydra.run.dir={kind}")
            file = out / "checkpoints" / f"{kind}.ckpt"
            shutil.copyfile(f"{kind}/checkpoints/best.ckpt", file)
            told[kind] = expected(file, kind)
        told_of_run = interrupted_run(out / "run")
        os.chdir(out)
    (out / "checkpoints" / "expected.json").write_text(json.dumps(told, indent=1) + "\n")
    (out / "run-expected.json").write_text(json.dumps(told_of_run, indent=1) + "\n")


if __name__ == "__main__":
    main()
