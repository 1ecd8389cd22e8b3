"""What a run prints before it trains: one line about model, data, length and folder; one more if the images are few."""

from __future__ import annotations

from typing import Any

from genlab.build.models import model_name
from genlab.data import Folder
from genlab.train.run import Run

FEW = 1000  # training images of a folder, below which a large model learns them by heart
RECIPE, PATIENCE = "cpu_pixelcnn_folder", 5  # proposals: an experiment, a number of validations


def opening(run: Run, note: str = "") -> str:
    """The text. `note`: why this recipe, length or precision was chosen, where the request leaves them open."""
    data: Any = run.data
    count = sum(p.numel() for p in run.model.parameters())
    parts = [
        f"{run.config['names']['model'] or model_name(run.model)}, {count:,} parameters",
        getattr(data, "summary", data.name),
        length(run),
        note,
        str(run.folder),
    ]
    return "\n".join(filter(None, ["; ".join(filter(None, parts)), few_images(run)]))


def length(run: Run) -> str:
    """How long the run will train, as the request says it."""
    train, steps = run.config["train"], run.plan.max_steps
    if steps:
        begun = run.checkpoint["genlab"]["step"] if run.checkpoint else 0
        text = f"step {begun:,} to {steps:,}" if begun else f"{steps:,} steps"
    else:
        text = f"{train['epochs']:g} epochs" if train.get("minutes") is None else f"{train['minutes']:g} minutes"
    return text if train["patience"] is None else f"at most {text}"


def few_images(run: Run) -> str:
    """A sentence about a small folder of images and what helps, except what is in use; "" for all other data."""
    data: Any = run.data
    if not isinstance(getattr(data, "source", None), Folder) or len(data.split("train").labels) >= FEW:
        return ""
    recipe = "" if run.config["names"]["experiment"] else f"experiment={RECIPE}, or "
    advice = ["mirror images (data.augment=hflip)"] if data.augment == "none" else []
    advice += [f"early stopping (train.patience={PATIENCE})"] if run.config["train"]["patience"] is None else []
    return (
        f"{len(data.split('train').labels)} training images are few, and a large model learns them by heart; what "
        f"helps: {recipe}{', '.join([*advice, 'a smaller model'])}"
    )
