"""The length of a run: `trainer.max_steps`, `train.minutes` or `train.epochs`, exactly one of the three.

The one on the command line wins over those of an experiment and of the data set. If there is none at all, the run gets
`USUAL_MINUTES`.
"""

from __future__ import annotations

from collections.abc import Collection

from omegaconf import DictConfig, OmegaConf

from genlab.core import RequestError
from genlab.request.values import format_value

KEYS = ("trainer.max_steps", "train.minutes", "train.epochs")
USUAL_MINUTES = 55


def choose(config: DictConfig, given: Collection[str]) -> None:
    """Set those of `KEYS` that do not count to null, in place. `given`: the keys on the command line.

    Raises RequestError if two of them are given.
    """
    values = {key: OmegaConf.select(config, key) for key in KEYS}
    present = [key for key in KEYS if values[key] is not None]
    chosen = [key for key in present if key in given] or present
    if len(chosen) > 1:
        listed = " and ".join(f"{key}={format_value(values[key])}" for key in chosen)
        raise RequestError(f"{listed} each say how long to train: give one of them, and null for the others")
    for key in KEYS:
        if key not in chosen and values[key] is not None:
            OmegaConf.update(config, key, None)
    if not chosen:
        config.train.minutes = USUAL_MINUTES
