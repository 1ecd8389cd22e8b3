"""The classification accuracy score (Ravuri & Vinyals 2019, arXiv:1905.10887) of labelled samples.

A new classifier is trained on labelled samples only and tested on real images. A model that draws too few kinds of a
class, or images of other classes, loses accuracy. Ravuri & Vinyals train a ResNet-50 on ImageNet. Ours trains the model
of a given classifier with all settings of its run, so the score can be compared with the accuracy of that classifier,
and with the score of real training images instead of samples. A tenth of the samples is the validation split.

n images (n, C, H, W).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from genlab.build import build, restore
from genlab.core import ImageSpec
from genlab.data import ImageData, Split, Splits
from genlab.measure.evaluation import evaluate_split
from genlab.measure.feature_distances import Estimate
from genlab.train import provenance
from genlab.train.fit import fit
from genlab.train.plan import Plan
from genlab.train.run import Run

VALIDATION_SHARE = 0.1


@dataclass
class SamplesAndRealTest:
    """A data source (`data.Source`) with labelled samples for training and real images for the test."""

    train: Split
    test: Split
    classes: int
    name: str = "samples"

    def load(self, root: Path | None) -> Splits:
        """The two splits; nothing is read from `root`."""
        return Splits(self.train, self.test, tuple(map(str, range(self.classes))))


def accuracy_score(
    run: dict[str, Any],
    train: Split,
    test: Split,
    *,
    spec: ImageSpec,
    seed: int,
    device: torch.device,
    trust: Sequence[str] = (),
) -> Estimate:
    """Test accuracy, with its standard error, of a new classifier that is built and trained by the config `run`.

    `train`: samples (n, C, H, W) with labels (n,); `test`: real images. `spec`: the images and their classes. `trust`:
    packages other than genlab that the config may use.
    """
    settings: Any = OmegaConf.to_container(OmegaConf.merge(run, {
        "seed": seed, "compile": False, "init": None, "logger": {"kind": "none"}, "train": {"sample_every": 0},
        "trainer": {
            "accelerator": "gpu" if device.type == "cuda" else "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto",
        },
    }))  # fmt: skip
    data = ImageData(
        SamplesAndRealTest(train, test, spec.classes), validation=VALIDATION_SHARE, seed=seed,
        **{key: run["data"][key] for key in ("batch_size", "eval_batch_size", "augment") if key in run["data"]},
    )  # fmt: skip
    torch.manual_seed(seed)
    model = build(run["model"], spec, trust)
    card = {
        "config": OmegaConf.to_yaml(OmegaConf.create(settings)), "spec": asdict(spec),
        "version": provenance.genlab_version(), "commit": provenance.commit(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder, plan = Path(name), Plan.of(settings["trainer"])
        fit(Run(model, data, settings, plan, folder, card))
        best, _ = restore(folder, trust=trust)
        result = evaluate_split(best.to(device), data, "test", weights=str(best.weights), seed=seed).details
    return Estimate(result["accuracy"], result["standard_error"])
