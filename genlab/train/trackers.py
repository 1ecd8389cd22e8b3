"""Trackers: packages that show the curves and pictures of runs. Their packages are imported when one is chosen.

    tensorboard    files in tensorboard/ of the run folder; `tensorboard --logdir outputs` shows them
    wandb          Weights & Biases: a page on its server, or with WANDB_MODE=offline files in wandb/ of the run folder
    trackio        a data base on this machine, without an account; `trackio show --project genlab` shows it

Each is made from the folder of the run, the number of optimiser steps that it has done, a project (a group of runs on
one page) and the config. A resumed run continues its curves. Where a killed run had got further than its last
checkpoint, TensorBoard drops the later part; the other two keep it and show both.
"""

from __future__ import annotations

import re
import sys
import uuid
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from genlab.core import RequestError
from genlab.system.atomic import write_text


class TensorBoard:
    """Event files, by PyTorch's writer."""

    package = "tensorboard"
    install = "pip install -e '.[tensorboard]'"

    def __init__(self, folder: Path, step: int, project: str, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an earlier attempt wrote after the checkpoint is hidden.
        self._writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else 0)
        text = OmegaConf.to_yaml(OmegaConf.create(config))
        self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), step)

    def numbers(self, metrics: dict[str, float], step: int) -> None:
        """A point of every curve."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """A picture under the slider of `name`."""
        with Image.open(path) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self, status: int) -> None:
        """Write what is left."""
        self._writer.close()


class WandB:
    """Weights & Biases. The x axis of every curve is our step, because theirs may not go back when a run resumes."""

    package = "wandb"
    install = "pip install wandb"

    def __init__(self, folder: Path, step: int, project: str, config: dict[str, Any]) -> None:
        import wandb

        settings_file = folder / "wandb" / "settings"
        if settings_file.exists():  # wandb would send the user's key to the server that is named in it
            raise RequestError(f"{settings_file} is not of this run: genlab never writes it; delete it")
        self._image, self._finish = wandb.Image, wandb.finish
        self._run = wandb.init(
            project=project, name=folder.name, id=_identity(folder), resume="allow", dir=folder, config=config,
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")

    def numbers(self, metrics: dict[str, float], step: int) -> None:
        """A point of every curve."""
        self._run.log({**metrics, "step": step})

    def picture(self, name: str, path: Path, step: int) -> None:
        """A picture in the panel `name`."""
        self._run.log({name: self._image(str(path)), "step": step})

    def close(self, status: int) -> None:
        """Send what is left, and end the run, or the next one of a sweep would write into it."""
        self._finish(exit_code=status)


def _identity(folder: Path) -> str:
    """The run's identity at Weights & Biases, kept in the folder so that a resumed run continues the same curves."""
    path = folder / "wandb" / "id.txt"
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:8] + "\n")
    identity = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", identity):  # it becomes part of a path
        raise RequestError(f"{path} is not the name of a run at Weights & Biases: delete it to begin another curve")
    return identity


class Trackio:
    """Trackio's data base, in the user's cache or in $TRACKIO_DIR. It knows a run by its name within the project."""

    package = "trackio"
    install = "pip install -e '.[trackio]'"

    def __init__(self, folder: Path, step: int, project: str, config: dict[str, Any]) -> None:
        with redirect_stdout(sys.stderr):  # where it says how to see the page
            import trackio

            self._image, self._finish = trackio.Image, trackio.finish
            name = "-".join(folder.absolute().parts[-2:])  # the jobs of every sweep are called 0, 1, …
            self._run = trackio.init(project=project, name=name, config=config, resume="allow" if step else "never")

    def numbers(self, metrics: dict[str, float], step: int) -> None:
        """A point of every curve."""
        self._run.log(dict(metrics), step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """A picture in the table of `name`."""
        self._run.log({name: self._image(path)}, step=step)

    def close(self, status: int) -> None:
        """Write what is left."""
        with redirect_stdout(sys.stderr):
            self._finish()


TRACKERS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}
