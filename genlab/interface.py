"""The Python interface: `genlab.train`, `genlab.load` and `genlab.data` do what the verbs do.

>>> run = genlab.train(model="pixelcnn", data="mnist_mini", max_steps=200)
>>> model = genlab.load(run)
>>> images = model.sample(16, seed=0)
>>> test = genlab.data(run).split("test")
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genlab.build import build_data, read_checkpoint
from genlab.core import RequestError, nearest
from genlab.processes import training
from genlab.request.compose import Request
from genlab.request.nodes import keys_without_hydra
from genlab.request.values import format_value

LONGEST = 10_000  # characters of a value


def train(*words: str, **settings: Any) -> Path:
    """Train a model as `genlab train` does. Returns the folder of the run.

    `words` are those of the command line ("model.net.width=32", "model/head=bernoulli"). `settings` are keys without
    their section where that is clear: model="pixelcnn", max_steps=200, width=32. Raises RequestError for a wrong
    request, and RunError if the training fails.
    """
    chosen = [*words, *_words(words, settings)]
    return training.from_request(Request("train", chosen, shlex.join(["genlab", "train", *chosen])))


def data(run: str | Path, *, root: str | Path | None = None, trust: Sequence[str] = ()) -> Any:
    """The data module of a run folder or checkpoint: `data(run).split("test").images`, uint8 (N, C, H, W).

    `root`: the folder of the data sets on this machine. Raises RequestError if the data cannot be read.
    """
    settings = dict(read_checkpoint(run)[1]["data"])
    if root is not None:
        settings["root"] = str(root)
    return build_data(settings, trust)


def _words(words: Sequence[str], settings: dict[str, Any]) -> list[str]:
    """Settings as words of the command line. Raises RequestError for a name that is unknown or not clear."""
    values = {name: format_value(value, LONGEST) for name, value in settings.items()}
    choices = [f"{name}={values[name]}" for name in ("experiment", "model", "data") if name in values]
    config = Request("train", [*words, *choices], "").check([*words, *choices])
    keys = keys_without_hydra(config)
    found = list(choices)
    for name in values.keys() - {"experiment", "model", "data"}:
        ends = [key for key in keys if key == name or key.endswith(f".{name}")]
        best = [name] if name in keys else ends
        if len(best) != 1:
            names = {key.rpartition(".")[2] for key in keys}
            why = f"it may be {' or '.join(best)}: say which, as a word" if best else nearest(name, names)
            raise RequestError(f"{name}={values[name]}: {why}")
        found.append(f"{best[0]}={values[name]}")
    return found
