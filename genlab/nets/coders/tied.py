"""The weights of a decoder: its own, or those of the encoder that it mirrors; as they are, or with columns of length 1.

A `tied` decoder has biases but no weights. It uses the weights of its encoder transposed, the last layer first, so it
has one parameter for two uses (as in Vincent et al. 2010, JMLR 11).

With `unit_columns`, the weights that leave a unit are divided by their length, in every layer. Otherwise a penalty on
the code could be avoided by a small code and large decoder weights. Biases are not affected.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def remove_weights(layers: nn.ModuleList) -> None:
    """Remove the weights of these layers and keep their biases, as a tied decoder needs it."""
    for layer in layers:
        del layer.weight
        layer.register_parameter("weight", None)


def decoder_weights(decoder: nn.Module, encoder: nn.Module | None) -> list[Tensor]:
    """The weights of a decoder's layers, in their order. `encoder`: needed by a tied decoder only."""
    if decoder.tied:
        assert encoder is not None
        # A transposed convolution takes the weights of its convolution unchanged. A matrix has to be transposed.
        weights = [layer.weight.T if layer.weight.ndim == 2 else layer.weight for layer in reversed(encoder.layers)]  # type: ignore[union-attr, arg-type]
    else:
        weights = [layer.weight for layer in decoder.layers]  # type: ignore[misc, union-attr]
    return [_unit_columns(weight) for weight in weights] if decoder.unit_columns else weights  # type: ignore[arg-type, return-value]


def _unit_columns(weight: Tensor) -> Tensor:
    """Divide the weights that leave each unit by their length.

    These are the columns of a matrix (outputs, inputs), or the first dimension of a transposed convolution
    (inputs, outputs, k, k).
    """
    if weight.ndim == 2:
        return F.normalize(weight, dim=0)
    return F.normalize(weight.flatten(1), dim=1).view_as(weight)
