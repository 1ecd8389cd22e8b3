"""Training of the two players of a GAN (`core.Adversarial`). An optimiser step is a turn of one player.

`critic_steps` turns of the discriminator are followed by one of the generator, each on its own batch. There are
two time scales (Heusel et al. 2017, arXiv:1706.08500): the discriminator's learning rate is `optim.discriminator_lr`,
the generator's `optim.lr`. The two players are two groups of weights of one optimiser. Adam skips weights without a
gradient and their moments, so the weights of the other player do not change.

A turn is an ordinary optimiser step, so everything else is as in `Learner`: randomness, resuming, skipped steps,
signals, several ranks. There are two differences. The loss is not in bits/dim. Only the generator's weights are
averaged, after its own turns; the discriminator is evaluated with its newest weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.data.batches import context_of
from genlab.train import ema
from genlab.train.learner import Learner, step_seed


class AdversarialLearner(Learner):
    """Trains a `core.Adversarial`; everything else as `Learner`."""

    player = "discriminator"  # the player of the current turn

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean loss of the player whose turn it is; all batches of an optimiser step are one turn."""
        if not self._batches:
            cycle = self.model.critic_steps + 1
            self.player = "generator" if self.global_step % cycle == cycle - 1 else "discriminator"
            # The other player's gradients are not needed, and would cost a third of the backward pass.
            self.model.generator.requires_grad_(self.player == "generator")
            self.model.discriminator.requires_grad_(self.player == "discriminator")
        return super().training_step(batch, batch_idx)

    def _terms(self, number: int, batch: Any) -> dict[str, Tensor]:
        torch.manual_seed(step_seed(self.seed, self.global_rank, number))
        return self.model.turn(self.player, batch.images, context_of(self.model, batch))

    def _mean_loss(self, terms: dict[str, Tensor]) -> Tensor:
        return terms["loss"].mean()

    def _average(self) -> None:
        self.updates += self.player == "generator"
        if self.ema is None:
            return
        average: Any = self.ema
        if self.player == "generator":
            ema.update(average.generator, self.model.generator, ema.decay_at(self.updates, self.decay))
        ema.update(average.discriminator, self.model.discriminator, 0.0)

    def make_optimizer(self, fused: bool) -> torch.optim.Optimizer:
        """One optimiser, with a group of weights for each player."""
        return self.optim.optimizer(self.model.generator, fused=fused, discriminator=self.model.discriminator)

    def train_metrics(self) -> dict[str, float]:
        """As the learner's, without the mean over the losses of both players, which has no meaning."""
        means = super().train_metrics()
        means.pop("train/loss", None)
        return means
