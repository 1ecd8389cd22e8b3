"""The experiment that `genlab train` takes where the command line names none and gives no length.

`genlab train model=pixelcnn data=cifar10` should give a good model without more words. What is good depends on the
machine: on a CPU the experiment `cpu_MODEL_DATA`, which takes about an hour, and on a GPU `MODEL_DATA`, the published
size and length. If there is no such experiment, the run gets `length.USUAL_MINUTES` with the usual settings. A sweep
takes no experiment by itself, because its runs are to differ in nothing but their overrides.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from genlab.core import RequestError
from genlab.request import length
from genlab.request.compose import NO_EXPERIMENT, Request
from genlab.request.folders import groups


def taken(request: Request) -> tuple[Request, str]:
    """(the request, with the experiment if it takes one; a line that says so, or that it trains for the usual time)."""
    given = {override.key_or_group for override in request.parse(request.overrides)}
    if given & {*length.KEYS, "experiment", "init"} or NO_EXPERIMENT in request.words:
        return request, ""
    config = request.config()
    if config.train.minutes != length.USUAL_MINUTES:  # the data set gives a length
        return request, ""
    names, accelerator = config.hydra.runtime.choices, config.trainer.accelerator
    gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    experiment = f"{'' if gpu else 'cpu_'}{names['model']}_{names['data']}"
    if experiment in groups(request.folders)["experiment"]:
        longer = Request(request.verb, [f"experiment={experiment}", *request.words], request.command)
        if _is_about(longer, experiment, names):
            return longer, f"experiment={experiment}: no length was given, and {NO_EXPERIMENT} leaves it out"
    return request, "no length was given, and train.minutes= changes it"


def _is_about(request: Request, experiment: str, names: Mapping[str, str]) -> bool:
    """False if the experiment contradicts the other words of the request, or is about another model or other data."""
    try:
        request.config()
    except RequestError:
        return False
    choices = request.check([f"experiment={experiment}"]).hydra.runtime.choices
    return all(choices[group] == names[group] for group in ("model", "data"))
