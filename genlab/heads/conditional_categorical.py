"""Conditional categorical head: one softmax for each channel of a pixel, given the earlier channels.

The factorisation p(R | h) p(G | R, h) p(B | R, G, h) is that of van den Oord et al. 2016 (arXiv:1601.06759, eq. 2). It
is in the head instead of in the net's masks, as in the `ar_chs` variant of PixelSNAIL's code (Chen et al. 2017,
arXiv:1712.09763). So one step of the net gives a whole pixel. Every channel has a hidden layer, to which learnt
embeddings of the earlier values are added,

    logits_i = W_i relu(A_i h + sum_{j<i} E_ij[x_j]) + w_i.

Ours starts W at zero, so that an untrained model costs exactly log2 K bits per value. The embeddings start as linear
functions of the level, so that neighbouring levels are similar. With one channel it is one softmax after a hidden
layer.

C channels, H hidden units, K levels, N pixels, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import RequestError
from genlab.heads.categorical import CategoricalPixels
from genlab.heads.chain import ChainPixels

CONFIGURABLE = {"head": ("ConditionalCategorical",)}


class ConditionalCategorical(nn.Module):
    """Features (..., D) -> the joint distribution of the channels of a pixel (..., C). A sample takes one uniform
    number per value.

    Training keeps the logits of all values in memory, (N, C, K).
    """

    chains_colours = True

    def __init__(self, *, width: int, channels: int, levels: int, hidden: int = 64) -> None:
        super().__init__()
        if hidden < 1:
            raise RequestError(f"the conditional categorical head needs hidden >= 1, got hidden={hidden}")
        self.channels, self.levels, self.hidden = channels, levels, hidden
        self.noise_size = channels
        self.inner = nn.Linear(width, channels * hidden)
        # Table j has the embeddings of value j for every later channel, H units each.
        tables = nn.ParameterList(nn.Parameter(self._lines((channels - 1 - j) * hidden)) for j in range(channels - 1))
        self.tables: Sequence[nn.Parameter] = tables  # type: ignore[assignment]
        self.weight = nn.Parameter(torch.zeros(channels, hidden, levels))
        self.bias = nn.Parameter(torch.zeros(channels, levels))

    def _lines(self, width: int) -> Tensor:
        """Embeddings (K, width) that are linear in the level, from -1 to 1 times a random vector."""
        return torch.linspace(-1, 1, self.levels)[:, None] * torch.randn(width) / 2

    def forward(self, h: Tensor) -> ConditionalCategoricalPixels:
        """Features (..., D) -> the distribution of the values."""
        inner = self.inner(h.reshape(-1, h.shape[-1]))
        return ConditionalCategoricalPixels(inner, h.shape[:-1], self.tables, self.weight.unbind(), self.bias.unbind())

    def for_steps(self) -> Callable[[Tensor], ConditionalCategoricalPixels]:
        """`forward` for many small batches (B, D), with weights transposed once."""
        weight, bias = self.inner.weight.T.contiguous(), self.inner.bias
        others = list(self.tables), self.weight.unbind(), self.bias.unbind()
        return lambda h: ConditionalCategoricalPixels(torch.addmm(bias, h, weight), h.shape[:-1], *others)


class ConditionalCategoricalPixels:
    """A chain of C softmaxes.

    `inner` (N, C H): the hidden layers before embeddings are added; `lead`: the leading dimensions, whose product is N;
    `tables`: the embeddings of every value for all channels after it; `weights` (H, K) and `biases` (K,) of each
    channel: the projections to logits.
    """

    def __init__(
        self,
        inner: Tensor,
        lead: tuple[int, ...],
        tables: Sequence[Tensor],
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
    ) -> None:
        self.inner, self.lead, self.tables, self.weights, self.biases = inner, lead, tables, weights, biases
        self.hidden, self.levels = weights[0].shape

    def log_prob(self, x: Tensor) -> Tensor:
        """Integers x (..., C) -> nats (...,). Raises ValueError for another shape."""
        if x.shape != (*self.lead, len(self.weights)):
            raise ValueError(f"values {tuple(x.shape)} do not match {len(self.weights)} at each of {tuple(self.lead)}")
        remaining, nats = self.inner, []
        for i, value in enumerate(x.reshape(-1, len(self.weights)).split(1, 1)):
            nats.append(self._softmax(remaining, i).log_prob(value))
            remaining = self._given_value(remaining, i, value)
        return torch.stack(nats).sum(0).view(self.lead)

    def sample(self, noise: Tensor) -> Tensor:
        """Uniform noise (..., C) in [0, 1) -> integers (..., C)."""
        remaining, values = self.inner, []
        for i, uniform in enumerate(noise.reshape(-1, len(self.weights)).split(1, 1)):
            values.append(self._softmax(remaining, i).sample(uniform))
            remaining = self._given_value(remaining, i, values[i])
        return torch.cat(values, 1).view(noise.shape)

    def tempered(self, temperature: float) -> ChainPixels:
        """Every conditional p(x_i | x_<i) to the power 1 / temperature, exact over the K levels."""
        return ChainPixels(self.next_logits, len(self.weights), temperature)

    def mean(self) -> Tensor:
        """Expected level (..., C) of every channel, given that earlier ones are at the level nearest to their mean."""
        return self.tempered(1).mean()

    def next_logits(self, before: list[Tensor]) -> Tensor:
        """Logits (..., K) of the next value."""
        remaining = self.inner
        for j, value in enumerate(before):
            remaining = self._given_value(remaining, j, value.reshape(-1, 1))
        return self._softmax(remaining, len(before)).logits.view(*self.lead, self.levels)

    def _softmax(self, remaining: Tensor, i: int) -> CategoricalPixels:
        """Hidden layers of channels i, i+1, … -> the distribution of channel i."""
        weight, bias = self.weights[i], self.biases[i]
        with torch.autocast(remaining.device.type, enabled=False):  # in bfloat16 the logits would have 8 bits
            return CategoricalPixels(torch.addmm(bias, remaining[:, : self.hidden].relu().to(weight.dtype), weight))

    def _given_value(self, remaining: Tensor, i: int, value: Tensor) -> Tensor:
        """Hidden layers of channels i, i+1, … -> those of channels i+1, … given value i (N, 1)."""
        if i == len(self.tables):
            return remaining
        return remaining[:, self.hidden :] + F.embedding(value.reshape(-1).long(), self.tables[i])
