"""`data.batch_size=null`: as many images as suit the device.

A CPU computes hardly faster with large batches, and training learns more from twice as many steps of half as many
images. A GPU needs many images at once to be busy.

The number is written into the run's config.yaml. So all ranks use the same, and a resumed run keeps it.
"""

from __future__ import annotations

from omegaconf import DictConfig

from genlab.data.module import USUAL_BATCH

USUAL = {"cpu": USUAL_BATCH, "gpu": 128}  # images in a batch of one process


def settle(config: DictConfig, accelerator: str) -> None:
    """Replace `data.batch_size=null` in the config of a run by the number for "cpu" or "gpu"."""
    if "batch_size" in config.data and config.data.batch_size is None:
        config.data.batch_size = USUAL[accelerator]
