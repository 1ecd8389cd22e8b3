"""`genlab show`: pictures of what a model has learnt, one PNG each (listed in `genlab/viz/pictures.py`)."""

from __future__ import annotations

from torch import nn

from genlab.build import find_checkpoint
from genlab.core import RequestError, nearest
from genlab.request.checkpoints import check_split, open_data, open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.numbers import check_at_least
from genlab.request.outputs import output_folder
from genlab.request.progress import with_progress
from genlab.viz.pictures import PICTURES, draw, everything
from genlab.viz.subject import Subject


def command(request: Request) -> None:
    """Check the request, draw the pictures, print the files written and why others were left out."""
    config, _ = split_hydra(request.config())
    if config.what != "all" and config.what not in PICTURES:
        raise RequestError(f"what={config.what} is not known: {nearest(str(config.what), ['all', *PICTURES])}")
    check_split(config)
    if config.units is not None:
        check_at_least(config, "units", 1)
    model, run, _ = open_model(config, nn.Module, "be shown")
    metrics = find_checkpoint(config.ckpt).parent.parent / "metrics.csv"
    subject = Subject(model, open_data(config, run), str(config.split), metrics, config.units, with_progress)
    names = everything(model, subject.data) if config.what == "all" else [str(config.what)]
    folder = output_folder(config, "pictures", [f"{name}.png" for name in names])
    written, reasons = draw(subject, names, folder)
    if not written:
        raise RequestError("; ".join(reasons))
    print("\n".join(written + [f"left out: {reason}" for reason in reasons]))
