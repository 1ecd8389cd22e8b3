"""Full-batch training of a model with its own training steps (`core.Fitted`), such as a mixture by EM.

An optimiser step of the run is one `fit_step` of the model on all training images at once. Everything else is as in any
run: the same callbacks log, validate and save it, and it can be resumed. The batches of the data module only
count the steps. There is no gradient, so the optimiser does nothing. No weights are averaged, because there
is no noise from batches to average out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from genlab.core import Fitted, RequestError
from genlab.train.learner import Learner, step_seed
from genlab.train.plan import Plan


def uses_full_batch(model: object) -> bool:
    """True if the model is trained by its own steps on all images."""
    return isinstance(model, Fitted) and model.fitted


def check_full_batch(data: Mapping[str, Any], plan: Plan) -> None:
    """Raise RequestError for settings that are not possible if every step uses all images unchanged."""
    if plan.processes > 1:
        raise RequestError(
            f"trainer.devices={plan.processes}: this model is fitted to all images at once, by one process"
        )
    if plan.accumulate > 1:
        raise RequestError(
            f"trainer.accumulate_grad_batches={plan.accumulate}: this model is fitted to all images at once, without "
            "batches"
        )
    for key, value, plain in (("augment", data.get("augment"), "none"), ("binarize", data.get("binarize"), "static")):
        if value in ("hflip", "dynamic"):
            raise RequestError(
                f"data.{key}={value}: this model is fitted to one set of images, the same at every step; "
                f"choose data.{key}={plain}"
            )


class FullBatchLearner(Learner):
    """Trains a `core.Fitted`; everything else as `Learner`."""

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """One `fit_step` of the model. Returns None: there is no loss to differentiate."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.guard.begin_step(self.model)
        torch.manual_seed(step_seed(self.seed, 0, batch_idx))
        images = data.split("train").images.to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            terms = self.model.fit_step(images, seed=self.seed)
        self._step_sums.add_values(terms)
        data.position += 1

    def train_metrics(self) -> dict[str, float]:
        """As the learner's, without the norm of a gradient."""
        return {name: value for name, value in super().train_metrics().items() if name != "train/grad_norm"}
