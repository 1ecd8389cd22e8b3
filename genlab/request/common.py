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

from genlab.build import build_data, read_checkpoint, restore
from genlab.build.models import model_name
from genlab.core import Features, ImageSpec, Likelihood, Pushforward, RequestError, RunError
from genlab.data import fingerprint
from genlab.data.module import SPLITS
from genlab.train.checkpoint import atomically
from genlab.viz import save_grid

TEMPERATURES = 1e-9, 1e4  # beyond, logits and latents are no longer finite in float32


def open_model(config: DictConfig, capability: type, does: str, *others: type) -> tuple[Any, dict[str, Any], ImageSpec]:
    """(model on its device, run config, spec) of `ckpt=`. RequestError when the model cannot do what the verb needs
    and is none of the `others` that the verb has a way with.
    """
    model, run = restore(config.ckpt, weights=config.weights, trust=config.trust)
    if not isinstance(model, (capability, *others)):
        raise RequestError(f"{model_name(model)} cannot {does}: it has no {capability.__name__.lower()} side")
    model.to(choose_device(config.device))
    check_sound(model, config.ckpt)
    return model, run, model.spec  # type: ignore[return-value]


@torch.no_grad()
def check_sound(model: Any, ckpt: object) -> None:
    """RunError for a model whose numbers are not finite on an image of noise: what it draws would mean nothing."""
    spec: ImageSpec = model.spec
    device = next(model.parameters()).device
    x = torch.randint(spec.levels, (1, *spec.shape), generator=torch.Generator().manual_seed(0)).to(device)
    context = None
    if getattr(model, "conditioning", "none") == "label":
        context = x.new_zeros(1)
    elif getattr(model, "conditioning", "none") == "image" and spec.context is not None:
        context = x.new_zeros(1, *spec.context.shape)
    with torch.random.fork_rng(devices=[]):
        found = list(model.features(x, context).values()) if isinstance(model, Features) else []
        if isinstance(model, Pushforward):
            found.append(model.decode(model.prior(1), context))
        if isinstance(model, Likelihood):
            found.append(torch.nan_to_num(model.log_prob(x, context), nan=math.nan))  # noise may be impossible
    if not all(bool(each.isfinite().all()) for each in found):
        raise RunError(f"ckpt={ckpt} computes numbers that are not finite: its training had gone wrong")


def data_of(config: DictConfig, run: dict[str, Any], *, warn: bool = True) -> Any:
    """The data set the checkpoint was trained on, from where it is on this machine.

    Where it is not what the run had, of `split` or of any split, that is told on standard error if `warn`, and kept in
    the attribute `others` (`fingerprint.differences`).
    """
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
    splits = [config.split] if "split" in config else SPLITS
    card = read_checkpoint(config.ckpt)[0]["genlab"]
    made.others = fingerprint.differences(card, made, splits, fewer=config.data.limit is not None)
    if warn:
        for split, counts in made.others.items():
            print(f"warning: {fingerprint.sentence(split, counts)}", file=sys.stderr)
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
    """RequestError unless the temperature is a positive number with which the model's can be multiplied and divided."""
    t, (least, most) = config.temperature, TEMPERATURES
    if not isinstance(t, (int, float)) or isinstance(t, bool) or not t > 0:
        raise RequestError(f"temperature={t}: expected a number above 0 (1 is the model's own distribution)")
    if not least <= t <= most:
        raise RequestError(f"temperature={t}: expected a number from {least:g} to {most:g} (1 is the model's own)")


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
