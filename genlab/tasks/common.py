"""What the verbs that use a trained model share: checks of the request, the model on its device, whole files."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.progress import Progress
from torch import Tensor

from genlab.build import build_data, restore
from genlab.core import ImageSpec, RequestError
from genlab.train.checkpoint import atomically
from genlab.viz import save_grid


def open_model(config: DictConfig, capability: type, does: str, *others: type) -> tuple[Any, dict[str, Any], ImageSpec]:
    """(model on its device, run config, spec) of `ckpt=`. RequestError when the model cannot do what the verb needs
    and is none of the `others` that the verb has a way with.
    """
    model, run = restore(config.ckpt, weights=config.weights, trust=config.trust)
    if not isinstance(model, (capability, *others)):
        raise RequestError(f"{type(model).__name__} cannot {does}: it has no {capability.__name__.lower()} side")
    return model.to(choose_device(config.device)), run, model.spec  # type: ignore[return-value]


def data_of(config: DictConfig, run: dict[str, Any]) -> Any:
    """The data set the checkpoint was trained on, from where it is on this machine."""
    data = dict(run["data"])
    if isinstance(data.get("root"), str) and not Path(data["root"]).expanduser().is_dir():
        data["root"] = None  # of another machine; a checkpoint does not say which folders are made on this one
    for key, value in config.data.items():
        if value is not None:
            if key == "path" and "path" not in data:
                raise RequestError(
                    f"data.path={value}: this checkpoint was trained on {run['names']['data']}, use data.root="
                )
            data[key] = value
    if config.batch_size is not None:
        data["eval_batch_size"] = config.batch_size
    made, spec = build_data(data, config.trust), run["spec"]
    found = made.spec
    if (found.shape, found.levels) != (spec.shape, spec.levels):
        raise RequestError(
            f"the data has images of {found.shape} (channels, height, width) with {found.levels} levels, and this "
            f"checkpoint is for {spec.shape} with {spec.levels}"
        )
    return made


def choose_device(name: str) -> torch.device:
    """auto | cpu | cuda -> a device that is there."""
    if name not in ("auto", "cpu", "cuda"):
        raise RequestError(f"device={name} is not known: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise RequestError("device=cuda: this machine has no usable CUDA device; use device=cpu or device=auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def at_least(config: DictConfig, key: str, least: int) -> None:
    """RequestError unless config[key] is a whole number of at least `least`."""
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RequestError(f"{key}={value}: expected a whole number of at least {least}")


def check_temperature(config: DictConfig) -> None:
    """RequestError unless the temperature is a finite positive number."""
    t = config.temperature
    if not isinstance(t, (int, float)) or isinstance(t, bool) or not (0 < t < math.inf):
        raise RequestError(f"temperature={t}: expected a number above 0 (1 is the model's own distribution)")


def check_seed(config: DictConfig) -> None:
    """RequestError unless the seed fits torch's generators."""
    if not isinstance(config.seed, int) or isinstance(config.seed, bool) or not 0 <= config.seed < 2**63:
        raise RequestError(f"seed={config.seed}: expected a whole number from 0 to 2^63 - 1")


def writable(key: str, value: str, *suffixes: str) -> Path:
    """The output path of `key`, checked before any work: right ending, existing folder, permission."""
    path = Path(str(value)).expanduser()
    if path.suffix.lower() not in suffixes:
        raise RequestError(f"{key}={value}: expected a file name ending in {' or '.join(suffixes)}")
    folder = path.parent
    if not folder.is_dir():
        raise RequestError(f"{key}={value}: the folder {folder} does not exist")
    try:
        if path.is_dir():
            raise OSError
        tempfile.TemporaryFile(dir=folder).close()  # trying is the only test that no file system fools
    except OSError as error:
        raise RequestError(f"{key}={value}: cannot write there") from error
    return path


def check_drawing(config: DictConfig) -> Path:
    """What every verb that draws images asks of `n`, `temperature`, `seed` and `out`; the PNG's path."""
    at_least(config, "n", 1)
    check_temperature(config)
    check_seed(config)
    return check_out(config)


def check_out(config: DictConfig) -> Path:
    """The PNG that `out` names, checked as `writable` does, together with the .npy beside it."""
    out = writable("out", config.out, ".png")
    writable("out", str(out.with_suffix(".npy")), ".npy")
    return out


def save_drawing(
    out: Path, images: Tensor, spec: ImageSpec, shown: Tensor, shown_spec: ImageSpec, columns: int | None = None
) -> None:
    """The grid of `shown` as PNG; beside it `images` (N, C, H, W) as .npy, uint8 when they fit. Whole files or none."""
    save_grid(out, shown, shown_spec, columns)
    path = out.with_suffix(".npy")
    with atomically(path) as temporary, open(temporary, "wb") as file:
        np.save(file, images.cpu().numpy().astype(np.uint8 if spec.levels <= 256 else np.int64))


def with_progress(what: str, total: int, work: Callable[[Callable[[int], None]], Any]) -> Any:
    """Run work(advance) under a progress bar on standard error when that is a terminal."""
    from rich.console import Console

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        return work(lambda done: None)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        return work(lambda done: progress.advance(task, done))
