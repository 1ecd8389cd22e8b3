"""A model, data and configs that train in milliseconds, shared by the tests of training, resuming and launching."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, distributed, nn

from genlab.core import Completion, ImageSpec
from genlab.data import ImageData, Split, Splits
from genlab.processes import training
from genlab.train.checkpoint import read

POISON = 255  # a training batch full of this grey level makes `Trap` answer NaN


class Trap(nn.Module):
    """Zero for an image, NaN for a poisoned one."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B,)."""
        return torch.where((x == POISON).flatten(1).all(1), math.nan, 0.0)


class Tiny(nn.Module):
    """Independent pixels: exact, normalised, with noise and running statistics in its training loss only."""

    exact = True
    completion = "exact"

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.spec = spec
        self.logits = nn.Parameter(0.01 * torch.randn(*spec.shape, spec.levels))
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.trap = Trap()

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B,) nats."""
        table = self.logits.float().log_softmax(-1).expand(len(x), *self.logits.shape)
        return table.gather(-1, x.long()[..., None]).flatten(1).sum(1)

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Terms (B,) that depend on the batch and on noise, and are NaN for a poisoned batch."""
        fuss = self.net(torch.randn(len(x), 4, device=x.device)).square().flatten() + self.trap(x)
        return {"loss": 0.1 * fuss - self.log_prob(x), "fuss": fuss}

    def sample(self, n: int, *, context=None, temperature=1.0, generator=None) -> Tensor:
        """(n, C, H, W)."""
        p = (self.logits / temperature).softmax(-1).flatten(0, -2)
        return torch.multinomial(p, n, replacement=True, generator=generator).T.reshape(n, *self.spec.shape)

    def complete(self, x, known, *, context=None, particles=1, temperature=1.0, generator=None) -> Completion:
        """Independent pixels: the unknown ones are sampled."""
        drawn = self.sample(len(x), generator=generator)
        return Completion(torch.where(known[:, None], x.long(), drawn), torch.ones(len(x)))


class Netless(Tiny):
    """A model that cannot be compiled."""

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__(spec)
        del self.net


class Dots:
    """Random 4 x 4 images."""

    name = "dots"

    def load(self, root: Path | None) -> Splits:
        """96 to train and validate on, 20 to test on."""
        x = torch.randint(0, 255, (116, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
        labels = torch.zeros(116, dtype=torch.int64)
        return Splits(Split(x[:96], labels[:96]), Split(x[96:], labels[96:]))


class DotsData(ImageData):
    """`poison`: numbers of the training batches that are poisoned, on rank `poisoned_rank` alone.

    `crash_at`: raise instead of giving this batch. `sleep`: seconds a batch takes.
    """

    def __init__(self, poison=(), poisoned_rank=0, crash_at=None, sleep=0.0, **options: Any) -> None:
        super().__init__(Dots(), **options)
        self.poison, self.poisoned_rank, self.crash_at, self.sleep = set(poison), poisoned_rank, crash_at, sleep

    def training_batch(self, number: int):
        """The batch of ImageData, or a poisoned one."""
        time.sleep(self.sleep)
        if self.crash_at is not None and number >= self.crash_at:
            raise Crash
        batch = super().training_batch(number)
        rank = distributed.get_rank() if distributed.is_initialized() else 0
        if number in self.poison and rank == self.poisoned_rank:
            batch = batch._replace(images=torch.full_like(batch.images, POISON))
        return batch


class Crash(BaseException):
    """A process that ends without a chance to save."""


def config(**changes: Any) -> DictConfig:
    """A config as the command line composes it; `changes` are dotted keys with __ for the dot."""
    base = {
        "seed": 3,
        "compile": False,
        "trust": ["trainees"],
        "names": {"model": "tiny", "data": "dots", "experiment": None},
        "model": {"_target_": "trainees.Tiny"},
        "data": {"_target_": "trainees.DotsData", "validation": 16, "batch_size": 8, "eval_batch_size": 5, "seed": 3},
        "optim": {
            "lr": 0.05, "betas": [0.9, 0.99], "weight_decay": 0.01, "warmup": 2, "schedule": "cosine", "fused": True,
        },
        "trainer": {
            "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32",
            "max_steps": 12, "accumulate_grad_batches": 1, "gradient_clip_val": 1.0,
        },
        "logger": {"kind": "csv", "project": "genlab"},
        "train": {
            "ema": 0.9, "log_every": 3, "valid_every": 5, "sample_every": 6, "checkpoint_every": 4,
            "max_bad_steps": 3, "patience": None, "samples": 4, "minutes": None, "epochs": None, "pause_after": None,
            "repeat": None,
        },
    }  # fmt: skip
    made = OmegaConf.create(base)
    for key, value in changes.items():
        OmegaConf.update(made, key.replace("__", "."), value, force_add=True)
    return made


def trained(folder: Path, **changes: Any) -> Path:
    """Train a Tiny in `folder`."""
    training.run(config(**changes), folder, "genlab train")
    return folder


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    """A checkpoint of a run folder."""
    return read(folder / "checkpoints" / f"{name}.ckpt")


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves behind, without times, command lines, its config and the commit."""
    kept: dict[str, Any] = {"metrics": (folder / "metrics.csv").read_text()}
    for picture in sorted(folder.glob("*/*.png")):
        kept[str(picture.relative_to(folder))] = grid_of(picture)
    results = json.loads((folder / "results.json").read_text())
    kept["results"] = {k: results[k] for k in ("test", "valid", "steps", "best_step", "bad_steps")}
    for name in ("last", "best"):
        state = checkpoint(folder, name)
        state["genlab"] = {k: v for k, v in state["genlab"].items() if k not in ("seconds", "config", "commit")}
        kept[name] = state
    return kept


def grid_of(picture: Path) -> bytes:
    """The pixels of a grid without its caption, which names the run: all down to the last line of the grey border.
    Of another picture, all pixels.
    """
    pixels = np.asarray(Image.open(picture))
    (grey,) = (pixels[:, :2].reshape(len(pixels), -1) == 128).all(1).nonzero()
    return pixels[: grey[-1] + 1 if len(grey) else None].tobytes()


def same(a: Any, b: Any, path: str = "") -> None:
    """Assert equality to the bit, tensors and all."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{path}/{i}")
    elif isinstance(a, Tensor):
        assert a.dtype == b.dtype, path
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def environment() -> dict[str, str]:
    """The environment of a child process that imports this module."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
