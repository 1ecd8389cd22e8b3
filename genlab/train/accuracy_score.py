"""The classification accuracy score (Ravuri & Vinyals 2019, arXiv:1905.10887): what samples teach about real images.

A classifier is trained on labelled samples alone and tested on real images: whoever draws too few kinds of a class, or
the wrong ones, loses accuracy. Ours repeats the recipe of a given classifier, all its steps, and so compares with that
one's accuracy and with the same recipe on as many real images. A tenth of the samples is set aside to choose by.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genlab import viz
from genlab.build import build, restore
from genlab.core import ImageSpec
from genlab.data import ImageData, Split, Splits
from genlab.measure.evaluation import evaluate_split
from genlab.measure.quality import Estimate
from genlab.processes import launch
from genlab.system.device import choose_device
from genlab.train import provenance
from genlab.train.fit import fit
from genlab.train.plan import Plan

SET_ASIDE = 0.1


@dataclass
class Drawn:
    """Labelled samples as a data set whose test split is real."""

    train: Split
    test: Split
    classes: int
    name: str = "samples"

    def load(self, root: Path | None) -> Splits:
        """As `data.Source`."""
        return Splits(self.train, self.test, tuple(map(str, range(self.classes))))


def accuracy_score(run: dict[str, Any], spec: ImageSpec, train: Split, test: Split, config: DictConfig) -> Estimate:
    """Test accuracy of a fresh classifier, made and trained as `run` says, on samples (n, C, H, W) of `spec`.

    `config`: `seed`, `device` and `trust` of the request.
    """
    device = choose_device(config.device)
    settings: Any = OmegaConf.to_container(OmegaConf.merge(run, {
        "seed": config.seed, "compile": False, "init": None, "logger": {"kind": "none"}, "train": {"sample_every": 0},
        "trainer": {
            "accelerator": "gpu" if device.type == "cuda" else "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto",
        },
    }))  # fmt: skip
    data = ImageData(
        Drawn(train, test, spec.classes), validation=SET_ASIDE, seed=config.seed,
        **{key: run["data"][key] for key in ("batch_size", "eval_batch_size", "augment") if key in run["data"]},
    )  # fmt: skip
    torch.manual_seed(config.seed)
    model = build(run["model"], spec, config.trust)
    card = {
        "config": OmegaConf.to_yaml(OmegaConf.create(settings)), "spec": asdict(spec),
        "version": provenance.genlab_version(), "commit": provenance.commit(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder, plan = Path(name), Plan.of(settings["trainer"])
        # Nothing of it is kept, so a signal ends it at once.
        fit(model, data, settings, plan, folder, card=card, draw=viz.save_grid, environment=launch.environment())
        judged, _ = restore(folder, trust=config.trust)
        found = evaluate_split(judged.to(device), data, "test", weights=str(judged.weights), seed=config.seed).details
    return Estimate(found["accuracy"], found["standard_error"])
