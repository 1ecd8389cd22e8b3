"""Training of a model that fits itself (`core.Fitted`), as a mixture does by EM: its step is the step of the run.

A step sees all training images at once. Everything else is as in any run: counted in steps, logged, validated, saved
and resumed by the same callbacks. The batch of the moment is a clock only, and there is no gradient, so that the
optimiser has nothing to do; no weights are averaged, for no batches' noise is in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from genlab.core import Fitted, RequestError
from genlab.train.learner import Learner, step_seed, sum_and_count
from genlab.train.plan import Plan


def fits_itself(model: object) -> bool:
    """Whether the model is trained by its own steps."""
    return isinstance(model, Fitted) and model.fitted


def check_fitted(data: Mapping[str, Any], plan: Plan) -> None:
    """A RequestError for what makes no sense where every step sees all images as they are."""
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


class FittingLearner(Learner):
    """A `core.Fitted` model."""

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """One step of the model's own."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._buffers_before = [b.clone() for b in self.model.buffers()]
        torch.manual_seed(step_seed(self.seed, 0, batch_idx))
        images = data.split("train").images.to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            terms = self.model.fit_step(images, seed=self.seed)
        self._step_sums = {name: sum_and_count(values) for name, values in terms.items()}
        data.position += 1

    def train_metrics(self) -> dict[str, float]:
        """Without the norm of a gradient that there is not."""
        return {name: value for name, value in super().train_metrics().items() if name != "train/grad_norm"}
