"""Images as a range code of an autoregressive model: about log2 1/p(x) bits for an image.

The encoder walks through the images as the sampler does: the model's cache gives the distribution of the next value of
every image, and the range coder codes the true value with it (Martin 1979; the coder is constriction's). The decoder
makes the very same steps and reads the values from the code. Encoding by one forward pass would be faster, but its
floats differ in the last places from those of the steps, and such a file would not decode.

n images, C channels, H x W pixels, K levels.
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
import torch
from torch import Tensor

from genlab.coding.tables import Plain, Portable
from genlab.core import Chained

LEVELS = constriction.stream.model.Categorical(perfect=False)


def encode(model: Chained, x: Tensor, tables: Plain | Portable, context: Tensor | None = None) -> bytes:
    """Integers (n, C, H, W) -> the code. `tables` collects the exceptions that the decoder must know."""
    coder = constriction.stream.queue.RangeEncoder()
    values = iter(_in_order(x).unbind(1))

    def choose(logits: Tensor) -> Tensor:
        value = next(values)
        coder.encode(value.cpu().numpy().astype(np.int32), LEVELS, tables.of(logits, value))
        return value

    model.walk(len(x), choose, context)
    code: bytes = coder.get_compressed().astype("<u4").tobytes()
    return code


def decode(model: Any, code: bytes, n: int, tables: Plain | Portable, context: Tensor | None = None) -> Tensor:
    """The code -> integers (n, C, H, W)."""
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(code, "<u4").astype(np.uint32))

    def choose(logits: Tensor) -> Tensor:
        return torch.from_numpy(coder.decode(LEVELS, tables.of(logits, None))).long().to(logits.device)

    images: Tensor = model.walk(n, choose, context)
    return images


def _in_order(x: Tensor) -> Tensor:
    """Integers (n, C, H, W) -> (n, H W C): pixels in raster order, the channels of a pixel in turn."""
    return x.long().permute(0, 2, 3, 1).flatten(1)
