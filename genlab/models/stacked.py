"""Layer-wise pretraining: each layer is trained on the clean code of the one below, then all layers together.

Stacked denoising autoencoders (Vincent et al. 2010, JMLR 11, sec. 3.5; the greedy idea is Bengio et al. 2007, NIPS 19).
Layer l of the encoder and its mirror image in the decoder are trained for `pretrain_steps` batches. The input is
the output of the layers below for a clean image; it is corrupted, and the two layers learn to undo the corruption. The
layers below do not change meanwhile. The remaining steps train the whole autoencoder.

All of this is one run with one learning-rate schedule. Which layer is trained depends on the number of batches so
far, a buffer of the model, so a resumed run continues with the right layer. In evaluation mode the objective is that of
the whole autoencoder.

B images.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.core import ImageSpec, RequestError
from genlab.models.autoencoder import Autoencoder
from genlab.models.conditioning import check_context
from genlab.system.device import Mirror

CONFIGURABLE = {"model": ("StackedAutoencoder",)}


class StackedAutoencoder(Autoencoder):
    """An autoencoder of mirrored linear layers that is pretrained layer by layer. No head: squared error throughout."""

    partly_trained = True  # tells DDP that some steps compute no gradients of some weights

    step: Tensor

    def __init__(self, spec: ImageSpec, *, pretrain_steps: int, **parts: Any) -> None:
        super().__init__(spec, **parts)
        layers = [*self.encoder.layers, *self.decoder.layers]
        shapes = [() if layer.weight is None else tuple(layer.weight.shape) for layer in layers]
        if any(len(s) != 2 for s in shapes) or shapes != [s[::-1] for s in reversed(shapes)] or self.head is not None:
            raise RequestError(
                "layer-wise pretraining needs an mlp encoder, its mirror image as decoder (hidden widths in reverse), "
                "weights of their own and model/head=none"
            )
        if pretrain_steps < 0:
            raise RequestError(f"pretrain_steps must be 0 or more, got {pretrain_steps}")
        self.pretrain_steps, self.depth = pretrain_steps, len(layers) // 2
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._step = Mirror()  # of `step`: the host chooses the layer and should not wait for the device

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """As in `Autoencoder`. While a layer is pretrained, each (B,): "reconstruction", half the squared error of the
        layer's input; "loss", the same plus, for the last layer, the penalty of the code; "layer", its number.
        """
        check_context(context, self.conditioning, len(x))
        if not self.training:
            return super().objective(x)
        step = int(self._step.read(self.step))
        layer = step // self.pretrain_steps if self.pretrain_steps else self.depth
        self.step += 1
        self._step.note(self.step, step + 1)
        if layer >= self.depth:
            return super().objective(x)
        h, penalty = self.scaled(x).flatten(1), x.new_zeros(len(x), dtype=self.dtype)
        with torch.no_grad():
            for below in self.encoder.layers[:layer]:
                h = below(h).relu()
        a = self.encoder.layers[layer](h if self.corruption is None else self.corruption(h)[0])
        if layer + 1 < self.depth:
            code = a.relu()
        else:
            code, penalty, _ = self.code(a)
        mirror = self.decoder.layers[self.depth - 1 - layer]
        weight = F.normalize(mirror.weight, dim=0) if self.decoder.unit_columns else mirror.weight
        reconstruction = (F.linear(code, weight, mirror.bias) - h).square().sum(1) / 2
        number = torch.full_like(penalty, layer)
        return {"loss": reconstruction + penalty, "reconstruction": reconstruction.detach(), "layer": number}
